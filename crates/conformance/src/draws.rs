use pilotfish_decoding::{Ask, Choose, Draft, Drafter, Drawn, Result};
use pilotfish_model::Token;
use pilotfish_model::sampling::{Distribution, Sampler};
use pilotfish_model::toy::TableModel;

/// The law of a table's next token as a model would give it: its logits are rounded to f32 and go through the
/// sampler's warpers.
pub fn law_after(model: &TableModel, sampler: &Sampler, text: &[Token]) -> Result<Distribution> {
    let logits: Vec<f32> = model.next(text).probs().iter().map(|prob| prob.ln() as f32).collect();
    Ok(sampler.distribution(&logits, text)?)
}

/// Draws a tree with `shape[l]` children at every node of level `l`, from the laws that `law` gives for a path.
/// Fixed drafts take the likeliest tokens instead and carry no laws.
///
/// # Errors
/// What `law` returns.
pub fn draw(
    text: &[Token],
    shape: &[usize],
    drawn: Drawn,
    choose: &mut dyn Choose,
    mut law: impl FnMut(&[Token]) -> Result<Distribution>,
) -> Result<Draft> {
    let root = text.last().copied().unwrap_or(0);
    let mut draft = Draft::sampled(root, drawn);
    let mut level = vec![0];
    for &children in shape {
        let mut next = Vec::new();
        for node in level {
            let mut path = text.to_vec();
            path.extend(draft.tree().path(node)[1..].iter().map(|&node| draft.tree().token(node)));
            let q = law(&path)?;
            let mut left = Some(q.clone());
            for _ in 0..children {
                let Some(current) = left else { break };
                let token = if drawn == Drawn::Fixed { current.argmax() } else { choose.choose(&current) };
                next.push(draft.push(node, token)?);
                left = match drawn {
                    Drawn::WithReplacement => Some(current),
                    Drawn::Fixed | Drawn::WithoutReplacement => current.without(token),
                };
            }
            if drawn != Drawn::Fixed {
                draft.set_law(node, q)?;
            }
        }
        level = next;
    }
    Ok(draft)
}

/// A drafter that samples trees of one shape from a table. Everything about it is known, so that the law of what
/// a loop makes of it can be enumerated.
pub struct TableDrafter {
    model: TableModel,
    sampler: Sampler,
    shape: Vec<usize>,
    drawn: Drawn,
    choose: Box<dyn Choose>,
}

impl TableDrafter {
    /// A drafter with `shape[l]` children at every node of level `l`.
    pub fn new(
        model: TableModel,
        sampler: Sampler,
        shape: &[usize],
        drawn: Drawn,
        choose: Box<dyn Choose>,
    ) -> Self {
        Self { model, sampler, shape: shape.to_vec(), drawn, choose }
    }
}

impl Drafter for TableDrafter {
    fn name(&self) -> String {
        format!("table, {:?} children, drawn {}", self.shape, self.drawn)
    }

    fn drawn(&self) -> Drawn {
        self.drawn
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let shape = &self.shape[..self.shape.len().min(ask.depth)];
        draw(ask.text, shape, self.drawn, self.choose.as_mut(), |path| {
            law_after(&self.model, &self.sampler, path)
        })
    }
}
