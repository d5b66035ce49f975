//! Debate in words: SmolLM2-135M argues for and against small claims, judges that read embeddings of what it says label
//! them.

use std::cell::RefCell;
use std::sync::Arc;

use ndarray::{Array2, Axis, concatenate};
use pilotfish_architectures::{ChatTemplate, Tokenizer};
use pilotfish_model::Streams;
use pilotfish_model::sampling::Warpers;
use pilotfish_supervision::debate::{Debater, Form, Turn, hold, turn_prompt};
use pilotfish_supervision::verifiers::{Reader, SampleConfig};
use pilotfish_supervision::weak_to_strong::{Ensemble, SplitConfig, Task, Trainee};
use pilotfish_supervision::{Result as Supervised, SupervisionError};
use rand::seq::SliceRandom;

use super::{Cell, Summary, cells, summarise};
use crate::error::Failure;
use crate::experiments::features::{Model, components, of_texts};
use crate::experiments::judging::{auroc, balanced_accuracy, mean_log_probability, resampled};
use crate::experiments::page::{Began, Page};
use crate::experiments::probe::{Probe, Store};
use crate::experiments::session::{MODEL, STORAGE, Session, THREADS, asked, single_tokens};
use crate::experiments::{Choice, Context, Experiment, Outcome};
use crate::plots::{Kind, Plot};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const W2S_DEBATE_TEXT: Experiment = Experiment {
    name: "w2s-debate-text",
    about: "debate in words: SmolLM2-135M argues for and against small claims, judges read embeddings of its arguments",
    needs: &["minilm", "smollm2-135m"],
    library: true,
    options: &[
        MODEL,
        STORAGE,
        THREADS,
        Choice {
            name: "facts",
            default: "80",
            about: "facts, each with a claim that is true and one that is not",
        },
        Choice { name: "tokens", default: "24", about: "tokens of an argument at most" },
        Choice { name: "seeds", default: "20", about: "seeds of splits and training, from 1 on" },
        Choice { name: "seed", default: "1", about: "seed of claims and debates" },
    ],
    run,
};

/// Debates about each claim: one for each judge of the ensemble.
const DEBATES: u64 = 2;
const TURNS: usize = 3;
/// Components of an embedding that judges and students see.
const COMPONENTS: usize = 16;
const CLASSES: [&str; 2] = ["False", "True"];
const TASK: &str = "Is the following claim true or false?";
/// What comes before a claim where the model is asked directly.
const SHOTS: &str = "Claim: A dog is an animal.\nTrue or False: True\n\nClaim: A chair is an animal.\nTrue or False: False\n\n\
                     Claim: A rose is a building.\nTrue or False: False\n\nClaim: A rose is a flower.\nTrue or False: True\n\n";
const WAYS: [&str; 5] = [
    "no debate",
    "debate",
    "2 judges of one debate",
    "2 judges of 2 debates",
    "debates about other claims (control)",
];
const LABELS: [&str; 5] = ["no debate", "debate", "2 x 1 debate", "2 debates", "control"];

/// Things without an article.
const METALS: [&str; 8] = ["iron", "gold", "silver", "copper", "tin", "lead", "zinc", "nickel"];

/// Kinds of things, with some of each.
const KINDS: [(&str, [&str; 8]); 10] = [
    ("a bird", ["sparrow", "eagle", "penguin", "robin", "owl", "parrot", "swan", "crow"]),
    ("a fish", ["salmon", "trout", "tuna", "shark", "cod", "herring", "carp", "eel"]),
    ("a fruit", ["apple", "banana", "cherry", "grape", "mango", "peach", "pear", "plum"]),
    ("a vegetable", ["carrot", "cabbage", "onion", "spinach", "broccoli", "leek", "turnip", "radish"]),
    ("a tool", ["hammer", "saw", "screwdriver", "wrench", "drill", "chisel", "axe", "shovel"]),
    ("an instrument", ["piano", "violin", "flute", "trumpet", "guitar", "drum", "cello", "harp"]),
    ("an insect", ["ant", "bee", "wasp", "beetle", "moth", "butterfly", "mosquito", "fly"]),
    ("a tree", ["oak", "pine", "birch", "maple", "willow", "elm", "cedar", "beech"]),
    ("a metal", METALS),
    ("a garment", ["shirt", "coat", "sock", "hat", "skirt", "glove", "scarf", "jacket"]),
];

/// A claim, the fact that it is about, and whether it is true.
#[derive(Clone, Debug, PartialEq)]
struct Claim {
    text: String,
    fact: usize,
    truth: usize,
}

/// Two claims for each of some facts: that a thing is of its kind, and that it is of another.
fn claims(facts: usize, seed: u64) -> Vec<Claim> {
    let mut rng = Streams::new(seed).stream("claims");
    let mut all: Vec<(usize, &str)> =
        KINDS.iter().enumerate().flat_map(|(kind, (_, things))| things.map(|thing| (kind, thing))).collect();
    all.shuffle(&mut rng);
    // False kinds are the true ones in another order, so that no kind is more often false than true.
    let facts = facts.min(all.len());
    let chosen = &all[..facts];
    let mut other: Vec<usize> = chosen.iter().map(|(kind, _)| *kind).collect();
    loop {
        other.shuffle(&mut rng);
        if chosen.iter().zip(&other).all(|((kind, _), other)| kind != other) {
            break;
        }
    }
    let say = |thing: &str, kind: usize| {
        let article = match thing.starts_with(['a', 'e', 'i', 'o', 'u']) {
            _ if METALS.contains(&thing) => "",
            true => "an ",
            false => "a ",
        };
        let text = format!("{article}{thing} is {}.", KINDS[kind].0);
        text[..1].to_uppercase() + &text[1..]
    };
    chosen
        .iter()
        .zip(other)
        .enumerate()
        .flat_map(|(fact, ((kind, thing), other))| {
            [(*kind, 1), (other, 0)].map(|(kind, truth)| Claim { text: say(thing, kind), fact, truth })
        })
        .collect()
}

/// A language model that argues.
struct Speaker<'a, 'b> {
    reader: RefCell<&'a mut Reader<'b>>,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    config: &'a SampleConfig,
    claims: &'a [Claim],
}

impl Debater for Speaker<'_, '_> {
    type Argument = String;

    fn argue(
        &self,
        item: usize,
        side: usize,
        so_far: &[Turn<String>],
        streams: &Streams,
    ) -> Supervised<String> {
        let refused = |error: Failure| SupervisionError::Solver { model: "debater", why: error.to_string() };
        let prompt = turn_prompt(TASK, &self.claims[item].text, CLASSES, side, so_far);
        let prompt = asked(self.tokenizer, self.template, &prompt).map_err(refused)?;
        let said = self.reader.borrow_mut().sample(&prompt, 1, self.config, streams)?;
        let tokens = said.first().map(|said| said.tokens.as_slice()).unwrap_or_default();
        let text = self.tokenizer.decode(tokens, true).map_err(|error| refused(error.into()))?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (facts, tokens, seeds): (usize, usize, u64) =
        (options.get("facts")?, options.get("tokens")?, options.get("seeds")?);
    let seed: u64 = options.get("seed")?;
    if !(30..=80).contains(&facts) || tokens == 0 || !(2..=1000).contains(&seeds) {
        return Err("--facts must be from 30 to 80, --tokens at least 1, --seeds from 2 to 1000".into());
    }
    let began = Began::now();
    let mut run =
        Run::open(context.results(), W2S_DEBATE_TEXT.name, options, context.fresh(), context.is_quiet())?;
    let claims = claims(facts, seed);
    run.expect((2 + DEBATES) * claims.len() as u64 + seeds);
    let Heard { said, likely, debates } = debates(context, &claims, tokens, seed, &mut run)?;
    let texts: Vec<String> = claims.iter().map(|claim| claim.text.clone()).collect();
    let own = of_texts(context, Model::MiniLm, &texts)?;
    let states = of_texts(context, Model::SmolLm2, &texts)?;
    let read = debates.iter().map(|debate| heard(context, debate)).collect::<Result<Vec<_>, _>>()?;
    let world = World { claims: &claims, own, states, read };
    let all = (1..=seeds)
        .map(|seed| run.step(&format!("judges and students, seed {seed}"), || world.cells(seed)))
        .collect::<Result<Vec<Vec<Cell>>, _>>()?;
    let what = format!("claims about {facts} things");
    let Summary { table, series, rows } = summarise(&what, &WAYS.map(str::to_owned), WAYS.len(), &all)?;
    let truth = |at: usize| claims[at].truth == 1;
    let of = |at: &[usize]| balanced_accuracy(at.iter().map(|&at| (said[at] > 0.5, truth(at))));
    let (accuracy, interval) = resampled(claims.len(), seed, of).ok_or("claims of both kinds")?;
    let area = auroc(said.iter().enumerate().map(|(at, p)| (*p, truth(at)))).ok_or("claims of both kinds")?;
    let (sides, repeated) = spoken(&claims, &debates);
    let preferred = likely.chunks_exact(2).filter(|pair| pair[0] > pair[1]).count() as f64 / facts as f64;
    let model = options.text("model")?;
    let shown: Vec<String> = table.rows.iter().map(|row| format!("{} {}", row[0], row[1])).collect();
    let summary = format!(
        "{model} finds the true claim about a thing likelier than the other one in {:.1} %; asked whether a claim is true it is right in {:.1} % [{:.1}, {:.1}]. Accuracy of the judge: {}.",
        100.0 * preferred,
        100.0 * accuracy,
        100.0 * interval.low,
        100.0 * interval.high,
        shown.join("; ")
    );
    let plots = vec![Plot {
        title: "Accuracy of judge and student".into(),
        x: "labels by".into(),
        y: "accuracy".into(),
        kind: Kind::Bars { labels: LABELS.map(str::to_owned).to_vec() },
        series: series.to_vec(),
        reference: None,
    }];
    let mut knowledge = Table::new("What the debater knows, and how it debates", &["measure", "value"]);
    knowledge
        .row(["things whose true claim is the likelier text".into(), format!("{:.1} %", 100.0 * preferred)]);
    knowledge.row(["area under the curve of P(True), asked directly".into(), format!("{area:.3}")]);
    knowledge.row(["turns that repeat an earlier one".into(), format!("{:.1} %", 100.0 * repeated)]);
    knowledge.row(["debates that begin with the true side".into(), format!("{:.1} %", 100.0 * sides)]);
    let mut example = Table::new("A debate", &["speaker", "argues for", "argument"]);
    for turn in &debates[0][0] {
        let side = CLASSES[turn.side].to_owned();
        example.row([format!("{:?}", turn.speaker), side, turn.argument.clone()]);
    }
    let page = Page {
        experiment: &W2S_DEBATE_TEXT,
        title: "Debate in words, by a small language model".into(),
        summary,
        seeds: (1..=seeds).collect(),
        rows,
        tables: vec![table, knowledge, example],
        plots,
        notes: notes(&claims[0].text),
    };
    page.write(context, &run, began)
}

type Debate = Vec<Turn<String>>;

/// What the model makes of every claim.
struct Heard {
    /// The probability that it gives to its truth when it is asked.
    said: Vec<f64>,
    /// Mean log-probability of a token of it.
    likely: Vec<f64>,
    /// Sets of debates.
    debates: Vec<Vec<Debate>>,
}

fn debates(
    context: &Context,
    claims: &[Claim],
    tokens: usize,
    seed: u64,
    run: &mut Run,
) -> Result<Heard, Failure> {
    let Session { mut model, tokenizer, template, .. } = Session::open(context)?;
    let [no, yes] = single_tokens(&tokenizer, [" False", " True"])?;
    let start = tokenizer.encode("Fact:", false)?;
    let mut likely = Vec::new();
    for claim in claims {
        likely.push(run.step(&format!("likelihood: {}", claim.text), || -> Result<f64, Failure> {
            let claim = tokenizer.encode(&format!(" {}", claim.text), false)?;
            mean_log_probability(&mut model, &start, &claim)
        })?);
    }
    let warpers = Warpers { top_p: Some(0.9), ..Warpers::temperature(1.0) };
    let config = SampleConfig { warpers, tokens, stop: tokenizer.encode("\n", false)? };
    let mut reader = Reader::new(&mut model);
    let mut said = Vec::new();
    for claim in claims {
        said.push(run.step(&format!("asked: {}", claim.text), || -> Result<f64, Failure> {
            let before = tokenizer.encode(&format!("{SHOTS}Claim: {}", claim.text), false)?;
            let after = tokenizer.encode("\nTrue or False:", false)?;
            let judged = reader.judge(&before, &[&after], &[yes, no])?;
            Ok(judged[0][0])
        })?);
    }
    let mut debates = Vec::new();
    for debate in 0..DEBATES {
        let streams = Streams::new(seed).fork(1000 + debate);
        let mut held = Vec::new();
        for (item, claim) in claims.iter().enumerate() {
            let id = format!("debate {debate}: {}", claim.text);
            held.push(run.step(&id, || -> Result<Debate, Failure> {
                let (reader, template) = (RefCell::new(&mut reader), template.as_ref());
                let speaker = Speaker { reader, tokenizer: &tokenizer, template, config: &config, claims };
                Ok(hold(&speaker, Form::Debate { turns: TURNS }, item, &streams)?)
            })?);
        }
        debates.push(held);
    }
    Ok(Heard { said, likely, debates })
}

/// Share of debates that begin with the true side, and of turns that say what was said before.
fn spoken(claims: &[Claim], debates: &[Vec<Debate>]) -> (f64, f64) {
    let (mut right, mut repeated, mut turns, mut count) = (0, 0, 0, 0);
    for debate in debates {
        for (claim, held) in claims.iter().zip(debate) {
            count += 1;
            right += usize::from(held[0].side == claim.truth);
            for (at, turn) in held.iter().enumerate() {
                turns += 1;
                repeated += usize::from(held[..at].iter().any(|before| before.argument == turn.argument));
            }
        }
    }
    (right as f64 / count as f64, repeated as f64 / turns as f64)
}

/// Embeddings of what was said for either class, `[claims, d]` each: means over the turns of a side.
fn heard(context: &Context, debates: &[Debate]) -> Result<[Array2<f64>; 2], Failure> {
    let texts: Vec<String> = debates.iter().flatten().map(|turn| turn.argument.clone()).collect();
    let x = of_texts(context, Model::MiniLm, &texts)?;
    let mut out = [(); 2].map(|()| Array2::zeros((debates.len(), x.ncols())));
    let mut at = 0;
    for (item, debate) in debates.iter().enumerate() {
        let of_side = |side| debate.iter().filter(|turn| turn.side == side).count().max(1) as f64;
        let counts = [of_side(0), of_side(1)];
        for turn in debate {
            out[turn.side].row_mut(item).scaled_add(1.0 / counts[turn.side], &x.row(at));
            at += 1;
        }
    }
    Ok(out)
}

/// Claims as judges and students see them.
struct World<'a> {
    claims: &'a [Claim],
    own: Array2<f64>,
    states: Array2<f64>,
    read: Vec<[Array2<f64>; 2]>,
}

impl World<'_> {
    fn cells(&self, seed: u64) -> Result<Vec<Cell>, Failure> {
        let ids: Vec<u64> = (0..self.claims.len() as u64).collect();
        // Both claims about a thing are on one side of a split.
        let groups = self.claims.iter().map(|claim| claim.fact as u64).collect();
        let task = Task::new(ids, groups, self.claims.iter().map(|claim| claim.truth).collect(), 2)?;
        let split = SplitConfig { shares: [0.35, 0.35, 0.3], most: [0; 3] };
        let drawn = task.split(&split, seed)?;
        let fit: Vec<usize> = drawn.weak.iter().chain(&drawn.transfer).copied().collect();
        let few = |x: &Array2<f64>| components(x, &fit, COMPONENTS, seed);
        let probe = |store: Array2<f64>| -> Probe {
            let store: Store = Arc::new(store);
            Probe { store, hidden: None, confidence: None, lr: 1e-2, epochs: 20.0, batch: 16 }
        };
        let own = few(&self.own)?;
        let judge = |order: &[usize], debate: usize| -> Result<Probe, Failure> {
            let [no, yes] = &self.read[debate];
            let [no, yes] = [few(&no.select(Axis(0), order))?, few(&yes.select(Axis(0), order))?];
            Ok(probe(concatenate(Axis(1), &[own.view(), no.view(), yes.view()])?))
        };
        let same: Vec<usize> = (0..self.claims.len()).collect();
        let mut other = same.clone();
        other.shuffle(&mut Streams::new(seed).stream("shuffled"));
        let one = judge(&same, 0)?;
        let members = |probes: [Probe; 2]| -> Box<dyn Trainee> {
            Box::new(Ensemble { members: probes.map(|probe| Box::new(probe) as Box<dyn Trainee>).into() })
        };
        let teachers: Vec<Box<dyn Trainee>> = vec![
            Box::new(probe(own.clone())),
            Box::new(one.clone()),
            members([one.clone(), one.clone()]),
            members([one, judge(&same, 1)?]),
            Box::new(judge(&other, 0)?),
        ];
        // The student reads claims alone, never a debate.
        cells(&task, split, seed, &teachers, &probe(few(&self.states)?))
    }
}

fn notes(first: &str) -> Vec<String> {
    [
        "Each thing has two claims, that it is of its kind and that it is of another one; kinds are as often false as true, \
         and both claims are on the same side of every split.",
        "Debates have three turns with sides by coin, drawn at temperature 1 from the surest 90 %. Judges see 16 components of \
         MiniLM's embedding of the claim and of what was said for either side; the student 16 components of SmolLM2's mean \
         states of the claim, and labels.",
        "Judges of one debate differ in the order of their training alone; the control shows each judge debates about other \
         claims. PGR's floor is the judge without debates.",
        "Seeds are of splits and training; debates are held once, so intervals say nothing of other debates or claims.",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("The debate shown is about: {first}")])
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilotfish_supervision::debate::Speaker as Who;

    #[test]
    fn kinds_are_as_often_false_as_true() {
        let claims = claims(80, 3);
        assert_eq!(claims.len(), 160);
        for (kind, _) in KINDS {
            let said = |truth| {
                claims.iter().filter(|c| c.truth == truth && c.text.ends_with(&format!(" {kind}."))).count()
            };
            assert_eq!((said(0), said(1)), (8, 8), "{kind}");
        }
        assert_eq!(claims.iter().filter(|claim| claim.text == "An ant is an insect.").count(), 1);
        assert!(claims.iter().any(|claim| claim.text == "Gold is a metal."));
        assert!(claims.chunks(2).all(|pair| pair[0].fact == pair[1].fact && pair[0].text != pair[1].text));
        assert_eq!(super::claims(80, 3), claims);
    }

    #[test]
    fn repeats_and_sides_by_hand() {
        let claim = |truth| Claim { text: String::new(), fact: 0, truth };
        let turn = |side, text: &str| Turn { speaker: Who::A, side, argument: text.into() };
        let debate = vec![vec![turn(1, "a"), turn(0, "b"), turn(1, "a")], vec![turn(1, "c"), turn(0, "d")]];
        assert_eq!(spoken(&[claim(1), claim(0)], &[debate]), (0.5, 0.2));
    }
}
