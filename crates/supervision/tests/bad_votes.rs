//! Votes that a label model must survive: refused with a reason, or fitted with probabilities that are some.
#![allow(clippy::unwrap_used)]

use pilotfish_supervision::label_models::{
    CATALOGUE, Convergence, DawidSkene, Fitted, LabelModel, Snorkel, Solver, Stop, Warning,
};
use pilotfish_supervision::votes::read;
use pilotfish_supervision::{SupervisionError, Votes};

/// Every model of the catalogue, and the one with dependencies.
fn models() -> Vec<(&'static str, Box<dyn LabelModel>)> {
    let mut models: Vec<_> = CATALOGUE.iter().map(|entry| (entry.name, entry.model())).collect();
    models.push(("metal", Box::new(Snorkel { dependencies: vec![(0, 1)], ..Snorkel::default() })));
    models
}

fn dense(rows: &[&[i64]], classes: usize) -> Votes {
    Votes::from_dense(rows.len(), rows[0].len(), classes, &rows.concat()).unwrap()
}

/// Eight items of four voters, of whom the first is the best.
fn sound() -> Vec<Vec<i64>> {
    [
        [1, 1, 0, 1],
        [0, 0, 0, 1],
        [1, 0, 1, 1],
        [0, 0, 1, 0],
        [1, 1, 1, 0],
        [0, 1, 0, 0],
        [1, 1, 0, 1],
        [0, 0, 0, 0],
    ]
    .map(Vec::from)
    .to_vec()
}

fn votes(rows: &[Vec<i64>], classes: usize) -> Votes {
    dense(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), classes)
}

fn check(case: &str, name: &str, votes: &Votes, found: Result<Fitted, SupervisionError>) -> Option<Fitted> {
    let fitted = match found {
        Ok(fitted) => fitted,
        Err(
            error @ (SupervisionError::TooFewVoters { .. }
            | SupervisionError::NotBinary { .. }
            | SupervisionError::Abstention { .. }
            | SupervisionError::Unidentifiable { .. }
            | SupervisionError::BadParameter { .. }
            | SupervisionError::Solver { .. }),
        ) => {
            assert!(error.to_string().len() > 15, "{case}, {name}: {error}");
            return None;
        }
        Err(other) => panic!("{case}, {name}: {other:?} is not about the votes"),
    };
    assert_eq!(fitted.posterior.items(), votes.items(), "{case}, {name}");
    assert_eq!(fitted.voters.len(), votes.voters(), "{case}, {name}");
    for item in 0..votes.items() {
        let row = fitted.posterior.row(item);
        assert_eq!(row.len(), votes.classes(), "{case}, {name}");
        assert!(row.iter().all(|p| (0.0..=1.0).contains(p)), "{case}, {name}, item {item}: {row:?}");
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{case}, {name}, item {item}: {row:?}");
    }
    assert!(fitted.prior.iter().all(|p| p.is_finite()), "{case}, {name}: {:?}", fitted.prior);
    assert!(fitted.objective.iter().all(|value| value.is_finite()), "{case}, {name}");
    for voter in &fitted.voters {
        assert!(voter.skill.is_none_or(f64::is_finite), "{case}, {name}: {voter:?}");
        if let Some(accuracy) = voter.accuracy {
            assert!(
                0.0 <= accuracy.low && accuracy.low <= accuracy.high && accuracy.high <= 1.0,
                "{case}, {name}: {voter:?}"
            );
        }
    }
    Some(fitted)
}

/// Names of the models that fit these votes, with what they found.
fn fit_all(case: &str, votes: &Votes) -> Vec<(&'static str, Fitted)> {
    models()
        .into_iter()
        .filter_map(|(name, model)| Some((name, check(case, name, votes, model.fit(votes))?)))
        .collect()
}

fn names(fitted: &[(&'static str, Fitted)]) -> Vec<&'static str> {
    fitted.iter().map(|(name, _)| *name).collect()
}

#[test]
fn one_and_two_voters() {
    let one = fit_all("one voter", &dense(&[&[0], &[1], &[1]], 2));
    let two = fit_all("two voters", &dense(&[&[0, 0], &[1, 0], &[1, 1], &[0, 1]], 2));
    for fitted in [&one, &two] {
        let names = names(fitted);
        assert!(names.contains(&"majority"), "{names:?}");
        // What two voters cannot determine.
        for name in ["ds", "one-coin", "snorkel", "snorkel-sgd", "metal", "flyingsquid", "moments"] {
            assert!(!names.contains(&name), "{name}");
        }
    }
    // Whoever fits one voter can only repeat it.
    for (name, fitted) in &one {
        let labels = fitted.labels();
        assert!(
            labels == [0, 1, 1] || labels.windows(2).all(|pair| pair[0] == pair[1]),
            "{name}: {labels:?}"
        );
    }
}

#[test]
fn voters_that_are_one() {
    let rows: Vec<Vec<i64>> = (0..60).map(|item| vec![item % 2; 5]).collect();
    let votes = votes(&rows, 2);
    let all = fit_all("identical voters", &votes);
    assert!(names(&all).contains(&"majority"));
    for (name, fitted) in all {
        // There is one opinion; a model may turn it round, or find nothing in it, but not split the items otherwise.
        let labels = fitted.labels();
        let (even, odd) = (labels[0], labels[1]);
        assert!(labels.iter().enumerate().all(|(item, y)| *y == [even, odd][item % 2]), "{name}: {labels:?}");
        if name == "majority" {
            assert_eq!((even, odd), (0, 1));
        }
    }
    let fitted = DawidSkene::default().fit(&votes).unwrap();
    let pairs =
        fitted.warnings.iter().filter(|warning| matches!(warning, Warning::Duplicates { .. })).count();
    assert_eq!(pairs, 10);
}

#[test]
fn voters_that_are_opposed() {
    // Two against two, always: no evidence at all for which side is right.
    let rows: Vec<Vec<i64>> =
        (0..40).map(|item| vec![item % 2, item % 2, 1 - item % 2, 1 - item % 2]).collect();
    for (name, fitted) in fit_all("perfectly opposed", &votes(&rows, 2)) {
        if name == "majority" {
            assert!((0..40).all(|item| fitted.posterior.tied(item)));
        }
    }
    // One against three: outvoted, and called an adversary where there is such a word.
    let rows: Vec<Vec<i64>> =
        sound().into_iter().map(|row| vec![row[0], row[1], row[3], 1 - row[0]]).cycle().take(80).collect();
    let fitted = fit_all("one opposed", &votes(&rows, 2));
    let ds = &fitted.iter().find(|(name, _)| *name == "ds").unwrap().1;
    assert!(ds.warnings.contains(&Warning::Adversarial { voter: 3 }), "{:?}", ds.warnings);
}

#[test]
fn voters_and_classes_without_content() {
    // A verifier that always says yes, and a class that nobody names.
    let rows: Vec<Vec<i64>> =
        sound().into_iter().map(|row| [row, vec![1]].concat()).cycle().take(40).collect();
    for classes in [2, 3] {
        let votes = votes(&rows, classes);
        let all = fit_all("constant verifier", &votes);
        assert!(names(&all).contains(&"ds"), "{:?}", names(&all));
        for (name, fitted) in &all {
            let warned = fitted.warnings.contains(&Warning::UnusedClass { class: 2 });
            match *name {
                // These are told that an item may be of any class, by a balance that is given or by pseudo-counts.
                "snorkel" | "snorkel-sgd" | "metal" | "naive-bayes" => {
                    assert_eq!(warned, classes == 3, "{name}")
                }
                _ => assert!(
                    fitted.labels().iter().all(|label| *label < 2),
                    "{name} names the class nobody does"
                ),
            }
        }
        let ds = &all.iter().find(|(name, _)| *name == "ds").unwrap().1;
        assert!(ds.warnings.contains(&Warning::ConstantVoter { voter: 4 }), "{:?}", ds.warnings);
        assert_eq!(
            ds.warnings.contains(&Warning::UnusedClass { class: 2 }),
            classes == 3,
            "{:?}",
            ds.warnings
        );
    }
    // Voters without a common error: what is improbable under both classes is not of a third that has no votes.
    let rows: Vec<Vec<i64>> =
        [[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 1], [-1, -1, -1]].map(Vec::from).to_vec();
    for model in [DawidSkene::default(), DawidSkene::one_coin(), DawidSkene::fast()] {
        let fitted = model.fit(&votes(&rows, 4)).unwrap();
        assert!(fitted.prior[2..].iter().all(|p| *p == 0.0), "{:?}", fitted.prior);
        assert!(fitted.posterior.row(5)[2..].iter().all(|p| *p == 0.0), "{:?}", fitted.posterior.row(5));
    }
    // Everybody says the same of everything.
    let all = fit_all("one class only", &dense(&[&[1, 1, 1], &[1, 1, 1], &[1, 1, 1]], 2));
    assert!(names(&all).contains(&"majority") && !names(&all).contains(&"ds"), "{:?}", names(&all));
    // A voter who never votes, an item without votes.
    let rows: Vec<Vec<i64>> =
        sound().into_iter().map(|row| [row, vec![-1]].concat()).chain([vec![-1; 5]]).collect();
    let all = fit_all("silence", &votes(&rows, 2));
    let majority = &all.iter().find(|(name, _)| *name == "majority").unwrap().1;
    assert_eq!(majority.posterior.row(8), [0.5, 0.5]);
}

#[test]
fn few_and_repeated_items() {
    fit_all("one item", &dense(&[&[1, 1, 0, 1]], 2));
    fit_all("two items", &dense(&[&[1, 1, 0, 1], &[0, 0, 0, 1]], 2));
    let once = fit_all("once", &votes(&sound(), 2));
    // Repeating every item tells nobody anything about which label it should have.
    let twice = fit_all("twice", &votes(&[sound(), sound()].concat(), 2));
    assert_eq!(names(&once), names(&twice));
    for ((name, once), (_, twice)) in once.iter().zip(&twice) {
        // Priors on abilities count for less where there are more votes, and so does Snorkel's clipping.
        if !matches!(*name, "glad" | "glad-crowd-kit" | "mace" | "naive-bayes") {
            assert_eq!(once.labels(), twice.labels()[..8], "{name}");
            assert_eq!(once.labels(), twice.labels()[8..], "{name}");
        }
    }
    // In a file, the second vote of a voter on an item is an error, whatever it says.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.csv");
    for answer in ["1", "0"] {
        std::fs::write(&path, format!("question,worker,answer\nq,a,1\nq,b,0\nq,a,{answer}\n")).unwrap();
        assert!(matches!(read(&path), Err(SupervisionError::Duplicate { .. })));
    }
}

#[test]
fn fits_that_stall_or_run_away_say_so() {
    let rows: Vec<Vec<i64>> = sound().into_iter().cycle().take(80).collect();
    let votes = votes(&rows, 2);
    let short =
        DawidSkene { iterations: 2, stop: Stop::Gain(0.0), ..DawidSkene::default() }.fit(&votes).unwrap();
    let Convergence::NotConverged { iterations: 2, change } = short.convergence else {
        panic!("{:?}", short.convergence)
    };
    assert!(change > 0.0);
    // A step too large: the loss grows without end, which is an error and not an answer.
    let wild = Solver::Sgd { rate: 500.0, momentum: 0.9, steps: 500 };
    assert!(matches!(
        Snorkel { solver: wild, ..Snorkel::default() }.fit(&votes),
        Err(SupervisionError::Solver { .. })
    ));
    let slow = Solver::Sgd { rate: 1e-6, momentum: 0.0, steps: 100 };
    let fitted = Snorkel { solver: slow, ..Snorkel::default() }.fit(&votes).unwrap();
    assert!(!fitted.convergence.is_converged());
    assert!(fitted.warnings.iter().any(|warning| matches!(warning, Warning::Undertrained { .. })));
}

#[test]
fn the_millionth_line_is_named() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for line in 0..999_999 {
        writeln!(file, "{{\"item\":{},\"voter\":{},\"vote\":{}}}", line / 3, line % 3, line % 2).unwrap();
    }
    writeln!(file, "{{\"item\":1,\"voter\":2,\"vote\":").unwrap();
    file.flush().unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(error, SupervisionError::Line { line: 1_000_000, .. }), "{error}");
}
