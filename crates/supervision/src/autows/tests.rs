//! Values by hand from the published algorithms, values of scikit-learn (`tests/fixtures/autows.py`), laws, bad input.
#![allow(clippy::unwrap_used)]

use linfa_linalg::eigh::Eigh;
use ndarray::{Array2, Axis, array, s};
use proptest::prelude::*;
use rand::Rng;
use rand_distr::StandardNormal;
use serde_json::Value;

use super::features::{bit_reversal, leading, permute_images, principal};
use super::function::{
    any, band, best_beta, either, generate, logit, micro_f1, newton, newton_many, stump, weighted_f1,
};
use super::goggles::{Goggles, GogglesConfig, affinity, best_mapping, feasibility};
use super::iws::{IwsConfig, accuracy_covered, straddle};
use super::propagation::{PropagationConfig, choose_gamma, propagate};
use super::snuba::{Aggregator, SnubaConfig, gamma, jaccard};
use super::*;
use crate::heads::{Logistic, LogisticConfig};
use crate::label_models::Snorkel;

fn near(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance, "{a} is not {b}");
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../../tests/fixtures/autows.json")).unwrap()
}

fn matrix(value: &Value) -> Array2<f64> {
    let rows: Vec<Vec<f64>> = serde_json::from_value(value.clone()).unwrap();
    let width = rows[0].len();
    Array2::from_shape_vec((rows.len(), width), rows.concat()).unwrap()
}

/// Classes around the corners of a simplex in the first features, noise in the others.
fn blobs(items: usize, features: usize, classes: usize, apart: f64, seed: u64) -> (Array2<f64>, Vec<usize>) {
    let mut rng = Streams::new(seed).stream("blobs");
    let y: Vec<usize> = (0..items).map(|item| item % classes).collect();
    let x = Array2::from_shape_fn((items, features), |(item, feature)| {
        let noise: f64 = rng.sample(StandardNormal);
        noise + if feature == y[item] { apart } else { 0.0 }
    });
    (x, y)
}

// Worked by hand.

#[test]
fn stump_and_beta_by_hand() {
    let x = Array2::from_shape_fn((1, 10), |(_, item)| item as f64);
    let y = [0, 0, 0, 0, 1, 1, 1, 1, 0, 1];
    let items: Vec<usize> = (0..10).collect();
    let (model, _) = stump(0, x.row(0), &y, &items, 2);
    let Model::Stump { threshold, below, above, .. } = &model else { panic!("a stump") };
    assert_eq!((*threshold, below[1]), (3.5, 0.0));
    near(above[1], 5.0 / 6.0, 1e-15);
    let evidence = model.evidence(&x);
    let votes = |beta: f64| evidence.iter().map(|e| either(*e, band(beta))).collect::<Vec<_>>();
    for (beta, want, weighted, micro) in [(0.316667, 1, 0.898990, 0.9), (0.338889, -1, 0.444444, 0.4)] {
        assert_eq!(votes(beta)[..4], [0; 4]);
        assert_eq!(votes(beta)[4..], [want; 6]);
        near(weighted_f1(&y, &votes(beta), 2), weighted, 5e-7);
        near(micro_f1(&y, &votes(beta)), micro, 1e-15);
    }
    let betas = SnubaConfig::default().betas;
    near(betas[3], 0.316667, 5e-7);
    // Four are equal; the smallest.
    assert_eq!(best_beta(&betas, &y, 2, |item, beta| either(evidence[item], band(beta))).0, 0.25);
}

#[test]
fn jaccard_and_gamma_by_hand() {
    assert_eq!(jaccard(&[true, false, false, true, true, true], &[1, 1, 0, 2, 0, 1]), 0.5);
    assert_eq!(jaccard(&[false; 3], &[0; 3]), 0.0);
    for (functions, want) in [(3, 0.307550), (4, 0.375), (10, 0.468377), (25, 0.492)] {
        near(gamma(functions), want, 5e-7);
    }
}

#[test]
fn a_unipolar_function_names_its_class_alone() {
    let model =
        |p: f64| Model::Stump { feature: 0, threshold: 0.0, below: vec![1.0 - p, p], above: vec![0.5, 0.5] };
    let yes = Function { model: model(0.9), beta: 0.3, says: Says::Only(2) };
    let no = Function { model: model(0.1), beta: 0.3, says: Says::Only(2) };
    let x = array![[-1.0], [1.0]];
    // Binary votes +1, -1 and 0.
    assert_eq!(votes(&[yes, no], x.view()).unwrap(), array![[2, -1], [-1, -1]]);
    let (x, y) = blobs(90, 5, 3, 2.0, 1);
    let functions = snuba::unipolar(x.view(), &y, 3, x.view(), &SnubaConfig::default()).unwrap();
    let cast = votes(&functions, x.view()).unwrap();
    for (function, column) in functions.iter().zip(cast.columns()) {
        let Says::Only(class) = function.says else { panic!("unipolar") };
        assert!(column.iter().all(|vote| *vote == -1 || *vote == class as i16));
    }
}

#[test]
fn label_propagation_by_hand() {
    let config = PropagationConfig { tolerance: 0.0, ..PropagationConfig::default() };
    let labelled = array![[0.0], [2.0]];
    let p = propagate(labelled.view(), &[0, 1], 2, array![[0.8]].view(), 1.0, &config).unwrap();
    near(p[[0, 0]], 0.689974, 5e-7);
    near(p[[0, 1]], 0.310026, 5e-7);
    let p = propagate(labelled.view(), &[0, 1], 2, array![[0.8], [1.5]].view(), 1.0, &config).unwrap();
    for (got, want) in p.iter().zip([0.506550, 0.493450, 0.277738, 0.722262]) {
        near(*got, want, 5e-7);
    }
}

#[test]
fn feasibility_by_hand() {
    near(feasibility(18, 3, 0.7).unwrap(), 0.931937, 5e-7);
    // What the reference's grid makes of it is caught.
    assert!((feasibility(18, 3, 0.7).unwrap() - 0.938771).abs() > 5e-3);
    assert!(feasibility(1, 1, f64::NAN).is_err() && feasibility(1, 1, 1.5).is_err());
    near(feasibility(0, 0, 0.7).unwrap(), 0.3, 1e-12);
}

#[test]
fn mapping_by_hand() {
    let counts = [vec![1, 9], vec![8, 2]];
    let classes = best_mapping(&counts).unwrap();
    assert_eq!(classes, [1, 0]);
    assert_eq!(classes.iter().zip(&counts).map(|(class, row)| row[*class]).sum::<u32>(), 17);
    assert!(best_mapping(&[]).is_err() && best_mapping(&[vec![1, 2]]).is_err());
}

#[test]
fn acquisition_by_hand() {
    let values: Vec<f64> =
        [(0.6, 0.1), (0.8, 0.1), (0.6, 0.0)].map(|(mean, sd)| straddle(mean, sd, 0.6, 1.96)).to_vec();
    near(values[0], 0.196, 1e-12);
    near(values[1], -0.004, 1e-12);
    assert_eq!(values[2], 0.0);
    assert!(values[0] > values[1] && values[0] > values[2]);
}

#[test]
fn coverage_arithmetic_by_hand() {
    let labels: Vec<Option<usize>> =
        (0..100).map(|item| (item < 40).then_some(usize::from(item < 8))).collect();
    let scored = score(&labels, &[0; 100], 10).unwrap();
    assert_eq!(scored, Scored { items: 100, covered: 40, right: 32, classes: 10 });
    assert_eq!((scored.coverage(), scored.accuracy_covered()), (0.4, Some(0.8)));
    assert_eq!((scored.accuracy(), scored.accuracy_guessing()), (0.32, 0.38));
    let none = score(&[None], &[0], 2).unwrap();
    assert_eq!((none.accuracy_covered(), none.accuracy_guessing()), (None, 0.5));
}

#[test]
fn bit_reversal_is_its_own_inverse() {
    for n in [1, 2, 8, 32] {
        let once = bit_reversal(n).unwrap();
        assert_eq!(once.iter().map(|at| once[*at]).collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
    }
    let x = Array2::from_shape_fn((2, 64), |(i, j)| (64 * i + j) as f64);
    let once = permute_images(x.view()).unwrap();
    assert_ne!(once, x);
    assert_eq!((once[[0, 0]], once[[0, 1]], once[[0, 8]]), (0.0, 4.0, 32.0));
    assert_eq!(permute_images(once.view()).unwrap(), x);
    assert!(bit_reversal(28).is_err() && bit_reversal(0).is_err());
    assert!(permute_images(x.slice(s![.., ..63])).is_err());
}

#[test]
fn profiles_by_hand() {
    let profile = performance_profile(&[vec![0.0, 0.0], vec![0.0, 1.0]], &[1.0, 100.0]).unwrap();
    assert_eq!(profile, [[0.5, 0.5], [1.0, 1.0]]);
    assert!(performance_profile(&[], &[1.0]).is_err());
    assert!(performance_profile(&[vec![1.0], vec![1.0, 2.0]], &[1.0]).is_err());
    assert!(performance_profile(&[vec![f64::NAN]], &[1.0]).is_err());
    assert!(performance_profile(&[vec![1.0]], &[0.5]).is_err());
}

// Faults of the reference code, which must not be here.

#[test]
fn a_wrong_class_is_not_right_because_it_is_positive() {
    // The product of vote and truth is positive for the first two.
    assert_eq!(accuracy_covered(&[1, 2, 0, 0], &[2, 1, 0, -1]), 1.0 / 3.0);
    assert_eq!(accuracy_covered(&[0, 0], &[0, 0]), 1.0);
    assert_eq!(accuracy_covered(&[0], &[-1]), 0.0);
}

#[test]
fn class_0_is_covered_and_can_be_beyond_doubt() {
    let train =
        Array2::from_shape_fn((60, 4), |(item, f)| ((item % 3) as i16 + i16::from(item % 7 == f)) % 3);
    let seen = array![[0, 0, 0, 0], [2, 2, 2, 2], [-1, -1, -1, -1]];
    let sure = snuba::doubt_of_many(&train, &seen, 3).unwrap();
    // |class - 1/C| <= gamma would call class 0 doubtful and class 2 not.
    assert!(sure[0] > gamma(4) && sure[1] > gamma(4), "{sure:?}");
    near(sure[2], 0.0, 1e-9);
    // A function of class 0 alone covers; one that abstains does not.
    let only = Function {
        model: Model::Stump {
            feature: 0,
            threshold: 0.5,
            below: vec![1.0, 0.0, 0.0],
            above: vec![0.34, 0.33, 0.33],
        },
        beta: 0.3,
        says: Says::Any { classes: 3 },
    };
    assert_eq!(votes(&[only], array![[0.0], [1.0]].view()).unwrap(), array![[0], [-1]]);
}

// Against scikit-learn.

#[test]
fn stumps_are_scikit_learns() {
    let golden = golden();
    let (x, new) = (matrix(&golden["x"]), matrix(&golden["new"]));
    let y: Vec<usize> = serde_json::from_value(golden["y"].clone()).unwrap();
    let items: Vec<usize> = (0..y.len()).collect();
    let mut at = 0;
    for feature in 0..4 {
        for (truth, classes) in [(y.clone(), 3), (y.iter().map(|y| usize::from(*y == 1)).collect(), 2)] {
            let (model, _) = stump(feature, x.column(feature), &truth, &items, classes);
            let Model::Stump { threshold, below, above, .. } = &model else { panic!("a stump") };
            // scikit-learn takes features as f32.
            near(*threshold, golden["stumps"][at]["threshold"].as_f64().unwrap(), 1e-6);
            let p = matrix(&golden["stumps"][at]["p"]);
            for (item, want) in p.rows().into_iter().enumerate() {
                let side = if new[[item, feature]] <= *threshold { below } else { above };
                side.iter().zip(want).for_each(|(got, want)| near(*got, *want, 1e-12));
            }
            at += 1;
        }
    }
}

#[test]
fn logistic_regressions_are_scikit_learns() {
    let golden = golden();
    let (x, new) = (matrix(&golden["x"]), matrix(&golden["new"]));
    let y: Vec<usize> = serde_json::from_value(golden["y"].clone()).unwrap();
    let one: Vec<usize> = y.iter().map(|y| usize::from(*y == 1)).collect();
    let config = LogisticConfig::default();
    for feature in 0..4 {
        let got = newton(&x.column(feature).to_vec(), &one);
        for (got, want) in got.iter().zip(golden["logistic"][feature].as_array().unwrap()) {
            near(*got, want.as_f64().unwrap(), 1e-5);
        }
        let column = x.slice(s![.., feature..=feature]);
        let head = Logistic::fit_classes(column, &one, 2, None, &config).unwrap();
        head.weights(0).unwrap().iter().zip(got).for_each(|(a, b)| near(*a, b, 1e-5));
    }
    let items: Vec<usize> = (0..y.len()).collect();
    let models = generate(&snuba::columns(x.view()), &y, &items, 3, (false, true), 2).unwrap();
    // Four single features, then {0, 1}, {0, 2}.
    let Model::Logistic { features, .. } = &models[5] else { panic!("a regression") };
    assert_eq!(features, &[0, 2]);
    let want = matrix(&golden["many"]);
    for ((class, p), want) in models[5].tops(&snuba::columns(new.view()), 3).into_iter().zip(want.rows()) {
        near(p, want[class], 1e-5);
        assert!(want.iter().all(|other| *other <= want[class]));
    }
}

#[test]
fn f1_is_scikit_learns() {
    let golden = golden();
    let y: Vec<usize> = serde_json::from_value(golden["y"].clone()).unwrap();
    let votes: Vec<i16> = serde_json::from_value(golden["votes"].clone()).unwrap();
    near(weighted_f1(&y, &votes, 3), golden["f1"]["weighted"].as_f64().unwrap(), 1e-12);
    near(micro_f1(&y, &votes), golden["f1"]["micro"].as_f64().unwrap(), 1e-12);
}

#[test]
fn propagation_is_scikit_learns_and_the_harmonic_solution() {
    let golden = golden();
    let (x, new) = (matrix(&golden["x"]), matrix(&golden["new"]));
    let y: Vec<usize> = serde_json::from_value(golden["y"].clone()).unwrap();
    let config = PropagationConfig { tolerance: 1e-12, iterations: 20000, ..PropagationConfig::default() };
    let p = propagate(x.view(), &y, 3, new.view(), 0.5, &config).unwrap();
    p.iter().zip(matrix(&golden["spread"]).iter()).for_each(|(got, want)| near(*got, *want, 1e-7));
    // (I - P_uu) Y = P_ul Y_l.
    let weight = |a: ndarray::ArrayView1<'_, f64>, b: ndarray::ArrayView1<'_, f64>| {
        (-0.5 * a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()).exp()
    };
    for (i, row) in new.rows().into_iter().enumerate() {
        let to_known: Vec<f64> = x.rows().into_iter().map(|other| weight(row, other)).collect();
        let to_new: Vec<f64> = new.rows().into_iter().map(|other| weight(row, other)).collect();
        let sum: f64 = to_known.iter().chain(&to_new).sum();
        for class in 0..3 {
            let known: f64 = to_known.iter().zip(&y).filter(|(_, y)| **y == class).map(|(w, _)| w).sum();
            let spread: f64 = to_new.iter().enumerate().map(|(j, w)| w * p[[j, class]]).sum();
            near(p[[i, class]], (known + spread) / sum, 1e-9);
        }
    }
}

#[test]
fn principal_components_are_scikit_learns_and_linfas_eigenvectors() {
    let golden = golden();
    let x = matrix(&golden["x"]);
    let got = principal(x.view(), 2, 0).unwrap();
    got.iter().zip(matrix(&golden["pca"]).iter()).for_each(|(got, want)| near(got.abs(), *want, 1e-9));
    let centred = &x - &x.mean_axis(Axis(0)).unwrap();
    let (mut values, _) = centred.t().dot(&centred).eigh().unwrap();
    values.as_slice_mut().unwrap().sort_by(|a, b| b.total_cmp(a));
    for (column, value) in got.columns().into_iter().zip(values) {
        near(column.dot(&column), value, 1e-8 * value);
    }
    // Rank 1 in five columns, components asked for that are not there.
    let flat = Array2::from_shape_fn((6, 5), |(i, j)| (i as f64) * (j as f64));
    let got = principal(flat.view(), 100, 0).unwrap();
    assert_eq!(got.dim(), (6, 5));
    assert!(got.slice(s![.., 1..]).iter().all(|x| x.abs() < 1e-9));
    assert!(principal(flat.view(), 0, 0).is_err() && principal(flat.slice(s![.., ..0]), 1, 0).is_err());
}

#[test]
fn decompositions_keep_inner_products() {
    // A is its own reconstruction: (A V)(A V)' = A A' at full rank.
    let rows = vec![vec![0, 3], vec![1], vec![], vec![0, 1, 4], vec![3, 4]];
    let got = leading(&rows, 5, 40, 20, &Streams::new(0)).unwrap();
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate() {
            let shared = a.iter().filter(|at| b.contains(at)).count() as f64;
            near(got.row(i).dot(&got.row(j)), shared, 1e-9);
        }
    }
}

#[test]
fn the_aggregator_is_reefs() {
    let golden = golden();
    let signs: Vec<Vec<f64>> = serde_json::from_value(golden["signs"].clone()).unwrap();
    let votes = Array2::from_shape_fn((200, 4), |(i, j)| match signs[i][j] {
        1.0 => 1,
        -1.0 => 0,
        _ => -1,
    });
    let fitted = Aggregator::fit(&votes);
    for (got, want) in fitted.weights().iter().zip(golden["weights"].as_array().unwrap()) {
        near(*got, want.as_f64().unwrap(), 1e-9);
    }
    let p = fitted.probabilities(&array![[1, -1, 0, -1]]);
    near(logit(p[0]), fitted.weights()[0] - fitted.weights()[2], 1e-9);
}

// Laws.

/// Every candidate that Snuba could choose from, as votes on all items.
fn candidates(x: &Array2<f64>, y: &[usize], classes: usize) -> Vec<Vec<i16>> {
    let all = SnubaConfig { rounds: 1, first: usize::MAX, ..SnubaConfig::default() };
    let functions = snuba::multiclass(x.view(), y, classes, x.view(), &all).unwrap();
    let cast = votes(&functions, x.view()).unwrap();
    let mut columns: Vec<Vec<i16>> = cast.columns().into_iter().map(|column| column.to_vec()).collect();
    columns.sort();
    columns
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_order_of_features_does_not_matter(seed in 0u64..1000) {
        let (x, y) = blobs(40, 8, 3, 1.5, seed);
        let order = bit_reversal(8).unwrap();
        let turned = x.select(Axis(1), &order);
        prop_assert_eq!(candidates(&x, &y, 3), candidates(&turned, &y, 3));
        let config = LogisticConfig::default();
        let fit = |x: &Array2<f64>| {
            Logistic::fit_classes(x.view(), &y, 3, None, &config).unwrap().predict(x.view()).unwrap()
        };
        for (a, b) in fit(&x).iter().zip(fit(&turned).iter()) {
            prop_assert!((a - b).abs() < 1e-4);
        }
    }

    #[test]
    fn draws_are_even_and_complete(seed in proptest::num::u64::ANY, count in 0usize..=30) {
        let y: Vec<usize> = (0..30).map(|item| if item < 20 { item % 2 } else { 2 }).collect();
        let items: Vec<usize> = (0..30).collect();
        let (drawn, rest) = draw(&items, &y, 3, count, &Streams::new(seed)).unwrap();
        prop_assert_eq!(drawn.len(), count);
        let mut all: Vec<usize> = drawn.iter().chain(&rest).copied().collect();
        all.sort_unstable();
        prop_assert_eq!(&all, &items);
        let of = |class: usize| drawn.iter().filter(|item| y[**item] == class).count();
        let spread = (0..3).map(of).max().unwrap() - (0..3).map(of).min().unwrap();
        prop_assert!(spread <= 1);
    }

    #[test]
    fn any_finite_input_is_survived(values in proptest::collection::vec(-2i32..3, 24), seed in 0u64..100) {
        // Few values: ties, constant features, equal items.
        let x = Array2::from_shape_vec((8, 3), values.iter().map(|v| f64::from(*v)).collect()).unwrap();
        let mut rng = Streams::new(seed).stream("y");
        let y: Vec<usize> = (0..8).map(|_| rng.random_range(0..3)).collect();
        let config = SnubaConfig { rounds: 3, ..SnubaConfig::default() };
        for functions in [
            snuba::unipolar(x.view(), &y, 3, x.view(), &config).unwrap(),
            snuba::multiclass(x.view(), &y, 3, x.view(), &config).unwrap(),
            iws::select(x.view(), &y, 3, x.view(), &IwsConfig { questions: 2, ensemble: 2, ..IwsConfig::default() }).unwrap().functions,
        ] {
            if !functions.is_empty() {
                let cast = votes(&functions, x.view()).unwrap();
                let model = Snorkel { prior: Some(class_prior(&y, 3).unwrap()), ..Snorkel::published(1) };
                let found = aggregate(&cast, &cast, 3, &model).unwrap();
                score(&found.labels, &y, 3).unwrap();
            }
        }
        let a = affinity(x.view(), x.view()).unwrap();
        let known: Vec<Option<usize>> = y.iter().map(|y| Some(*y)).collect();
        let p = Goggles::fit(std::slice::from_ref(&a), &known, 3, &GogglesConfig::default()).unwrap().predict(&[a]).unwrap();
        prop_assert!(p.probabilities.rows().into_iter().all(|row| (row.sum() - 1.0).abs() < 1e-9));
        let config = PropagationConfig::default();
        let gamma = choose_gamma(x.view(), &y, 3, &config).unwrap();
        propagate(x.view(), &y, 3, x.view(), gamma, &config).unwrap();
    }
}

#[test]
fn more_features_a_function_are_found() {
    // Two features that matter only together.
    let x = Array2::from_shape_fn(
        (40, 2),
        |(i, j)| if (i >> j) & 1 == 1 { 1.0 } else { 0.0 } + 0.01 * i as f64 % 0.07,
    );
    let y: Vec<usize> = (0..40).map(|i| usize::from(i & 3 == 3)).collect();
    let config = SnubaConfig { cardinality: 2, stumps: false, rounds: 1, first: 1, ..SnubaConfig::default() };
    let functions = snuba::binary(x.view(), &y, x.view(), &config).unwrap();
    let Model::Logistic { features, .. } = &functions[0].model else { panic!("a regression") };
    assert_eq!(features, &[0, 1]);
    let huge = SnubaConfig { cardinality: 30, ..SnubaConfig::default() };
    assert!(matches!(huge.check_count(60), Err(SupervisionError::TooLarge { .. })));
    assert!(huge.check_count(10).is_ok());
}

#[test]
fn the_published_shape_on_gaussians() {
    // Linear classes: regression on all features beats functions of one; clusters far apart suit GOGGLES.
    let mut sums = [0.0; 4];
    for seed in 0..3 {
        let (x, y) = blobs(700, 20, 2, 2.0, seed);
        let (labelled, rest) = (x.slice(s![..100, ..]), x.slice(s![100..500, ..]));
        let (test, truth) = (x.slice(s![500.., ..]), &y[500..]);
        let known = &y[..100];
        let model = Logistic::fit_classes(labelled, known, 2, None, &LogisticConfig::default()).unwrap();
        let p = model.predict(test).unwrap();
        sums[0] += score(&zero_shot(p.view()).unwrap(), truth, 2).unwrap().accuracy();
        let functions = snuba::binary(labelled, known, rest, &SnubaConfig::default()).unwrap();
        let label_model = Snorkel { prior: Some(class_prior(known, 2).unwrap()), ..Snorkel::published(seed) };
        let (train, cast) = (votes(&functions, rest).unwrap(), votes(&functions, test).unwrap());
        let found = aggregate(&train, &cast, 2, &label_model).unwrap();
        sums[1] += score(&found.labels, truth, 2).unwrap().accuracy();
        let (near, far) = (blobs(300, 20, 2, 1.0, seed), blobs(300, 20, 2, 12.0, seed));
        for (slot, (x, y)) in [(2, near), (3, far)] {
            let a = affinity(x.slice(s![..100, ..]), x.slice(s![..100, ..])).unwrap();
            let known: Vec<Option<usize>> = y[..100].iter().map(|y| Some(*y)).collect();
            let fitted = Goggles::fit(&[a], &known, 2, &GogglesConfig::default()).unwrap();
            let a = affinity(x.slice(s![100.., ..]), x.slice(s![..100, ..])).unwrap();
            sums[slot] += score(&fitted.predict(&[a]).unwrap().labels, &y[100..], 2).unwrap().accuracy();
        }
    }
    let [regression, snuba, near, far] = sums.map(|sum| sum / 3.0);
    assert!(regression > 0.85 && regression >= snuba && snuba > 0.6, "{sums:?}");
    assert!(far > 0.98 && far > near, "{sums:?}");
}

// Bad input.

#[test]
fn bad_input_is_refused() {
    let (x, y) = blobs(12, 3, 3, 1.0, 0);
    let (snuba_config, iws_config) = (SnubaConfig::default(), IwsConfig::default());
    let config = PropagationConfig::default();
    let mut nan = x.clone();
    nan[[2, 1]] = f64::NAN;
    let none = Array2::zeros((0, 3));
    let empty = Array2::zeros((12, 0));
    let narrow = x.slice(s![.., ..2]);
    let cases = [
        (nan.view(), y.clone(), 3, x.view()),
        (x.view(), y.clone(), 3, nan.view()),
        (none.view(), vec![], 3, x.view()),
        (x.view(), y.clone(), 3, none.view()),
        (empty.view(), y.clone(), 3, empty.view()),
        (x.view(), y.clone(), 3, narrow),
        (x.view(), y.clone(), 2, x.view()),
        (x.view(), y[1..].to_vec(), 3, x.view()),
    ];
    for (labelled, y, classes, other) in cases {
        assert!(snuba::unipolar(labelled, &y, classes, other, &snuba_config).is_err());
        assert!(snuba::multiclass(labelled, &y, classes, other, &snuba_config).is_err());
        assert!(iws::select(labelled, &y, classes, other, &iws_config).is_err());
        assert!(propagate(labelled, &y, classes, other, 1.0, &config).is_err());
    }
    assert!(snuba::binary(x.view(), &y, x.view(), &snuba_config).is_err());
    assert!(propagate(x.view(), &y, 3, x.view(), f64::NAN, &config).is_err());
    for beta in [f64::NAN, -0.1, 0.5] {
        assert!(SnubaConfig { betas: vec![beta], ..snuba_config.clone() }.check().is_err());
    }
    assert!(SnubaConfig { rounds: 0, ..snuba_config.clone() }.check().is_err());
    assert!(IwsConfig { level: f64::NAN, ..iws_config.clone() }.check().is_err());
    assert!(IwsConfig { ensemble: 0, ..iws_config.clone() }.check().is_err());
    assert!(PropagationConfig { gammas: vec![f64::NAN], ..config.clone() }.check().is_err());
    assert!(GogglesConfig { ridge: 0.0, ..GogglesConfig::default() }.check().is_err());
    assert!(score(&[Some(3)], &[0], 3).is_err() && score(&[], &[], 3).is_err());
    assert!(score(&[None], &[0, 1], 3).is_err());
    assert!(class_prior(&[3], 3).is_err() && class_prior(&[], 0).is_err());
    assert!(draw(&[0, 1], &[0, 1], 2, 3, &Streams::new(0)).is_err());
    assert!(draw(&[0, 7], &[0, 1], 2, 1, &Streams::new(0)).is_err());
    let functions = snuba::multiclass(x.view(), &y, 3, x.view(), &snuba_config).unwrap();
    assert!(votes(&functions, x.slice(s![.., ..0])).is_err() || functions.is_empty());
    let cast = Array2::from_elem((2, 2), -1);
    let found = aggregate(&cast, &cast, 3, &Snorkel::default()).unwrap();
    assert_eq!((found.labels, found.model), (vec![None, None], "none"));
    assert!(aggregate(&cast, &Array2::from_elem((2, 3), -1), 3, &Snorkel::default()).is_err());
    assert!(aggregate(&array![[5]], &array![[5]], 3, &Snorkel::default()).is_err());
    let a = affinity(x.view(), x.view()).unwrap();
    let known: Vec<Option<usize>> = y.iter().map(|y| Some(*y)).collect();
    let goggles = GogglesConfig::default();
    assert!(Goggles::fit(&[], &known, 3, &goggles).is_err());
    assert!(Goggles::fit(std::slice::from_ref(&a), &[None; 12], 3, &goggles).is_err());
    assert!(Goggles::fit(std::slice::from_ref(&a), &known, 2, &goggles).is_err());
    assert!(Goggles::fit(std::slice::from_ref(&a), &known[1..], 3, &goggles).is_err());
    let fitted = Goggles::fit(std::slice::from_ref(&a), &known, 3, &goggles).unwrap();
    assert!(fitted.predict(&[]).is_err());
    assert!(fitted.predict(&[a.slice(s![.., ..4]).to_owned()]).is_err());
    assert!(zero_shot(none.view()).is_err() && zero_shot(empty.view()).is_err());
}

#[test]
fn labels_of_one_class_teach_nothing() {
    let (x, _) = blobs(12, 3, 3, 1.0, 0);
    let functions = snuba::unipolar(x.view(), &[1; 12], 3, x.view(), &SnubaConfig::default()).unwrap();
    assert!(functions.is_empty());
    assert!(votes(&functions, x.view()).unwrap().is_empty());
    assert!(
        iws::select(x.view(), &[1; 12], 3, x.view(), &IwsConfig::default()).unwrap().functions.is_empty()
    );
}

#[test]
fn items_that_no_label_reaches_have_none() {
    let (labelled, test) = (array![[0.0], [1.0]], array![[0.2], [1e6]]);
    let config = PropagationConfig::default();
    let p = propagate(labelled.view(), &[1, 0], 2, test.view(), 1.0, &config).unwrap();
    assert_eq!(propagation::labels(p.view()), [Some(1), None]);
}

#[test]
fn a_regression_on_a_part_of_the_classes_keeps_their_numbers() {
    let x = Array2::from_shape_fn((1, 8), |(_, item)| item as f64 - 3.5);
    let y = [1, 1, 1, 1, 3, 3, 3, 3];
    let models = generate(&x, &y, &[0, 1, 2, 3, 4, 5, 6, 7], 4, (false, true), 1).unwrap();
    let tops = models[0].tops(&x, 4);
    assert_eq!((tops[0].0, tops[7].0), (1, 3));
    assert_eq!((any(tops[0], 4, 0.25), any(tops[7], 4, 0.25)), (1, 3));
}

#[test]
fn newtons_method_finds_what_lbfgs_finds() {
    for (classes, apart) in [(3, 0.5), (5, 30.0)] {
        let (x, y) = blobs(40, 2, 2, apart, 4);
        let y: Vec<usize> = y.iter().enumerate().map(|(item, y)| (y + item / 8) % classes).collect();
        let config = LogisticConfig { tolerance: 1e-9, iterations: 5000, ..LogisticConfig::default() };
        let want = Logistic::fit_classes(x.view(), &y, classes, None, &config).unwrap();
        let got = newton_many(&x, &y, classes);
        // Intercepts are free up to a common shift.
        let shift = |row: &[f64]| row[2];
        let (a, b) = (shift(&got[0]), shift(want.weights(0).unwrap()));
        for (class, row) in got.iter().enumerate() {
            let want = want.weights(class).unwrap();
            near(row[0], want[0], 1e-5);
            near(row[1], want[1], 1e-5);
            near(row[2] - a, want[2] - b, 1e-4);
        }
    }
}
