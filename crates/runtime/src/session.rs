//! Sessions of ONNX Runtime and the options they share.

use std::path::Path;

use ort::session::Session;

use crate::{Device, Result, RuntimeError, library};

/// How sessions are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Where to run.
    pub device: Device,
    /// Threads of a session; 0 takes one a physical core.
    pub threads: usize,
    /// Whether idle threads spin between calls: a little faster alone, much slower on a shared machine.
    pub spin: bool,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { device: Device::Cpu, threads: 1, spin: false }
    }
}

/// More threads than any machine this is meant for has.
const MOST_THREADS: usize = 1024;

impl SessionConfig {
    /// Checks the numbers.
    pub fn check(&self) -> Result<()> {
        if self.threads > MOST_THREADS {
            let (value, want) = (self.threads.to_string(), "0 (one a core) to 1024");
            return Err(RuntimeError::Option { option: "threads", value, want });
        }
        Ok(())
    }

    /// Opens an ONNX file.
    ///
    /// # Errors
    /// No library, no such device, or a file that ONNX Runtime refuses.
    pub fn open(&self, path: &Path) -> Result<Session> {
        self.check()?;
        let device = self.device.resolve()?;
        let mut builder = Session::builder(library::environment()?)?;
        if self.threads > 0 {
            builder = builder.with_intra_threads(self.threads)?;
        }
        builder = builder.with_intra_op_spinning(self.spin)?;
        #[cfg(feature = "cuda")]
        if let Device::Cuda(number) = device {
            let cuda = ort::ep::CUDA::default().with_device_id(number as i32).build().error_on_failure();
            builder = builder.with_execution_providers([cuda])?;
        }
        tracing::debug!("{} on {device}", path.display());
        builder.commit_from_file(path).map_err(|error| {
            let why = error.message().trim().to_owned();
            RuntimeError::Contract { path: path.display().to_string(), why }
        })
    }
}
