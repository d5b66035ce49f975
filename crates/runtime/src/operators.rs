//! Operators written in Rust, for sessions to use.

use std::sync::Arc;

use ort::operator::OperatorDomain;

use crate::{Result, RuntimeError};

/// Operators of one domain, given to sessions by [`SessionConfig::operators`](crate::SessionConfig::operators).
///
/// Another crate implements [`ort::operator::Operator`] (with the `ort` that this crate re-exports) and adds its
/// operators in a function; a graph names them by [`Op::Custom`](pilotfish_graph::Op::Custom) or by the lowering
/// of a storage. Every session gets operators of its own. A kernel must not panic: ONNX Runtime calls it from C.
///
/// ```
/// use pilotfish_runtime::{Operators, SessionConfig};
/// let mut config = SessionConfig::default();
/// // Nothing is made, and no library loaded, before a session is opened.
/// config.operators.push(Operators::new("mine", "my-crate", |domain| Ok(domain)));
/// assert_eq!(config.operators[0].domain(), "mine");
/// ```
#[derive(Clone)]
pub struct Operators {
    domain: String,
    provider: String,
    add: Arc<Add>,
}

type Add = dyn Fn(OperatorDomain) -> ort::Result<OperatorDomain> + Send + Sync;

impl Operators {
    /// Operators of a domain, by a function that adds them, and the crate that has them, for error messages.
    pub fn new(
        domain: impl Into<String>,
        provider: impl Into<String>,
        add: impl Fn(OperatorDomain) -> ort::Result<OperatorDomain> + Send + Sync + 'static,
    ) -> Self {
        Self { domain: domain.into(), provider: provider.into(), add: Arc::new(add) }
    }

    /// The domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The crate that has them.
    pub fn provider(&self) -> &str {
        &self.provider
    }
}

impl PartialEq for Operators {
    fn eq(&self, other: &Self) -> bool {
        self.domain == other.domain && Arc::ptr_eq(&self.add, &other.add)
    }
}

impl Eq for Operators {}

impl std::fmt::Debug for Operators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Operators({} of {})", self.domain, self.provider)
    }
}

/// One domain of ONNX Runtime for each name. The library must have been loaded.
pub(crate) fn domains(sets: &[Operators]) -> Result<Vec<OperatorDomain>> {
    let mut made: Vec<(&str, OperatorDomain)> = Vec::new();
    for set in sets {
        let refuse = |error: ort::Error| RuntimeError::Operators {
            domain: set.domain.clone(),
            provider: set.provider.clone(),
            why: error.message().trim().to_owned(),
        };
        if set.domain.is_empty() {
            return Err(refuse(ort::Error::new("a domain needs a name; the empty one is ONNX's own")));
        }
        let domain = match made.iter().position(|(name, _)| *name == set.domain) {
            Some(at) => made.swap_remove(at).1,
            None => OperatorDomain::new(&set.domain).map_err(refuse)?,
        };
        made.push((&set.domain, (set.add)(domain).map_err(refuse)?));
    }
    Ok(made.into_iter().map(|(_, domain)| domain).collect())
}
