//! The one ONNX Runtime library of a process.

use std::path::Path;
use std::sync::{Mutex, OnceLock};

use ort::environment::Environment;

use crate::home::Home;
use crate::{Result, RuntimeError};

/// The oldest minor version of ONNX Runtime 1.x whose C interface this crate is compiled against.
const OLDEST_MINOR: u32 = 24;

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

/// The process' ONNX Runtime, loaded on first use from the place [`Home::library`] finds.
///
/// # Errors
/// No library, one that cannot be loaded, or one too old.
pub fn environment() -> Result<&'static Environment> {
    match ENVIRONMENT.get() {
        Some(environment) => Ok(environment),
        None => load(&Home::locate()?.library()?),
    }
}

/// Loads a library by path. A second call returns the library that is already loaded.
pub fn load(path: &Path) -> Result<&'static Environment> {
    let _one = LOADING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let refuse = |why: String| RuntimeError::Library { path: path.display().to_string(), why };
    if !path.is_file() {
        return Err(refuse("not a file".into()));
    }
    let builder = ort::init_from(path).map_err(|error| refuse(error.to_string()))?;
    let version = version();
    if minor(&version).is_none_or(|minor| minor < OLDEST_MINOR) {
        return Err(refuse(format!("version {version} is older than 1.{OLDEST_MINOR}")));
    }
    let environment =
        builder.with_name("pilotfish").with_telemetry(false).build().map_err(|error| refuse(error.to_string()))?;
    environment.set_log_level(ort::logging::LogLevel::Error);
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

/// Version of the loaded library, such as `1.32.0`. Call only after [`environment`] succeeded.
pub fn version() -> String {
    // The build information reads "ORT Build Info: git-branch=..., ... " and carries no plain version in some
    // builds, so the C interface's version string is asked for first.
    let info = ort::info();
    info.split(|c: char| c.is_whitespace() || c == ',')
        .find(|word| minor(word).is_some())
        .unwrap_or("unknown")
        .to_owned()
}

fn minor(version: &str) -> Option<u32> {
    let mut parts = version.split('.');
    (parts.next()? == "1").then_some(())?;
    parts.next()?.parse().ok()
}
