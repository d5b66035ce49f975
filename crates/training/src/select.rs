//! Which parameters are trained.

use pilotfish_graph::Graph;
use serde::{Deserialize, Serialize};

use crate::{Result, TrainingError};

/// Parameters by name. In a pattern `*` stands for any text, so `model.layers.3.*` is a layer and
/// `*.mlp.*` every MLP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Every parameter.
    #[default]
    All,
    /// Those that match a pattern: a head, adapters.
    Only(Vec<String>),
    /// Those that match none: all but the embedding, say.
    Except(Vec<String>),
}

impl Selection {
    /// Patterns of what is trained.
    pub fn only<S: Into<String>>(patterns: impl IntoIterator<Item = S>) -> Self {
        Self::Only(patterns.into_iter().map(Into::into).collect())
    }

    /// Names of the selected parameters of a graph, in the graph's order.
    ///
    /// # Errors
    /// A pattern that matches nothing, or a selection of nothing: never what was meant.
    pub fn of(&self, graph: &Graph) -> Result<Vec<String>> {
        let names: Vec<&str> = graph.params().iter().map(|param| param.name.as_str()).collect();
        let (patterns, wanted): (&[String], bool) = match self {
            Self::All => (&[], false),
            Self::Only(patterns) => (patterns, true),
            Self::Except(patterns) => (patterns, false),
        };
        for pattern in patterns {
            if !names.iter().any(|name| matches(pattern, name)) {
                return Err(TrainingError::NoSuchName { kind: "parameter", name: pattern.clone() });
            }
        }
        let chosen = |name: &&str| patterns.iter().any(|pattern| matches(pattern, name)) == wanted;
        let chosen: Vec<String> = names.into_iter().filter(chosen).map(str::to_owned).collect();
        match chosen.is_empty() {
            true => Err(TrainingError::NoSuchName { kind: "parameter", name: "(the selection)".into() }),
            false => Ok(chosen),
        }
    }
}

/// Whether a name matches a pattern in which `*` stands for any text.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(before) = last.replace(part) {
            // Leftmost is enough for every part but the last.
            match rest.find(before) {
                Some(at) => rest = &rest[at + before.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        let name = "model.layers.3.mlp.up_proj.weight";
        for pattern in ["*", name, "model.*", "*.weight", "*.mlp.*", "model.*.3.*weight", "**", "*up*proj*"] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in ["", "model", "*.bias", "*.mlp", "mlp*", "*weight*weight", "model.*.4.*"] {
            assert!(!matches(pattern, name), "{pattern}");
        }
        assert!(matches("", "") && matches("a*a", "aa") && !matches("a*a", "a"));
    }
}
