//! Every model against Crowd-Kit or Snorkel on small synthetic votes; `fixtures/golden.py` made the values.
#![allow(clippy::unwrap_used)]

mod common;

use common::close;
use pilotfish_supervision::Votes;
use pilotfish_supervision::label_models::{
    DawidSkene, Fitted, Glad, Kos, LabelModel, Mace, MajorityVote, Mmsr, Scale, Snorkel, Wawa, ZeroBasedSkill,
};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("fixtures/golden.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn each(check: impl Fn(&str, &Votes, &Value)) {
    let golden = golden();
    for (name, set) in golden.as_object().unwrap() {
        let size = |key: &str| set[key].as_u64().unwrap() as usize;
        let cells: Vec<i64> = numbers(&set["votes"]).into_iter().map(|value| value as i64).collect();
        let votes = Votes::from_dense(size("items"), size("voters"), size("classes"), &cells).unwrap();
        check(name, &votes, &set["models"]);
    }
}

fn probas(fitted: &Fitted) -> Vec<f64> {
    (0..fitted.posterior.items()).flat_map(|item| fitted.posterior.row(item).to_vec()).collect()
}

fn skills(fitted: &Fitted) -> Vec<f64> {
    fitted.voters.iter().map(|voter| voter.skill.unwrap()).collect()
}

#[test]
fn counting() {
    each(|name, votes, models| {
        for (key, model) in [
            ("majority", &MajorityVote::default() as &dyn LabelModel),
            ("wawa", &Wawa),
            ("zero-based-skill", &ZeroBasedSkill::default()),
        ] {
            let fitted = model.fit(votes).unwrap();
            println!("{name} {key}");
            close(&skills(&fitted), &numbers(&models[key]["skills"]), 1e-12);
            close(&probas(&fitted), &numbers(&models[key]["probas"]), 1e-12);
        }
    });
}

#[test]
fn dawid_skene() {
    each(|_, votes, models| {
        let coin = DawidSkene { errors: DawidSkene::one_coin().errors, ..DawidSkene::crowd_kit() };
        for (key, model) in [("dawid-skene", DawidSkene::crowd_kit()), ("one-coin", coin)] {
            let (fitted, want) = (model.fit(votes).unwrap(), &models[key]);
            assert_eq!(fitted.objective.len() as u64, want["steps"].as_u64().unwrap(), "{key}");
            close(&[*fitted.objective.last().unwrap()], &[want["loss"].as_f64().unwrap()], 1e-7);
            close(&fitted.prior, &numbers(&want["priors"]), 1e-8);
            close(&probas(&fitted), &numbers(&want["probas"]), 1e-7);
            if key == "one-coin" {
                close(&skills(&fitted), &numbers(&want["skills"]), 1e-8);
            }
        }
    });
}

#[test]
fn glad() {
    each(|name, votes, models| {
        // With maximisations carried to their ends, nothing of the optimiser is left in the answer.
        let tight = Glad {
            iterations: 300,
            tolerance: 1e-9,
            inner_iterations: 300,
            inner_tolerance: 1e-6,
            ..Glad::crowd_kit()
        };
        let (fitted, want) = (tight.fit(votes).unwrap(), &models["glad-converged"]);
        println!("{name}");
        close(&skills(&fitted), &numbers(&want["skills"]), 1e-4);
        close(&probas(&fitted), &numbers(&want["probas"]), 1e-4);
        // As it is used: within what its loose maximisations leave open.
        let (fitted, want) = (Glad::crowd_kit().fit(votes).unwrap(), &models["glad"]);
        close(&skills(&fitted), &numbers(&want["skills"]), 2e-2);
    });
}

#[test]
fn mace_and_m_msr() {
    each(|name, votes, models| {
        println!("{name}");
        let fitted = Mace { iterations: 2000, ..Mace::default() }.fit(votes).unwrap();
        close(&skills(&fitted), &numbers(&models["mace"]["skills"]), 1e-5);
        close(&probas(&fitted), &numbers(&models["mace"]["probas"]), 1e-5);
        let fitted = Mmsr::default().fit(votes).unwrap();
        close(&skills(&fitted), &numbers(&models["m-msr"]["skills"]), 1e-7);
        let labels: Vec<f64> = fitted.labels().into_iter().map(|label| label as f64).collect();
        close(&labels, &numbers(&models["m-msr"]["labels"]), 0.0);
    });
}

#[test]
fn kos() {
    each(|_, votes, models| {
        let Some(want) = models.get("kos") else { return };
        let labels: Vec<f64> =
            Kos::default().fit(votes).unwrap().labels().into_iter().map(|label| label as f64).collect();
        close(&labels, &numbers(&want["labels"]), 0.0);
    });
}

#[test]
fn snorkel() {
    each(|name, votes, models| {
        println!("{name}");
        let want = &models["snorkel"];
        let fitted = Snorkel { scale: Scale::Fixed(0.5), ..Snorkel::published(0) }.fit(votes).unwrap();
        let k = votes.classes();
        let mu: Vec<f64> = (0..votes.voters() * k * k)
            .map(|cell| fitted.rate(cell / (k * k), cell % k, cell / k % k).unwrap())
            .collect();
        // Snorkel computes in single precision.
        close(&mu, &numbers(&want["mu"]), 1e-5);
        close(&probas(&fitted), &numbers(&want["probas"]), 1e-4);
        close(&skills(&fitted), &numbers(&want["weights"]), 1e-5);
    });
}
