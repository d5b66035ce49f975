/// Numbers for an input of a graph, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Feed {
    /// For an input of type `F32`.
    Float {
        /// Dimensions.
        shape: Vec<usize>,
        /// Values.
        values: Vec<f32>,
    },
    /// For an input of type `I64`.
    Int {
        /// Dimensions.
        shape: Vec<usize>,
        /// Values.
        values: Vec<i64>,
    },
}
