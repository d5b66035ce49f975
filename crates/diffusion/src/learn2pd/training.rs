use serde::{Deserialize, Serialize};

use super::filter::{Filter, bce, sigmoid};
use super::traces::Record;
use crate::error::{probability, refuse};
use crate::{DiffusionError, Result};

/// How a filter is trained.
///
/// | setting | default | source |
/// |---|---|---|
/// | optimiser | AdamW (0.9, 0.999), 1e-8 | `train.ipynb` |
/// | learning rate, weight decay | 3e-3, 0.01 | `train.ipynb` |
/// | steps | 40,000, each over all records | `train.ipynb` |
/// | layers | 2 | `small_model.py` |
/// | masked only | no | `train.ipynb` |
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterTraining {
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Full-batch steps.
    pub steps: usize,
    /// Layers of the filter.
    pub layers: usize,
    /// Whether only masked positions count.
    pub masked_only: bool,
    /// Seed of the first weights.
    pub seed: u64,
}

impl Default for FilterTraining {
    fn default() -> Self {
        Self { lr: 3e-3, weight_decay: 0.01, steps: 40_000, layers: 2, masked_only: false, seed: 0 }
    }
}

/// A trained filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// The filter.
    pub filter: Filter,
    /// Loss before the first step and after the last.
    pub losses: [f64; 2],
}

/// How good a filter's verdicts are, over masked positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FilterReport {
    /// Masked positions.
    pub positions: usize,
    /// Share of them that are final.
    pub base_rate: f64,
    /// Chance that a final prediction ranks above one that is not, ties counting half; `None` if all are one kind.
    pub auc: Option<f64>,
    /// Share of accepted predictions that are final; `None` if none is accepted.
    pub precision: Option<f64>,
    /// Share of final predictions that are accepted; `None` if none is final.
    pub recall: Option<f64>,
}

struct Batch {
    inputs: Vec<f64>,
    labels: Vec<bool>,
    counts: Vec<bool>,
    total: f64,
}

impl FilterTraining {
    /// Trains a filter of a width on records.
    ///
    /// # Errors
    /// Settings outside their range; records that are longer than the width, have lists of different lengths, hold
    /// what is not finite, or leave no position to learn from.
    pub fn fit(&self, width: usize, records: &[Record]) -> Result<Fit> {
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return refuse("lr", self.lr, "above 0");
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return refuse("weight decay", self.weight_decay, "0 or more");
        }
        if self.steps == 0 {
            return refuse("steps", 0.0, "at least 1");
        }
        let mut filter = Filter::new(width, self.layers, self.seed)?;
        let batch = self.batch(width, records)?;
        let mut moments: Vec<[Vec<f64>; 4]> = filter
            .layers()
            .iter()
            .map(|_| [vec![0.0; width * width], vec![0.0; width * width], vec![0.0; width], vec![0.0; width]])
            .collect();
        let mut losses = [0.0; 2];
        for step in 1..=self.steps {
            let (loss, gradients) = loss_and_gradients(&filter, &batch);
            if step == 1 {
                losses[0] = loss;
            }
            let corrections = [0.9f64, 0.999].map(|beta| 1.0 - beta.powi(step.min(1 << 20) as i32));
            for ((layer, gradient), moment) in filter.layers_mut().iter_mut().zip(gradients).zip(&mut moments)
            {
                let [m_w, v_w, m_b, v_b] = moment;
                self.update(&mut layer.weights, &gradient.weights, m_w, v_w, corrections);
                self.update(&mut layer.bias, &gradient.bias, m_b, v_b, corrections);
            }
        }
        losses[1] = loss_and_gradients(&filter, &batch).0;
        filter.check()?;
        Ok(Fit { filter, losses })
    }

    fn update(&self, x: &mut [f64], gradient: &[f64], m: &mut [f64], v: &mut [f64], corrections: [f64; 2]) {
        for (((x, g), m), v) in x.iter_mut().zip(gradient).zip(m).zip(v) {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            *x *= 1.0 - self.lr * self.weight_decay;
            *x -= self.lr * (*m / corrections[0]) / ((*v / corrections[1]).sqrt() + 1e-8);
        }
    }

    fn batch(&self, width: usize, records: &[Record]) -> Result<Batch> {
        let mut batch = Batch { inputs: Vec::new(), labels: Vec::new(), counts: Vec::new(), total: 0.0 };
        for record in records {
            let length = record.confidences.len();
            for (what, got) in
                [("labels of a record", record.labels.len()), ("masks of a record", record.masked.len())]
            {
                if got != length {
                    return Err(DiffusionError::Length { what, got, want: length });
                }
            }
            if length > width {
                return Err(DiffusionError::Length {
                    what: "positions of a record",
                    got: length,
                    want: width,
                });
            }
            record.confidences.iter().try_for_each(|c| probability("confidence", *c))?;
            for at in 0..width {
                let there = at < length;
                batch.inputs.push(if there { record.confidences[at] } else { 0.0 });
                batch.labels.push(there && record.labels[at]);
                let counts = there && (!self.masked_only || record.masked[at]);
                batch.counts.push(counts);
                batch.total += f64::from(u8::from(counts));
            }
        }
        if batch.total == 0.0 {
            return refuse("positions to learn from", 0.0, "at least 1");
        }
        Ok(batch)
    }
}

/// Mean loss, and its gradient in every layer.
fn loss_and_gradients(filter: &Filter, batch: &Batch) -> (f64, Vec<super::filter::Layer>) {
    use super::filter::Layer;
    let (width, depth) = (filter.width(), filter.layers().len());
    let mut gradients: Vec<Layer> = filter
        .layers()
        .iter()
        .map(|_| Layer { weights: vec![0.0; width * width], bias: vec![0.0; width] })
        .collect();
    let mut loss = 0.0;
    let mut states = vec![vec![0.0; width]; depth + 1];
    for (record, input) in batch.inputs.chunks_exact(width).enumerate() {
        states[0].copy_from_slice(input);
        for (index, layer) in filter.layers().iter().enumerate() {
            let (before, after) = states.split_at_mut(index + 1);
            for ((y, row), bias) in
                after[0].iter_mut().zip(layer.weights.chunks_exact(width)).zip(&layer.bias)
            {
                let z = row.iter().zip(&before[index]).map(|(w, x)| w * x).sum::<f64>() + bias;
                *y = if index + 1 < depth { z.max(0.0) } else { z };
            }
        }
        let mut slope: Vec<f64> = (0..width)
            .map(|at| {
                let (z, here) = (states[depth][at], record * width + at);
                if !batch.counts[here] {
                    return 0.0;
                }
                loss += bce(z, batch.labels[here]) / batch.total;
                (sigmoid(z) - f64::from(u8::from(batch.labels[here]))) / batch.total
            })
            .collect();
        for index in (0..depth).rev() {
            let layer = &filter.layers()[index];
            let mut below = vec![0.0; width];
            let rows =
                layer.weights.chunks_exact(width).zip(gradients[index].weights.chunks_exact_mut(width));
            for ((row, gradient), slope) in rows.zip(&slope) {
                if *slope != 0.0 {
                    for (((g, below), w), x) in
                        gradient.iter_mut().zip(&mut below).zip(row).zip(&states[index])
                    {
                        *g += slope * x;
                        *below += slope * w;
                    }
                }
            }
            gradients[index].bias.iter_mut().zip(&slope).for_each(|(g, slope)| *g += slope);
            // States above the input are after ReLU: 0 where it is shut.
            if index > 0 {
                below
                    .iter_mut()
                    .zip(&states[index])
                    .filter(|(_, x)| **x <= 0.0)
                    .for_each(|(below, _)| *below = 0.0);
            }
            slope = below;
        }
    }
    (loss, gradients)
}

impl FilterReport {
    /// Judges a filter on records at a threshold.
    ///
    /// # Errors
    /// Records that do not fit the filter; a threshold outside `[0, 1]`.
    pub fn of(filter: &Filter, records: &[Record], tau: f64) -> Result<Self> {
        probability("tau", tau)?;
        let mut verdicts: Vec<(f64, bool)> = Vec::new();
        for record in records {
            let accepts = filter.accepts(&record.confidences)?;
            let rows = accepts.into_iter().zip(&record.labels).zip(&record.masked);
            verdicts.extend(rows.filter(|(_, masked)| **masked).map(|((p, label), _)| (p, *label)));
        }
        let positions = verdicts.len();
        let right = verdicts.iter().filter(|(_, label)| *label).count();
        let accepted = verdicts.iter().filter(|(p, _)| *p > tau).count();
        let both = verdicts.iter().filter(|(p, label)| *p > tau && *label).count();
        let share = |part: usize, of: usize| (of > 0).then(|| part as f64 / of as f64);
        verdicts.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Mean ranks of ties give each of them half.
        let (mut sum, mut start) = (0.0, 0);
        while start < positions {
            let end = start + verdicts[start..].iter().take_while(|(p, _)| *p == verdicts[start].0).count();
            let rank = (start + end + 1) as f64 / 2.0;
            sum += rank * verdicts[start..end].iter().filter(|(_, label)| *label).count() as f64;
            start = end;
        }
        let (r, w) = (right as f64, (positions - right) as f64);
        let auc = (r > 0.0 && w > 0.0).then(|| (sum - r * (r + 1.0) / 2.0) / (r * w));
        Ok(Self {
            positions,
            base_rate: share(right, positions).unwrap_or(0.0),
            auc,
            precision: share(both, accepted),
            recall: share(both, right),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(confidences: &[f64], labels: &[bool]) -> Record {
        Record {
            prompt: 0,
            confidences: confidences.to_vec(),
            labels: labels.to_vec(),
            masked: vec![true; labels.len()],
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let records = [record(&[0.9, 0.2, 0.7], &[true, false, true]), record(&[0.1, 0.8], &[false, true])];
        for layers in [1, 2, 4] {
            let training = FilterTraining { layers, ..FilterTraining::default() };
            let batch = training.batch(3, &records).expect("valid");
            let filter = Filter::new(3, layers, 5).expect("valid");
            let (_, gradients) = loss_and_gradients(&filter, &batch);
            for (layer, gradient) in gradients.iter().enumerate() {
                for at in 0..12 {
                    let shifted = |by: f64| {
                        let mut filter = filter.clone();
                        let layer = &mut filter.layers_mut()[layer];
                        match at {
                            0..9 => layer.weights[at] += by,
                            _ => layer.bias[at - 9] += by,
                        }
                        loss_and_gradients(&filter, &batch).0
                    };
                    let slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6;
                    let got = if at < 9 { gradient.weights[at] } else { gradient.bias[at - 9] };
                    assert!(
                        (slope - got).abs() < 1e-7,
                        "layer {layer} of {layers}, {at}: {slope} is not {got}"
                    );
                }
            }
        }
    }

    #[test]
    fn training_finds_a_threshold() {
        // Final exactly where confidence is above 0.8.
        let records: Vec<Record> = (0..40)
            .map(|i| {
                let c: Vec<f64> = (0..4).map(|j| f64::from((i * 7 + j * 13) % 40) / 40.0).collect();
                record(&c, &c.iter().map(|c| *c > 0.8).collect::<Vec<bool>>())
            })
            .collect();
        let training = FilterTraining { steps: 1500, lr: 0.02, ..FilterTraining::default() };
        let fit = training.fit(4, &records).expect("trains");
        assert!(fit.losses[1] < 0.3 * fit.losses[0], "{:?}", fit.losses);
        let report = FilterReport::of(&fit.filter, &records, 0.5).expect("fits");
        assert!(report.auc.is_some_and(|auc| auc > 0.98), "{report:?}");
        assert!(report.precision.is_some_and(|p| p > 0.9), "{report:?}");
    }

    #[test]
    fn reports_by_hand() {
        // A filter of one layer that passes confidences on.
        let filter = Filter::threshold(4, 0.5, 1.0).expect("valid");
        let report =
            FilterReport::of(&filter, &[record(&[0.9, 0.6, 0.6, 0.1], &[true, false, true, false])], 0.5)
                .expect("fits");
        // Pairs: (.9 > .6), (.9 > .1), (.6 = .6), (.6 > .1): 3.5 of 4. Accepted: .9, .6, .6.
        assert_eq!((report.auc, report.precision, report.recall), (Some(0.875), Some(2.0 / 3.0), Some(1.0)));
        let none = FilterReport::of(&filter, &[], 0.5).expect("fits");
        assert_eq!((none.positions, none.auc, none.precision), (0, None, None));
    }

    #[test]
    fn refuses_bad_settings_and_records() {
        let good = [record(&[0.5], &[true])];
        let default = FilterTraining { steps: 1, ..FilterTraining::default() };
        for bad in [
            FilterTraining { lr: f64::NAN, ..default },
            FilterTraining { weight_decay: -1.0, ..default },
            FilterTraining { steps: 0, ..default },
            FilterTraining { layers: 0, ..default },
        ] {
            assert!(bad.fit(2, &good).is_err(), "{bad:?}");
        }
        assert!(default.fit(2, &[]).is_err() && default.fit(0, &good).is_err());
        assert!(default.fit(1, &[record(&[0.5, 0.5], &[true, true])]).is_err());
        assert!(default.fit(2, &[record(&[f64::NAN], &[true])]).is_err());
        assert!(default.fit(2, &[record(&[0.5, 0.5], &[true])]).is_err());
        assert!(default.fit(2, &good).is_ok());
    }
}
