//! The small masked diffusion model that learns list tasks: its tokens, its training, and where it is kept.
//!
//! A text is `[task] [index or NONE] [new letter or NONE] x1..x8 [SEP] y1..y8`; the answer `y` alone is noised. The recipe
//! is that of the notes on masked diffusion (three layers of width 64 and four heads, AdamW, cosine), but for the mix:
//! the two tasks whose answer is a choice, which are learned slowly, come twice as often as the others.

use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::time::Instant;

use pilotfish_architectures::{MaskedNetwork, SmallMasked, SmallMaskedConfig};
use pilotfish_diffusion::parallelbench::{Items, Problem, Task, generate_of_length};
use pilotfish_diffusion::{Canvas, DiffusionConfig};
use pilotfish_model::{Streams, Token};
use pilotfish_runtime::{OnnxMasked, SessionConfig};
use pilotfish_training::losses::Masking;
use pilotfish_training::{
    Adam, Checkpoints, Decay, MaskedTask, OptimizerConfig, Order, Precision, Schedule, Task as Learnable,
    Trainer, TrainerConfig, Warmup,
};
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Failure;
use crate::experiments::{Choice, Context, Options};
use crate::masked::Cached;
use crate::steps::Run;

/// Tasks that are learned.
pub(super) const TASKS: [Task; 6] =
    [Task::Copy, Task::ReplaceIndex, Task::Reverse, Task::Sort, Task::ReplaceRandom, Task::Shuffle];
/// Items of a list.
pub(super) const ITEMS: usize = 8;
/// Where answers lie.
pub(super) const ANSWER: Range<usize> = 12..20;
/// The mask token.
pub(super) const MASK: Token = 26;

const LETTERS: usize = 26;
const SEP: Token = 27;
const NONE: Token = 28;
const FIRST_TASK: Token = 29;
const FIRST_INDEX: Token = 35;
/// The mix: one text in eight for each entry.
const MIX: [usize; 8] = [0, 1, 2, 3, 4, 4, 5, 5];
/// Steps between checkpoints.
const SEGMENT: u64 = 250;
/// Steps between entries of the log of losses.
const LOGGED: u64 = 25;

/// Options of every experiment with the trained model; the same ones mean the same model.
pub(super) const STEPS: Choice =
    Choice { name: "train-steps", default: "3000", about: "steps of the small model's training" };
pub(super) const BATCH: Choice = Choice { name: "train-batch", default: "64", about: "texts a step" };
pub(super) const SEED: Choice = Choice { name: "train-seed", default: "1", about: "seed of the small model" };

/// What determines the model.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) steps: u64,
    pub(super) batch: usize,
    pub(super) seed: u64,
}

impl Settings {
    pub(super) fn of(options: &Options) -> Result<Self, Failure> {
        let settings = Self {
            steps: options.get("train-steps")?,
            batch: options.get("train-batch")?,
            seed: options.get("train-seed")?,
        };
        if settings.steps == 0 || settings.batch == 0 {
            return Err("--train-steps and --train-batch must be at least 1".into());
        }
        Ok(settings)
    }

    fn trainer(&self) -> TrainerConfig {
        TrainerConfig {
            optimizer: OptimizerConfig::AdamW(Adam {
                betas: [0.9, 0.98],
                weight_decay: 0.01,
                ..Adam::default()
            }),
            lr: 2e-3,
            schedule: Schedule {
                warmup: Warmup::FromFirst { steps: 100.min(self.steps / 10) },
                decay: Decay::Cosine,
                floor: 0.05,
            },
            steps: self.steps,
            batch: self.batch,
            clip: Some(1.0),
            seed: self.seed,
            order: Order::Given,
            ..TrainerConfig::default()
        }
    }
}

/// A number of the log of a training run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Logged {
    pub(super) step: u64,
    /// Mean over the steps since the last entry.
    pub(super) loss: f64,
    pub(super) seconds: f64,
}

/// The model, and how it came about.
pub(super) struct Trained {
    pub(super) network: SmallMasked,
    pub(super) log: Vec<Logged>,
    pub(super) settings: Settings,
}

impl Trained {
    /// The model on ONNX Runtime.
    pub(super) fn load(&self) -> Result<Cached, Failure> {
        let name = format!("small masked model, {} steps", self.settings.steps);
        Ok(Cached(OnnxMasked::from_network(&name, &self.network, &SessionConfig::default())?))
    }
}

/// Sizes of the model.
pub(super) fn sizes() -> SmallMaskedConfig {
    SmallMaskedConfig {
        vocab: 43,
        width: 64,
        layers: 3,
        heads: 4,
        ffn: 256,
        context: ANSWER.end,
        mask: MASK,
        outputs: LETTERS,
    }
}

/// How many training steps a run's bar has to expect.
pub(super) fn segments(settings: &Settings) -> u64 {
    settings.steps.div_ceil(SEGMENT)
}

/// The model of some settings: from the cache folder, trained as far as it is not there.
pub(super) fn ready(context: &Context, run: &mut Run, settings: Settings) -> Result<Trained, Failure> {
    let config = settings.trainer();
    let folder = folder(context, "masked-lists", &(&config, sizes(), MIX))?;
    let start = SmallMasked::random(sizes(), settings.seed)?;
    let mut trainer = Trainer::new(&start.whole()?, config, Precision::F32)?;
    let task = MaskedTask {
        items: settings.steps as usize * settings.batch,
        text: |item| text(settings.seed, item as u64),
        masking: Masking { mask: MASK, eps: 1e-3, stratified: true },
        shift: false,
    };
    let log = learn(run, &folder, SEGMENT, &mut trainer, &task)?;
    Ok(Trained { network: start.with_parameters(&trainer.graph()?)?, log, settings })
}

/// Where a model lies that is determined by some settings.
pub(super) fn folder(context: &Context, name: &str, settings: &impl Serialize) -> Result<PathBuf, Failure> {
    let json = serde_json::to_string(settings)?;
    let digest = Sha256::digest(format!("{} {json}", env!("CARGO_PKG_VERSION")));
    let key: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    Ok(context.home().root().join("trained").join(format!("{name}-{key}")))
}

/// Trains to the end, from the folder's newest checkpoint on, in segments that are steps of the run.
pub(super) fn learn(
    run: &mut Run,
    folder: &Path,
    segment: u64,
    trainer: &mut Trainer,
    task: &impl Learnable,
) -> Result<Vec<Logged>, Failure> {
    let checkpoints = Checkpoints::new(folder, segment, 2)?;
    let (_, spoilt) = checkpoints.restore(trainer)?;
    for error in spoilt {
        tracing::warn!(%error, "a checkpoint that cannot be read is passed over");
    }
    let (log, steps) = (folder.join("losses.jsonl"), trainer.config().steps);
    for at in 1..=steps.div_ceil(segment) {
        let end = (at * segment).min(steps);
        // An interruption is noticed here; what was done lies in the checkpoint.
        run.step(&format!("model trained to step {end}"), || {
            advance(trainer, task, &checkpoints, end, &log).map(|()| end)
        })?;
        // The run may remember a step whose checkpoint is gone.
        advance(trainer, task, &checkpoints, end, &log)?;
    }
    Ok(read_log(&log))
}

/// Trains up to a step, if that is ahead, and logs losses.
fn advance(
    trainer: &mut Trainer,
    task: &impl Learnable,
    checkpoints: &Checkpoints,
    end: u64,
    log: &Path,
) -> Result<(), Failure> {
    if trainer.steps_done() >= end {
        return Ok(());
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let (mut sum, mut count, mut began) = (0.0, 0u32, Instant::now());
    let mut lines = Vec::new();
    trainer.run(task, Some(checkpoints), |at| {
        sum += at.loss;
        count += 1;
        if at.step % LOGGED == 0 || at.step == end {
            let (loss, seconds) = (sum / f64::from(count), began.elapsed().as_secs_f64());
            lines.push(Logged { step: at.step, loss, seconds });
            (sum, count, began) = (0.0, 0, Instant::now());
        }
        if at.step >= end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    for line in lines {
        writeln!(file, "{}", serde_json::to_string(&line)?)?;
    }
    Ok(())
}

/// The log in order; of what was logged twice, the last.
fn read_log(path: &Path) -> Vec<Logged> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let all = text.lines().filter_map(|line| serde_json::from_str::<Logged>(line).ok());
    let by_step: std::collections::BTreeMap<u64, Logged> = all.map(|line| (line.step, line)).collect();
    by_step.into_values().collect()
}

fn letter(name: &str) -> Token {
    name.bytes().next().map_or(NONE, |byte| Token::from(byte.wrapping_sub(b'A')))
}

/// The letters of tokens, for scoring.
pub(super) fn names() -> Vec<String> {
    ('A'..='Z').map(String::from).collect()
}

/// A problem with its answer masked.
///
/// # Errors
/// A task that is not learned, or a list of another length.
pub(super) fn canvas(problem: &Problem) -> Result<Canvas, Failure> {
    let at = TASKS.iter().position(|task| *task == problem.task).filter(|_| problem.items.len() == ITEMS);
    let at = at.ok_or_else(|| format!("{} of {} items is not learned", problem.task, problem.items.len()))?;
    let mut tokens = vec![
        FIRST_TASK + at as Token,
        problem.index.map_or(NONE, |index| FIRST_INDEX + index as Token),
        problem.word.as_deref().map_or(NONE, letter),
    ];
    tokens.extend(problem.items.iter().map(|item| letter(item)));
    tokens.push(SEP);
    tokens.resize(ANSWER.end, MASK);
    Ok(Canvas { tokens, region: ANSWER })
}

/// A text with an answer drawn from those that are right.
pub(super) fn answered(problem: &Problem, streams: Streams) -> Result<Vec<Token>, Failure> {
    let mut rng = streams.stream("answer");
    let answer: Vec<String> = match problem.answers() {
        Some(answers) => answers.choose(&mut rng).cloned().unwrap_or_default(),
        None => {
            let mut order = problem.items.clone();
            while order == problem.items {
                order.shuffle(&mut rng);
            }
            order
        }
    };
    let mut tokens = canvas(problem)?.tokens;
    tokens.truncate(ANSWER.start);
    tokens.extend(answer.iter().map(|item| letter(item)));
    Ok(tokens)
}

/// A training text.
fn text(seed: u64, item: u64) -> (Vec<Token>, Range<usize>) {
    let streams = Streams::new(seed).fork(item);
    let task = TASKS[MIX[(item % MIX.len() as u64) as usize]];
    let tokens = generate_of_length(task, Items::Letters, ITEMS, 1, streams.seed())
        .ok()
        .and_then(|problems| answered(problems.first()?, streams).ok())
        // Eight of 26 letters can always be drawn.
        .unwrap_or_default();
    (tokens, ANSWER)
}

/// Problems that no training text was made of.
pub(super) fn held_out(task: Task, count: usize, seed: u64) -> Result<Vec<Problem>, Failure> {
    Ok(generate_of_length(task, Items::Letters, ITEMS, count, seed ^ 0x686f_6c64_6f75_7400)?)
}

/// Settings of a decoder of one answer.
pub(super) fn decoding(temperature: f64, seed: u64) -> DiffusionConfig {
    DiffusionConfig { temperature, seed, ..DiffusionConfig::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_by_hand() {
        let items = ["Q", "C", "A", "Z", "B", "M", "T", "E"].map(String::from).to_vec();
        let problem =
            Problem { task: Task::ReplaceIndex, items, word: Some("K".into()), index: Some(2), count: None };
        let text = answered(&problem, Streams::new(1)).expect("learned");
        assert_eq!(text[..3], [30, 37, 10]);
        assert_eq!(text[3..11], [16, 2, 0, 25, 1, 12, 19, 4]);
        assert_eq!(text[11..], [27, 16, 2, 10, 25, 1, 12, 19, 4]);
        assert_eq!(canvas(&problem).expect("learned").tokens[12..], [26; 8]);
        let longer = Problem { items: problem.items[..7].to_vec(), ..problem };
        assert!(canvas(&longer).is_err());
    }

    #[test]
    fn training_texts_are_right_and_the_same_everywhere() {
        let mut seen = std::collections::BTreeMap::<Token, usize>::new();
        for item in 0..400 {
            let (tokens, answer) = text(7, item);
            assert_eq!((tokens.len(), answer), (20, ANSWER));
            let (x, y) = (&tokens[3..11], &tokens[12..20]);
            let changed = x.iter().zip(y).filter(|(x, y)| x != y).count();
            let sorted = |letters: &[Token]| {
                let mut letters = letters.to_vec();
                letters.sort_unstable();
                letters
            };
            match tokens[0] - FIRST_TASK {
                0 => assert_eq!(x, y),
                1 => assert!(changed == 1 && y[(tokens[1] - FIRST_INDEX) as usize] == tokens[2]),
                2 => assert!(x.iter().rev().eq(y)),
                3 => assert_eq!(sorted(x), y),
                4 => assert!(changed == 1 && y.contains(&tokens[2]) && tokens[1] == NONE),
                _ => assert!(changed > 1 && sorted(x) == sorted(y)),
            }
            *seen.entry(tokens[0]).or_default() += 1;
        }
        assert_eq!(seen.into_values().collect::<Vec<_>>(), [50, 50, 50, 50, 100, 100]);
        assert_eq!(text(7, 3), text(7, 3));
    }
}
