//! Weak-to-strong beyond accuracy: skewed classes measured in several ways, and the style of generated text.

use std::sync::Arc;

use ndarray::Axis;
use pilotfish_graph::Graph;
use pilotfish_model::{StreamRng, Streams};
use pilotfish_supervision::Result as Supervised;
use pilotfish_supervision::heads::TreeConfig;
use pilotfish_supervision::weak_to_strong::{
    Better, Fitted, Generations, Pgr, PgrConfig, Protocol, Said, SplitConfig, Task, TrainView, Trainee,
    balanced_accuracy, recall, weighted_f1,
};
use pilotfish_training::TextTask;
use pilotfish_training::losses::classification::Confidence;
use rand::Rng;
use rand::seq::SliceRandom;
use serde_json::Value as Json;

use super::features::{components, tf_idf};
use super::page::{Began, Page, bracketed, mean_with_interval};
use super::probe::{Grown, Probe};
use super::session::THREADS;
use super::tiny::{self, Letters};
use super::{Choice, Context, Experiment, Outcome, newsgroups};
use crate::error::Failure;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const BEYOND_ACCURACY: Experiment = Experiment {
    name: "w2s-beyond-accuracy",
    about: "weak-to-strong on skewed classes by several measures, and on the style of generated text",
    needs: &["20newsgroups", "minilm", "smollm2-135m"],
    library: true,
    options: &[
        Choice { name: "seeds", default: "5", about: "seeds of the classes, from 1 on" },
        Choice { name: "texts", default: "3", about: "seeds of the generated texts, from 1 on" },
        Choice { name: "messages", default: "700", about: "messages of a newsgroup at most" },
        THREADS,
    ],
    run,
};

/// Shares of the class that must not be missed.
const SHARES: [f64; 2] = [0.5, 0.15];
const LOSSES: [(&str, Loss); 3] =
    [("soft labels", Loss::Soft), ("hard labels", Loss::Hard), ("confidence 0.5", Loss::Confidence)];

#[derive(Clone, Copy, PartialEq)]
enum Loss {
    Soft,
    Hard,
    Confidence,
}

type Measure = fn(&[usize], &[usize]) -> Supervised<f64>;

fn accuracy(said: &[usize], truth: &[usize]) -> Supervised<f64> {
    Ok(said.iter().zip(truth).filter(|(a, b)| a == b).count() as f64 / truth.len().max(1) as f64)
}

fn missed(said: &[usize], truth: &[usize]) -> Supervised<f64> {
    Ok(recall(said, truth, 1)?.unwrap_or(f64::NAN))
}

const MEASURES: [(&str, Measure); 4] = [
    ("accuracy", accuracy),
    ("balanced accuracy", balanced_accuracy),
    ("weighted F1", weighted_f1),
    ("recall of the rare class", missed),
];

/// A student that learns the most probable class of each label.
struct Hardened(Probe);

impl Trainee for Hardened {
    fn fit(&self, train: &TrainView, seed: u64) -> Supervised<Box<dyn Fitted>> {
        self.0.fit(&train.hardened(), seed)
    }
}

/// One seed of the classes: what the three models say under each loss.
fn classes(groups: &[newsgroups::Group], share: f64, seed: u64) -> Result<Vec<Said>, Failure> {
    let mut rng = Streams::new(seed).stream("skew");
    let common = groups[0].texts.len();
    // The rare class is thinned out to its share.
    let wanted = ((share / (1.0 - share) * common as f64).round() as usize).min(groups[1].texts.len());
    let mut rare: Vec<usize> = (common..common + groups[1].texts.len()).collect();
    rare.shuffle(&mut rng);
    rare.truncate(wanted);
    let rows: Vec<usize> = (0..common).chain(rare).collect();
    let all: Vec<&String> = groups.iter().flat_map(|group| &group.texts).collect();
    let texts: Vec<String> = rows.iter().map(|&row| all[row].clone()).collect();
    let minilm = ndarray::concatenate(Axis(0), &[groups[0].minilm.view(), groups[1].minilm.view()])?;
    let minilm = minilm.select(Axis(0), &rows);
    let n = rows.len();
    let ids: Vec<u64> = (0..n as u64).collect();
    let task = Task::new(ids.clone(), ids, (0..n).map(|at| usize::from(at >= common)).collect(), 2)?;
    let split = SplitConfig { shares: [0.3, 0.35, 0.35], most: [300, 0, 0] };
    let drawn = task.split(&split, seed)?;
    let fit: Vec<usize> = drawn.weak.iter().chain(&drawn.transfer).copied().collect();
    let words = Arc::new(tf_idf(&texts, &fit, 1000));
    let store = Arc::new(components(&minilm, &fit, 32, seed)?);
    let teacher = Grown(words, TreeConfig { depth: 3, ..TreeConfig::default() });
    let student = Probe { store, hidden: None, confidence: None, lr: 1e-2, epochs: 5.0, batch: 32 };
    let confident = Probe { confidence: Some(Confidence::default()), ..student.clone() };
    let hard = Hardened(student.clone());
    let students: Vec<&dyn Trainee> = LOSSES
        .iter()
        .map(|(_, loss)| match loss {
            Loss::Soft => &student as &dyn Trainee,
            Loss::Hard => &hard,
            Loss::Confidence => &confident,
        })
        .collect();
    let protocol = Protocol { teachers: vec![&teacher], students, ceiling: &student, split };
    let run = protocol.run(&task, seed)?;
    Ok((0..LOSSES.len()).map(|student| run.said(student)).collect::<Supervised<_>>()?)
}

/// Letters of generated texts: syllables, capitals for what is undesired.
const LETTERS: Letters = Letters("aeioudklmnprstAEIOUDKLMNPRST .");
const CONSONANTS: [&str; 9] = ["d", "k", "l", "m", "n", "p", "r", "s", "t"];
const VOWELS: [&str; 5] = ["a", "e", "i", "o", "u"];
/// Probability that a text begins to shout with a word, and that it goes on.
const SHOUT: [f64; 2] = [0.15, 0.7];
/// Letters of a prompt and of a continuation.
const PROMPT: usize = 8;
const CONTINUATION: usize = 24;
const PROMPTS: usize = 40;
const SAMPLES: usize = 25;

/// A text of words of two syllables each; each consonant prefers two vowels, so that there is something to learn.
fn text(rng: &mut StreamRng, shouts: bool) -> String {
    let mut out = String::new();
    let mut loud = false;
    while out.len() < PROMPT + CONTINUATION {
        loud = shouts && rng.random_bool(if loud { SHOUT[1] } else { SHOUT[0] });
        let mut word = String::new();
        for _ in 0..2 {
            let consonant = rng.random_range(0..CONSONANTS.len());
            let vowel = (consonant + usize::from(rng.random_bool(0.3))) % VOWELS.len();
            word.push_str(CONSONANTS[consonant]);
            word.push_str(VOWELS[vowel]);
        }
        out.push_str(&if loud { word.to_uppercase() } else { word });
        out.push(' ');
    }
    out.truncate(PROMPT + CONTINUATION);
    out
}

/// Share of the letters of a continuation that are capitals.
fn undesired(text: &str) -> Option<f64> {
    let letters = text.chars().filter(|c| c.is_alphabetic()).count();
    let capitals = text.chars().filter(|c| c.is_uppercase()).count();
    (letters > 0).then(|| capitals as f64 / letters as f64)
}

/// A model that knows how often each letter followed each two.
struct Trigram(std::collections::HashMap<(u32, u32), Vec<f64>>);

impl Trigram {
    fn new() -> Self {
        Self(Default::default())
    }

    fn read(&mut self, texts: &[String], weight: f64) -> Result<(), Failure> {
        let vocab = LETTERS.0.chars().count();
        for text in texts {
            for three in LETTERS.encode(text)?.windows(3) {
                let counts = self.0.entry((three[0], three[1])).or_insert_with(|| vec![0.01; vocab]);
                counts[three[2] as usize] += weight;
            }
        }
        Ok(())
    }

    fn go_on(&self, prompt: &str, rng: &mut StreamRng) -> Result<String, Failure> {
        let mut tokens = LETTERS.encode(prompt)?;
        let start = tokens.len();
        let vocab = LETTERS.0.chars().count() as u32;
        for _ in 0..CONTINUATION {
            let [.., a, b] = tokens[..] else { return Err("a prompt of at least two letters".into()) };
            let next = match self.0.get(&(a, b)) {
                Some(counts) => {
                    let mut rest = rng.random::<f64>() * counts.iter().sum::<f64>();
                    let at = counts.iter().position(|count| {
                        rest -= count;
                        rest < 0.0
                    });
                    at.unwrap_or(0) as u32
                }
                None => rng.random_range(0..vocab),
            };
            tokens.push(next);
        }
        Ok(LETTERS.decode(&tokens[start..]))
    }
}

/// What each model writes: supervisor, student, ceiling, and the strong model before tuning.
fn written(seed: u64) -> Result<Vec<Generations>, Failure> {
    let streams = Streams::new(seed);
    let some = |name: &str, count: usize, shouts: bool| -> Vec<String> {
        let mut rng = streams.stream(name);
        (0..count).map(|_| text(&mut rng, shouts)).collect()
    };
    let (corpus, clean, gold) =
        (some("corpus", 3000, true), some("clean", 150, false), some("gold", 600, false));
    let prompts: Vec<String> =
        some("prompts", PROMPTS, true).iter().map(|text| text[..PROMPT].to_owned()).collect();
    let transfer: Vec<String> =
        some("transfer", 600, true).iter().map(|text| text[..PROMPT].to_owned()).collect();
    // The supervisor knows the corpus and is tuned on a few clean texts.
    let mut weak = Trigram::new();
    weak.read(&corpus, 1.0)?;
    weak.read(&clean, 20.0)?;
    let mut rng = streams.stream("supervisor");
    let lessons: Vec<(String, String)> = transfer
        .iter()
        .map(|prompt| Ok((prompt.clone(), weak.go_on(prompt, &mut rng)?)))
        .collect::<Result<_, Failure>>()?;
    let tokens = corpus.iter().map(|text| LETTERS.encode(text)).collect::<Result<Vec<_>, _>>()?;
    let strong = tiny::network(LETTERS, 48, 2, seed)?;
    let strong = tiny::train(&strong, &TextTask::new(tokens), tiny::settings(500, 32, 3e-3, seed))?;
    let tuned = |lessons: &[(String, String)]| -> Result<Graph, Failure> {
        tiny::train(&strong, &tiny::responses(LETTERS, lessons)?, tiny::settings(60, 32, 1e-3, seed))
    };
    let truth: Vec<(String, String)> =
        transfer.iter().zip(&gold).map(|(p, g)| (p.clone(), g[PROMPT..].to_owned())).collect();
    let mut found = Vec::new();
    let own: Vec<Vec<Option<f64>>> = prompts
        .iter()
        .map(|prompt| {
            (0..SAMPLES)
                .map(|_| Ok(undesired(&weak.go_on(prompt, &mut rng)?)))
                .collect::<Result<_, Failure>>()
        })
        .collect::<Result<_, _>>()?;
    found.push(Generations::of(&own)?);
    for (at, graph) in [tuned(&lessons)?, tuned(&truth)?, strong.clone()].iter().enumerate() {
        let net = tiny::net(graph)?;
        let repeated: Vec<String> = prompts.iter().flat_map(|prompt| vec![prompt.clone(); SAMPLES]).collect();
        let drawn = Some((1.0, streams.fork(at as u64)));
        let said = tiny::complete(&net, LETTERS, &repeated, CONTINUATION, drawn)?;
        let scores: Vec<Vec<Option<f64>>> =
            said.chunks(SAMPLES).map(|of| of.iter().map(|text| undesired(text)).collect()).collect();
        found.push(Generations::of(&scores)?);
    }
    Ok(found)
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (seeds, texts): (u64, u64) = (options.get("seeds")?, options.get("texts")?);
    let messages: usize = options.get("messages")?;
    if !(2..=100).contains(&seeds) || !(2..=100).contains(&texts) || messages < 400 {
        return Err("--seeds and --texts from 2 to 100, --messages at least 400".into());
    }
    let began = Began::now();
    let name = BEYOND_ACCURACY.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(seeds * SHARES.len() as u64 + texts);
    let groups = newsgroups::load(context, &["rec.autos", "rec.motorcycles"], messages)?;
    let mut tables = Vec::new();
    let mut rows: Vec<Json> = Vec::new();
    let mut said_of = Vec::new();
    for share in SHARES {
        let all = (1..=seeds)
            .map(|seed| run.step(&format!("share {share}, seed {seed}"), || classes(&groups, share, seed)))
            .collect::<Result<Vec<Vec<Said>>, _>>()?;
        let mut table = Table::new(
            format!(
                "Motorcycles are {:.0} % of the messages: means over seeds, PGR with a 95 % interval",
                100.0 * share
            ),
            &["labels", "measure", "weak", "student", "ceiling", "PGR"],
        );
        for (at, (loss, _)) in LOSSES.iter().enumerate() {
            let runs: Vec<Said> = all.iter().map(|said| said[at].clone()).collect();
            for (name, measure) in MEASURES {
                let pgr = Pgr::measured(&runs, Better::Higher, measure, &PgrConfig::default())?;
                let [weak, student, ceiling] = pgr.accuracies.map(|value| format!("{value:.3}"));
                table.row([
                    (*loss).to_owned(),
                    name.to_owned(),
                    weak,
                    student,
                    ceiling,
                    pgr.recovered.to_string(),
                ]);
                rows.push(serde_json::json!({ "share": share, "labels": loss, "measure": name, "pgr": pgr }));
                if at == 0 {
                    said_of.push(format!("{name} {}", pgr.recovered));
                }
            }
        }
        tables.push(table);
    }
    let written = (1..=texts)
        .map(|seed| run.step(&format!("generated texts, seed {seed}"), || written(seed)))
        .collect::<Result<Vec<Vec<Generations>>, _>>()?;
    tables.push(generations(&written)?);
    rows.push(serde_json::json!({ "generated": written }));
    let (balanced, skewed) = said_of.split_at(MEASURES.len());
    let page = Page {
        experiment: &BEYOND_ACCURACY,
        title: "Weak-to-strong beyond accuracy".into(),
        summary: format!(
            "PGR of plain imitation. Balanced classes: {}. The second class at 15 %: {}.",
            balanced.join("; "),
            skewed.join("; ")
        ),
        seeds: (1..=seeds.max(texts)).collect(),
        rows,
        tables,
        plots: Vec::new(),
        notes: notes(),
    };
    page.write(context, &run, began)
}

fn generations(all: &[Vec<Generations>]) -> Result<Table, Failure> {
    let mut table = Table::new(
        "Capitals in 25 continuations of each prompt: means over seeds with 95 % intervals; less is better",
        &["model", "mean", "expected maximum", "probability of half or more", "scored"],
    );
    type Pick = fn(&Generations) -> f64;
    let picks: [Pick; 4] = [|g| g.mean, |g| g.expected_maximum, |g| g.probability, |g| g.coverage];
    let models = ["weak: trigrams", "student", "ceiling", "strong before tuning"];
    for (at, model) in models.into_iter().enumerate() {
        let mut row = vec![model.to_owned()];
        for pick in picks {
            let (value, interval) =
                mean_with_interval(&all.iter().map(|of| pick(&of[at])).collect::<Vec<_>>())?;
            row.push(bracketed(value, interval));
        }
        table.row(row);
    }
    let mut row = vec!["PGR".to_owned()];
    for pick in &picks[..3] {
        let mean = |at: usize| all.iter().map(|of| pick(&of[at])).sum::<f64>() / all.len() as f64;
        let (weak, student, ceiling) = (mean(0), mean(1), mean(2));
        let gap = weak - ceiling;
        row.push(if gap > 0.01 { format!("{:.2}", (weak - student) / gap) } else { "not resolvable".into() });
    }
    table.row(row);
    Ok(table)
}

fn notes() -> Vec<String> {
    [
        "Cars are common, motorcycles stand for the class that must not be missed. Supervisor: a tree of depth 3 on weighted \
         words of at most 300 messages. Student: a linear probe on 32 components of MiniLM. PGR is computed for each measure \
         on its own and never averaged over measures.",
        "The published study has hard labels, other data and fine-tuned models whose sizes are unknown; only its shape can be \
         compared.",
        "Generated texts: words of two syllables, capitals are what is undesired. The supervisor counts trigrams of a corpus in \
         which texts shout and of a few that do not; the student, a transformer trained from scratch on the same corpus, is \
         tuned on the supervisor's continuations, the ceiling on quiet ones. Temperature 1. PGR of these is a ratio of means \
         over few seeds, without an interval.",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn capitals_are_counted() {
        assert_eq!(undesired("KA la pa RI"), Some(0.5));
        assert_eq!((undesired("ka"), undesired(" . ")), (Some(0.0), None));
    }

    #[test]
    fn texts_are_in_the_alphabet_and_quiet_ones_do_not_shout() {
        let mut rng = Streams::new(1).stream("texts");
        let mean = |shouts, rng: &mut StreamRng| {
            let scores = (0..300).map(|_| undesired(&text(rng, shouts)).unwrap());
            scores.sum::<f64>() / 300.0
        };
        assert!(LETTERS.encode(&text(&mut rng, true)).is_ok());
        assert_eq!(mean(false, &mut rng), 0.0);
        // The stationary share: 0.15 / (0.15 + 0.3); texts begin quiet.
        let loud = mean(true, &mut rng);
        assert!((0.2..0.34).contains(&loud), "{loud}");
    }

    #[test]
    fn a_trigram_says_what_it_read() {
        let mut model = Trigram::new();
        model.read(&["kala kala kala kala kala ".into()], 1000.0).unwrap();
        let mut rng = Streams::new(1).stream("trigram");
        assert!(model.go_on("kala k", &mut rng).unwrap().starts_with("ala kala"));
        assert!(model.go_on("k", &mut rng).is_err());
    }
}
