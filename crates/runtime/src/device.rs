use std::str::FromStr;

use crate::{Result, RuntimeError};

/// Where a model runs.
///
/// ```
/// use pilotfish_runtime::Device;
/// assert_eq!("cuda:1".parse::<Device>()?, Device::Cuda(1));
/// assert!("gpu".parse::<Device>().is_err());
/// # Ok::<(), pilotfish_runtime::RuntimeError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this number. Needs the feature `cuda` and a library built for it.
    Cuda(u32),
    /// The first CUDA device if there is one, else the processor; [`Device::resolve`] says which.
    Auto,
}

impl FromStr for Device {
    type Err = RuntimeError;

    fn from_str(text: &str) -> Result<Self> {
        let cuda = || text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match text {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            _ => cuda().map(Self::Cuda).ok_or_else(|| RuntimeError::UnknownDevice(text.into())),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl Device {
    /// The device that will really be used: never `Auto`.
    ///
    /// # Errors
    /// A device named explicitly that is not there. There is no silent fall-back.
    pub fn resolve(self) -> Result<Self> {
        match self {
            Self::Cpu => Ok(Self::Cpu),
            Self::Cuda(_) => cuda_available()
                .map(|()| self)
                .map_err(|why| RuntimeError::NoDevice { device: self.to_string(), why }),
            Self::Auto => {
                let chosen = if cuda_available().is_ok() { Self::Cuda(0) } else { Self::Cpu };
                tracing::info!("device auto: using {chosen}");
                Ok(chosen)
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda_available() -> std::result::Result<(), String> {
    use ort::ep::ExecutionProvider;
    crate::library::environment().map_err(|error| error.to_string())?;
    match ort::ep::CUDA::is_available() {
        Ok(true) => Ok(()),
        Ok(false) => Err("this ONNX Runtime library was built without CUDA; `cargo xtask setup --cuda` \
                          installs one that has it"
            .into()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda_available() -> std::result::Result<(), String> {
    Err("pilotfish-runtime was built without its feature `cuda`".into())
}
