//! AWRS: how far the law of its texts is from the model's law given the constraint, by the number of particles, on
//! worlds small enough to be enumerated; and how many tokens are tested as valid ones become rare.

use std::collections::BTreeMap;

use pilotfish_constrained::{Constraint, Dfa, Estimator, NextLaw, Proposal, Smc, Vocabulary};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{Streams, Token};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page, mean};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const AWRS_EXACTNESS: Experiment = Experiment {
    name: "awrs-exactness",
    about: "total variation between sampled texts and the enumerated posterior, by particles, and tests a token",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "letters", default: "4", about: "letters of the toy language, 2 to 20" },
        Choice { name: "tokens", default: "5", about: "letters of a text, at most" },
        Choice { name: "worlds", default: "5", about: "random models" },
        Choice { name: "particles", default: "1,2,5,10,50", about: "numbers of particles" },
        Choice {
            name: "texts",
            default: "100000",
            about: "particles in all, of each method, world and number",
        },
        Choice { name: "seed", default: "80808", about: "seed" },
    ],
    run,
};

/// A random second-order model over some letters and an end, and the law of its texts given the constraint that the
/// number of a's is divisible by 3 and the last letter is b.
struct World {
    model: TableModel,
    vocabulary: Vocabulary,
    constraint: Dfa,
    prompt: [Token; 2],
    truth: Texts,
    local: Texts,
    evidence: f64,
}

type Texts = BTreeMap<Vec<Token>, f64>;

impl World {
    fn new(letters: usize, tokens: usize, streams: Streams) -> Result<Self, Failure> {
        let bytes = (0..letters as u8).map(|letter| Some(vec![b'a' + letter])).chain([None]).collect();
        let end = letters as Token;
        let vocabulary = Vocabulary::new(bytes, vec![end])?;
        let model = TableModel::random(2, letters + 1, 1.5, &mut streams.stream("model"))?;
        let constraint = Dfa::new(6, 0, &[3], |state, byte| match byte {
            b'a' => Some((state % 3 + 1) % 3),
            b'b' => Some(state % 3 + 3),
            _ => Some(state % 3),
        })?;
        let prompt = [end, end];
        // Every text that can still become valid, with the model's probability and that of masking, which renormalises
        // at every step over what the constraint allows.
        let (mut truth, mut local) = (Texts::new(), Texts::new());
        let mut open = vec![(Vec::new(), constraint.clone(), 1.0, 1.0)];
        while let Some((text, mut state, p, q)) = open.pop() {
            let path: Vec<Token> = prompt.iter().chain(&text).copied().collect();
            let next = model.next(&path);
            let mask = state.mask(&vocabulary)?;
            let allowed: f64 = mask.tokens().map(|token| next.prob(token)).sum();
            let last = text.len() == tokens;
            if mask.allows(end) {
                truth.insert(text.clone(), p * next.prob(end));
                // At the limit masking has only the end to choose.
                local.insert(text.clone(), if last { q } else { q * next.prob(end) / allowed });
            }
            for token in mask.tokens().filter(|&token| token != end && !last) {
                let (mut longer, mut state) = (text.clone(), state.clone());
                longer.push(token);
                state.push(vocabulary.bytes(token).unwrap_or_default())?;
                open.push((longer, state, p * next.prob(token), q * next.prob(token) / allowed));
            }
        }
        let evidence = normalise(&mut truth);
        normalise(&mut local);
        Ok(Self { model, vocabulary, constraint, prompt, truth, local, evidence })
    }
}

fn normalise(texts: &mut Texts) -> f64 {
    let sum: f64 = texts.values().sum();
    texts.values_mut().for_each(|weight| *weight /= sum);
    sum
}

fn distance(a: &Texts, b: &Texts) -> f64 {
    let get = |texts: &Texts, text| texts.get(text).copied().unwrap_or(0.0);
    let union: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    union.into_iter().map(|text| (get(a, text) - get(b, text)).abs()).sum::<f64>() / 2.0
}

/// What one method did in one world with one number of particles.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    /// Distance between the mean posterior of all runs and the truth.
    distance: f64,
    /// The same for as many independent draws from the truth: what the number of samples alone leaves.
    floor: f64,
    /// Runs in which no particle was left.
    empty: f64,
    /// Root of the mean square of `evidence estimate / evidence - 1`.
    evidence_error: f64,
    /// Mean of `evidence estimate / evidence`, which is 1 if weights are proper.
    evidence_mean: f64,
    /// Verdicts of the constraint a token of a text.
    calls: f64,
}

fn measure(world: &World, smc: &Smc, runs: usize, streams: Streams) -> Result<Cell, Failure> {
    let mut model = world.model.clone();
    let mut texts = Texts::new();
    let (mut empty, mut ratios, mut calls, mut emitted) = (0, Vec::with_capacity(runs), 0, 0);
    for run in 0..runs {
        let streams = streams.fork(run as u64);
        let found = smc.run(&mut model, &world.vocabulary, &world.constraint, &world.prompt, streams)?;
        let posterior = found.texts();
        empty += usize::from(posterior.is_empty());
        for (bytes, weight) in posterior {
            let text = bytes.iter().map(|byte| Token::from(byte - b'a')).collect();
            *texts.entry(text).or_insert(0.0) += weight;
        }
        ratios.push(found.log_evidence().exp() / world.evidence);
        calls += found.ledger.constraint_calls;
        // An end is a token too.
        emitted += found.ledger.emitted + smc.particles as u64;
    }
    normalise(&mut texts);
    let mut rng = streams.stream("floor");
    let mut drawn = Texts::new();
    let (names, cumulative): (Vec<&Vec<Token>>, Vec<f64>) = {
        let mut sum = 0.0;
        world
            .truth
            .iter()
            .map(|(text, p)| {
                (text, {
                    sum += p;
                    sum
                })
            })
            .unzip()
    };
    for _ in 0..runs * smc.particles {
        let u: f64 = rng.random();
        let at = cumulative.partition_point(|&sum| sum <= u).min(names.len() - 1);
        *drawn.entry(names[at].clone()).or_insert(0.0) += 1.0;
    }
    normalise(&mut drawn);
    let square = ratios.iter().map(|ratio| (ratio - 1.0).powi(2)).sum::<f64>() / runs as f64;
    Ok(Cell {
        distance: distance(&texts, &world.truth),
        floor: distance(&drawn, &world.truth),
        empty: empty as f64 / runs as f64,
        evidence_error: square.sqrt(),
        evidence_mean: mean(&ratios),
        calls: calls as f64 / emitted.max(1) as f64,
    })
}

fn methods() -> Vec<(&'static str, Smc)> {
    let paper = Smc { proposal: Proposal::Awrs(Estimator::Paper), ..Smc::awrs() };
    vec![
        ("AWRS-SMC", Smc::awrs()),
        ("AWRS-SMC, paper's estimator", paper),
        ("AWRS without resampling", Smc { tau: 0.0, ..Smc::awrs() }),
        ("masked SMC", Smc::masked()),
        ("twisted SMC", Smc::twisted()),
        ("sample-rerank", Smc::sample_rerank()),
        ("masking, no weights", Smc::locally_constrained()),
    ]
}

/// Mean tests of a draw from a random law over 1000 tokens, by the valid mass.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tests {
    z: f64,
    first_pass: f64,
    paper: f64,
    chosen: f64,
}

const TOKENS: usize = 1000;

fn tests(z: f64, streams: Streams) -> Result<Tests, Failure> {
    let mut rng = streams.stream("laws");
    let estimators = [Estimator::Unweighted, Estimator::Paper, Estimator::Chosen];
    let (mut counts, rounds) = ([0u64; 3], 1000);
    for _ in 0..rounds {
        // Spiky weights; ten of the tokens are valid and share a mass of z.
        let mut weights: Vec<f64> =
            (0..TOKENS).map(|_| (-(1.0 - rng.random::<f64>()).ln()).powi(3)).collect();
        let valid: f64 = weights[..10].iter().sum();
        let rest: f64 = weights[10..].iter().sum();
        for (token, weight) in weights.iter_mut().enumerate() {
            *weight *= if token < 10 { z / valid } else { (1.0 - z) / rest };
        }
        let law = NextLaw::from_weights(weights)?;
        for (estimator, count) in estimators.iter().zip(&mut counts) {
            let mut seen = std::collections::HashSet::new();
            estimator.draw(&mut law.pool(&mut rng), &mut |token| {
                seen.insert(token);
                Ok(token < 10)
            })?;
            *count += seen.len() as u64;
        }
    }
    let [first_pass, paper, chosen] = counts.map(|count| count as f64 / f64::from(rounds));
    Ok(Tests { z, first_pass, paper, chosen })
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (letters, tokens): (usize, usize) = (options.get("letters")?, options.get("tokens")?);
    let (worlds, texts): (usize, usize) = (options.get("worlds")?, options.get("texts")?);
    let particles = options.list::<usize>("particles")?;
    let seed: u64 = options.get("seed")?;
    if !(2..=20).contains(&letters) || tokens == 0 || letters.saturating_pow(tokens as u32) > 2_000_000 {
        return Err("--letters from 2 to 20, --tokens at least 1, and at most 2 million texts in all".into());
    }
    if worlds == 0 || texts == 0 || particles.is_empty() || particles.contains(&0) {
        return Err("--worlds, --texts and --particles must be at least 1".into());
    }
    let (began, streams) = (Began::now(), Streams::new(seed));
    let mut run =
        Run::open(context.results(), AWRS_EXACTNESS.name, options, context.fresh(), context.is_quiet())?;
    let valid_masses = [0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001];
    run.expect((worlds * methods().len() * particles.len() + valid_masses.len()) as u64);
    let mut cells: Vec<(usize, &str, usize, Cell)> = Vec::new();
    let (mut locals, mut evidences) = (Vec::new(), Vec::new());
    for index in 0..worlds {
        let world = World::new(letters, tokens, streams.fork(index as u64))?;
        locals.push(distance(&world.local, &world.truth));
        evidences.push(world.evidence);
        for (name, smc) in methods() {
            for &n in &particles {
                let smc = Smc { particles: n, tokens, ..smc };
                let id = format!("world {index}, {name}, {n} particles");
                let streams = Streams::new(seed).fork(1000 + index as u64);
                let cell = run.step(&id, || measure(&world, &smc, texts.div_ceil(n), streams))?;
                cells.push((index, name, n, cell));
            }
        }
    }
    let counted = valid_masses
        .iter()
        .enumerate()
        .map(|(i, &z)| run.step(&format!("tests at {z}"), || tests(z, streams.fork(2000 + i as u64))))
        .collect::<Result<Vec<_>, _>>()?;
    let over = |name: &str, n: usize, value: fn(&Cell) -> f64| {
        let values: Vec<f64> =
            cells.iter().filter(|cell| (cell.1, cell.2) == (name, n)).map(|cell| value(&cell.3)).collect();
        mean(&values)
    };
    let mut header = vec!["method".to_owned()];
    header.extend(particles.iter().map(|n| format!("{n} particles")));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let tabulate = |title: &str, value: fn(&Cell) -> f64, digits: usize| {
        let mut table = Table::new(title, &header);
        for (name, _) in methods() {
            let row = particles.iter().map(|&n| format!("{:.digits$}", over(name, n, value)));
            table.row(std::iter::once(name.to_owned()).chain(row));
        }
        table
    };
    let mut apart = tabulate("Total variation to the posterior, mean over worlds", |cell| cell.distance, 4);
    let floor = particles.iter().map(|&n| format!("{:.4}", over(methods()[0].0, n, |cell| cell.floor)));
    apart.row(std::iter::once("as many draws from the posterior itself".to_owned()).chain(floor));
    let local = format!("{:.4}", mean(&locals));
    apart.row(
        std::iter::once("masking, no weights: exact law".to_owned())
            .chain(particles.iter().map(|_| local.clone())),
    );
    let mut probes = Table::new(
        "Different tokens tested for one draw, 1000 tokens of which 10 are valid",
        &["valid mass Z", "1/Z", "first pass", "paper's estimator", "chosen estimator"],
    );
    for row in &counted {
        let cells = [row.first_pass, row.paper, row.chosen].map(|value| format!("{value:.2}"));
        probes.row([format!("{}", row.z), format!("{:.1}", 1.0 / row.z)].into_iter().chain(cells));
    }
    let line = |name: &str, value: &dyn Fn(usize) -> f64| Series {
        name: name.into(),
        points: particles
            .iter()
            .map(|&n| Point { x: (n as f64).log10(), y: value(n), interval: None })
            .collect(),
    };
    let mut lines: Vec<Series> =
        methods().iter().map(|(name, _)| line(name, &|n| over(name, n, |cell| cell.distance))).collect();
    lines.push(line("draws from the posterior", &|n| over(methods()[0].0, n, |cell| cell.floor)));
    let logs = |name: &str, value: fn(&Tests) -> f64| Series {
        name: name.into(),
        points: counted
            .iter()
            .map(|row| Point { x: -row.z.log10(), y: value(row).log10(), interval: None })
            .collect(),
    };
    let plots = vec![
        page::lines("Distance to the posterior", "log10 particles", "total variation", lines),
        page::lines(
            "Tokens tested as valid ones become rare",
            "log10 1/Z",
            "log10 tokens tested",
            vec![
                logs("1/Z", |row| 1.0 / row.z),
                logs("first pass", |row| row.first_pass),
                logs("paper's estimator", |row| row.paper),
                logs("chosen estimator", |row| row.chosen),
            ],
        ),
    ];
    let most = particles.iter().copied().max().unwrap_or(1);
    let awrs = |n| over("AWRS-SMC", n, |cell| cell.distance);
    let summary = format!(
        "Masking token by token stays {} from the posterior in total variation, however many texts are drawn; AWRS-SMC is {:.3} away with {} particle(s) and {:.3} with {most}, where as many draws from the posterior itself leave {:.3}. It tests {:.2} of {} tokens for each token of a text.",
        local,
        awrs(particles[0]),
        particles[0],
        awrs(most),
        over("AWRS-SMC", most, |cell| cell.floor),
        over("AWRS-SMC", most, |cell| cell.calls),
        letters + 1,
    );
    let rows = cells
        .iter()
        .map(|(world, name, n, cell)| {
            serde_json::json!({ "world": world, "method": name, "particles": n, "cell": cell })
        })
        .chain(counted.iter().map(|row| serde_json::json!({ "tests": row })))
        .collect();
    let notes = vec![
        format!("{worlds} random second-order models over {letters} letters and an end, texts of at most {tokens} letters; valid texts have a number of a's divisible by 3 and end in b. Probability of a valid text: {}.", evidences.iter().map(|z| format!("{z:.3}")).collect::<Vec<_>>().join(", ")),
        format!("A run's posterior is a law over texts; the mean of {texts} / N runs is compared with the truth. What is left at many particles is the noise of that many samples (last but one row)."),
        "One particle gives the law of masking: weights only matter where there is something to weigh against.".into(),
        "Runs in which no particle was left are not in the mean; their share is in a table.".into(),
    ];
    let page = Page {
        experiment: &AWRS_EXACTNESS,
        title: "AWRS: distance to the posterior by particles".into(),
        summary,
        seeds: vec![seed],
        rows,
        tables: vec![
            apart,
            tabulate(
                "Mean of the estimated over the true probability of a valid text",
                |cell| cell.evidence_mean,
                3,
            ),
            tabulate("Relative error of that estimate (root mean square)", |cell| cell.evidence_error, 3),
            tabulate("Runs without a particle left", |cell| cell.empty, 4),
            tabulate("Verdicts of the constraint a token", |cell| cell.calls, 2),
            probes,
        ],
        plots,
        notes,
    };
    page.write(context, &run, began)
}
