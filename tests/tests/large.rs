//! Weights of more than 2 GB, which no message holds: written beside a model, found there again, never in memory.
#![cfg(feature = "slow")]
#![allow(clippy::unwrap_used)]

use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{DType, Graph, Tensor};

/// Numbers that say where they are, made when they are asked for. Whole numbers below 2^24 are exact in f32.
fn derived(first: usize, rows: usize, width: usize) -> Tensor {
    Tensor::new([1], vec![0.0]).unwrap().derive([rows, width], move |_, range| {
        let number = move |row: usize| (0..width).map(move |i| ((first + row) * 7 + i) as f32);
        Ok(range.flat_map(number).collect())
    })
}

#[test]
fn a_model_of_more_than_two_gigabytes() {
    // Five tables of 500 MB: each is in memory while it is written, not all of them.
    let (tables, rows, width) = (5, 125_000, 1000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.onnx");
    let mut g = Graph::new("large");
    let ids = g.input("ids", [1usize, 1], DType::I64).unwrap();
    let mut sum = None;
    for table in 0..tables {
        let weights = g.param(&format!("table {table}"), derived(table * rows, rows, width)).unwrap();
        let row = g.embedding(weights, ids).unwrap();
        sum = Some(match sum {
            None => row,
            Some(sum) => g.add(sum, row).unwrap(),
        });
    }
    g.output("y", sum.unwrap()).unwrap();
    assert!(onnx::to_bytes(&g, Lowering::Standard).is_err_and(|error| error.to_string().contains("2 GB")));
    onnx::write(&g, Lowering::Standard, &path).unwrap();
    let bytes = std::fs::metadata(folder.path().join("large.onnx.bin")).unwrap().len();
    assert!(bytes > 2 << 30, "{bytes}");
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 16);
    let read = onnx::read(&path).unwrap();
    for table in 0..tables {
        let value = read.find(&format!("table {table}")).unwrap();
        let tensor = &read.param_of(value).unwrap().tensor;
        assert_eq!(tensor.shape(), [rows, width]);
        for row in [0, 1, rows / 2, rows - 1] {
            let want = derived(table * rows, rows, width).rows(row..row + 1).unwrap();
            assert_eq!(tensor.rows(row..row + 1).unwrap(), want, "table {table}, row {row}");
        }
    }
    // A byte less than there should be is noticed without reading any.
    let file = std::fs::File::options().write(true).open(folder.path().join("large.onnx.bin")).unwrap();
    file.set_len(bytes - 1).unwrap();
    assert!(onnx::read(&path).is_err());
}
