//! Judges of known quality: what votes, references, orders and rounds are worth, and what dependence takes away.

use ndarray::Array2;
use pilotfish_model::Streams;
use pilotfish_supervision::heads::{Logistic, LogisticConfig};
use pilotfish_supervision::meta_ranking::{
    Games, Outcome, Votes, accuracy, cascade_accuracy, curve, filter, purity,
};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// Targets a setting.
const TARGETS: usize = 20_000;
const MIXED: [bool; 5] = [true, true, true, false, false];
const SHARED: [f64; 4] = [0.0, 0.25, 0.5, 0.75];
const BIASES: [f64; 4] = [0.0, 0.5, 1.0, 2.0];
const QUALITIES: [f64; 5] = [0.5, 0.6, 0.7, 0.8, 0.9];
const ROUNDS: usize = 4;
/// Accuracies of the weak and of the strong model of the cascade.
const WEAK: f64 = 0.6;
const STRONG: f64 = 0.85;

pub(super) const STEPS: u64 = 4;

/// A judge that sees the difference of two responses' margins: `mu (y_T - y_R) + sqrt(rho) e_T + sqrt(1 - rho) e`, so
/// that of a right and a wrong response it prefers the right one with probability `q` whatever `rho`, the share of its
/// noise that a target brings to all of its comparisons.
struct Judge {
    mu: f64,
    shared: f64,
    /// What the first slot adds to the margin.
    bias: f64,
}

impl Judge {
    fn new(q: f64, shared: f64, bias: f64) -> Result<Self, Failure> {
        Ok(Self { mu: Normal::standard().inverse_cdf(q), shared, bias })
    }

    /// Margins for the target, by reference; the bias is not in them.
    fn margins(&self, rng: &mut impl Rng, own: f64, target: bool, references: &[bool]) -> Vec<f64> {
        let sign = |y: bool| f64::from(u8::from(y));
        references
            .iter()
            .map(|&reference| {
                let fresh: f64 = StandardNormal.sample(rng);
                self.mu * (sign(target) - sign(reference))
                    + self.shared.sqrt() * own
                    + (1.0 - self.shared).sqrt() * fresh
            })
            .collect()
    }

    /// The target stands first.
    fn one_order(&self, margin: f64) -> Outcome {
        if margin + self.bias > 0.0 { Outcome::Better } else { Outcome::Worse }
    }

    /// What both orders say, or a tie.
    fn two_orders(&self, margin: f64) -> Outcome {
        if margin > self.bias {
            Outcome::Better
        } else if margin < -self.bias {
            Outcome::Worse
        } else {
            Outcome::Tie
        }
    }

    /// The law of two orders' outcomes.
    fn games(&self) -> Result<Games, Failure> {
        let normal = Normal::standard();
        let law = |mean: f64| {
            let better = 1.0 - normal.cdf(self.bias - mean);
            // Exactly none without a bias: what rounding leaves would be a tie that proves something.
            let tie = if self.bias > 0.0 { 1.0 - better - normal.cdf(-self.bias - mean) } else { 0.0 };
            [better, tie, 1.0 - better - tie]
        };
        Ok(Games { different: law(self.mu), same: law(0.0) })
    }
}

fn score(
    votes: &Votes,
    outcomes: impl Iterator<Item = Outcome>,
    references: &[bool],
    prior: f64,
) -> Result<f64, Failure> {
    let pairs: Vec<_> = outcomes.zip(references.iter().copied()).collect();
    Ok(votes.score(&pairs, prior)?)
}

/// 1, 0, or a half for no verdict.
fn credit(score: f64, right: bool) -> f64 {
    if score.abs() < 1e-9 { 0.5 } else { f64::from(u8::from((score > 0.0) == right)) }
}

#[derive(Serialize, Deserialize)]
struct Aggregation {
    q: f64,
    references: String,
    votes: String,
    exact: f64,
    /// By shared noise.
    simulated: Vec<f64>,
}

fn aggregation(streams: &Streams) -> Result<Vec<Aggregation>, Failure> {
    let mut out = Vec::new();
    let mixes = [
        ("1 right", vec![true]),
        ("3 right, 2 wrong", MIXED.to_vec()),
        ("5 right", vec![true; 5]),
        ("6 right, 5 wrong", [[true; 5].as_slice(), &[true], &[false; 5]].concat()),
    ];
    for q in [0.6, 0.7, 0.8] {
        for (name, references) in &mixes {
            let fitted = Votes::fitted(&Games::decisive(q)?)?;
            let kinds = [("sum", Votes::SUM), ("informative", Votes::INFORMATIVE), ("fitted", fitted)];
            let mut sums = vec![[0.0; 3]; SHARED.len()];
            for (s, shared) in SHARED.into_iter().enumerate() {
                let judge = Judge::new(q, shared, 0.0)?;
                let mut rng = streams.fork(s as u64).stream("aggregation");
                for target in 0..TARGETS {
                    let right = target % 2 == 0;
                    let own: f64 = StandardNormal.sample(&mut rng);
                    let margins = judge.margins(&mut rng, own, right, references);
                    for (v, (_, votes)) in kinds.iter().enumerate() {
                        let outcomes = margins.iter().map(|margin| judge.two_orders(*margin));
                        sums[s][v] +=
                            credit(score(votes, outcomes, references, 0.5)?, right) / TARGETS as f64;
                    }
                }
            }
            for (v, (votes, table)) in kinds.iter().enumerate() {
                out.push(Aggregation {
                    q,
                    references: (*name).into(),
                    votes: (*votes).into(),
                    exact: accuracy(&Games::decisive(q)?, table, references)?,
                    simulated: sums.iter().map(|sums| sums[v]).collect(),
                });
            }
        }
    }
    Ok(out)
}

#[derive(Serialize, Deserialize)]
struct Bias {
    bias: f64,
    ties: f64,
    one_order: f64,
    sum: f64,
    fitted: f64,
    /// Accuracy with the bias taken out: the mean of both orders' margins.
    averaged: f64,
}

fn biases(streams: &Streams) -> Result<Vec<Bias>, Failure> {
    let mut out = Vec::new();
    for bias in BIASES {
        let judge = Judge::new(0.7, 0.0, bias)?;
        let fitted = Votes::fitted(&judge.games()?)?;
        let mut rng = streams.stream("bias");
        let mut row = Bias { bias, ties: 0.0, one_order: 0.0, sum: 0.0, fitted: 0.0, averaged: 0.0 };
        let each = 1.0 / TARGETS as f64;
        for target in 0..TARGETS {
            let right = target % 2 == 0;
            let margins = judge.margins(&mut rng, 0.0, right, &MIXED);
            let two: Vec<Outcome> = margins.iter().map(|margin| judge.two_orders(*margin)).collect();
            row.ties += each * two.iter().filter(|o| **o == Outcome::Tie).count() as f64 / two.len() as f64;
            let one = margins.iter().map(|margin| judge.one_order(*margin));
            let unbiased = margins.iter().map(|m| if *m > 0.0 { Outcome::Better } else { Outcome::Worse });
            row.one_order += each * credit(score(&Votes::SUM, one, &MIXED, 0.5)?, right);
            row.sum += each * credit(score(&Votes::SUM, two.iter().copied(), &MIXED, 0.5)?, right);
            row.fitted += each * credit(score(&fitted, two.iter().copied(), &MIXED, 0.5)?, right);
            row.averaged += each * credit(score(&Votes::SUM, unbiased, &MIXED, 0.5)?, right);
        }
        out.push(row);
    }
    Ok(out)
}

#[derive(Serialize, Deserialize)]
struct Cascades {
    q: f64,
    routed: f64,
    accuracy: f64,
    precision: Option<f64>,
    /// What the judge's rates predict.
    predicted: f64,
    /// Share sent and accuracy, from nothing to everything.
    curve: Vec<(f64, f64)>,
}

fn cascades(streams: &Streams) -> Result<Vec<Cascades>, Failure> {
    let mut out = Vec::new();
    for q in QUALITIES {
        let judge = Judge::new(q, 0.0, 0.0)?;
        let votes = Votes::fitted(&judge.games()?)?;
        let mut rng = streams.stream("cascade");
        let (mut scores, mut weak, mut strong) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TARGETS {
            let right = rng.random_bool(WEAK);
            let margins = judge.margins(&mut rng, 0.0, right, &MIXED);
            let outcomes = margins.iter().map(|margin| judge.two_orders(*margin));
            // Equal sums that differ by rounding are one score.
            scores.push((1e9 * score(&votes, outcomes, &MIXED, WEAK)?).round() / 1e9);
            weak.push(right);
            strong.push(rng.random_bool(STRONG));
        }
        let points = curve(&scores, &weak, &strong)?;
        let at = points.iter().rfind(|point| point.threshold <= 0.0).unwrap_or(&points[0]).cascade;
        let pass = |label: bool| {
            let all = weak.iter().filter(|right| **right == label).count() as f64;
            let passed = scores.iter().zip(&weak).filter(|(s, right)| **s > 0.0 && **right == label).count();
            passed as f64 / all
        };
        out.push(Cascades {
            q,
            routed: at.routed,
            accuracy: at.accuracy,
            precision: at.precision,
            predicted: cascade_accuracy(WEAK, STRONG, pass(true), pass(false))?.accuracy,
            curve: points.iter().map(|point| (point.cascade.routed, point.cascade.accuracy)).collect(),
        });
    }
    Ok(out)
}

#[derive(Serialize, Deserialize)]
struct Filtering {
    judge: String,
    /// Share of good items and of all items left, and the student's accuracy: before, then after each round.
    rounds: Vec<(f64, f64, f64)>,
    predicted: Vec<f64>,
}

/// Training data of which half is labelled by a wrong rule, and a student that learns what it is given.
struct Pool {
    x: Array2<f64>,
    good: Vec<bool>,
    labels: Vec<usize>,
    test: Array2<f64>,
    truth: Vec<usize>,
}

impl Pool {
    fn new(rng: &mut impl Rng) -> Self {
        let (n, tests, d) = (4000, 4000, 8);
        let mut normal = |rows: usize| {
            Array2::from_shape_fn((rows, d), |_| {
                let value: f64 = StandardNormal.sample(&mut *rng);
                value
            })
        };
        let (x, test) = (normal(n), normal(tests));
        // The right rule is the sign of the sum of all features, the wrong one that of the first two.
        let rule = |row: ndarray::ArrayView1<'_, f64>| usize::from(row.sum() > 0.0);
        let wrong = |row: ndarray::ArrayView1<'_, f64>| usize::from(row[0] + row[1] < 0.0);
        let good: Vec<bool> = (0..n).map(|item| item % 2 == 0).collect();
        let labels =
            x.rows().into_iter().zip(&good).map(|(row, good)| if *good { rule(row) } else { wrong(row) });
        let labels = labels.collect();
        let truth = test.rows().into_iter().map(rule).collect();
        Self { x, good, labels, test, truth }
    }

    fn student(&self, items: &[usize]) -> Result<f64, Failure> {
        let x = self.x.select(ndarray::Axis(0), items);
        let y: Vec<usize> = items.iter().map(|item| self.labels[*item]).collect();
        let model = Logistic::fit_classes(x.view(), &y, 2, None, &LogisticConfig::default())?;
        let p = model.predict(self.test.view())?;
        let right =
            p.rows().into_iter().zip(&self.truth).filter(|(p, y)| usize::from(p[1] > 0.5) == **y).count();
        Ok(right as f64 / self.truth.len() as f64)
    }

    fn share(&self, items: &[usize]) -> f64 {
        items.iter().filter(|item| self.good[**item]).count() as f64 / items.len() as f64
    }
}

fn filtering(streams: &Streams) -> Result<Vec<Filtering>, Failure> {
    let pool = Pool::new(&mut streams.stream("pool"));
    let n = pool.good.len();
    let all: Vec<usize> = (0..n).collect();
    let mut out = Vec::new();
    for (name, q, shared, fresh) in [
        ("q = .7, fresh references and errors", 0.7, 0.0, true),
        ("q = .7, fresh references, half of the error is the item's own", 0.7, 0.5, true),
        ("q = .7, the same references and verdicts again", 0.7, 0.0, false),
        ("q = .6, fresh references and errors", 0.6, 0.0, true),
        ("q = .55, fresh references and errors", 0.55, 0.0, true),
    ] {
        let judge = Judge::new(q, shared, 0.0)?;
        let votes = Votes::fitted(&judge.games()?)?;
        let verdict = |round: usize, item: usize| -> Result<bool, Failure> {
            let own: f64 = StandardNormal.sample(&mut streams.fork(item as u64).stream("own"));
            let index = if fresh { round as u64 } else { 0 };
            let mut rng = streams.fork(item as u64).fork(index).stream("comparisons");
            let margins = judge.margins(&mut rng, own, pool.good[item], &MIXED);
            let outcomes = margins.iter().map(|margin| judge.two_orders(*margin));
            Ok(score(&votes, outcomes, &MIXED, 0.5)? > 1e-9)
        };
        let judged = |round: usize, items: &[usize]| -> Result<Vec<bool>, Problem> {
            items.iter().map(|item| verdict(round, *item)).collect::<Result<_, _>>().map_err(Problem)
        };
        let rounds = filter(n, ROUNDS, judged).map_err(|problem| problem.0)?;
        let mut points = vec![(pool.share(&all), 1.0, pool.student(&all)?)];
        for round in &rounds {
            let left = round.kept.len() as f64 / n as f64;
            points.push((pool.share(&round.kept), left, pool.student(&round.kept)?));
        }
        let (mut predicted, keep) = (vec![points[0].0], rates(&judge, &votes)?);
        for _ in &rounds {
            let last = predicted.last().copied().unwrap_or(0.5);
            predicted.push(purity(last, keep.0, keep.1)?);
        }
        out.push(Filtering { judge: name.into(), rounds: points, predicted });
    }
    let good: Vec<usize> = all.iter().copied().filter(|item| pool.good[*item]).collect();
    out.push(Filtering {
        judge: "only the good items".into(),
        rounds: vec![(1.0, 0.5, pool.student(&good)?)],
        predicted: vec![1.0],
    });
    let tenth = &all[..n / 10];
    out.push(Filtering {
        judge: "a tenth, unfiltered".into(),
        rounds: vec![(pool.share(tenth), 0.1, pool.student(tenth)?)],
        predicted: vec![0.5],
    });
    Ok(out)
}

/// [`filter`] wants an error that can hold its own.
struct Problem(Failure);

impl From<pilotfish_supervision::SupervisionError> for Problem {
    fn from(error: pilotfish_supervision::SupervisionError) -> Self {
        Self(error.into())
    }
}

/// Probabilities that a good and a bad item are kept, exactly, errors being independent.
fn rates(judge: &Judge, votes: &Votes) -> Result<(f64, f64), Failure> {
    let games = judge.games()?;
    let keep = |target: bool| -> Result<f64, Failure> {
        let mut sum = 0.0;
        for index in 0..1usize << MIXED.len() {
            let outcome = |i: usize| if index >> i & 1 == 1 { Outcome::Better } else { Outcome::Worse };
            let outcomes: Vec<Outcome> = (0..MIXED.len()).map(outcome).collect();
            if score(votes, outcomes.iter().copied(), &MIXED, 0.5)? > 1e-9 {
                let p = outcomes.iter().zip(MIXED).map(|(o, label)| games.probability(*o, target, label));
                sum += p.product::<f64>();
            }
        }
        Ok(sum)
    };
    Ok((keep(true)?, keep(false)?))
}

pub(super) fn run(run: &mut Run, seed: u64, result: &mut ResultFile) -> Result<String, Failure> {
    let streams = Streams::new(seed).fork(1);
    let rows: Vec<Aggregation> = run.step("simulated: votes", || aggregation(&streams))?;
    let header: Vec<String> = SHARED.iter().map(|shared| format!("shared {shared}")).collect();
    let header: Vec<&str> =
        ["q", "references", "votes", "exact"].into_iter().chain(header.iter().map(String::as_str)).collect();
    let title = format!(
        "Simulated judges: accuracy of S > 0 at equal priors, {TARGETS} targets; by enumeration, and with a share of \
         the noise common to all comparisons of a target"
    );
    let mut table = Table::new(title, &header);
    for row in &rows {
        let cells =
            [format!("{:.1}", row.q), row.references.clone(), row.votes.clone(), format!("{:.3}", row.exact)];
        table.row(cells.into_iter().chain(row.simulated.iter().map(|value| format!("{value:.3}"))));
    }
    result.tables.push(table);
    let worst = rows.iter().map(|row| (row.exact - row.simulated[0]).abs()).fold(0.0, f64::max);
    let find = |q: f64, name: &str| {
        rows.iter().find(|row| row.q == q && row.references.starts_with("3") && row.votes == name)
    };

    let biases: Vec<Bias> = run.step("simulated: position bias", || biases(&streams))?;
    let mut table = Table::new(
        "A judge that favours the first slot (q = 0.7, three right and two wrong references): accuracy",
        &["bias", "ties", "one order, sum", "two orders, sum", "two orders, fitted", "bias cancelled, sum"],
    );
    for row in &biases {
        let cells = [row.bias, row.ties, row.one_order, row.sum, row.fitted, row.averaged];
        table.row(cells.map(|value| format!("{value:.3}")));
    }
    result.tables.push(table);

    let found: Vec<Cascades> = run.step("simulated: cascades", || cascades(&streams))?;
    let mut table = Table::new(
        format!("Cascades from a model of accuracy {WEAK} to one of {STRONG}, threshold S > 0"),
        &["q", "sent on", "accuracy", "by the judge's rates", "sent at random", "precision of the kept"],
    );
    for row in &found {
        table.row([
            format!("{:.1}", row.q),
            format!("{:.3}", row.routed),
            format!("{:.3}", row.accuracy),
            format!("{:.3}", row.predicted),
            format!("{:.3}", WEAK + row.routed * (STRONG - WEAK)),
            row.precision.map_or("-".into(), |value| format!("{value:.3}")),
        ]);
    }
    result.tables.push(table);
    result.plots.push(Plot {
        title: "Simulated cascades: accuracy over the share sent to the strong model".into(),
        x: "share sent".into(),
        y: "accuracy".into(),
        kind: Kind::Lines,
        series: found
            .iter()
            .map(|row| Series {
                name: format!("q = {:.1}", row.q),
                points: row.curve.iter().map(|(x, y)| Point { x: *x, y: *y, interval: None }).collect(),
            })
            .collect(),
        reference: None,
    });

    let kept: Vec<Filtering> = run.step("simulated: filtering", || filtering(&streams))?;
    let mut table = Table::new(
        "Filtering data of which half is labelled by a wrong rule: share of good items, by formula in brackets; \
         share of items left; accuracy of a student trained on them",
        &["judge", "round", "good", "left", "student"],
    );
    for row in &kept {
        for (round, ((good, left, student), predicted)) in row.rounds.iter().zip(&row.predicted).enumerate() {
            table.row([
                row.judge.clone(),
                round.to_string(),
                format!("{good:.3} ({predicted:.3})"),
                format!("{left:.3}"),
                format!("{student:.3}"),
            ]);
        }
    }
    result.tables.push(table);
    for (part, rows) in [
        ("votes", serde_json::to_value(&rows)?),
        ("bias", serde_json::to_value(&biases)?),
        ("cascades", serde_json::to_value(&found)?),
        ("filtering", serde_json::to_value(&kept)?),
    ] {
        result.rows.push(serde_json::json!({ "part": part, "rows": rows }));
    }
    result.notes.push(format!(
        "Simulation and exact enumeration differ by at most {worst:.3} where nothing is shared; two standard errors of \
         {TARGETS} targets are .007. A judge's noise that a target brings to all of its comparisons is what more \
         references cannot average out."
    ));
    let value = |row: Option<&Aggregation>, at: usize| row.map_or(f64::NAN, |row| row.simulated[at]);
    let last = |row: &Filtering| row.rounds.last().copied().unwrap_or_default();
    Ok(format!(
        "Simulated judges that prefer the right one of two answers with probability .7 are right about an answer in \
         {:.1} % of cases with five references, {:.1} % where half of their noise is the target's own; a cascade from \
         60 % to 85 % then reaches {:.1} % with {:.0} % sent on (at random: {:.1} %); four rounds of filtering raise the \
         share of good training data from 50 % to {:.0} % where errors are fresh, {:.0} % where half of them are not.",
        100.0 * value(find(0.7, "fitted"), 0),
        100.0 * value(find(0.7, "fitted"), 2),
        100.0 * found[2].accuracy,
        100.0 * found[2].routed,
        100.0 * (WEAK + found[2].routed * (STRONG - WEAK)),
        100.0 * last(&kept[0]).0,
        100.0 * last(&kept[1]).0,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_judges_are_what_they_say() {
        let judge = Judge::new(0.8, 0.5, 0.3).expect("valid");
        let mut rng = Streams::new(3).stream("test");
        let n = 40_000;
        let mut counts = [0.0; 3];
        for _ in 0..n {
            let own: f64 = StandardNormal.sample(&mut rng);
            let margin = judge.margins(&mut rng, own, true, &[false])[0];
            counts[judge.two_orders(margin) as usize] += 1.0 / f64::from(n);
        }
        let law = judge.games().expect("valid").different;
        counts.iter().zip(law).for_each(|(a, b)| assert!((a - b).abs() < 0.01, "{counts:?} {law:?}"));
        // Without a bias it prefers the right one with probability q.
        let plain = Judge::new(0.8, 0.0, 0.0).expect("valid").games().expect("valid");
        assert!((plain.different[0] - 0.8).abs() < 1e-9 && plain.same[0] == 0.5);
    }

    #[test]
    fn kept_shares_follow_the_enumeration() {
        let judge = Judge::new(0.7, 0.0, 0.0).expect("valid");
        let votes = Votes::fitted(&judge.games().expect("valid")).expect("finite");
        let (good, bad) = rates(&judge, &votes).expect("valid");
        // At equal priors the accuracy is half the kept good and half the dropped bad ones; no score is 0 here.
        let exact = accuracy(&Games::decisive(0.7).expect("valid"), &votes, &MIXED).expect("valid");
        assert!((0.5 * (good + 1.0 - bad) - exact).abs() < 0.02, "{good} {bad} {exact}");
    }
}
