//! Verifiers with known rates.

use ndarray::{Array2, Axis};
use pilotfish_supervision::heads::{Logistic, LogisticConfig, balanced_weights};
use pilotfish_supervision::weaver::{
    self, Balance, CoverageLaw, Drawn, Estimator, MomentMethod, Rates, SelectionLaw, Synthetic, TieBreak,
    WeaverConfig, balance_from_labels, best, chosen, naive_ensemble,
};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// Methods in the order of [`Means::values`].
const METHODS: [&str; 9] = [
    "first",
    "best single",
    "naive mean",
    "Weaver, lr 1e-5 x 1000",
    "Weaver, closed form",
    "Weaver, third moments",
    "LR on dev",
    "naive Bayes, all labels",
    "pass@K",
];

/// Published shape (of the note's own simulation of the same world), K = 10 and 50, in the order of [`METHODS`].
const PUBLISHED: [[Option<f64>; 9]; 2] = [
    [
        Some(0.501),
        Some(0.738),
        Some(0.846),
        Some(0.855),
        Some(0.869),
        None,
        Some(0.863),
        Some(0.869),
        Some(0.874),
    ],
    [
        Some(0.508),
        Some(0.745),
        Some(0.929),
        Some(0.940),
        Some(0.949),
        None,
        Some(0.949),
        Some(0.949),
        Some(0.956),
    ],
];

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Means {
    values: Vec<f64>,
}

struct Setting {
    name: String,
    world: Synthetic,
    dev: usize,
}

fn settings() -> Vec<Setting> {
    let base = Synthetic::default();
    let mut out = Vec::new();
    for responses in [1, 2, 5, 10, 20, 50, 100] {
        let world = Synthetic { responses, ..base.clone() };
        out.push(Setting { name: format!("K = {responses}"), world, dev: 5 });
    }
    for dev in [2, 10, 50] {
        out.push(Setting { name: format!("{dev} labelled queries"), world: base.clone(), dev });
    }
    for spread in [0.0, 0.1, 0.2] {
        // Ten verifiers of mean accuracy 0.7.
        let rates: Vec<f64> = (0..10).map(|k| 0.7 + spread * (f64::from(k) / 4.5 - 1.0)).collect();
        let world = Synthetic { tpr: rates.clone(), tnr: rates, ..base.clone() };
        out.push(Setting { name: format!("accuracies .7 ± {spread}"), world, dev: 5 });
    }
    for constant in [4, 8] {
        let mut world = base.clone();
        world.tpr.extend(vec![0.98; constant]);
        world.tnr.extend(vec![0.03; constant]);
        out.push(Setting { name: format!("{constant} more near-constant verifiers"), world, dev: 5 });
    }
    for m in [3, 6] {
        let world = Synthetic { tpr: base.tpr[..m].to_vec(), tnr: base.tnr[..m].to_vec(), ..base.clone() };
        out.push(Setting { name: format!("the first {m} verifiers"), world, dev: 5 });
    }
    let mut world = Synthetic { clones: 4, ..base };
    world.tpr.insert(0, 0.6);
    world.tnr.insert(0, 0.6);
    out.push(Setting { name: "a poor verifier and 4 copies of it".into(), world, dev: 5 });
    out
}

pub(super) fn steps() -> u64 {
    settings().len() as u64
}

fn share(right: &[bool]) -> f64 {
    right.iter().filter(|right| **right).count() as f64 / right.len() as f64
}

fn logistic(data: &Drawn, dev: usize) -> Result<Vec<usize>, Failure> {
    let (n, k, m) = data.scores.dim();
    let train =
        data.scores.slice_axis(Axis(0), (..dev).into()).to_owned().into_shape_with_order((dev * k, m))?;
    let y: Vec<usize> =
        data.labels.slice_axis(Axis(0), (..dev).into()).iter().map(|y| usize::from(*y)).collect();
    let weights = balanced_weights(&y, 2);
    let model = Logistic::fit_classes(train.view(), &y, 2, Some(&weights), &LogisticConfig::default())?;
    let p = model.predict(data.scores.to_shape((n * k, m))?.view())?;
    Ok(best(p.column(1).to_owned().into_shape_with_order((n, k))?.view()))
}

fn naive_bayes(data: &Drawn) -> Result<Vec<usize>, Failure> {
    let (n, k, m) = data.scores.dim();
    let votes = data.scores.mapv(|score| score as u8).into_shape_with_order((n * k, m))?;
    let labels: Vec<bool> = data.labels.iter().copied().collect();
    let rates = Rates::count(votes.view(), &labels)?;
    let scores: Vec<f64> = votes.rows().into_iter().map(|row| rates.evidence(row)).collect();
    Ok(best(Array2::from_shape_vec((n, k), scores)?.view()))
}

fn measure(setting: &Setting, seeds: u64) -> Result<Means, Failure> {
    let mut sums = vec![0.0; METHODS.len()];
    for seed in 0..seeds {
        let data = setting.world.draw(seed)?;
        let (n, _, m) = data.scores.dim();
        let balance =
            Balance::Known(balance_from_labels(data.labels.slice_axis(Axis(0), (..setting.dev).into()))?);
        let weaver = |estimator: Estimator, balance: &Balance| -> Result<Vec<usize>, Failure> {
            let config = WeaverConfig { estimator, ..WeaverConfig::default() };
            Ok(weaver::fit(data.scores.view(), balance, None, &config)?.select(TieBreak::First))
        };
        let pick =
            |choices: &[usize]| -> Result<f64, Failure> { Ok(share(&chosen(data.labels.view(), choices)?)) };
        // The single verifier whose votes are right most often.
        let agreement = |v: usize| {
            let column = data.scores.index_axis(Axis(2), v);
            column.iter().zip(&data.labels).filter(|(score, y)| (**score > 0.5) == **y).count()
        };
        let single = (0..m).max_by_key(|&v| (agreement(v), std::cmp::Reverse(v))).unwrap_or(0);
        let released = Estimator::MomentMethod(MomentMethod::released());
        let values = [
            pick(&vec![0; n])?,
            pick(&best(data.scores.index_axis(Axis(2), single)))?,
            pick(&best(naive_ensemble(data.scores.view()).view()))?,
            pick(&weaver(released, &balance)?)?,
            pick(&weaver(Estimator::default(), &balance)?)?,
            pick(&weaver(Estimator::default(), &Balance::ThirdMoments)?)?,
            pick(&logistic(&data, setting.dev)?)?,
            pick(&naive_bayes(&data)?)?,
            share(&data.labels.rows().into_iter().map(|row| row.iter().any(|y| *y)).collect::<Vec<_>>()),
        ];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value / seeds as f64);
    }
    Ok(Means { values: sums })
}

pub(super) fn run(run: &mut Run, seeds: u64, result: &mut ResultFile) -> Result<String, Failure> {
    if seeds == 0 {
        return Err("--seeds must be at least 1".into());
    }
    let header: Vec<&str> = ["setting"].iter().chain(&METHODS).copied().collect();
    let title = format!("Selection@1 with verifiers of known rates: 200 queries, mean of {seeds} worlds");
    let mut table = Table::new(title, &header);
    let mut curves: Vec<(f64, Vec<f64>)> = Vec::new();
    let mut summary = String::new();
    for setting in settings() {
        let means: Means = run.step(&format!("synthetic: {}", setting.name), || measure(&setting, seeds))?;
        let cells = means.values.iter().map(|value| format!("{value:.3}"));
        table.row(std::iter::once(setting.name.clone()).chain(cells));
        result.rows.push(serde_json::json!({
            "part": "synthetic", "setting": setting.name, "dev": setting.dev, "methods": METHODS, "means": means.values,
        }));
        if let Some(k) = setting.name.strip_prefix("K = ") {
            curves.push((k.parse()?, means.values.clone()));
            let published = match k {
                "10" => Some(&PUBLISHED[0]),
                "50" => Some(&PUBLISHED[1]),
                _ => None,
            };
            if let Some(published) = published {
                let cells = published.iter().map(|v| v.map_or("-".into(), |v| format!("{v:.3}")));
                table.row(std::iter::once("  expected".to_owned()).chain(cells));
            }
            if k == "10" {
                summary = format!(
                    "Verifiers of known rates, K = 10: first {:.3}, naive mean {:.3}, Weaver {:.3}, all labels {:.3}, \
                     pass@K {:.3}.",
                    means.values[0], means.values[2], means.values[4], means.values[7], means.values[8],
                );
            }
        }
    }
    result.tables.push(table);
    let line = |method: usize, name: &str| Series {
        name: name.into(),
        points: curves.iter().map(|(k, v)| Point { x: k.ln(), y: v[method], interval: None }).collect(),
    };
    result.plots.push(Plot {
        title: "Selection@1 over the number of responses".into(),
        x: "ln K".into(),
        y: "share of queries".into(),
        kind: Kind::Lines,
        series: vec![
            line(8, "pass@K"),
            line(4, "Weaver"),
            line(2, "naive mean"),
            line(1, "best single"),
            line(0, "first"),
        ],
        reference: None,
    });
    let points = |method: usize| curves.iter().map(|(k, v)| (*k, v[method])).collect::<Vec<_>>();
    let (coverage, selection) = (CoverageLaw::fit(&points(8))?, SelectionLaw::fit(&points(4))?);
    result.notes.push(format!(
        "Scaling laws fitted over K: Pass@K = exp(-{:.3} K^-{:.3}), RMSE {:.4}; Selection@1 floor {:.2}, ceiling {:.2}, \
         pi {:.2}, gamma {:.2}, RMSE {:.4}.",
        coverage.zeta, coverage.alpha, coverage.error, selection.floor, selection.ceiling, selection.pi, selection.gamma,
        selection.error,
    ));
    result.notes.push(
        "'expected' is an independent simulation of the same world; standard deviation over worlds about .02. LR sees \
         the labels of the dev queries only, naive Bayes those of all responses."
            .into(),
    );
    Ok(summary)
}
