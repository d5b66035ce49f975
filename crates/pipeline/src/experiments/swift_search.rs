//! SWIFT: what leaving out sub-layers costs a language model, what the search finds, and what its drafts gain.

use std::time::Instant;

use pilotfish_decoding::drafters::swift::matchness;
use pilotfish_decoding::drafters::{LayerSearch, LayerSearchConfig, Pick, Swift, SwiftConfig};
use pilotfish_decoding::{Decoder, Generation, GreedyTree, Identity, Limits, Nothing, compare};
use pilotfish_evaluation::median;
use pilotfish_model::toy::LayeredModel;
use pilotfish_model::{CausalModel, Ledger, LogitForm, RowSet, Skip, Step, Steps, Streams, Token};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page, mean};
use super::session::{self, Session, Side, mean_tokens, total};
use super::{Choice, Context, Experiment, Outcome, toys};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const SWIFT_SEARCH: Experiment = Experiment {
    name: "swift-search",
    about: "SWIFT on a language model: what leaving out sub-layers costs, what the search finds, what drafts gain",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        session::MODEL,
        session::STORAGE,
        session::THREADS,
        Choice { name: "ratios", default: "0.1,0.2,0.3,0.45", about: "shares of the sub-layers left out" },
        Choice { name: "trials", default: "300", about: "sets tried by each search" },
        Choice { name: "window", default: "32", about: "new tokens that a set is judged by" },
        Choice {
            name: "stream",
            default: "24",
            about: "prompts that are searched over, one after the other",
        },
        Choice { name: "held-out", default: "8", about: "other prompts, that what was found is judged by" },
        Choice { name: "tokens", default: "64", about: "new tokens of each that are decoded" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Every so many trials the process suggests: never, as the paper has it, and every second.
const STRATEGIES: [(&str, usize); 3] =
    [("random", 0), ("SWIFT, process every 25th", 25), ("process every 2nd", 2)];
/// Trials after which the best set so far is judged by other texts.
const LOOKS: [usize; 7] = [1, 3, 10, 30, 100, 300, 1000];

/// A prompt and what the model goes on with.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Text {
    id: String,
    category: String,
    prompt: Vec<Token>,
    new: Vec<Token>,
}

/// A search that is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Searched {
    /// By trial.
    scores: Vec<f64>,
    /// The best so far after each trial.
    best: Vec<f64>,
    /// Trials, and the matchness of the best set by then on each held-out text.
    looks: Vec<(usize, Vec<f64>)>,
    set: Skip,
}

/// What decoding the held-out prompts gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Decoded {
    sides: Vec<Side>,
    /// Greedy outputs that part from the plain ones: the margins of their top two logits there.
    margins: Vec<f32>,
}

/// What one way costs: milliseconds of a step of one row, of the whole model and without a set.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Cost {
    whole: f64,
    without: f64,
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let ratios = options.list::<f64>("ratios")?;
    let (trials, window): (usize, usize) = (options.get("trials")?, options.get("window")?);
    let (stream, held_out): (usize, usize) = (options.get("stream")?, options.get("held-out")?);
    let tokens: usize = options.get("tokens")?;
    let seed: u64 = options.get("seed")?;
    if ratios.is_empty() || ratios.iter().any(|ratio| !(*ratio > 0.0 && *ratio < 1.0)) {
        return Err("--ratios must be numbers between 0 and 1".into());
    }
    if trials < 2 || window == 0 || stream == 0 || held_out < 2 || tokens == 0 {
        return Err(
            "--window, --stream and --tokens must be at least 1, --trials and --held-out at least 2".into()
        );
    }
    let began = Began::now();
    let mut session = Session::open_with(context, |load| load.skip(true))?;
    let layers = session.model.info().layers;
    let mut run =
        Run::open(context.results(), SWIFT_SEARCH.name, options, context.fresh(), context.is_quiet())?;
    run.expect((2 + ratios.len() * (STRATEGIES.len() + 2 + WAYS.len())) as u64);
    let toy = run.step("toy", || toy(seed))?;
    let texts = run.step("texts", || texts(&mut session, stream + held_out, window, tokens))?;
    // Categories take turns in both.
    let (held, searched): (Vec<&Text>, Vec<&Text>) = {
        let every = (texts.len() / held_out.max(1)).max(2);
        let pairs = texts.iter().enumerate();
        let (held, rest): (Vec<_>, Vec<_>) = pairs.partition(|(at, _)| at % every == every - 1);
        (held.into_iter().map(|(_, text)| text).collect(), rest.into_iter().map(|(_, text)| text).collect())
    };
    if held.is_empty() || searched.is_empty() {
        return Err(format!("only {} prompts go on for {} tokens", texts.len(), window + 1).into());
    }
    let plain = run.step("plain", || decode(&mut session, None, false, &held, tokens, &[]))?;
    let mut found: Vec<Vec<Searched>> = Vec::new();
    let mut spread: Vec<(Skip, Vec<f64>)> = Vec::new();
    let mut costs: Vec<Cost> = Vec::new();
    let mut decoded: Vec<Vec<Decoded>> = Vec::new();
    for &ratio in &ratios {
        let config = LayerSearchConfig { ratio, window, max_trials: trials - 1, seed, ..Default::default() };
        let uniform = evenly(layers, LayerSearch::new(layers, config)?.count());
        let score =
            run.step(&format!("ratio {ratio}, evenly"), || judge(&mut session, &held, window, &uniform))?;
        spread.push((uniform, score));
        let mut row = Vec::new();
        for (name, bayes_interval) in STRATEGIES {
            let config = LayerSearchConfig { bayes_interval, ..config };
            row.push(run.step(&format!("ratio {ratio}, {name}"), || {
                search(&mut session, LayerSearch::new(layers, config)?, &searched, &held, trials)
            })?);
        }
        let set = row[1].set.clone();
        costs.push(run.step(&format!("ratio {ratio}, cost"), || cost(&mut session, &set))?);
        let mut ways = Vec::new();
        for (name, searched, tree) in WAYS {
            let set = if searched { &set } else { &spread[spread.len() - 1].0 };
            ways.push(run.step(&format!("ratio {ratio}, decode {name}"), || {
                decode(&mut session, Some(set), tree, &held, tokens, &plain.sides)
            })?);
        }
        found.push(row);
        decoded.push(ways);
    }
    let all = All {
        ratios,
        layers,
        window,
        toy,
        held: held.len(),
        searched: searched.len(),
        plain,
        found,
        spread,
        costs,
        decoded,
    };
    all.page(context, &run, began, seed, session.model.info())
}

/// How drafts are made: a name, whether from the searched set, whether with the paper's siblings.
const WAYS: [(&str, bool, bool); 3] = [
    ("evenly, chain", false, false),
    ("searched, chain", true, false),
    ("searched, the paper's trees", true, true),
];

/// The model's own greedy texts, those of enough tokens.
fn texts(session: &mut Session, count: usize, window: usize, tokens: usize) -> Result<Vec<Text>, Failure> {
    let limits = Limits { new_tokens: tokens.max(window + 2), ..Limits::default() };
    let mut texts = Vec::new();
    // Some texts end before there is enough to judge by.
    for prompt in session::chosen("", 0)? {
        if texts.len() == count {
            break;
        }
        let ids = session.encode(&prompt)?;
        let new = plainly(&mut session.model, &ids, &limits)?.tokens;
        if new.len() > window {
            texts.push(Text { id: prompt.id, category: prompt.category, prompt: ids, new });
        }
    }
    Ok(texts)
}

/// Plain greedy decoding.
fn plainly(model: &mut dyn CausalModel, prompt: &[Token], limits: &Limits) -> Result<Generation, Failure> {
    Ok(Decoder::new(model, &mut Nothing, &mut GreedyTree, limits.clone())?.generate(prompt)?)
}

/// Reads a text's prompt into an empty cache.
fn read(model: &mut dyn CausalModel, text: &Text) -> Result<(), Failure> {
    model.truncate(0)?;
    model.step(&Step::chain(&text.prompt).want(RowSet::None))?;
    Ok(())
}

/// Matchness of a set on each text.
fn judge(session: &mut Session, texts: &[&Text], window: usize, set: &Skip) -> Result<Vec<f64>, Failure> {
    let mut scores = Vec::new();
    for text in texts {
        read(&mut session.model, text)?;
        scores.push(matchness(&mut session.model, text.prompt.len(), &text.new[..=window], set)?);
    }
    Ok(scores)
}

/// A search over a stream of texts, each for its share of the trials, as decoding them would make it.
fn search(
    session: &mut Session,
    mut search: LayerSearch,
    stream: &[&Text],
    held: &[&Text],
    trials: usize,
) -> Result<Searched, Failure> {
    let window = search.config().window;
    let (mut scores, mut best, mut looks) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = None;
    let mut judged: Option<(Skip, Vec<f64>)> = None;
    while let Some(trial) = search.next_trial() {
        let text = (search.trials() * stream.len() / trials).min(stream.len() - 1);
        if at != Some(text) {
            read(&mut session.model, stream[text])?;
            at = Some(text);
        }
        let Text { prompt, new, .. } = stream[text];
        let score = matchness(&mut session.model, prompt.len(), &new[..=window], &trial.skip)?;
        search.report(trial, score);
        scores.push(score);
        best.push(search.best());
        if LOOKS.contains(&search.trials()) || search.is_over() {
            let known = judged.take().filter(|(set, _)| set == search.set());
            let (set, values) = match known {
                Some(known) => known,
                None => (search.set().clone(), judge(session, held, window, search.set())?),
            };
            looks.push((search.trials(), values.clone()));
            judged = Some((set, values));
            at = None;
        }
    }
    Ok(Searched { scores, best, looks, set: search.set().clone() })
}

/// As many sub-layers as asked for, evenly spread over those between the first layer and the last.
fn evenly(layers: usize, count: usize) -> Skip {
    let places = 2 * (layers - 2);
    let chosen: Vec<usize> = (0..count).map(|i| (2 * i + 1) * places / (2 * count.max(1))).collect();
    let of = |half: usize| {
        chosen.iter().filter(move |&&place| place % 2 == half).map(|&place| 1 + place / 2).collect::<Vec<_>>()
    };
    Skip::new(of(0), of(1))
}

/// Decodes texts with a fixed set, or plainly.
fn decode(
    session: &mut Session,
    set: Option<&Skip>,
    tree: bool,
    texts: &[&Text],
    tokens: usize,
    plain: &[Side],
) -> Result<Decoded, Failure> {
    let layers = session.model.info().layers;
    let limits = Limits { new_tokens: tokens, ..Limits::default() };
    let (mut sides, mut margins) = (Vec::new(), Vec::new());
    for (at, text) in texts.iter().enumerate() {
        let out = match set {
            None => plainly(&mut session.model, &text.prompt, &limits)?,
            Some(set) => {
                let config = LayerSearchConfig { max_trials: 0, ..LayerSearchConfig::default() };
                let search = LayerSearch::new(layers, config)?.with_set(set.clone())?;
                let chain = SwiftConfig { greedy: [1; 4], ..SwiftConfig::default() };
                let config = if tree { SwiftConfig::default() } else { chain };
                let mut swift = Swift::new(search, config, Pick::Largest)?;
                Decoder::new(&mut session.model, &mut swift, &mut GreedyTree, limits.clone())?
                    .generate(&text.prompt)?
            }
        };
        if let Some(plain) = plain.get(at)
            && let Identity::Diverges { margin, .. } =
                compare(&mut session.model, &text.prompt, &plain.tokens, &out.tokens)?
        {
            margins.push(margin);
        }
        sides.push(out.into());
    }
    Ok(Decoded { sides, margins })
}

/// Steps of one row behind 128 others, in turn with the whole model and without a set.
fn cost(session: &mut Session, set: &Skip) -> Result<Cost, Failure> {
    const PAST: usize = 128;
    let model = &mut session.model;
    let vocab = model.info().vocab;
    let ids: Vec<Token> = (0..PAST).map(|i| (i * 7919 % vocab) as Token).collect();
    model.truncate(0)?;
    model.step(&Step::chain(&ids).want(RowSet::None))?;
    let step = Step::chain(&ids[..1]).form(LogitForm::Argmax);
    let mut times = [Vec::new(), Vec::new()];
    let none = Skip::default();
    for round in 0..24 {
        for (times, set) in times.iter_mut().zip([&none, set]) {
            let clock = Instant::now();
            model.step_without(&step, set)?;
            if round > 0 {
                times.push(1e3 * clock.elapsed().as_secs_f64());
            }
            model.truncate(PAST)?;
        }
    }
    let [whole, without] = times.map(|times| median(&times).unwrap_or(f64::NAN));
    Ok(Cost { whole, without })
}

/// Searches on a network of which it is known what matters: matchness on other texts by way, over seeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Toy {
    names: Vec<String>,
    /// By way and seed.
    scores: Vec<Vec<f64>>,
}

const TOY_LAYERS: usize = 14;
const TOY_TRIALS: usize = 100;

/// Fourteen layers, scales from 0.001 to 1, of whose 24 inner sub-layers ten are left out.
fn toy(seed: u64) -> Result<Toy, Failure> {
    let mut names = vec!["evenly spread".to_owned(), "a random set".to_owned()];
    names.extend(STRATEGIES.map(|(name, _)| format!("{TOY_TRIALS} trials: {name}")));
    names.push("the smallest scales".into());
    let mut scores = vec![Vec::new(); names.len()];
    for seed in seed..seed + 10 {
        let streams = Streams::new(seed);
        let mut rng = streams.stream("scales");
        let scales: Vec<[f64; 2]> = (0..TOY_LAYERS)
            .map(|_| [10f64.powf(rng.random_range(-3.0..0.0)), 10f64.powf(rng.random_range(-3.0..0.0))])
            .collect();
        let mut model = LayeredModel::random(64, 16, &scales, &mut streams.stream("weights"))?;
        let window = 32;
        let prompts = toys::prompts(20, 4, 64, &mut streams.stream("prompts"));
        let limits = Limits { new_tokens: window + 1, ..Limits::default() };
        let mut texts = Vec::new();
        for prompt in prompts {
            let new = plainly(&mut model, &prompt, &limits)?.tokens;
            texts.push((prompt, new));
        }
        let (stream, held) = texts.split_at(10);
        let mut on = |set: &Skip, texts: &[(Vec<Token>, Vec<Token>)]| -> Result<f64, Failure> {
            let mut sum = 0.0;
            for (prompt, new) in texts {
                model.truncate(0)?;
                model.step(&Step::chain(prompt).want(RowSet::None))?;
                sum += matchness(&mut model, prompt.len(), new, set)?;
            }
            Ok(sum / texts.len() as f64)
        };
        let config = LayerSearchConfig {
            ratio: 10.5 / 24.0,
            window,
            max_trials: TOY_TRIALS - 1,
            max_score: 1.0,
            seed,
            ..LayerSearchConfig::default()
        };
        let count = LayerSearch::new(TOY_LAYERS, config)?.count();
        scores[0].push(on(&evenly(TOY_LAYERS, count), held)?);
        for (at, (_, bayes_interval)) in STRATEGIES.into_iter().enumerate() {
            let mut search = LayerSearch::new(TOY_LAYERS, LayerSearchConfig { bayes_interval, ..config })?;
            if at == 0
                && let Some(trial) = search.next_trial()
            {
                scores[1].push(on(&trial.skip, held)?);
            }
            while let Some(trial) = search.next_trial() {
                let text = search.trials() * stream.len() / TOY_TRIALS;
                let score = on(&trial.skip, &stream[text..=text])?;
                search.report(trial, score);
            }
            scores[2 + at].push(on(&search.set().clone(), held)?);
        }
        let mut inner: Vec<(f64, usize, usize)> = (1..TOY_LAYERS - 1)
            .flat_map(|layer| [(scales[layer][0], layer, 0), (scales[layer][1], layer, 1)])
            .collect();
        inner.sort_by(|a, b| a.0.total_cmp(&b.0));
        let smallest = |half: usize| {
            inner[..count]
                .iter()
                .filter(move |place| place.2 == half)
                .map(|place| place.1)
                .collect::<Vec<_>>()
        };
        scores[5].push(on(&Skip::new(smallest(0), smallest(1)), held)?);
    }
    Ok(Toy { names, scores })
}

/// Mean and half the width of a 95 % interval.
fn with_error(values: &[f64]) -> (f64, f64) {
    let (n, mean) = (values.len() as f64, mean(values));
    let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, 1.96 * (variance / n.max(1.0)).sqrt())
}

fn text(values: &[f64]) -> String {
    let (mean, error) = with_error(values);
    format!("{mean:.3} ± {error:.3}")
}

/// Everything that the page is made of.
struct All {
    ratios: Vec<f64>,
    layers: usize,
    window: usize,
    toy: Toy,
    held: usize,
    searched: usize,
    plain: Decoded,
    found: Vec<Vec<Searched>>,
    spread: Vec<(Skip, Vec<f64>)>,
    costs: Vec<Cost>,
    decoded: Vec<Vec<Decoded>>,
}

/// What matters of a decoding.
struct Gain {
    tokens: f64,
    /// Of the levels that were drafted.
    accepted: f64,
    steps: f64,
    /// Sub-layers run for a token, in units of all of them.
    sublayers: f64,
    /// Bytes of weights read for a token.
    bytes: f64,
    /// Tokens a second after the prompt.
    speed: f64,
}

impl Gain {
    fn of(decoded: &Decoded, layers: usize, skipped: usize) -> Self {
        let sides = &decoded.sides;
        let ledger: Ledger = total(sides.iter());
        let rounds = sides.iter().flat_map(|side| &side.rounds);
        let (depth, accepted) =
            rounds.fold((0, 0), |(depth, accepted), round| (depth + round.depth, accepted + round.accepted));
        // The first token of a text comes of the prompt's pass.
        let tokens = (ledger.emitted as usize - sides.len()).max(1) as f64;
        let all = 2.0 * layers as f64;
        let passes = ledger.rounds as f64 * all + ledger.draft_forwards as f64 * (all - skipped as f64);
        let a_step = ledger.bytes as f64 / (ledger.target_forwards as f64).max(1.0);
        Self {
            tokens: mean_tokens(sides.iter()),
            accepted: accepted as f64 / depth.max(1) as f64,
            steps: ledger.draft_forwards as f64 / (ledger.rounds as f64).max(1.0),
            sublayers: passes / all / tokens,
            bytes: (ledger.draft_bytes as f64 + a_step * ledger.rounds as f64) / tokens,
            speed: sides.iter().map(Side::decode_speed).sum::<f64>() / sides.len().max(1) as f64,
        }
    }
}

impl All {
    fn searches(&self) -> Table {
        let mut table = Table::new(
            "Matchness of sets on held-out texts, mean and 95 % interval, by how the set was come by",
            &[
                "left out",
                "sub-layers",
                "evenly spread",
                "random sets",
                "random search",
                "SWIFT",
                "process every 2nd",
            ],
        );
        for (at, &ratio) in self.ratios.iter().enumerate() {
            let last = |strategy: usize| {
                let look = self.found[at][strategy].looks.last();
                look.map_or(String::new(), |(_, values)| text(values))
            };
            let (set, values) = &self.spread[at];
            table.row([
                ratio.to_string(),
                format!("{} of {}", set.len(), 2 * self.layers),
                text(values),
                // What chance gives is not searched: every trial of the random search, on the text of its turn.
                text(&self.found[at][0].scores),
                last(0),
                last(1),
                last(2),
            ]);
        }
        table
    }

    fn trials(&self) -> Table {
        let mut table = Table::new(
            "By trials: the best score of the search so far, and that set's matchness on held-out texts",
            &["left out", "search", "trials", "best score", "held out"],
        );
        for (at, &ratio) in self.ratios.iter().enumerate() {
            for (searched, (name, _)) in self.found[at].iter().zip(STRATEGIES) {
                for (trials, values) in &searched.looks {
                    let best = searched.best.get(trials - 1).copied().unwrap_or(0.0);
                    let row = [
                        ratio.to_string(),
                        name.into(),
                        trials.to_string(),
                        format!("{best:.3}"),
                        text(values),
                    ];
                    table.row(row);
                }
            }
        }
        table
    }

    fn gains(&self) -> Table {
        let plain = Gain::of(&self.plain, self.layers, 0);
        let mut table = Table::new(
            "Drafts of a fixed set, greedy, on held-out prompts",
            &[
                "left out",
                "drafts",
                "tokens a round",
                "accepted a level",
                "draft steps a round",
                "sub-layers a token",
                "bytes a token",
                "tok/s over plain",
                "identical",
            ],
        );
        for (at, &ratio) in self.ratios.iter().enumerate() {
            for (decoded, (name, searched, _)) in self.decoded[at].iter().zip(WAYS) {
                let set = if searched { &self.found[at][1].set } else { &self.spread[at].0 };
                let gain = Gain::of(decoded, self.layers, set.len());
                table.row([
                    ratio.to_string(),
                    name.into(),
                    format!("{:.2}", gain.tokens),
                    format!("{:.3}", gain.accepted),
                    format!("{:.2}", gain.steps),
                    format!("{:.2}", gain.sublayers),
                    format!("{:.2}", gain.bytes / plain.bytes),
                    format!("{:.2}x", gain.speed / plain.speed.max(f64::MIN_POSITIVE)),
                    format!("{}/{}", decoded.sides.len() - decoded.margins.len(), decoded.sides.len()),
                ]);
            }
        }
        table
    }

    fn cost_table(&self, info: &pilotfish_model::ModelInfo) -> Table {
        let mut table = Table::new(
            "A step of one row without the set that SWIFT found, 128 rows of cache",
            &["left out", "bytes over whole", "ms", "whole, ms", "time over whole"],
        );
        let whole = (info.body_bytes + info.head_bytes) as f64;
        for ((ratio, cost), found) in self.ratios.iter().zip(&self.costs).zip(&self.found) {
            let left = (info.bytes_without(&found[1].set) + info.head_bytes) as f64;
            table.row([
                ratio.to_string(),
                format!("{:.3}", left / whole),
                format!("{:.2}", cost.without),
                format!("{:.2}", cost.whole),
                format!("{:.3}", cost.without / cost.whole),
            ]);
        }
        table
    }

    fn sets(&self) -> Table {
        let mut table = Table::new(
            "What SWIFT left out in the end",
            &["left out", "attention of layers", "MLP of layers"],
        );
        let list = |layers: &[usize]| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
        for (ratio, found) in self.ratios.iter().zip(&self.found) {
            table.row([ratio.to_string(), list(found[1].set.attention()), list(found[1].set.mlp())]);
        }
        table
    }

    fn toy_table(&self) -> Table {
        let mut table = Table::new(
            "A toy of known scales: matchness on held-out texts over ten networks",
            &["set", "matchness"],
        );
        for (name, scores) in self.toy.names.iter().zip(&self.toy.scores) {
            table.row([name.clone(), text(scores)]);
        }
        table
    }

    fn page(
        self,
        context: &Context,
        run: &Run,
        began: Began,
        seed: u64,
        info: &pilotfish_model::ModelInfo,
    ) -> Outcome {
        let name = |ratio: f64| format!("{ratio} left out");
        let line = |points: Vec<Point>, name: String| Series { name, points };
        let best = self.ratios.iter().zip(&self.found).map(|(&ratio, found)| {
            let point = |(at, &y): (usize, &f64)| Point { x: at as f64 + 1.0, y, interval: None };
            line(found[1].best.iter().enumerate().map(point).collect(), name(ratio))
        });
        let held = self.ratios.iter().zip(&self.found).map(|(&ratio, found)| {
            let point = |(trials, values): &(usize, Vec<f64>)| {
                let (y, error) = with_error(values);
                Point { x: (*trials as f64).log10(), y, interval: Some((y - error, y + error)) }
            };
            line(found[1].looks.iter().map(point).collect(), name(ratio))
        });
        let by_ratio = |of: &dyn Fn(usize) -> Point, name: &str| {
            line((0..self.ratios.len()).map(of).collect(), name.into())
        };
        let gain = |way: usize| {
            let points = (0..self.ratios.len()).map(|at| {
                let skipped = self.spread[at].0.len();
                let y = Gain::of(&self.decoded[at][way], self.layers, skipped).tokens;
                Point { x: self.ratios[at], y, interval: None }
            });
            line(points.collect(), WAYS[way].0.into())
        };
        let at_last = |strategy: usize| {
            move |found: &Vec<Searched>| found[strategy].looks.last().map_or(0.0, |(_, values)| mean(values))
        };
        let searched =
            |at: usize| Point { x: self.ratios[at], y: at_last(1)(&self.found[at]), interval: None };
        let spread = |at: usize| Point { x: self.ratios[at], y: mean(&self.spread[at].1), interval: None };
        let chance =
            |at: usize| Point { x: self.ratios[at], y: mean(&self.found[at][0].scores), interval: None };
        let plots = vec![
            page::lines("Best score of the search", "trials", "matchness of the best set", best.collect()),
            page::lines("The best set on held-out texts", "log10(trials)", "matchness", held.collect()),
            page::lines(
                "What may be left out",
                "share left out",
                "matchness on held-out texts",
                vec![
                    by_ratio(&searched, "SWIFT"),
                    by_ratio(&spread, "evenly spread"),
                    by_ratio(&chance, "random sets"),
                ],
            ),
            page::lines(
                "Tokens a round",
                "share left out",
                "tokens a round",
                (0..WAYS.len()).map(gain).collect(),
            ),
        ];
        let plain = Gain::of(&self.plain, self.layers, 0);
        let (mut fastest, mut at, mut way) = (0.0, 0, 0);
        for (index, ways) in self.decoded.iter().enumerate() {
            for (kind, decoded) in ways.iter().enumerate() {
                let speed = Gain::of(decoded, self.layers, 0).speed / plain.speed.max(f64::MIN_POSITIVE);
                if speed > fastest {
                    (fastest, at, way) = (speed, index, kind);
                }
            }
        }
        let values: Vec<String> = (0..self.ratios.len())
            .map(|at| {
                format!(
                    "{} left out: {:.2} ({:.2} evenly spread, {:.2} at random)",
                    self.ratios[at],
                    searched(at).y,
                    spread(at).y,
                    chance(at).y
                )
            })
            .collect();
        let summary = format!(
            "Matchness on held-out texts of the set that SWIFT's search has found after {} trials, by the share of the \
             sub-layers left out: {}. The fastest drafts ({}, {} left out) decode at {fastest:.2}x of plain decoding in this \
             run; what leaving out costs and gains is in the tables.",
            self.found[0][1].scores.len(),
            values.join("; "),
            WAYS[way].0,
            self.ratios[at],
        );
        let mut rows = Vec::new();
        for (at, &ratio) in self.ratios.iter().enumerate() {
            for (searched, (name, _)) in self.found[at].iter().zip(STRATEGIES) {
                rows.push(serde_json::json!({ "ratio": ratio, "search": name, "found": searched }));
            }
            for (decoded, (name, ..)) in self.decoded[at].iter().zip(WAYS) {
                let margins = &decoded.margins;
                let ledger = total(decoded.sides.iter());
                rows.push(serde_json::json!({ "ratio": ratio, "drafts": name, "ledger": ledger, "margins": margins }));
            }
        }
        let margins: Vec<f32> =
            self.decoded.iter().flatten().flat_map(|decoded| decoded.margins.iter().copied()).collect();
        let notes = vec![
            format!(
                "{}, {} texts to search over, each for its share of the trials, {} held out; a set is judged by {} tokens, so \
                 that a score is a multiple of 1/{}. A search goes on from text to text with the best score so far, as SWIFT's \
                 does: an easy text sets a mark that later ones may not reach.",
                info.name, self.searched, self.held, self.window, self.window
            ),
            "Sets, scores, tokens a round, sub-layers and bytes do not depend on the machine or its load. Milliseconds and \
             tokens a second do, and are taken in turns with plain decoding's only in `speculative`."
                .into(),
            "Sub-layers and bytes a token are what drafting and verifying run and read, over what a plain step does; bytes \
             count the head, which cannot be left out."
                .into(),
            match margins.iter().copied().reduce(f32::max) {
                None => "Every output is plain decoding's, token for token.".into(),
                Some(most) => format!(
                    "{} outputs part from plain decoding's, where its two best logits differ by at most {most:.1e}.",
                    margins.len()
                ),
            },
            format!(
                "Toy: {TOY_LAYERS} layers with scales from 0.001 to 1, ten of 24 sub-layers left out; 'the smallest scales' \
                 knows them."
            ),
            "The paper's own claims are for models of 13 to 70 billion parameters, which have more to spare.".into(),
        ];
        let tables = vec![
            self.searches(),
            self.gains(),
            self.cost_table(info),
            self.trials(),
            self.sets(),
            self.toy_table(),
        ];
        let page = Page {
            experiment: &SWIFT_SEARCH,
            title: format!("SWIFT's search for layers to leave out: {}", info.name),
            summary,
            seeds: vec![seed],
            rows,
            tables,
            plots,
            notes,
        };
        page.write(context, run, began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_spread_evenly() {
        assert_eq!(evenly(30, 0), Skip::default());
        // Of 2 (6 - 2) = 8 places, every second and all.
        assert_eq!(evenly(6, 8), Skip::new(1..5, 1..5));
        assert_eq!(evenly(6, 4), Skip::new([], [1, 2, 3, 4]));
        for count in 1..=56 {
            let set = evenly(30, count);
            assert_eq!(set.len(), count);
            assert!(set.attention().iter().chain(set.mlp()).all(|layer| (1..29).contains(layer)));
        }
    }

    #[test]
    fn gains_by_hand() {
        use pilotfish_decoding::RoundRecord;
        let round = RoundRecord { drafted: 3, depth: 3, accepted: 2, added: 3 };
        let ledger = Ledger {
            emitted: 7,
            rounds: 2,
            target_forwards: 3,
            draft_forwards: 6,
            bytes: 3000,
            draft_bytes: 3000,
            ..Ledger::default()
        };
        let side = Side { ledger, rounds: vec![round, round], tokens: vec![] };
        let gain = Gain::of(&Decoded { sides: vec![side], margins: vec![] }, 10, 10);
        assert_eq!((gain.tokens, gain.steps), (3.0, 3.0));
        assert!((gain.accepted - 2.0 / 3.0).abs() < 1e-12);
        // Two whole passes and six halves, for six tokens.
        assert!((gain.sublayers - 5.0 / 6.0).abs() < 1e-12);
        assert!((gain.bytes - 5000.0 / 6.0).abs() < 1e-9);
    }
}
