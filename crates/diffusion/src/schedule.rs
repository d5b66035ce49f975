//! How many tokens a step commits, in exact integers where the reference is exact.

use crate::Result;
use crate::error::refuse;

/// LLaDA's schedule: `masks` tokens over `steps` steps, `masks / steps` each and the remainder first.
///
/// Source: `get_num_transfer_tokens` of ML-GSAI/LLaDA's `generate.py`.
///
/// ```
/// assert_eq!(pilotfish_diffusion::schedule::llada(10, 4)?, [3, 3, 2, 2]);
/// # Ok::<(), pilotfish_diffusion::DiffusionError>(())
/// ```
///
/// # Errors
/// No steps, or more than 2^24.
pub fn llada(masks: usize, steps: usize) -> Result<Vec<usize>> {
    if steps == 0 || steps > 1 << 24 {
        return refuse("steps", steps as f64, "at least 1, and no more than 2^24");
    }
    let (each, more) = (masks / steps, masks % steps);
    Ok((0..steps).map(|step| each + usize::from(step < more)).collect())
}

/// Entry `step` of [`llada`], without the others; 0 past the end.
pub(crate) fn llada_at(masks: usize, steps: usize, step: usize) -> usize {
    if step >= steps { 0 } else { masks / steps + usize::from(step < masks % steps) }
}

/// Dream's schedule: at time `t` of a grid from 1 to `eps`, `floor(left * (1 - s / t))` of the masks left, `s` the
/// next time; the last step takes all. With as many steps as masks it does **not** commit one a step: the first
/// takes none, the last two.
///
/// Source: `generation_utils.py` of HKUNLP/Dream (`torch.linspace`, reproduced in f64).
///
/// # Errors
/// No steps, or more than 2^24; `eps` outside `[0, 1)`.
pub fn dream(masks: usize, steps: usize, eps: f64) -> Result<Vec<usize>> {
    if steps == 0 || steps > 1 << 24 {
        return refuse("steps", steps as f64, "at least 1, and no more than 2^24");
    }
    if !(0.0..1.0).contains(&eps) {
        return refuse("eps", eps, "from 0 to below 1");
    }
    let mut left = masks;
    let counts = (0..steps).map(|step| {
        let take = dream_share(left, steps, eps, step);
        left -= take;
        take
    });
    Ok(counts.collect())
}

/// What [`dream`] takes at a step with `left` masks left.
pub(crate) fn dream_share(left: usize, steps: usize, eps: f64, step: usize) -> usize {
    if step + 1 >= steps {
        return left;
    }
    ((left as f64 * dream_rate(steps, eps, step)) as usize).min(left)
}

/// The share `1 - s / t` of a step.
pub(crate) fn dream_rate(steps: usize, eps: f64, step: usize) -> f64 {
    if step + 1 >= steps {
        return 1.0;
    }
    let width = (eps - 1.0) / steps as f64;
    let time = |at: usize| {
        // As linspace does: from the near end, so that both ends are exact.
        let half = steps.div_ceil(2);
        if at < half { 1.0 + width * at as f64 } else { eps - width * (steps - at) as f64 }
    };
    1.0 - time(step + 1) / time(step)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn schedules_by_hand() {
        assert_eq!(llada(10, 4).expect("steps"), [3, 3, 2, 2]);
        assert_eq!(llada(3, 5).expect("steps"), [1, 1, 1, 0, 0]);
        assert_eq!(llada(0, 2).expect("steps"), [0, 0]);
        assert!(llada(3, 0).is_err() && dream(3, 0, 0.1).is_err());
        assert!(llada(3, usize::MAX).is_err() && dream(3, usize::MAX, 0.1).is_err());
        assert!(dream(3, 1, f64::NAN).is_err() && dream(3, 1, 1.0).is_err() && dream(3, 1, -0.1).is_err());
    }

    #[test]
    fn dreams_own_schedule_is_not_one_a_step() {
        assert_eq!(dream(8, 8, 1e-3).expect("valid"), [0, 1, 1, 1, 1, 1, 1, 2]);
        // Not even with eps = 0: rounding takes a token from some step.
        let zero = dream(8, 8, 0.0).expect("valid");
        assert_ne!(zero, [1; 8]);
        assert_eq!(zero.iter().sum::<usize>(), 8);
    }

    proptest! {
        #[test]
        fn schedules_sum_to_the_masks(masks in 0usize..300, steps in 1usize..400, eps in 0.0f64..0.99) {
            let even = llada(masks, steps).expect("valid");
            prop_assert_eq!(even.iter().sum::<usize>(), masks);
            prop_assert!(even.iter().max().zip(even.iter().min()).is_some_and(|(a, b)| a - b <= 1));
            prop_assert!(even.is_sorted_by(|a, b| a >= b));
            prop_assert!((0..steps).all(|step| llada_at(masks, steps, step) == even[step]));
            prop_assert_eq!(dream(masks, steps, eps).expect("valid").iter().sum::<usize>(), masks);
        }
    }
}
