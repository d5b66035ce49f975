//! Devices that are named and are not there.
#![allow(clippy::unwrap_used)]

use pilotfish_runtime::{Device, RuntimeError};

/// A device that was named and is not there is an error that says what to do, never the processor instead; with the
/// feature `cuda` and without it.
#[test]
fn an_absent_device_is_an_error() {
    for name in ["cuda", "cuda:0", "cuda:7"] {
        // Where there is one, it may be used.
        let Err(error) = name.parse::<Device>().unwrap().resolve() else { continue };
        assert!(matches!(error, RuntimeError::NoDevice { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("feature `cuda`") || text.contains("cargo xtask setup --cuda"), "{text}");
        assert_eq!(Device::Auto.resolve().unwrap(), Device::Cpu);
    }
    for name in ["gpu", "cuda:", "cuda:-1", "cuda:4294967296", "CPU", ""] {
        assert!(name.parse::<Device>().is_err(), "{name:?}");
    }
}
