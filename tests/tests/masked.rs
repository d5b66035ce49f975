//! Masked diffusion models: checkpoints in the layouts of LLaDA and Dream, and what runs them.
//! Oracle: a forward pass written out here, in f64, from the tensors' released names.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use pilotfish_architectures::{
    ArchitectureError, Bidirectional, CausalConfig, CausalNetwork, Checkpoint, MaskedNetwork, SmallMasked,
    SmallMaskedConfig,
};
use pilotfish_diffusion::{Blocks, Cache, Canvas, Diffusion, DiffusionConfig, Fixed, FreeDaveConfig};
use pilotfish_graph::Tensor;
use pilotfish_graph::weights::safetensors;
use pilotfish_model::{LogitForm, MaskedBatch, MaskedModel, ModelError, Tap, Token};
use pilotfish_pipeline::masked::Cached;
use pilotfish_runtime::{OnnxMasked, SessionConfig};
use pilotfish_training::losses::Masking;
use pilotfish_training::{Interpreter, MaskedTask, Precision, Trainer, TrainerConfig, bidirectional_logits};
use serde_json::{Value as Json, json};

const VOCAB: usize = 40;
const MASK: Token = 37;
const WIDTH: usize = 32;
const LAYERS: usize = 2;
const FFN: usize = 48;

/// Where a family's tensors are, and what differs.
#[derive(Clone, Copy)]
struct Family {
    kind: &'static str,
    heads: usize,
    kv_heads: usize,
    theta: f64,
    eps: f64,
    /// Names: table, final norm, head; of a layer: two norms, q, k, v, o, gate, up, down.
    top: [&'static str; 3],
    layer: &'static str,
    parts: [&'static str; 9],
    biases: bool,
}

const LLADA: Family = Family {
    kind: "llada",
    heads: 4,
    kv_heads: 4,
    theta: 500_000.0,
    eps: 1e-5,
    top: ["model.transformer.wte", "model.transformer.ln_f", "model.transformer.ff_out"],
    layer: "model.transformer.blocks.",
    parts: ["attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"],
    biases: false,
};

const DREAM: Family = Family {
    kind: "Dream",
    heads: 4,
    kv_heads: 2,
    theta: 1_000_000.0,
    eps: 1e-6,
    top: ["model.embed_tokens", "model.norm", "lm_head"],
    layer: "model.layers.",
    parts: [
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    biases: true,
};

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Family {
    fn tensors(&self) -> Tensors {
        let kv = WIDTH / self.heads * self.kv_heads;
        let mut state = 17u64;
        let mut random = |shape: &[usize], around: f32| {
            let values = (0..shape.iter().product()).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                around + 0.4 * ((state >> 40) as f32 / (1u32 << 24) as f32 - 0.5)
            });
            (shape.to_vec(), values.collect::<Vec<f32>>())
        };
        let mut all = Tensors::new();
        all.insert(format!("{}.weight", self.top[0]), random(&[VOCAB, WIDTH], 0.0));
        all.insert(format!("{}.weight", self.top[1]), random(&[WIDTH], 1.0));
        all.insert(format!("{}.weight", self.top[2]), random(&[VOCAB, WIDTH], 0.0));
        for layer in 0..LAYERS {
            let shapes: [&[usize]; 9] = [
                &[WIDTH],
                &[WIDTH],
                &[WIDTH, WIDTH],
                &[kv, WIDTH],
                &[kv, WIDTH],
                &[WIDTH, WIDTH],
                &[FFN, WIDTH],
                &[FFN, WIDTH],
                &[WIDTH, FFN],
            ];
            for (part, shape) in self.parts.iter().zip(shapes) {
                let around = if shape.len() == 1 { 1.0 } else { 0.0 };
                all.insert(format!("{}{layer}.{part}.weight", self.layer), random(shape, around));
            }
            if self.biases {
                for (part, width) in [(2, WIDTH), (3, kv), (4, kv)] {
                    all.insert(
                        format!("{}{layer}.{}.bias", self.layer, self.parts[part]),
                        random(&[width], 0.0),
                    );
                }
            }
        }
        all
    }

    fn config(&self) -> Json {
        match self.kind {
            "llada" => json!({
                "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": WIDTH, "n_layers": LAYERS,
                "n_heads": self.heads, "n_kv_heads": self.kv_heads, "mlp_hidden_size": FFN, "mlp_ratio": 4,
                "vocab_size": VOCAB, "embedding_size": VOCAB, "max_sequence_length": 24,
                "rms_norm_eps": self.eps, "rope": true, "rope_theta": self.theta, "weight_tying": false,
                "block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "alibi": false,
                "attention_layer_norm": false, "include_bias": false, "mask_token_id": MASK, "eos_token_id": 36,
            }),
            _ => json!({
                "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": WIDTH,
                "num_hidden_layers": LAYERS, "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads, "intermediate_size": FFN, "vocab_size": VOCAB,
                "max_position_embeddings": 24, "rms_norm_eps": self.eps, "rope_theta": self.theta,
                "rope_scaling": null, "tie_word_embeddings": false, "hidden_act": "silu", "use_mrope": false,
                "use_sliding_window": false, "sliding_window": null, "mask_token_id": MASK, "eos_token_id": 36,
            }),
        }
    }

    /// Logits `[rows][VOCAB]`, every position attending to every position, or to those before it.
    fn reference(&self, tensors: &Tensors, text: &[Token], causal: bool) -> Vec<Vec<f64>> {
        let get = |name: &str| -> Vec<f64> {
            tensors.get(name).map_or(vec![], |(_, values)| values.iter().map(|&x| f64::from(x)).collect())
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let linear = |name: &str, x: &[f64]| -> Vec<f64> {
            let bias = get(&format!("{name}.bias"));
            let rows = get(&format!("{name}.weight"));
            let out = rows.chunks_exact(x.len()).enumerate();
            out.map(|(i, row)| dot(row, x) + bias.get(i).copied().unwrap_or(0.0)).collect()
        };
        let norm = |name: &str, x: &[f64]| -> Vec<f64> {
            let scale = (dot(x, x) / x.len() as f64 + self.eps).sqrt();
            x.iter().zip(get(&format!("{name}.weight"))).map(|(x, w)| x / scale * w).collect()
        };
        let dim = WIDTH / self.heads;
        // Pairs of a head lie half a head apart.
        let rotate = |x: &mut [f64], position: usize| {
            for head in x.chunks_exact_mut(dim) {
                for pair in 0..dim / 2 {
                    let angle = position as f64 / self.theta.powf(2.0 * pair as f64 / dim as f64);
                    let (a, b) = (head[pair], head[pair + dim / 2]);
                    head[pair] = a * angle.cos() - b * angle.sin();
                    head[pair + dim / 2] = b * angle.cos() + a * angle.sin();
                }
            }
        };
        let table = get(&format!("{}.weight", self.top[0]));
        let mut states: Vec<Vec<f64>> =
            text.iter().map(|&id| table[id as usize * WIDTH..][..WIDTH].to_vec()).collect();
        for layer in 0..LAYERS {
            let at = |part: usize| format!("{}{layer}.{}", self.layer, self.parts[part]);
            let normed: Vec<Vec<f64>> = states.iter().map(|x| norm(&at(0), x)).collect();
            let project = |part: usize, turn: bool| -> Vec<Vec<f64>> {
                let rows = normed.iter().enumerate();
                rows.map(|(position, x)| {
                    let mut y = linear(&at(part), x);
                    if turn {
                        rotate(&mut y, position);
                    }
                    y
                })
                .collect()
            };
            let (queries, keys, values) = (project(2, true), project(3, true), project(4, false));
            for (row, state) in states.iter_mut().enumerate() {
                let mut mixed = Vec::with_capacity(WIDTH);
                for head in 0..self.heads {
                    let shared = head / (self.heads / self.kv_heads);
                    let of = |x: &[f64], head: usize| x[head * dim..(head + 1) * dim].to_vec();
                    let query = of(&queries[row], head);
                    let sees = if causal { row + 1 } else { text.len() };
                    let scores: Vec<f64> = keys[..sees]
                        .iter()
                        .map(|key| dot(&query, &of(key, shared)) / (dim as f64).sqrt())
                        .collect();
                    let total: f64 = scores.iter().map(|score| score.exp()).sum();
                    let mut sum = vec![0.0; dim];
                    for (score, value) in scores.iter().zip(&values) {
                        sum.iter_mut()
                            .zip(of(value, shared))
                            .for_each(|(s, v)| *s += score.exp() / total * v);
                    }
                    mixed.extend(sum);
                }
                state.iter_mut().zip(linear(&at(5), &mixed)).for_each(|(x, y)| *x += y);
                let h = norm(&at(1), state);
                let gate = linear(&at(6), &h);
                let up = linear(&at(7), &h);
                let h: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                state.iter_mut().zip(linear(&at(8), &h)).for_each(|(x, y)| *x += y);
            }
        }
        states.iter().map(|x| linear(self.top[2], &norm(self.top[1], x))).collect()
    }
}

fn write(folder: &Path, config: &Json, tensors: &Tensors) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let made: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name.as_str(), Tensor::new(shape.clone(), values.clone()).unwrap()))
        .collect();
    let borrowed = made.iter().map(|(name, tensor)| (*name, tensor));
    safetensors::write(&folder.join("model.safetensors"), borrowed).unwrap();
}

fn open(config: &Json, tensors: &Tensors) -> Result<Checkpoint, ArchitectureError> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, tensors);
    Checkpoint::open(folder.path())
}

fn text() -> Vec<Token> {
    vec![3, 11, MASK, 7, MASK, MASK, 20]
}

#[track_caller]
fn near(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    // Logits of tokens that cannot be predicted are far below all others, beyond what f32 resolves.
    let never = |a: &f32, b: &f64| f64::from(*a).max(*b) < -1e8;
    let gap = |(a, b): (&f32, &f64)| if never(a, b) { 0.0 } else { (f64::from(*a) - b).abs() };
    let worst = got.iter().zip(want).map(gap).fold(0.0, f64::max);
    assert!(worst <= tolerance, "differs by {worst}");
}

fn rows(answer: &pilotfish_model::Logits) -> Vec<f32> {
    (0..answer.rows()).flat_map(|row| answer.row(row).unwrap().to_vec()).collect()
}

fn forward(model: &mut dyn MaskedModel, texts: &[&[Token]], positions: Option<&[&[usize]]>) -> Vec<Vec<f32>> {
    let batch = MaskedBatch { sequences: texts, positions, form: LogitForm::Full, taps: &[] };
    model.forward(&batch).unwrap().logits.iter().map(rows).collect()
}

#[test]
fn checkpoints_of_llada_and_dream_compute_what_their_tensors_say() {
    for family in [LLADA, DREAM] {
        let (config, tensors) = (family.config(), family.tensors());
        let checkpoint = open(&config, &tensors).unwrap();
        let network = checkpoint.masked().unwrap();
        let shape = network.shape();
        assert_eq!((shape.vocab, shape.mask, shape.context, shape.end), (VOCAB, MASK, 24, vec![36]));
        assert_eq!(shape.shift, family.kind == "Dream");
        let want: Vec<f64> = family.reference(&tensors, &text(), false).concat();
        // Two readers of the graph.
        let net = Interpreter::new(&network.whole().unwrap(), Precision::F32).unwrap();
        let logits = bidirectional_logits(&net, &[text()], false).unwrap();
        near(&logits.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &want, 2e-4);
        let mut model = OnnxMasked::from_checkpoint(&checkpoint, &SessionConfig::default()).unwrap();
        near(&forward(&mut model, &[&text()], None)[0], &want, 2e-4);
        assert_eq!((model.mask(), model.shift()), (MASK, shape.shift));
        // What a causal mask would give is something else, but for the last row.
        let causal = family.reference(&tensors, &text(), true);
        let apart = causal.concat().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart > 0.01, "{apart}");
        // With shifted logits each row moves on by one and the first is there twice.
        let shifted = bidirectional_logits(&net, &[text()], true).unwrap();
        let shifted: Vec<f32> = shifted.flatten_all().unwrap().to_vec1().unwrap();
        near(&shifted[..VOCAB], &want[..VOCAB], 2e-4);
        near(&shifted[VOCAB..], &want[..6 * VOCAB], 2e-4);
        // It is neither a causal model nor an encoder.
        assert!(checkpoint.causal().is_err() && checkpoint.encoder().is_err());
    }
}

#[test]
fn checkpoints_that_are_another_network_are_refused() {
    for family in [LLADA, DREAM] {
        let (config, tensors) = (family.config(), family.tensors());
        let spoil = |key: &str, value: Json| {
            let mut config = config.clone();
            config[key] = value;
            config
        };
        let mut bad = vec![
            spoil("mask_token_id", Json::Null),
            spoil("mask_token_id", json!(VOCAB)),
            spoil("mask_token_id", json!(1u64 << 40)),
            spoil("mask_token_id", json!(-1)),
            spoil("rope_theta", json!("many")),
            spoil("rms_norm_eps", json!(-1.0)),
        ];
        bad.extend(match family.kind {
            "llada" => vec![
                spoil("block_type", json!("sequential")),
                spoil("layer_norm_type", json!("low_precision")),
                spoil("activation_type", json!("gelu")),
                spoil("alibi", json!(true)),
                spoil("attention_layer_norm", json!(true)),
                spoil("rope", json!(false)),
                spoil("n_layers", json!(3)),
                spoil("n_layers", json!(1)),
                spoil("n_layers", json!(1u64 << 60)),
                spoil("d_model", json!(0)),
                spoil("mlp_hidden_size", json!(FFN + 1)),
                spoil("n_kv_heads", json!(3)),
            ],
            _ => vec![
                spoil("use_sliding_window", json!(true)),
                spoil("use_mrope", json!(true)),
                spoil("num_hidden_layers", json!(3)),
                spoil("num_hidden_layers", json!(1u64 << 60)),
                spoil("hidden_act", json!("gelu_pytorch_tanhh")),
                spoil("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
            ],
        });
        for config in bad {
            assert!(open(&config, &tensors).is_err(), "{config}");
        }
        // Each tensor is needed, and no other is taken.
        for name in tensors.keys() {
            let mut fewer = tensors.clone();
            fewer.remove(name);
            // Without a head the table is the head, as Hugging Face has it.
            let head = family.kind == "Dream" && name == "lm_head.weight";
            assert!(head || open(&config, &fewer).is_err(), "{name}");
        }
        let mut more = tensors.clone();
        more.insert("model.transformer.blocks.0.q_norm.weight".into(), (vec![WIDTH], vec![1.0; WIDTH]));
        assert!(open(&config, &more).is_err());
    }
    // A file that is cut short.
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &LLADA.config(), &LLADA.tensors());
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(Checkpoint::open(folder.path()).is_err(), "{length} bytes");
    }
}

fn small() -> SmallMasked {
    let config = SmallMaskedConfig {
        vocab: VOCAB,
        width: WIDTH,
        layers: LAYERS,
        heads: 4,
        ffn: FFN,
        context: 24,
        mask: MASK,
        outputs: 30,
    };
    SmallMasked::random(config, 5).unwrap()
}

/// Bidirectional networks of each kind.
fn networks() -> Vec<(&'static str, Box<dyn MaskedNetwork>)> {
    let mut config = CausalConfig::llama(VOCAB, WIDTH, LAYERS, [4, 2], FFN);
    config.context = 24;
    let llama = CausalNetwork::random(config, 3).unwrap();
    vec![
        ("small", Box::new(small())),
        ("llama", Box::new(Bidirectional::new(llama, MASK, false).unwrap())),
        ("dream", Box::new(open(&DREAM.config(), &DREAM.tensors()).unwrap().masked().unwrap().clone())),
    ]
}

fn load(name: &str, network: &dyn MaskedNetwork) -> OnnxMasked {
    OnnxMasked::from_network(name, network, &SessionConfig::default()).unwrap()
}

#[test]
fn batches_of_any_lengths_are_texts_one_by_one() {
    for (name, network) in networks() {
        let mut model = load(name, &*network);
        let net = Interpreter::new(&network.whole().unwrap(), Precision::F64).unwrap();
        let texts: [&[Token]; 4] = [&text(), &[1, MASK], &[5, 4, MASK, 2, 1, MASK, 9], &[MASK]];
        let positions: [&[usize]; 4] = [&[2, 4], &[1], &[], &[0]];
        let all = forward(&mut model, &texts, None);
        let some = forward(&mut model, &texts, Some(&positions));
        for (index, text) in texts.iter().enumerate() {
            let want = bidirectional_logits(&net, &[text.to_vec()], false).unwrap();
            let want: Vec<f64> = want.flatten_all().unwrap().to_vec1().unwrap();
            near(&all[index], &want, 2e-4);
            let rows = positions[index].iter().flat_map(|row| want[row * VOCAB..][..VOCAB].to_vec());
            near(&some[index], &rows.collect::<Vec<_>>(), 2e-4);
        }
        if name == "small" {
            assert!(all[0].chunks(VOCAB).all(|row| row[30..].iter().all(|logit| *logit < -1e8)));
        }
    }
}

/// Logits of rows of a text over keys and values that another text left, by the interpreter.
fn over_kept(
    network: &dyn MaskedNetwork,
    kept: &[Token],
    text: &[Token],
    rows: std::ops::Range<usize>,
) -> Vec<f64> {
    use candle_core::{Device, Tensor as T};
    let shape = network.shape();
    let net = Interpreter::new(&network.body(true).unwrap(), Precision::F64).unwrap();
    let mut inputs = std::collections::HashMap::new();
    let feed =
        |inputs: &mut std::collections::HashMap<String, T>, ids: &[Token], first: usize, past: usize| {
            let count = ids.len();
            let int = |values: Vec<i64>| T::from_vec(values, (1, count), &Device::Cpu).unwrap();
            inputs.insert("ids".into(), int(ids.iter().map(|&id| id.into()).collect()));
            inputs.insert("positions".into(), int((first..first + count).map(|at| at as i64).collect()));
            let mask = T::zeros((1, 1, count, past + count), candle_core::DType::F64, &Device::Cpu).unwrap();
            inputs.insert("mask".into(), mask);
        };
    feed(&mut inputs, kept, 0, 0);
    for layer in 0..shape.layers {
        for kind in ["past_key", "past_value"] {
            let none =
                T::zeros((1, shape.kv_heads, 0, shape.head_dim), candle_core::DType::F64, &Device::Cpu);
            inputs.insert(format!("{kind}.{layer}"), none.unwrap());
        }
    }
    let made = net.forward(&inputs).unwrap();
    let others: Vec<u32> = (0..text.len()).filter(|at| !rows.contains(at)).map(|at| at as u32).collect();
    let index = T::from_vec(others.clone(), others.len(), &Device::Cpu).unwrap();
    for layer in 0..shape.layers {
        for kind in ["key", "value"] {
            let some =
                made[&format!("{kind}.{layer}")].contiguous().unwrap().index_select(&index, 2).unwrap();
            inputs.insert(format!("past_{kind}.{layer}"), some);
        }
    }
    feed(&mut inputs, &text[rows.clone()], rows.start, others.len());
    let states = net.forward(&inputs).unwrap()["final_normed"].clone();
    let head = Interpreter::new(&network.head().unwrap(), Precision::F64).unwrap();
    let x = states.reshape((rows.len(), shape.width)).unwrap();
    let logits = head.forward(&[("x".to_owned(), x)].into()).unwrap()["logits"].clone();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn caches_keep_what_is_not_run_again() {
    for (name, network) in networks() {
        let mut model = load(name, &*network);
        let first = text();
        let all: Vec<usize> = (0..first.len()).collect();
        let whole = forward(&mut model, &[&first], None).remove(0);
        let built = rows(&model.build(&first, &all).unwrap());
        near(&built, &whole.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), 1e-5);
        let exact = |at: &[usize]| -> Vec<f64> {
            at.iter().flat_map(|row| whole[row * VOCAB..][..VOCAB].to_vec()).map(f64::from).collect()
        };
        // Rows that have not changed say what they said, wherever they lie.
        for part in [0..7, 2..5, 0..3, 4..7] {
            let wanted: Vec<usize> = part.clone().collect();
            let got = model.update(&[&first], part, &[&wanted]).unwrap();
            near(&rows(&got[0]), &exact(&wanted), 1e-4);
        }
        // Changed rows see each other as they are and the rest as it was; texts do not see one another.
        let (mut a, mut b) = (first.clone(), first.clone());
        (a[2], a[4], b[4]) = (9, 1, 8);
        for part in [2..5, 2..7] {
            let wanted: Vec<usize> = part.clone().collect();
            let got = model.update(&[&a, &b], part.clone(), &[&wanted, &wanted]).unwrap();
            for (got, changed) in got.iter().zip([&a, &b]) {
                near(&rows(got), &over_kept(&*network, &first, changed, part.clone()), 2e-4);
            }
            // A pass over the whole text is another thing: before the rows nothing has heard of the change.
            let fresh = forward(&mut model, &[&a], None).remove(0);
            let got = rows(&got[0]);
            let gap = got.iter().zip(&fresh[part.start * VOCAB..]).map(|(a, b)| (a - b).abs());
            assert!(gap.fold(0.0, f32::max) > 1e-3, "{name}");
        }
        // A text that was cut short reads as much of the cache as it is long.
        let short = &a[..6];
        let got = model.update(&[short], 2..5, &[&[2, 3, 4]]).unwrap();
        near(&rows(&got[0]), &over_kept(&*network, &first, short, 2..5), 2e-4);
    }
}

#[test]
fn decoding_is_lossless_and_caches_begin_exactly() {
    for (name, network) in networks() {
        let (shift, mut model) = (network.shape().shift, Cached(load(name, &*network)));
        let canvas = Canvas::after(&[3, 11, 5], 8, MASK);
        for cache in [Cache::None, Cache::Prefix, Cache::Dual] {
            let config =
                DiffusionConfig { cache, shift, blocks: Blocks::Fixed(4), ..DiffusionConfig::default() };
            let mut decoder = Diffusion::cached(&mut model, config).unwrap();
            let plain = decoder.generate(&canvas, &mut Fixed::default()).unwrap();
            // With shifted logits and a cache a block's first token comes with the pass at its start.
            let free = if shift && cache != Cache::None { 2 } else { 0 };
            assert_eq!((plain.forwards(), plain.ledger.emitted), (8 - free, 8));
            assert!(!plain.tokens.contains(&MASK));
            for drafts in [1, 2, 4] {
                let config = FreeDaveConfig { drafts, ..FreeDaveConfig::default() };
                let fast = decoder.free_dave(&canvas, &config).unwrap();
                assert_eq!(fast.tokens, plain.tokens, "{name}, {cache:?}, {drafts}");
                assert!(fast.forwards() <= plain.forwards());
            }
        }
    }
}

/// Masked diffusion teaches a small network to copy, and ONNX Runtime decodes what it learnt.
#[test]
fn a_small_network_learns_to_copy() {
    let config = SmallMaskedConfig {
        vocab: 10,
        width: 32,
        layers: 2,
        heads: 2,
        ffn: 64,
        context: 8,
        mask: 8,
        outputs: 8,
    };
    let start = SmallMasked::random(config, 2).unwrap();
    let text = |item: usize| {
        let letters: Vec<Token> =
            (0..4).map(|at| (item * 37 + at * at * 11 + (item >> at)) as u32 % 8).collect();
        (letters.repeat(2), 4..8)
    };
    let task = MaskedTask {
        items: 4000,
        text,
        masking: Masking { mask: 8, eps: 1e-3, stratified: true },
        shift: false,
    };
    let settings = TrainerConfig { lr: 4e-3, steps: 250, batch: 16, ..TrainerConfig::default() };
    let mut trainer = Trainer::new(&start.whole().unwrap(), settings, Precision::F32).unwrap();
    let mut losses = Vec::new();
    trainer
        .run(&task, None, |at| {
            losses.push(at.loss);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let mean = |some: &[f64]| some.iter().sum::<f64>() / some.len() as f64;
    // It begins near a uniform guess, ln 8 nats a token.
    assert!(mean(&losses[..10]) > 1.5, "{}", mean(&losses[..10]));
    assert!(mean(&losses[240..]) < 0.2, "{}", mean(&losses[240..]));
    let trained = start.with_parameters(&trainer.graph().unwrap()).unwrap();
    let mut model = load("trained", &trained);
    let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
    let right = (5000..5050).filter(|&item| {
        let (want, answer) = text(item);
        let mut tokens = want.clone();
        tokens[answer.clone()].fill(8);
        let got = decoder.generate(&Canvas { tokens, region: answer }, &mut Fixed::default()).unwrap();
        got.tokens == want
    });
    let right = right.count();
    assert!(right >= 45, "{right} of 50");
}

#[test]
fn bad_input_is_named() {
    let mut model = load("small", &small());
    let mut ask = |texts: &[&[Token]], positions: Option<&[&[usize]]>, taps: &[Tap]| {
        let batch = MaskedBatch { sequences: texts, positions, form: LogitForm::Full, taps };
        model.forward(&batch).map(|answer| answer.taps[0].len())
    };
    assert!(matches!(ask(&[&[]], None, &[]), Err(ModelError::EmptyStep)));
    assert!(matches!(
        ask(&[&[1; 25]], None, &[]),
        Err(ModelError::ContextFull { position: 24, context: 24 })
    ));
    assert!(matches!(ask(&[&[1, 40]], None, &[]), Err(ModelError::TokenOutOfRange { row: 1, .. })));
    assert!(matches!(ask(&[&[1]], Some(&[]), &[]), Err(ModelError::Length { got: 0, want: 1, .. })));
    assert!(matches!(ask(&[&[1]], Some(&[&[1]]), &[]), Err(ModelError::NoSuchRow { row: 1, .. })));
    assert!(ask(&[&[1]], None, &[Tap::Residual(0)]).is_err());
    assert_eq!(ask(&[&[1]], None, &[Tap::FinalNormed]).unwrap(), 1);
    assert!(matches!(model.update(&[&[1]], 0..1, &[&[0]]), Err(ModelError::Length { got: 0, .. })));
    model.build(&[1, 2, 3], &[0]).unwrap();
    assert!(matches!(
        model.update(&[&[1; 4]], 0..1, &[&[0]]),
        Err(ModelError::Length { got: 3, want: 4, .. })
    ));
    assert!(matches!(model.update(&[&[1; 3]], 1..4, &[&[1]]), Err(ModelError::Length { .. })));
    assert!(matches!(model.update(&[&[1; 3]], 1..2, &[&[2]]), Err(ModelError::NoSuchRow { row: 2, .. })));
    assert!(matches!(model.update(&[&[1; 3]], 1..1, &[&[]]), Err(ModelError::EmptyStep)));
    assert!(matches!(model.update(&[&[1; 3]], 1..2, &[]), Err(ModelError::Length { .. })));
    // Networks that cannot fill masks.
    let mut windowed = CausalConfig::gemma3(VOCAB, WIDTH, LAYERS, [4, 2], FFN);
    windowed.head_dim = 8;
    let windowed = CausalNetwork::random(windowed, 1).unwrap();
    assert!(Bidirectional::new(windowed, MASK, false).is_err());
}
