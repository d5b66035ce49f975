//! Linear layers on the kernels of `pilotfish-kernels`, as operators of the domain `pilotfish`, one a storage.
//!
//! Weights are packed when a graph is written, in the order that the kernels read them, and lie in the graph's file
//! of weights. ONNX Runtime maps that file, and the operators read it where it lies: nothing is packed at load, there
//! is one copy in memory, and processes share it. The same graph can always be written with standard operators
//! instead ([`Products::Ort`]).

use std::ops::Range;

use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;
use pilotfish_graph::{
    self as graph, Custom, DType, Graph, GraphError, Op, Setting, Storage, Tensor, passes, quantize,
};
use pilotfish_kernels::{
    Activations, Active, Bits, Blocks, Columns, Dense, Float, Form, Kept, KernelError, Neurons, Offset,
    Parallel, Pattern, Product, Sparse,
};

use crate::{Operators, Result};

/// The domain of our operators.
pub const PRODUCTS_DOMAIN: &str = "pilotfish";
/// Bits that activations of block products are rounded to; 16 where a node does not say.
const ACTIVATION_BITS: &str = "activation_bits";
pub(crate) const PROVIDER: &str = "pilotfish-runtime (product_operators)";

/// Whose kernels multiply matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Products {
    /// ONNX Runtime's own.
    #[default]
    Ort,
    /// Ours, where they have the storage.
    Pilotfish,
    /// Ours, with activations rounded to 8 bits instead of 16 where weights are blocks of integers: as coarse as ONNX
    /// Runtime's products of blocks are, and faster.
    PilotfishA8,
    /// For each matrix the faster of the two on this machine, at steps of so many rows
    /// ([`Calibration`](crate::Calibration)). Measured the first time, which takes seconds.
    Auto {
        /// Rows of the steps that matter: 1 for plain decoding, a draft tree's size for speculation.
        rows: usize,
    },
}

impl Products {
    /// Whether these are kernels of `pilotfish-kernels`.
    pub fn ours(self) -> bool {
        matches!(self, Self::Pilotfish | Self::PilotfishA8)
    }

    /// What ours round activations to where weights are blocks of integers.
    pub fn activations(self) -> Activations {
        match self {
            Self::PilotfishA8 => Activations::Eight,
            Self::Ort | Self::Pilotfish | Self::Auto { .. } => Activations::Sixteen,
        }
    }
}

impl std::fmt::Display for Products {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ort => f.write_str("ort"),
            Self::Pilotfish => f.write_str("pilotfish"),
            Self::PilotfishA8 => f.write_str("pilotfish-a8"),
            Self::Auto { rows } => write!(f, "auto:{rows}"),
        }
    }
}

impl std::str::FromStr for Products {
    type Err = crate::RuntimeError;

    /// `ort`, `pilotfish`, `pilotfish-a8`, `auto` (for one row) or `auto:ROWS`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || crate::RuntimeError::Option {
            option: "products",
            value: text.into(),
            want: "ort, pilotfish, pilotfish-a8, auto or auto:ROWS",
        };
        match text {
            "ort" => Ok(Self::Ort),
            "pilotfish" => Ok(Self::Pilotfish),
            "pilotfish-a8" => Ok(Self::PilotfishA8),
            "auto" => Ok(Self::Auto { rows: 1 }),
            _ => {
                let rows = text.strip_prefix("auto:").and_then(|rows| rows.parse().ok());
                rows.filter(|&rows| rows > 0).map(|rows| Self::Auto { rows }).ok_or_else(wrong)
            }
        }
    }
}

/// A storage that our kernels have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F32,
    Bf16,
    Blocks(Bits, Activations),
    Sparse(Pattern, Kept),
    Columns(Kept),
    Rows,
}

/// One of each but for [`Kind::Rows`], which has an operator of its own; pattern, type and what activations are rounded to
/// are the node's.
const KINDS: [Kind; 6] = [
    Kind::F32,
    Kind::Bf16,
    Kind::Blocks(Bits::Four, Activations::Sixteen),
    Kind::Blocks(Bits::Eight, Activations::Sixteen),
    Kind::Sparse(Pattern { keep: 1, group: 1 }, Kept::F32),
    Kind::Columns(Kept::F32),
];

pub(crate) fn kept(kept: graph::Kept) -> Kept {
    match kept {
        graph::Kept::F32 => Kept::F32,
        graph::Kept::Bf16 => Kept::Bf16,
        graph::Kept::Int8 => Kept::Int8,
    }
}

/// A type as an attribute says it: in bits.
pub(crate) fn bits(kept: Kept) -> i64 {
    match kept {
        Kept::F32 => 32,
        Kept::Bf16 => 16,
        Kept::Int8 => 8,
    }
}

impl Kind {
    fn of(storage: Storage, activations: Activations) -> Option<Self> {
        match storage {
            Storage::F32 => Some(Self::F32),
            Storage::Bf16 => Some(Self::Bf16),
            Storage::Int4 { block } if block % pilotfish_kernels::BLOCK == 0 => {
                Some(Self::Blocks(Bits::Four, activations))
            }
            Storage::Int8 { block } if block % pilotfish_kernels::BLOCK == 0 => {
                Some(Self::Blocks(Bits::Eight, activations))
            }
            Storage::Sparse { keep, group, kept: values } => {
                Some(Self::Sparse(Pattern { keep, group }, kept(values)))
            }
            Storage::Columns { kept: values } => Some(Self::Columns(kept(values))),
            Storage::Rows => Some(Self::Rows),
            _ => None,
        }
    }

    fn operator(self) -> &'static str {
        match self {
            Self::F32 => "LinearF32",
            Self::Bf16 => "LinearBf16",
            Self::Blocks(Bits::Four, _) => "LinearInt4",
            Self::Blocks(Bits::Eight, _) => "LinearInt8",
            Self::Sparse(..) => "LinearSparse",
            Self::Columns(_) => "LinearColumns",
            Self::Rows => crate::skipping::ROWS,
        }
    }

    /// Multiplies with packed bytes; with no rows it only looks at them.
    fn multiply(
        self,
        bytes: &[u8],
        [outs, ins]: [usize; 2],
        x: &[f32],
        y: &mut [f32],
        threads: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let product: Box<dyn Product + '_> = match self {
            Self::F32 | Self::Rows => Box::new(Dense::from_packed(bytes, outs, ins, Float::F32)?),
            Self::Bf16 => Box::new(Dense::from_packed(bytes, outs, ins, Float::Bf16)?),
            Self::Blocks(bits, activations) => {
                Box::new(Blocks::from_packed(bytes, outs, ins, form(bits))?.with_activations(activations))
            }
            Self::Sparse(pattern, kept) => Box::new(Sparse::from_packed(bytes, outs, ins, pattern, kept)?),
            Self::Columns(kept) => {
                let columns = Columns::from_packed(bytes, outs, ins, kept)?;
                // What is zero in every row is not read.
                return columns.apply(&Active::above(x, x.len() / ins, ins, 0.0)?, y, threads);
            }
        };
        product.apply_with(x, x.len() / ins, y, threads)
    }
}

/// Packs a matrix for a storage that our kernels have.
pub(crate) fn pack(tensor: &Tensor, storage: Storage) -> pilotfish_graph::Result<Vec<u8>> {
    let refuse =
        |error: KernelError| GraphError::Tensor { name: format!("{tensor:?}"), why: error.to_string() };
    let &[outs, ins] = tensor.shape() else {
        return Err(GraphError::Tensor { name: format!("{tensor:?}"), why: "a matrix is wanted".into() });
    };
    let values = tensor.to_f32()?;
    let bytes = |product: &dyn Product| product.packed().to_vec();
    Ok(match storage {
        Storage::Int4 { block } | Storage::Int8 { block } => {
            let (bits, kind) = match storage {
                Storage::Int4 { .. } => (4, Bits::Four),
                _ => (8, Bits::Eight),
            };
            let q = quantize::quantize(&values, [outs, ins], bits, block)?;
            // Blocks of 64 or 128 become two or four of 32.
            let (times, short) = (block / pilotfish_kernels::BLOCK, ins.div_ceil(pilotfish_kernels::BLOCK));
            let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
            let all = quantize::unpack(&q.packed, bits);
            let offsets = quantize::unpack(&q.zeros, bits);
            let a_row = offsets.len().checked_div(outs).unwrap_or(0);
            for out in 0..outs {
                let row = &all[out * q.blocks() * block..][..short * pilotfish_kernels::BLOCK];
                codes.extend_from_slice(row);
                scales.extend((0..short).map(|at| q.scales[out * q.blocks() + at / times]));
                zeros.extend((0..short).map(|at| offsets[out * a_row + at / times]));
            }
            bytes(&Blocks::pack(&codes, &scales, &zeros, outs, ins, kind).map_err(refuse)?)
        }
        Storage::Sparse { keep, group, kept: stored } => {
            let mut values = values.into_owned();
            // Which are kept; the kernel rounds them.
            quantize::round(&mut values, ins, Storage::Sparse { keep, group, kept: graph::Kept::F32 });
            let pattern = Pattern { keep, group };
            bytes(&Sparse::pack(&values, outs, ins, pattern, kept(stored)).map_err(refuse)?)
        }
        Storage::Columns { kept: stored } => {
            Columns::pack(&values, outs, ins, kept(stored)).map_err(refuse)?.packed().to_vec()
        }
        Storage::Bf16 => bytes(&Dense::pack(&values, outs, ins, Float::Bf16).map_err(refuse)?),
        _ => bytes(&Dense::pack(&values, outs, ins, Float::F32).map_err(refuse)?),
    })
}

/// How our own blocks are stored.
fn form(bits: Bits) -> Form {
    Form { bits, offset: Offset::Zero }
}

/// A graph whose linear layers are our operators, where their matrix is a parameter and its storage is one that our
/// kernels have; the others stay.
///
/// # Errors
/// A matrix that cannot be packed, found when the graph is written.
pub fn lower_products(graph: &Graph) -> pilotfish_graph::Result<Graph> {
    lower_products_where(graph, Activations::default(), |_, _| true)
}

/// As [`lower_products`], of matrices whose storage and shape `[outs, ins]` are wanted; where they are blocks of integers,
/// activations are rounded as said.
///
/// # Errors
/// As there.
pub fn lower_products_where(
    graph: &Graph,
    activations: Activations,
    wanted: impl Fn(Storage, [usize; 2]) -> bool,
) -> pilotfish_graph::Result<Graph> {
    let graph = &crate::skipping::lower(graph, &wanted)?;
    passes::rewrite(graph, |new, node, inputs| {
        let Op::Linear(storage) = node.op else { return Ok(None) };
        // Rows that no gate reads are a plain matrix.
        let storage = if storage == Storage::Rows { Storage::F32 } else { storage };
        let (Some(param), Some(kind)) = (new.param_of(inputs[1]), Kind::of(storage, activations)) else {
            return Ok(None);
        };
        let (name, tensor) = (format!("{}.pilotfish.{storage}", param.name), param.tensor.clone());
        let [outs, ins] = [tensor.shape()[0], tensor.shape()[1]];
        if !wanted(storage, [outs, ins]) {
            return Ok(None);
        }
        let count = packed_len(kind, outs, ins);
        let packed = new.param(&name, as_words(&tensor, count, move |tensor| pack(tensor, storage)))?;
        let shape = new.shape(inputs[0]).with(new.shape(inputs[0]).rank() - 1, outs.into());
        let mut attributes =
            vec![("outs".into(), Setting::Int(outs as i64)), ("ins".into(), Setting::Int(ins as i64))];
        if let Kind::Sparse(Pattern { keep, group }, kept) = kind {
            attributes.push(("keep".into(), Setting::Int(keep as i64)));
            attributes.push(("group".into(), Setting::Int(group as i64)));
            attributes.push(("bits".into(), Setting::Int(bits(kept))));
        }
        if let Kind::Blocks(_, Activations::Eight) = kind {
            attributes.push((ACTIVATION_BITS.into(), Setting::Int(8)));
        }
        if let Kind::Columns(kept) = kind {
            attributes.push(("bits".into(), Setting::Int(bits(kept))));
        }
        let custom = Custom {
            domain: PRODUCTS_DOMAIN.into(),
            name: kind.operator().into(),
            provider: PROVIDER.into(),
            attributes,
            results: vec![(shape, DType::F32)],
        };
        let mut product = new.apply(Op::Custom(Box::new(custom)), &[inputs[0], packed])?[0];
        if let Some(&bias) = inputs.get(2) {
            product = new.add(product, bias)?;
        }
        Ok(Some(vec![product]))
    })
}

/// Packed bytes as a parameter of so many words. They travel as floats: a parameter has no other type, and nobody
/// computes with them.
pub(crate) fn as_words(
    tensor: &Tensor,
    count: usize,
    pack: impl Fn(&Tensor) -> pilotfish_graph::Result<Vec<u8>> + Send + Sync + 'static,
) -> Tensor {
    tensor.derive([count], move |tensor, rows: Range<usize>| {
        let bytes = pack(tensor)?;
        let words = bytes.as_chunks::<4>().0;
        Ok(words[rows].iter().map(|&word| f32::from_le_bytes(word)).collect())
    })
}

/// Bytes of a matrix `[outs, ins]` as our kernels read it, if they have the storage.
pub fn packed_bytes(storage: Storage, [outs, ins]: [usize; 2]) -> Option<usize> {
    Kind::of(storage, Activations::default()).map(|kind| 4 * packed_len(kind, outs, ins))
}

/// Words of a packed matrix.
fn packed_len(kind: Kind, outs: usize, ins: usize) -> usize {
    let bytes = match kind {
        Kind::F32 => Dense::packed_bytes(outs, ins, Float::F32),
        Kind::Bf16 => Dense::packed_bytes(outs, ins, Float::Bf16),
        Kind::Blocks(bits, _) => Blocks::packed_bytes(outs, ins, form(bits)),
        Kind::Sparse(pattern, kept) => Sparse::packed_bytes(outs, ins, pattern, kept),
        Kind::Columns(kept) => Columns::packed_bytes(outs, ins, kept),
        Kind::Rows => Neurons::packed_bytes(outs, ins),
    };
    bytes / 4
}

/// Our operators, for sessions that open a graph which uses them; models opened with [`Products::Pilotfish`] have
/// them already. `threads` is the session's number; 0 takes one a core.
pub fn product_operators(threads: usize) -> Operators {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    Operators::new(PRODUCTS_DOMAIN, PROVIDER, move |domain| {
        let domain =
            KINDS.into_iter().try_fold(domain, |domain, kind| domain.add(Linear { kind, threads }))?;
        crate::skipping::add(domain, threads)
    })
}

struct Linear {
    kind: Kind,
    threads: usize,
}

/// ONNX Runtime's own threads.
pub(crate) struct Threads<'a> {
    pub context: &'a ComputeContext,
    pub width: usize,
}

impl Parallel for Threads<'_> {
    fn width(&self) -> usize {
        self.width
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        // Parts that it did not run are run by the caller.
        let _ = self.context.par_for(parts, parts, work);
    }
}

impl Operator for Linear {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        self.kind.operator()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [const { OperatorInput::required(TensorElementType::Float32) }; 2]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let kind = match self.kind {
            Kind::Sparse(..) => Kind::Sparse(
                Pattern { keep: size(context, "keep")?, group: size(context, "group")? },
                kept_of(context)?,
            ),
            Kind::Columns(_) => Kind::Columns(kept_of(context)?),
            Kind::Blocks(bits, _) => Kind::Blocks(bits, activations_of(context)?),
            kind => kind,
        };
        let (shape, width) = ([size(context, "outs")?, size(context, "ins")?], self.threads);
        let weights = Weights::of(context, 1, &|bytes| {
            kind.multiply(bytes, shape, &[], &mut [], &pilotfish_kernels::Serial)
        })?;
        Ok(Box::new(move |context: &ComputeContext| {
            let packed = operand(context, 1)?;
            let x = operand(context, 0)?;
            let (x_shape, x) = x.try_extract_tensor::<f32>()?;
            let mut y = context.output(0, result_shape(x_shape, shape)?)?.ok_or_else(missing)?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            let threads = Threads { context, width };
            let (_, packed) = packed.try_extract_tensor::<f32>()?;
            kind.multiply(weights.bytes(packed), shape, x, y, &threads).map_err(refuse)
        }))
    }

    fn infer_shape(&self, context: &mut ort::operator::ShapeInferenceContext) -> ort::Result<()> {
        infer(context)
    }
}

pub(crate) fn refuse(error: KernelError) -> ort::Error {
    ort::Error::new(format!("pilotfish: {error}"))
}

pub(crate) fn missing() -> ort::Error {
    ort::Error::new("pilotfish: an operand is missing")
}

/// An operand of a call.
pub(crate) fn operand<'a>(
    context: &'a ComputeContext,
    index: usize,
) -> ort::Result<ort::value::ValueRef<'a>> {
    context.input(index)?.ok_or_else(missing)
}

/// An attribute that is a size.
pub(crate) fn size(context: &KernelContext<'_>, name: &str) -> ort::Result<usize> {
    let size = context.get::<i64>(name).and_then(|size| usize::try_from(size).ok());
    size.ok_or_else(|| ort::Error::new(format!("pilotfish: no attribute {name}")))
}

/// The type that an attribute says.
pub(crate) fn kept_of(context: &KernelContext<'_>) -> ort::Result<Kept> {
    match size(context, "bits")? {
        32 => Ok(Kept::F32),
        16 => Ok(Kept::Bf16),
        8 => Ok(Kept::Int8),
        other => Err(ort::Error::new(format!("pilotfish: weights of {other} bits"))),
    }
}

/// What activations are rounded to.
fn activations_of(context: &KernelContext<'_>) -> ort::Result<Activations> {
    match context.get::<i64>(ACTIVATION_BITS) {
        None | Some(16) => Ok(Activations::Sixteen),
        Some(8) => Ok(Activations::Eight),
        Some(other) => Err(ort::Error::new(format!("pilotfish: activations of {other} bits"))),
    }
}

/// The shape of a product of `x` with a matrix `[outs, ins]`.
pub(crate) fn result_shape(x: &[i64], [outs, ins]: [usize; 2]) -> ort::Result<Vec<i64>> {
    let mut shape = x.to_vec();
    match shape.last_mut() {
        Some(last) if *last == ins as i64 => *last = outs as i64,
        _ => return Err(ort::Error::new(format!("pilotfish: {x:?} does not end in {ins}"))),
    }
    Ok(shape)
}

/// The first operand's shape with `outs` in the end.
pub(crate) fn infer(context: &mut ort::operator::ShapeInferenceContext) -> ort::Result<()> {
    let outs: i64 = context.attr("outs")?;
    let inputs = context.inputs();
    let Some(ort::value::ValueType::Tensor { shape, dimension_symbols, .. }) = inputs.first() else {
        return Ok(());
    };
    let mut shape = shape.clone();
    let Some(last) = shape.last_mut() else { return Ok(()) };
    *last = outs;
    let rank = dimension_symbols.len();
    let open = |(at, symbol): (usize, &String)| if at + 1 == rank { String::new() } else { symbol.clone() };
    let symbols = dimension_symbols.iter().enumerate().map(open).collect();
    let output =
        ort::value::ValueType::Tensor { ty: TensorElementType::Float32, shape, dimension_symbols: symbols };
    context.set_output(0, &output)
}

/// Where packed weights lie: in the operand, or, if that does not begin on a cache line, in a copy, for the kernels would
/// copy them with every call.
pub(crate) struct Weights {
    own: Option<Aligned>,
}

impl Weights {
    /// The constant operand of this index, if `check` finds nothing wrong with its bytes.
    pub(crate) fn of(
        context: &KernelContext<'_>,
        index: usize,
        check: &dyn Fn(&[u8]) -> Result<(), KernelError>,
    ) -> ort::Result<Self> {
        let weights = context.constant_input::<ort::value::DynTensorValueType>(index)?;
        let (_, weights) = weights.try_extract_tensor::<f32>()?;
        let bytes: &[u8] = bytemuck::cast_slice(weights);
        check(bytes).map_err(refuse)?;
        let aligned = bytes.as_ptr().addr() % 64 == 0;
        tracing::debug!("{} packed bytes, in place: {aligned}", bytes.len());
        Ok(Self { own: if aligned { None } else { Some(Aligned::copy(bytes)) } })
    }

    /// The bytes, given the operand of a call.
    pub(crate) fn bytes<'a>(&'a self, operand: &'a [f32]) -> &'a [u8] {
        self.own.as_ref().map_or(bytemuck::cast_slice(operand), Aligned::bytes)
    }
}

/// A copy that begins on a cache line.
struct Aligned {
    words: Vec<[u64; 8]>,
    skip: usize,
    len: usize,
}

impl Aligned {
    fn copy(bytes: &[u8]) -> Self {
        let mut words = vec![[0u64; 8]; bytes.len().div_ceil(64) + 1];
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let skip = all.as_ptr().addr().wrapping_neg() % 64;
        all[skip..skip + bytes.len()].copy_from_slice(bytes);
        Self { words, skip, len: bytes.len() }
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[self.skip..self.skip + self.len]
    }
}
