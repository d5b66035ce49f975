//! Steps of optimisers worked by hand, schedules against the papers' tables, clipping.
#![allow(clippy::unwrap_used, clippy::result_large_err)]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use pilotfish_training::{
    Adam, Decay, Gradients, Optimizer, OptimizerConfig, Schedule, Sgd, TrainingError, Warmup, clip,
    global_norm,
};
use proptest::prelude::*;

/// Runs an optimiser on one number: gradients one after the other, at the same learning rate.
fn run(config: OptimizerConfig, start: f64, lr: f64, gradients: &[f64]) -> Vec<f64> {
    let var = Var::new(&[start], &Device::Cpu).unwrap();
    let variables = BTreeMap::from([("p".to_owned(), var.clone())]);
    let mut optimizer = Optimizer::new(config).unwrap();
    let step = |&gradient: &f64| {
        let gradients = Gradients::from([("p".to_owned(), Tensor::new(&[gradient], &Device::Cpu).unwrap())]);
        optimizer.step(lr, &variables, &gradients).unwrap();
        var.to_vec1::<f64>().unwrap()[0]
    };
    gradients.iter().map(step).collect()
}

#[track_caller]
fn near(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= tolerance, "{got} is not {want}");
    }
}

#[test]
fn momentum_by_hand() {
    let sgd = |nesterov, weight_decay| OptimizerConfig::Sgd(Sgd { momentum: 0.9, nesterov, weight_decay });
    // b: 1, then 0.9 + 2 = 2.9, then 2.61 - 1 = 1.61.
    near(&run(sgd(false, 0.0), 0.0, 0.1, &[1.0, 2.0, -1.0]), &[-0.1, -0.39, -0.551], 1e-12);
    // g + 0.9 b: 1.9, 2 + 2.61 = 4.61, -1 + 1.449 = 0.449.
    near(&run(sgd(true, 0.0), 0.0, 0.1, &[1.0, 2.0, -1.0]), &[-0.19, -0.651, -0.6959], 1e-12);
    // g = 1 + 0.5 * 2 = 2: 2 - 0.2 = 1.8; then g = 1 + 0.9 = 1.9, b = 1.8 + 1.9 = 3.7.
    near(&run(sgd(false, 0.5), 2.0, 0.1, &[1.0, 1.0]), &[1.8, 1.43], 1e-12);
    let plain = OptimizerConfig::Sgd(Sgd { momentum: 0.0, ..Sgd::default() });
    near(&run(plain, 1.0, 0.5, &[1.0, -1.0]), &[0.5, 1.0], 0.0);
}

/// betas 0.5 and 0.75, so that the moments are short fractions.
#[test]
fn adam_by_hand() {
    let adam = Adam { betas: [0.5, 0.75], eps: 1e-12, weight_decay: 0.0 };
    // g 1: m 1/2, v 1/4, both corrected 1: step 1. g 3: m 7/4, v 39/16; corrected 7/3 and 39/7.
    let second = (7.0 / 3.0) / (39.0f64 / 7.0).sqrt();
    near(&run(OptimizerConfig::Adam(adam), 0.0, 0.1, &[1.0, 3.0]), &[-0.1, -0.1 - 0.1 * second], 1e-10);
    // Decay apart from the gradient: 2 (1 - 0.1 * 0.5) - 0.1 = 1.8; as part of it, only the sign counts: 1.9.
    let decayed = Adam { weight_decay: 0.5, ..adam };
    near(&run(OptimizerConfig::AdamW(decayed), 2.0, 0.1, &[1.0]), &[1.8], 1e-10);
    near(&run(OptimizerConfig::Adam(decayed), 2.0, 0.1, &[1.0]), &[1.9], 1e-10);
    // A large eps is added to the root after the correction: 0.1 * 1 / (1 + 3).
    let dull = Adam { eps: 3.0, ..adam };
    near(&run(OptimizerConfig::Adam(dull), 0.0, 0.1, &[1.0]), &[-0.025], 1e-12);
}

#[test]
fn adams_first_step_is_the_sign_and_no_gradient_is_no_step() {
    let adam = OptimizerConfig::Adam(Adam::default());
    for gradient in [1e-3, -5.0, 1e4] {
        near(&run(adam, 0.0, 0.01, &[gradient]), &[-0.01 * f64::signum(gradient)], 1e-6);
    }
    near(&run(adam, 3.0, 0.01, &[0.0, 0.0]), &[3.0, 3.0], 0.0);
}

/// Single precision is double precision, rounded.
#[test]
fn both_precisions_take_the_same_steps() {
    let values = [0.5f32, -1.25, 3.0];
    let gradients = [[0.1f32, 0.2, -0.3], [1.0, -1.0, 0.5], [0.0, 0.25, 2.0]];
    for config in [OptimizerConfig::default(), OptimizerConfig::Sgd(Sgd::default())] {
        let single = Var::new(&values, &Device::Cpu).unwrap();
        let double = Var::new(&values.map(f64::from), &Device::Cpu).unwrap();
        for (var, wide) in [(&single, false), (&double, true)] {
            let variables = BTreeMap::from([("p".to_owned(), var.clone())]);
            let mut optimizer = Optimizer::new(config).unwrap();
            for gradient in gradients {
                let gradient = Tensor::new(&gradient, &Device::Cpu).unwrap();
                let gradient = gradient.to_dtype(var.dtype()).unwrap();
                assert_eq!(wide, gradient.dtype() == candle_core::DType::F64);
                optimizer.step(0.05, &variables, &BTreeMap::from([("p".to_owned(), gradient)])).unwrap();
            }
            assert_eq!(optimizer.steps(), 3);
        }
        let single: Vec<f64> = single.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
        near(&single, &double.to_vec1::<f64>().unwrap(), 1e-5);
    }
}

#[test]
fn schedules_are_the_papers() {
    let factors = |schedule: Schedule, steps: u64| -> Vec<f64> {
        (0..steps).map(|step| schedule.factor(step, steps)).collect()
    };
    // Weak-to-strong: the first step has the full rate.
    let cosine = Schedule { decay: Decay::Cosine, ..Schedule::default() };
    near(&factors(cosine, 4), &[1.0, 0.853_553, 0.5, 0.146_447], 1e-6);
    // Superficial alignment: floor(10) + 1 = 11 parts.
    let warm = Schedule { warmup: Warmup::FromFirst { steps: 10 }, ..Schedule::default() };
    near(&[warm.factor(0, 100), warm.factor(10, 100), warm.factor(99, 100)], &[1.0 / 11.0, 1.0, 1.0], 1e-12);
    // Delta learning: 150 000 / 32 = 4687 steps, warm-up of 141, from 5e-8 to a tenth of it.
    let delta = Schedule { warmup: Warmup::FromZero { steps: 141 }, decay: Decay::Cosine, floor: 0.1 };
    let rates: Vec<f64> = [70, 141, 2400, 4687].map(|step| 5e-8 * delta.factor(step, 4687)).to_vec();
    near(&rates, &[2.4823e-8, 5e-8, 2.7718e-8, 5e-9], 5e-13);
    let linear = Schedule { warmup: Warmup::FromZero { steps: 2 }, decay: Decay::Linear, floor: 0.0 };
    near(&factors(linear, 6), &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25], 1e-12);
    near(&factors(Schedule::default(), 2), &[1.0, 1.0], 0.0);
    // A warm-up as long as the run leaves nothing to decay.
    assert_eq!(linear.factor(2, 2), 0.0);
    assert!(Schedule { floor: f64::NAN, ..cosine }.check().is_err());
}

#[test]
fn clipping_scales_all_gradients_by_one_factor() {
    let tensor = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
    let mut gradients =
        Gradients::from([("a".to_owned(), tensor(&[3.0, 0.0])), ("b".to_owned(), tensor(&[4.0]))]);
    assert_eq!(clip(&mut gradients, 10.0).unwrap(), 5.0);
    assert_eq!(gradients["a"].to_vec1::<f64>().unwrap(), [3.0, 0.0]);
    assert_eq!(clip(&mut gradients, 1.0).unwrap(), 5.0);
    near(&gradients["a"].to_vec1::<f64>().unwrap(), &[0.6, 0.0], 1e-12);
    near(&gradients["b"].to_vec1::<f64>().unwrap(), &[0.8], 1e-12);
    gradients.insert("c".into(), tensor(&[f64::NAN]));
    assert!(global_norm(&gradients).unwrap().is_nan());
    assert!(clip(&mut gradients, f64::NAN).is_err() && clip(&mut gradients, 0.0).is_err());
}

#[test]
fn wrong_settings_and_gradients_are_refused() {
    let bad = [
        OptimizerConfig::Sgd(Sgd { momentum: 1.0, ..Sgd::default() }),
        OptimizerConfig::Sgd(Sgd { momentum: 0.0, nesterov: true, ..Sgd::default() }),
        OptimizerConfig::Sgd(Sgd { weight_decay: f64::NAN, ..Sgd::default() }),
        OptimizerConfig::Adam(Adam { betas: [0.9, f64::NAN], ..Adam::default() }),
        OptimizerConfig::AdamW(Adam { eps: 0.0, ..Adam::default() }),
    ];
    for config in bad {
        assert!(matches!(Optimizer::new(config), Err(TrainingError::BadParameter { .. })), "{config:?}");
    }
    let var = Var::new(&[1.0f64, 2.0], &Device::Cpu).unwrap();
    let variables = BTreeMap::from([("p".to_owned(), var.clone())]);
    let mut optimizer = Optimizer::new(OptimizerConfig::default()).unwrap();
    let mut step = |lr, name: &str, values: &[f64]| {
        let gradients = Gradients::from([(name.to_owned(), Tensor::new(values, &Device::Cpu).unwrap())]);
        optimizer.step(lr, &variables, &gradients)
    };
    assert!(matches!(step(0.1, "q", &[1.0, 1.0]), Err(TrainingError::NoSuchName { .. })));
    assert!(matches!(step(0.1, "p", &[1.0]), Err(TrainingError::Shape { .. })));
    assert!(matches!(step(f64::NAN, "p", &[1.0, 1.0]), Err(TrainingError::BadParameter { .. })));
    assert_eq!(var.to_vec1::<f64>().unwrap(), [1.0, 2.0]);
}

proptest! {
    #[test]
    fn factors_stay_between_floor_and_one(
        steps in 1u64..200,
        warm in 0u64..50,
        floor in 0.0f64..1.0,
        shape in 0usize..3,
    ) {
        let decay = [Decay::Constant, Decay::Linear, Decay::Cosine][shape];
        let schedule = Schedule { warmup: Warmup::FromFirst { steps: warm }, decay, floor };
        let factors: Vec<f64> = (0..steps).map(|step| schedule.factor(step, steps)).collect();
        for (step, pair) in factors.windows(2).enumerate() {
            let rising = (step as u64) < warm;
            prop_assert!(if rising { pair[1] >= pair[0] } else { pair[1] <= pair[0] + 1e-12 }, "{step}");
        }
        prop_assert!(factors.iter().skip(warm as usize).all(|&f| (floor - 1e-12..=1.0).contains(&f)));
    }
}
