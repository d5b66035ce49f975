//! Sessions of ONNX Runtime and the options they share.

use std::path::Path;

use ort::session::Session;
use pilotfish_graph::onnx;

use crate::{Device, Operators, Result, RuntimeError, library, operators};

/// How sessions are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Where to run.
    pub device: Device,
    /// Threads of a session; 0 takes one a physical core.
    pub threads: usize,
    /// Whether idle threads spin between calls: a little faster alone, much slower on a shared machine.
    pub spin: bool,
    /// Operators besides those of ONNX Runtime.
    pub operators: Vec<Operators>,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { device: Device::Cpu, threads: 1, spin: false, operators: Vec::new() }
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
        for domain in operators::domains(&self.operators)? {
            builder = builder.with_operators(domain)?;
        }
        tracing::debug!("{} on {device}", path.display());
        builder.commit_from_file(path).map_err(|error| {
            let (file, why) = (path.display().to_string(), error.message().trim().to_owned());
            match self.missing(path, &why) {
                Some((domain, provider)) => RuntimeError::NoOperators { path: file, domain, provider },
                None => RuntimeError::Contract { path: file, why },
            }
        })
    }

    /// The first domain that the file says some crate has and that was not given, when that is why ONNX
    /// Runtime refused it.
    fn missing(&self, path: &Path, why: &str) -> Option<(String, String)> {
        const LARGEST: u64 = 256 << 20;
        if !why.contains("is not a registered function/op") || std::fs::metadata(path).ok()?.len() > LARGEST {
            return None;
        }
        let providers = onnx::providers(path).ok()?;
        providers.into_iter().find(|(domain, _)| self.operators.iter().all(|set| set.domain() != domain))
    }
}
