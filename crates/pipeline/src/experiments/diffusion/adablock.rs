//! AdaBlock on texts of lines: blocks that end where lines do, against fixed ones.

use pilotfish_diffusion::ideal::{Ideal, Law};
use pilotfish_diffusion::policy::Threshold;
use pilotfish_diffusion::{AdaBlock, Blocks, Diffusion, DiffusionConfig, Fixed, Generation};
use pilotfish_model::{Streams, Token};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{Cell, TIES};
use crate::error::Failure;
use crate::experiments::page::{Began, Page};
use crate::experiments::{Choice, Context, Experiment, Outcome};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const ADABLOCK: Experiment = Experiment {
    name: "adablock",
    about: "blocks that end where lines do against fixed ones, on exact models of texts of lines",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "runs", default: "500", about: "texts" },
        Choice { name: "length", default: "32", about: "positions of a text" },
        Choice { name: "tau", default: "0.9", about: "threshold of the policy within blocks" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

const LETTERS: Token = 26;
const NEWLINE: Token = 26;
const END: Token = 27;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Row {
    blocks: String,
    cell: Cell,
    /// Blocks, all texts together.
    blocks_used: usize,
    /// Blocks whose last position holds a newline in the text.
    on_lines: usize,
    /// Steps.
    steps: usize,
    /// Steps at which a mask outside the block was as sure as the threshold, and right.
    late: usize,
    /// Steps that forced a token which is not that of decoding without blocks.
    premature: usize,
}

/// A text's law: the first line is a list with one item replaced at random, and each later line is the line before
/// reversed, or sorted, or copied; ends of text fill the rest. Lines differ in length because each drops its last item
/// or does not.
fn law(length: usize, streams: Streams) -> Law {
    let mut rng = streams.stream("text");
    let items = rng.random_range(3..=6usize);
    let lines = rng.random_range(2..=4usize);
    let mut letters: Vec<Token> = (0..LETTERS).collect();
    letters.shuffle(&mut rng);
    let (list, new) = (letters[..items].to_vec(), letters[items]);
    let rules: Vec<(u8, bool)> = (1..lines).map(|_| (rng.random_range(0..3u8), rng.random())).collect();
    let text = |at: usize| {
        let mut line = list.clone();
        line[at] = new;
        let mut text = line.clone();
        for &(rule, shorter) in &rules {
            text.push(NEWLINE);
            match rule {
                0 => line.reverse(),
                1 => line.sort_unstable(),
                _ => {}
            }
            if shorter && line.len() > 2 {
                line.pop();
            }
            text.extend(&line);
        }
        text.resize(length, END);
        text.truncate(length);
        text
    };
    Law::OneOf((0..items).map(text).collect())
}

/// Ways to cut blocks.
fn ways() -> Vec<(String, Blocks)> {
    let mut ways = vec![("one block".to_owned(), Blocks::Whole)];
    for length in [4, 8, 16] {
        ways.push((format!("fixed {length}"), Blocks::Fixed(length)));
        for threshold in [0.3, 0.5] {
            let rule = AdaBlock {
                threshold,
                default_length: length,
                delimiters: vec![NEWLINE],
                ..AdaBlock::default()
            };
            ways.push((format!("AdaBlock {length}, delimiter {threshold}"), Blocks::Adaptive(rule)));
        }
    }
    ways
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (runs, length, seed): (usize, usize, u64) =
        (options.get("runs")?, options.get("length")?, options.get("seed")?);
    let threshold = Threshold { gamma: options.get("tau")? };
    threshold.check()?;
    if runs == 0 || !(27..=512).contains(&length) {
        return Err("--runs must be at least 1, --length from 27 (four lines of six) to 512".into());
    }
    let began = Began::now();
    let mut run = Run::open(context.results(), ADABLOCK.name, options, context.fresh(), context.is_quiet())?;
    let ways = ways();
    run.expect(ways.len() as u64);
    let mut rows: Vec<Row> = Vec::new();
    for (name, blocks) in ways {
        rows.push(run.step(&name, || play(&name, &blocks, threshold, runs, length, seed))?);
    }
    let mut table = Table::new(
        format!("Texts of {length} positions, threshold {} within blocks", threshold.gamma),
        &[
            "blocks",
            "right",
            "passes",
            "blocks a text",
            "mean length",
            "ends on a line",
            "late steps",
            "premature steps",
        ],
    );
    let share = |part: usize, of: usize| format!("{:.3}", part as f64 / of.max(1) as f64);
    for row in &rows {
        table.row([
            row.blocks.clone(),
            format!("{:.3}", row.cell.accuracy()),
            format!("{:.2}", row.cell.mean_forwards()),
            format!("{:.2}", row.blocks_used as f64 / row.cell.runs as f64),
            format!("{:.1}", (row.cell.runs * length) as f64 / row.blocks_used.max(1) as f64),
            share(row.on_lines, row.blocks_used),
            share(row.late, row.steps),
            share(row.premature, row.steps),
        ]);
    }
    let find = |name: &str| rows.iter().find(|row| row.blocks == name).cloned().unwrap_or_default();
    let (fixed, adaptive) = (find("fixed 8"), find("AdaBlock 8, delimiter 0.3"));
    let summary = format!(
        "With blocks of 8: fixed {:.3} right in {:.2} passes, {:.3} of steps late; AdaBlock {:.3} in {:.2}, {:.3} late. Its \
         blocks end on a line in {:.2} of cases, fixed ones in {:.2}.",
        fixed.cell.accuracy(),
        fixed.cell.mean_forwards(),
        fixed.late as f64 / fixed.steps.max(1) as f64,
        adaptive.cell.accuracy(),
        adaptive.cell.mean_forwards(),
        adaptive.late as f64 / adaptive.steps.max(1) as f64,
        adaptive.on_lines as f64 / adaptive.blocks_used.max(1) as f64,
        fixed.on_lines as f64 / fixed.blocks_used.max(1) as f64,
    );
    let notes = vec![
        "Texts: a list with one item replaced at random, then lines that each follow from the one before, two to four lines of two to six letters, filled up with ends of text. The model knows this law.".into(),
        "An exact model is sure of every newline from the first pass, and of whatever does not depend on the random choice; a trained model's boundaries are less certain than this.".into(),
        "Late: a mask outside the block is as sure as the threshold and predicts the text's own token. Premature: a forced token other than that of decoding the text as one block, one token a pass.".into(),
    ];
    let json = rows.iter().map(|row| serde_json::to_value(row).unwrap_or_default()).collect();
    let page = Page {
        experiment: &ADABLOCK,
        title: "AdaBlock: blocks that end where lines do".into(),
        summary,
        seeds: vec![seed],
        rows: json,
        tables: vec![table],
        plots: Vec::new(),
        notes,
    };
    page.write(context, &run, began)
}

fn play(
    name: &str,
    blocks: &Blocks,
    threshold: Threshold,
    runs: usize,
    length: usize,
    seed: u64,
) -> Result<Row, Failure> {
    let mut row = Row { blocks: name.into(), ..Row::default() };
    for index in 0..runs as u64 {
        let streams = Streams::new(seed).fork(index);
        let law = law(length, streams);
        let Law::OneOf(texts) = law.clone() else { continue };
        let mut model = Ideal::new(law, END as usize + 1)?.with_noise(TIES, streams.seed())?;
        let canvas = model.canvas();
        let reference: Generation = Diffusion::new(&mut model, DiffusionConfig::default())?
            .generate(&canvas, &mut Fixed::default())?;
        let config = DiffusionConfig { blocks: blocks.clone(), wide: true, ..DiffusionConfig::default() };
        let mut outside: Vec<Vec<(usize, Token)>> = Vec::new();
        let text = Diffusion::new(&mut model, config)?.generate_observed(
            &canvas,
            &mut { threshold },
            &mut |view, _, _| {
                let sure = view.all.iter().filter(|p| p.position >= view.block.end);
                let sure = sure.filter(|p| p.confidence >= threshold.gamma);
                outside.push(sure.map(|p| (p.position, p.token)).collect());
            },
        )?;
        row.cell.add(texts.contains(&text.tokens), text.forwards(), text.ledger.emitted);
        row.blocks_used += text.blocks.len();
        row.on_lines += text.blocks.iter().filter(|block| text.tokens[block.end - 1] == NEWLINE).count();
        row.steps += text.steps.len();
        let right = |(position, token): &(usize, Token)| text.tokens[*position] == *token;
        row.late += outside.iter().filter(|sure| sure.iter().any(right)).count();
        row.premature += text
            .steps
            .iter()
            .filter(|step| {
                step.commits.iter().any(|c| !c.accepted && reference.tokens[c.position] != c.token)
            })
            .count();
    }
    Ok(row)
}
