//! The one ONNX Runtime library of a process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use ort::environment::Environment;

use crate::home::Home;
use crate::{Result, RuntimeError};

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
static LOADED_FROM: OnceLock<PathBuf> = OnceLock::new();
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
    // Refuses libraries older than the C interface this crate is compiled against.
    let builder = ort::init_from(path).map_err(|error| refuse(error.to_string()))?;
    let environment = builder
        .with_name("pilotfish")
        .with_telemetry(false)
        .build()
        .map_err(|error| refuse(error.to_string()))?;
    environment.set_log_level(ort::logging::LogLevel::Error);
    let _ = LOADED_FROM.set(path.to_path_buf());
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

/// What is known about the loaded library: its version where the file's name has one, and its build.
/// `None` before [`environment`] succeeded.
pub fn describe() -> Option<String> {
    let path = LOADED_FROM.get()?;
    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
    let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let commit = ort::info().split(", ").find(|part| part.starts_with("git-commit-id")).unwrap_or_default();
    Some(format!("{name} {commit}").trim().to_owned())
}
