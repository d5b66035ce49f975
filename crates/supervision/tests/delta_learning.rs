//! Delta learning's closed forms, against worked numbers and simulations.
#![allow(clippy::unwrap_used)]

use ndarray::array;
use pilotfish_model::Streams;
use pilotfish_supervision::delta_learning::{
    Counts, Lesson, Pairs, accuracy, best_step, chance_of_improvement, cosine, disagreement, first_gradient,
    first_order, imitation_hurts_above, measure, moved, overtrained, sampled_pull,
};
use proptest::prelude::*;
use rand::Rng;
use rand_distr::StandardNormal;

fn near(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance, "{got} is not {want}");
}

const TRUTH: [f64; 4] = [1.0, 0.0, 0.0, 0.0];
const STUDENT: [f64; 4] = [0.8, 0.6, 0.0, 0.0];

/// Teachers at cosines 0.6 and 0.2 whose errors share `rho` with the student's error.
fn teachers(rho: f64) -> [Vec<f64>; 2] {
    let rest = (1.0 - rho * rho).sqrt();
    let far = 0.96f64.sqrt();
    [vec![0.6, 0.8 * rho, 0.8 * rest, 0.0], vec![0.2, far * rho, 0.0, far * rest]]
}

/// Cosines to the truth along both paths, their best and where they end.
#[test]
fn paths_of_the_example_in_four_dimensions() {
    let rates = [0.05, 0.1, 0.2, 0.4, 1.0, 3.0];
    let rows = [
        (0.0, true, [0.805471, 0.807692, 0.803863, 0.774194, 0.650791, 0.461757], 0.807781, 0.1125, 0.301511),
        (0.0, false, [0.809804, 0.817751, 0.828862, 0.836970, 0.813733, 0.724462], 0.837033, 0.422, 0.6),
        (0.4, true, [0.807399, 0.811884, 0.813176, 0.793701, 0.685673, 0.496236], 0.813786, 0.163, 0.325605),
        (0.4, false, [0.802504, 0.803914, 0.804176, 0.798207, 0.765588, 0.694086], 0.804425, 0.157, 0.6),
        (0.8, true, [0.809835, 0.818080, 0.830134, 0.839388, 0.804647, 0.658937], 0.839432, 0.416, 0.459834),
        (0.8, false, [0.795397, 0.790757, 0.781572, 0.764375, 0.725087, 0.667237], 0.8, 0.0, 0.6),
    ];
    for (rho, delta, want, best, at, limit) in rows {
        let [c, r] = teachers(rho);
        let step: Vec<f64> = if delta { c.iter().zip(&r).map(|(c, r)| c - r).collect() } else { c };
        let along = |rate: f64| cosine(&moved(&STUDENT, &step, rate), &TRUTH);
        rates.iter().zip(want).for_each(|(&rate, want)| near(along(rate), want, 1e-6));
        // The best of a fine grid.
        let top = (0..=3000)
            .map(|i| f64::from(i) / 3000.0)
            .fold(0.0, |a, b| if along(b) > along(a) { b } else { a });
        near(along(top), best, 1e-6);
        near(top, at, 2e-3);
        near(along(1e9), limit, 1e-6);
    }
}

#[test]
fn criteria_and_limits_by_hand() {
    for (rho, delta, imitation) in [(0.0, 0.144, 0.216), (0.4, 0.178521, 0.0624), (0.8, 0.213042, -0.0912)] {
        let [c, r] = teachers(rho);
        let v: Vec<f64> = c.iter().zip(&r).map(|(c, r)| c - r).collect();
        near(first_order(&STUDENT, &v, &TRUTH), delta, 1e-6);
        near(first_order(&STUDENT, &c, &TRUTH), imitation, 1e-6);
        // Teachers the other way round turn the sign; equal ones do nothing.
        let back: Vec<f64> = v.iter().map(|v| -v).collect();
        near(first_order(&STUDENT, &back, &TRUTH), -delta, 1e-6);
        assert!(first_gradient(&c, &c).iter().all(|g| *g == 0.0));
    }
    near(imitation_hurts_above(0.8, 0.6), 0.5625, 1e-12);
    near(accuracy(0.839432), 0.8171, 1e-4);
    for (cosines, best, rate) in [
        ([0.9, 0.5, 0.3], 0.900481, 0.025435),
        ([0.6, 0.5, 0.1], 0.628944, 0.2452),
        ([0.8, 0.6, 0.2], 0.807781, 0.1125),
    ] {
        let (got, at) = best_step(cosines);
        near(got, best, 1e-6);
        near(at, rate, 1e-4);
    }
    near(overtrained(0.5, 0.3), 0.1534, 1e-4);
    near(overtrained(0.6, 0.2), 0.301511, 1e-6);
    for (cosine, want) in
        [(0.6, 0.7048), (0.628944, 0.7165), (0.5, 0.6667), (0.1, 0.5319), (0.807781, 0.7993)]
    {
        near(accuracy(cosine), want, 1e-4);
    }
    for (scale, want) in [(1.0, 0.413242), (2.0, 0.302853), (4.0, 0.182369)] {
        near(sampled_pull(scale), want, 1e-6);
    }
}

/// The prediction, and what random directions do.
#[test]
fn chance_of_improvement_meets_simulations() {
    let cosines = [0.9, 0.5, 0.3];
    for (d, want) in [(20, 0.628), (100, 0.773), (1000, 0.991)] {
        near(chance_of_improvement(d, cosines), want, 1e-3);
    }
    let d = 100;
    let mut rng = Streams::new(1).stream("directions");
    let mut drawn = |cosine: f64| -> Vec<f64> {
        let mut error: Vec<f64> = (0..d).map(|_| rng.sample(StandardNormal)).collect();
        error[0] = 0.0;
        let length = error.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scale = (1.0 - cosine * cosine).sqrt() / length;
        error.iter_mut().for_each(|x| *x *= scale);
        error[0] = cosine;
        error
    };
    let truth: Vec<f64> = (0..d).map(|at| f64::from(u8::from(at == 0))).collect();
    let better = (0..2000).filter(|_| {
        let (s, c, r) = (drawn(0.9), drawn(0.5), drawn(0.3));
        first_order(&s, &first_gradient(&c, &r), &truth) > 0.0
    });
    // The note's own simulation has 0.760 where the formula says 0.773; three standard errors are 0.028.
    near(better.count() as f64 / 2000.0, 0.766, 0.035);
}

#[test]
fn the_first_gradient_is_the_mean_over_items() {
    let [c, r] = teachers(0.0);
    // The numbers are those with the worse teacher's error in the third dimension and the better one's in the second.
    let (c, r) = (vec![c[0], c[2], 0.0, 0.0], vec![r[0], 0.0, r[3], 0.0]);
    let want = [0.159577, 0.319154, -0.390882, 0.0];
    first_gradient(&c, &r).iter().zip(want).for_each(|(got, want)| near(*got, want, 1e-6));
    near(disagreement(&c, &r), 0.461711, 1e-6);
    let mut rng = Streams::new(2).stream("items");
    let items = 400_000;
    let pairs = Pairs::drawn(items, &c, &r, &mut rng).unwrap();
    // At its start DPO with beta 1 has minus half of it as its gradient.
    let (value, gradient) = pairs.loss(Lesson::Delta { beta: 1.0 }, &STUDENT, &STUDENT).unwrap();
    near(value, std::f64::consts::LN_2, 1e-12);
    gradient
        .iter()
        .zip(want)
        .for_each(|(got, want)| near(*got, -0.5 * want, 4.0 * 0.5 / (items as f64).sqrt()));
    near(pairs.disagreement(), 0.461711, 4.0 * 0.5 / (items as f64).sqrt());
    // Where they differ, the better teacher is right on 65.2 %.
    let right = (accuracy(0.6) - accuracy(0.2) + 0.461711) / 2.0 / 0.461711;
    near(right, 0.652, 1e-3);
}

/// 40,000 items in 50 dimensions: what the closed form in four dimensions predicts.
#[test]
fn finite_data_follow_the_closed_form() {
    let [mut c, mut r] = teachers(0.8);
    let mut student = STUDENT.to_vec();
    for vector in [&mut c, &mut r, &mut student] {
        vector.resize(50, 0.0);
    }
    let truth: Vec<f64> = (0..50).map(|at| f64::from(u8::from(at == 0))).collect();
    let pairs = Pairs::drawn(40_000, &c, &r, &mut Streams::new(3).stream("items")).unwrap();
    let cosines = |lesson, steps| -> Vec<f64> {
        let path = pairs.descend(lesson, &student, 0.1, steps).unwrap();
        path.iter().map(|at| cosine(at, &truth)).collect()
    };
    let delta = cosines(Lesson::Delta { beta: 1.0 }, 200);
    let best = (0..delta.len()).fold(0, |a, b| if delta[b] > delta[a] { b } else { a });
    assert!(
        (0.8384..0.8411).contains(&delta[best]) && (18..=30).contains(&best),
        "{} at {best}",
        delta[best]
    );
    assert!((0.72..0.75).contains(&delta[200]), "{}", delta[200]);
    // Imitation only loses, all the way down to the teacher.
    let imitation = cosines(Lesson::Imitation, 200);
    assert!(
        imitation.windows(2).all(|pair| pair[1] < pair[0]) && imitation[200] < 0.77,
        "{}",
        imitation[200]
    );
}

#[test]
fn a_preference_extrapolates_only_through_what_sizes_share() {
    let start = Counts { slope: 0.0, own: vec![0.0; 9] };
    let run = |rates: [f64; 2]| {
        let mut counts = start.clone();
        (0..200).for_each(|_| counts.prefer(&start, [3, 2], 1.0, rates).unwrap());
        counts
    };
    // Sizes of their own: 3 rises, 2 falls, the others keep their proportions.
    let own = run([0.0, 0.05]);
    let law = own.law();
    assert!(law[2] > 1.0 / 9.0 && law[1] < 1.0 / 9.0);
    assert!((law[8] - law[3]).abs() < 1e-12 && law[3] < law[2]);
    assert!(own.mean() < start.mean(), "the mean goes to the better size, not beyond: {}", own.mean());
    // A slope: the mean leaves the better size behind.
    let shared = run([0.05, 0.0]);
    assert!(shared.mean() > 7.0 && shared.law()[8] > shared.law()[2], "{}", shared.mean());
    // Imitation of 3 pulls to 3 from above.
    let mut imitation = Counts { slope: 0.5, ..start.clone() };
    let before = imitation.mean();
    (0..500).for_each(|_| imitation.imitate(3, [0.01, 0.05]).unwrap());
    assert!(before > 7.0 && (imitation.mean() - 3.0).abs() < 0.5, "{}", imitation.mean());
    // Reversed pairs lower it; a size over itself does nothing.
    let mut reversed = start.clone();
    reversed.prefer(&start, [2, 3], 1.0, [0.05, 0.0]).unwrap();
    assert!(reversed.mean() < start.mean());
    let mut tied = start.clone();
    tied.prefer(&start, [3, 3], 1.0, [0.05, 0.05]).unwrap();
    assert_eq!(tied, start);
    assert!(tied.prefer(&start, [10, 2], 1.0, [0.1, 0.1]).is_err() && tied.imitate(0, [0.1; 2]).is_err());
    assert!(tied.prefer(&start, [0, 2], 1.0, [0.1, 0.1]).is_err());
}

#[test]
fn pairs_are_measured_by_hand() {
    // Right and right (the same); right over wrong; wrong over right; both wrong.
    let delta =
        measure([(true, true, true), (true, false, false), (false, true, false), (false, false, false)]);
    let delta = delta.unwrap();
    assert_eq!((delta.pairs, delta.better, delta.worse), (4, 0.5, 0.5));
    assert_eq!((delta.same, delta.inverted, delta.gap()), (0.25, 0.25, 0.0));
    assert!(measure([]).is_err());
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = array![[1.0, 2.0], [0.5, -1.0]];
    assert!(Pairs::new(x.clone(), &[1.0], &[1.0, 0.0]).is_err());
    assert!(Pairs::new(x.clone(), &[1.0, f64::NAN], &[1.0, 0.0]).is_err());
    assert!(Pairs::new(ndarray::Array2::zeros((0, 2)), &[1.0, 0.0], &[1.0, 0.0]).is_err());
    let pairs = Pairs::new(x, &[1.0, 0.0], &[0.0, 1.0]).unwrap();
    assert!(pairs.loss(Lesson::Imitation, &[1.0], &[1.0]).is_err());
    assert!(pairs.descend(Lesson::Imitation, &[1.0, 0.0], f64::NAN, 1).is_err());
}

proptest! {
    /// Gradients are those of finite differences, and pairs of equal teachers have none.
    #[test]
    fn gradients_are_those_of_differences(
        student in prop::collection::vec(-2.0f64..2.0, 3),
        seed in 0u64..100,
        beta in 0.2f64..3.0,
    ) {
        let mut rng = Streams::new(seed).stream("items");
        let pairs = Pairs::drawn(50, &[1.0, 0.2, 0.0], &[0.1, 1.0, -0.4], &mut rng).unwrap();
        let reference = [0.3, -0.2, 0.5];
        for lesson in [Lesson::Delta { beta }, Lesson::Imitation] {
            let (_, gradient) = pairs.loss(lesson, &student, &reference).unwrap();
            for at in 0..3 {
                let value = |by: f64| {
                    let mut moved = student.clone();
                    moved[at] += by;
                    pairs.loss(lesson, &moved, &reference).unwrap().0
                };
                prop_assert!(((value(1e-5) - value(-1e-5)) / 2e-5 - gradient[at]).abs() < 1e-6);
            }
        }
        let tied = Pairs::drawn(50, &[1.0, 0.2, 0.0], &[1.0, 0.2, 0.0], &mut rng).unwrap();
        let (value, gradient) = tied.loss(Lesson::Delta { beta }, &student, &reference).unwrap();
        prop_assert!((value - std::f64::consts::LN_2).abs() < 1e-12 && gradient.iter().all(|g| *g == 0.0));
    }
}
