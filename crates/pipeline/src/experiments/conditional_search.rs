//! Likely texts of a given length: beams that look ahead with a classifier, beams that do not, and the exact modes,
//! on random models; and how the likeliest text of a nearly perfect model turns empty.

use ndarray::Array2;
use pilotfish_decoding::search::degeneracy::threshold_bits;
use pilotfish_decoding::search::{
    BeamConfig, Length, PrefixClassifier, SearchLimits, conditional_beam, mode, modes_by_length,
};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{Streams, Token};
use pilotfish_supervision::heads::{Logistic, LogisticConfig};
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page, mean};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const CONDITIONAL_SEARCH: Experiment = Experiment {
    name: "conditional-search",
    about: "attribute-conditional beam search against length-truncated beams and exact modes, on random models",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "letters", default: "6", about: "letters of the toy language, 2 to 12" },
        Choice { name: "worlds", default: "100", about: "random models" },
        Choice { name: "longest", default: "8", about: "longest text looked for" },
        Choice { name: "widths", default: "1,3,5", about: "widths of beams" },
        Choice { name: "samples", default: "1000", about: "texts that a classifier is trained on" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// The probability to end after exactly `k` more tokens, by the last two tokens.
struct Exact<'a> {
    length: usize,
    table: &'a [Vec<f64>],
    vocab: usize,
}

/// `[k][context]`.
fn remaining(model: &TableModel, vocab: usize, longest: usize) -> Vec<Vec<f64>> {
    let end = vocab as Token - 1;
    let laws: Vec<_> = (0..vocab * vocab)
        .map(|context| model.next(&[(context / vocab) as Token, (context % vocab) as Token]))
        .collect();
    let mut table: Vec<Vec<f64>> = vec![laws.iter().map(|law| law.prob(end)).collect()];
    for k in 1..=longest {
        let row = (0..vocab * vocab)
            .map(|context| {
                let follow = |token: usize| table[k - 1][context % vocab * vocab + token];
                (0..vocab - 1).map(|token| laws[context].prob(token as Token) * follow(token)).sum()
            })
            .collect();
        table.push(row);
    }
    table
}

fn context_after(prefix: &[Token], token: Token, end: Token) -> (usize, usize) {
    (prefix.last().copied().unwrap_or(end) as usize, token as usize)
}

impl PrefixClassifier for Exact<'_> {
    fn prefix(
        &mut self,
        prefix: &[Token],
        _: &[f32],
        candidates: &[Token],
    ) -> pilotfish_decoding::Result<Vec<f64>> {
        let left = self.length.checked_sub(prefix.len() + 1);
        let end = self.vocab as Token - 1;
        Ok(candidates
            .iter()
            .map(|&token| {
                let (before, last) = context_after(prefix, token, end);
                left.map_or(0.0, |left| self.table[left][before * self.vocab + last])
            })
            .collect())
    }

    fn complete(&mut self, text: &[Token], _: &[f32]) -> pilotfish_decoding::Result<f64> {
        Ok(f64::from(u8::from(text.len() == self.length)))
    }
}

/// A logistic head over the last two tokens, each one-hot, that says how many tokens are left: 0, 1, ... or more than
/// the longest text looked for. It has no term for pairs of tokens, so it cannot be exact.
struct Learned<'a> {
    length: usize,
    head: &'a Logistic,
    vocab: usize,
}

fn features(vocab: usize, rows: &[(usize, usize)]) -> Array2<f64> {
    let mut x = Array2::zeros((rows.len(), 2 * vocab));
    for (row, &(before, last)) in rows.iter().enumerate() {
        x[[row, before]] = 1.0;
        x[[row, vocab + last]] = 1.0;
    }
    x
}

fn learn(
    model: &TableModel,
    vocab: usize,
    longest: usize,
    samples: usize,
    streams: Streams,
) -> Result<Logistic, Failure> {
    let end = vocab as Token - 1;
    let mut rng = streams.stream("samples");
    let (mut rows, mut classes) = (Vec::new(), Vec::new());
    for _ in 0..samples {
        let mut text = vec![end, end];
        // Texts far beyond the longest class say nothing new.
        while text.len() < 2 + 8 * longest {
            let token = model.next(&text).sample(&mut rng);
            if token == end {
                break;
            }
            text.push(token);
        }
        for at in 2..text.len() {
            rows.push((text[at - 1] as usize, text[at] as usize));
            classes.push((text.len() - 1 - at).min(longest));
        }
    }
    let x = features(vocab, &rows);
    Ok(Logistic::fit_classes(x.view(), &classes, longest + 1, None, &LogisticConfig::default())?)
}

impl PrefixClassifier for Learned<'_> {
    fn prefix(
        &mut self,
        prefix: &[Token],
        _: &[f32],
        candidates: &[Token],
    ) -> pilotfish_decoding::Result<Vec<f64>> {
        let Some(left) = self.length.checked_sub(prefix.len() + 1) else {
            return Ok(vec![0.0; candidates.len()]);
        };
        let end = self.vocab as Token - 1;
        let rows: Vec<_> = candidates.iter().map(|&token| context_after(prefix, token, end)).collect();
        let p = self
            .head
            .predict(features(self.vocab, &rows).view())
            .map_err(|error| pilotfish_decoding::DecodingError::Other(Box::new(error)))?;
        Ok((0..rows.len()).map(|row| p[[row, left]]).collect())
    }

    fn complete(&mut self, text: &[Token], _: &[f32]) -> pilotfish_decoding::Result<f64> {
        Ok(f64::from(u8::from(text.len() == self.length)))
    }
}

/// What the searches found in one world.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct World {
    /// Whether the likeliest text of all is empty.
    empty: bool,
    /// Whether all exact searches were finished.
    proven: bool,
    /// By width, length from 1, and method: the log-probability below the mode's, in nats.
    gaps: Vec<Vec<[f64; 3]>>,
}

const METHODS: [&str; 3] = ["end forced at the length", "classifier, exact", "classifier, learned"];

fn explore(
    letters: usize,
    longest: usize,
    widths: &[usize],
    samples: usize,
    streams: Streams,
) -> Result<World, Failure> {
    let vocab = letters + 1;
    let end = [vocab as Token - 1];
    let prompt = [end[0], end[0]];
    let mut model = TableModel::random(2, vocab, 1.5, &mut streams.stream("model"))?;
    let table = remaining(&model, vocab, longest);
    let head = learn(&model, vocab, longest, samples, streams)?;
    let limits = SearchLimits { tokens: longest, prefixes: 50_000 };
    let mut gaps = vec![Vec::new(); widths.len()];
    let mut found = vec![Vec::new(); widths.len()];
    let mut bounds = Vec::new();
    for (at, &width) in widths.iter().enumerate() {
        for length in 1..=longest {
            let config = BeamConfig { width, tokens: length, ..BeamConfig::default() };
            let mut search = |classifier: &mut dyn PrefixClassifier| {
                conditional_beam(&mut model, &prompt, &end, classifier, &config)
            };
            let all = [
                search(&mut Length(length))?,
                search(&mut Exact { length, table: &table, vocab })?,
                search(&mut Learned { length, head: &head, vocab })?,
            ];
            bounds.extend(all.iter().filter_map(|found| found.first().cloned()));
            found[at].push(all.map(|found| found.first().map_or(f64::NEG_INFINITY, |found| found.log_prob)));
        }
    }
    let modes = modes_by_length(&mut model, &prompt, &end, &limits, &bounds)?;
    let first = mode(&mut model, &prompt, &end, &limits, None)?;
    for (gaps, found) in gaps.iter_mut().zip(found) {
        for (length, scores) in (1..).zip(found) {
            let best = modes.best[length].as_ref().map_or(f64::NEG_INFINITY, |found| found.log_prob);
            // A search that found nothing at all counts as far off, not as infinitely far.
            gaps.push(
                scores.map(|score| if score == f64::NEG_INFINITY { 20.0 } else { (best - score).max(0.0) }),
            );
        }
    }
    let empty = first.best.is_some_and(|found| found.tokens.is_empty());
    Ok(World { empty, proven: modes.proven && first.proven, gaps })
}

/// The likeliest text of a model that says any of `8^length` texts, or nothing one time in a hundred.
fn degenerate(length: usize) -> Result<(f64, bool), Failure> {
    // A token is a symbol at its place, so that a first-order table knows where it is; the last one ends.
    let vocab = 8 * length + 1;
    let mut table = vec![0.0; vocab * vocab];
    for from in 0..vocab {
        let row = &mut table[from * vocab..(from + 1) * vocab];
        match if from == vocab - 1 { 0 } else { from / 8 + 1 } {
            0 => {
                row[..8].fill(0.99 / 8.0);
                row[vocab - 1] = 0.01;
            }
            place if place == length => row[vocab - 1] = 1.0,
            place => row[8 * place..8 * place + 8].fill(1.0 / 8.0),
        }
    }
    let end = [vocab as Token - 1];
    let mut model = TableModel::new(1, vocab, table)?;
    let found = mode(&mut model, &end, &end, &SearchLimits { tokens: length, prefixes: 1_000_000 }, None)?;
    let best = found.best.ok_or("no text has probability")?;
    Ok((best.log_prob.exp(), best.tokens.is_empty()))
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (letters, worlds): (usize, usize) = (options.get("letters")?, options.get("worlds")?);
    let (longest, samples): (usize, usize) = (options.get("longest")?, options.get("samples")?);
    let (widths, seed) = (options.list::<usize>("widths")?, options.get::<u64>("seed")?);
    if !(2..=12).contains(&letters) || !(1..=16).contains(&longest) || worlds == 0 || samples < 100 {
        return Err(
            "--letters from 2 to 12, --longest from 1 to 16, --worlds at least 1, --samples at least 100"
                .into(),
        );
    }
    if widths.is_empty() || widths.contains(&0) {
        return Err("--widths must be at least 1".into());
    }
    let (began, streams) = (Began::now(), Streams::new(seed));
    let mut run =
        Run::open(context.results(), CONDITIONAL_SEARCH.name, options, context.fresh(), context.is_quiet())?;
    run.expect(worlds as u64 + 5);
    let mut turned = Vec::new();
    for length in 1..=5 {
        turned.push(run.step(&format!("noise, {length} symbols"), || degenerate(length))?);
    }
    let mut all: Vec<World> = Vec::new();
    for world in 0..worlds {
        let streams = streams.fork(world as u64);
        all.push(
            run.step(&format!("world {world}"), || explore(letters, longest, &widths, samples, streams))?,
        );
    }
    let proven: Vec<&World> = all.iter().filter(|world| world.proven).collect();
    let gaps = |width: usize, length: usize, method: usize| -> Vec<f64> {
        proven.iter().map(|world| world.gaps[width][length - 1][method]).collect()
    };
    let mut header = vec!["length".to_owned()];
    for width in &widths {
        header.extend(METHODS.iter().map(|method| format!("width {width}: {method}")));
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table =
        Table::new("Log-probability below the mode of that length, in nats, mean over models", &header);
    let mut hits = Table::new("Share of models in which the mode was found", &header);
    let share =
        |gaps: &[f64]| gaps.iter().filter(|gap| **gap < 1e-6).count() as f64 / gaps.len().max(1) as f64;
    for length in 1..=longest {
        let cells = |value: &dyn Fn(&[f64]) -> f64| -> Vec<String> {
            let each = |width| (0..3).map(move |method| (width, method));
            let all = (0..widths.len()).flat_map(each);
            std::iter::once(length.to_string())
                .chain(all.map(|(width, method)| format!("{:.3}", value(&gaps(width, length, method)))))
                .collect()
        };
        table.row(cells(&mean));
        hits.row(cells(&share));
    }
    let mut noise = Table::new(
        format!(
            "The likeliest text with 1 % of empty noise; the mode is noise beyond {:.2} bits",
            threshold_bits(0.01, 1.0)
        ),
        &["symbols", "bits", "probability of the mode", "mode"],
    );
    for (length, (probability, empty)) in (1..).zip(&turned) {
        let name = if *empty { "empty" } else { "a text" };
        noise.row([length.to_string(), (3 * length).to_string(), format!("{probability:.5}"), name.into()]);
    }
    let last = widths.len() - 1;
    let over = |width: usize, method: usize, value: &dyn Fn(&[f64]) -> f64| {
        mean(&(1..=longest).map(|length| value(&gaps(width, length, method))).collect::<Vec<_>>())
    };
    // Pairs of a forced and a looking-ahead search of the same width, world and length.
    let (mut wins, mut ties, mut losses) = (0, 0, 0);
    for length in 1..=longest {
        for (forced, learned) in gaps(last, length, 0).into_iter().zip(gaps(last, length, 2)) {
            match forced - learned {
                d if d > 1e-6 => wins += 1,
                d if d < -1e-6 => losses += 1,
                _ => ties += 1,
            }
        }
    }
    let empties = all.iter().filter(|world| world.empty).count();
    let summary = format!(
        "At width {} the beam that forces the end is {:.3} nats below the exact mode in the mean, with an exact classifier {:.3}, with a learned one {:.3}; learned against forced: {wins} wins, {ties} ties, {losses} losses. At width {}: {:.3}, {:.3}, {:.3}. The likeliest text of all is empty in {empties} of {worlds} models.",
        widths[last],
        over(last, 0, &mean),
        over(last, 1, &mean),
        over(last, 2, &mean),
        widths[0],
        over(0, 0, &mean),
        over(0, 1, &mean),
        over(0, 2, &mean),
    );
    let series = |width: usize| -> Vec<Series> {
        METHODS
            .iter()
            .enumerate()
            .map(|(method, name)| Series {
                name: (*name).into(),
                points: (1..=longest)
                    .map(|length| Point {
                        x: length as f64,
                        y: mean(&gaps(width, length, method)),
                        interval: None,
                    })
                    .collect(),
            })
            .collect()
    };
    let plots = widths
        .iter()
        .enumerate()
        .map(|(at, width)| {
            page::lines(&format!("Below the mode, width {width}"), "length", "nats", series(at))
        })
        .collect();
    let rows = all.iter().map(|world| serde_json::json!({ "world": world })).collect();
    let notes = vec![
        format!("{worlds} random second-order models over {letters} letters and an end. Exact modes by branch and bound; {} of the models have all of theirs proven, and only those are counted.", proven.len()),
        format!("The learned classifier is a logistic head over the last two tokens, one-hot and without pairs, trained on prefixes of {samples} texts of the model itself."),
        "The method is reconstructed: no code of its authors could be read. A search that found no text of a length counts as 20 nats off.".into(),
    ];
    let page = Page {
        experiment: &CONDITIONAL_SEARCH,
        title: "Conditional search for modes".into(),
        summary,
        seeds: vec![seed],
        rows,
        tables: vec![table, hits, noise],
        plots,
        notes,
    };
    page.write(context, &run, began)
}
