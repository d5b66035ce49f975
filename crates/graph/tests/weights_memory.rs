//! What opening and reading weights and models allocates: nothing for a count that is only claimed, and no more than the
//! rows that are asked for. One test, since the allocator counts for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::weights::gguf::Gguf;
use pilotfish_graph::weights::safetensors;
use pilotfish_graph::{DType, Graph, Tensor};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were held at once while this ran, beyond those held before.
fn peak<T>(run: impl FnOnce() -> T) -> (usize, T) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let out = run();
    (PEAK.load(Relaxed) - before, out)
}

/// A GGUF header of these counts, and bytes behind it.
fn gguf(tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &entries.to_le_bytes(), rest].concat()
}

fn list(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    let key = [&1u64.to_le_bytes()[..], b"k", &9u32.to_le_bytes()].concat();
    [&key[..], &kind.to_le_bytes(), &count.to_le_bytes(), values].concat()
}

#[test]
fn memory_is_bounded_by_the_file() {
    const LARGE: u64 = 1 << 60;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile");
    let hostile = [
        ("tensors", gguf(LARGE, 0, &[])),
        ("entries", gguf(0, LARGE, &[])),
        ("key", gguf(0, 1, &LARGE.to_le_bytes())),
        ("zeros", gguf(LARGE, LARGE, &[0; 4096])),
        ("list", gguf(0, 1, &list(8, LARGE, &[0; 4096]))),
        ("bytes", gguf(0, 1, &list(0, LARGE, &[7; 1 << 16]))),
        ("safetensors", (1u64 << 63).to_le_bytes().to_vec()),
        ("header", [&99_000_000u64.to_le_bytes()[..], b"{}"].concat()),
        ("shape", {
            let header = r#"{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,0]}}"#;
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
        }),
    ];
    for (what, bytes) in hostile {
        fs::write(&path, &bytes).unwrap();
        let open = || {
            if bytes.starts_with(b"GGUF") { Gguf::open(&path).err() } else { safetensors::open(&path).err() }
        };
        let (peak, error) = peak(open);
        assert!(error.is_some(), "{what}");
        // A byte in a list becomes a value of 32, and a growing list is held twice.
        assert!(peak < 4096 + 100 * bytes.len(), "{what}: {peak} bytes for a file of {}", bytes.len());
    }

    // Messages of two bytes become structures, nodes of 150 bytes and tensors of 350; growing lists are held twice.
    for (what, field, most) in [("nodes", 0x0a, 500), ("tensors", 0x2a, 1000), ("inputs", 0x5a, 500)] {
        let inside = [field, 0].repeat(1 << 14);
        let head = [0x08, 0x0b, 0x3a, 0x80, 0x80, 0x02];
        let bytes = [&head[..], &inside].concat();
        fs::write(&path, &bytes).unwrap();
        let (peak, error) = peak(|| onnx::read(&path).err());
        assert!(error.is_some(), "{what}");
        assert!(peak < 4096 + most / 2 * bytes.len(), "{what}: {peak} bytes for a file of {}", bytes.len());
    }

    // A model's weights are not read until they are asked for, and then only the rows that are.
    let mut graph = Graph::new("lazy");
    let x = graph.input("x", [1usize, 1024], DType::F32).unwrap();
    let w = graph.param("w", Tensor::new([512, 1024], vec![1.0; 512 * 1024]).unwrap()).unwrap();
    let y = graph.linear(x, w, None).unwrap();
    graph.output("y", y).unwrap();
    let model = folder.path().join("lazy.onnx");
    onnx::write(&graph, Lowering::Standard, &model).unwrap();
    let (opened, read) = peak(|| onnx::read(&model).unwrap());
    assert!(opened < 1 << 14, "{opened} bytes to open it");
    let (rows, values) = peak(|| read.params()[0].tensor.rows(3..5).unwrap());
    assert_eq!((values, rows), (vec![1.0; 2048], 4 * 2048));

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights/encodings.gguf");
    let gguf = Gguf::open(&file).unwrap();
    let tensor = gguf.weights().get("Q4_K.random").unwrap();
    let (rows, values) = peak(|| tensor.rows(1..2).unwrap());
    assert_eq!((values.len(), rows), (512, 4 * 512));
    let (whole, values) = peak(|| tensor.to_f32().unwrap().into_owned());
    assert_eq!((values.len(), whole), (1536, 4 * 1536));
}
