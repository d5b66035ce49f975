//! Weak-to-strong generalisation: the data contract, the protocol and what is measured.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use ndarray::{Array2, array};
use pilotfish_supervision::weak_to_strong::{
    Agreement, Fitted, Outcomes, Pgr, PgrConfig, Protocol, ProtocolRun, Recovered, Split, SplitConfig, Task,
    TrainView, Trainee, WeakEvaluation, WeakLabels, auroc, balanced_accuracy, calibration_error,
    delta_method, ensemble, hard, weighted_f1,
};
use pilotfish_supervision::{Result, SupervisionError};
use proptest::prelude::*;

fn task(n: usize) -> Task {
    let ids: Vec<u64> = (0..n as u64).map(|id| 1000 + id).collect();
    let groups = ids.iter().map(|id| id / 2).collect();
    Task::new(ids, groups, (0..n).map(|row| row % 2).collect(), 2).unwrap()
}

/// What happened: who, rows, targets.
type Log = Rc<RefCell<Vec<(&'static str, Vec<usize>, Array2<f64>)>>>;

/// Learns by heart, remembers what it was taught, and is wrong on rows that a rule picks.
struct Rote {
    wrong: fn(usize) -> bool,
    log: Log,
    name: &'static str,
}

struct Learnt {
    wrong: fn(usize) -> bool,
    log: Log,
    sum: f64,
}

impl Trainee for Rote {
    fn fit(&self, train: &TrainView, seed: u64) -> Result<Box<dyn Fitted>> {
        self.log.borrow_mut().push((self.name, train.rows().to_vec(), train.targets().clone()));
        // Depends on every bit of what it was taught, so that equal predictions mean equal lessons.
        let sum: f64 =
            train.targets().indexed_iter().map(|((row, class), t)| t * t * (row * 3 + class) as f64).sum();
        Ok(Box::new(Learnt { wrong: self.wrong, log: self.log.clone(), sum: sum + seed as f64 }))
    }
}

impl Fitted for Learnt {
    fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
        self.log.borrow_mut().push(("predict", rows.to_vec(), Array2::zeros((0, 0))));
        let sure = 0.9 + 0.05 * (self.sum * 0.1).sin();
        Ok(Array2::from_shape_fn((rows.len(), 2), |(at, class)| {
            let right = (rows[at] % 2 == class) != (self.wrong)(rows[at]);
            if right { sure } else { 1.0 - sure }
        }))
    }
}

fn run(task: &Task, teachers: &[&dyn Trainee], student: &dyn Trainee, seed: u64) -> Result<ProtocolRun> {
    let (teachers, split) = (teachers.to_vec(), SplitConfig::default());
    Protocol { teachers, students: vec![student], ceiling: student, split }.run(task, seed)
}

fn rote(name: &'static str, wrong: fn(usize) -> bool) -> Rote {
    Rote { wrong, log: Rc::default(), name }
}

/// Paper's table of AlexNet and DINO, and the ends of the scale.
#[test]
fn recovered_gap_by_hand() {
    let run = |rights: [usize; 3]| {
        let right = |n: usize| (0..1000).map(|i| i < n).collect::<Vec<_>>();
        let [weak, student, ceiling] = rights.map(right);
        Outcomes { weak, student, ceiling }
    };
    let pgr = |rights| Pgr::of(&[run(rights)], &PgrConfig::default()).unwrap().recovered;
    let share = |rights| match pgr(rights) {
        Recovered::Share { value, low, high } => {
            assert!(low <= value && value <= high);
            value
        }
        Recovered::NotResolvable => panic!("not resolvable"),
    };
    assert!((share([566, 607, 637]) - 0.577).abs() < 5e-4);
    assert!((share([566, 642, 749]) - 0.415).abs() < 5e-4);
    assert_eq!(share([566, 566, 749]), 0.0);
    assert_eq!(share([566, 749, 749]), 1.0);
    // A student below its supervisor.
    assert!(share([600, 550, 800]) < 0.0);
    // Every ceiling at chance: open re-implementations print 0.81 here.
    assert_eq!(pgr([490, 495, 493]), Recovered::NotResolvable);
    assert_eq!(pgr([600, 650, 600]), Recovered::NotResolvable);
    assert_eq!(pgr([700, 650, 600]), Recovered::NotResolvable);
    assert_eq!(pgr([490, 495, 493]).to_string(), "not resolvable");
}

/// Two seeds with gaps 0.1 and 0.3 of which 0.1 and 0 are recovered: the ratio of means is 0.25, the mean of ratios
/// would be 0.5.
#[test]
fn seeds_are_averaged_before_the_ratio() {
    let right = |n: usize| (0..1000).map(|i| i < n).collect::<Vec<_>>();
    let runs = [
        Outcomes { weak: right(500), student: right(600), ceiling: right(600) },
        Outcomes { weak: right(500), student: right(500), ceiling: right(800) },
    ];
    let pgr = Pgr::of(&runs, &PgrConfig { resolvable: 0.5, ..PgrConfig::default() }).unwrap();
    assert!(matches!(pgr.recovered, Recovered::Share { value, .. } if (value - 0.25).abs() < 1e-12));
    assert_eq!(pgr, Pgr::of(&runs, &PgrConfig { resolvable: 0.5, ..PgrConfig::default() }).unwrap());
}

/// The bootstrap's interval against the delta method's, on independent outcomes where both hold.
#[test]
fn the_interval_agrees_with_the_delta_method() {
    // Outcomes that are independent across models: 0.75, 0.80 and 0.90 of 2000, on different digits of the index.
    let run = Outcomes {
        weak: (0..2000).map(|i| i % 4 < 3).collect(),
        student: (0..2000).map(|i| i / 4 % 5 < 4).collect(),
        ceiling: (0..2000).map(|i| i / 20 % 10 < 9).collect(),
    };
    assert_eq!(run.accuracies(), [0.75, 0.80, 0.90]);
    let (value, error) = delta_method([0.75, 0.80, 0.90], 2000).unwrap();
    let pgr = Pgr::of(&[run], &PgrConfig::default()).unwrap();
    let Recovered::Share { value: got, low, high } = pgr.recovered else { panic!() };
    assert!((value - got).abs() < 1e-12);
    assert!((error - 0.075).abs() < 5e-4);
    assert!(((high - low) / (2.0 * 1.96) / error - 1.0).abs() < 0.1, "{low} {high}");
    let gap = (0.75 * 0.25 / 2000.0 + 0.9 * 0.1 / 2000.0f64).sqrt();
    assert!((pgr.gap_error / gap - 1.0).abs() < 0.06);
}

#[test]
fn agreement_obeys_its_identities() {
    let truth = [0, 0, 1, 1, 1, 0];
    let weak = [0, 1, 1, 0, 1, 0];
    let student = [0, 0, 1, 0, 0, 0];
    let agreement = Agreement::of(&student, &weak, &truth).unwrap();
    assert_eq!(agreement, Agreement { overall: 4.0 / 6.0, weak_right: Some(0.75), weak_wrong: Some(0.5) });
    let (right, a, b) = (4.0 / 6.0, 0.75, 0.5);
    assert!((agreement.overall - (right * a + (1.0 - right) * b)).abs() < 1e-12);
    let accuracy = student.iter().zip(&truth).filter(|(a, b)| a == b).count() as f64 / 6.0;
    assert!((accuracy - (right * a + (1.0 - right) * (1.0 - b))).abs() < 1e-12);
    assert_eq!(Agreement::of(&truth, &truth, &truth).unwrap().weak_wrong, None);
    assert!(Agreement::of(&[], &[], &[]).is_err() && Agreement::of(&[0], &[0, 1], &[0, 1]).is_err());
}

#[test]
fn measures_by_hand() {
    // Recalls 3/4 and 1/2; precisions 3/4 and 1/2.
    let (truth, said) = ([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]);
    assert!((balanced_accuracy(&said, &truth).unwrap() - 0.625).abs() < 1e-12);
    assert!((weighted_f1(&said, &truth).unwrap() - (4.0 * 0.75 + 2.0 * 0.5) / 6.0).abs() < 1e-12);
    // Pairs won: 0.4 over 0.1 and 0.35; 0.35 over 0.1, and half for the tie.
    let area = auroc(&[0.1, 0.35, 0.35, 0.8], &[false, false, true, true]).unwrap().unwrap();
    assert!((area - 3.5 / 4.0).abs() < 1e-12);
    assert_eq!(auroc(&[0.1, 0.2], &[true, true]).unwrap(), None);
    assert_eq!(auroc(&[0.0, -0.0], &[true, false]).unwrap(), Some(0.5));
    assert!(auroc(&[f64::NAN], &[true]).is_err());
    // Bins of 0.6 and 0.9: |0.6 - 0| / 2 + |0.9 - 1| / 2.
    let error = calibration_error(&array![[0.6, 0.4], [0.1, 0.9]], &[1, 1]).unwrap();
    assert!((error - 0.35).abs() < 1e-12);
    let models = [array![[0.9, 0.1]], array![[0.4, 0.6]], array![[0.4, 0.6]], array![[0.5, 0.5]]];
    assert!((ensemble(&models).unwrap() - array![[0.55, 0.45]]).iter().all(|d| d.abs() < 1e-12));
    assert!(ensemble(&[]).is_err() && ensemble(&[array![[1.0]], array![[1.0, 0.0]]]).is_err());
    assert_eq!(hard(&array![[0.5, 0.5], [0.2, 0.8]]), [0, 1]);
}

#[test]
fn perfect_labels_make_the_ceiling_to_the_bit() {
    let task = task(60);
    let perfect = rote("perfect", |_| false);
    let student = rote("student", |row| row % 7 == 0);
    let run = run(&task, &[&perfect], &student, 3).unwrap();
    // Soft labels are not the truth; hardened and right ones are.
    assert_ne!(run.students[0], run.ceiling);
    assert_eq!(run.labels.hardened().train_view(), task.gold(&run.split.transfer).unwrap());
    assert_eq!(run.labels.accuracy(&task).unwrap(), 1.0);

    struct Oracle;
    impl Trainee for Oracle {
        fn fit(&self, _: &TrainView, _: u64) -> Result<Box<dyn Fitted>> {
            Ok(Box::new(Oracle))
        }
    }
    impl Fitted for Oracle {
        fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
            let one = |(at, class): (usize, usize)| f64::from(u8::from(rows[at] % 2 == class));
            Ok(Array2::from_shape_fn((rows.len(), 2), one))
        }
    }
    let run = self::run(&task, &[&Oracle], &student, 3).unwrap();
    assert_eq!(run.students[0], run.ceiling);
}

#[test]
fn nobody_labels_what_it_learnt_and_the_truth_is_used_once() {
    let task = task(90);
    let log: Rc<RefCell<Vec<_>>> = Rc::default();
    let model = |name, wrong| Rote { wrong, log: log.clone(), name };
    let (a, b, c) = (model("a", |row| row % 3 == 0), model("b", |row| row % 5 == 0), model("c", |_| false));
    let run = {
        let split = SplitConfig::default();
        let protocol = Protocol { teachers: vec![&a, &b], students: vec![&c], ceiling: &c, split };
        protocol.run(&task, 11).unwrap()
    };
    let log = log.borrow();
    let steps: Vec<&str> = log.iter().map(|(name, _, _)| *name).collect();
    // a learns and labels; b learns and labels; the student, tested; its ceiling; the floor and the ceiling tested.
    assert_eq!(steps, ["a", "predict", "b", "predict", "c", "predict", "c", "predict", "predict"]);
    let Split { weak, transfer, test } = &run.split;
    let rows: Vec<&Vec<usize>> = log.iter().map(|(_, rows, _)| rows).collect();
    assert_eq!(rows, [weak, transfer, transfer, weak, weak, test, weak, test, test]);
    let gold = |rows: &[usize]| task.gold(rows).unwrap().targets().clone();
    assert_eq!(log[0].2, gold(weak));
    assert_ne!(log[2].2, gold(transfer));
    assert_ne!(log[4].2, gold(weak));
    assert_eq!(log[6].2, gold(weak));
    // The labels kept are the last teacher's.
    assert_eq!(run.labels.rows(), weak.as_slice());
    let wrong = weak.iter().filter(|&&row| row % 5 == 0).count();
    assert!((run.labels.accuracy(&task).unwrap() - (1.0 - wrong as f64 / weak.len() as f64)).abs() < 1e-12);
}

#[test]
fn predictions_that_are_none_are_refused() {
    struct Bad(Array2<f64>);
    impl Trainee for Bad {
        fn fit(&self, _: &TrainView, _: u64) -> Result<Box<dyn Fitted>> {
            Ok(Box::new(Bad(self.0.clone())))
        }
    }
    impl Fitted for Bad {
        fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
            Ok(Array2::from_shape_fn((rows.len(), self.0.ncols()), |(_, class)| self.0[[0, class]]))
        }
    }
    let task = task(30);
    for row in [array![[0.5, 0.6]], array![[f64::NAN, 1.0]], array![[-0.5, 1.5]], array![[0.2, 0.3, 0.5]]] {
        let bad = Bad(row);
        assert!(run(&task, &[&bad], &bad, 0).is_err());
    }
    assert!(run(&task, &[], &rote("s", |_| false), 0).is_err());
}

#[test]
fn files_of_labels_keep_the_truth_from_students() {
    let task = task(60);
    let supervisor = rote("supervisor", |row| row % 4 == 1);
    let run = run(&task, &[&supervisor], &rote("s", |_| false), 5).unwrap();
    let write = |truth| {
        let mut bytes = Vec::new();
        run.labels.write(&mut bytes, "rote", 5, truth).unwrap();
        bytes
    };
    let (blind, with_truth) = (write(None), write(Some(&task)));
    assert!(!String::from_utf8_lossy(&blind).contains("gt"));
    // What training reads is the same with the truth beside it and without.
    for bytes in [&blind, &with_truth] {
        assert_eq!(WeakLabels::read(&bytes[..], "labels", &task).unwrap(), run.labels);
    }
    let evaluation = WeakEvaluation::read(&with_truth[..], "labels").unwrap();
    let right = evaluation.iter().filter(|row| row.weak_ok).count() as f64 / evaluation.len() as f64;
    assert_eq!(right, run.labels.accuracy(&task).unwrap());
    assert!(WeakEvaluation::read(&blind[..], "labels").is_err());
    // A mark in front and line ends of another system are no part of a line.
    let text = String::from_utf8(blind.clone()).unwrap();
    let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(WeakLabels::read(windows.as_bytes(), "labels", &task).unwrap(), run.labels);
    // Cut anywhere, it is refused with its line or gives fewer labels; it never panics.
    for cut in 0..blind.len() {
        if let Err(error) = WeakLabels::read(&blind[..cut], "labels", &task) {
            assert!(
                matches!(error, SupervisionError::Line { .. } | SupervisionError::Empty { .. }),
                "{error}"
            );
        }
    }
}

#[test]
fn lines_that_lie_are_refused_by_number() {
    let task = task(4);
    let line = |id: u64, group: u64, p: &str| {
        format!(r#"{{"id":{id},"group":{group},"weak_model":"m","seed":0,"p":{p},"hard":0}}"#)
    };
    let good = line(1000, 500, "[0.5,0.5]");
    for (bad, want) in [
        (line(1, 0, "[0.5,0.5]"), "not one of the task's"),
        (line(1001, 501, "[0.5,0.5]"), "group"),
        (line(1001, 500, "[0.5,0.6]"), "distribution"),
        (line(1001, 500, "[1.5,-0.5]"), "distribution"),
        (line(1001, 500, "[1.0]"), "distribution"),
        (good.clone(), "twice"),
        ("{".into(), "EOF"),
        (r#"{"id": 1}"#.into(), "missing field"),
    ] {
        let error = WeakLabels::read(format!("{good}\n{bad}\n").as_bytes(), "f.jsonl", &task).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("f.jsonl, line 2: ") && text.contains(want), "{text}");
    }
}

#[test]
fn tasks_and_splits_without_sense_are_refused() {
    let new = |ids: &[u64], labels: &[usize], classes| {
        Task::new(ids.to_vec(), ids.to_vec(), labels.to_vec(), classes)
    };
    assert!(new(&[], &[], 2).is_err());
    assert!(new(&[1, 2], &[0], 2).is_err());
    assert!(new(&[1, 2], &[0, 1], 1).is_err());
    assert!(new(&[1, 2], &[0, 2], 2).is_err());
    assert!(new(&[1, 1], &[0, 1], 2).unwrap_err().to_string().contains("occurs twice"));
    let task = task(6);
    for shares in [[0.5, 0.5, 0.5], [0.0, 0.5, 0.5], [f64::NAN, 0.1, 0.1], [0.5, 0.5, 1e-9]] {
        assert!(task.split(&SplitConfig { shares, most: [0; 3] }, 0).is_err(), "{shares:?}");
    }
    assert!(task.gold(&[6]).is_err() && task.truth(&[6]).is_err());
    let runs = [Outcomes { weak: vec![true], student: vec![], ceiling: vec![true] }];
    assert!(Pgr::of(&runs, &PgrConfig::default()).is_err() && Pgr::of(&[], &PgrConfig::default()).is_err());
    let right = [Outcomes { weak: vec![false], student: vec![true], ceiling: vec![true] }];
    for config in [
        PgrConfig { resamples: 0, ..PgrConfig::default() },
        PgrConfig { confidence: 1.0, ..PgrConfig::default() },
        PgrConfig { resolvable: f64::NAN, ..PgrConfig::default() },
    ] {
        assert!(Pgr::of(&right, &config).is_err());
    }
}

#[test]
fn skewed_tasks_are_balanced_by_leaving_out() {
    let labels: Vec<usize> = (0..100).map(|row| usize::from(row % 5 == 0)).collect();
    let task = Task::new((0..100).collect(), (0..100).collect(), labels, 2).unwrap();
    let (balanced, rows) = task.balanced(0.55, 1).unwrap();
    assert_eq!((balanced.len(), rows.len()), (40, 40));
    let ones = balanced.truth(&(0..40).collect::<Vec<_>>()).unwrap().iter().sum::<usize>();
    assert_eq!(ones, 20);
    assert_eq!(task.balanced(0.9, 1).unwrap().0, task);
}

proptest! {
    /// No group in two parts, sizes within a group of what was asked for, the same for the same seed.
    #[test]
    fn splits_keep_groups_together(
        sizes in prop::collection::vec(1usize..5, 12..60),
        seed in any::<u64>(),
        most in 0usize..9,
    ) {
        let groups: Vec<u64> =
            sizes.iter().enumerate().flat_map(|(group, &size)| vec![group as u64; size]).collect();
        let n = groups.len();
        let task = Task::new((0..n as u64).collect(), groups.clone(), vec![0; n], 2).unwrap();
        let config = SplitConfig { shares: [0.3, 0.3, 0.2], most: [0, most, 0] };
        let split = task.split(&config, seed).unwrap();
        prop_assert_eq!(&split, &task.split(&config, seed).unwrap());
        let parts = [&split.weak, &split.transfer, &split.test];
        let of = |part: &[usize]| part.iter().map(|&row| groups[row]).collect::<HashSet<_>>();
        for a in 0..3 {
            for b in 0..a {
                prop_assert!(of(parts[a]).is_disjoint(&of(parts[b])));
            }
            let size = (config.shares[a] * n as f64).round() as usize;
            let size = if config.most[a] == 0 { size } else { size.min(config.most[a]) };
            prop_assert!(parts[a].len() >= size && parts[a].len() < size + 4);
            prop_assert_eq!(parts[a].iter().collect::<HashSet<_>>().len(), parts[a].len());
        }
        let other = task.split(&config, seed ^ 1).unwrap();
        prop_assert!(n < 40 || other != split);
    }
}
