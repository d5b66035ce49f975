//! Debates: who says what when, what judges and students may see, and what an ensemble is.
#![allow(clippy::unwrap_used)]

use ndarray::{Array2, array};
use pilotfish_model::Streams;
use pilotfish_supervision::debate::{
    Debater, Evidence, FeatureDebater, Form, Speaker, Turn, first_side, hold, judge_features, judge_text,
    majority, turn_prompt,
};
use pilotfish_supervision::heads::{Logistic, LogisticConfig};
use pilotfish_supervision::weak_to_strong::{
    Ensemble, Fitted, Outcomes, Pgr, PgrConfig, Recovered, Task, TrainView, Trainee, ensemble, hard,
};
use pilotfish_supervision::{Result, SupervisionError};
use rand::Rng;

/// Says what it was asked, with a number of its own.
struct Recorder;

impl Debater for Recorder {
    type Argument = String;
    fn argue(&self, item: usize, side: usize, so_far: &[Turn<String>], streams: &Streams) -> Result<String> {
        let drawn: u32 = streams.stream("argument").random();
        Ok(format!("{item} is {side} after {} [{drawn}]", so_far.len()))
    }
}

#[test]
fn turns_alternate_and_carry_what_was_said() {
    let streams = Streams::new(4);
    let debate = hold(&Recorder, Form::Debate { turns: 3 }, 5, &streams).unwrap();
    let first = first_side(5, &streams);
    assert_eq!(
        debate.iter().map(|turn| turn.speaker).collect::<Vec<_>>(),
        [Speaker::A, Speaker::B, Speaker::A]
    );
    assert_eq!(debate.iter().map(|turn| turn.side).collect::<Vec<_>>(), [first, 1 - first, first]);
    assert!(debate[2].argument.starts_with(&format!("5 is {first} after 2")));
    // The same seed is the same debate, another seed another.
    assert_eq!(debate, hold(&Recorder, Form::Debate { turns: 3 }, 5, &streams).unwrap());
    assert_ne!(debate, hold(&Recorder, Form::Debate { turns: 3 }, 5, &Streams::new(5)).unwrap());
    // Arguments of different turns are drawn apart.
    let number = |turn: usize| debate[turn].argument.split('[').nth(1).map(str::to_owned);
    assert_ne!(number(0), number(2));
    let alone = hold(&Recorder, Form::Consultancy { turns: 3 }, 5, &streams).unwrap();
    assert!(alone.iter().all(|turn| turn.side == first && turn.speaker == Speaker::A));
    let against = hold(&Recorder, Form::Market { turns: 2, guess: 1 }, 5, &streams).unwrap();
    assert!(against.iter().all(|turn| turn.side == 0));
    assert!(hold(&Recorder, Form::Debate { turns: 0 }, 5, &streams).is_err());
    assert!(hold(&Recorder, Form::Market { turns: 2, guess: 2 }, 5, &streams).is_err());
    assert_eq!(Form::default(), Form::Debate { turns: 3 });
}

#[test]
fn sides_know_nothing_of_the_truth() {
    const N: usize = 4000;
    let sides = |seed| (0..N).map(|item| first_side(item, &Streams::new(seed))).collect::<Vec<_>>();
    let one = sides(1);
    // Any truth will do: here parity, halves, and thirds.
    for truth in
        [|item: usize| item % 2, |item: usize| item / (N / 2), |item: usize| usize::from(item % 3 == 0)]
    {
        let same = (0..N).filter(|&item| one[item] == truth(item)).count() as f64;
        assert!((2.0 * same / N as f64 - 1.0).abs() < 3.0 / (N as f64).sqrt());
    }
    let differ = one.iter().zip(sides(2)).filter(|(a, b)| **a != *b).count();
    assert!((1800..2200).contains(&differ));
}

#[test]
fn prompts_grow_by_what_was_said_and_items_are_never_cut() {
    let (task, item, classes) = ("Is this sum right?", "17 + 5 = 23 (\u{2713}?)", ["wrong", "right"]);
    let mut turns: Vec<Turn<String>> = Vec::new();
    let first = turn_prompt(task, item, classes, 1, &turns);
    assert!(first.contains(item) && first.contains("the answer is: right") && !first.contains("opponent's"));
    turns.push(Turn { speaker: Speaker::A, side: 1, argument: "FIRST argument".into() });
    let second = turn_prompt(task, item, classes, 0, &turns);
    assert!(second.contains("FIRST") && second.contains("flaws") && second.contains("the answer is: wrong"));
    turns.push(Turn { speaker: Speaker::B, side: 0, argument: "SECOND argument".into() });
    let third = turn_prompt(task, item, classes, 1, &turns);
    assert!(third.contains("FIRST") && third.contains("SECOND") && third.contains("counter-argument"));
    assert!(third.contains("A, for right") && third.contains("B, for wrong"));
    for limit in [item.chars().count(), 40, 60, 80, 1000] {
        let text = judge_text(item, classes, &turns, limit).unwrap();
        assert!(text.starts_with(item) && text.chars().count() <= limit, "{limit}: {text}");
    }
    assert!(judge_text(item, classes, &turns, 80).unwrap().contains("argument"), "ends of turns are kept");
    assert!(matches!(judge_text(item, classes, &turns, 5), Err(SupervisionError::TooLarge { .. })));
    // What a student reads is the item, in which nothing of a debate is found.
    assert!(!item.contains("FIRST") && judge_text(item, classes, &[], 1000).unwrap() == item);
}

#[test]
fn features_are_revealed_by_what_they_say() {
    let x = array![[1.0, 0.5, 0.0, 1.0]];
    // Contributions to class 1: 2, -1.5, 0, 0.1.
    let debater = FeatureDebater::new(x, vec![2.0, -3.0, 9.0, 0.1], 1, 0.0).unwrap();
    let streams = Streams::new(1);
    assert_eq!(debater.argue(0, 1, &[], &streams).unwrap(), [(0, 1.0)]);
    assert_eq!(debater.argue(0, 0, &[], &streams).unwrap(), [(1, 0.5)]);
    let said = Turn { speaker: Speaker::A, side: 1, argument: vec![(0, 1.0)] };
    assert_eq!(debater.argue(0, 1, &[said], &streams).unwrap(), [(3, 1.0)], "nothing twice");
    // A forger claims the third feature, which is 0, to be 1.
    assert_eq!(debater.clone().forging().argue(0, 1, &[], &streams).unwrap(), [(2, 1.0)]);
    assert!(debater.argue(1, 0, &[], &streams).is_err() && debater.argue(0, 2, &[], &streams).is_err());
    let all = FeatureDebater::new(array![[1.0, 0.5]], vec![1.0, 1.0], 5, 0.3).unwrap();
    let debate = hold(&all, Form::default(), 0, &streams).unwrap();
    assert_eq!(debate.iter().map(|turn| turn.argument.len()).collect::<Vec<_>>(), [2, 0, 0]);
    let seen = judge_features(
        array![[7.0]].view(),
        &[vec![Turn { speaker: Speaker::A, side: 0, argument: vec![(1, 0.5)] }]],
        2,
    );
    // Own; class 1 values and mask; class 0 values and mask.
    assert_eq!(seen.unwrap(), array![[7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 1.0]]);
    let outside = vec![Turn { speaker: Speaker::A, side: 0, argument: vec![(2, 0.5)] }];
    assert!(judge_features(array![[7.0]].view(), &[outside], 2).is_err());
    assert!(judge_features(array![[7.0]].view(), &[], 2).is_err());
    for (weights, reveal, noise) in [
        (vec![1.0], 1, 0.0),
        (vec![1.0, f64::NAN], 1, 0.0),
        (vec![1.0; 2], 0, 0.0),
        (vec![1.0; 2], 1, f64::NAN),
    ] {
        assert!(FeatureDebater::new(array![[1.0, 0.5]], weights, reveal, noise).is_err());
    }
}

/// A regression on a store of its own.
struct Reads(Array2<f64>);
struct Learnt(Array2<f64>, Logistic);

impl Trainee for Reads {
    fn fit(&self, train: &TrainView, _: u64) -> Result<Box<dyn Fitted>> {
        let x = self.0.select(ndarray::Axis(0), train.rows());
        let config = LogisticConfig { l2: 0.01, ..LogisticConfig::default() };
        Ok(Box::new(Learnt(self.0.clone(), Logistic::fit(x.view(), train.targets().view(), None, &config)?)))
    }
}

impl Fitted for Learnt {
    fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
        self.1.predict(self.0.select(ndarray::Axis(0), rows).view())
    }
}

/// Reveals feature 0 when its side is true, and otherwise feature 1; or features that have nothing to do with the item.
struct Witness {
    truth: Vec<usize>,
    lies: bool,
    informs: bool,
}

impl Debater for Witness {
    type Argument = Evidence;
    fn argue(&self, item: usize, side: usize, _: &[Turn<Evidence>], streams: &Streams) -> Result<Evidence> {
        let shows = match self.informs {
            true => self.truth[item] == side,
            false => streams.stream("coin").random(),
        };
        Ok(if shows {
            vec![(0, 1.0)]
        } else if self.lies {
            vec![(1, 1.0)]
        } else {
            vec![]
        })
    }
}

fn judged(debater: &Witness, form: Form, own: &Array2<f64>, streams: &Streams) -> Reads {
    let held: Vec<_> = (0..own.nrows()).map(|item| hold(debater, form, item, streams).unwrap()).collect();
    Reads(judge_features(own.view(), &held, 2).unwrap())
}

fn accuracy(trainee: &dyn Trainee, task: &Task, n: usize) -> f64 {
    let (train, test): (Vec<usize>, Vec<usize>) = (0..n).partition(|row| row % 2 == 0);
    let model = trainee.fit(&task.gold(&train).unwrap(), 1).unwrap();
    let said = hard(&model.predict(&test).unwrap());
    let truth = task.truth(&test).unwrap();
    said.iter().zip(&truth).filter(|(a, b)| a == b).count() as f64 / truth.len() as f64
}

#[test]
fn what_can_be_shown_is_believed_and_noise_is_not() {
    const N: usize = 2000;
    let mut rng = Streams::new(9).stream("world");
    let truth: Vec<usize> = (0..N).map(|_| rng.random_range(0..2)).collect();
    // The judge's own feature is right on 65 %.
    let own = Array2::from_shape_fn((N, 1), |(item, _)| {
        let right = rng.random_bool(0.65);
        if (truth[item] == 1) == right { 1.0 } else { -1.0 }
    });
    let task = Task::new((0..N as u64).collect(), (0..N as u64).collect(), truth.clone(), 2).unwrap();
    let streams = Streams::new(3);
    let witness = |informs| Witness { truth: truth.clone(), lies: true, informs };
    let alone = accuracy(&Reads(own.clone()), &task, N);
    assert!((alone - 0.65).abs() < 0.05);
    let debate = Form::default();
    assert_eq!(accuracy(&judged(&witness(true), debate, &own, &streams), &task, N), 1.0);
    // One side by coin, whose token is missing when it is false: the absence can be read.
    let consultancy = Form::Consultancy { turns: 3 };
    assert_eq!(accuracy(&judged(&witness(true), consultancy, &own, &streams), &task, N), 1.0);
    // Nobody can tell a silent liar from no debate: 100 % where the side is true, a coin elsewhere.
    let silent = Array2::from_shape_fn((N, 2), |(item, class)| {
        let side = first_side(item, &streams);
        f64::from(u8::from(side == truth[item] && side == class))
    });
    let blind = accuracy(&Reads(silent), &task, N);
    assert!((blind - 0.75).abs() < 0.04, "{blind}");
    // Arguments that have nothing to do with the item change nothing, up to three standard errors.
    let noise = accuracy(&judged(&witness(false), debate, &own, &streams), &task, N);
    assert!((noise - alone).abs() < 3.0 * (2.0 * 0.65 * 0.35 / (N / 2) as f64).sqrt(), "{noise} {alone}");
}

#[test]
fn ensembles_average_and_one_member_is_itself() {
    const N: usize = 400;
    let mut rng = Streams::new(2).stream("world");
    let truth: Vec<usize> = (0..N).map(|_| rng.random_range(0..2)).collect();
    let noisy = |rng: &mut pilotfish_model::StreamRng| {
        Array2::from_shape_fn((N, 1), |(item, _)| truth[item] as f64 + rng.random_range(-1.5..1.5))
    };
    let stores: Vec<Array2<f64>> = (0..4).map(|_| noisy(&mut rng)).collect();
    let task = Task::new((0..N as u64).collect(), (0..N as u64).collect(), truth.clone(), 2).unwrap();
    let (train, test): (Vec<usize>, Vec<usize>) = (0..N).partition(|row| row % 2 == 0);
    let gold = task.gold(&train).unwrap();
    let predict = |trainee: &dyn Trainee| trainee.fit(&gold, 3).unwrap().predict(&test).unwrap();
    let members = |of: &[usize]| Ensemble {
        members: of.iter().map(|&at| Box::new(Reads(stores[at].clone())) as _).collect(),
    };
    // One member, and the same member four times, are that member.
    assert_eq!(predict(&members(&[0])), predict(&Reads(stores[0].clone())));
    assert_eq!(predict(&members(&[0, 0, 0, 0])), predict(&Reads(stores[0].clone())));
    let each: Vec<Array2<f64>> = stores.iter().map(|store| predict(&Reads(store.clone()))).collect();
    assert_eq!(predict(&members(&[0, 1, 2, 3])), ensemble(&each).unwrap());
    assert!(Ensemble { members: vec![] }.fit(&gold, 3).is_err());
    // Probabilities are averaged, not votes: class 0 here, where the majority says class 1.
    let models = [array![[0.9, 0.1]], array![[0.4, 0.6]], array![[0.4, 0.6]], array![[0.5, 0.5]]];
    assert_eq!(hard(&ensemble(&models).unwrap()), [0]);
}

#[test]
fn figures_of_the_paper_and_of_votes() {
    for (accuracy, judges, want) in
        [(0.7, 3, 0.784), (0.7, 5, 0.83692), (0.6, 3, 0.648), (0.6, 5, 0.68256), (0.7, 1, 0.7)]
    {
        assert!((majority(accuracy, judges) - want).abs() < 1e-9);
    }
    for (weak, student, ceiling, want) in
        [(900, 926, 934, 0.7647), (860, 887, 899, 0.6923), (875, 888, 898, 0.5652)]
    {
        let right = |n: usize| (0..1000).map(|i| i < n).collect::<Vec<_>>();
        let run = Outcomes { weak: right(weak), student: right(student), ceiling: right(ceiling) };
        let config = PgrConfig { resolvable: 0.1, ..PgrConfig::default() };
        let pgr = Pgr::of(&[run], &config).unwrap().recovered;
        assert!(matches!(pgr, Recovered::Share { value, .. } if (value - want).abs() < 1e-4));
    }
}
