//! Python packages that tests compare with, kept apart from the user's own.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Fetched, HashedFile, Result, Setup, Stamp, StampedFile, Wheel};
use crate::models::Package;

/// Largest file taken from a package.
const LARGEST: u64 = 256 << 20;

/// The official package `onnx`, whose checker judges the files that we write, and what it needs.
pub const ONNX_CHECKER: (&str, &[Package]) = (
    "python-onnx",
    &[
        Package { name: "onnx", version: "1.23.2" },
        Package { name: "numpy", version: "2.4.6" },
        Package { name: "protobuf", version: "7.36.2" },
        Package { name: "ml_dtypes", version: "0.6.0" },
        Package { name: "typing_extensions", version: "4.16.0" },
    ],
);

impl Setup {
    /// Makes sure that Python packages lie in a folder of the home, and returns it: what `PYTHONPATH` is set to.
    /// Nothing is installed where the user's Python would find it. A wheel may be of another Python than the one
    /// that runs later, which then cannot load it.
    ///
    /// # Errors
    /// No pip, a damaged download, a folder that cannot be written.
    pub fn python(&self, (name, packages): (&str, &[Package])) -> Result<Fetched> {
        let folder = self.home().tools().join(name);
        let from: Vec<String> =
            packages.iter().map(|package| format!("{}=={}", package.name, package.version)).collect();
        let make = |into: &Path, work: &Path| {
            let mut files = BTreeMap::new();
            for package in packages {
                let wheel = self.pip().download(package.name, package.version, work, &self.wheels())?;
                unpack(&wheel, into, &mut files)?;
            }
            Ok(Stamp { from: from.clone(), files })
        };
        let what = format!("Python's {}", packages.first().map_or(name, |package| package.name));
        let current = |stamp: &Stamp| stamp.from == from;
        let done = self.install(&what, &from.join(", "), &folder, current, make, |_| Ok(()))?;
        Ok(Fetched { path: folder, done })
    }
}

/// Takes everything out of a wheel but its list of digests and the data of its own tests.
fn unpack(path: &Path, into: &Path, files: &mut BTreeMap<String, StampedFile>) -> Result<()> {
    let mut wheel = Wheel::open(path)?;
    let wanted = |name: &&str| {
        !name.ends_with('/') && !name.ends_with(".dist-info/RECORD") && !name.contains("/backend/test/data/")
    };
    let names: Vec<String> = wheel.members().filter(wanted).map(str::to_owned).collect();
    for name in names {
        let mut file = HashedFile::create(&into.join(&name), LARGEST)?;
        wheel.read(&name, LARGEST, |from| std::io::copy(from, &mut file))?;
        let (bytes, sha256) = file.finish()?;
        files.insert(name, StampedFile { bytes, sha256 });
    }
    Ok(())
}
