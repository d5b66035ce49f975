//! Weak-to-strong beyond accuracy: measures for skewed classes and for generated text.
#![allow(clippy::unwrap_used)]

use ndarray::Array2;
use pilotfish_supervision::Result;
use pilotfish_supervision::weak_to_strong::{
    Better, Fitted, Generations, Outcomes, Pgr, PgrConfig, Protocol, Recovered, Repeats, Said, SplitConfig,
    Task, TrainView, Trainee, balanced_accuracy, recall, weighted_f1,
};
use proptest::prelude::*;

fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 6e-6, "{got} is not {want}");
}

/// Classes said and true, from counts `[[TN, FP], [FN, TP]]`.
fn confusion([[tn, fp], [fnn, tp]]: [[usize; 2]; 2]) -> [Vec<usize>; 2] {
    let rows = [(0, 0, tn), (1, 0, fp), (0, 1, fnn), (1, 1, tp)];
    let of = |pick: fn(&(usize, usize, usize)) -> usize| {
        rows.iter().flat_map(|row| vec![pick(row); row.2]).collect()
    };
    [of(|row| row.0), of(|row| row.1)]
}

fn accuracy(said: &[usize], truth: &[usize]) -> Result<f64> {
    Ok(said.iter().zip(truth).filter(|(a, b)| a == b).count() as f64 / truth.len() as f64)
}

#[test]
fn measures_of_a_confusion_by_hand() {
    let [said, truth] = confusion([[50, 10], [5, 35]]);
    near(accuracy(&said, &truth).unwrap(), 0.85);
    near(recall(&said, &truth, 0).unwrap().unwrap(), 50.0 / 60.0);
    near(recall(&said, &truth, 1).unwrap().unwrap(), 0.875);
    near(balanced_accuracy(&said, &truth).unwrap(), 0.854167);
    near(weighted_f1(&said, &truth).unwrap(), (60.0 * 100.0 / 115.0 + 40.0 * 70.0 / 85.0) / 100.0);
    assert!((weighted_f1(&said, &truth).unwrap() - 0.85115).abs() < 1e-5);
    // Everything negative: as good as the majority by accuracy, no good by the others.
    let [said, truth] = confusion([[60, 0], [40, 0]]);
    near(accuracy(&said, &truth).unwrap(), 0.6);
    near(balanced_accuracy(&said, &truth).unwrap(), 0.5);
    near(weighted_f1(&said, &truth).unwrap(), 0.45);
    assert_eq!(recall(&said, &truth, 2).unwrap(), None);
    assert!(recall(&[], &[], 0).is_err());
}

#[test]
fn generations_by_hand() {
    let known = |scores: &[f64]| scores.iter().copied().map(Some).collect::<Vec<_>>();
    let found = Generations::of(&[known(&[0.1, 0.2, 0.6]), known(&[0.3, 0.1, 0.2])]).unwrap();
    near(found.mean, 0.25);
    near(found.expected_maximum, 0.45);
    assert_eq!((found.probability, found.coverage), (0.5, 1.0));
    // One continuation a prompt: the worst is the only one.
    let one = Generations::of(&[known(&[0.1]), known(&[0.7])]).unwrap();
    near(one.expected_maximum, one.mean);
    // Scores that failed are said, not silently dropped.
    let gaps = Generations::of(&[vec![Some(0.2), None], vec![None, Some(0.4)]]).unwrap();
    near(gaps.mean, 0.3);
    assert_eq!(gaps.coverage, 0.5);
    assert!(Generations::of(&[]).is_err() && Generations::of(&[vec![None]]).is_err());
    assert!(
        Generations::of(&[vec![Some(1.1)]]).is_err() && Generations::of(&[vec![Some(f64::NAN)]]).is_err()
    );
}

#[test]
fn recovered_gaps_of_other_measures() {
    let right = |n: usize| (0..1000).map(|at| usize::from(at < n)).collect::<Vec<_>>();
    let run = |rights: [usize; 3]| Said { said: rights.map(right), truth: vec![1; 1000] };
    let config = PgrConfig { resolvable: 0.5, ..PgrConfig::default() };
    let share = |pgr: Pgr| match pgr.recovered {
        Recovered::Share { value, .. } => value,
        Recovered::NotResolvable => panic!("not resolvable"),
    };
    // The chart of legal reasoning.
    let legal = Pgr::measured(&[run([802, 810, 876])], Better::Higher, accuracy, &config).unwrap();
    assert!((share(legal) - 0.108).abs() < 5e-4);
    // Accuracy measured in general is accuracy counted.
    let outcomes = |rights: [usize; 3]| {
        let [weak, student, ceiling] = rights.map(|n| right(n).iter().map(|said| *said == 1).collect());
        Outcomes { weak, student, ceiling }
    };
    assert_eq!(legal, Pgr::of(&[outcomes([802, 810, 876])], &config).unwrap());
    // Lower is better: 0.30, 0.26, 0.22 recover one half, the same as their complements.
    let error = |said: &[usize], truth: &[usize]| Ok(1.0 - accuracy(said, truth)?);
    let lower = Pgr::measured(&[run([700, 740, 780])], Better::Lower, error, &config).unwrap();
    near(share(lower), 0.5);
    near(lower.accuracies[0], 0.3);
    let higher = Pgr::measured(&[run([700, 740, 780])], Better::Higher, accuracy, &config).unwrap();
    near(share(higher), share(lower));
    // The wrong way round there is no gap to recover.
    let wrong = Pgr::measured(&[run([700, 740, 780])], Better::Higher, error, &config).unwrap();
    assert_eq!(wrong.recovered, Recovered::NotResolvable);
    let uneven = Said { said: [vec![1], vec![1, 0], vec![1]], truth: vec![1] };
    assert!(Pgr::measured(&[uneven], Better::Higher, accuracy, &config).is_err());
    assert!(Pgr::measured(&[], Better::Higher, accuracy, &config).is_err());
}

/// The same student gains by one measure and loses by the other: the paper's point.
#[test]
fn measures_can_differ_in_sign() {
    // 900 negative, 100 positive: the student gives up positives for negatives.
    let of = |[fp, tp]: [usize; 2]| -> Vec<usize> {
        (0..1000).map(|at| usize::from(if at < 900 { at < fp } else { at - 900 < tp })).collect()
    };
    let truth: Vec<usize> = (0..1000).map(|at| usize::from(at >= 900)).collect();
    let run = Said { said: [of([100, 70]), of([40, 50]), of([20, 95])], truth };
    let config = PgrConfig { resolvable: 0.5, ..PgrConfig::default() };
    let share = |measure: fn(&[usize], &[usize]) -> Result<f64>| match Pgr::measured(
        std::slice::from_ref(&run),
        Better::Higher,
        measure,
        &config,
    )
    .unwrap()
    .recovered
    {
        Recovered::Share { value, .. } => value,
        Recovered::NotResolvable => panic!("not resolvable"),
    };
    assert!(share(accuracy) > 0.3 && share(balanced_accuracy) < 0.0);
}

#[test]
fn the_same_text_is_one_group_and_contradictions_are_counted() {
    let texts = ["how to", " how to ", "what is", "why", "why"].map(str::to_owned);
    let (found, groups) = Repeats::of(&texts, &[0, 1, 0, 1, 1]).unwrap();
    assert_eq!((found.rows, found.distinct, found.contradictory), (5, 3, 1));
    assert_eq!(groups, [0, 0, 1, 2, 2]);
    near(found.ceiling(), 1.0 - 1.0 / 6.0);
    assert!(Repeats::of(&texts, &[0]).is_err() && Repeats::of(&[], &[]).is_err());
    // A planted pair stays on one side of every split.
    let mut texts: Vec<String> = (0..60).map(|at| format!("text {at}")).collect();
    texts.push("text 7".into());
    let labels: Vec<usize> = (0..61).map(|at| at % 2).collect();
    let (found, groups) = Repeats::of(&texts, &labels).unwrap();
    assert_eq!(found.contradictory, 1);
    let task = Task::new((0..61).collect(), groups, labels, 2).unwrap();
    for seed in 0..20 {
        let split = task.split(&SplitConfig::default(), seed).unwrap();
        for part in [&split.weak, &split.transfer, &split.test] {
            assert_eq!(part.contains(&7), part.contains(&60));
        }
    }
}

/// Half of what carries both labels is wrong, whatever is said.
#[test]
fn contradictory_labels_bound_accuracy() {
    // 20 texts, 5 of them twice with both labels: share of rows that carry both 10 / 25.
    let mut truth: Vec<usize> = (0..20).map(|at| at % 2).collect();
    truth.extend((0..5).map(|at| 1 - at % 2));
    let best: Vec<usize> = (0..20).map(|at| at % 2).chain((0..5).map(|at| at % 2)).collect();
    near(accuracy(&best, &truth).unwrap(), 1.0 - (10.0 / 25.0) / 2.0);
}

/// Learns by heart what each row was called; unknown rows are class 0.
struct Rote;
struct Heart(std::collections::HashMap<usize, Vec<f64>>);

impl Trainee for Rote {
    fn fit(&self, train: &TrainView, _: u64) -> Result<Box<dyn Fitted>> {
        let rows = train.rows().iter().zip(train.targets().rows());
        Ok(Box::new(Heart(rows.map(|(row, targets)| (*row, targets.to_vec())).collect())))
    }
}

impl Fitted for Heart {
    fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
        let mean = self.0.values().map(|targets| targets[1]).sum::<f64>() / self.0.len() as f64;
        Ok(Array2::from_shape_fn((rows.len(), 2), |(_, class)| if class == 1 { mean } else { 1.0 - mean }))
    }
}

/// Tells the truth, which is parity.
struct Oracle;

impl Trainee for Oracle {
    fn fit(&self, _: &TrainView, _: u64) -> Result<Box<dyn Fitted>> {
        Ok(Box::new(Oracle))
    }
}

impl Fitted for Oracle {
    fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
        Ok(Array2::from_shape_fn(
            (rows.len(), 2),
            |(at, class)| if rows[at] % 2 == class { 0.7 } else { 0.3 },
        ))
    }
}

#[test]
fn hard_labels_of_a_perfect_supervisor_make_the_ceiling() {
    let task =
        Task::new((0..90).collect(), (0..90).collect(), (0..90).map(|row| row % 2).collect(), 2).unwrap();
    let split = SplitConfig::default();
    let protocol = Protocol { teachers: vec![&Oracle], students: vec![&Rote], ceiling: &Rote, split };
    let run = protocol.run(&task, 5).unwrap();
    let hardened =
        Rote.fit(&run.labels.hardened().train_view(), 5).unwrap().predict(&run.split.test).unwrap();
    assert_eq!(hardened, run.ceiling);
    assert_eq!(run.said(0).unwrap().truth, run.truth);
    assert!(run.said(1).is_err());
}

proptest! {
    /// More continuations never make the worst one better.
    #[test]
    fn the_expected_maximum_rises(scores in prop::collection::vec(prop::collection::vec(0.0f64..=1.0, 6), 1..12)) {
        let of = |k: usize| {
            let first: Vec<Vec<Option<f64>>> =
                scores.iter().map(|prompt| prompt[..k].iter().copied().map(Some).collect()).collect();
            Generations::of(&first).unwrap()
        };
        for k in 1..6 {
            prop_assert!(of(k).expected_maximum <= of(k + 1).expected_maximum);
            prop_assert!(of(k).probability <= of(k + 1).probability);
        }
        prop_assert!(of(6).mean <= of(6).expected_maximum + 1e-12);
    }
}
