//! Experiments with masked diffusion.

mod adablock;
mod contrast;
mod filters;
mod freedave;
mod learn2pd;
mod parallelbench;
mod policies;
mod sentences;
mod text;
mod train;
mod trained;

use pilotfish_diffusion::ideal::{Ideal, Law};
use pilotfish_diffusion::parallelbench::{Problem, Task};
use pilotfish_diffusion::policy::{Factor, LocalLeap, LocalLeapConfig, Policy};
use pilotfish_diffusion::{Canvas, Fixed, Score};
use pilotfish_evaluation::Interval;
use pilotfish_model::{MaskedModel, Token};
use serde::{Deserialize, Serialize};

pub(super) use adablock::ADABLOCK;
pub(super) use contrast::PARALLELBENCH_AR;
pub(super) use freedave::FREEDAVE;
pub(super) use learn2pd::LEARN2PD;
pub(super) use parallelbench::PARALLELBENCH;
pub(super) use policies::DLLM_POLICIES;
pub(super) use text::DIFFUSION_TEXT;
pub(super) use train::DIFFUSION_TRAIN;

use crate::error::Failure;
use crate::experiments::page;
use crate::masked::Cached;
use crate::plots::Point;

/// Noise on the logits of exact models: breaks ties, and nothing else.
const TIES: f64 = 1e-4;

/// What decoding some prompts one way gave.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Cell {
    /// Prompts.
    runs: usize,
    /// Right answers.
    right: usize,
    /// Forward passes, all prompts together.
    forwards: u64,
    /// Tokens that passes decided.
    tokens: u64,
}

impl Cell {
    fn of(right: usize, runs: usize) -> Self {
        Self { runs, right, ..Self::default() }
    }

    fn add(&mut self, right: bool, forwards: u64, tokens: u64) {
        self.runs += 1;
        self.right += usize::from(right);
        self.forwards += forwards;
        self.tokens += tokens;
    }

    fn accuracy(&self) -> f64 {
        self.right as f64 / self.runs.max(1) as f64
    }

    /// Wilson's 95 % interval of the accuracy.
    fn interval(&self) -> (f64, f64) {
        let Interval { low, high } = page::wilson(self.right, self.runs);
        (low, high)
    }

    /// The accuracy with its interval, for people.
    fn bracketed(&self) -> String {
        let (low, high) = self.interval();
        page::bracketed(self.accuracy(), Some(Interval { low, high }))
    }

    fn mean_forwards(&self) -> f64 {
        self.forwards as f64 / self.runs.max(1) as f64
    }

    fn per_forward(&self) -> f64 {
        self.tokens as f64 / self.forwards.max(1) as f64
    }

    fn point(&self) -> Point {
        Point { x: self.per_forward(), y: self.accuracy(), interval: Some(self.interval()) }
    }

    fn text(&self) -> String {
        format!("{:.3} @ {:.2}", self.accuracy(), self.per_forward())
    }
}

/// What is right, in a model's tokens.
struct Rules {
    problem: Problem,
    names: Vec<String>,
}

impl Rules {
    /// A problem and the exact model of it. Theory counts the given order of a shuffle as one of the permutations, and
    /// so do we here.
    fn of(problem: &Problem, seed: u64) -> Result<(Self, Ideal), Failure> {
        let Some((mut law, names)) = problem.law() else {
            return Err(format!("{} has no law that can be listed", problem.task).into());
        };
        if let Law::Permutation { identity, .. } = &mut law {
            *identity = true;
        }
        let model = Ideal::new(law, names.len())?.with_noise(TIES, seed)?;
        Ok((Self { problem: problem.clone(), names }, model))
    }

    /// A problem in the trained model's tokens.
    fn trained(problem: &Problem) -> Self {
        Self { problem: problem.clone(), names: trained::names() }
    }

    /// Tokens as items.
    fn words(&self, tokens: &[Token]) -> Vec<String> {
        tokens.iter().filter_map(|&token| self.names.get(token as usize).cloned()).collect()
    }

    fn is_right(&self, tokens: &[Token]) -> bool {
        let items = self.words(tokens);
        match self.problem.task {
            Task::Shuffle => {
                let (mut got, mut want) = (items, self.problem.items.clone());
                got.sort();
                want.sort();
                got == want
            }
            _ => self.problem.is_right(&items),
        }
    }
}

/// Models to decode with: an exact one for each problem, or the trained one for all.
enum World {
    Exact,
    Trained(Box<Cached>),
}

/// A problem with a model.
struct Case<'a> {
    rules: Rules,
    canvas: Canvas,
    model: Lent<'a>,
}

enum Lent<'a> {
    Own(Box<Ideal>),
    Shared(&'a mut Cached),
}

impl Lent<'_> {
    fn model(&mut self) -> &mut dyn MaskedModel {
        match self {
            Self::Own(model) => &mut **model,
            Self::Shared(model) => *model,
        }
    }
}

impl World {
    fn case(&mut self, problem: &Problem, seed: u64) -> Result<Case<'_>, Failure> {
        match self {
            Self::Exact => {
                let (rules, model) = Rules::of(problem, seed)?;
                let canvas = model.canvas();
                Ok(Case { rules, canvas, model: Lent::Own(Box::new(model)) })
            }
            Self::Trained(model) => {
                let (rules, canvas) = (Rules::trained(problem), trained::canvas(problem)?);
                Ok(Case { rules, canvas, model: Lent::Shared(model) })
            }
        }
    }
}

/// A way of decoding: a family, a setting within it, and the policy.
struct Way {
    family: &'static str,
    setting: f64,
    temperature: f64,
    policy: Box<dyn Policy>,
}

/// Thresholds of the sweep.
const GAMMAS: [f64; 6] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5];

/// The policies of the benchmark, besides thresholds, which are run together for their oracle.
fn ways() -> Result<Vec<Way>, Failure> {
    let mut ways = Vec::new();
    let mut add =
        |family, setting, temperature, policy| ways.push(Way { family, setting, temperature, policy });
    for (family, score, temperature) in [
        ("random, T=1", Score::Chance, 1.0),
        ("confidence", Score::Probability, 0.0),
        ("margin", Score::Margin, 0.0),
        ("entropy", Score::Entropy, 0.0),
        ("left to right", Score::LeftToRight, 0.0),
    ] {
        for k in [1, 2, 4, 8] {
            add(family, k as f64, temperature, Box::new(Fixed::tokens(score, k)) as Box<dyn Policy>);
        }
    }
    for f in [0.7, 1.0, 1.3, 1.6, 1.9] {
        add("factor", f, 0.0, Box::new(Factor { f, quirk: false }));
    }
    for radius in [1, 4] {
        let config = LocalLeapConfig { radius, ..LocalLeapConfig::default() };
        add("LocalLeap", radius as f64, 0.0, Box::new(LocalLeap::new(config)?));
    }
    Ok(ways)
}
