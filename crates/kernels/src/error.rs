/// Result of packing or multiplying.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;

/// What a kernel refuses.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A matrix without outputs or inputs, or too large to address.
    #[error(
        "a matrix of {outs} outputs and {ins} inputs: both must be at least 1 and their product at most 2^40"
    )]
    Shape {
        /// Outputs.
        outs: usize,
        /// Inputs.
        ins: usize,
    },
    /// A slice of the wrong length.
    #[error("{what}: {got} given, {want} wanted")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Length given.
        got: usize,
        /// Length wanted.
        want: usize,
    },
    /// A weight, scale or minimum that is infinite or not a number.
    #[error("{what} {index} is {value}; weights must be finite")]
    NotFinite {
        /// What it is.
        what: &'static str,
        /// Its place in what was given.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A sparsity pattern that cannot be packed.
    #[error("pattern {keep}:{group}: 1 <= N <= M <= 32 is wanted")]
    Pattern {
        /// N: kept weights a group.
        keep: usize,
        /// M: inputs a group.
        group: usize,
    },
    /// Inputs that do not fill groups or blocks.
    #[error("{ins} inputs cannot be divided into {what} of {size}")]
    Divide {
        /// Inputs.
        ins: usize,
        /// Groups or blocks.
        what: &'static str,
        /// Their size.
        size: usize,
    },
    /// A group with more non-zeros than the pattern allows.
    #[error("output {out}, group {group} has {got} non-zeros; at most {keep} are allowed")]
    Group {
        /// Output.
        out: usize,
        /// Group of inputs.
        group: usize,
        /// Non-zeros found.
        got: usize,
        /// Non-zeros allowed.
        keep: usize,
    },
    /// An index out of range.
    #[error("{what} {got} does not exist; there are {len}")]
    Index {
        /// What is numbered.
        what: &'static str,
        /// The index.
        got: usize,
        /// How many there are.
        len: usize,
    },
    /// Indices that do not increase strictly.
    #[error("{what} must increase strictly; entry {at} does not")]
    Order {
        /// Which indices.
        what: &'static str,
        /// The first entry that does not.
        at: usize,
    },
    /// Bytes that no packing of this kind has written.
    #[error("packed bytes: {why}")]
    Packed {
        /// What is wrong.
        why: String,
    },
}

/// Outputs times inputs, checked.
pub(crate) fn area(outs: usize, ins: usize) -> Result<usize> {
    match outs.checked_mul(ins) {
        Some(area) if area > 0 && area <= 1 << 40 => Ok(area),
        _ => Err(KernelError::Shape { outs, ins }),
    }
}

/// Refuses a slice of another length.
pub(crate) fn length(what: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want { Ok(()) } else { Err(KernelError::Length { what, got, want }) }
}

/// Refuses numbers that are not finite.
pub(crate) fn finite(what: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(KernelError::NotFinite { what, index, value: values[index] }),
        None => Ok(()),
    }
}
