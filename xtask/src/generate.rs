//! `generate`.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use pilotfish_architectures::Checkpoint;
use pilotfish_pipeline::generate::{Form, METHODS, Request, generate};
use pilotfish_pipeline::models;
use pilotfish_pipeline::setup::Setup;
use pilotfish_runtime::LoadOptions;
use pilotfish_runtime::home::Home;

use crate::{Usage, setup};

/// Texts that are listed when particles end differently.
const SHOWN: usize = 5;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A model's name, or the path of a checkpoint
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// What the user says
    #[arg(long)]
    prompt: String,
    /// Continue the prompt as it stands, without the chat template
    #[arg(long)]
    raw: bool,
    /// A JSON schema that the text must satisfy
    #[arg(long, value_name = "FILE", group = "form")]
    schema: Option<PathBuf>,
    /// A regular expression that the whole text must match
    #[arg(long, value_name = "EXPRESSION", group = "form")]
    regex: Option<String>,
    /// A Lark grammar that the text must follow
    #[arg(long, value_name = "FILE", group = "form")]
    grammar: Option<PathBuf>,
    /// How the text is found; `list` lists the methods. Without a form it is `base`
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
    /// Texts that are followed at once [the method's own number]
    #[arg(long)]
    particles: Option<usize>,
    /// Temperature
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// New tokens at most
    #[arg(long, default_value_t = 100)]
    tokens: usize,
    /// Seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How matrices are stored: f32, int8 or int4
    #[arg(long, default_value = "f32")]
    storage: String,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Print nothing but the text
    #[arg(long)]
    quiet: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.method.as_deref() == Some("list") {
        METHODS.iter().for_each(|(name, about)| println!("{name:<14} {about}"));
        return Ok(());
    }
    let form = match (&arguments.schema, &arguments.regex, &arguments.grammar) {
        (Some(path), _, _) => Form::Schema(path.clone()),
        (_, Some(expression), _) => Form::Regex(expression.clone()),
        (_, _, Some(path)) => Form::Grammar(path.clone()),
        _ => Form::Free,
    };
    let usual = if form == Form::Free { "base" } else { "awrs-smc" };
    let request = Request {
        prompt: arguments.prompt.clone(),
        raw: arguments.raw,
        form,
        method: arguments.method.clone().unwrap_or_else(|| usual.into()),
        particles: arguments.particles,
        temperature: arguments.temperature,
        tokens: arguments.tokens,
        seed: arguments.seed,
    };
    if request.prompt.is_empty() {
        return Err(Usage("--prompt is empty: there is nothing to continue".into()).into());
    }
    let storage = models::storage(&arguments.storage)?;
    let home = Home::locate()?;
    let setup = Setup::new(home.clone());
    setup.library(false, setup::load)?;
    let path = match Path::new(&arguments.model) {
        path if path.exists() => path.to_owned(),
        _ => setup.fetch(models::find(&arguments.model)?, false)?.path,
    };
    let load = LoadOptions::default().storage(storage).threads(arguments.threads);
    let found = generate(&Checkpoint::open(path)?, &load, &request, |text| {
        let mut out = std::io::stdout();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })
    .map_err(|error| anyhow!(error))?;
    println!();
    if found.text.is_none() {
        let text = "no particle was left; another --seed, more --particles or --tokens, or --method masked-smc may find a text";
        return Err(anyhow!(text));
    }
    if arguments.quiet {
        return Ok(());
    }
    if found.texts.len() > 1 {
        eprintln!("posterior:");
        found.texts.iter().take(SHOWN).for_each(|(text, weight)| eprintln!("  {weight:.3} {text:?}"));
    }
    let ledger = &found.ledger;
    let evidence = found.log_evidence.map_or(String::new(), |log| format!(", log evidence {log:.2}"));
    eprintln!(
        "{}: {} tokens in {:.1} s, {} model steps of {} rows in all, {} constraint calls{evidence}",
        request.method,
        ledger.emitted,
        found.seconds,
        ledger.target_forwards,
        ledger.target_rows,
        ledger.constraint_calls,
    );
    Ok(())
}
