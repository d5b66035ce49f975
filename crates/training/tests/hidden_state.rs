//! Caches that learn while a text is read: closed forms, what belongs to an entry, and that no score knows its own update.

use pilotfish_architectures::{CausalConfig, CausalNetwork};
use pilotfish_graph::{AttentionConfig, DType, Dim, Graph, Tensor};
use pilotfish_training::{
    Adam, HiddenCache, HiddenConfig, HiddenStates, Interpreter, OptimizerConfig, Part, Precision, Sgd,
    TrainingError, causal_inputs,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

const SGD: OptimizerConfig = OptimizerConfig::Sgd(Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 });
const ADAM: OptimizerConfig =
    OptimizerConfig::Adam(Adam { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 });

/// One attention of one head whose queries, keys and values are looked up by token, two tokens each; logits are its
/// output through a matrix.
fn looked_up(width: usize, [q, k, v]: [&[f32]; 3], head: &[f32]) -> Fallible<Graph> {
    let mut g = Graph::new("looked up");
    let (rows, past) = (Dim::symbol("T"), Dim::symbol("L"));
    let ids = g.input("ids", vec![1.into(), rows.clone()], DType::I64)?;
    g.input("positions", vec![1.into(), rows.clone()], DType::I64)?;
    let mask = g.input("mask", vec![1.into(), 1.into(), rows.clone(), &past + &rows], DType::F32)?;
    let mut own = Vec::new();
    for (name, table) in [("q", q), ("k", k), ("v", v)] {
        let table = g.param(name, Tensor::new([2, width], table.to_vec())?)?;
        own.push(g.embedding(table, ids)?);
    }
    let cached = vec![1.into(), 1.into(), past, width.into()];
    let past =
        (g.input("past_key.0", cached.clone(), DType::F32)?, g.input("past_value.0", cached, DType::F32)?);
    for (at, name) in [(1, "added_key.0"), (2, "added_value.0")] {
        let added = g.input(name, vec![1.into(), rows.clone(), width.into()], DType::F32)?;
        own[at] = g.add(own[at], added)?;
    }
    let config = AttentionConfig { heads: 1, kv_heads: 1, scale: 1.0, softcap: None };
    let (y, keys, values) = g.attention([own[0], own[1], own[2]], mask, Some(past), config)?;
    let head = g.param("head", Tensor::new([2, width], head.to_vec())?)?;
    let logits = g.linear(y, head, None)?;
    for (name, value) in [("logits", logits), ("key.0", keys), ("value.0", values)] {
        g.output(name, value)?;
    }
    Ok(g)
}

fn close(got: &[f32], want: &[f32]) {
    let near = got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-5);
    assert!(got.len() == want.len() && near, "{got:?}, wanted {want:?}");
}

fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-5, "{got}, wanted {want}");
}

fn settings(optimizer: OptimizerConfig, step_size: f64) -> HiddenConfig {
    HiddenConfig { optimizer, step_size, ..HiddenConfig::default() }
}

/// Logits are the one value vector (0, 0), target 0: the loss is log 2, the gradient (-1/2, 1/2). The key has no gradient,
/// so it has not begun to count.
#[test]
fn one_value_vector() -> Fallible {
    let zeros: &[f32] = &[0.0; 4];
    let graph = looked_up(2, [zeros; 3], &[1.0, 0.0, 0.0, 1.0])?;
    for (optimizer, step, value, after) in
        [(SGD, 1.0, [0.5, -0.5], 0.313_26), (ADAM, 0.003, [0.003, -0.003], 0.690_15)]
    {
        let model = HiddenStates::new(&graph, Precision::F32, settings(optimizer, step))?;
        let mut cache = model.empty();
        let reading = model.read(&mut cache, &[1, 0])?;
        near(reading.losses[0], 2f64.ln());
        close(cache.entry(0, Part::Values, 0).unwrap().values, &value);
        let (key, value) = (cache.entry(0, Part::Keys, 0).unwrap(), cache.entry(0, Part::Values, 0).unwrap());
        assert_eq!((key.steps, value.steps), (0, 1));
        assert_eq!(key.values, [0.0, 0.0]);
        // What the update made of the same token, which is no score.
        let again = model.adapt(&mut model.empty(), &[1, 0], None, 2)?;
        near(again.losses[0], 2f64.ln());
        near(again.after[0][0], after);
    }
    Ok(())
}

/// q = 1, k = (0, 0), v = (1, -1), logits (o, -o), target 0. The two entries are of the same window, or one of them is
/// of the window before: it makes no difference.
#[test]
fn attention_with_two_entries() -> Fallible {
    let graph = looked_up(1, [&[1.0; 2], &[0.0; 2], &[1.0, -1.0]], &[1.0, -1.0])?;
    let own: [&[(&[u32], &[bool])]; 2] =
        [&[(&[0, 1, 0], &[false, false, true])], &[(&[0, 1], &[false; 2]), (&[0], &[true])]];
    for windows in own {
        for (optimizer, step, after) in [(SGD, 1.0, 0.136_27), (ADAM, 0.003, 0.687_17)] {
            let model = HiddenStates::new(&graph, Precision::F32, settings(optimizer, step))?;
            let mut cache = model.empty();
            let (last, earlier) = windows.split_last().unwrap();
            for (tokens, counted) in earlier {
                assert_eq!(model.adapt(&mut cache, tokens, Some(counted), 1)?.steps, 0);
            }
            let mut twice = cache.clone();
            let reading = model.adapt(&mut cache, last.0, Some(last.1), 1)?;
            near(*reading.losses.last().unwrap(), 2f64.ln());
            let of = |part| [0, 1].map(|at| cache.entry(0, part, at).unwrap().values[0]);
            let by = if optimizer == SGD { 0.5 } else { 0.003 };
            close(&of(Part::Keys), &[by, -by]);
            close(&of(Part::Values), &[1.0 + by, -1.0 + by]);
            let reading = model.adapt(&mut twice, last.0, Some(last.1), 2)?;
            near(*reading.after[0].last().unwrap(), after);
        }
    }
    Ok(())
}

/// A random network whose matrices are large enough for what is cached to matter.
fn network(vocab: usize) -> Fallible<CausalNetwork> {
    let config = CausalConfig { tied: false, ..CausalConfig::llama(vocab, 16, 2, [4, 2], 24) };
    let network = CausalNetwork::random(config, 7)?;
    let mut graph = network.whole("B".into(), "T".into())?;
    let scaled = |tensor: &Tensor| -> Fallible<Tensor> {
        let values = tensor.to_f32()?.iter().map(|x| 2.0 * x).collect();
        Ok(Tensor::new(tensor.shape().to_vec(), values)?)
    };
    let params: Vec<(String, Tensor)> = graph
        .params()
        .iter()
        .filter(|param| param.tensor.shape().len() == 2)
        .map(|param| Ok((param.name.clone(), scaled(&param.tensor)?)))
        .collect::<Fallible<_>>()?;
    for (name, tensor) in params {
        graph.set_param(&name, tensor)?;
    }
    Ok(network.with_parameters(&graph)?)
}

fn uniform(vocab: u32, count: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0..vocab)).collect()
}

/// All losses of a text and the cache after it.
fn all(model: &HiddenStates, text: &[u32], window: usize) -> Fallible<(Vec<f64>, HiddenCache)> {
    let (mut cache, mut losses) = (model.empty(), Vec::new());
    for window in text.chunks(window) {
        losses.extend(model.read(&mut cache, window)?.losses);
    }
    Ok((losses, cache))
}

/// The losses of a text's tokens but the first, by the network without a cache.
fn plain(network: &CausalNetwork, text: &[u32], window: Option<usize>) -> Fallible<Vec<f64>> {
    let net = Interpreter::new(&network.whole("B".into(), "T".into())?, Precision::F64)?;
    let logits = &net.forward(&causal_inputs(&[text.to_vec()], window, Precision::F64)?)?["logits"];
    let rows = logits.squeeze(0)?.to_vec2::<f64>()?;
    let loss = |(row, token): (&Vec<f64>, &u32)| {
        row.iter().map(|logit| logit.exp()).sum::<f64>().ln() - row[*token as usize]
    };
    Ok(rows.iter().zip(&text[1..]).map(loss).collect())
}

#[test]
fn a_step_of_size_zero_is_the_model_as_it_is() -> Fallible {
    let (network, text) = (network(11)?, uniform(11, 61, 1));
    let graph = network.adaptable()?;
    let still = HiddenConfig { steps: 0, ..HiddenConfig::default() };
    let (losses, _) = all(&HiddenStates::new(&graph, Precision::F64, still)?, &text, 8)?;
    for (got, want) in losses.iter().zip(plain(&network, &text, None)?) {
        assert!((got - want).abs() < 1e-6, "{got}, {want}");
    }
    assert_eq!(losses.len(), 60);
    for context in [256, 20] {
        let run = |config| -> Fallible<_> {
            all(&HiddenStates::new(&graph, Precision::F32, HiddenConfig { context, ..config })?, &text, 8)
        };
        let (losses, cache) = run(still)?;
        let (same, moved) = run(settings(ADAM, 0.0))?;
        assert_eq!(losses, same);
        for at in 0..cache.len() {
            let values =
                |cache: &HiddenCache| cache.entry(1, Part::Keys, at).map(|entry| entry.values.to_vec());
            assert_eq!(values(&cache), values(&moved));
        }
    }
    Ok(())
}

/// A network whose layers attend fully or within a window gives the same with a cache, also after entries have left that
/// no row sees any more.
#[test]
fn local_attention_sees_what_it_saw() -> Fallible {
    let mut config = CausalConfig::gemma3(11, 16, 2, [2, 1], 24);
    (config.head_dim, config.windows) = (8, vec![Some(5), Some(5)]);
    let (network, text) = (CausalNetwork::random(config, 3)?, uniform(11, 30, 2));
    let still = HiddenConfig { steps: 0, context: 7, ..HiddenConfig::default() };
    let graph = network.adaptable()?;
    let model = HiddenStates::with_window(&graph, Precision::F64, still, Some(5))?;
    let (losses, _) = all(&model, &text, 4)?;
    for (got, want) in losses.iter().zip(plain(&network, &text, Some(5))?) {
        assert!((got - want).abs() < 1e-6, "{got}, {want}");
    }
    Ok(())
}

#[test]
fn the_first_window_knows_no_update_and_the_second_does() -> Fallible {
    let (graph, text) = (network(11)?.adaptable()?, uniform(11, 24, 3));
    let run = |step| -> Fallible<_> {
        Ok(all(&HiddenStates::new(&graph, Precision::F32, settings(ADAM, step))?, &text, 8)?.0)
    };
    let (still, moved) = (run(0.0)?, run(0.05)?);
    assert_eq!(still[..7], moved[..7]);
    // Every token after it does, from the first one on.
    assert!(still[7..].iter().zip(&moved[7..]).all(|(a, b)| a != b));
    Ok(())
}

/// Nobody can do better than log V on uniformly random tokens. A score from after the update does.
#[test]
fn leak_test() -> Fallible {
    let vocab = 16u32;
    let (graph, text) = (network(vocab as usize)?.adaptable()?, uniform(vocab, 4801, 4));
    let config = HiddenConfig { steps: 3, context: 128, ..settings(ADAM, 0.5) };
    let model = HiddenStates::new(&graph, Precision::F32, config)?;
    let (mut cache, mut recorded, mut leaked) = (model.empty(), Vec::new(), Vec::new());
    for window in text.chunks(32) {
        let reading = model.read(&mut cache, window)?;
        recorded.extend(reading.losses);
        leaked.extend(reading.after.into_iter().last().unwrap_or_default());
    }
    // Standard errors below log V.
    let below = |losses: &[f64]| {
        let (n, mean) = (losses.len() as f64, losses.iter().sum::<f64>() / losses.len() as f64);
        let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (f64::from(vocab).ln() - mean) / (variance / n).sqrt()
    };
    assert!(below(&recorded) < 3.0, "{} standard errors below", below(&recorded));
    assert!(below(&leaked) > 3.0, "{} standard errors below", below(&leaked));
    Ok(())
}

/// With moments and a count of its own the first step of an entry is the step size; a count that all entries shared would
/// make the second window's 0.744 of it: (0.1 / (1 - 0.9^2)) / sqrt(0.001 / (1 - 0.999^2)).
#[test]
fn an_entry_counts_its_own_steps() -> Fallible {
    let (graph, text) = (network(11)?.adaptable()?, uniform(11, 12, 5));
    let model = HiddenStates::new(&graph, Precision::F32, settings(ADAM, 0.01))?;
    let mut cache = model.empty();
    model.read(&mut cache, &text[..6])?;
    let mut still = cache.clone();
    model.read(&mut cache, &text[6..])?;
    model.adapt(&mut still, &text[6..], None, 0)?;
    assert_eq!(cache.len(), 11);
    let steps = |at| cache.entry(1, Part::Values, at).unwrap().steps;
    assert_eq!([0, 4, 5, 10].map(steps), [2, 2, 1, 1]);
    let sizes = |at: usize| -> Vec<f32> {
        let [now, then] = [&cache, &still].map(|cache| cache.entry(1, Part::Values, at).unwrap().values);
        now.iter().zip(then).map(|(now, then)| (now - then).abs()).collect()
    };
    let shared: f32 = 0.01 * (0.1 / (1.0 - 0.81)) / (0.001f32 / (1.0 - 0.999f32.powi(2))).sqrt();
    assert!((shared - 0.00744).abs() < 1e-4);
    for at in 5..11 {
        for size in sizes(at) {
            assert!((size - 0.01).abs() < 5e-4, "{size}");
            assert!((size - shared).abs() > 1e-3);
        }
    }
    Ok(())
}

/// The last key of a window has no gradient when only earlier tokens count, nor do the rows' other parts: they are not
/// counted as having moved, and take their first full step later.
#[test]
fn entries_without_a_gradient_have_not_begun() -> Fallible {
    let (graph, text) = (network(11)?.adaptable()?, uniform(11, 12, 6));
    let model = HiddenStates::new(&graph, Precision::F32, settings(ADAM, 0.01))?;
    let mut cache = model.empty();
    // Tokens 1 to 4 count; the rows of tokens 4 and up predict later ones.
    let counted = [true, true, true, true, true, false, false];
    model.adapt(&mut cache, &text[..7], Some(&counted), 1)?;
    let steps = |cache: &HiddenCache| -> Vec<u64> {
        (0..cache.len()).map(|at| cache.entry(0, Part::Keys, at).unwrap().steps).collect()
    };
    assert_eq!(steps(&cache), [1, 1, 1, 1, 0, 0]);
    let entry = cache.entry(0, Part::Keys, 5).unwrap();
    assert!(entry.moments.iter().all(|moment| moment.iter().all(|&m| m == 0.0)));
    let mut still = cache.clone();
    model.read(&mut cache, &text[7..])?;
    model.adapt(&mut still, &text[7..], None, 0)?;
    assert_eq!(steps(&cache)[..6], [2, 2, 2, 2, 1, 1]);
    let [now, then] = [&cache, &still].map(|cache| cache.entry(0, Part::Values, 5).unwrap().values);
    assert!(now.iter().zip(then).all(|(now, then)| ((now - then).abs() - 0.01).abs() < 5e-4));
    Ok(())
}

/// After entries have left, those that stay have the numbers, moments and counts that they have in a run without a limit.
#[test]
fn moments_leave_with_their_entries() -> Fallible {
    let (graph, text) = (network(11)?.adaptable()?, uniform(11, 16, 7));
    for (sinks, want) in [(0, vec![4, 5, 6, 7, 8, 9, 10]), (2, vec![0, 1, 6, 7, 8, 9, 10])] {
        let config = |context| HiddenConfig { context, sinks, ..settings(ADAM, 0.01) };
        let short = HiddenStates::new(&graph, Precision::F32, config(7))?;
        let long = HiddenStates::new(&graph, Precision::F32, config(100))?;
        let (_, evicted) = all(&short, &text[..12], 6)?;
        let (_, whole) = all(&long, &text[..12], 6)?;
        assert_eq!((whole.len(), evicted.positions()), (11, want.as_slice()));
        for layer in 0..2 {
            for part in [Part::Keys, Part::Values] {
                for (at, &position) in want.iter().enumerate() {
                    let (got, same) =
                        (evicted.entry(layer, part, at), whole.entry(layer, part, position as usize));
                    assert_eq!(got, same);
                    // Had the moments stayed where they were, another entry would have them.
                    let other = whole.entry(layer, part, at).unwrap();
                    assert!(position as usize == at || got.unwrap().moments != other.moments);
                }
            }
        }
        // It goes on from there, at the next position.
        let mut evicted = evicted;
        assert_eq!(short.read(&mut evicted, &text[12..])?.losses.len(), 4);
        assert_eq!(evicted.positions().last(), Some(&14));
    }
    Ok(())
}

#[test]
fn updates_that_make_things_worse_are_taken_back() -> Fallible {
    let (graph, text) = (network(11)?.adaptable()?, uniform(11, 24, 8));
    let config = |step, guard| HiddenConfig { guard, ..settings(ADAM, step) };
    let mut model = HiddenStates::new(&graph, Precision::F32, config(50.0, true))?;
    let mut guarded = model.empty();
    model.read(&mut guarded, &text[..8])?;
    let (mut still, free) = (model.empty(), guarded.clone());
    model.adapt(&mut still, &text[..8], None, 0)?;
    let reading = model.read(&mut guarded, &text[8..16])?;
    assert!(reading.taken_back);
    // The score is that of the moved entries, though they are gone.
    assert_eq!(reading.losses, model.score(&free, &text[8..16])?);
    model.read(&mut still, &text[8..16])?;
    for at in 0..guarded.len() {
        assert_eq!(guarded.entry(1, Part::Keys, at), still.entry(1, Part::Keys, at));
    }
    assert!(guarded.bytes() > still.bytes() / 2);
    // A text that says one thing over and over is read the better for it.
    model.configure(config(0.01, true))?;
    let mut cache = model.empty();
    for window in [3u32; 24].chunks(8) {
        assert!(!model.read(&mut cache, window)?.taken_back);
    }
    // What would not be a number is not done at all.
    model.configure(config(1e300, false))?;
    let mut cache = model.empty();
    assert_eq!(model.read(&mut cache, &text[..8])?.steps, 0);
    assert_eq!(model.read(&mut cache, &text[8..16])?.losses.len(), 8);
    Ok(())
}

/// A prompt's steps lower the loss of what counts; examples leave the cache as it is.
#[test]
fn prompts_and_examples() -> Fallible {
    let (graph, text) = (network(11)?.adaptable()?, uniform(11, 12, 9));
    let model = HiddenStates::new(&graph, Precision::F32, settings(ADAM, 0.02))?;
    let counted: Vec<bool> = (0..12).map(|at| at % 3 == 2).collect();
    let mut cache = model.empty();
    let reading = model.adapt(&mut cache, &text, Some(&counted), 5)?;
    let labels = |losses: &[f64]| (1..12).filter(|&at| counted[at]).map(|at| losses[at - 1]).sum::<f64>();
    let sums: Vec<f64> =
        [&reading.losses].into_iter().chain(&reading.after).map(|losses| labels(losses)).collect();
    assert!(sums.len() == 5 && sums.is_sorted_by(|a, b| a > b), "{sums:?}");
    let before = cache.clone();
    let mut fresh = model.empty();
    model.adapt(&mut fresh, &text, None, 0)?;
    let (moved, still) = (model.score(&cache, &[4])?, model.score(&fresh, &[4])?);
    assert_eq!((moved.len(), &cache), (1, &before));
    // Also a label of one token is predicted from what the prompt taught.
    assert_ne!(moved, still);
    Ok(())
}

#[test]
fn bad_input_is_refused_and_changes_nothing() -> Fallible {
    let graph = network(11)?.adaptable()?;
    let model = HiddenStates::new(&graph, Precision::F32, HiddenConfig::default())?;
    let mut cache = model.empty();
    assert!(matches!(model.read(&mut cache, &[11]), Err(TrainingError::Operand { .. })));
    model.read(&mut cache, &[1])?;
    assert!(cache.is_empty() && cache.entry(0, Part::Keys, 0).is_none());
    model.read(&mut cache, &[2, 3])?;
    let before = cache.clone();
    let shape = |result: pilotfish_training::Result<_>| matches!(result, Err(TrainingError::Shape { .. }));
    assert!(shape(model.read(&mut cache, &[])));
    assert!(shape(model.adapt(&mut cache, &[1, 2], Some(&[true]), 1)));
    for window in [[4, 11], [11, 4]] {
        assert!(matches!(model.read(&mut cache, &window), Err(TrainingError::Operand { .. })));
    }
    let other = HiddenStates::new(&graph, Precision::F32, settings(SGD, 0.1))?;
    assert!(shape(other.read(&mut cache, &[1])));
    assert_eq!(cache, before);
    for config in [
        HiddenConfig { step_size: -1.0, ..HiddenConfig::default() },
        HiddenConfig { step_size: f64::NAN, ..HiddenConfig::default() },
        HiddenConfig { context: 0, ..HiddenConfig::default() },
        HiddenConfig { context: 4, sinks: 4, ..HiddenConfig::default() },
    ] {
        let made = HiddenStates::new(&graph, Precision::F32, config);
        assert!(matches!(made, Err(TrainingError::BadParameter { .. })));
    }
    let whole = network(11)?.whole("B".into(), "T".into())?;
    let made = HiddenStates::new(&whole, Precision::F32, HiddenConfig::default());
    assert!(matches!(made, Err(TrainingError::NoSuchName { .. })));
    Ok(())
}
