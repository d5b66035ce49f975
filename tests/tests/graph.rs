//! Graphs of whole networks: what they cost, and what passes and files make of them.
#![allow(clippy::unwrap_used)]

use pilotfish_graph::cost::cost;
use pilotfish_graph::{Mark, Op, Storage, passes};
use pilotfish_tests::smollm2;

/// Against counts by hand: 30 layers of 576 wide, heads 9 and 3 of 64, MLP of 1536, 49152 tokens.
#[test]
fn a_row_of_smollm2_is_a_quarter_of_a_gigaflop() {
    let checkpoint = smollm2();
    let network = checkpoint.causal().unwrap();
    let whole = network.whole(1.into(), "T".into()).unwrap();
    let layer = 576 * (576 + 192 + 192) + 576 * 576 + 3 * 576 * 1536;
    let (table, norms) = (49152 * 576, 61 * 576);
    let parameters = table + 30 * layer + norms;
    assert_eq!((network.parameters(), parameters), (134_515_008, 134_515_008));
    for rows in [1, 7] {
        let costs = cost(&whole, &[("T", rows)]).unwrap();
        let rows = rows as u64;
        let attention = 30 * rows * rows * 9 * 64 * 2;
        let products = (table + 30 * layer) as u64 * rows;
        assert_eq!(costs.total.multiply_adds, products + attention);
        // The table is in memory once; the head reads all of it, the embedding a line a row.
        assert_eq!(costs.stored_bytes, 4 * parameters as u64);
        assert_eq!(costs.total.weight_bytes, 4 * (parameters as u64 + 576 * rows));
        assert_eq!(costs.total.cache_bytes, 30 * rows * 2 * 3 * 64 * 4);
        // Every layer costs the same, and the head is what no residual needs.
        assert_eq!(costs.parts.len(), 64);
        let of = |wanted| costs.parts.iter().find(|(mark, _)| *mark == Some(wanted)).unwrap().1;
        for layer in 0..30 {
            let (attention, mlp) = (of(Mark::Attended(layer)), of(Mark::Residual(layer + 1)));
            assert_eq!(attention.weight_bytes, 4 * (576 * 1536 + 576));
            assert_eq!(mlp.weight_bytes, 4 * (3 * 576 * 1536 + 576));
            assert_eq!((attention, mlp), (of(Mark::Attended(0)), of(Mark::Residual(1))));
        }
        assert_eq!(of(Mark::Logits).multiply_adds, table as u64 * rows);
    }
    let gigaflops = 2.0 * cost(&whole, &[("T", 1)]).unwrap().total.multiply_adds as f64 / 1e9;
    assert!((gigaflops - 0.269).abs() < 0.001, "{gigaflops}");

    // In blocks of four bits: half a byte a number, and 4.5 bytes a block of 32.
    let int4 = passes::store(&whole, |_| Some(Storage::Int4 { block: 32 })).unwrap();
    let matrices: u64 = int4
        .nodes()
        .iter()
        .zip(cost(&int4, &[("T", 1)]).unwrap().nodes)
        .filter(|(node, _)| matches!(node.op, Op::Linear(_)))
        .map(|(_, cost)| cost.weight_bytes)
        .sum();
    assert_eq!(matrices, (table + 30 * layer) as u64 / 32 * (16 + 4) + (table + 30 * layer) as u64 / 64);
}
