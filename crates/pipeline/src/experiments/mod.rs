//! Experiments by name.
//!
//! An experiment is one file with one constant of type [`Experiment`], listed in [`ALL`]. It declares the
//! options it reads, the models it needs and whether it needs ONNX Runtime; what it declares is parsed, checked
//! and fetched before it runs.

mod aded_adaptivity;
mod autows;
mod awrs_exactness;
mod beyond_accuracy;
mod cache_layout;
mod conditional_search;
mod constrained;
mod debate;
mod deception;
mod delta_learning;
mod diffusion;
mod dyspec_temperature;
mod features;
mod gate;
mod hidden_state;
mod judging;
mod kernels;
mod label_models;
mod label_scale;
mod meta_ranking;
mod methods;
mod newsgroups;
mod options;
mod page;
mod probe;
mod prune;
mod quickstart;
mod reasoning;
mod recorded;
mod rsd_budget;
mod session;
mod sparse_speed;
mod sparsing_law;
mod sparsing_training;
mod specdec_threshold;
mod speculative;
mod superposed;
mod swift_search;
mod tasks;
mod tiny;
mod token_recycling_warmup;
mod toys;
mod w2s;
mod weaver;
pub mod width_cost;

use std::path::{Path, PathBuf};

use pilotfish_runtime::home::Home;

pub use options::{Choice, OptionError, Options};

use crate::models;
use crate::setup::{Setup, SetupError};

/// Every experiment, in the order listed to users.
pub const ALL: &[&Experiment] = &[
    &quickstart::QUICKSTART,
    &speculative::SPECULATIVE,
    &width_cost::WIDTH_COST,
    &cache_layout::CACHE_LAYOUT,
    &kernels::KERNELS,
    &aded_adaptivity::ADED_ADAPTIVITY,
    &token_recycling_warmup::TOKEN_RECYCLING_WARMUP,
    &dyspec_temperature::DYSPEC_TEMPERATURE,
    &rsd_budget::RSD_BUDGET,
    &specdec_threshold::SPECDEC_THRESHOLD,
    &swift_search::SWIFT_SEARCH,
    &label_models::LABEL_MODELS,
    &label_scale::LABEL_SCALE,
    &weaver::WEAVER,
    &meta_ranking::META_RANKING,
    &w2s::W2S,
    &reasoning::W2S_REASONING,
    &reasoning::W2S_LABELLERS,
    &deception::W2S_DECEPTION,
    &debate::W2S_DEBATE,
    &debate::W2S_DEBATE_TEXT,
    &beyond_accuracy::BEYOND_ACCURACY,
    &delta_learning::DELTA_LEARNING,
    &prune::PRUNE,
    &gate::GATE,
    &sparsing_law::SPARSING_LAW,
    &sparsing_training::SPARSING_TRAINING,
    &sparse_speed::SPARSE_SPEED,
    &awrs_exactness::AWRS_EXACTNESS,
    &constrained::CONSTRAINED,
    &conditional_search::CONDITIONAL_SEARCH,
    &superposed::SUPERPOSED,
    &hidden_state::HIDDEN_STATE,
    &autows::AUTOWS,
    &diffusion::DIFFUSION_TRAIN,
    &diffusion::DLLM_POLICIES,
    &diffusion::PARALLELBENCH,
    &diffusion::PARALLELBENCH_AR,
    &diffusion::FREEDAVE,
    &diffusion::LEARN2PD,
    &diffusion::ADABLOCK,
    &diffusion::DIFFUSION_TEXT,
];

/// Options that every experiment has.
pub const COMMON: &[Choice] = &[
    Choice { name: "fresh", default: "false", about: "run every step again instead of resuming" },
    Choice { name: "results", default: "", about: "folder for result files (the workspace's `results`)" },
];

/// What an experiment's function returns: anything can go wrong in an experiment, so the error is open.
pub type Outcome = Result<Finished, Box<dyn std::error::Error + Send + Sync>>;

/// An experiment.
#[derive(Clone, Copy, Debug)]
pub struct Experiment {
    /// Name on the command line and of its results folder.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Names of the models and data sets it needs ([`models::CATALOGUE`]).
    pub needs: &'static [&'static str],
    /// Whether it needs the ONNX Runtime library.
    pub library: bool,
    /// The options it reads, besides [`COMMON`].
    pub options: &'static [Choice],
    /// Runs it.
    pub run: fn(&Context) -> Outcome,
}

/// Where a finished experiment left things.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Its result file.
    pub result: Option<PathBuf>,
    /// Its report.
    pub report: Option<PathBuf>,
}

/// Bytes of a thread's stack, as a program's first thread has them.
const STACK: usize = 8 << 20;

/// What an experiment runs in.
#[derive(Clone, Debug)]
pub struct Context {
    home: Home,
    results: PathBuf,
    options: Options,
    quiet: bool,
}

/// What goes wrong before an experiment runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// A name that is not in the list.
    #[error(
        "no experiment called {name:?}{}; there are: {}",
        near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default(),
        if known.is_empty() { "(none yet)".into() } else { known.join(", ") }
    )]
    Unknown {
        /// The name given.
        name: String,
        /// The nearest name in the list.
        near: Option<&'static str>,
        /// All names.
        known: Vec<&'static str>,
    },
    /// An option that is wrong.
    #[error("experiment {experiment}: {source}")]
    Option {
        /// The experiment.
        experiment: &'static str,
        /// What is wrong.
        source: OptionError,
    },
    /// Something it needs cannot be had.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

impl ExperimentError {
    /// Whether the command line was wrong, rather than the world.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Option { .. })
    }
}

/// The experiment of a name.
///
/// # Errors
/// No such experiment; the error lists the names there are and the nearest one.
pub fn find(name: &str) -> Result<&'static Experiment, ExperimentError> {
    find_in(ALL, name)
}

fn find_in(all: &[&'static Experiment], name: &str) -> Result<&'static Experiment, ExperimentError> {
    all.iter().find(|experiment| experiment.name == name).copied().ok_or_else(|| {
        let known: Vec<_> = all.iter().map(|experiment| experiment.name).collect();
        ExperimentError::Unknown { name: name.into(), near: crate::near(name, known.iter().copied()), known }
    })
}

impl Experiment {
    /// Reads the words after an experiment's name.
    ///
    /// # Errors
    /// An unknown option, one without its value, or one given twice.
    pub fn parse<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<Options, ExperimentError> {
        Options::parse(&[self.options, COMMON], words)
            .map_err(|source| ExperimentError::Option { experiment: self.name, source })
    }

    /// Fetches what it needs. `verify` loads a library that is new.
    ///
    /// # Errors
    /// As [`Setup::library`] and [`Setup::fetch`].
    pub fn prepare(
        &self,
        setup: &Setup,
        verify: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<(), ExperimentError> {
        if self.library {
            setup.library(false, verify)?;
        }
        for name in self.needs {
            setup.fetch(models::find(name)?, false)?;
        }
        Ok(())
    }

    /// Runs it. What trains or fits here has as many threads as its option `threads` says, and else one: matrices of small
    /// networks are shared among threads that wait for each other, and where another program has one of the
    /// processors, a step of training takes many times as long on two threads as on one.
    ///
    /// # Errors
    /// The experiment's; threads that cannot be made.
    pub fn start(&self, context: &Context) -> Outcome {
        let asked = context.options.list::<usize>("threads").unwrap_or_default();
        let threads = asked.into_iter().max().unwrap_or(1).clamp(1, 256);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build()?;
        pool.install(|| (self.run)(context))
    }

    /// Its options, for people.
    pub fn usage(&self) -> String {
        let mut text = format!("{}: {}\n\noptions:\n", self.name, self.about);
        for choice in self.options.iter().chain(COMMON) {
            let default = match choice.default {
                "" => String::new(),
                default => format!(" [{default}]"),
            };
            text.push_str(&format!("  --{:<16} {}{default}\n", choice.name, choice.about));
        }
        text
    }
}

impl Context {
    /// A context with results below `results`, unless the options name another folder.
    pub fn new(home: Home, results: impl Into<PathBuf>, options: Options) -> Self {
        let results = match options.text("results") {
            Ok("") | Err(_) => results.into(),
            Ok(folder) => folder.into(),
        };
        Self { home, results, options, quiet: false }
    }

    /// The same without progress on the terminal.
    pub fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// Whether nothing is to be shown on the terminal.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Shows a text on standard output, unless the context is quiet.
    pub fn show(&self, text: &str) {
        use std::io::Write;
        if !self.quiet {
            // A closed pipe is no reason to lose a result.
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// Where libraries, models and data sets lie.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The folder of all results.
    pub fn results(&self) -> &Path {
        &self.results
    }

    /// Whether steps that were finished before are run again.
    pub fn fresh(&self) -> bool {
        self.options.get("fresh").unwrap_or(false)
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The file or folder of a model or data set that the experiment needs.
    ///
    /// # Errors
    /// It is not in the catalogue, or was not fetched.
    pub fn model(&self, name: &str) -> Result<PathBuf, SetupError> {
        let entry = models::find(name)?;
        match entry.kind {
            models::Kind::Model => self.home.model(name)?,
            models::Kind::Data => self.home.data(name)?,
        };
        Ok(entry.path(&self.home))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static TOY: Experiment = Experiment {
        name: "quickstart",
        about: "a toy",
        needs: &[],
        library: false,
        options: &[Choice { name: "prompts", default: "24", about: "number of prompts" }],
        run: |context| {
            let prompts: usize = context.options().get("prompts")?;
            if prompts == 0 { Err("no prompts".into()) } else { Ok(Finished::default()) }
        },
    };

    fn run(words: &[&str]) -> Outcome {
        let options = TOY.parse(words.iter().copied())?;
        TOY.start(&Context::new(Home::at("/nowhere"), "results", options))
    }

    #[test]
    fn a_wrong_name_lists_the_right_ones() {
        let error = find_in(&[&TOY], "quikstart").unwrap_err();
        assert!(error.is_usage());
        let text = error.to_string();
        assert!(
            text.contains("did you mean quickstart?") && text.contains("there are: quickstart"),
            "{text}"
        );
        assert!(find_in(&[&TOY], "quickstart").is_ok());
    }

    #[test]
    fn every_experiment_needs_things_that_exist() {
        let mut names = std::collections::HashSet::new();
        for experiment in ALL {
            assert!(names.insert(experiment.name), "{} is there twice", experiment.name);
            for name in experiment.needs {
                models::find(name).unwrap();
            }
            let mut options = std::collections::HashSet::new();
            for choice in experiment.options.iter().chain(COMMON) {
                assert!(options.insert(choice.name), "{}: --{} twice", experiment.name, choice.name);
            }
        }
    }

    #[test]
    fn options_reach_the_experiment() {
        assert!(run(&[]).is_ok());
        assert_eq!(run(&["--prompts", "0"]).unwrap_err().to_string(), "no prompts");
        let error = run(&["--prompts", "many"]).unwrap_err().to_string();
        assert!(error.contains("--prompts") && error.contains("many"), "{error}");
        let error = run(&["--prompt", "3"]).unwrap_err().to_string();
        assert!(error.contains("did you mean --prompts?") && error.contains("--fresh"), "{error}");
    }

    #[test]
    fn the_results_folder_can_be_named() {
        let context = |words: &[&str]| {
            Context::new(Home::at("/p"), "/work/results", TOY.parse(words.iter().copied()).unwrap())
        };
        assert_eq!(context(&[]).results(), Path::new("/work/results"));
        assert!(!context(&[]).fresh());
        assert_eq!(context(&["--results=/r", "--fresh"]).results(), Path::new("/r"));
        assert!(context(&["--fresh"]).fresh());
        let error = context(&[]).model("smollm2-135m").unwrap_err().to_string();
        assert!(error.contains("cargo xtask models fetch smollm2-135m"), "{error}");
    }

    #[test]
    fn usage_names_every_option() {
        let usage = TOY.usage();
        assert!(
            usage.contains("--prompts") && usage.contains("[24]") && usage.contains("--fresh"),
            "{usage}"
        );
    }
}
