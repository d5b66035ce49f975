//! The model under construction: names, nodes, initializers, and where their bytes go.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::nodes::{elem_type, entry, int, open_info, value_info};
use super::proto::{Attribute, GraphProto, Model, NodeProto, OperatorSet, TensorProto, elem};
use super::switch::{Flow, Section};
use super::{Lowering, Switch, Weights, lower, switch};
use crate::atomic::le_bytes;
use crate::{Dim, Graph, GraphError, Mark, Op, Result, Value, passes};

pub(super) const OPSET: i64 = 23;
const IR_VERSION: i64 = 11;
/// Tensors of at most this many bytes stay in the message.
const INLINE_BYTES: usize = 1024;
const ALIGNMENT: usize = 4096;

pub(super) struct Emit<'a> {
    pub graph: &'a Graph,
    pub lowering: Lowering,
    weights: Weights<'a>,
    offset: usize,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// Names of initializers by what is in them.
    made: HashMap<String, String>,
    /// Parameters that are initializers as they are.
    params: HashSet<String>,
    names: HashMap<Value, String>,
    /// Names that something has.
    taken: HashSet<String>,
    domains: BTreeMap<String, i64>,
    /// Crates that have the operators of a domain.
    providers: BTreeMap<String, String>,
    dims: HashMap<Dim, String>,
    /// Inputs that a lowering added: name and element type, shape `[1]`.
    pub extra_inputs: Vec<(&'static str, i32)>,
    /// Dimensions of inputs and outputs that a lowering changed.
    pub reshaped: HashMap<Value, Vec<Dim>>,
    fresh: usize,
}

pub(super) fn emit(
    graph: &Graph,
    lowering: Lowering,
    switches: &[Switch],
    weights: Weights<'_>,
) -> Result<Model> {
    let expanded = match lowering {
        Lowering::Primitive => passes::expand(graph)?,
        _ => passes::rewrite(graph, |new, node, inputs| lower::expand_rest(lowering, new, node, inputs))?,
    };
    let mut emit = Emit {
        graph: &expanded,
        lowering,
        weights,
        offset: 0,
        nodes: Vec::new(),
        initializers: Vec::new(),
        made: HashMap::new(),
        params: HashSet::new(),
        names: HashMap::new(),
        taken: HashSet::new(),
        domains: BTreeMap::from([(String::new(), OPSET)]),
        providers: BTreeMap::new(),
        dims: HashMap::new(),
        extra_inputs: Vec::new(),
        reshaped: HashMap::new(),
        fresh: 0,
    };
    emit.run(switches)
}

impl<'a> Emit<'a> {
    fn run(&mut self, switches: &[Switch]) -> Result<Model> {
        let graph = self.graph;
        for &input in graph.inputs() {
            self.names.insert(input, graph.info(input).name.clone());
        }
        // A value that is an output carries the output's name, if it is not an input and has no name yet.
        for (name, value) in graph.outputs() {
            if graph.find(name).is_some_and(|other| other != *value) {
                return Err(GraphError::DuplicateName { kind: "value", name: name.clone() });
            }
            self.names.entry(*value).or_insert_with(|| name.clone());
        }
        let own = graph.inputs().iter().map(|&input| &graph.info(input).name);
        let own = own.chain(graph.params().iter().map(|param| &param.name));
        self.taken.extend(own.chain(graph.outputs().iter().map(|(name, _)| name)).cloned());
        for node in graph.nodes() {
            lower::lower(self, node)?;
        }
        if !switches.is_empty() {
            self.switch(switches)?;
        }
        let mut outputs = Vec::new();
        for (name, value) in graph.outputs() {
            let from = self.name(*value)?;
            if from != *name {
                self.node("Identity", &[&from], &[name], vec![]);
            }
            let info = graph.info(*value);
            let shape = self.reshaped.get(value).cloned().map_or(info.shape.clone(), Into::into);
            outputs.push(value_info(name, elem_type(info.dtype), &shape));
        }
        let mut inputs = Vec::new();
        for &input in graph.inputs() {
            let info = graph.info(input);
            let shape = self.reshaped.get(&input).cloned().map_or(info.shape.clone(), Into::into);
            inputs.push(value_info(&info.name, elem_type(info.dtype), &shape));
        }
        for (name, kind) in &self.extra_inputs {
            inputs.push(value_info(name, *kind, &[1usize].into()));
        }
        if !switches.is_empty() {
            inputs.push(value_info(switch::INPUT, elem::BOOL, &[switches.len()].into()));
        }
        let opset =
            |(domain, version): (&String, &i64)| OperatorSet { domain: domain.clone(), version: *version };
        let provider = |(domain, provider): (&String, &String)| entry(&super::provider_key(domain), provider);
        Ok(Model {
            ir_version: IR_VERSION,
            producer_name: "pilotfish".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            opset_import: self.domains.iter().map(opset).collect(),
            metadata_props: self.providers.iter().map(provider).collect(),
            functions: Vec::new(),
            graph: Some(GraphProto {
                name: match graph.name() {
                    "" => "graph".into(),
                    name => name.into(),
                },
                node: std::mem::take(&mut self.nodes),
                initializer: std::mem::take(&mut self.initializers),
                input: inputs,
                output: outputs,
                sparse_initializer: Vec::new(),
            }),
        })
    }

    /// Makes branches of the parts behind switches.
    fn switch(&mut self, switches: &[Switch]) -> Result<()> {
        if !self.taken.insert(switch::INPUT.into()) {
            return Err(GraphError::DuplicateName { kind: "value", name: switch::INPUT.into() });
        }
        let sections = switches.iter().map(|switch| self.section(switch)).collect::<Result<Vec<_>>>()?;
        let graph = self.graph;
        let results = graph.outputs().iter().map(|(_, value)| self.name(*value)).collect::<Result<_>>()?;
        let (nodes, initializers) = (std::mem::take(&mut self.nodes), std::mem::take(&mut self.initializers));
        let mut flow = Flow { nodes, initializers, results };
        flow.switch(&sections, &|domain| self.providers.contains_key(domain))?;
        (self.nodes, self.initializers) = (flow.nodes, flow.initializers);
        Ok(())
    }

    /// The names behind a switch.
    fn section(&mut self, switch: &Switch) -> Result<Section> {
        let graph = self.graph;
        let mut marked = |mark: Mark| {
            let Some(value) = graph.marked(mark) else {
                let known = format!("{:?}", graph.marks().iter().map(|(mark, _)| mark).collect::<Vec<_>>());
                return Err(GraphError::NoSuchName { kind: "mark", name: format!("{mark:?}"), known });
            };
            Ok((self.name(value)?, value_info("", elem_type(graph.info(value).dtype), graph.shape(value))))
        };
        let (from, _) = marked(switch.from)?;
        let (to, info) = marked(switch.to)?;
        let mut section = Section { from: from.clone(), results: vec![(to, from, info)] };
        for (output, input) in &switch.carried {
            let missing = |kind, name: &String| {
                let known =
                    graph.outputs().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
                GraphError::NoSuchName { kind, name: name.clone(), known }
            };
            let found = graph.outputs().iter().find(|(name, _)| name == output);
            let (_, value) = found.ok_or_else(|| missing("output", output))?;
            let info = graph.info(*value);
            if graph.find(input).is_none_or(|other| graph.info(other).dtype != info.dtype) {
                return Err(missing("input", input));
            }
            // Left out, the input may have another length.
            let open = open_info(elem_type(info.dtype));
            section.results.push((self.name(*value)?, input.clone(), open));
        }
        Ok(section)
    }

    /// The name of a value; a parameter becomes an initializer as it is.
    pub(super) fn name(&mut self, value: Value) -> Result<String> {
        if let Some(param) = self.graph.param_of(value) {
            let (name, tensor) = (param.name.clone(), param.tensor.clone());
            if self.params.insert(name.clone()) {
                let bytes = le_bytes(&tensor.to_f32()?);
                self.initializer(&name, elem::FLOAT, tensor.shape(), bytes.into())?;
            }
            // A parameter that is an output has two names; the initializer's is the one nodes use.
            return Ok(name);
        }
        if let Some(name) = self.names.get(&value) {
            return Ok(name.clone());
        }
        let name = self.claim(&self.graph.info(value).name);
        self.names.insert(value, name.clone());
        Ok(name)
    }

    /// This name, or one like it if something has it already.
    fn claim(&mut self, hint: &str) -> String {
        let mut name = hint.to_owned();
        while !self.taken.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    pub(super) fn fresh(&mut self, hint: &str) -> String {
        self.fresh += 1;
        self.claim(&format!("{hint}#{}", self.fresh))
    }

    pub(super) fn node(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<Attribute>) {
        self.node_in("", op, inputs, outputs, attributes);
    }

    pub(super) fn node_in(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attribute: Vec<Attribute>,
    ) {
        if !domain.is_empty() {
            self.domains.insert(domain.into(), 1);
        }
        let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.nodes.push(NodeProto {
            input: strings(inputs),
            output: strings(outputs),
            name: format!("{op}.{}", self.nodes.len()),
            op_type: op.into(),
            attribute,
            domain: domain.into(),
        });
    }

    /// Says which crate has the operators of a domain.
    pub(super) fn provider(&mut self, domain: &str, provider: &str) {
        self.providers.insert(domain.into(), provider.into());
    }

    /// An initializer of raw bytes, made once for each key; returns its name.
    pub(super) fn raw<'b>(
        &mut self,
        key: &str,
        data_type: i32,
        dims: &[usize],
        bytes: impl FnOnce() -> Result<Cow<'b, [u8]>>,
    ) -> Result<String> {
        if let Some(name) = self.made.get(key) {
            return Ok(name.clone());
        }
        let name = self.claim(key);
        self.made.insert(key.into(), name.clone());
        self.initializer(&name, data_type, dims, bytes()?)?;
        Ok(name)
    }

    /// An initializer of this very name.
    pub(super) fn initializer(
        &mut self,
        name: &str,
        data_type: i32,
        dims: &[usize],
        bytes: Cow<'_, [u8]>,
    ) -> Result<()> {
        let mut tensor = TensorProto {
            name: name.into(),
            data_type,
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            ..TensorProto::default()
        };
        match &mut self.weights {
            Weights::Beside(file, location) if bytes.len() > INLINE_BYTES => {
                let start = self.offset.next_multiple_of(ALIGNMENT);
                file.write(&vec![0; start - self.offset])?;
                file.write(&bytes)?;
                self.offset = start + bytes.len();
                tensor.data_location = 1;
                tensor.external_data =
                    vec![entry("location", &location), entry("offset", start), entry("length", bytes.len())];
            }
            _ => tensor.raw_data = bytes.into_owned().into(),
        }
        self.initializers.push(tensor);
        Ok(())
    }

    pub(super) fn floats(&mut self, key: &str, dims: &[usize], values: &[f32]) -> Result<String> {
        self.raw(key, elem::FLOAT, dims, || Ok(Cow::Owned(le_bytes(values))))
    }

    /// A constant of integers, shared by content; returns its name.
    pub(super) fn integers(&mut self, dims: &[usize], values: &[i64]) -> Result<String> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(&format!("i64{dims:?}{values:?}"), elem::INT64, dims, || Ok(Cow::Owned(bytes)))
    }

    /// The name of an int64 tensor `[1]` that holds a dimension, computed from the inputs' shapes if need be.
    pub(super) fn dim(&mut self, dim: &Dim) -> Result<String> {
        if let Some(size) = dim.fixed() {
            return self.integers(&[1], &[size as i64]);
        }
        if let Some(name) = self.dims.get(dim) {
            return Ok(name.clone());
        }
        let place = self.graph.inputs().iter().find_map(|&input| {
            let axis = self.graph.shape(input).dims().iter().position(|other| other == dim)?;
            (!self.reshaped.contains_key(&input)).then_some((input, axis as i64))
        });
        let name = match place {
            Some((input, axis)) => {
                let (from, name) = (self.name(input)?, self.fresh("dim"));
                self.node("Shape", &[&from], &[&name], vec![int("start", axis), int("end", axis + 1)]);
                name
            }
            None => self.sum(dim)?,
        };
        self.dims.insert(dim.clone(), name.clone());
        Ok(name)
    }

    fn sum(&mut self, dim: &Dim) -> Result<String> {
        let (constant, terms) = dim.parts();
        let symbols: Vec<(Dim, usize)> =
            terms.iter().map(|(symbol, factor)| (Dim::symbol(symbol), *factor)).collect();
        if let [(symbol, 1)] = symbols.as_slice()
            && constant == 0
        {
            let why = format!("no input has the dimension {symbol}");
            return Err(GraphError::Unsupported { what: format!("dimension {dim}"), why });
        }
        let mut total = self.integers(&[1], &[constant as i64])?;
        for (symbol, factor) in symbols {
            let mut term = self.dim(&symbol)?;
            if factor != 1 {
                let (factor, product) = (self.integers(&[1], &[factor as i64])?, self.fresh("dim"));
                self.node("Mul", &[&term, &factor], &[&product], vec![]);
                term = product;
            }
            let sum = self.fresh("dim");
            self.node("Add", &[&total, &term], &[&sum], vec![]);
            total = sum;
        }
        Ok(total)
    }

    /// The name of an int64 tensor that holds a shape, for reshaping `from`: dimensions that stay in place are
    /// written 0, one symbolic one -1, and only then are the rest computed. Also whether zeros are sizes.
    pub(super) fn shape(&mut self, dims: &[Dim], from: &[Dim]) -> Result<(String, bool)> {
        let mut open = 0;
        let codes: Vec<Option<i64>> = dims
            .iter()
            .enumerate()
            .map(|(axis, dim)| match dim.fixed() {
                Some(0) => None,
                Some(size) => Some(size as i64),
                None if from.get(axis) == Some(dim) => Some(0),
                None => {
                    open += 1;
                    (open == 1).then_some(-1)
                }
            })
            .collect();
        if let Some(codes) = codes.into_iter().collect::<Option<Vec<i64>>>() {
            return Ok((self.integers(&[dims.len()], &codes)?, false));
        }
        let parts = dims.iter().map(|dim| self.dim(dim)).collect::<Result<Vec<_>>>()?;
        let name = self.fresh("shape");
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.node("Concat", &parts, &[&name], vec![int("axis", 0)]);
        Ok((name, true))
    }

    pub(super) fn unsupported<T>(&self, op: &Op, why: &str) -> Result<T> {
        Err(GraphError::Unsupported { what: format!("{} as ONNX", op.name()), why: why.into() })
    }
}
