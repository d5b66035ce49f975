//! What a host can lack: a library, the right library, sense in the number of threads.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use pilotfish_runtime::home::Home;
use pilotfish_runtime::{LoadOptions, OnnxCausal, RuntimeError, library};
use pilotfish_tests::smollm2;

/// A shared library made of this source.
fn compile(folder: &Path, name: &str, source: &str) -> PathBuf {
    let (code, built) = (folder.join(format!("{name}.rs")), folder.join(format!("{name}.so")));
    std::fs::write(&code, source).unwrap();
    let rustc = Path::new(env!("CARGO")).with_file_name(format!("rustc{}", std::env::consts::EXE_SUFFIX));
    let rustc = if rustc.is_file() { rustc } else { "rustc".into() };
    let output = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .arg(&built)
        .arg(&code)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    built
}

/// A library that says it is ONNX Runtime of a version long past, and nothing else.
const OLD: &str = r#"
#[repr(C)]
pub struct Base { api: extern "C" fn(u32) -> *const u8, version: extern "C" fn() -> *const u8 }
extern "C" fn api(_: u32) -> *const u8 { std::ptr::null() }
extern "C" fn version() -> *const u8 { c"1.10.0".as_ptr().cast() }
static BASE: Base = Base { api, version };
#[unsafe(no_mangle)]
pub extern "C" fn OrtGetApiBase() -> *const Base { &BASE }
"#;

/// One test, since a process has one library: each wrong one is refused with its reason, and the right one still
/// loads afterwards.
#[test]
fn a_wrong_library_is_refused_and_leaves_room_for_the_right_one() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    std::fs::write(&text, "not a library").unwrap();
    let empty = folder.path().join("empty.so");
    std::fs::write(&empty, "").unwrap();
    let wrong = [
        (folder.path().join("missing.so"), "not a file"),
        (folder.path().to_path_buf(), "not a file"),
        (empty, "failed to load"),
        (text, "failed to load"),
        (compile(folder.path(), "other", "pub fn nothing() {}"), "does not export `OrtGetApiBase`"),
        (compile(folder.path(), "old", OLD), "1.10.0"),
    ];
    for (path, want) in wrong {
        let error = library::load(&path).err().unwrap();
        assert!(
            matches!(&error, RuntimeError::Library { path: named, why }
                if *named == path.display().to_string() && why.contains(want)),
            "{error}"
        );
        assert!(error.to_string().contains("cargo xtask setup"), "{error}");
    }
    assert!(library::describe().is_none());
    library::load(&Home::locate().unwrap().library().unwrap()).unwrap();
    assert!(library::describe().is_some());
}

#[test]
fn threads_without_sense_are_refused() {
    let error =
        OnnxCausal::from_checkpoint(&smollm2(), &LoadOptions::default().threads(10_000)).err().unwrap();
    assert_eq!(error.to_string(), "option threads = 10000: 0 (one a core) to 1024");
}
