use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use pilotfish_graph::{
    DType as GraphType, Dim, Graph, GraphError, Op, Producer, Shape, Storage, Value, passes, quantize,
};

use crate::evaluate::evaluate;
use crate::{Result, TrainingError};

/// The float that everything is computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 64 bits: for finite differences.
    F64,
}

impl Precision {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }
}

/// Numbers of a shape, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Floats, of either precision.
    Float {
        /// Dimensions.
        shape: Vec<usize>,
        /// Values.
        values: Vec<f64>,
    },
    /// Integers.
    Int {
        /// Dimensions.
        shape: Vec<usize>,
        /// Values.
        values: Vec<i64>,
    },
    /// Truth values.
    Bool {
        /// Dimensions.
        shape: Vec<usize>,
        /// Values.
        values: Vec<bool>,
    },
}

impl Array {
    /// Floats.
    pub fn float(shape: impl Into<Vec<usize>>, values: impl IntoIterator<Item = f64>) -> Self {
        Self::Float { shape: shape.into(), values: values.into_iter().collect() }
    }

    /// Integers.
    pub fn int(shape: impl Into<Vec<usize>>, values: impl IntoIterator<Item = i64>) -> Self {
        Self::Int { shape: shape.into(), values: values.into_iter().collect() }
    }

    /// Truth values.
    pub fn bool(shape: impl Into<Vec<usize>>, values: impl IntoIterator<Item = bool>) -> Self {
        Self::Bool { shape: shape.into(), values: values.into_iter().collect() }
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Float { shape, .. } | Self::Int { shape, .. } | Self::Bool { shape, .. } => shape,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Float { .. } => kind(GraphType::F32),
            Self::Int { .. } => kind(GraphType::I64),
            Self::Bool { .. } => kind(GraphType::Bool),
        }
    }

    fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let len = match self {
            Self::Float { values, .. } => values.len(),
            Self::Int { values, .. } => values.len(),
            Self::Bool { values, .. } => values.len(),
        };
        if self.shape().iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)) != Some(len) {
            let want = format!("{len} values");
            return Err(TrainingError::Shape { name: name.into(), got: self.shape().to_vec(), want });
        }
        Ok(match self {
            Self::Float { shape, values } => {
                Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?.to_dtype(dtype)?
            }
            Self::Int { shape, values } => Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?,
            Self::Bool { shape, values } => {
                let values = values.iter().map(|&value| u8::from(value)).collect();
                Tensor::from_vec::<_, u8>(values, shape.as_slice(), &Device::Cpu)?
            }
        })
    }
}

/// A graph ready to be evaluated.
///
/// ```
/// use pilotfish_graph::{DType, Dim, Graph, Tensor};
/// use pilotfish_training::{Array, Interpreter, Precision};
/// let mut g = Graph::new("square of a product");
/// let x = g.input("x", vec![Dim::from(1), 2.into()], DType::F32)?;
/// let w = g.param("w", Tensor::new([1, 2], vec![3.0, 5.0])?)?;
/// let y = g.linear(x, w, None)?;
/// let y = g.mul(y, y)?;
/// g.output("y", y)?;
/// let mut net = Interpreter::new(&g, Precision::F64)?;
/// net.train(&["w"])?;
/// // y = (3 + 10)^2; its gradient in w is 2 * 13 * x.
/// let (outputs, gradients) = net.vjp(&[("x", Array::float([1, 2], [1.0, 2.0]))], "y", &[1.0], &["w", "x"])?;
/// assert_eq!(outputs, [169.0]);
/// assert_eq!(gradients, [vec![26.0, 52.0], vec![78.0, 130.0]]);
/// # Ok::<(), pilotfish_training::TrainingError>(())
/// ```
pub struct Interpreter {
    graph: Graph,
    precision: Precision,
    fixed: HashMap<Value, Tensor>,
    trained: BTreeMap<String, Var>,
    /// What quantised matrices stand for, by the value of the matrix and its storage.
    stored: HashMap<(Value, Storage), Tensor>,
}

impl Interpreter {
    /// Reads a graph's parameters. Candle decides how many threads it uses (`RAYON_NUM_THREADS`).
    ///
    /// # Errors
    /// A parameter that cannot be read.
    pub fn new(graph: &Graph, precision: Precision) -> Result<Self> {
        let graph = passes::expand(graph)?;
        let (mut fixed, mut stored) = (HashMap::new(), HashMap::new());
        for param in graph.params() {
            let (values, shape) = (param.tensor.to_f32()?, param.tensor.shape());
            if shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)) != Some(values.len()) {
                let want = format!("{} values", values.len());
                return Err(TrainingError::Shape { name: param.name.clone(), got: shape.to_vec(), want });
            }
            let tensor = Tensor::from_slice(&values, shape, &Device::Cpu)?;
            fixed.insert(param.value, tensor.to_dtype(precision.dtype())?);
        }
        for node in graph.nodes() {
            let Op::Linear(storage) = node.op else { continue };
            // A matrix that the graph computes has no storage to choose.
            let Some(param) = graph.param_of(node.inputs[1]) else { continue };
            let key = (node.inputs[1], storage);
            if !stored.contains_key(&key)
                && let Some(tensor) = as_stored(&param.name, &fixed[&key.0], storage)?
            {
                stored.insert(key, tensor);
            }
        }
        Ok(Self { graph, precision, fixed, trained: BTreeMap::new(), stored })
    }

    /// Makes parameters variables, so that gradients flow to them.
    ///
    /// # Errors
    /// No such parameter; one that is stored quantised.
    pub fn train(&mut self, names: &[&str]) -> Result<()> {
        for &name in names {
            let value = self.param_value(name)?;
            if let Some((_, storage)) = self.stored.keys().find(|(stored, _)| *stored == value) {
                return Err(TrainingError::NotTrainable { name: name.into(), storage: storage.to_string() });
            }
            if !self.trained.contains_key(name) {
                self.trained.insert(name.into(), Var::from_tensor(&self.fixed[&value])?);
            }
        }
        Ok(())
    }

    /// The float that everything is computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Names of all parameters.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.graph.params().iter().map(|param| param.name.as_str())
    }

    /// The variables of trained parameters, for an optimiser.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.trained
    }

    /// The numbers of a parameter as they are now.
    pub fn param(&self, name: &str) -> Result<Vec<f64>> {
        let value = self.param_value(name)?;
        let tensor = self.trained.get(name).map_or(&self.fixed[&value], |var| var.as_tensor());
        plain(tensor)
    }

    /// Replaces the numbers of a parameter; one that is stored quantised is quantised anew.
    ///
    /// # Errors
    /// No such parameter; another number of values; values that cannot be quantised.
    pub fn set_param(&mut self, name: &str, values: &[f64]) -> Result<()> {
        let value = self.param_value(name)?;
        let shape = self.fixed[&value].dims().to_vec();
        let tensor = Array::float(shape, values.iter().copied()).tensor(name, self.precision.dtype())?;
        let storages: Vec<_> = self.stored.keys().filter(|(stored, _)| *stored == value).copied().collect();
        let quantized: Vec<_> = storages
            .into_iter()
            .map(|key| Ok((key, as_stored(name, &tensor, key.1)?)))
            .collect::<Result<_>>()?;
        for (key, quantized) in quantized {
            quantized.and_then(|quantized| self.stored.insert(key, quantized));
        }
        match self.trained.get(name) {
            Some(var) => var.set(&tensor)?,
            None => drop(self.fixed.insert(value, tensor)),
        }
        Ok(())
    }

    fn param_value(&self, name: &str) -> Result<Value> {
        let value = self.graph.find(name).filter(|&value| self.graph.param_of(value).is_some());
        value.ok_or_else(|| TrainingError::NoSuchName { kind: "parameter", name: name.into() })
    }

    /// Evaluates the graph on candle tensors: integers as I64, truth values as U8, the rest in the
    /// interpreter's precision. Gradients flow to trained parameters and to inputs that are variables.
    ///
    /// # Errors
    /// An input that is missing or whose shape does not fit.
    pub fn forward(&self, inputs: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        if let Some(name) = inputs.keys().find(|name| self.input(name).is_none()) {
            return Err(TrainingError::NoSuchName { kind: "input", name: name.clone() });
        }
        let mut values: HashMap<Value, Tensor> = HashMap::new();
        for &input in self.graph.inputs() {
            let info = self.graph.info(input);
            let tensor = inputs
                .get(&info.name)
                .ok_or_else(|| TrainingError::NoSuchName { kind: "input given", name: info.name.clone() })?;
            let want = match info.dtype {
                GraphType::F32 => self.precision.dtype(),
                GraphType::I64 => DType::I64,
                GraphType::Bool => DType::U8,
            };
            if tensor.dtype() != want {
                let (name, got) = (info.name.clone(), tensor.dtype().as_str());
                return Err(TrainingError::Kind { name, got, want: want.as_str() });
            }
            values.insert(input, tensor.clone());
        }
        let symbols = self.symbols(&values)?;
        for param in self.graph.params() {
            let tensor = match self.trained.get(&param.name) {
                Some(var) => var.as_tensor().clone(),
                None => self.fixed[&param.value].clone(),
            };
            values.insert(param.value, tensor);
        }
        for node in self.graph.nodes() {
            let operands: Vec<&Tensor> = node.inputs.iter().map(|value| &values[value]).collect();
            let shapes: Vec<Option<Vec<usize>>> =
                node.outputs.iter().map(|&value| self.graph.shape(value).evaluate(&symbols)).collect();
            let stored = match node.op {
                Op::Linear(storage) => self.stored.get(&(node.inputs[1], storage)),
                _ => None,
            };
            let results = evaluate(&node.op, &operands, &shapes, &symbols, self.precision, stored)?;
            values.extend(node.outputs.iter().copied().zip(results));
        }
        Ok(self.graph.outputs().iter().map(|(name, value)| (name.clone(), values[value].clone())).collect())
    }

    /// Evaluates the graph on plain numbers; outputs are row-major, truth values 0 and 1.
    ///
    /// # Errors
    /// As [`Interpreter::forward`].
    pub fn run(&self, inputs: &[(&str, Array)]) -> Result<BTreeMap<String, Vec<f64>>> {
        let tensors = self.tensors(inputs)?;
        self.forward(&tensors)?.iter().map(|(name, tensor)| Ok((name.clone(), plain(tensor)?))).collect()
    }

    /// Evaluates an output and the gradients of `sum(cotangent * output)` with respect to trained parameters and
    /// to float inputs, in the order of `wrt`.
    ///
    /// # Errors
    /// As [`Interpreter::forward`]; a cotangent of another length than the output; a name in `wrt` that is
    /// neither a trained parameter nor a float input.
    pub fn vjp(
        &self,
        inputs: &[(&str, Array)],
        output: &str,
        cotangent: &[f64],
        wrt: &[&str],
    ) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
        let mut tensors = self.tensors(inputs)?;
        let mut variables: HashMap<&str, Var> = HashMap::new();
        for &name in wrt {
            let var = match (self.trained.get(name), tensors.get(name)) {
                (Some(var), _) => var.clone(),
                (None, Some(tensor)) if tensor.dtype().is_float() => {
                    let var = Var::from_tensor(tensor)?;
                    tensors.insert(name.into(), var.as_tensor().clone());
                    var
                }
                _ => {
                    return Err(TrainingError::NoSuchName {
                        kind: "trained parameter or float input",
                        name: name.into(),
                    });
                }
            };
            variables.insert(name, var);
        }
        let mut outputs = self.forward(&tensors)?;
        let value = outputs
            .remove(output)
            .ok_or_else(|| TrainingError::NoSuchName { kind: "output", name: output.into() })?;
        if !value.dtype().is_float() {
            let (name, got) = (output.to_owned(), value.dtype().as_str());
            return Err(TrainingError::Kind { name, got, want: self.precision.dtype().as_str() });
        }
        let seed = Array::float(value.dims(), cotangent.iter().copied())
            .tensor("cotangent", self.precision.dtype())?;
        let gradients = (&value * &seed)?.sum_all()?.backward()?;
        let of = |name: &&str| plain(&gradient(&gradients, &variables[name])?);
        Ok((plain(&value)?, wrt.iter().map(of).collect::<Result<_>>()?))
    }

    /// The gradients of a loss with respect to all trained parameters, zeros where it does not depend on one.
    /// The loss is a single number made from the tensors of [`Interpreter::forward`].
    ///
    /// # Errors
    /// The loss is not a single float.
    pub fn gradients(&self, loss: &Tensor) -> Result<BTreeMap<String, Tensor>> {
        if loss.elem_count() != 1 {
            let (got, want) = (loss.dims().to_vec(), "a single number".to_owned());
            return Err(TrainingError::Shape { name: "loss".into(), got, want });
        }
        if !loss.dtype().is_float() {
            let (got, want) = (loss.dtype().as_str(), self.precision.dtype().as_str());
            return Err(TrainingError::Kind { name: "loss".into(), got, want });
        }
        let gradients = loss.backward()?;
        self.trained.iter().map(|(name, var)| Ok((name.clone(), gradient(&gradients, var)?))).collect()
    }

    fn input(&self, name: &str) -> Option<Value> {
        self.graph.find(name).filter(|&value| self.graph.info(value).producer == Producer::Input)
    }

    fn tensors(&self, inputs: &[(&str, Array)]) -> Result<HashMap<String, Tensor>> {
        let convert = |(name, array): &(&str, Array)| {
            let value = self.input(name);
            let value =
                value.ok_or_else(|| TrainingError::NoSuchName { kind: "input", name: (*name).into() })?;
            let (got, want) = (array.kind(), kind(self.graph.info(value).dtype));
            if got != want {
                return Err(TrainingError::Kind { name: (*name).into(), got, want });
            }
            Ok(((*name).to_owned(), array.tensor(name, self.precision.dtype())?))
        };
        inputs.iter().map(convert).collect()
    }

    /// Finds the values of symbols from the inputs' shapes, and checks every dimension.
    fn symbols(&self, values: &HashMap<Value, Tensor>) -> Result<BTreeMap<String, usize>> {
        let mut symbols: BTreeMap<String, usize> = BTreeMap::new();
        let mut open: Vec<(Value, &Dim, usize)> = Vec::new();
        let refuse = |input: Value| TrainingError::Shape {
            name: self.graph.info(input).name.clone(),
            got: values[&input].dims().to_vec(),
            want: self.graph.shape(input).to_string(),
        };
        for &input in self.graph.inputs() {
            let (shape, got): (&Shape, _) = (self.graph.shape(input), values[&input].dims());
            if shape.rank() != got.len() {
                return Err(refuse(input));
            }
            open.extend(shape.dims().iter().zip(got).map(|(dim, &size)| (input, dim, size)));
        }
        // Single symbols say most about themselves, so that an error names the input that differs.
        open.sort_by_key(|(_, dim, _)| {
            dim.symbols().next().is_none_or(|symbol| **dim != Dim::symbol(symbol))
        });
        loop {
            let before = open.len();
            let mut rest = Vec::new();
            for (input, dim, size) in open {
                let unknown: Vec<&str> = dim.symbols().filter(|name| !symbols.contains_key(*name)).collect();
                match unknown.as_slice() {
                    [] if dim.evaluate(&symbols) != Some(size) => return Err(refuse(input)),
                    [] => {}
                    // One unknown in a sum: what is left of the size, divided by its factor.
                    [symbol] => {
                        let mut at = |value| {
                            symbols.insert((*symbol).to_owned(), value);
                            dim.evaluate(&symbols)
                        };
                        let (Some(none), Some(one)) = (at(0), at(1)) else { return Err(refuse(input)) };
                        let (left, factor) = (size.checked_sub(none), one - none);
                        let Some(left) = left.filter(|left| left % factor == 0) else {
                            return Err(refuse(input));
                        };
                        symbols.insert((*symbol).to_owned(), left / factor);
                    }
                    _ => rest.push((input, dim, size)),
                }
            }
            match rest.first() {
                None => return Ok(symbols),
                Some((input, dim, _)) if rest.len() == before => {
                    let name = self.graph.info(*input).name.clone();
                    return Err(TrainingError::Unbound { name, dim: dim.to_string() });
                }
                Some(_) => open = rest,
            }
        }
    }
}

fn kind(dtype: GraphType) -> &'static str {
    match dtype {
        GraphType::F32 => "float",
        GraphType::I64 => "int",
        GraphType::Bool => "bool",
    }
}

/// What a matrix stored this way stands for; `None` if it is kept as it is.
fn as_stored(name: &str, weight: &Tensor, storage: Storage) -> Result<Option<Tensor>> {
    let (bits, block) = match storage {
        Storage::F32 | Storage::Rows => return Ok(None),
        Storage::Int4 { block } => (4, block),
        Storage::Int8 { block } => (8, block),
        Storage::Bf16 | Storage::Sparse { .. } | Storage::Columns { .. } => {
            let (outs, ins) = weight.dims2()?;
            let mut values = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            quantize::round(&mut values, ins, storage);
            let tensor = Tensor::from_vec(values, (outs, ins), &Device::Cpu)?;
            return Ok(Some(tensor.to_dtype(weight.dtype())?));
        }
        _ => return Err(TrainingError::Unsupported { op: "Linear", why: "its storage is unknown" }),
    };
    let shape = weight.dims2()?;
    let values = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let quantized = quantize::quantize(&values, shape.into(), bits, block)
        .map_err(|error| GraphError::Tensor { name: name.into(), why: error.to_string() })?;
    let tensor = Tensor::from_vec(quantize::dequantize(&quantized), shape, &Device::Cpu)?;
    Ok(Some(tensor.to_dtype(weight.dtype())?))
}

fn gradient(gradients: &GradStore, var: &Var) -> Result<Tensor> {
    Ok(match gradients.get(var.as_tensor()) {
        Some(gradient) => gradient.clone(),
        // Nothing depends on it.
        None => var.as_tensor().zeros_like()?,
    })
}

fn plain(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?)
}

impl std::fmt::Debug for Interpreter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interpreter({}, {:?})", self.graph.name(), self.precision)
    }
}
