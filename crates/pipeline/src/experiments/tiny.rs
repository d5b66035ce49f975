//! Small transformers over letters, trained from scratch.

#![allow(clippy::result_large_err)] // training's errors, once a run

use std::ops::ControlFlow;

use candle_core::DType;
use pilotfish_architectures::{CausalConfig, CausalNetwork};
use pilotfish_graph::Graph;
use pilotfish_model::Streams;
use pilotfish_training::{
    Decay, Interpreter, Mean, Precision, Schedule, Task, TextTask, Trainer, TrainerConfig, Warmup,
    causal_inputs,
};
use rand::Rng;

use crate::error::Failure;

/// Letters; a token is a letter's place. The last one ends a text.
#[derive(Clone, Copy)]
pub(super) struct Letters(pub(super) &'static str);

impl Letters {
    pub(super) fn encode(self, text: &str) -> Result<Vec<u32>, Failure> {
        text.chars()
            .map(|letter| match self.0.chars().position(|known| known == letter) {
                Some(at) => Ok(at as u32),
                None => Err(Failure::from(format!("{letter:?} is no letter of this alphabet"))),
            })
            .collect()
    }

    pub(super) fn decode(self, tokens: &[u32]) -> String {
        tokens.iter().filter_map(|token| self.0.chars().nth(*token as usize)).collect()
    }

    pub(super) fn end(self) -> u32 {
        self.0.chars().count().saturating_sub(1) as u32
    }
}

/// A network at its start: width, layers, four heads.
pub(super) fn network(letters: Letters, width: usize, layers: usize, seed: u64) -> Result<Graph, Failure> {
    Ok(causal(letters, width, layers, seed)?.whole("B".into(), "T".into())?)
}

/// The same, not yet a graph.
pub(super) fn causal(
    letters: Letters,
    width: usize,
    layers: usize,
    seed: u64,
) -> Result<CausalNetwork, Failure> {
    let vocab = letters.0.chars().count();
    let config =
        CausalConfig { tied: false, ..CausalConfig::llama(vocab, width, layers, [4, 4], width * 8 / 3) };
    Ok(CausalNetwork::random(config, seed)?)
}

/// Settings of a run from scratch, or of fine-tuning at a lower rate: warm-up of 3 %, cosine to a tenth.
pub(super) fn settings(steps: u64, batch: usize, lr: f64, seed: u64) -> TrainerConfig {
    let warmup = Warmup::FromFirst { steps: steps.div_ceil(33) };
    let schedule = Schedule { warmup, decay: Decay::Cosine, floor: 0.1 };
    TrainerConfig { steps, batch, lr, schedule, seed, ..TrainerConfig::default() }
}

/// Trains a graph.
pub(super) fn train(graph: &Graph, task: &impl Task, settings: TrainerConfig) -> Result<Graph, Failure> {
    let mut trainer = Trainer::new(graph, settings, Precision::F32)?;
    trainer.run(task, None, |_| ControlFlow::Continue(()))?;
    Ok(trainer.graph()?)
}

/// Prompts with their responses, as a task of fine-tuning.
pub(super) fn responses(letters: Letters, rows: &[(String, String)]) -> Result<TextTask, Failure> {
    let mut task = TextTask { mean: Mean::Texts, ..TextTask::new(Vec::new()) };
    for (prompt, response) in rows {
        let prompt = letters.encode(prompt)?;
        task.prompts.push(prompt.len());
        task.texts.push([prompt, letters.encode(response)?].concat());
    }
    Ok(task)
}

/// Evaluates a graph.
pub(super) fn net(graph: &Graph) -> Result<Interpreter, Failure> {
    Ok(Interpreter::new(graph, Precision::F32)?)
}

/// Prompts that go through the network together.
const TOGETHER: usize = 128;

/// Continues prompts up to the end letter, which is kept, or to `most` letters: the most probable letter each time, or
/// drawn at a temperature, each prompt from a stream of its own.
pub(super) fn complete(
    net: &Interpreter,
    letters: Letters,
    prompts: &[String],
    most: usize,
    drawn: Option<(f64, Streams)>,
) -> Result<Vec<String>, Failure> {
    let mut out = vec![String::new(); prompts.len()];
    let numbers: Vec<usize> = (0..prompts.len()).collect();
    for chunk in numbers.chunks(TOGETHER) {
        let mut texts =
            chunk.iter().map(|&at| letters.encode(&prompts[at])).collect::<Result<Vec<_>, _>>()?;
        let starts: Vec<usize> = texts.iter().map(Vec::len).collect();
        let mut rngs: Vec<_> = chunk
            .iter()
            .map(|&at| drawn.map(|(_, streams)| streams.fork(at as u64).stream("letters")))
            .collect();
        let mut open: Vec<usize> = (0..chunk.len()).collect();
        for _ in 0..most {
            if open.is_empty() {
                break;
            }
            let batch: Vec<Vec<u32>> = open.iter().map(|&at| texts[at].clone()).collect();
            let mut outputs = net.forward(&causal_inputs(&batch, None, Precision::F32)?)?;
            let logits = outputs.remove("logits").ok_or("the network has no logits")?.to_dtype(DType::F32)?;
            let (_, width, vocab) = logits.dims3()?;
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            let mut still = Vec::new();
            for (row, &at) in open.iter().enumerate() {
                let start = (row * width + texts[at].len() - 1) * vocab;
                let token =
                    pick(&logits[start..start + vocab], drawn.map(|(by, _)| by).zip(rngs[at].as_mut()));
                texts[at].push(token);
                if token != letters.end() {
                    still.push(at);
                }
            }
            open = still;
        }
        for (row, &at) in chunk.iter().enumerate() {
            out[at] = letters.decode(&texts[row][starts[row]..]);
        }
    }
    Ok(out)
}

/// The most probable entry, or a draw at a temperature.
fn pick(logits: &[f32], drawn: Option<(f64, &mut pilotfish_model::StreamRng)>) -> u32 {
    let best = (1..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
    let Some((temperature, rng)) = drawn else { return best as u32 };
    let weights: Vec<f64> =
        logits.iter().map(|logit| (f64::from(logit - logits[best]) / temperature).exp()).collect();
    let mut rest = rng.random::<f64>() * weights.iter().sum::<f64>();
    for (at, weight) in weights.iter().enumerate() {
        rest -= weight;
        if rest < 0.0 {
            return at as u32;
        }
    }
    best as u32
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LETTERS: Letters = Letters("ab.");

    #[test]
    fn letters_and_back() {
        assert_eq!(LETTERS.encode("ab.").unwrap(), [0, 1, 2]);
        assert_eq!((LETTERS.decode(&[1, 0, 2]), LETTERS.end()), ("ba.".to_owned(), 2));
        assert!(LETTERS.encode("c").is_err());
    }

    #[test]
    fn draws_follow_the_law_and_greed_does_not_draw() {
        let logits = [0.0, 3f32.ln(), -100.0];
        assert_eq!(pick(&logits, None), 1);
        let mut rng = Streams::new(1).stream("draws");
        let ones = (0..4000).filter(|_| pick(&logits, Some((1.0, &mut rng))) == 1).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000 at 3/4");
        let cold = (0..100).filter(|_| pick(&logits, Some((1e-3, &mut rng))) == 1).count();
        assert_eq!(cold, 100);
    }

    /// A network says what it was taught, whatever else is in its batch, and the same again when drawn. Without
    /// positions of their own, texts of one letter differ in nothing but length, which it could not tell.
    #[test]
    fn what_was_learnt_is_said() {
        let rows: Vec<(String, String)> =
            [("a", "."), ("b", "ab."), ("ab", "b.")].map(|(p, r)| (p.into(), r.into())).to_vec();
        let graph = network(LETTERS, 16, 2, 1).unwrap();
        let task = responses(LETTERS, &rows).unwrap();
        assert_eq!(task.prompts, [1, 1, 2]);
        let graph = train(&graph, &task, settings(300, 3, 1e-2, 1)).unwrap();
        let net = net(&graph).unwrap();
        let prompts: Vec<String> = rows.iter().map(|row| row.0.clone()).collect();
        let want: Vec<String> = rows.iter().map(|row| row.1.clone()).collect();
        assert_eq!(complete(&net, LETTERS, &prompts, 5, None).unwrap(), want);
        assert_eq!(complete(&net, LETTERS, &prompts, 1, None).unwrap(), [".", "a", "b"]);
        let drawn = |seed| complete(&net, LETTERS, &prompts, 5, Some((3.0, Streams::new(seed)))).unwrap();
        assert_eq!(drawn(1), drawn(1));
        assert!((2..8).any(|seed| drawn(seed) != drawn(1)));
    }
}
