//! Pruners side by side on a language model: perplexity, and how well each layer's outputs are kept.

use std::time::Instant;

use pilotfish_architectures::{Checkpoint, Tokenizer};
use pilotfish_evaluation::{Effect, Interval, PairedConfig, compare, texts};
use pilotfish_model::Token;
use pilotfish_sparsity::sequential::{Patterns, advance, prune_network, with_matrices};
use pilotfish_sparsity::{LayerReport, Pattern, Pruner, Skip};
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page};
use super::session::{MODEL, ratio};
use super::sparse_speed::Timed;
use super::{Choice, Context, Experiment, Outcome, width_cost};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::sparse::{Decoder, FolderStore, OnnxEngine, samples, windows};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const PRUNE: Experiment = Experiment {
    name: "prune",
    about: "magnitude, Wanda, SparseGPT and DSnoT on a language model: perplexity and reconstruction errors",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        MODEL,
        Choice { name: "methods", default: "magnitude,wanda,sparsegpt,wanda+dsnot", about: "pruners" },
        Choice { name: "pattern", default: "2:4,0.5,0.7", about: "shares of zeros, or N:M" },
        Choice { name: "calib", default: "", about: "file of calibration text (Persuasion)" },
        Choice { name: "text", default: "", about: "file of evaluation text (Northanger Abbey)" },
        Choice { name: "sequences", default: "16", about: "calibration sequences" },
        Choice { name: "length", default: "256", about: "tokens of each" },
        Choice { name: "tokens", default: "6144", about: "tokens to evaluate on" },
        Choice { name: "window", default: "256", about: "tokens a window of the evaluation" },
        Choice {
            name: "skip",
            default: "mlp",
            about: "layers that DSnoT leaves alone: mlp, attention, none",
        },
        Choice { name: "seeds", default: "0", about: "seeds of the calibration sequences" },
        Choice { name: "threads", default: "1", about: "threads" },
        Choice {
            name: "times",
            default: "false",
            about: "write down seconds, memory and the speed of decoding too",
        },
    ],
    run,
};

/// What a model costs on the evaluation text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Score {
    /// Nats of each window.
    pub(super) nats: Vec<f64>,
    /// Tokens predicted a window.
    pub(super) tokens: usize,
}

impl Score {
    pub(super) fn perplexity(&self) -> f64 {
        (self.nats.iter().sum::<f64>() / (self.nats.len() * self.tokens).max(1) as f64).exp()
    }

    /// Perplexity over another's on the same windows, with a bootstrap interval over windows.
    pub(super) fn against(&self, other: &Self) -> Result<Effect, Failure> {
        let difference = compare(&self.nats, &other.nats, &PairedConfig::default())?.difference;
        let ratio = |nats: f64| (nats / self.tokens.max(1) as f64).exp();
        let interval = |own: Interval| Interval { low: ratio(own.low), high: ratio(own.high) };
        Ok(Effect { value: ratio(difference.value), interval: difference.interval.map(interval) })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    score: Score,
    layers: Vec<LayerReport>,
    /// Seconds of the whole pruning, calibration passes included; of the evaluation; bytes in memory at most.
    seconds: Option<[f64; 2]>,
    bytes: Option<u64>,
}

impl Cell {
    /// The error of all layers' outputs: the mean of their relative squared errors.
    fn error(&self, of: impl Fn(&LayerReport) -> f64) -> f64 {
        self.layers.iter().map(of).sum::<f64>() / self.layers.len().max(1) as f64
    }

    fn sparsity(&self) -> f64 {
        let count = |layer: &LayerReport| (layer.shape[0] * layer.shape[1]) as f64;
        let zeros: f64 = self.layers.iter().map(|layer| layer.sparsity * count(layer)).sum();
        zeros / self.layers.iter().map(count).sum::<f64>().max(1.0)
    }
}

/// A text of the options, or one of our own, as tokens.
pub(super) fn tokens(tokenizer: &Tokenizer, file: &str, own: &str) -> Result<Vec<Token>, Failure> {
    let text = match file {
        "" => own.to_owned(),
        path => std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?,
    };
    Ok(tokenizer.encode(&text, false)?)
}

/// Texts and settings that every cell shares.
struct Setting<'a> {
    decoder: Decoder<'a>,
    calibration: Vec<Token>,
    evaluation: Vec<Vec<Token>>,
    sequences: usize,
    length: usize,
    threads: usize,
    times: bool,
}

impl Setting<'_> {
    fn dense(&self) -> Result<Score, Failure> {
        let mut engine = OnnxEngine::new(self.threads)?;
        let mut hidden = self.embedded(&self.evaluation)?;
        for index in 0..pilotfish_sparsity::sequential::Layers::count(&self.decoder) {
            let graph = pilotfish_sparsity::sequential::Layers::layer(&self.decoder, index)?;
            advance(&self.decoder, &graph, &mut hidden, &mut engine)?;
        }
        self.score(&hidden, &mut engine)
    }

    fn embedded(&self, texts: &[Vec<Token>]) -> Result<Vec<Vec<f32>>, Failure> {
        Ok(texts.iter().map(|text| self.decoder.embed(text)).collect::<Result<_, _>>()?)
    }

    fn score(&self, hidden: &[Vec<f32>], engine: &mut OnnxEngine) -> Result<Score, Failure> {
        let nats = self.decoder.nats(hidden, &self.evaluation, engine)?;
        Ok(Score { nats, tokens: self.evaluation.first().map_or(0, Vec::len).saturating_sub(1) })
    }

    fn cell(
        &self,
        pattern: Pattern,
        pruner: &Pruner,
        seed: u64,
        store: FolderStore,
    ) -> Result<Cell, Failure> {
        let clock = Instant::now();
        let texts = samples(&self.calibration, self.sequences, self.length, seed)?;
        let mut hidden = self.embedded(&texts)?;
        let mut evaluated = self.embedded(&self.evaluation)?;
        let mut engine = OnnxEngine::new(self.threads)?;
        let mut second = OnnxEngine::new(self.threads)?;
        let (mut layers, mut failed, mut evaluating, mut bytes) = (Vec::new(), None, 0.0, None);
        prune_network(
            &self.decoder,
            &mut hidden,
            &mut engine,
            &Patterns::all(pattern),
            pruner,
            true,
            &mut store.clone(),
            &mut |index, pruned| {
                bytes = bytes.max(resident());
                let clock = Instant::now();
                layers.extend(pruned.reports.iter().cloned());
                // The evaluation text follows through the pruned layer while it is at hand.
                let followed = pilotfish_sparsity::sequential::Layers::layer(&self.decoder, index)
                    .and_then(|graph| with_matrices(&graph, &pruned.matrices))
                    .and_then(|graph| advance(&self.decoder, &graph, &mut evaluated, &mut second));
                failed = failed.take().or(followed.err());
                evaluating += clock.elapsed().as_secs_f64();
            },
        )?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let pruning = clock.elapsed().as_secs_f64() - evaluating;
        let clock = Instant::now();
        let score = self.score(&evaluated, &mut second)?;
        evaluating += clock.elapsed().as_secs_f64();
        store.clear()?;
        if !self.times {
            // Two runs with one seed give one file.
            layers.iter_mut().for_each(|layer: &mut LayerReport| layer.seconds = 0.0);
        }
        let seconds = self.times.then_some([pruning, evaluating]);
        Ok(Cell { score, layers, seconds, bytes: bytes.filter(|_| self.times) })
    }
}

/// Bytes of memory in use, where the system says so.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

pub(super) fn skip(text: &str) -> Result<Skip, Failure> {
    match text {
        "mlp" => Ok(Skip::Mlp),
        "attention" => Ok(Skip::Attention),
        "none" => Ok(Skip::None),
        other => Err(format!("--skip {other:?}: mlp, attention or none").into()),
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let skip = skip(options.text("skip")?)?;
    let patterns = options.list::<Pattern>("pattern")?;
    let mut pruners = options
        .list::<String>("methods")?
        .iter()
        .map(|name| name.parse())
        .collect::<Result<Vec<Pruner>, _>>()?;
    pruners.iter_mut().filter_map(|pruner| pruner.dsnot.as_mut()).for_each(|dsnot| dsnot.skip = skip);
    let seeds = options.list::<u64>("seeds")?;
    if patterns.is_empty() || pruners.is_empty() || seeds.is_empty() {
        return Err("--pattern, --methods and --seeds each need at least one entry".into());
    }
    let began = Began::now();
    let checkpoint: Checkpoint = width_cost::checkpoint(context, options.text("model")?)?;
    let tokenizer = checkpoint.tokenizer()?;
    let evaluation = tokens(&tokenizer, options.text("text")?, texts::NORTHANGER_ABBEY)?;
    let setting = Setting {
        decoder: Decoder::new(checkpoint.causal()?),
        calibration: tokens(&tokenizer, options.text("calib")?, texts::PERSUASION)?,
        evaluation: windows(&evaluation, options.get("tokens")?, options.get("window")?)?,
        sequences: options.get("sequences")?,
        length: options.get("length")?,
        threads: options.get("threads")?,
        times: options.get("times")?,
    };
    let mut run = Run::open(context.results(), PRUNE.name, options, context.fresh(), context.is_quiet())?;
    let grouped = patterns.iter().filter(|pattern| matches!(pattern, Pattern::Grouped { .. })).count();
    let timed = if setting.times { grouped } else { 0 };
    run.expect((1 + patterns.len() * pruners.len() * seeds.len() + timed) as u64);
    let dense: Score = run.step("dense", || setting.dense())?;
    let mut cells = Vec::new();
    for &pattern in &patterns {
        for pruner in &pruners {
            for &seed in &seeds {
                let id = format!("{pattern} {} seed {seed}", pruner.name());
                let folder = run.folder().join(id.replace([' ', ':'], "-"));
                let cell: Cell =
                    run.step(&id, || setting.cell(pattern, pruner, seed, FolderStore::new(&folder)?))?;
                cells.push((pattern, pruner.name(), seed, cell));
            }
        }
    }
    let mut decoding = Vec::new();
    for &pattern in &patterns {
        // Zeros without a pattern have no kernel, and two runs with one seed give one file unless times are asked for.
        let (Pattern::Grouped { keep, group }, true) = (pattern, setting.times) else { continue };
        let text = &evaluation[..evaluation.len().min(128)];
        let timed: Timed = run.step(&format!("decoding at {pattern}"), || {
            Timed::packed(checkpoint.causal()?, text.to_vec(), [keep, group], setting.threads)
        })?;
        decoding.push((pattern, timed));
    }
    page(context, &run, began, &setting, &dense, &cells, &decoding, &seeds)
}

type Row = (Pattern, &'static str, u64, Cell);

#[allow(clippy::too_many_arguments)]
fn page(
    context: &Context,
    run: &Run,
    began: Began,
    setting: &Setting<'_>,
    dense: &Score,
    cells: &[Row],
    decoding: &[(Pattern, Timed)],
    seeds: &[u64],
) -> Outcome {
    let mut table = Table::new(
        "Perplexity, and relative squared errors of layers' outputs and of their means over the calibration text",
        &[
            "pattern",
            "method",
            "seed",
            "zeros",
            "perplexity",
            "over dense",
            "error",
            "error of the mean",
            "swaps",
        ],
    );
    table.row([
        "dense".into(),
        "".into(),
        "".into(),
        "0".into(),
        format!("{:.2}", dense.perplexity()),
        "1".into(),
        "0".into(),
        "0".into(),
        "".to_owned(),
    ]);
    for (pattern, method, seed, cell) in cells {
        table.row([
            pattern.to_string(),
            (*method).to_owned(),
            seed.to_string(),
            format!("{:.4}", cell.sparsity()),
            format!("{:.2}", cell.score.perplexity()),
            ratio(&cell.score.against(dense)?),
            format!("{:.4}", cell.error(|layer| layer.error.unwrap_or(0.0))),
            format!("{:.5}", cell.error(|layer| layer.mean_error)),
            cell.layers.iter().map(|layer| layer.swaps).sum::<usize>().to_string(),
        ]);
    }
    let mut tables = vec![table];
    if setting.times {
        let mut table = Table::new(
            "Time and memory",
            &["pattern", "method", "seconds to prune", "seconds to evaluate", "resident, MB"],
        );
        for (pattern, method, _, cell) in cells {
            let [prune, evaluate] = cell.seconds.unwrap_or_default();
            let bytes = cell.bytes.map_or("".into(), |bytes| format!("{}", bytes >> 20));
            table.row([
                pattern.to_string(),
                (*method).to_owned(),
                format!("{prune:.1}"),
                format!("{evaluate:.1}"),
                bytes,
            ]);
        }
        tables.push(table);
    }
    if !decoding.is_empty() {
        let mut table = Table::new(
            "Decoding with packed kernels, f32, one row, whichever method chose the weights",
            &["pattern", "ms a step", "dense ms", "speed-up", "MB held", "dense MB"],
        );
        for (pattern, timed) in decoding {
            let ([ms, dense], bytes) = timed.medians();
            let [held, dense_held] = bytes.map(|bytes| format!("{:.0}", bytes as f64 / 1e6));
            let [middle, ..] = timed.speed_up();
            table.row([
                pattern.to_string(),
                format!("{ms:.2}"),
                format!("{dense:.2}"),
                format!("{middle:.2}x"),
                held,
                dense_held,
            ]);
        }
        tables.push(table);
    }
    let mut methods: Vec<&str> = Vec::new();
    cells.iter().for_each(|cell| {
        if !methods.contains(&cell.1) {
            methods.push(cell.1)
        }
    });
    let point = |cell: &Row| match cell.0 {
        Pattern::Unstructured { sparsity } => {
            Some(Point { x: sparsity, y: cell.3.score.perplexity().ln(), interval: None })
        }
        _ => None,
    };
    let series = methods
        .iter()
        .map(|method| Series {
            name: (*method).into(),
            points: cells
                .iter()
                .filter(|cell| cell.1 == *method && cell.2 == seeds[0])
                .filter_map(point)
                .collect(),
        })
        .filter(|series| series.points.len() > 1)
        .collect::<Vec<_>>();
    let plots = match series.is_empty() {
        true => Vec::new(),
        false => vec![page::lines("Perplexity against sparsity", "share of zeros", "ln perplexity", series)],
    };
    let shape = shape(cells, seeds)?;
    let predicted = dense.nats.len() * dense.tokens;
    let summary = format!(
        "{} calibration sequences of {} tokens, {predicted} predicted tokens. Dense perplexity {:.2}. {shape}",
        setting.sequences,
        setting.length,
        dense.perplexity(),
    );
    let mut rows =
        vec![serde_json::json!({ "method": "dense", "perplexity": dense.perplexity(), "score": dense })];
    rows.extend(cells.iter().map(|(pattern, method, seed, cell)| {
        serde_json::json!({
            "pattern": pattern, "method": method, "seed": seed, "perplexity": cell.score.perplexity(),
            "sparsity": cell.sparsity(), "cell": cell,
        })
    }));
    let mut notes = vec![
        "Every linear layer but the head is pruned to the pattern; each layer is calibrated on what the pruned layers before it give.".into(),
        "Perplexity over windows that share nothing, each window's first token not counted. Calibration and evaluation are different novels.".into(),
        "The errors are means over layers of ||(W' - W) X||^2 / ||W X||^2, and of the same with the mean input in place of X.".into(),
    ];
    notes.extend(refined(cells, seeds));
    Page {
        experiment: &PRUNE,
        title: "Pruning a language model".into(),
        summary,
        seeds: seeds.to_vec(),
        rows,
        tables,
        plots,
        notes,
    }
    .write(context, run, began)
}

/// In how many of the layers that DSnoT changed the error of the mean is below that of the mask it began with.
fn refined(cells: &[Row], seeds: &[u64]) -> Option<String> {
    let mut said = Vec::new();
    for (pattern, method, seed, after) in cells.iter().filter(|cell| cell.2 == seeds[0]) {
        let Some(base) = method.strip_suffix("+dsnot") else { continue };
        let before = cells.iter().find(|cell| (cell.0, cell.1, cell.2) == (*pattern, base, *seed));
        let Some((_, _, _, before)) = before else { continue };
        let pairs = before.layers.iter().zip(&after.layers).filter(|(_, after)| after.swaps > 0);
        let (touched, lower) = pairs.fold((0, 0), |(touched, lower), (before, after)| {
            (touched + 1, lower + usize::from(after.mean_error < before.mean_error))
        });
        said.push(format!("{lower} of {touched} layers at {pattern} ({base})"));
    }
    let list = said.join(", ");
    (!said.is_empty()).then(|| {
        format!("DSnoT lowers the error of the mean, against the mask it begins with, in {list}; each model's layers have inputs of their own.")
    })
}

/// The order of methods at each pattern, each against the one before it.
fn shape(cells: &[Row], seeds: &[u64]) -> Result<String, Failure> {
    let mut patterns: Vec<Pattern> = Vec::new();
    cells.iter().for_each(|cell| {
        if !patterns.contains(&cell.0) {
            patterns.push(cell.0)
        }
    });
    let order = |pattern: &Pattern| -> Result<String, Failure> {
        let mut row: Vec<(&str, &Score)> = cells
            .iter()
            .filter(|cell| cell.0 == *pattern && cell.2 == seeds[0])
            .map(|cell| (cell.1, &cell.3.score))
            .collect();
        row.sort_by(|a, b| a.1.perplexity().total_cmp(&b.1.perplexity()));
        let mut listed = Vec::new();
        for (at, (name, score)) in row.iter().enumerate() {
            let before = at.checked_sub(1).map(|before| score.against(row[before].1)).transpose()?;
            let before =
                before.map_or(String::new(), |effect| format!(" ({} the one before)", ratio(&effect)));
            listed.push(format!("{name} {:.2}{before}", score.perplexity()));
        }
        Ok(format!("At {pattern}: {}.", listed.join(", ")))
    };
    Ok(patterns.iter().map(order).collect::<Result<Vec<_>, _>>()?.join(" "))
}
