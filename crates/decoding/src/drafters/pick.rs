use pilotfish_model::sampling::Distribution;
use pilotfish_model::{Streams, Token};

use crate::{Choose, Draft, Drawn, Result};

/// How a token is picked from a draft's law.
pub enum Pick {
    /// Drawn; without replacement where a node has several children.
    Drawn(Box<dyn Choose>),
    /// The likeliest that is left: a draft that is not sampled, for rules that do not need its laws.
    Largest,
}

impl std::fmt::Debug for Pick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Drawn(_) => "Drawn",
            Self::Largest => "Largest",
        })
    }
}

impl Pick {
    /// Draws from the stream `draft`, which shares no noise with acceptance.
    pub fn sampled(streams: Streams) -> Self {
        Self::Drawn(Box::new(streams.stream("draft")))
    }

    /// How children are drawn.
    pub fn drawn(&self) -> Drawn {
        match self {
            Self::Drawn(_) => Drawn::WithoutReplacement,
            Self::Largest => Drawn::Fixed,
        }
    }

    /// A token of a law.
    pub fn draw(&mut self, law: &Distribution) -> Token {
        match self {
            Self::Drawn(choose) => choose.choose(law),
            Self::Largest => law.argmax(),
        }
    }

    /// Records the law below a node, if the draft is sampled.
    pub(crate) fn law(&self, draft: &mut Draft, node: usize, law: &Distribution) -> Result<()> {
        match self {
            Self::Drawn(_) => draft.set_law(node, law.clone()),
            Self::Largest => Ok(()),
        }
    }
}
