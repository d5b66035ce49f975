use linfa::dataset::DatasetBase;
use linfa::traits::Fit;
use linfa_trees::{DecisionTree, TreeNode};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use super::check_features;
use crate::{Result, SupervisionError};

/// How a decision tree is grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeConfig {
    /// Splits from the root to a leaf at most.
    pub depth: usize,
    /// Items that a leaf must have.
    pub leaf: usize,
}

impl Default for TreeConfig {
    /// The weak supervisor of weak-to-strong experiments on digits.
    fn default() -> Self {
        Self { depth: 5, leaf: 1 }
    }
}

/// A decision tree (CART, Gini impurity, grown by linfa) whose leaves say how often each class occurred in them, as a
/// distribution: a weak teacher that knows how sure it is.
///
/// ```
/// use ndarray::array;
/// use pilotfish_supervision::heads::{Tree, TreeConfig};
/// let x = array![[0.0], [0.1], [0.9], [1.0]];
/// let tree = Tree::fit(x.view(), &[0, 0, 1, 1], 2, &TreeConfig::default())?;
/// assert_eq!(tree.predict(array![[0.2], [0.8]].view())?, array![[1.0, 0.0], [0.0, 1.0]]);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    features: usize,
    classes: usize,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Node {
    /// Below the value of the feature: the first child.
    Split {
        feature: usize,
        value: f64,
        children: [usize; 2],
    },
    Leaf {
        shares: Vec<f64>,
    },
}

impl Tree {
    /// Fits features `[items, features]` to classes.
    ///
    /// # Errors
    /// No items; lengths that differ; a class out of range; a feature that is not finite; a depth or a leaf of 0.
    pub fn fit(x: ArrayView2<'_, f64>, y: &[usize], classes: usize, config: &TreeConfig) -> Result<Self> {
        check_features(x)?;
        if y.len() != x.nrows() {
            return Err(SupervisionError::Shape { what: "classes of items", got: y.len(), want: x.nrows() });
        }
        if let Some(item) = y.iter().position(|&class| class >= classes) {
            return Err(SupervisionError::OutOfRange { item, voter: 0, got: y[item] as i64, classes });
        }
        for (name, value) in [("depth", config.depth), ("leaf", config.leaf)] {
            if value == 0 {
                return Err(SupervisionError::BadParameter { name, value: 0.0, want: "at least 1" });
            }
        }
        let data = DatasetBase::new(x.to_owned(), Array1::from(y.to_vec()));
        let tree = DecisionTree::params()
            .max_depth(Some(config.depth))
            .min_weight_leaf(config.leaf as f32)
            .fit(&data)
            .map_err(|error| SupervisionError::Solver { model: "decision tree", why: error.to_string() })?;
        let mut grown = Self { features: x.ncols(), classes, nodes: Vec::new() };
        grown.copy(tree.root_node());
        // linfa keeps the most frequent class of a leaf only.
        let mut counts = vec![vec![0.0; classes]; grown.nodes.len()];
        for (row, &class) in x.rows().into_iter().zip(y) {
            counts[grown.leaf(row)][class] += 1.0;
        }
        for (node, counts) in grown.nodes.iter_mut().zip(counts) {
            if let Node::Leaf { shares } = node {
                let all: f64 = counts.iter().sum();
                *shares = counts.iter().map(|count| count / all.max(1.0)).collect();
            }
        }
        Ok(grown)
    }

    fn copy(&mut self, node: &TreeNode<f64, usize>) -> usize {
        let at = self.nodes.len();
        self.nodes.push(Node::Leaf { shares: Vec::new() });
        let children = node.children();
        if let [Some(below), Some(above)] = children.as_slice() {
            let (feature, value, _) = node.split();
            let children = [self.copy(below), self.copy(above)];
            self.nodes[at] = Node::Split { feature, value, children };
        }
        at
    }

    fn leaf(&self, row: ArrayView1<'_, f64>) -> usize {
        let mut at = 0;
        while let Node::Split { feature, value, children } = &self.nodes[at] {
            at = children[usize::from(row[*feature] >= *value)];
        }
        at
    }

    /// Leaves.
    pub fn leaves(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node, Node::Leaf { .. })).count()
    }

    /// Probabilities `[items, classes]`.
    ///
    /// # Errors
    /// Another number of features; one that is not finite.
    pub fn predict(&self, x: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
        if x.ncols() != self.features {
            return Err(SupervisionError::Shape { what: "features", got: x.ncols(), want: self.features });
        }
        if x.nrows() > 0 {
            check_features(x)?;
        }
        let mut p = Array2::zeros((x.nrows(), self.classes));
        for (row, mut p) in x.rows().into_iter().zip(p.rows_mut()) {
            if let Node::Leaf { shares } = &self.nodes[self.leaf(row)] {
                p.iter_mut().zip(shares).for_each(|(p, share)| *p = *share);
            }
        }
        Ok(p)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Depth 1 on three zeros, a one, and two ones further right: the best cut leaves one zero-one pair apart.
    #[test]
    fn leaves_say_how_sure_they_are() {
        let x = array![[0.0], [1.0], [2.0], [3.0], [10.0], [11.0]];
        let y = [0, 0, 1, 0, 1, 1];
        let tree = Tree::fit(x.view(), &y, 2, &TreeConfig { depth: 1, leaf: 1 }).unwrap();
        assert_eq!(tree.leaves(), 2);
        // Gini after a cut at 6.5 is 4/6 * 2 * 1/4 * 3/4 = 0.25; at 1.5 it is 4/6 * 2 * 3/4 * 1/4 = 0.25 as well,
        // so either: leaves of 2 and 4 items, one pure, the other 3 to 1.
        let p = tree.predict(x.view()).unwrap();
        let mut firsts: Vec<f64> = p.column(0).to_vec();
        firsts.sort_by(f64::total_cmp);
        firsts.dedup();
        assert!(firsts == [0.0, 0.75] || firsts == [0.25, 1.0], "{firsts:?}");
        let deep = Tree::fit(x.view(), &y, 2, &TreeConfig { depth: 5, leaf: 1 }).unwrap();
        assert_eq!(deep.predict(x.view()).unwrap().column(1).to_vec(), [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let x = array![[0.0], [1.0]];
        let config = TreeConfig::default();
        assert!(Tree::fit(x.view(), &[0], 2, &config).is_err());
        assert!(Tree::fit(x.view(), &[0, 2], 2, &config).is_err());
        assert!(Tree::fit(array![[f64::NAN], [1.0]].view(), &[0, 1], 2, &config).is_err());
        assert!(Tree::fit(x.view(), &[0, 1], 2, &TreeConfig { depth: 0, leaf: 1 }).is_err());
        let tree = Tree::fit(x.view(), &[0, 1], 2, &config).unwrap();
        assert!(tree.predict(array![[0.0, 1.0]].view()).is_err());
        assert!(tree.predict(array![[f64::INFINITY]].view()).is_err());
        assert_eq!(tree.predict(Array2::zeros((0, 1)).view()).unwrap().dim(), (0, 2));
    }
}
