//! Small constructors of messages.

use prost::Message;

use super::proto::{
    Attribute, Dimension, Entry, GraphProto, ShapeProto, TensorType, TypeProto, ValueInfo, dimension, elem,
};
use crate::{DType, Dim, Shape};

pub(super) fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: name.into(), i, kind: 2, ..Attribute::default() }
}

pub(super) fn float(name: &str, f: f32) -> Attribute {
    Attribute { name: name.into(), f, kind: 1, ..Attribute::default() }
}

pub(super) fn ints(name: &str, ints: &[i64]) -> Attribute {
    Attribute { name: name.into(), ints: ints.to_vec(), kind: 7, ..Attribute::default() }
}

pub(super) fn text(name: &str, s: &str) -> Attribute {
    Attribute { name: name.into(), s: s.as_bytes().to_vec(), kind: 3, ..Attribute::default() }
}

pub(super) fn subgraph(name: &str, graph: &GraphProto) -> Attribute {
    Attribute { name: name.into(), g: graph.encode_to_vec().into(), kind: 5, ..Attribute::default() }
}

pub(super) fn entry(key: &str, value: impl ToString) -> Entry {
    Entry { key: key.into(), value: value.to_string() }
}

pub(super) fn elem_type(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => elem::FLOAT,
        DType::I64 => elem::INT64,
        DType::Bool => elem::BOOL,
    }
}

/// What is known of a tensor of any shape.
pub(super) fn open_info(elem_type: i32) -> ValueInfo {
    let tensor = TensorType { elem_type, shape: None };
    ValueInfo { name: String::new(), kind: Some(TypeProto { tensor: Some(tensor) }) }
}

pub(super) fn value_info(name: &str, elem_type: i32, shape: &Shape) -> ValueInfo {
    let dim = |dim: &Dim| Dimension {
        value: Some(match dim.fixed() {
            Some(size) => dimension::Value::Size(size as i64),
            None => dimension::Value::Symbol(dim.to_string()),
        }),
    };
    let shape = ShapeProto { dim: shape.dims().iter().map(dim).collect() };
    let tensor = TensorType { elem_type, shape: Some(shape) };
    ValueInfo { name: name.into(), kind: Some(TypeProto { tensor: Some(tensor) }) }
}
