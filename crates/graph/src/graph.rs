use std::collections::HashMap;

use crate::error::ShapeList;
use crate::infer::infer;
use crate::{DType, GraphError, Op, Result, Shape, Tensor};

/// A handle of a tensor in a graph: an input, a parameter or the result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

/// A handle of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

/// A handle of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) u32);

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Producer {
    /// An input of the graph.
    Input,
    /// A parameter.
    Param(ParamId),
    /// An output of a node.
    Node(NodeId, usize),
}

/// What is known about a value.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    /// Name: unique for inputs and parameters, a hint for the rest.
    pub name: String,
    /// Shape.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// Where it comes from.
    pub producer: Producer,
}

/// A parameter: a named weight.
#[derive(Clone, Debug)]
pub struct Param {
    /// Unique name, as in the checkpoint where there is one.
    pub name: String,
    /// Its numbers, read when a reader needs them.
    pub tensor: Tensor,
    /// Its value.
    pub value: Value,
}

/// An operation applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<Value>,
    /// Results.
    pub outputs: Vec<Value>,
}

/// A value marked by meaning, so that passes find it again: taps, cuts, heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mark {
    /// The residual stream after `l` layers; 0 is the embedding.
    Residual(usize),
    /// The residual stream after the attention of layer `l`, counted from 0, and before its MLP.
    Attended(usize),
    /// The state after the final norm.
    FinalNormed,
    /// The logits.
    Logits,
}

/// A network as data. Nodes are in topological order by construction.
///
/// ```
/// use pilotfish_graph::{DType, Dim, Graph, Tensor};
/// let mut graph = Graph::new("two by three");
/// let x = graph.input("x", vec![Dim::symbol("T"), 3.into()], DType::F32)?;
/// let w = graph.param("w", Tensor::new([2, 3], vec![1.0, 0.0, 0.0, 0.0, 1.0, 1.0])?)?;
/// let y = graph.linear(x, w, None)?;
/// graph.output("y", y)?;
/// assert_eq!(graph.shape(y).to_string(), "[T, 2]");
/// # Ok::<(), pilotfish_graph::GraphError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Graph {
    name: String,
    values: Vec<ValueInfo>,
    nodes: Vec<Node>,
    params: Vec<Param>,
    inputs: Vec<Value>,
    outputs: Vec<(String, Value)>,
    marks: Vec<(Mark, Value)>,
    by_name: HashMap<String, Value>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            values: Vec::new(),
            nodes: Vec::new(),
            params: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            marks: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    /// The graph's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Result<Value> {
        let value = self.named(name, shape.into(), dtype, Producer::Input)?;
        self.inputs.push(value);
        Ok(value)
    }

    /// Adds a parameter, or returns the value of the one already there under this name (tied weights).
    ///
    /// # Errors
    /// The name belongs to an input, or to a parameter of another shape.
    pub fn param(&mut self, name: &str, tensor: Tensor) -> Result<Value> {
        if let Some(&value) = self.by_name.get(name) {
            let same = matches!(self.info(value).producer, Producer::Param(_));
            if !same || *self.shape(value) != Shape::fixed(tensor.shape()) {
                return Err(GraphError::DuplicateName { kind: "value", name: name.into() });
            }
            return Ok(value);
        }
        let id = ParamId(self.params.len() as u32);
        let value = self.named(name, Shape::fixed(tensor.shape()), DType::F32, Producer::Param(id))?;
        self.params.push(Param { name: name.into(), tensor, value });
        Ok(value)
    }

    /// Gives a parameter other numbers: those of a training run, say.
    ///
    /// # Errors
    /// No such parameter; another shape.
    pub fn set_param(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let Some(param) = self.params.iter_mut().find(|param| param.name == name) else {
            let known = self.params.iter().map(|param| param.name.as_str()).take(8).collect::<Vec<_>>();
            let known = known.join(", ");
            return Err(GraphError::NoSuchName { kind: "parameter", name: name.into(), known });
        };
        if param.tensor.shape() != tensor.shape() {
            let why = format!("shape {:?} in place of {:?}", tensor.shape(), param.tensor.shape());
            return Err(GraphError::Tensor { name: name.into(), why });
        }
        param.tensor = tensor;
        Ok(())
    }

    /// Names a value as an output of the graph.
    pub fn output(&mut self, name: &str, value: Value) -> Result<()> {
        if self.outputs.iter().any(|(other, _)| other == name) {
            return Err(GraphError::DuplicateName { kind: "output", name: name.into() });
        }
        self.outputs.push((name.into(), value));
        Ok(())
    }

    /// Marks a value by meaning; a mark given again moves.
    pub fn mark(&mut self, mark: Mark, value: Value) {
        self.marks.retain(|(other, _)| *other != mark);
        self.marks.push((mark, value));
    }

    /// The value of a mark.
    pub fn marked(&self, mark: Mark) -> Option<Value> {
        self.marks.iter().find(|(other, _)| *other == mark).map(|(_, value)| *value)
    }

    /// All marks.
    pub fn marks(&self) -> &[(Mark, Value)] {
        &self.marks
    }

    /// Applies an operation; shapes are inferred and checked now.
    ///
    /// # Errors
    /// Operands that do not fit.
    pub fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>> {
        let operands: Vec<_> =
            inputs.iter().map(|&value| (self.shape(value).clone(), self.info(value).dtype)).collect();
        let results = infer(&op, &operands).and_then(|results| {
            results.iter().try_for_each(|(shape, _)| sane(shape))?;
            Ok(results)
        });
        let results = results.map_err(|why| GraphError::Shape {
            op: op.name(),
            shapes: ShapeList(operands.iter().map(|(shape, _)| shape.clone()).collect()),
            why,
        })?;
        let id = NodeId(self.nodes.len() as u32);
        let outputs: Vec<Value> = results
            .into_iter()
            .enumerate()
            .map(|(index, (shape, dtype))| {
                let name = format!("{}.{}.{index}", op.name(), id.0);
                self.push(ValueInfo { name, shape, dtype, producer: Producer::Node(id, index) })
            })
            .collect();
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// What is known about a value.
    pub fn info(&self, value: Value) -> &ValueInfo {
        &self.values[value.0 as usize]
    }

    /// A value's shape.
    pub fn shape(&self, value: Value) -> &Shape {
        &self.info(value).shape
    }

    /// All values, in the order of their handles.
    pub fn values(&self) -> impl Iterator<Item = (Value, &ValueInfo)> {
        self.values.iter().enumerate().map(|(index, info)| (Value(index as u32), info))
    }

    /// Nodes, in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Parameters.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The parameter behind a value, if it is one.
    pub fn param_of(&self, value: Value) -> Option<&Param> {
        match self.info(value).producer {
            Producer::Param(id) => self.params.get(id.0 as usize),
            _ => None,
        }
    }

    /// Inputs, in order.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// Outputs, in order.
    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// An input or parameter by name.
    pub fn find(&self, name: &str) -> Option<Value> {
        self.by_name.get(name).copied()
    }

    fn named(&mut self, name: &str, shape: Shape, dtype: DType, producer: Producer) -> Result<Value> {
        sane(&shape).map_err(|why| GraphError::Tensor { name: name.into(), why })?;
        if self.by_name.contains_key(name) {
            return Err(GraphError::DuplicateName { kind: "value", name: name.into() });
        }
        let value = self.push(ValueInfo { name: name.into(), shape, dtype, producer });
        self.by_name.insert(name.into(), value);
        Ok(value)
    }

    fn push(&mut self, info: ValueInfo) -> Value {
        self.values.push(info);
        Value(self.values.len() as u32 - 1)
    }
}

/// Bounds that no network comes near. Sizes within them can be added and multiplied without care, and a hostile
/// file cannot make a shape that takes more memory than its nodes do.
pub(crate) fn sane(shape: &Shape) -> Result<(), String> {
    const LARGEST: usize = 1 << 40;
    const RANK: usize = 16;
    const SYMBOLS: usize = 16;
    if shape.rank() > RANK {
        return Err(format!("{} dimensions; at most {RANK} are supported", shape.rank()));
    }
    for dim in shape.dims() {
        let (constant, terms) = dim.parts();
        if constant > LARGEST || terms.len() > SYMBOLS || terms.iter().any(|(_, factor)| *factor > LARGEST) {
            return Err("a dimension beyond 2^40 or of more than 16 symbols".into());
        }
    }
    Ok(())
}
