pub use pilotfish_graph::Feed;
use pilotfish_graph::Graph;

use crate::Result;

/// Whatever can run graphs: ONNX Runtime, an interpreter.
pub trait Engine {
    /// Makes a graph ready to run.
    ///
    /// # Errors
    /// A graph that the engine cannot run.
    fn load(&mut self, graph: &Graph) -> Result<Box<dyn Forward>>;
}

/// A graph that is ready to run.
pub trait Forward {
    /// All outputs, in the graph's order, row-major.
    ///
    /// # Errors
    /// Inputs that do not fit, or whatever the engine refuses.
    fn run(&mut self, inputs: &[(&str, Feed)]) -> Result<Vec<Vec<f32>>>;
}

#[cfg(feature = "interpreter")]
mod interpreter {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};
    use pilotfish_graph::Graph;
    use pilotfish_training::{Interpreter, Precision};

    use super::{Engine, Feed, Forward};
    use crate::{Result, SparsityError};

    /// The interpreter of `pilotfish-training`, in f32, as an engine.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct InterpreterEngine;

    struct Loaded {
        net: Interpreter,
        outputs: Vec<String>,
    }

    impl Engine for InterpreterEngine {
        fn load(&mut self, graph: &Graph) -> Result<Box<dyn Forward>> {
            let net = Interpreter::new(graph, Precision::F32).map_err(SparsityError::engine)?;
            let outputs = graph.outputs().iter().map(|(name, _)| name.clone()).collect();
            Ok(Box::new(Loaded { net, outputs }))
        }
    }

    impl Forward for Loaded {
        fn run(&mut self, inputs: &[(&str, Feed)]) -> Result<Vec<Vec<f32>>> {
            let candle = |error: candle_core::Error| SparsityError::engine(error);
            let mut feeds = HashMap::new();
            for (name, feed) in inputs {
                let tensor = match feed {
                    Feed::Float { shape, values } => {
                        Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)
                    }
                    Feed::Int { shape, values } => Tensor::from_slice(values, shape.as_slice(), &Device::Cpu),
                };
                feeds.insert((*name).to_owned(), tensor.map_err(candle)?);
            }
            let found = self.net.forward(&feeds).map_err(SparsityError::engine)?;
            let flat =
                |name: &String| found[name].detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
            self.outputs.iter().map(|name| flat(name).map_err(candle)).collect()
        }
    }
}

#[cfg(feature = "interpreter")]
pub use interpreter::InterpreterEngine;
