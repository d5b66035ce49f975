//! A process of its own, because it looks at the memory of the whole process.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used)]

use std::path::Path;

use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{DType, Dim, Graph, Op, Storage, Tensor};
use pilotfish_runtime::{SessionConfig, lower_products, ort, packed_bytes, product_operators};

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

/// Bytes that are allocated while a session is open that has run twice.
fn used(path: &Path, ins: usize) -> usize {
    let before = allocated();
    let config = SessionConfig { operators: vec![product_operators(1)], ..SessionConfig::default() };
    let mut session = config.open(path).unwrap();
    for _ in 0..2 {
        let x = ort::value::Tensor::from_array(([1, ins], vec![1.0f32; ins])).unwrap();
        session.run(ort::inputs!["x" => x]).unwrap();
    }
    allocated().saturating_sub(before)
}

/// The file holds the packed matrix and no other, and a session uses it where it is mapped: there is neither a second
/// packed copy nor an original in memory.
#[test]
fn the_packed_matrix_replaces_the_original() {
    let shape = [4096, 2048];
    let folder = tempfile::tempdir().unwrap();
    // Whatever a first session allocates once.
    let small = folder.path().join("small.onnx");
    write(Storage::F32, [64, 64], true, &small);
    used(&small, 64);
    let sparse = Storage::Sparse { keep: 2, group: 4 };
    for storage in [Storage::F32, Storage::Bf16, Storage::Int8 { block: 32 }, sparse] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.onnx");
        write(storage, shape, true, &path);
        let packed = packed_bytes(storage, shape).unwrap();
        let files = std::fs::read_dir(folder.path()).unwrap();
        let on_disk: usize = files.map(|file| file.unwrap().metadata().unwrap().len() as usize).sum();
        assert!(on_disk < packed + (1 << 16), "{storage}: {on_disk} bytes on disk for {packed} packed");
        let more = used(&path, shape[1]);
        assert!(more < packed / 4, "{storage}: {more} bytes allocated beside {packed} that are mapped");
    }
    // ONNX Runtime's own product packs a copy when the session is opened, which shows that one would be seen.
    let path = folder.path().join("standard.onnx");
    write(Storage::F32, shape, false, &path);
    let more = used(&path, shape[1]);
    assert!(more > 3 * shape[0] * shape[1], "{more} bytes");
}
