//! ONNX Runtime behind the model traits: trees, caches, taps, ranges, and what must be refused.
//! Oracles: docs/src/model-interface.md says what every causal model promises.
#![allow(clippy::unwrap_used)]

use pilotfish_architectures::CausalNetwork;
use pilotfish_graph::Tensor;
use pilotfish_graph::weights::{Encoding, Stored, Weights};
use pilotfish_model::{
    Capability, CausalModel, LogitForm, ModelError, Parents, RowSet, Step, Steps, Tap, Token,
};
use pilotfish_runtime::{LoadOptions, OnnxCausal, RuntimeError};
use pilotfish_tests::{
    gap, kept_path_equals_prefill, near, random_tree, smollm2, smollm2_layers, tiny_gemma, tiny_llama,
    tokens, tree_equals_paths, worked_tree,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn options(fused: bool, cuts: &[usize]) -> LoadOptions {
    let mut options = LoadOptions::default();
    options.export.fused = fused;
    options.export.cuts = cuts.to_vec();
    options
}

fn load(network: &CausalNetwork, fused: bool, cuts: &[usize]) -> OnnxCausal {
    OnnxCausal::from_network("tiny", network, &options(fused, cuts)).unwrap()
}

/// Every way a tiny network is run: fused and official operators, whole and cut.
fn every_way(mut check: impl FnMut(&mut OnnxCausal, &str)) {
    for (network, name) in [(tiny_llama(), "llama"), (tiny_gemma(), "gemma")] {
        for fused in [true, false] {
            for cuts in [&[][..], &[1, 2, 3]] {
                let what = format!("{name}, fused {fused}, cuts {cuts:?}");
                check(&mut load(&network, fused, cuts), &what);
            }
        }
    }
}

#[test]
fn trees_in_one_call_equal_their_paths_one_by_one() {
    every_way(|model, _| {
        for (case, past) in [0, 1, 17].into_iter().cycle().take(9).enumerate() {
            let nodes = [2, 3, 64, 7, 12, 33, 5, 20, 2][case];
            tree_equals_paths(model, case as u64, past, nodes, 1e-4);
        }
    });
}

#[test]
fn a_kept_path_equals_a_fresh_prefill() {
    every_way(|model, _| {
        for (case, past) in [0, 1, 17].into_iter().cycle().take(9).enumerate() {
            let nodes = [2, 3, 40, 7, 12, 33, 5, 20, 2][case];
            kept_path_equals_prefill(model, 100 + case as u64, past, nodes, 1e-4);
        }
    });
}

#[test]
fn the_worked_tree_by_hand() {
    every_way(|model, _| worked_tree(model, 1e-5));
}

/// Tap identities for every layer, by whole steps and by ranges that tile the model.
fn taps_and_ranges(model: &mut OnnxCausal, text: &[Token], layers: usize, cuts: &[usize], tolerance: f32) {
    let (width, vocab) = (model.info().width, model.info().vocab);
    let mut taps: Vec<Tap> = (0..=layers).map(Tap::Residual).collect();
    taps.push(Tap::FinalNormed);
    model.truncate(0).unwrap();
    let whole = model.step(&Step::chain(text).want(RowSet::All).taps(&taps)).unwrap();
    let logits: Vec<f32> = (0..text.len()).flat_map(|row| whole.logits.row(row).unwrap().to_vec()).collect();
    assert_eq!(whole.taps.iter().map(|rows| rows.tap).collect::<Vec<_>>(), taps);
    let tap = |tap| &whole.tap(tap).unwrap().values;
    let (normed, last) = (tap(Tap::FinalNormed), tap(Tap::Residual(layers)));
    // Residual(0) is the embedding.
    assert_eq!(*tap(Tap::Residual(0)), model.embed(text).unwrap());
    // The head of the normed state, and of the norm of the last residual, are the logits.
    let head = |model: &mut OnnxCausal, normed: &[f32]| {
        let logits = model.head(normed, LogitForm::Full).unwrap();
        assert_eq!(logits.vocab(), vocab);
        (0..text.len()).flat_map(|row| logits.row(row).unwrap().to_vec()).collect::<Vec<f32>>()
    };
    near(&head(model, normed), &logits, tolerance, "head of FinalNormed");
    let again = model.final_norm(last).unwrap();
    near(&again, normed, tolerance, "final norm of the last residual");
    near(&head(model, &again), &logits, tolerance, "head of the final norm of the last residual");
    // Not normed is something else.
    assert!(gap(&head(model, last), &logits) > 100.0 * tolerance);
    // Embeddings in place of ids.
    model.truncate(0).unwrap();
    let vectors = model.embed(text).unwrap();
    let step = Step::chain(text).vectors(&vectors, width).want(RowSet::All).taps(&taps);
    assert_eq!(model.step(&step).unwrap(), whole, "vectors are not ids");
    // Ranges: every cut, first in one piece below and above it, then all pieces in a row.
    for &cut in cuts {
        model.truncate(0).unwrap();
        let wanted = [Tap::Residual(0), Tap::Residual(cut)];
        let below = model.range(0..cut).unwrap().step(&Step::chain(text).taps(&wanted)).unwrap();
        assert_eq!(below.tap(Tap::Residual(0)).unwrap().values, *tap(Tap::Residual(0)));
        let residual = below.tap(Tap::Residual(cut)).unwrap();
        near(&residual.values, tap(Tap::Residual(cut)), tolerance, &format!("residual {cut} by a range"));
        let wanted = [Tap::Residual(layers), Tap::FinalNormed];
        let step = Step::chain(text).vectors(&residual.values, width).taps(&wanted);
        let above = model.range(cut..layers).unwrap().step(&step).unwrap();
        near(&above.tap(Tap::FinalNormed).unwrap().values, normed, tolerance, &format!("normed after {cut}"));
        near(
            &above.tap(Tap::Residual(layers)).unwrap().values,
            last,
            tolerance,
            &format!("last after {cut}"),
        );
        let through = head(model, &above.tap(Tap::FinalNormed).unwrap().values);
        near(&through, &logits, tolerance, &format!("logits by ranges cut at {cut}"));
        // Both left the cache that a whole step leaves.
        let next = model.step(&Step::chain(&text[..1])).unwrap();
        model.truncate(0).unwrap();
        model.step(&Step::chain(text)).unwrap();
        let want = model.step(&Step::chain(&text[..1])).unwrap();
        near(next.logits.row(0).unwrap(), want.logits.row(0).unwrap(), tolerance, "after ranges");
    }
    model.truncate(0).unwrap();
    let ends: Vec<usize> = std::iter::once(0).chain(cuts.iter().copied()).chain([layers]).collect();
    let mut x = vectors;
    for pair in ends.windows(2) {
        let wanted = [Tap::Residual(pair[1])];
        let step = Step::chain(text).vectors(&x, width).taps(&wanted);
        x = model.range(pair[0]..pair[1]).unwrap().step(&step).unwrap().taps.remove(0).values;
        near(&x, tap(Tap::Residual(pair[1])), tolerance, &format!("residual {} by pieces", pair[1]));
    }
}

#[test]
fn taps_of_every_layer_and_ranges_of_every_cut() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (network, name) in [(tiny_llama(), "llama"), (tiny_gemma(), "gemma")] {
        let layers = network.config().layers;
        let text = tokens(&mut rng, 11, network.config().vocab);
        for fused in [true, false] {
            for cuts in [vec![1, 2, 3], vec![2], vec![]] {
                let mut options = options(fused, &cuts);
                options.export.taps = (1..layers).collect();
                let mut model = OnnxCausal::from_network(name, &network, &options).unwrap();
                taps_and_ranges(&mut model, &text, layers, &cuts, 1e-5);
            }
        }
    }
}

/// Four layers of SmolLM2: cut everywhere, fused and official.
#[test]
fn layers_of_smollm2_obey_the_same_laws() {
    let network = smollm2_layers(4);
    let text = tokens(&mut ChaCha8Rng::seed_from_u64(4), 9, network.config().vocab);
    for fused in [true, false] {
        let mut options = options(fused, &[1, 3]);
        options.export.taps = vec![2];
        let mut model = OnnxCausal::from_network("smollm2", &network, &options).unwrap();
        taps_and_ranges(&mut model, &text, 4, &[1, 3], 1e-4);
        worked_tree(&mut model, 1e-4);
        tree_equals_paths(&mut model, 5, 17, 12, 1e-4);
        kept_path_equals_prefill(&mut model, 6, 17, 12, 1e-4);
    }
}

/// All thirty layers, as they are used. Errors of f32 add up over them: logits are of the order of 20, and
/// nothing here comes nearer to another path than whole units.
#[test]
fn smollm2_obeys_the_same_laws() {
    let mut model = OnnxCausal::from_checkpoint(&smollm2(), &LoadOptions::default()).unwrap();
    let text = tokens(&mut ChaCha8Rng::seed_from_u64(5), 9, model.info().vocab);
    let wanted = [Tap::Residual(0), Tap::Residual(30), Tap::FinalNormed];
    let whole = model.step(&Step::chain(&text).want(RowSet::All).taps(&wanted)).unwrap();
    let normed = model.final_norm(&whole.tap(Tap::Residual(30)).unwrap().values).unwrap();
    near(&normed, &whole.tap(Tap::FinalNormed).unwrap().values, 1e-5, "final norm");
    let head = model.head(&normed, LogitForm::Full).unwrap();
    for row in 0..text.len() {
        near(head.row(row).unwrap(), whole.logits.row(row).unwrap(), 1e-4, "head");
    }
    assert_eq!(whole.tap(Tap::Residual(0)).unwrap().values, model.embed(&text).unwrap());
    worked_tree(&mut model, 2e-4);
    tree_equals_paths(&mut model, 7, 17, 10, 2e-4);
    kept_path_equals_prefill(&mut model, 8, 17, 10, 2e-4);
}

/// What a model says about a text of five tokens now; the same before and after a refusal.
fn state(model: &mut OnnxCausal) -> (usize, Vec<f32>) {
    let len = model.len();
    let out = model.step(&Step::chain(&[1])).unwrap();
    model.truncate(len).unwrap();
    (len, out.logits.row(0).unwrap().to_vec())
}

#[test]
fn what_is_refused_leaves_the_cache_as_it_was() {
    every_way(|model, what| {
        let (width, vocab) = (model.info().width, model.info().vocab);
        model.step(&Step::chain(&[3, 1, 4, 1, 5])).unwrap();
        let before = state(model);
        let vectors = vec![0.5; 3 * width];
        let mut with_nan = vectors.clone();
        with_nan[width + 2] = f32::NAN;
        let mut with_infinity = vectors.clone();
        with_infinity[2 * width] = f32::INFINITY;
        let long = vec![0; 124];
        let ids = [1, 2, 3];
        let step = Step::chain(&ids);
        type Is = fn(&ModelError) -> bool;
        let last = vocab as Token;
        let out_of_range = [1, last, 2];
        let cases: Vec<(&str, Step<'_>, Is)> = vec![
            ("no rows", Step::chain(&[]), |e| matches!(e, ModelError::EmptyStep)),
            ("no rows of vectors", step.vectors(&[], width), |e| matches!(e, ModelError::EmptyStep)),
            (
                "a token too large",
                Step::chain(&out_of_range),
                |e| matches!(e, ModelError::TokenOutOfRange { row: 1, token, vocab } if *token as usize == *vocab),
            ),
            ("NaN", step.vectors(&with_nan, width), |e| matches!(e, ModelError::NotFinite { row: 1, .. })),
            ("infinity", step.vectors(&with_infinity, width), |e| {
                matches!(e, ModelError::NotFinite { row: 2, .. })
            }),
            ("another width", step.vectors(&vectors, width / 2), |e| matches!(e, ModelError::Length { .. })),
            ("no width", step.vectors(&vectors, 0), |e| matches!(e, ModelError::Length { .. })),
            ("half a row", step.vectors(&vectors[..width + 1], width), |e| {
                matches!(e, ModelError::Length { .. })
            }),
            ("past the context", Step::chain(&long), |e| {
                matches!(e, ModelError::ContextFull { position: 128, context: 128 })
            }),
            ("its own parent", Step::tree(&ids, &[Some(4), Some(6), Some(5)]), |e| {
                matches!(e, ModelError::BadParent { row: 6, parent: 6 })
            }),
            ("a later parent", Step::tree(&ids, &[Some(7), Some(5), Some(5)]), |e| {
                matches!(e, ModelError::BadParent { row: 5, parent: 7 })
            }),
            ("two parents for three", Step::tree(&ids, &[Some(4), Some(5)]), |e| {
                matches!(e, ModelError::Length { got: 2, want: 3, .. })
            }),
            ("a row that is not there", step.want(RowSet::Rows(&[0, 3])), |e| {
                matches!(e, ModelError::NoSuchRow { row: 3, .. })
            }),
            ("top 0", step.form(LogitForm::TopK(0)), |e| matches!(e, ModelError::BadParameter { .. })),
            ("a tap that is not there", step.taps(&[Tap::Residual(5)]), |e| {
                matches!(e, ModelError::NoSuchTap { .. })
                    && e.to_string().contains("LoadOptions::export.taps")
            }),
        ];
        for (case, step, is) in cases {
            let error = model.step(&step).expect_err(case);
            assert!(is(&error), "{what}, {case}: {error}");
            assert_eq!(state(model), before, "{what}, {case}");
            // The same by a range that covers the model, which has no logits to refuse.
            if !matches!(step.logits, RowSet::Rows(_)) && !matches!(step.form, LogitForm::TopK(0)) {
                let error = model.range(0..4).unwrap().step(&step).expect_err(case);
                assert!(is(&error), "{what}, {case} by a range: {error}");
                assert_eq!(state(model), before, "{what}, {case} by a range");
            }
        }
        // The cache itself.
        let refused = [model.truncate(6), model.keep(6, &[]), model.keep(2, &[2, 5]), model.keep(2, &[3])];
        assert!(refused.iter().all(Result::is_err), "{what}: {refused:?}");
        assert!(model.keep(4, &[1]).is_err() && model.keep(2, &[3, 2]).is_err(), "{what}");
        assert_eq!(state(model), before, "{what}");
    });
}

#[test]
fn a_head_that_gives_no_numbers_leaves_the_cache_as_it_was() {
    let network = tiny_llama();
    let mut config = network.config().clone();
    config.tied = false;
    let mut weights = Weights::default();
    for (name, stored) in network.weights().iter() {
        weights.insert(name.to_owned(), stored.clone()).unwrap();
    }
    // The head of token 50 reads nothing but NaN.
    let mut head = network.weights().get("model.embed_tokens.weight").unwrap().to_f32().unwrap().into_owned();
    head[50 * 64..51 * 64].fill(f32::NAN);
    let tensor = Tensor::new([97, 64], head).unwrap();
    let stored = Stored { tensor, encoding: Encoding::F32, bytes: 4 * 97 * 64 };
    weights.insert("lm_head.weight".into(), stored).unwrap();
    let network = CausalNetwork::new(config, weights).unwrap();
    for fused in [true, false] {
        let mut model = load(&network, fused, &[2]);
        model.step(&Step::chain(&[1, 2, 3]).want(RowSet::None)).unwrap();
        for form in [LogitForm::Argmax, LogitForm::TopK(3)] {
            let error = model.step(&Step::chain(&[4, 5]).form(form)).unwrap_err();
            assert!(matches!(error, ModelError::NotFinite { .. }), "{error}");
            assert_eq!(model.len(), 3);
        }
        // Whole rows are handed over as they are; whoever samples from them refuses.
        let row = model.step(&Step::chain(&[4, 5])).unwrap().logits;
        assert!(row.row(0).unwrap()[50].is_nan() && row.row(0).unwrap()[49].is_finite());
        assert!(pilotfish_model::sampling::Sampler::greedy().distribution(row.row(0).unwrap(), &[]).is_err());
    }
}

#[test]
fn missing_capabilities_name_the_option_that_gives_them() {
    let mut model = load(&tiny_llama(), true, &[2]);
    assert_eq!(model.info().capabilities.cuts, [0, 2, 4]);
    assert_eq!(
        model.info().capabilities.taps,
        [Tap::Residual(0), Tap::Residual(2), Tap::Residual(4), Tap::FinalNormed]
    );
    let error = model.step(&Step::chain(&[1]).taps(&[Tap::Residual(3)])).unwrap_err();
    assert!(matches!(error, ModelError::NoSuchTap { tap: Tap::Residual(3), .. }));
    assert!(error.to_string().contains("LoadOptions::export.taps or .cuts"), "{error}");
    for layers in [0..3, 1..4, 2..2, 4..4, 0..5] {
        let Err(error) = model.range(layers.clone()) else { panic!("{layers:?} is no range") };
        assert!(matches!(error, ModelError::Unsupported { capability: Capability::Ranges, .. }));
        assert!(error.to_string().contains("LoadOptions::export.cuts"), "{error}");
    }
    // A range has its own taps, and reads vectors unless it begins with the embedding.
    let range = model.range(2..4).unwrap();
    let vectors = vec![0.1; 64];
    let step = Step::chain(&[]).vectors(&vectors, 64);
    let error = range.step(&step.taps(&[Tap::Residual(0)])).unwrap_err();
    assert!(matches!(error, ModelError::NoSuchTap { .. }) && error.to_string().contains("2..4"), "{error}");
    let error = range.step(&Step::chain(&[1])).unwrap_err();
    assert!(error.to_string().contains("give vectors"), "{error}");
    assert_eq!(range.len(), 0);
    // Half the model ran: the whole one refuses to go on, and truncating brings it back.
    model.range(0..2).unwrap().step(&Step::chain(&[1, 2])).unwrap();
    assert!(matches!(model.step(&Step::chain(&[3])), Err(ModelError::Length { .. })));
    assert!(matches!(model.keep(0, &[0]), Err(ModelError::Length { .. })));
    model.truncate(0).unwrap();
    model.step(&Step::chain(&[3])).unwrap();
}

#[test]
fn options_outside_the_network_are_refused() {
    for (taps, cuts) in [(vec![5], vec![]), (vec![], vec![9])] {
        let mut options = LoadOptions::default();
        (options.export.taps, options.export.cuts) = (taps, cuts);
        let error = OnnxCausal::from_network("tiny", &tiny_llama(), &options).unwrap_err();
        assert!(matches!(error, RuntimeError::Option { .. }), "{error}");
    }
}

/// A tree at the end of the context may have more rows than the context has positions.
#[test]
fn the_last_positions_take_a_tree() {
    for fused in [true, false] {
        let mut model = load(&tiny_llama(), fused, &[]);
        let text = tokens(&mut ChaCha8Rng::seed_from_u64(9), 125, 97);
        model.step(&Step::chain(&text)).unwrap();
        let ids: Vec<Token> = (0..21).collect();
        // A root at position 125, ten children of it, one child of each.
        let parents: Vec<Option<usize>> = (0..21)
            .map(|i| {
                Some(if i == 0 {
                    124
                } else if i <= 10 {
                    125
                } else {
                    125 + i - 10
                })
            })
            .collect();
        let out = model.step(&Step::tree(&ids, &parents)).unwrap();
        model.truncate(125).unwrap();
        let alone = model.step(&Step::chain(&[0, 7, 17]).want(RowSet::All)).unwrap();
        for (row, node) in [0, 7, 17].into_iter().enumerate() {
            near(out.logits.row(node).unwrap(), alone.logits.row(row).unwrap(), 1e-4, "at the end");
        }
        assert!(matches!(model.step(&Step::chain(&[1])), Err(ModelError::ContextFull { .. })));
    }
}

/// Rows that start texts of their own share nothing, in one cache.
#[test]
fn several_texts_in_one_cache() {
    every_way(|model, what| {
        let [a, b] = [[1, 2, 3], [4, 5, 6]];
        let ids = [1, 4, 2, 5, 3, 6];
        let parents = [None, None, Some(0), Some(1), Some(2), Some(3)];
        let both = model.step(&Step::tree(&ids, &parents)).unwrap();
        for (text, rows) in [(a, [0, 2, 4]), (b, [1, 3, 5])] {
            model.truncate(0).unwrap();
            let alone = model.step(&Step::chain(&text).want(RowSet::All)).unwrap();
            for (at, row) in rows.into_iter().enumerate() {
                near(both.logits.row(row).unwrap(), alone.logits.row(at).unwrap(), 1e-5, what);
            }
        }
    });
}

/// Wanted rows come in the order asked for, in every form, and no row costs no head.
#[test]
fn wanted_rows_in_any_order_and_form() {
    let mut model = load(&tiny_llama(), true, &[]);
    let text = [3, 1, 4, 1, 5, 9, 2, 6];
    let all = model.step(&Step::chain(&text).want(RowSet::All)).unwrap().logits;
    for wanted in [&[7usize, 0, 3, 3][..], &[2], &[0, 1, 2, 3, 4, 5, 6, 7], &[1, 0, 2, 3, 4, 5, 6, 7]] {
        model.truncate(0).unwrap();
        let some = model.step(&Step::chain(&text).want(RowSet::Rows(wanted))).unwrap().logits;
        assert_eq!(some.rows(), wanted.len());
        for (at, &row) in wanted.iter().enumerate() {
            near(some.row(at).unwrap(), all.row(row).unwrap(), 1e-6, "wanted rows");
            assert_eq!(some.argmax(at).unwrap(), all.argmax(row).unwrap());
        }
    }
    model.truncate(0).unwrap();
    let none = model.step(&Step::chain(&text).want(RowSet::None)).unwrap().logits;
    assert_eq!((none.rows(), none.vocab(), model.len()), (0, 97, 8));
    let tree = random_tree(&mut ChaCha8Rng::seed_from_u64(1), 9, 97);
    let step = Step { parents: Parents::Rows(&tree.parents(8)), ..Step::chain(tree.tokens()) };
    assert_eq!(model.step(&step).unwrap().logits.rows(), 1);
}

/// A head for a part of the vocabulary has the whole head's logits there, and calls the rest impossible.
#[test]
fn a_head_for_some_tokens_only() {
    let text = [3, 1, 4, 1, 5, 9, 2, 6];
    let some = [40, 2, 88, 7, 0];
    let head = |model: &OnnxCausal| (model.info().head_bytes, model.info().head_macs);
    for (network, vocab) in [(tiny_llama(), 97), (tiny_gemma(), 89)] {
        let mut whole = load(&network, true, &[]);
        let part = LoadOptions::default().vocabulary(some);
        let mut part = OnnxCausal::from_network("tiny", &network, &part).unwrap();
        assert_eq!(part.info().vocab, vocab);
        let (bytes, macs) = head(&whole);
        assert_eq!(head(&part), (bytes * 5 / vocab as u64, macs * 5 / vocab as u64));
        for form in [LogitForm::Full, LogitForm::TopK(3), LogitForm::TopK(50), LogitForm::Argmax] {
            let step = Step { form, ..Step::chain(&text).want(RowSet::All) };
            whole.truncate(0).unwrap();
            part.truncate(0).unwrap();
            let all = whole.step(&Step { form: LogitForm::Full, ..step }).unwrap().logits;
            let got = part.step(&step).unwrap().logits;
            assert_eq!((got.vocab(), got.rows()), (vocab, text.len()));
            for row in 0..text.len() {
                let mut want: Vec<(Token, f32)> =
                    some.iter().map(|&token| (token, all.row(row).unwrap()[token as usize])).collect();
                want.sort_by(|a, b| b.1.total_cmp(&a.1));
                let top = got.top(row, 3).unwrap();
                for (got, want) in top.iter().zip(&want) {
                    assert!(got.0 == want.0 && (got.1 - want.1).abs() < 1e-5, "{form:?}: {got:?}, {want:?}");
                }
                if let Some(full) = got.row(row) {
                    let possible = full.iter().filter(|logit| logit.is_finite()).count();
                    assert_eq!((top.len(), possible), (3, some.len()));
                }
            }
        }
    }
    for (bad, said) in [(&[][..], "none"), (&[1, 2, 97][..], "token 97"), (&[1, 2, 1][..], "token 1")] {
        let load = LoadOptions::default().vocabulary(bad.iter().copied());
        let refused = OnnxCausal::from_network("tiny", &tiny_llama(), &load).unwrap_err();
        let RuntimeError::Option { option: "vocabulary", value, .. } = refused else { panic!("{refused}") };
        assert_eq!(value, said);
    }
}
