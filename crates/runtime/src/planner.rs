//! Whose kernel multiplies each matrix, and why.

use std::collections::BTreeMap;

use pilotfish_graph::{Graph, Op, Storage};

use crate::calibration::{self, Calibration};
use crate::products::{Products, lower_products_where, packed_bytes};
use crate::{Result, RuntimeError};

/// The kernel chosen for a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ProductChoice {
    /// Its matrix.
    pub name: String,
    /// How that is stored.
    pub storage: Storage,
    /// `[outs, ins]`.
    pub shape: [usize; 2],
    /// Whose it is; never [`Products::Auto`].
    pub products: Products,
    /// Why.
    pub reason: Reason,
}

/// Why a kernel was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// It was asked for.
    Asked,
    /// What it skips depends on its inputs; a measurement without them says nothing.
    Skips,
    /// Ours do not have this storage, or the matrix is not a constant.
    NoKernel,
    /// It is the faster one.
    Measured {
        /// At so many rows.
        rows: usize,
        /// On so many threads; 0 is one a core.
        threads: usize,
        /// ONNX Runtime's time for a product, in microseconds.
        ort: f64,
        /// Ours.
        pilotfish: f64,
    },
}

impl std::fmt::Display for ProductChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, storage, shape: [outs, ins], products, reason } = self;
        write!(f, "{name} {storage} [{outs}, {ins}]: {products}, ")?;
        match reason {
            Reason::Asked => f.write_str("as asked for"),
            Reason::Skips => f.write_str("as it skips what a gate drops"),
            Reason::NoKernel => f.write_str("as pilotfish has no kernel for it"),
            Reason::Measured { rows, threads, ort, pilotfish } => {
                let threads = if *threads == 0 { "all".to_owned() } else { threads.to_string() };
                write!(
                    f,
                    "measured for {rows} rows on {threads} threads: ort {ort:.1} us, pilotfish {pilotfish:.1} us"
                )
            }
        }
    }
}

type Key = (String, [usize; 2]);

/// Chooses, and measures where that is needed.
#[derive(Debug)]
pub(crate) struct Planner {
    products: Products,
    threads: usize,
    calibration: Option<Calibration>,
    seen: BTreeMap<Key, (Products, Reason)>,
}

impl Planner {
    pub(crate) fn new(products: Products, threads: usize) -> Self {
        Self { products, threads, calibration: None, seen: BTreeMap::new() }
    }

    fn choose(&mut self, storage: Storage, shape: [usize; 2]) -> Result<(Products, Reason)> {
        if packed_bytes(storage, shape).is_none() {
            return Ok((Products::Ort, Reason::NoKernel));
        }
        let Products::Auto { rows } = self.products else { return Ok((self.products, Reason::Asked)) };
        if matches!(storage, Storage::Columns { .. } | Storage::Rows) {
            return Ok((Products::Pilotfish, Reason::Skips));
        }
        let key = (storage.to_string(), shape);
        if let Some(&choice) = self.seen.get(&key) {
            return Ok(choice);
        }
        let threads = self.threads;
        let calibration = match &mut self.calibration {
            Some(calibration) => calibration,
            none => none.insert(Calibration::open()?),
        };
        let timings = calibration.timings(storage, shape, threads)?;
        let choice = match calibration::at(&timings, rows) {
            Some(timing) => {
                let ours = timing.pilotfish < timing.ort;
                let products = if ours { Products::Pilotfish } else { Products::Ort };
                let (ort, pilotfish) = (timing.ort, timing.pilotfish);
                (products, Reason::Measured { rows, threads, ort, pilotfish })
            }
            None => (Products::Ort, Reason::NoKernel),
        };
        self.seen.insert(key, choice);
        Ok(choice)
    }

    /// The choice for each linear layer of a graph, in order.
    pub(crate) fn choices(&mut self, graph: &Graph) -> Result<Vec<ProductChoice>> {
        let mut choices = Vec::new();
        for node in graph.nodes() {
            let Op::Linear(storage) = node.op else { continue };
            let param = node.inputs.get(1).and_then(|&weights| graph.param_of(weights));
            choices.push(match param {
                Some(param) => {
                    let &[outs, ins] = param.tensor.shape() else {
                        let why = format!("{} is not a matrix", param.name);
                        return Err(RuntimeError::Contract { path: graph.name().into(), why });
                    };
                    let (products, reason) = self.choose(storage, [outs, ins])?;
                    ProductChoice { name: param.name.clone(), storage, shape: [outs, ins], products, reason }
                }
                None => ProductChoice {
                    name: "(computed)".into(),
                    storage,
                    shape: [0; 2],
                    products: Products::Ort,
                    reason: Reason::NoKernel,
                },
            });
        }
        Ok(choices)
    }

    /// A graph with the operators that were chosen.
    pub(crate) fn lower(&mut self, graph: &Graph) -> Result<Graph> {
        let ours: Vec<Key> = self
            .choices(graph)?
            .into_iter()
            .filter(|choice| choice.products.ours())
            .map(|choice| (choice.storage.to_string(), choice.shape))
            .collect();
        if ours.is_empty() {
            return Ok(graph.clone());
        }
        let wanted = |storage: Storage, shape| ours.contains(&(storage.to_string(), shape));
        Ok(lower_products_where(graph, self.products.activations(), wanted)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use pilotfish_graph::{DType, Dim, Kept, Tensor};

    use super::*;

    fn graph() -> Graph {
        let mut g = Graph::new("two");
        let x = g.input("x", vec![Dim::symbol("T"), 32.into()], DType::F32).unwrap();
        for (name, outs, storage) in [
            ("a", 2, Storage::F32),
            ("b", 3, Storage::F32),
            ("c", 2, Storage::Int4 { block: 16 }),
            ("d", 3, Storage::Sparse { keep: 2, group: 4, kept: Kept::F32 }),
        ] {
            let w = g.param(name, Tensor::new([outs, 32], vec![0.0; outs * 32]).unwrap()).unwrap();
            let y = g.apply(Op::Linear(storage), &[x, w]).unwrap()[0];
            g.output(&format!("y.{name}"), y).unwrap();
        }
        g
    }

    fn left(graph: &Graph) -> usize {
        graph.nodes().iter().filter(|node| matches!(node.op, Op::Linear(_))).count()
    }

    #[test]
    fn what_is_asked_for_is_done_where_it_can_be() {
        let graph = graph();
        let mut ort = Planner::new(Products::Ort, 1);
        assert_eq!(left(&ort.lower(&graph).unwrap()), 4);
        let mut ours = Planner::new(Products::Pilotfish, 1);
        assert_eq!(left(&ours.lower(&graph).unwrap()), 1);
        let choices = ours.choices(&graph).unwrap();
        let text: Vec<String> = choices.iter().map(ToString::to_string).collect();
        assert_eq!(text[0], "a f32 [2, 32]: pilotfish, as asked for");
        assert_eq!(text[2], "c int4x16 [2, 32]: ort, as pilotfish has no kernel for it");
    }

    /// From a file as a calibration leaves it: `a` is faster here with one row and there with eight.
    #[test]
    fn auto_takes_what_was_measured_to_be_faster() {
        let folder = tempfile::tempdir().unwrap();
        let timings = serde_json::json!({
            "machine": "m", "versions": "v", "timings": {
                "f32 [2, 32] 3": [
                    { "rows": 1, "ort": 2.0, "pilotfish": 1.0 }, { "rows": 8, "ort": 2.0, "pilotfish": 3.0 }
                ],
                "f32 [3, 32] 3": [{ "rows": 1, "ort": 1.0, "pilotfish": 1.0 }],
                "2of4 [3, 32] 3": [{ "rows": 1, "ort": 9.0, "pilotfish": 1.0 }],
            }
        });
        let path = Calibration::at(folder.path(), "m", "v").path().to_owned();
        std::fs::write(path, timings.to_string()).unwrap();
        let takes = |rows| {
            let mut planner = Planner::new(Products::Auto { rows }, 3);
            planner.calibration = Some(Calibration::at(folder.path(), "m", "v"));
            let (choices, lowered) = (planner.choices(&graph()).unwrap(), planner.lower(&graph()).unwrap());
            let names: Vec<String> = choices
                .iter()
                .filter(|choice| choice.products == Products::Pilotfish)
                .map(|choice| choice.name.clone())
                .collect();
            assert_eq!(left(&lowered), 4 - names.len());
            (names, choices[0].to_string())
        };
        let (names, reason) = takes(1);
        assert_eq!(names, ["a", "d"]);
        assert_eq!(
            reason,
            "a f32 [2, 32]: pilotfish, measured for 1 rows on 3 threads: ort 2.0 us, pilotfish 1.0 us"
        );
        assert_eq!(takes(8).0, ["d"]);
    }
}
