//! Networks, tokenisers and templates against independent implementations. The goldens and the Python scripts
//! that made them are in `tests/fixtures` here and in `crates/architectures`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use pilotfish_architectures::{Bert, CausalNetwork, Checkpoint, Message, Tokenizer};
use pilotfish_model::{LogitForm, Pooling, RowSet, SequenceEncoder, Step, Steps, Tap};
use pilotfish_runtime::home::Home;
use pilotfish_runtime::{LoadOptions, OnnxCausal, OnnxEncoder, SessionConfig};
use pilotfish_tests::smollm2;
use serde_json::Value as Json;

fn read(path: &Path) -> Json {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

fn golden(name: &str) -> Vec<Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    read(&path)["cases"].as_array().unwrap().clone()
}

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/architectures/tests/fixtures").join(name)
}

fn ids(value: &Json) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Json) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn text(case: &Json) -> &str {
    case["text"].as_str().unwrap()
}

#[track_caller]
fn near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: differs by {worst}");
}

fn minilm() -> PathBuf {
    Home::locate().unwrap().model("minilm").unwrap()
}

/// Gemma is fetched on request only, under its own terms; without it these tests say so and pass.
fn gemma3() -> Option<Checkpoint> {
    match Home::locate().unwrap().model("gemma3-270m") {
        Ok(folder) => Some(Checkpoint::open(folder.join("gemma-3-270m-q4_k_m.gguf")).unwrap()),
        Err(error) => {
            eprintln!("not compared: {error}");
            None
        }
    }
}

/// The whole text at once, then in pieces of every kind: the cache must not change anything.
fn compare_tiny(name: &str) {
    let folder = tiny(name);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let network = checkpoint.causal().unwrap();
    let golden = read(&folder.join("golden.json"));
    let mut options = LoadOptions::default();
    options.export.taps = (1..network.config().layers).collect();
    let mut model = OnnxCausal::from_network(name, network, &options).unwrap();
    for (text, want) in golden["ids"].as_array().unwrap().iter().zip(golden["logits"].as_array().unwrap()) {
        let text = ids(text);
        for piece in [text.len(), 5, 1] {
            model.truncate(0).unwrap();
            for (at, part) in text.chunks(piece).enumerate() {
                let out = model.step(&Step::chain(part).want(RowSet::All)).unwrap();
                for row in 0..part.len() {
                    let place = at * piece + row;
                    let what = format!("{name}, pieces of {piece}, row {place}");
                    near(out.logits.row(row).unwrap(), &floats(&want[place]), 2e-4, &what);
                }
            }
        }
    }
    // Taps: the residual stream after every layer, at the last place of both texts.
    let taps: Vec<Tap> = (0..=network.config().layers).map(Tap::Residual).collect();
    for (b, text) in golden["ids"].as_array().unwrap().iter().enumerate() {
        let text = ids(text);
        model.truncate(0).unwrap();
        let out = model.step(&Step::chain(&text).taps(&taps)).unwrap();
        for (layer, tap) in taps.iter().enumerate() {
            let row = out.tap(*tap).unwrap().row(text.len() - 1);
            let want = floats(&golden["residuals_at_last"][layer][b]);
            near(row, &want, 2e-4, &format!("{name}, residual {layer}"));
        }
    }
}

#[test]
fn a_tiny_llama_computes_what_transformers_computes() {
    compare_tiny("llama");
}

#[test]
fn so_does_one_with_biases_a_head_of_its_own_and_scaled_frequencies() {
    compare_tiny("llama_full");
}

#[test]
fn so_does_a_tiny_gemma_with_a_window_shorter_than_the_text() {
    compare_tiny("gemma3");
}

/// The goldens are sharp enough to tell apart what is easily confused.
#[test]
fn wrong_configurations_are_caught() {
    type Change = fn(&mut pilotfish_architectures::CausalConfig);
    let wrong: [(&str, &str, Change); 9] = [
        ("gemma3", "one base for all layers", |c| c.rope_theta_local = c.rope_theta),
        ("gemma3", "no scaling of the frequencies", |c| c.rope_scaling = Default::default()),
        ("gemma3", "a window of one more", |c| c.windows.iter_mut().flatten().for_each(|w| *w += 1)),
        ("gemma3", "a window of one less", |c| c.windows.iter_mut().flatten().for_each(|w| *w -= 1)),
        ("gemma3", "full attention at another place", |c| c.windows.rotate_left(1)),
        ("gemma3", "norms less one", |c| c.norm_plus_one = false),
        ("gemma3", "scores by the head's width", |c| c.attention_scale = 0.25),
        ("llama_full", "no scaling of the frequencies", |c| c.rope_scaling = Default::default()),
        ("llama", "another base", |c| c.rope_theta = 10_000.0),
    ];
    for (name, what, change) in wrong {
        let checkpoint = Checkpoint::open(tiny(name)).unwrap();
        let network = checkpoint.causal().unwrap();
        let mut config = network.config().clone();
        change(&mut config);
        let network = CausalNetwork::new(config, network.weights().clone()).unwrap();
        let golden = read(&tiny(name).join("golden.json"));
        let mut model = OnnxCausal::from_network(name, &network, &LoadOptions::default()).unwrap();
        let out = model.step(&Step::chain(&ids(&golden["ids"][0]))).unwrap();
        let want = floats(golden["logits"][0].as_array().unwrap().last().unwrap());
        let worst =
            out.logits.row(0).unwrap().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 2e-3, "{name} with {what} differs by {worst} only");
    }
}

#[test]
fn a_tiny_bert_computes_what_transformers_computes_whatever_is_in_the_batch() {
    let folder = tiny("bert");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let network: &Bert = checkpoint.encoder().unwrap();
    let golden = read(&folder.join("golden.json"));
    let mut encoder = OnnxEncoder::from_network("bert", network, &SessionConfig::default()).unwrap();
    let texts: Vec<Vec<u32>> = (0..2)
        .map(|b| ids(&golden["ids"][b])[..golden["lengths"][b].as_u64().unwrap() as usize].to_vec())
        .collect();
    let batch: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let [first, mean, last] = [Pooling::First, Pooling::Mean, Pooling::Last]
        .map(|pooling| encoder.encode(&batch, pooling).unwrap());
    for (b, text) in texts.iter().enumerate() {
        let states: Vec<Vec<f32>> = (0..text.len()).map(|t| floats(&golden["states"][b][t])).collect();
        let average: Vec<f32> = (0..states[0].len())
            .map(|i| states.iter().map(|state| state[i]).sum::<f32>() / text.len() as f32)
            .collect();
        near(&first[b], &states[0], 1e-4, "first");
        near(&mean[b], &average, 1e-4, "mean");
        near(&last[b], &states[text.len() - 1], 1e-4, "last");
    }
}

fn compare_logits(model: &mut OnnxCausal, tokenizer: &Tokenizer, cases: &[Json], start: bool) {
    for case in cases {
        let prompt = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text(case), start).unwrap(), prompt, "{:?}", text(case));
        model.truncate(0).unwrap();
        let out = model.step(&Step::chain(&prompt)).unwrap();
        let row = out.logits.row(0).unwrap();
        let known: Vec<(usize, f32)> = ["top", "fixed"]
            .iter()
            .flat_map(|key| case[*key].as_array().unwrap())
            .map(|pair| (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap() as f32))
            .collect();
        let got: Vec<f32> = known.iter().map(|&(id, _)| row[id]).collect();
        let want: Vec<f32> = known.iter().map(|&(_, value)| value).collect();
        near(&got, &want, 1e-3, text(case));
        // Nothing that is not among the twenty lies above the last of them.
        let last = case["top"][19][1].as_f64().unwrap() as f32;
        let above = row.iter().filter(|&&value| value > last + 1e-3).count();
        assert!(above <= 20, "{above} logits above the twentieth of {:?}", text(case));
        // Greedy, until the two best are too near to call.
        let Some(greedy) = case.get("greedy").map(ids) else { continue };
        let gaps = floats(&case["gaps"]);
        let mut next = out.logits.argmax(0).unwrap();
        for (at, (&want, &gap)) in greedy.iter().zip(&gaps).enumerate() {
            if gap < 5e-3 {
                break;
            }
            assert_eq!(next, want, "token {at} after {:?}", text(case));
            let step = Step::chain(&greedy[at..at + 1]).form(LogitForm::Argmax);
            next = model.step(&step).unwrap().logits.argmax(0).unwrap();
        }
    }
}

#[test]
fn smollm2_has_the_logits_of_transformers() {
    let checkpoint = smollm2();
    let mut model = OnnxCausal::from_checkpoint(&checkpoint, &LoadOptions::default()).unwrap();
    let cases = golden("logits_smollm2.json");
    assert_eq!(cases.len(), 20);
    let tokenizer = checkpoint.tokenizer().unwrap();
    compare_logits(&mut model, &tokenizer, &cases, true);
    let story = tokenizer.decode(&ids(&cases[0]["greedy"]), false).unwrap();
    assert!(
        story.starts_with(
            "One fateful day, in the heart of the Strait of Gibraltar, a lighthouse keeper named Captain \
             Jameson stood at the helm of the"
        ),
        "{story}"
    );
}

#[test]
fn gemma_3_has_the_logits_of_transformers() {
    let Some(checkpoint) = gemma3() else { return };
    let mut model = OnnxCausal::from_checkpoint(&checkpoint, &LoadOptions::default()).unwrap();
    let cases = golden("logits_gemma3.json");
    assert!(cases.iter().any(|case| ids(&case["ids"]).len() > 512), "none is longer than the window");
    compare_logits(&mut model, &checkpoint.tokenizer().unwrap(), &cases, true);
}

#[test]
fn minilm_finds_the_similarities_of_sentence_transformers() {
    let checkpoint = Checkpoint::open(minilm()).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let cases = golden("sentences_minilm.json");
    let texts: Vec<Vec<u32>> = cases.iter().map(|case| tokenizer.encode(text(case), true).unwrap()).collect();
    let batch: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let mut encoder = OnnxEncoder::open(minilm(), &SessionConfig::default()).unwrap();
    let vectors = encoder.encode(&batch, Pooling::Checkpoint).unwrap();
    for (case, vector) in cases.iter().zip(&vectors) {
        near(&vector[..8], &floats(&case["first"]), 1e-5, text(case));
        let similar: Vec<f32> =
            vectors.iter().map(|other| other.iter().zip(vector).map(|(a, b)| a * b).sum()).collect();
        near(&similar, &floats(&case["similar"]), 1e-4, text(case));
    }
}

fn compare_tokens(tokenizer: &Tokenizer, cases: &[Json], special: bool, lossless: fn(&str) -> bool) {
    assert!(cases.len() >= 200);
    for case in cases {
        let (text, want) = (text(case), ids(&case["ids"]));
        assert_eq!(tokenizer.encode(text, special).unwrap(), want, "{text:?}");
        if !lossless(text) {
            continue;
        }
        assert_eq!(tokenizer.decode(&want, false).unwrap(), text);
        let bytes: Vec<u8> = want.iter().flat_map(|&id| tokenizer.bytes(id).unwrap()).collect();
        assert_eq!(bytes, text.as_bytes(), "{text:?}");
        let mut stream = tokenizer.stream();
        let mut streamed: String = want.iter().map(|&id| stream.push(id)).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, text);
    }
}

#[test]
fn smollm2_has_the_tokens_of_two_other_implementations() {
    compare_tokens(&smollm2().tokenizer().unwrap(), &golden("tokens_smollm2.json"), true, |_| true);
}

#[test]
fn minilm_has_the_tokens_of_the_python_package() {
    let tokenizer = Checkpoint::open(minilm()).unwrap().tokenizer().unwrap();
    compare_tokens(&tokenizer, &golden("tokens_minilm.json"), true, |_| false);
}

#[test]
fn gemma_3_has_the_tokens_of_llama_cpp() {
    let Some(checkpoint) = gemma3() else { return };
    // SentencePiece writes a space as U+2581, so the character itself does not come back.
    let lossless = |text: &str| !text.contains('\u{2581}');
    compare_tokens(&checkpoint.tokenizer().unwrap(), &golden("tokens_gemma3.json"), false, lossless);
}

#[test]
fn the_template_of_smollm2_adds_its_system_prompt_once() {
    let template = smollm2().chat_template().unwrap().unwrap();
    let question = Message::user("Write a short story about a lighthouse keeper.");
    let turn = "<|im_start|>user\nWrite a short story about a lighthouse keeper.<|im_end|>\n";
    assert_eq!(
        template.render(std::slice::from_ref(&question), true).unwrap(),
        format!(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
             {turn}<|im_start|>assistant\n"
        )
    );
    let messages = [Message::system("Be terse."), question, Message::assistant("Ok."), Message::user("More")];
    assert_eq!(
        template.render(&messages, false).unwrap(),
        format!(
            "<|im_start|>system\nBe terse.<|im_end|>\n{turn}<|im_start|>assistant\nOk.<|im_end|>\n\
             <|im_start|>user\nMore<|im_end|>\n"
        )
    );
}

#[test]
fn long_texts_are_cut_where_it_makes_no_difference() {
    let tokenizer = smollm2().tokenizer().unwrap();
    let line = "The keeper's 17 lamps, 3 boats  and\n\tone dog.\n\n";
    let text = line.repeat((3 << 20) / line.len());
    let whole = tokenizer.encode(&text, true).unwrap();
    // The same in pieces short enough never to be cut, each ending where a word ends.
    let mut pieces = Vec::new();
    let mut rest = text.as_str();
    while let Some(end) = rest.char_indices().skip(300_000).find(|&(at, _)| rest[at..].starts_with(" lamps"))
    {
        pieces.extend(tokenizer.encode(&rest[..end.0], false).unwrap());
        rest = &rest[end.0..];
    }
    pieces.extend(tokenizer.encode(rest, false).unwrap());
    assert!(whole == pieces);
    assert_eq!(tokenizer.decode(&whole, false).unwrap(), text);
    // One word without end is refused, at once.
    let error = tokenizer.encode(&"x".repeat(10 << 20), false).unwrap_err().to_string();
    assert!(error.contains("white space"), "{error}");
}
