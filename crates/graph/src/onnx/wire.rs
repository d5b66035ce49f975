//! A walk over the bytes of a model before they are decoded: what would make decoding expensive is refused.
//!
//! A message of two bytes becomes a structure of hundreds, so that a small file could take all memory. The walk
//! knows which fields hold messages, allocates nothing, and does not follow what the decoder will skip.

/// Largest file: the limit of the format.
const LARGEST: usize = i32::MAX as usize;
/// Most messages in a file. The largest published graphs have a few hundred thousand.
const MOST_MESSAGES: usize = 1 << 20;
/// Most fields in a file.
const MOST_FIELDS: usize = 1 << 23;

#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    /// A message without messages in it.
    Leaf,
}

impl Kind {
    /// What a field holds, if it is a message that is decoded.
    fn of(self, field: u64) -> Option<Self> {
        Some(match (self, field) {
            (Self::Model, 7) => Self::Graph,
            (Self::Model, 8 | 14) => Self::Leaf,
            (Self::Graph, 1) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5) => Self::Tensor,
            (Self::Graph, 11 | 12) => Self::ValueInfo,
            (Self::Node, 5) => Self::Attribute,
            (Self::Tensor, 13) | (Self::Shape, 1) => Self::Leaf,
            (Self::ValueInfo, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            _ => return None,
        })
    }
}

/// Walks over a model; the depth of the recursion is that of the format's messages.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > LARGEST {
        return Err("larger than 2 GB, which is the limit of the format".into());
    }
    walk(bytes, bytes.len(), Kind::Model, &mut Counts::default())
}

#[derive(Default)]
struct Counts {
    messages: usize,
    fields: usize,
}

fn walk(bytes: &[u8], file: usize, kind: Kind, counts: &mut Counts) -> Result<(), String> {
    let mut rest = bytes;
    counts.messages += 1;
    if counts.messages > MOST_MESSAGES {
        return Err(format!("more than {MOST_MESSAGES} messages"));
    }
    while !rest.is_empty() {
        counts.fields += 1;
        if counts.fields > MOST_FIELDS {
            return Err(format!("more than {MOST_FIELDS} fields"));
        }
        let tag = varint(&mut rest)?;
        let (field, wire) = (tag >> 3, tag & 7);
        if field == 0 || field > (1 << 29) - 1 {
            return Err(format!("a field of number {field}"));
        }
        let len = match wire {
            0 => {
                varint(&mut rest)?;
                0
            }
            1 => 8,
            5 => 4,
            2 => varint(&mut rest)?,
            other => return Err(format!("field {field} has wire type {other}, which ONNX does not use")),
        };
        let taken = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len));
        let Some((inside, after)) = taken else {
            let left = rest.len();
            return Err(format!("field {field} claims {len} bytes, {left} of the file's {file} are left"));
        };
        if let (2, Some(kind)) = (wire, kind.of(field)) {
            walk(inside, file, kind, counts)?;
        }
        rest = after;
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0u64;
    for shift in 0..10 {
        let Some((&byte, after)) = rest.split_first() else {
            return Err("it ends inside a number".into());
        };
        *rest = after;
        value |= u64::from(byte & 127) << (7 * shift);
        if byte < 128 {
            return match shift == 9 && byte > 1 {
                true => Err("a number beyond 64 bits".into()),
                false => Ok(value),
            };
        }
    }
    Err("a number of more than 10 bytes".into())
}
