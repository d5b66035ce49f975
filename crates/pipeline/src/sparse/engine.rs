use std::borrow::Cow;

use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{Graph, GraphError};
use pilotfish_runtime::ort::session::{Session, SessionInputValue};
use pilotfish_runtime::ort::value::Tensor;
use pilotfish_runtime::{SessionConfig, ort};
use pilotfish_sparsity::{Engine, Feed, Forward, Result, SparsityError};

/// ONNX Runtime as the engine of calibration passes: each graph is written into a temporary folder and opened.
#[derive(Debug)]
pub struct OnnxEngine {
    config: SessionConfig,
    folder: tempfile::TempDir,
    loaded: usize,
}

impl OnnxEngine {
    /// An engine with so many threads.
    ///
    /// # Errors
    /// No temporary folder.
    pub fn new(threads: usize) -> Result<Self> {
        let folder = tempfile::tempdir()
            .map_err(|source| SparsityError::Graph(GraphError::io(std::env::temp_dir(), source)))?;
        let config = SessionConfig { threads, ..SessionConfig::default() };
        Ok(Self { config, folder, loaded: 0 })
    }
}

struct Loaded {
    session: Session,
    outputs: Vec<String>,
    /// The graph's files; the session may have mapped them.
    _files: tempfile::TempDir,
}

impl Engine for OnnxEngine {
    fn load(&mut self, graph: &Graph) -> Result<Box<dyn Forward>> {
        self.loaded += 1;
        let files = tempfile::tempdir_in(self.folder.path())
            .map_err(|source| SparsityError::Graph(GraphError::io(self.folder.path(), source)))?;
        let path = files.path().join("graph.onnx");
        onnx::write(graph, Lowering::Standard, &path)?;
        let session = self.config.open(&path).map_err(SparsityError::engine)?;
        let outputs = graph.outputs().iter().map(|(name, _)| name.clone()).collect();
        Ok(Box::new(Loaded { session, outputs, _files: files }))
    }
}

impl Forward for Loaded {
    fn run(&mut self, inputs: &[(&str, Feed)]) -> Result<Vec<Vec<f32>>> {
        let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        let engine = |error: ort::Error| SparsityError::engine(error);
        for (name, feed) in inputs {
            let value: SessionInputValue<'_> = match feed {
                Feed::Float { shape, values } => {
                    Tensor::from_array((shape.clone(), values.clone())).map_err(engine)?.into()
                }
                Feed::Int { shape, values } => {
                    Tensor::from_array((shape.clone(), values.clone())).map_err(engine)?.into()
                }
            };
            values.push(((*name).into(), value));
        }
        let found = self.session.run(values).map_err(engine)?;
        let read = |name: &String| -> Result<Vec<f32>> {
            let (_, values) = found[name.as_str()].try_extract_tensor::<f32>().map_err(engine)?;
            Ok(values.to_vec())
        };
        self.outputs.iter().map(read).collect()
    }
}
