//! Votes in, labels out: what a command line needs of the label models.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::label_models::{Convergence, Entry, Estimate, Fitted, LabelModel};
use crate::{Result, SupervisionError, Votes};

/// What one model made of votes.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Name of the model.
    pub name: &'static str,
    /// The fit, or why there is none.
    pub fitted: std::result::Result<Fitted, String>,
    /// Share of right labels among the items with a known truth.
    pub accuracy: Option<f64>,
    /// Wall time of the fit, seconds.
    pub seconds: f64,
}

/// Fits models one after the other; a model that is not for these votes says so in its outcome.
pub fn fit_all(votes: &Votes, truth: Option<&[Option<usize>]>, models: &[&Entry]) -> Vec<Outcome> {
    models.iter().map(|entry| fit_one(votes, truth, entry.name, &*entry.model())).collect()
}

/// Fits one model under a name.
pub fn fit_one(
    votes: &Votes,
    truth: Option<&[Option<usize>]>,
    name: &'static str,
    model: &dyn LabelModel,
) -> Outcome {
    let start = Instant::now();
    let fitted = model.fit(votes).map_err(|error| error.to_string());
    let seconds = start.elapsed().as_secs_f64();
    let accuracy = match (&fitted, truth) {
        (Ok(fitted), Some(truth)) => fitted.posterior.accuracy(truth),
        _ => None,
    };
    Outcome { name, fitted, accuracy, seconds }
}

/// An outcome as a machine reads it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Name of the model.
    pub model: &'static str,
    /// Why there is no fit.
    pub error: Option<String>,
    /// Share of right labels among the items with a known truth.
    pub accuracy: Option<f64>,
    /// Whether the fit converged.
    pub converged: Option<bool>,
    /// Steps taken.
    pub iterations: Option<usize>,
    /// The last value of the objective.
    pub objective: Option<f64>,
    /// Items with several equally probable classes.
    pub ties: Option<usize>,
    /// Wall time of the fit, seconds.
    pub seconds: f64,
    /// Class balance, by class name.
    pub prior: Vec<(String, f64)>,
    /// What to be careful about.
    pub warnings: Vec<String>,
    /// Every voter.
    pub voters: Vec<Voter>,
}

/// A voter as a machine reads it.
#[derive(Clone, Debug, Serialize)]
pub struct Voter {
    /// Its name.
    pub name: String,
    /// Votes that are not abstentions.
    pub votes: u64,
    /// Probability that a vote is right, with its 95 % credible interval.
    pub accuracy: Option<Estimate>,
    /// The model's own measure.
    pub skill: Option<f64>,
}

impl Outcome {
    /// The outcome with names instead of numbers.
    pub fn summary(&self, votes: &Votes) -> Summary {
        let fitted = self.fitted.as_ref().ok();
        let iterations = fitted.and_then(|fitted| match fitted.convergence {
            Convergence::Converged { iterations } | Convergence::NotConverged { iterations, .. } => {
                Some(iterations)
            }
            _ => None,
        });
        let voter = |(index, quality): (usize, &crate::label_models::VoterQuality)| Voter {
            name: votes.voter_names().get(index).into(),
            votes: quality.votes,
            accuracy: quality.accuracy,
            skill: quality.skill,
        };
        Summary {
            model: self.name,
            error: self.fitted.as_ref().err().cloned(),
            accuracy: self.accuracy,
            converged: fitted.map(|fitted| fitted.convergence.is_converged()),
            iterations,
            objective: fitted.and_then(|fitted| fitted.objective.last().copied()),
            ties: fitted.map(|f| (0..f.posterior.items()).filter(|item| f.posterior.tied(*item)).count()),
            seconds: self.seconds,
            prior: fitted
                .iter()
                .flat_map(|fitted| fitted.prior.iter().enumerate())
                .map(|(class, p)| (votes.class_names().get(class).into_owned(), *p))
                .collect(),
            warnings: fitted
                .iter()
                .flat_map(|fitted| fitted.warnings.iter().map(|warning| warning.describe(votes)))
                .collect(),
            voters: fitted.iter().flat_map(|fitted| fitted.voters.iter().enumerate()).map(voter).collect(),
        }
    }
}

/// Whether labels can be written to a path, before anything is fitted: its folder exists and it is no folder itself.
///
/// # Errors
/// What is in the way.
pub fn check_output(path: &Path) -> Result<()> {
    let refuse = |kind, why: String| {
        let source = std::io::Error::new(kind, why);
        Err(SupervisionError::Io { path: path.display().to_string(), source })
    };
    if path.is_dir() || path.file_name().is_none() {
        let why = "is a folder; name a file in it, such as labels.csv".to_owned();
        return refuse(std::io::ErrorKind::IsADirectory, why);
    }
    match folder(path) {
        folder if folder.is_dir() => Ok(()),
        folder => {
            let why = format!("there is no folder {}; make it first", folder.display());
            refuse(std::io::ErrorKind::NotFound, why)
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes labels and probabilities, one item a line: CSV, or JSON lines where the path ends so. The file appears complete
/// or not at all.
///
/// # Errors
/// As [`check_output`]; a file that cannot be written; a fit of other votes.
pub fn write_labels(path: &Path, votes: &Votes, fitted: &Fitted) -> Result<()> {
    if fitted.posterior.items() != votes.items() {
        let (got, want) = (fitted.posterior.items(), votes.items());
        return Err(SupervisionError::Shape { what: "posteriors", got, want });
    }
    let io = |source| SupervisionError::Io { path: path.display().to_string(), source };
    let json = path.extension().is_some_and(|ending| ending == "jsonl" || ending == "ndjson");
    let classes: Vec<String> =
        (0..votes.classes()).map(|class| votes.class_names().get(class).into()).collect();
    let form = if json { write_json } else { write_csv };
    whole(path, |out| form(out, votes, fitted, &classes).map_err(io))
}

/// Writes a file that appears complete or not at all.
pub(crate) fn whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    check_output(path)?;
    let io = |source| SupervisionError::Io { path: path.display().to_string(), source };
    let mut file = tempfile::NamedTempFile::new_in(folder(path)).map_err(io)?;
    let mut out = BufWriter::new(file.as_file_mut());
    write(&mut out)?;
    out.flush().map_err(io)?;
    drop(out);
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

fn write_csv(out: &mut dyn Write, votes: &Votes, fitted: &Fitted, classes: &[String]) -> std::io::Result<()> {
    let mut out = csv::Writer::from_writer(out);
    let header = ["question", "label", "tied"].map(str::to_owned).into_iter();
    out.write_record(header.chain(classes.iter().map(|class| format!("p_{class}"))))?;
    for item in 0..votes.items() {
        let name = votes.item_names().get(item).into_owned();
        let label = classes[fitted.posterior.label(item)].clone();
        let start = [name, label, fitted.posterior.tied(item).to_string()].into_iter();
        out.write_record(start.chain(fitted.posterior.row(item).iter().map(f64::to_string)))?;
    }
    out.flush()
}

fn write_json(
    out: &mut dyn Write,
    votes: &Votes,
    fitted: &Fitted,
    classes: &[String],
) -> std::io::Result<()> {
    for item in 0..votes.items() {
        let probabilities: serde_json::Map<String, serde_json::Value> =
            classes.iter().cloned().zip(fitted.posterior.row(item).iter().map(|p| (*p).into())).collect();
        let line = serde_json::json!({
            "question": votes.item_names().get(item),
            "label": classes[fitted.posterior.label(item)],
            "tied": fitted.posterior.tied(item),
            "probabilities": probabilities,
        });
        writeln!(out, "{line}")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Names;
    use crate::label_models::{CATALOGUE, find};

    #[test]
    fn labels_go_out_as_they_came_in() {
        let votes = Votes::from_dense(2, 3, 2, &[1, 1, 0, 0, 0, 0])
            .and_then(|votes| {
                votes.with_names(
                    Names::listed("item", ["q,1", "q2"])?,
                    Names::numbered(3),
                    Names::listed("class", ["no", "yes"])?,
                )
            })
            .expect("valid");
        let majority = find("majority").expect("there");
        let truth = [Some(1), None];
        let outcomes = fit_all(&votes, Some(&truth), &[majority, find("moments").expect("there")]);
        assert_eq!(outcomes[0].accuracy, Some(1.0));
        // Not a fit, but a reason.
        let refused = outcomes[1].summary(&votes);
        assert!(refused.error.expect("refused").contains("do not determine"));
        let folder = tempfile::tempdir().expect("folder");
        let fitted = outcomes[0].fitted.as_ref().expect("fits");
        let path = folder.path().join("out.csv");
        write_labels(&path, &votes, fitted).expect("written");
        let text = std::fs::read_to_string(&path).expect("there");
        assert!(text.starts_with("question,label,tied,p_no,p_yes\n\"q,1\",yes,false,0.33"), "{text}");
        let path = folder.path().join("out.jsonl");
        write_labels(&path, &votes, fitted).expect("written");
        let text = std::fs::read_to_string(&path).expect("there");
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().nth(1).expect("two").contains("\"label\":\"no\""));
        let refused = |path: &Path| write_labels(path, &votes, fitted).expect_err("refused").to_string();
        assert!(refused(&folder.path().join("none/out.csv")).contains("there is no folder"));
        assert!(refused(folder.path()).contains("is a folder"));
        assert!(check_output(Path::new("out.csv")).is_ok() && check_output(Path::new("/")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 2);
        let names: std::collections::HashSet<_> = CATALOGUE.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
    }
}
