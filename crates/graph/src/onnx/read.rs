//! Reading.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;

use super::data::{Blocks, Files, Initializer, Plain, Turned};
use super::proto::{Model, NodeProto, ValueInfo, dimension, elem};
use super::{raise, wire};
use crate::graph::sane;
use crate::weights::Mapped;
use crate::{DType, Dim, Graph, GraphError, Literal, Op, Result, Shape, Tensor, Value};

/// Versions of the official operators that are read: the ones between which what is read did not change.
const OPSETS: std::ops::RangeInclusive<i64> = 18..=28;
const IR_VERSIONS: std::ops::RangeInclusive<i64> = 8..=14;
/// Longest list of integers that may be a shape.
pub(super) const LONGEST_SHAPE: usize = 64;

/// Reads a model file as a graph: everything that [`write()`](super::write()) writes in the lowerings
/// [`Primitive`](super::Lowering::Primitive) and [`Standard`](super::Lowering::Standard), and `MatMulNBits`.
///
/// Weights stay in their files, mapped, and are read when a reader of the graph needs them; they may lie in
/// other files in the model's folder or below it. Matrix products with a weight become [`Op::Linear`]. Blocks of
/// integers keep their storage in files that we wrote; those of others become f32 of the same values, since
/// storing them anew might round differently.
///
/// Nothing in the file is trusted: memory is bounded by a multiple of the file's size.
///
/// # Errors
/// [`GraphError::Malformed`] for a file that is not a whole, consistent model, naming what is wrong;
/// [`GraphError::OnnxNode`] for a node that cannot be read, naming it, its operator and domain.
pub fn read(path: &Path) -> Result<Graph> {
    let file = Opened::file(path)?;
    file.into_graph()
}

/// Reads a model in memory, which has no folder and therefore no weights in other files.
///
/// # Errors
/// As [`read`].
pub fn from_bytes(bytes: Vec<u8>) -> Result<Graph> {
    Opened::new("(in memory)", None, bytes.into())?.into_graph()
}

/// What is in a model file, whether its operators can be read or not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// The graph's name.
    pub name: String,
    /// Who wrote it.
    pub producer: String,
    /// Version of the format.
    pub ir_version: i64,
    /// Versions of the operator sets, by domain.
    pub opsets: BTreeMap<String, i64>,
    /// Inputs: name, and element type with shape.
    pub inputs: Vec<(String, String)>,
    /// Outputs: name, and element type with shape.
    pub outputs: Vec<(String, String)>,
    /// How often each operator occurs, by domain and name.
    pub operators: BTreeMap<String, usize>,
    /// Tensors stored in the model or beside it.
    pub tensors: usize,
    /// Numbers in them by element type.
    pub numbers: BTreeMap<String, u64>,
    /// Their bytes.
    pub bytes: u64,
    /// Files beside the model that hold tensors.
    pub files: BTreeSet<String>,
}

/// Opens a model file and says what is in it. Weights are located, not read.
///
/// # Errors
/// [`GraphError::Malformed`] for a file that is not a whole, consistent model.
pub fn summarize(path: &Path) -> Result<Summary> {
    Ok(Opened::file(path)?.summary())
}

/// A decoded model whose tensors have been found.
struct Opened {
    label: String,
    name: String,
    producer: String,
    ir_version: i64,
    opsets: BTreeMap<String, i64>,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    nodes: Vec<NodeProto>,
    tensors: Vec<Initializer>,
    files: BTreeSet<String>,
}

impl Opened {
    fn file(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        Self::new(&label, Some(folder), Bytes::from_owner(Mapped::open(path)?))
    }

    fn new(label: &str, folder: Option<&Path>, bytes: Bytes) -> Result<Self> {
        let refuse = |why: String| GraphError::malformed(label, why);
        if bytes.is_empty() {
            return Err(refuse("it is empty".into()));
        }
        wire::check(&bytes).map_err(|why| refuse(format!("not an ONNX model: {why}")))?;
        let model = Model::decode(bytes).map_err(|error| refuse(format!("not an ONNX model: {error}")))?;
        let Some(graph) = model.graph else {
            return Err(refuse("not an ONNX model: it has no graph".into()));
        };
        if !IR_VERSIONS.contains(&model.ir_version) {
            let (first, last) = (IR_VERSIONS.start(), IR_VERSIONS.end());
            let why = format!("version {} of the format; {first} to {last} are read", model.ir_version);
            return Err(refuse(why));
        }
        if !model.functions.is_empty() || !graph.sparse_initializer.is_empty() {
            return Err(refuse("functions of its own and sparse tensors are not read".into()));
        }
        let mut opsets = BTreeMap::new();
        for set in model.opset_import {
            let domain = if set.domain == "ai.onnx" { String::new() } else { set.domain };
            if opsets.insert(domain.clone(), set.version).is_some() {
                return Err(refuse(format!("operator set {domain:?} is imported twice")));
            }
        }
        let mut files = Files::new(label, folder);
        let mut named = BTreeSet::new();
        let location = |tensor: &super::proto::TensorProto| {
            tensor.external_data.iter().find(|entry| entry.key == "location").map(|entry| entry.value.clone())
        };
        named.extend(graph.initializer.iter().filter_map(location));
        let tensors =
            graph.initializer.into_iter().map(|tensor| files.load(tensor)).collect::<Result<Vec<_>>>()?;
        files.finish()?;
        Ok(Self {
            label: label.into(),
            name: graph.name,
            producer: model.producer_name,
            ir_version: model.ir_version,
            opsets,
            inputs: graph.input,
            outputs: graph.output,
            nodes: graph.node,
            tensors,
            files: named,
        })
    }

    fn summary(self) -> Summary {
        let describe = |info: &ValueInfo| (info.name.clone(), describe(info));
        let mut operators: BTreeMap<String, usize> = BTreeMap::new();
        for node in &self.nodes {
            let name = match domain(node) {
                "" => node.op_type.clone(),
                domain => format!("{domain}:{}", node.op_type),
            };
            *operators.entry(name).or_default() += 1;
        }
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        for tensor in &self.tensors {
            *numbers.entry(elem::name(tensor.kind)).or_default() += tensor.count() as u64;
        }
        Summary {
            name: self.name,
            producer: self.producer,
            ir_version: self.ir_version,
            opsets: self.opsets,
            inputs: self.inputs.iter().map(describe).collect(),
            outputs: self.outputs.iter().map(describe).collect(),
            operators,
            tensors: self.tensors.len(),
            numbers,
            bytes: self.tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum(),
            files: self.files,
        }
    }

    fn into_graph(mut self) -> Result<Graph> {
        let refuse = |why: String| GraphError::malformed(&self.label, why);
        match self.opsets.get("") {
            Some(version) if OPSETS.contains(version) => {}
            Some(version) => {
                let (first, last) = (OPSETS.start(), OPSETS.end());
                return Err(refuse(format!("operator set {version}; {first} to {last} are read")));
            }
            None => return Err(refuse("it does not say which version of ONNX's operators it uses".into())),
        }
        let nodes = std::mem::take(&mut self.nodes);
        let mut reader = Reader::new(&self, &nodes);
        for info in &self.inputs {
            let (shape, dtype) = typed(info).map_err(|why| refuse(format!("input {}: {why}", info.name)))?;
            let value = reader.graph.input(&info.name, shape, dtype);
            let value = value.map_err(|error| refuse(error.to_string()))?;
            reader.define(&info.name, Entry::Value(value)).map_err(refuse)?;
        }
        for (index, tensor) in self.tensors.iter().enumerate() {
            if tensor.name.is_empty() {
                return Err(refuse("a tensor without a name".into()));
            }
            reader.define(&tensor.name, Entry::Tensor(index)).map_err(refuse)?;
        }
        for (index, node) in nodes.iter().enumerate() {
            if reader.done.contains(&index) {
                continue;
            }
            raise::node(&mut reader, node).map_err(|why| GraphError::OnnxNode {
                path: self.label.clone(),
                node: match node.name.as_str() {
                    "" => format!("number {index}"),
                    name => name.into(),
                },
                op: node.op_type.clone(),
                domain: match domain(node) {
                    "" => "ai.onnx".into(),
                    domain => domain.into(),
                },
                why,
            })?;
        }
        for info in &self.outputs {
            let at = |why: String| refuse(format!("output {}: {why}", info.name));
            let (shape, dtype) = typed(info).map_err(at)?;
            let value = reader.value(&info.name).map_err(at)?;
            let found = reader.graph.info(value);
            let differs = |(said, found): (&Dim, &Dim)| match (said.fixed(), found.fixed()) {
                (Some(said), Some(found)) => said != found,
                _ => false,
            };
            let rank = shape.rank() == found.shape.rank();
            if dtype != found.dtype || !rank || shape.dims().iter().zip(found.shape.dims()).any(differs) {
                let found = format!("{:?} {}", found.dtype, found.shape);
                return Err(at(format!("it says {dtype:?} {shape}, its nodes make {found}")));
            }
            reader.graph.output(&info.name, value).map_err(|error| refuse(error.to_string()))?;
        }
        Ok(reader.graph)
    }
}

/// The domain of a node's operator, empty for ONNX's own.
pub(super) fn domain(node: &NodeProto) -> &str {
    if node.domain == "ai.onnx" { "" } else { &node.domain }
}

/// What a name of the file stands for.
#[derive(Clone)]
pub(super) enum Entry {
    Value(Value),
    /// A tensor of the file, by index.
    Tensor(usize),
    /// A scalar or list of integers computed from shapes.
    Numbers {
        list: Vec<Number>,
        scalar: bool,
    },
    /// A matrix in blocks of integers; transposed or not.
    Blocks {
        name: String,
        blocks: Arc<Blocks>,
        turned: bool,
    },
}

/// An integer that may depend on the inputs' shapes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Number {
    Int(i64),
    /// Not a fixed one.
    Dim(Dim),
}

impl From<Dim> for Number {
    fn from(dim: Dim) -> Self {
        match dim.fixed().and_then(|size| i64::try_from(size).ok()) {
            Some(size) => Self::Int(size),
            None => Self::Dim(dim),
        }
    }
}

impl Number {
    /// The dimension, unless it is negative.
    pub(super) fn dim(&self) -> Option<Dim> {
        match self {
            Self::Int(value) => usize::try_from(*value).ok().map(Dim::from),
            Self::Dim(dim) => Some(dim.clone()),
        }
    }
}

/// In which form a tensor of the file becomes a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    AsItIs,
    Turned,
}

/// A graph in the making.
pub(super) struct Reader<'a> {
    pub graph: Graph,
    file: &'a Opened,
    nodes: &'a [NodeProto],
    entries: HashMap<String, Entry>,
    values: HashMap<(usize, Form), Value>,
    blocks: HashMap<String, Value>,
    /// Nodes that read a name.
    readers: HashMap<&'a str, Vec<usize>>,
    outputs: HashSet<&'a str>,
    makers: HashSet<&'a str>,
    /// Nodes that an earlier one took in.
    pub done: HashSet<usize>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a Opened, nodes: &'a [NodeProto]) -> Self {
        let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for input in &node.input {
                readers.entry(input).or_default().push(index);
            }
        }
        Self {
            graph: Graph::new(file.name.clone()),
            file,
            nodes,
            entries: HashMap::new(),
            values: HashMap::new(),
            blocks: HashMap::new(),
            readers,
            outputs: file.outputs.iter().map(|info| info.name.as_str()).collect(),
            makers: nodes.iter().flat_map(|node| &node.output).map(String::as_str).collect(),
            done: HashSet::new(),
        }
    }

    /// Whether the blocks of integers in the file are as our quantiser makes them.
    pub(super) fn ours(&self) -> bool {
        self.file.producer == "pilotfish"
    }

    pub(super) fn has_domain(&self, domain: &str) -> bool {
        self.file.opsets.contains_key(domain)
    }

    pub(super) fn define(&mut self, name: &str, entry: Entry) -> Result<(), String> {
        match self.entries.insert(name.into(), entry) {
            None => Ok(()),
            Some(_) => Err(format!("two values named {name}")),
        }
    }

    pub(super) fn entry(&self, name: &str) -> Result<&Entry, String> {
        self.entries.get(name).ok_or_else(|| match self.makers.contains(name) {
            true => format!("{name} is read before it is made: the nodes are out of order or form a cycle"),
            false => format!("there is no {name}"),
        })
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<(usize, &'a Initializer)>, String> {
        match self.entry(name)? {
            Entry::Tensor(index) => Ok(Some((*index, &self.file.tensors[*index]))),
            _ => Ok(None),
        }
    }

    /// The value of a name; a tensor of the file becomes a parameter or a constant.
    pub(super) fn value(&mut self, name: &str) -> Result<Value, String> {
        match self.entry(name)?.clone() {
            Entry::Value(value) => Ok(value),
            Entry::Tensor(index) => self.tensor_value(index),
            Entry::Numbers { list, scalar } => {
                let int = |number: &Number| match number {
                    Number::Int(value) => Ok(*value),
                    Number::Dim(dim) => Err(format!("{name} is {dim}, a size used as a number")),
                };
                let values = list.iter().map(int).collect::<Result<Vec<_>, _>>()?;
                let shape = if scalar { vec![] } else { vec![values.len()] };
                self.constant(Literal::I64 { shape, values })
            }
            Entry::Blocks { name, blocks, turned: false } => self.dense(&name, &blocks),
            Entry::Blocks { name, blocks, turned: true } => {
                let dense = self.dense(&name, &blocks)?;
                self.graph.transpose(dense, &[1, 0]).map_err(|error| error.to_string())
            }
        }
    }

    fn constant(&mut self, literal: Literal) -> Result<Value, String> {
        self.graph.constant(literal).map_err(|error| error.to_string())
    }

    fn tensor_value(&mut self, index: usize) -> Result<Value, String> {
        if let Some(&value) = self.values.get(&(index, Form::AsItIs)) {
            return Ok(value);
        }
        let tensor = &self.file.tensors[index];
        let shape = tensor.shape.clone();
        let value = match (tensor.kind, tensor.integers()) {
            (_, Some(values)) => self.constant(Literal::I64 { shape, values })?,
            (elem::FLOAT, _) if shape.is_empty() => {
                let values = tensor.floats().unwrap_or_default();
                self.constant(Literal::F32 { shape, values })?
            }
            (elem::FLOAT, _) => {
                let row = shape[1..].iter().product();
                let source = Plain { bytes: tensor.bytes.clone(), row };
                self.param(&tensor.name, Tensor::from_source(shape, Arc::new(source)))?
            }
            (kind, _) => return Err(format!("{} is of type {}", tensor.name, elem::name(kind))),
        };
        self.values.insert((index, Form::AsItIs), value);
        Ok(value)
    }

    /// A parameter of this name, or one like it if the name is taken.
    fn param(&mut self, name: &str, tensor: Tensor) -> Result<Value, String> {
        let mut name = name.to_owned();
        while self.graph.find(&name).is_some() {
            name.push('_');
        }
        self.graph.param(&name, tensor).map_err(|error| error.to_string())
    }

    /// The name of a weight that is stored under a longer one, if nothing else has it.
    fn stem(&self, name: &str, suffix: &str) -> Option<String> {
        let stem = name.strip_suffix(suffix).filter(|stem| !stem.is_empty())?;
        (!self.entries.contains_key(stem)).then(|| stem.to_owned())
    }

    /// The transpose of a matrix `[ins, outs]` of floats: the weight `[outs, ins]` of a linear layer.
    pub(super) fn turned(&mut self, index: usize) -> Result<Value, String> {
        if let Some(&value) = self.values.get(&(index, Form::Turned)) {
            return Ok(value);
        }
        let Initializer { name, shape, bytes, .. } = &self.file.tensors[index];
        let (ins, outs) = (shape[0], shape[1]);
        let source = Turned { bytes: bytes.clone(), outs, ins };
        let name = self.stem(name, "^T").unwrap_or_else(|| format!("{name}^T"));
        let value = self.param(&name, Tensor::from_source([outs, ins], Arc::new(source)))?;
        self.values.insert((index, Form::Turned), value);
        Ok(value)
    }

    /// The matrix that blocks of integers stand for. Equal names are equal blocks.
    pub(super) fn dense(&mut self, codes: &str, blocks: &Arc<Blocks>) -> Result<Value, String> {
        if let Some(&value) = self.blocks.get(codes) {
            return Ok(value);
        }
        let suffix = format!(".int{}x{}.codes", blocks.bits, blocks.block);
        let name = self.stem(codes, &suffix).unwrap_or_else(|| codes.to_owned() + ".dense");
        let value = self.param(&name, Tensor::from_source(blocks.shape, blocks.clone()))?;
        self.blocks.insert(codes.into(), value);
        Ok(value)
    }

    /// The integers of a name, if they are a scalar or a short list that is known up to the inputs' shapes.
    pub(super) fn numbers(&self, name: &str) -> Result<Option<(Vec<Number>, bool)>, String> {
        Ok(match self.entry(name)? {
            Entry::Numbers { list, scalar } => Some((list.clone(), *scalar)),
            Entry::Tensor(index) => {
                let tensor = &self.file.tensors[*index];
                let short = tensor.shape.len() < 2 && tensor.count() <= LONGEST_SHAPE;
                let list = if short { tensor.integers() } else { None };
                list.map(|list| (list.into_iter().map(Number::Int).collect(), tensor.shape.is_empty()))
            }
            _ => None,
        })
    }

    /// Plain integers of a name.
    pub(super) fn integers(&self, name: &str) -> Result<Vec<i64>, String> {
        let numbers = self.numbers(name)?.map(|(list, _)| list).unwrap_or_default();
        let int = |number: &Number| match number {
            Number::Int(value) => Some(*value),
            Number::Dim(_) => None,
        };
        let ints: Option<Vec<i64>> = numbers.iter().map(int).collect();
        ints.filter(|ints| !ints.is_empty())
            .ok_or_else(|| format!("{name} must be integers known in advance"))
    }

    /// The addition of a bias `[outs]` that is all that happens to the result `product` of a matrix product:
    /// its bias and its result. The node counts as done.
    pub(super) fn bias_of(&mut self, product: &str, outs: usize) -> Option<(usize, &'a str)> {
        let [reader] = self.readers.get(product)?.as_slice() else { return None };
        let reader = *reader;
        let node = &self.nodes[reader];
        if self.outputs.contains(product) || node.op_type != "Add" || !domain(node).is_empty() {
            return None;
        }
        let ([a, b], [result]) = (node.input.as_slice(), node.output.as_slice()) else { return None };
        let other = if a == product { b } else { a };
        let Some(Entry::Tensor(index)) = self.entries.get(other) else { return None };
        let tensor = &self.file.tensors[*index];
        if tensor.kind != elem::FLOAT || tensor.shape != [outs] || !node.attribute.is_empty() {
            return None;
        }
        let index = *index;
        self.done.insert(reader);
        Some((index, result))
    }

    /// A linear layer, with the bias that is added to it if there is one.
    pub(super) fn linear(&mut self, op: Op, x: Value, weight: Value, out: &str) -> Result<(), String> {
        let outs = self.graph.shape(weight).dims().first().and_then(Dim::fixed).unwrap_or(0);
        let bias = self.bias_of(out, outs);
        let mut operands = vec![x, weight];
        if let Some((bias, _)) = bias {
            operands.push(self.tensor_value(bias)?);
        }
        let y = self.graph.apply(op, &operands).map_err(|error| error.to_string())?[0];
        self.define(out, Entry::Value(y))?;
        match bias {
            Some((_, result)) => self.define(result, Entry::Value(y)),
            None => Ok(()),
        }
    }
}

/// The element type and shape of an input or output.
fn typed(info: &ValueInfo) -> Result<(Shape, DType), String> {
    let tensor = info.kind.as_ref().and_then(|kind| kind.tensor.as_ref()).ok_or("it is not a tensor")?;
    let dtype = match tensor.elem_type {
        elem::FLOAT => DType::F32,
        elem::INT64 => DType::I64,
        elem::BOOL => DType::Bool,
        other => return Err(format!("elements of type {}", elem::name(other))),
    };
    let shape = tensor.shape.as_ref().ok_or("it has no shape")?;
    let dim = |(axis, dim): (usize, &super::proto::Dimension)| match &dim.value {
        Some(dimension::Value::Size(size)) => {
            usize::try_from(*size).map(Dim::from).map_err(|_| format!("dimension {size}"))
        }
        Some(dimension::Value::Symbol(text)) if !text.is_empty() => Ok(Dim::parse(text)),
        _ => Ok(Dim::symbol(&format!("{}.{axis}", info.name))),
    };
    let dims = shape.dim.iter().enumerate().map(dim).collect::<Result<Vec<_>, _>>()?;
    let shape = Shape(dims);
    sane(&shape)?;
    Ok((shape, dtype))
}

/// An input or output in words, whatever it is.
fn describe(info: &ValueInfo) -> String {
    let Some(tensor) = info.kind.as_ref().and_then(|kind| kind.tensor.as_ref()) else {
        return "not a tensor".into();
    };
    let dim = |dim: &super::proto::Dimension| match &dim.value {
        Some(dimension::Value::Size(size)) => size.to_string(),
        Some(dimension::Value::Symbol(text)) if !text.is_empty() => text.clone(),
        _ => "?".into(),
    };
    let dims = match &tensor.shape {
        Some(shape) => shape.dim.iter().map(dim).collect::<Vec<_>>().join(", "),
        None => "...".into(),
    };
    format!("{} [{dims}]", elem::name(tensor.elem_type))
}
