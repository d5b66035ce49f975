//! `label`.

use std::path::PathBuf;

use anyhow::Result;
use pilotfish_pipeline::tables::Table;
use pilotfish_supervision::Votes;
use pilotfish_supervision::label_models::{CATALOGUE, Entry, Snorkel, find};
use pilotfish_supervision::labelling::{Outcome, Summary, check_output, fit_all, fit_one, write_labels};
use pilotfish_supervision::votes::{read, read_truth};

use crate::Usage;

/// The model that needs more than a name.
const METAL: &str = "metal";

/// Voters that the terminal shows.
const SHOWN: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Votes: csv, tsv, jsonl or parquet with columns question, worker, answer; or an npy matrix
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    votes: Option<PathBuf>,
    /// Known truths, with columns question, truth: the accuracy is then shown
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// A model, several with commas between, or `all`
    #[arg(long, default_value = "ds", value_name = "NAME")]
    model: String,
    /// Two voters that depend on each other beyond the truth; may be given several times, for the model `metal`
    #[arg(long, num_args = 2, value_names = ["VOTER", "VOTER"])]
    depends: Vec<String>,
    /// Write labels and probabilities there (csv, or jsonl by its ending); one model only
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List the models
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Some(path) = arguments.votes.as_ref().filter(|_| !arguments.list) else {
        let mut table = Table::new("Label models", &["name", "what it is"]);
        CATALOGUE.iter().for_each(|entry| table.row([entry.name, entry.about]));
        table.row([METAL, "Snorkel's model with dependencies: --depends VOTER VOTER, several times"]);
        println!("{}", table.terminal());
        return Ok(());
    };
    let metal = arguments.model.trim() == METAL;
    match (metal, arguments.depends.is_empty()) {
        (true, true) => {
            return Err(Usage("metal needs to know who depends on whom: --depends VOTER VOTER".into()).into());
        }
        (false, false) => return Err(Usage("--depends is for --model metal".into()).into()),
        _ => {}
    }
    let models = if metal { Vec::new() } else { models(&arguments.model)? };
    if let Some(out) = &arguments.out {
        if !metal && models.len() != 1 {
            return Err(Usage("--out takes the labels of one model; name it with --model".into()).into());
        }
        check_output(out).map_err(|error| Usage(format!("--out {error}")))?;
    }
    let votes = read(path)?.votes()?;
    let truth = arguments.truth.as_ref().map(|path| read_truth(path, &votes)).transpose()?;
    let outcomes = if metal {
        let dependencies = pairs(&arguments.depends, &votes)?;
        let model = Snorkel { dependencies, ..Snorkel::default() };
        vec![fit_one(&votes, truth.as_deref(), METAL, &model)]
    } else {
        fit_all(&votes, truth.as_deref(), &models)
    };
    if let (Some(path), [Outcome { fitted: Ok(fitted), .. }]) = (&arguments.out, &outcomes[..]) {
        write_labels(path, &votes, fitted)?;
    }
    let summaries: Vec<Summary> = outcomes.iter().map(|outcome| outcome.summary(&votes)).collect();
    if arguments.json {
        let known = truth.iter().flatten().filter(|class| class.is_some()).count();
        println!(
            "{}",
            serde_json::json!({
                "items": votes.items(), "voters": votes.voters(), "classes": votes.classes(),
                "votes": votes.len(), "known_truths": known, "models": summaries,
            })
        );
    } else {
        let (n, m) = (votes.items(), votes.voters());
        let title = format!("{} votes of {m} voters on {n} items, {} classes", votes.len(), votes.classes());
        println!("{}", table(title, &summaries).terminal());
        if let [only] = &summaries[..] {
            detail(only);
        }
    }
    match &outcomes[..] {
        [Outcome { fitted: Err(why), .. }] => Err(anyhow::anyhow!("{why}")),
        _ => Ok(()),
    }
}

/// Pairs of voters by their names.
fn pairs(names: &[String], votes: &Votes) -> Result<Vec<(usize, usize)>> {
    let index = votes.voter_names().index();
    let place = |name: &String| {
        let found = index.get(name.as_str()).copied();
        found.ok_or_else(|| anyhow::Error::from(Usage(format!("--depends: no voter is called {name:?}"))))
    };
    names.chunks(2).map(|pair| Ok((place(&pair[0])?, place(&pair[1])?))).collect()
}

fn models(words: &str) -> Result<Vec<&'static Entry>> {
    let mut chosen: Vec<&'static Entry> = Vec::new();
    for name in words.split(',').map(str::trim) {
        let found: Vec<&Entry> = match name {
            "all" => CATALOGUE.iter().filter(|entry| entry.main).collect(),
            name => find(name).into_iter().collect(),
        };
        if found.is_empty() {
            let names = CATALOGUE.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
            let why = format!("no label model called {name:?}; there are: {names}, {METAL}, all");
            return Err(Usage(why).into());
        }
        for entry in found {
            // `all,ds` asks for one of them twice.
            if !chosen.iter().any(|other| other.name == entry.name) {
                chosen.push(entry);
            }
        }
    }
    Ok(chosen)
}

fn table(title: String, summaries: &[Summary]) -> Table {
    let mut table = Table::new(title, &["model", "accuracy", "steps", "converged", "ties", "seconds"]);
    let cell = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for found in summaries {
        let verdict = match (&found.error, found.converged) {
            (Some(error), _) => error.clone(),
            (None, Some(false)) => "no".into(),
            _ => "yes".into(),
        };
        table.row([
            found.model.into(),
            cell(found.accuracy.map(|value| format!("{value:.4}"))),
            cell(found.iterations.map(|steps| steps.to_string())),
            verdict,
            cell(found.ties.map(|ties| ties.to_string())),
            format!("{:.2}", found.seconds),
        ]);
    }
    table
}

/// Class balance, voters and warnings of one model.
fn detail(found: &Summary) {
    let prior: Vec<String> = found.prior.iter().map(|(class, p)| format!("{class} {p:.3}")).collect();
    if !prior.is_empty() {
        println!("\nclass balance: {}", prior.join(", "));
    }
    if !found.voters.is_empty() {
        let mut voters: Vec<_> = found.voters.iter().collect();
        voters.sort_by_key(|voter| std::cmp::Reverse(voter.votes));
        let title = match voters.len() > SHOWN {
            true => format!("\nThe {SHOWN} of {} voters with the most votes (--json: all)", voters.len()),
            false => "\nVoters".to_owned(),
        };
        let mut table = Table::new(title, &["voter", "votes", "accuracy", "95 % interval", "skill"]);
        for voter in voters.into_iter().take(SHOWN) {
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
            let interval = voter.accuracy.map_or("-".into(), |a| format!("{:.3} to {:.3}", a.low, a.high));
            table.row([
                voter.name.clone(),
                voter.votes.to_string(),
                number(voter.accuracy.map(|a| a.value)),
                interval,
                number(voter.skill),
            ]);
        }
        println!("{}", table.terminal());
    }
    for warning in found.warnings.iter().take(SHOWN) {
        println!("note: {warning}");
    }
    if found.warnings.len() > SHOWN {
        println!("note: and {} more (--json: all)", found.warnings.len() - SHOWN);
    }
}
