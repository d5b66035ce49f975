//! The certificate of our own verifiers, and that wrong ones get none.
#![allow(clippy::unwrap_used)]

use pilotfish_conformance::*;
use pilotfish_model::toy::TableModel;
use pilotfish_model::{CausalModel, ModelInfo, Parents, Step, StepOutput, Steps, Streams};

#[test]
fn our_verifiers_are_certified() {
    let quick = Thoroughness { rounds: 5_000, texts: 8, ..Thoroughness::default() };
    let certificate = certify(&own(), &quick).unwrap();
    assert!(certificate.passed, "{:?}", certificate.failures().collect::<Vec<_>>());
    assert!(certificate.is_intact() && certificate.id.len() == 16);
    let json = serde_json::to_string(&certificate).unwrap();
    let mut read: Certificate = serde_json::from_str(&json).unwrap();
    assert!(read.is_intact() && read.id == certificate.id);
    // Anything that is changed shows.
    read.checks[0].value *= 1.1;
    assert!(!read.is_intact());
    let caught = certificate.checks.iter().filter(|check| check.kind == Kind::KnownWrong).count();
    assert_eq!(caught, Wrong::ALL.len() + 1);
}

#[test]
fn a_wrong_verifier_gets_no_certificate() {
    let wrong = Subject { name: "ours".into(), ..Wrong::StaleResidual.subject() };
    let quick = Thoroughness { rounds: 5_000, texts: 1, tokens: 8, ..Thoroughness::default() };
    let certificate = certify(&[wrong], &quick).unwrap();
    let failed: Vec<Kind> = certificate.failures().map(|check| check.kind).collect();
    assert_eq!(failed, [Kind::Law, Kind::Counts], "seen exactly, and by counting");
    assert!(!certificate.passed);
}

#[test]
fn thoroughness_is_checked() {
    let good = Thoroughness::default();
    for bad in [
        Thoroughness { rounds: 0, ..good.clone() },
        Thoroughness { texts: 0, ..good.clone() },
        Thoroughness { tolerance: f64::NAN, ..good.clone() },
        Thoroughness { false_alarm: 1.0, ..good.clone() },
    ] {
        assert!(bad.check().is_err());
    }
    assert!(good.check().is_ok());
}

/// A table model with a fault.
struct Faulty {
    inner: TableModel,
    /// Reads a tree as a chain.
    blind: bool,
    /// Keeps the rows in front instead of those asked for.
    forgetful: bool,
}

impl Steps for Faulty {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn step(&mut self, step: &Step<'_>) -> pilotfish_model::Result<StepOutput> {
        let parents = if self.blind { Parents::Chain } else { step.parents };
        self.inner.step(&Step { parents, ..*step })
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> pilotfish_model::Result<()> {
        if self.forgetful || self.blind {
            self.inner.truncate(from + rows.len())
        } else {
            self.inner.keep(from, rows)
        }
    }

    fn truncate(&mut self, len: usize) -> pilotfish_model::Result<()> {
        self.inner.truncate(len)
    }
}

impl CausalModel for Faulty {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }
}

#[test]
fn models_with_faults_are_caught() {
    // Order 2: a row depends on its parent, so that a wrong parent shows.
    let table = TableModel::random(2, 6, 1.0, &mut Streams::new(1).stream("test")).unwrap();
    let passed = |blind, forgetful| -> Vec<bool> {
        let mut model = Faulty { inner: table.clone(), blind, forgetful };
        let checks = check_model(&mut model, &ModelChecks::default()).unwrap();
        checks.iter().map(|check| check.passed).collect()
    };
    assert_eq!(passed(false, false), [true, true, true]);
    assert!(!passed(true, false)[0], "a mask that is none");
    assert!(!passed(false, true)[1], "rows that were not asked for");
}
