//! Losses against the worked numbers of the papers and of the reference code, and their gradients against finite
//! differences.
#![allow(clippy::unwrap_used, clippy::result_large_err, clippy::type_complexity)]

use candle_core::{DType, Device, Tensor, Var};
use pilotfish_training::losses::classification::{
    Confidence, Ramp, confidence, confidence_window, cross_entropy, harden, kullback_leibler, product,
    reverse_cross_entropy,
};
use pilotfish_training::losses::preference::{Dpo, Orpo, Pairs, SimPo, conflicting_bce, ipo, pair_bce};
use pilotfish_training::losses::{Masking, Targets, log_one_less_exp, log_softmax, masked, softplus};
use pilotfish_training::{Result, TrainingError};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn vector(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn matrix(rows: &[Vec<f64>]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

fn pairs(chosen: &[f64], rejected: &[f64]) -> Pairs {
    Pairs { chosen: vector(chosen), rejected: vector(rejected) }
}

fn scalar(tensor: &Tensor) -> f64 {
    tensor.to_scalar::<f64>().unwrap()
}

fn first(tensor: Result<Tensor>) -> f64 {
    tensor.unwrap().to_vec1::<f64>().unwrap()[0]
}

#[track_caller]
fn near(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance, "{got} is not {want}");
}

/// Gradient by candle of a scalar loss.
fn gradient(x: &[f64], shape: &[usize], loss: &dyn Fn(&Tensor) -> Result<Tensor>) -> (f64, Vec<f64>) {
    let var = Var::from_vec(x.to_vec(), shape, &Device::Cpu).unwrap();
    let loss = loss(var.as_tensor()).unwrap();
    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(var.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (scalar(&loss), gradient)
}

/// Holds candle's gradient against central differences.
#[track_caller]
fn differentiate(what: &str, x: &[f64], shape: &[usize], loss: &dyn Fn(&Tensor) -> Result<Tensor>) {
    let at = |x: &[f64]| scalar(&loss(&Tensor::from_slice(x, shape, &Device::Cpu).unwrap()).unwrap());
    let (_, got) = gradient(x, shape, loss);
    for i in 0..x.len() {
        let h = 1e-5 * x[i].abs().max(1.0);
        let mut moved = x.to_vec();
        moved[i] = x[i] + h;
        let up = at(&moved);
        moved[i] = x[i] - h;
        let want = (up - at(&moved)) / (2.0 * h);
        let scale = want.abs().max(got[i].abs()).max(1e-3);
        assert!((got[i] - want).abs() <= 1e-4 * scale, "{what}, entry {i}: {} is not {want}", got[i]);
    }
}

#[test]
fn direct_preference_optimisation_by_hand() {
    let (policy, reference) = (pairs(&[-12.0], &[-15.0]), pairs(&[-13.0], &[-14.0]));
    near(first(Dpo::default().loss(&policy, &reference)), 0.598139, 1e-6);
    let (_, slope) = gradient(&[-12.0, -15.0], &[2], &|x| {
        Dpo::default().loss(&Pairs::halves(x)?, &reference)?.mean_all().map_err(Into::into)
    });
    near(slope[0], -0.045017, 1e-6);
    near(slope[1], 0.045017, 1e-6);
    // At the start the loss is ln 2 for any pair, and no pair counts as right.
    near(first(Dpo::default().loss(&policy, &policy)), std::f64::consts::LN_2, 1e-6);
    let rewards = Dpo::default().rewards(&policy, &policy).unwrap();
    assert_eq!(rewards.margin().unwrap().to_vec1::<f64>().unwrap(), [0.0]);
    // Smoothed: 0.9 sp(-0.2) + 0.1 sp(0.2).
    let smooth = Dpo { label_smoothing: 0.1, ..Dpo::default() };
    near(first(smooth.loss(&policy, &reference)), 0.9 * 0.598139 + 0.1 * 0.798139, 1e-6);
    // Identity: (2 - 5)^2.
    near(first(ipo(&policy, &reference, 0.1)), 9.0, 1e-12);
}

/// The numbers of delta learning: means over tokens, beta 5.
#[test]
fn length_normalised_direct_preference_optimisation_by_hand() {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (chosen, rejected) = ([-1.0, -2.0, -1.5, -0.5], [-2.0, -2.5]);
    let (chosen_ref, rejected_ref) = ([-1.2, -2.0, -1.6, -0.6], [-1.8, -2.4]);
    let policy = pairs(&[mean(&chosen)], &[mean(&rejected)]);
    let reference = pairs(&[mean(&chosen_ref)], &[mean(&rejected_ref)]);
    let five = Dpo { beta: 5.0, ..Dpo::default() };
    near(first(five.loss(&policy, &reference)), 0.251929, 1e-6);
    let sums = pairs(&[chosen.iter().sum()], &[rejected.iter().sum()]);
    let sums_ref = pairs(&[chosen_ref.iter().sum()], &[rejected_ref.iter().sum()]);
    near(first(Dpo::default().loss(&sums, &sums_ref)), 0.658760, 1e-6);
    let (value, slope) = gradient(&[0.02, 0.0], &[2], &|x| {
        five.loss(&Pairs::halves(x)?, &pairs(&[0.0], &[0.0]))?.mean_all().map_err(Into::into)
    });
    near(value, 0.644397, 1e-6);
    near(slope[0], -2.375104, 1e-6);
}

/// At the start each chosen token pulls with beta / (2 |c|) and each rejected one pushes with beta / (2 |r|).
#[test]
fn token_gradients_of_normalised_pairs() {
    let texts = [vec![1, 2, 0, 1, 2], vec![1, 0, 2]];
    let targets = Targets::next_tokens(&texts, &[1, 1], 5).unwrap();
    assert_eq!(targets.lengths(), [4, 2]);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let logits: Vec<f64> = (0..30).map(|_| rng.random_range(-2.0..2.0)).collect();
    let at = Tensor::from_slice(&logits, (2, 5, 3), &Device::Cpu).unwrap();
    let reference = Pairs::halves(&targets.means(&at).unwrap()).unwrap();
    let p = log_softmax(&at).unwrap().exp().unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (value, slope) = gradient(&logits, &[2, 5, 3], &|x| {
        let five = Dpo { beta: 5.0, ..Dpo::default() };
        five.loss(&Pairs::halves(&targets.means(x)?)?, &reference)?.mean_all().map_err(Into::into)
    });
    near(value, 2f64.ln(), 1e-12);
    // d log p(token) / d logit = 1 - p at the token itself.
    for (row, token, by) in [(0, 2, -0.625), (3, 2, -0.625), (5, 0, 1.25), (6, 2, 1.25)] {
        near(slope[row * 3 + token], by * (1.0 - p[row * 3 + token]), 1e-12);
    }
    // Padding and the last token of a text say nothing.
    assert!(slope[12..15].iter().chain(&slope[21..]).all(|&slope| slope == 0.0), "{slope:?}");
}

#[test]
fn simple_preference_optimisation_by_hand() {
    let loss = |c, r, beta, gamma| first(SimPo { beta, gamma }.loss(&pairs(&[c], &[r])));
    near(loss(-0.5, -1.0, 2.0, 1.0), std::f64::consts::LN_2, 1e-6);
    // -12 over 6 tokens against -15 over 10: the mean turns the order round.
    near(loss(-12.0 / 6.0, -15.0 / 10.0, 2.0, 1.0), 2.126928, 1e-6);
    near(loss(-2.0, -1.5, 2.0, 0.5), 1.701413, 1e-6);
    near(loss(-2.0, -1.5, 2.5, 1.25), 2.578890, 1e-6);
}

#[test]
fn odds_ratios_by_hand() {
    let loss = |c, r| first(Orpo::default().loss(&pairs(&[c], &[r])));
    near(loss(-0.5, -1.0), 0.532030, 1e-6);
    near(loss(-2.0, -1.5), 2.104206, 1e-6);
    // A response that is certain has finite odds.
    assert!(loss(0.0, -1.0).is_finite() && loss(-1.0, 0.0).is_finite() && loss(-800.0, -1e-9).is_finite());
}

#[test]
fn pair_cross_entropy_by_hand() {
    let loss = |x: &Tensor| pair_bce(&Pairs::halves(x)?, &vector(&[0.7]))?.mean_all().map_err(Into::into);
    let (value, slope) = gradient(&[1.0, 0.2], &[2], &loss);
    near(value, 0.611101, 1e-6);
    near(slope[0], -0.010026, 1e-6);
    near(slope[1], 0.010026, 1e-6);
}

/// Logits whose softmax over two classes has the first probability `p`.
/// Numbers of the deception paper's explicit conflict: nothing where the student is right, a push away from the truth where
/// it is wrong.
#[test]
fn explicit_conflicts_by_hand() {
    let wanted = vector(&[0.7]);
    let value =
        |better: bool, alpha| first(conflicting_bce(&pairs(&[0.8], &[0.0]), &wanted, &[better], alpha));
    near(value(true, 0.5), 0.611101, 1e-6);
    near(value(false, 0.5), 0.796651, 1e-6);
    near(value(false, 0.5) - value(true, 0.5), 0.185550, 1e-6);
    // No conflict to the bit at alpha 0.
    assert_eq!(value(false, 0.0).to_bits(), first(pair_bce(&pairs(&[0.8], &[0.0]), &wanted)).to_bits());
    let slope = |better, d: f64| {
        gradient(&[d, 0.0], &[2], &|x| {
            Ok(conflicting_bce(&Pairs::halves(x)?, &wanted, &[better], 0.5)?.mean_all()?)
        })
        .1[0]
    };
    near(slope(false, 0.8), -0.165038, 1e-6);
    // The term alone, at many margins: it points away from the truth where it is wrong, and is 0 elsewhere.
    for d in [-3.0, -0.4, 0.2, 2.0] {
        let plain = 1.0 / (1.0 + f64::exp(-d)) - 0.7;
        let (first_better, second_better) = (slope(true, d) - plain, slope(false, d) - plain);
        if d > 0.0 {
            near(first_better, 0.0, 1e-12);
            assert!(second_better < 0.0, "a step raises d further");
        } else {
            assert!(first_better > 0.0, "a step lowers d further");
            near(second_better, 0.0, 1e-12);
        }
    }
    assert!(conflicting_bce(&pairs(&[0.8], &[0.0]), &wanted, &[true, false], 0.5).is_err());
    assert!(conflicting_bce(&pairs(&[0.8], &[0.0]), &wanted, &[true], f64::NAN).is_err());
}

fn two(p: &[f64]) -> Tensor {
    matrix(&p.iter().map(|p| vec![p.ln(), (1.0 - p).ln()]).collect::<Vec<_>>())
}

fn second(y: &[f64]) -> Tensor {
    matrix(&y.iter().map(|y| vec![1.0 - y, *y]).collect::<Vec<_>>())
}

const P0: [f64; 4] = [0.9, 0.6, 0.4, 0.2];
const Y1: [f64; 4] = [0.1, 0.3, 0.8, 0.8];

#[test]
fn confidence_loss_by_hand() {
    let (z, y) = (two(&P0), second(&Y1));
    let worked = [(0.0, 0.512467), (0.25, 0.468735), (0.5, 0.425003), (0.75, 0.381271), (1.0, 0.337539)];
    for (a, want) in worked {
        near(scalar(&confidence(&z, &y, a).unwrap()), want, 1e-6);
    }
    let flat = z.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (_, slope) = gradient(&flat, &[4, 2], &|z| confidence(z, &y, 0.5));
    for (item, want) in [0.05, 0.25, -0.3, -0.1].into_iter().enumerate() {
        near(4.0 * slope[2 * item + 1], want, 1e-9);
    }
    near(scalar(&product(&z, &y, 1.0, 1.0).unwrap()), 0.401631, 1e-6);
    let items = [0.132156, 0.600929, 0.568749, 0.304690];
    for (item, want) in items.into_iter().enumerate() {
        let one = product(&two(&P0[item..=item]), &second(&Y1[item..=item]), 1.0, 1.0);
        near(scalar(&one.unwrap()), want, 1e-6);
    }
    // Weight 0 is cross-entropy to the bit; weight 1 depends on the labels by their shares only.
    let plain = scalar(&cross_entropy(&z, &y).unwrap());
    assert_eq!(scalar(&confidence(&z, &y, 0.0).unwrap()).to_bits(), plain.to_bits());
    let other = second(&[0.8, 0.8, 0.3, 0.1]);
    let all = |y| scalar(&confidence(&z, y, 1.0).unwrap());
    near(all(&other), all(&y), 1e-12);
}

fn logs(p0: &[f64]) -> Vec<Vec<f64>> {
    p0.iter().map(|p| vec![p.ln(), (1.0 - p).ln()]).collect()
}

fn shares(y1: &[f64]) -> Vec<Vec<f64>> {
    y1.iter().map(|y| vec![1.0 - y, *y]).collect()
}

#[test]
fn predictions_are_hardened_by_the_labels_shares() {
    assert_eq!(harden(&logs(&P0), &shares(&Y1)).unwrap(), [0, 0, 1, 1]);
    assert_eq!(harden(&logs(&P0), &shares(&[0.6, 0.7, 0.8, 0.9])).unwrap(), [0, 1, 1, 1]);
    // One item, and equal predictions (a head of zeros): all class 0.
    assert_eq!(harden(&logs(&[0.3]), &shares(&[0.9])).unwrap(), [0]);
    assert_eq!(harden(&logs(&[0.5; 4]), &shares(&Y1)).unwrap(), [0; 4]);
    // All labels class 1: one item of class 0 is left.
    assert_eq!(harden(&logs(&P0), &shares(&[1.0; 4])).unwrap(), [0, 1, 1, 1]);
    // Two equal extremes.
    let extremes: Vec<Vec<f64>> = [1.0f64, 1.0, 0.0, 0.0].map(|p: f64| vec![p.ln(), (1.0 - p).ln()]).to_vec();
    assert_eq!(harden(&extremes, &shares(&[0.5; 4])).unwrap(), [0, 0, 1, 1]);
    assert!(harden(&[], &[]).is_err() && harden(&logs(&P0), &shares(&Y1[1..])).is_err());
    assert!(harden(&[vec![f64::NAN, 0.0]], &shares(&[0.5])).is_err());
}

#[test]
fn the_confidence_weight_ramps_as_in_the_paper_or_as_in_its_code() {
    let paper = Confidence::default();
    assert_eq!([0, 10, 20, 99].map(|step| paper.weight(step, 100)), [0.0, 0.25, 0.5, 0.5]);
    let code = Confidence { ramp: Ramp::ReferenceBug, warmup: 0.1, ..paper };
    for (step, want) in [(5, 0.025), (10, 0.05), (11, 0.5)] {
        near(code.weight(step, 100), want, 1e-12);
    }
    for bad in [Confidence { largest: 1.5, ..paper }, Confidence { warmup: f64::NAN, ..paper }] {
        assert!(matches!(bad.check(), Err(TrainingError::BadParameter { .. })));
    }
}

#[test]
fn variants_of_cross_entropy_by_hand() {
    let (z, y) = (two(&[0.9, 0.6]), second(&[0.1, 0.3]));
    // Its own labels: no divergence.
    near(scalar(&kullback_leibler(&two(&[0.9]), &second(&[0.1])).unwrap()), 0.0, 1e-12);
    let kl = 0.7 * (0.7f64 / 0.6).ln() + 0.3 * (0.3f64 / 0.4).ln();
    near(scalar(&kullback_leibler(&z, &y).unwrap()), kl / 2.0, 1e-12);
    let reverse = -(0.9 * 0.9f64.ln() + 0.1 * 0.1f64.ln() + 0.6 * 0.7f64.ln() + 0.4 * 0.3f64.ln()) / 2.0;
    near(scalar(&reverse_cross_entropy(&z, &y, 1e-4).unwrap()), reverse, 1e-12);
    // Only the second item is unsure, and the sum is divided by both.
    let unsure = -(0.7 * 0.6f64.ln() + 0.3 * 0.4f64.ln()) / 2.0;
    near(scalar(&confidence_window(&z, &y, 0.15).unwrap()), unsure, 1e-12);
}

#[test]
fn token_losses_by_hand() {
    // Probabilities 1/2, 1/4, 1/4 in every row; two texts of one and three response tokens.
    let row = [0.5f64.ln(), 0.25f64.ln(), 0.25f64.ln()];
    let logits = Tensor::from_vec(row.repeat(8), (2, 4, 3), &Device::Cpu).unwrap();
    let texts = [vec![2, 2, 0], vec![1, 0, 1, 2]];
    let targets = Targets::next_tokens(&texts, &[2, 1], 4).unwrap();
    let l = 2f64.ln();
    // Rows: text 0 row 1 predicts 0; text 1 rows 0 to 2 predict 0, 1, 2.
    assert_eq!((targets.count(), targets.lengths()), (4, vec![1, 3]));
    let sums = targets.sums(&logits).unwrap().to_vec1::<f64>().unwrap();
    near(sums[0], -l, 1e-12);
    near(sums[1], -5.0 * l, 1e-12);
    near(scalar(&targets.clone().token_mean().loss(&logits).unwrap()), 6.0 * l / 4.0, 1e-12);
    near(scalar(&targets.text_mean().loss(&logits).unwrap()), (1.0 + 5.0 / 3.0) * l / 2.0, 1e-12);
    for (texts, prompts, width) in
        [(vec![vec![1]], vec![1], 4), (vec![vec![1, 2]], vec![0], 4), (vec![vec![1, 2, 3]], vec![1], 2)]
    {
        assert!(Targets::next_tokens(&texts, &prompts, width).is_err());
    }
    let outside = Targets::next_tokens(&[vec![0, 3, 0, 0], vec![0, 0, 0, 0]], &[1, 1], 4).unwrap();
    assert!(matches!(outside.loss(&logits), Err(TrainingError::Operand { .. })));
    assert!(matches!(outside.loss(&logits.t().unwrap()), Err(TrainingError::Shape { .. })));
    assert!(Targets::new(2, vec![None; 4], vec![f64::NAN; 4]).is_err());
}

/// A model that knows nothing has a masked-diffusion loss of `ln V` a token, on average over the times.
#[test]
fn masked_diffusion_is_unbiased() {
    let texts: Vec<Vec<u32>> = (0..16).map(|b| (0..12).map(|t| (b + t) % 26).collect()).collect();
    let answers = vec![4..12; 16];
    // Uniform over 26 letters; the mask, token 26, is never said.
    let row: Vec<f64> = (0..27).map(|token| if token < 26 { 0.0 } else { -1e9 }).collect();
    let logits = Tensor::from_vec(row.repeat(16 * 12), (16, 12, 27), &Device::Cpu).unwrap();
    for stratified in [false, true] {
        let masking = Masking { mask: 26, eps: 1e-3, stratified };
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut losses = Vec::new();
        for _ in 0..300 {
            let hidden = masked(&texts, &answers, masking, &mut rng).unwrap();
            for (text, seen) in texts.iter().zip(&hidden.texts) {
                assert_eq!(text[..4], seen[..4]);
                assert!(text.iter().zip(seen).all(|(a, b)| a == b || *b == 26));
            }
            assert!(hidden.probabilities.iter().all(|p| (1e-3..=1.0).contains(p)));
            losses.push(scalar(&hidden.targets.loss(&logits).unwrap()));
        }
        let (mean, sd) = moments(&losses);
        // Four standard errors.
        near(mean, 3.2581, 4.0 * sd / 300f64.sqrt() + 5e-5);
    }
    let masking = Masking { mask: 26, eps: 1e-3, stratified: true };
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut ranks: Vec<usize> = masked(&texts, &answers, masking, &mut rng)
        .unwrap()
        .probabilities
        .iter()
        .map(|p| (p * 16.0).floor() as usize)
        .collect();
    ranks.sort_unstable();
    ranks.dedup();
    assert!(ranks.len() >= 15, "one time in each sixteenth: {ranks:?}");
    assert!(masked(&texts, &answers[1..], masking, &mut rng).is_err());
    assert!(masked(&texts, &vec![4..4; 16], masking, &mut rng).is_err());
    assert!(masked(&texts, &answers, Masking { eps: f64::NAN, ..masking }, &mut rng).is_err());
}

/// A model that knows each position's law, and nothing of the others, has the sum of their entropies as its loss times
/// the length, on average.
#[test]
fn masked_diffusion_of_independent_positions_is_their_entropy() {
    let laws = [vec![0.5, 0.25, 0.25], vec![0.9, 0.05, 0.05], vec![1.0 / 3.0; 3]];
    let entropy: f64 = laws.iter().flatten().map(|p: &f64| -p * p.ln()).sum();
    let rows: Vec<f64> = laws.iter().flat_map(|law| law.iter().map(|p| p.ln()).chain([-1e9])).collect();
    let batch = 64;
    let logits = Tensor::from_vec(rows.repeat(batch), (batch, 3, 4), &Device::Cpu).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let draw = |law: &Vec<f64>, rng: &mut ChaCha8Rng| {
        let u: f64 = rng.random();
        u32::from(u > law[0]) + u32::from(u > law[0] + law[1])
    };
    let masking = Masking { mask: 3, eps: 1e-3, stratified: true };
    let mut losses = Vec::new();
    for _ in 0..400 {
        let texts: Vec<Vec<u32>> =
            (0..batch).map(|_| laws.iter().map(|law| draw(law, &mut rng)).collect()).collect();
        let hidden = masked(&texts, &vec![0..3; batch], masking, &mut rng).unwrap();
        losses.push(3.0 * scalar(&hidden.targets.loss(&logits).unwrap()));
    }
    let (mean, sd) = moments(&losses);
    near(mean, entropy, 4.0 * sd / 20.0);
    // Without the weight 1/p it would be half of that: every token is hidden half the time.
    assert!((mean - entropy / 2.0).abs() > 0.5);
}

fn moments(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt())
}

/// Every loss, at random and at extreme inputs.
#[test]
fn gradients_are_those_of_finite_differences() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random =
        |count: usize, by: f64| -> Vec<f64> { (0..count).map(|_| rng.random_range(-by..by)).collect() };
    let z = random(12, 2.0);
    let y = matrix(&[vec![0.2, 0.5, 0.3], vec![1.0, 0.0, 0.0], vec![0.1, 0.1, 0.8], vec![0.4, 0.4, 0.2]]);
    // Both losses make a target of the student and hold it fixed: their gradients are the differences of
    // cross-entropy with that target, which is made here from its definition.
    let at = Tensor::from_slice(&z, (4, 3), &Device::Cpu).unwrap();
    let log_p = log_softmax(&at).unwrap().to_vec2::<f64>().unwrap();
    let soft = y.to_vec2::<f64>().unwrap();
    let hard = harden(&log_p, &soft).unwrap();
    let mixed: Vec<Vec<f64>> = soft
        .iter()
        .zip(&hard)
        .map(|(y, hard)| (0..3).map(|k| 0.5 * y[k] + if k == *hard { 0.5 } else { 0.0 }).collect())
        .collect();
    let multiplied: Vec<Vec<f64>> = soft
        .iter()
        .zip(&log_p)
        .map(|(y, log_p)| {
            let raw: Vec<f64> = y.iter().zip(log_p).map(|(y, log)| y * log.exp()).collect();
            raw.iter().map(|x| x / raw.iter().sum::<f64>()).collect()
        })
        .collect();
    type OfBoth = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let with_targets: [(&str, OfBoth, Vec<Vec<f64>>); 2] = [
        ("confidence", |z, y| confidence(z, y, 0.5), mixed),
        ("product", |z, y| product(z, y, 1.0, 1.0), multiplied),
    ];
    for (name, loss, target) in with_targets {
        let target = matrix(&target);
        differentiate(name, &z, &[4, 3], &|z| cross_entropy(z, &target));
        let (value, got) = gradient(&z, &[4, 3], &|z| loss(z, &y));
        let (same, want) = gradient(&z, &[4, 3], &|z| cross_entropy(z, &target));
        near(value, same, 1e-12);
        got.iter().zip(want).for_each(|(got, want)| near(*got, want, 1e-12));
    }
    let of_classes: [(&str, &dyn Fn(&Tensor) -> Result<Tensor>); 4] = [
        ("cross-entropy", &|z| cross_entropy(z, &y)),
        ("divergence", &|z| kullback_leibler(z, &y)),
        ("reverse", &|z| reverse_cross_entropy(z, &y, 1e-3)),
        ("window", &|z| confidence_window(z, &y, 0.3)),
    ];
    for (name, loss) in of_classes {
        differentiate(name, &z, &[4, 3], loss);
    }
    let six = random(6, 3.0);
    let low: Vec<f64> = random(6, 1.0).into_iter().map(|x| x - 1.5).collect();
    let reference = pairs(&[-1.0, 0.5, 0.2], &[0.3, 0.1, -0.4]);
    let of_pairs: [(&str, &[f64], &dyn Fn(&Pairs) -> Result<Tensor>); 6] = [
        ("DPO", &six, &|x| Dpo { beta: 0.7, ..Dpo::default() }.loss(x, &reference)),
        ("smoothed DPO", &six, &|x| Dpo { beta: 0.7, label_smoothing: 0.2 }.loss(x, &reference)),
        ("IPO", &six, &|x| ipo(x, &reference, 0.4)),
        ("SimPO", &six, &|x| SimPo::default().loss(x)),
        ("ORPO", &low, &|x| Orpo { lambda: 0.6 }.loss(x)),
        ("pair BCE", &six, &|x| pair_bce(x, &vector(&[0.7, 0.0, 1.0]))),
    ];
    for (name, x, loss) in of_pairs {
        differentiate(name, x, &[6], &|x| Ok(loss(&Pairs::halves(x)?)?.mean_all()?));
    }
    differentiate("softplus", &[0.0, -3.0, 5.0, 1e-7], &[4], &|x| Ok(softplus(x)?.sum_all()?));
    differentiate("log(1 - exp)", &[-0.1, -0.7, -0.6, -4.0], &[4], &|x| Ok(log_one_less_exp(x)?.sum_all()?));
    let logits = random(24, 2.0);
    let targets = Targets::next_tokens(&[vec![1, 0, 2], vec![2, 2, 1, 0]], &[1, 2], 4).unwrap();
    let weighted = random(8, 1.0).into_iter().map(f64::abs).collect();
    let ids = vec![Some(1), None, Some(0), Some(2), None, Some(2), None, None];
    let diffusion = Targets::new(4, ids, weighted).unwrap();
    for (name, targets) in
        [("SFT", targets.clone().text_mean()), ("tokens", targets.token_mean()), ("diffusion", diffusion)]
    {
        differentiate(name, &logits, &[2, 4, 3], &|z| targets.loss(z));
    }
}

#[test]
fn extreme_logits_are_finite() {
    for width in [DType::F32, DType::F64] {
        let z = Var::from_tensor(&matrix(&[vec![80.0, -80.0], vec![-80.0, 80.0]]).to_dtype(width).unwrap());
        let (z, y) = (z.unwrap(), second(&[1.0, 0.3]));
        let losses = [
            cross_entropy(&z, &y),
            kullback_leibler(&z, &y),
            reverse_cross_entropy(&z, &y, 1e-6),
            confidence(&z, &y, 0.5),
            product(&z, &y, 1.0, 1.0),
            confidence_window(&z, &y, 0.1),
        ];
        for loss in losses {
            let loss = loss.unwrap();
            let gradient = loss.backward().unwrap();
            let gradient = gradient.get(z.as_tensor()).unwrap().to_dtype(DType::F64).unwrap();
            let all = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(all.iter().all(|x| x.is_finite()), "{all:?}");
            assert!(loss.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap().is_finite());
        }
    }
    let far = pairs(&[-80.0, 80.0], &[80.0, -80.0]);
    let none = pairs(&[0.0; 2], &[0.0; 2]);
    let loss = Dpo { beta: 10.0, ..Dpo::default() }.loss(&far, &none).unwrap().to_vec1::<f64>().unwrap();
    near(loss[0], 1600.0, 1e-9);
    near(loss[1], 0.0, 1e-9);
}

proptest! {
    /// What a constant added to everything changes, and what it must not.
    #[test]
    fn shifts(
        z in proptest::collection::vec(-4.0f64..4.0, 8),
        y in proptest::collection::vec(0.01f64..0.99, 4),
        by in -3.0f64..3.0,
    ) {
        let (at, labels) = (Tensor::from_slice(&z, (4, 2), &Device::Cpu).unwrap(), second(&y));
        let moved = at.affine(1.0, by).unwrap();
        let losses: [fn(&Tensor, &Tensor) -> Result<Tensor>; 3] = [
            cross_entropy,
            |z, y| confidence(z, y, 0.5),
            |z, y| product(z, y, 1.0, 1.0),
        ];
        for (index, loss) in losses.iter().enumerate() {
            let (a, b) = (loss(&at, &labels).unwrap(), loss(&moved, &labels).unwrap());
            // Rounding may turn a tie of the hardened prediction; random items have none.
            prop_assert!((scalar(&a) - scalar(&b)).abs() < 1e-9, "{index}");
        }
        let chosen: Vec<f64> = z[..4].iter().map(|x| x - 5.0).collect();
        let rejected: Vec<f64> = z[4..].iter().map(|x| x - 5.0).collect();
        let both = pairs(&chosen, &rejected);
        let both_moved = Pairs {
            chosen: both.chosen.affine(1.0, by).unwrap(),
            rejected: both.rejected.affine(1.0, by).unwrap(),
        };
        let reference = pairs(&z[4..], &z[..4]);
        let sum = |tensor: Result<Tensor>| scalar(&tensor.unwrap().sum_all().unwrap());
        let dpo = Dpo::default();
        prop_assert!((sum(dpo.loss(&both, &reference)) - sum(dpo.loss(&both_moved, &reference))).abs() < 1e-9);
        let simpo = SimPo::default();
        prop_assert!((sum(simpo.loss(&both)) - sum(simpo.loss(&both_moved))).abs() < 1e-9);
        let wanted = vector(&y);
        prop_assert!((sum(pair_bce(&both, &wanted)) - sum(pair_bce(&both_moved, &wanted))).abs() < 1e-9);
        if by.abs() > 0.1 {
            prop_assert!((sum(Orpo::default().loss(&both)) - sum(Orpo::default().loss(&both_moved))).abs() > 1e-3);
        }
        // Swapping the two sides turns h round: L(h) - L(-h) = -b h.
        let swap = |pairs: &Pairs| Pairs { chosen: pairs.rejected.clone(), rejected: pairs.chosen.clone() };
        let h = both.margin().unwrap().sub(&reference.margin().unwrap()).unwrap();
        let difference = sum(dpo.loss(&both, &reference)) - sum(dpo.loss(&swap(&both), &swap(&reference)));
        prop_assert!((difference + 0.1 * scalar(&h.sum_all().unwrap())).abs() < 1e-9);
    }

    /// Without ties exactly `ceil(q (n - 1))` items are of class 1.
    #[test]
    fn as_many_positives_as_the_rule_says(
        p in proptest::collection::btree_set(1u32..100_000, 2..40),
        y in 0.0f64..=1.0,
    ) {
        let p: Vec<f64> = p.into_iter().map(|p| f64::from(p) / 100_001.0).collect();
        let n = p.len();
        let hard = harden(&logs(&p), &shares(&vec![y; n])).unwrap();
        let q: f64 = vec![y; n].iter().map(|y| y / n as f64).sum();
        let want = (q.clamp(0.0, 1.0) * (n - 1) as f64 - 1e-9).ceil().max(0.0) as usize;
        prop_assert_eq!(hard.iter().sum::<usize>(), want);
    }

    /// More classes: shares within one item, and two of the three classes empty reproduce two.
    #[test]
    fn hardened_shares_are_those_of_the_labels(seed in 0u64..500, n in 6usize..40) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let z: Vec<Vec<f64>> = (0..n).map(|_| (0..3).map(|_| rng.random_range(-2.0..2.0)).collect()).collect();
        let logs = log_softmax(&matrix(&z)).unwrap().to_vec2::<f64>().unwrap();
        let raw: Vec<f64> = (0..3).map(|_| rng.random_range(0.1..1.0)).collect();
        let total: f64 = raw.iter().sum();
        let share: Vec<f64> = raw.iter().map(|x| x / total).collect();
        let hard = harden(&logs, &vec![share.clone(); n]).unwrap();
        for class in 0..3 {
            let got = hard.iter().filter(|&&other| other == class).count() as f64;
            prop_assert!((got - share[class] * n as f64).abs() <= 2.0, "class {class}: {got} of {n} {share:?}");
        }
        // A third class that is impossible and never labelled leaves the rule for two, up to one item.
        let wide: Vec<Vec<f64>> =
            logs.iter().map(|row| vec![row[0], row[1], f64::NEG_INFINITY]).collect();
        let narrow: Vec<Vec<f64>> = log_softmax(&matrix(&logs.iter().map(|row| row[..2].to_vec()).collect::<Vec<_>>()))
            .unwrap().to_vec2::<f64>().unwrap();
        let q = share[0] / (share[0] + share[1]);
        let three = harden(&wide, &vec![vec![q, 1.0 - q, 0.0]; n]).unwrap();
        let two = harden(&narrow, &vec![vec![q, 1.0 - q]; n]).unwrap();
        let differ = three.iter().zip(&two).filter(|(a, b)| a != b).count();
        prop_assert!(differ <= 2, "{differ}");
    }
}
