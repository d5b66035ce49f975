//! `pairs`.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use pilotfish_supervision::labelling::check_output;
use pilotfish_supervision::pairing::{Generation, Rule, pair, read};
use pilotfish_supervision::preferences::{Form, save};
use pilotfish_supervision::reasoning::{Gates, Key};

use crate::Usage;

#[derive(Clone, Copy, ValueEnum)]
enum RuleName {
    /// The first file's answer is the better one, whatever it says
    Delta,
    /// A coin says which file's: the control that must teach nothing
    Tied,
    /// Weak answers (first file) judged by the majority of samples (second file)
    Contrastive,
    /// The highest "score" of a prompt against the lowest
    Score,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormName {
    /// TRL: prompt, chosen, rejected as texts
    Standard,
    /// TRL: lists of messages
    Conversational,
    /// OpenAI's preference format
    Openai,
    /// LLaMA-Factory's ranking
    LlamaFactory,
    /// HH: whole dialogues
    Hh,
}

#[derive(Clone, Copy, ValueEnum)]
enum AnswerName {
    /// What follows `####`
    Hashes,
    /// What follows `The answer is:`
    AnswerIs,
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Generations as JSON lines: prompt (a text or messages), response, and if known model, group, score
    #[arg(long = "in", value_name = "FILE", required = true)]
    input: Vec<PathBuf>,
    /// Which side is the better one
    #[arg(long, value_enum)]
    rule: RuleName,
    /// Where the pairs go
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Their form
    #[arg(long, value_enum, default_value = "standard")]
    form: FormName,
    /// contrastive: how a response gives its answer
    #[arg(long, value_enum, default_value = "hashes")]
    answer: AnswerName,
    /// contrastive: tenths of the samples that a majority needs
    #[arg(long, default_value_t = Gates::default().majority, value_name = "TENTHS")]
    majority: usize,
    /// contrastive: tenths that it needs to call a weak answer wrong
    #[arg(long, default_value_t = Gates::default().rejection, value_name = "TENTHS")]
    rejection: usize,
    /// contrastive: pairs a prompt at most
    #[arg(long, default_value_t = Gates::default().pairs)]
    most: usize,
    /// score: the least difference
    #[arg(long, default_value_t = 0.0)]
    margin: f64,
    /// Seed of coins and of samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let rule = match arguments.rule {
        RuleName::Delta => Rule::Delta,
        RuleName::Tied => Rule::Tied,
        RuleName::Contrastive => Rule::Contrastive {
            key: match arguments.answer {
                AnswerName::Hashes => Key::Hashes,
                AnswerName::AnswerIs => Key::AnswerIs,
            },
            gates: Gates {
                majority: arguments.majority,
                rejection: arguments.rejection,
                pairs: arguments.most,
            },
        },
        RuleName::Score => Rule::Score { margin: arguments.margin },
    };
    let given = arguments.input.len();
    if rule.files().is_some_and(|files| files != given) {
        return Err(
            Usage(format!("this rule reads two files: --in FILE --in FILE; there are {given}")).into()
        );
    }
    if let Some(path) = arguments.input.iter().find(|path| **path == arguments.out) {
        return Err(Usage(format!("--out {} would replace what is read", path.display())).into());
    }
    check_output(&arguments.out).map_err(|error| Usage(format!("--out {error}")))?;
    let mut files: Vec<Vec<Generation>> = Vec::new();
    for path in &arguments.input {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        files.push(read(BufReader::new(file), &name)?);
    }
    let (pairs, tally) = pair(&files, &rule, arguments.seed)?;
    let form = match arguments.form {
        FormName::Standard => Form::Standard,
        FormName::Conversational => Form::Conversational,
        FormName::Openai => Form::OpenAi,
        FormName::LlamaFactory => Form::LlamaFactory,
        FormName::Hh => Form::Dialogue,
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&tally)?);
    } else {
        println!("{} pairs of {} prompts", tally.pairs, tally.prompts);
        let rest = [
            ("answers without another side", tally.unmatched),
            ("pairs of equal or empty texts", tally.empty),
            ("prompts with no score, or scores too close", tally.close),
            ("prompts without a sure majority", tally.unsure),
            ("prompts on which all samples agree with the weak answer", tally.easy),
        ];
        rest.iter()
            .filter(|(_, count)| *count > 0)
            .for_each(|(what, count)| println!("left out: {count} {what}"));
        if tally.pairs > 0 {
            let share = 100.0 * tally.longer as f64 / tally.pairs as f64;
            println!("the better side is the longer one in {share:.0} % of the pairs");
        }
    }
    if pairs.is_empty() {
        anyhow::bail!("no pairs: nothing was written");
    }
    Ok(save(&arguments.out, form, &pairs)?)
}
