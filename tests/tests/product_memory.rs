//! What a session holds of a packed matrix. Each session is measured in a process of its own, in which nothing large was
//! freed before that it could use again unnoticed.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used)]

use std::path::Path;

use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{DType, Dim, Graph, Kept, Op, Storage, Tensor};
use pilotfish_runtime::{SessionConfig, lower_products, ort, packed_bytes, product_operators};
use pilotfish_tests::measured_apart;

/// Anonymous memory of this process, in bytes: what was allocated, not what was mapped from files.
fn allocated() -> usize {
    // SAFETY: gives back what was freed, so that it cannot be used again unnoticed.
    unsafe { libc::malloc_trim(0) };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

fn write(storage: Storage, [outs, ins]: [usize; 2], ours: bool, path: &Path) {
    let mut g = Graph::new("linear");
    let x = g.input("x", vec![Dim::symbol("T"), ins.into()], DType::F32).unwrap();
    let values = (0..outs * ins).map(|i| ((i * 7919) % 1999) as f32 / 999.5 - 1.0).collect();
    let w = g.param("w", Tensor::new([outs, ins], values).unwrap()).unwrap();
    let y = g.apply(Op::Linear(storage), &[x, w]).unwrap()[0];
    g.output("y", y).unwrap();
    let g = if ours { lower_products(&g).unwrap() } else { g };
    onnx::write(&g, Lowering::Standard, path).unwrap();
}

const CHILD: &str = "PILOTFISH_TEST_PRODUCT";
const INS: usize = 2048;

fn open(path: &Path, ins: usize) -> ort::session::Session {
    let config = SessionConfig { operators: vec![product_operators(1)], ..SessionConfig::default() };
    let mut session = config.open(path).unwrap();
    for _ in 0..2 {
        let x = ort::value::Tensor::from_array(([1, ins], vec![1.0f32; ins])).unwrap();
        session.run(ort::inputs!["x" => x]).unwrap();
    }
    session
}

/// Bytes that are allocated while a session is open that has run twice, beyond those of a small one.
fn used(path: &Path) -> usize {
    let [bytes] = measured_apart("the_packed_matrix_replaces_the_original", CHILD, path, ["allocated"]);
    bytes as usize
}

/// The file holds the packed matrix and no other, and a session uses it where it is mapped: there is neither a second
/// packed copy nor an original in memory.
#[test]
fn the_packed_matrix_replaces_the_original() {
    if let Some(path) = std::env::var_os(CHILD) {
        // Whatever a first session allocates once.
        let folder = tempfile::tempdir().unwrap();
        let small = folder.path().join("small.onnx");
        write(Storage::F32, [64, 64], true, &small);
        drop(open(&small, 64));
        let before = allocated();
        let session = open(Path::new(&path), INS);
        println!("allocated {}", allocated().saturating_sub(before));
        drop(session);
        return;
    }
    let shape = [4096, INS];
    let folder = tempfile::tempdir().unwrap();
    let sparse = Storage::Sparse { keep: 2, group: 4, kept: Kept::F32 };
    for storage in [Storage::F32, Storage::Bf16, Storage::Int8 { block: 32 }, sparse] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.onnx");
        write(storage, shape, true, &path);
        let packed = packed_bytes(storage, shape).unwrap();
        let files = std::fs::read_dir(folder.path()).unwrap();
        let on_disk: usize = files.map(|file| file.unwrap().metadata().unwrap().len() as usize).sum();
        assert!(on_disk < packed + (1 << 16), "{storage}: {on_disk} bytes on disk for {packed} packed");
        let more = used(&path);
        assert!(more < packed / 4, "{storage}: {more} bytes allocated beside {packed} that are mapped");
    }
    // ONNX Runtime's own product packs a copy when the session is opened, which shows that one would be seen.
    let path = folder.path().join("standard.onnx");
    write(Storage::F32, shape, false, &path);
    let more = used(&path);
    assert!(more > 3 * shape[0] * shape[1], "{more} bytes");
}
