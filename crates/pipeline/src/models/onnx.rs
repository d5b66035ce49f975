//! What is in an ONNX file, without running it.

use std::path::{Path, PathBuf};

use pilotfish_graph::GraphError;
use pilotfish_graph::onnx::{self, Summary};

use super::inspect::{millions, table};

/// What is in an ONNX file. Its architecture is not known.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct OnnxInspection {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    #[serde(flatten)]
    pub summary: Summary,
    /// Why it cannot be read as a graph, unless it can.
    pub not_read: Option<String>,
}

/// The ONNX file that a path means: itself, or `model.onnx` or the only one in a folder that is no checkpoint.
pub fn onnx_file(path: &Path) -> Option<PathBuf> {
    let is_onnx = |path: &Path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("onnx"));
    if !path.is_dir() {
        return is_onnx(path).then(|| path.to_owned());
    }
    if path.join("config.json").exists() {
        return None;
    }
    let files = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = files.filter(|path| is_onnx(path) && path.is_file()).collect();
    let model = path.join("model.onnx");
    match files.len() {
        0 => None,
        1 => files.pop(),
        _ => files.contains(&model).then_some(model),
    }
}

/// Opens an ONNX file and says what is in it.
///
/// # Errors
/// It is not a whole, consistent model.
pub fn inspect_onnx(path: &Path) -> Result<OnnxInspection, GraphError> {
    let summary = onnx::summarize(path)?;
    let not_read = onnx::read(path).err().map(|error| match error {
        GraphError::OnnxNode { node, op, domain, why, .. } => {
            format!("node {node} ({op} of {domain}): {why}")
        }
        GraphError::Malformed { why, .. } => why,
        other => other.to_string(),
    });
    Ok(OnnxInspection { path: path.to_owned(), summary, not_read })
}

impl std::fmt::Display for OnnxInspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 12;
        let summary = &self.summary;
        let domain = |domain: &str| if domain.is_empty() { "ai.onnx".to_owned() } else { domain.to_owned() };
        let opsets = summary.opsets.iter().map(|(name, version)| format!("{} {version}", domain(name)));
        let numbers = summary.numbers.iter().map(|(kind, count)| format!("{kind}: {}", millions(*count)));
        let mut operators: Vec<_> = summary.operators.iter().collect();
        operators.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
        let operators = operators.into_iter().map(|(name, count)| format!("{count} {name}"));
        let mut rows: Vec<(&str, String)> = vec![
            ("name", summary.name.clone()),
            ("architecture", "not known: this is an ONNX graph".into()),
            ("written by", summary.producer.clone()),
            ("operator sets", opsets.collect::<Vec<_>>().join(", ")),
            ("tensors", summary.tensors.to_string()),
            ("numbers", numbers.collect::<Vec<_>>().join(", ")),
            ("bytes of tensors", millions(summary.bytes)),
            ("operators", operators.collect::<Vec<_>>().join(", ")),
        ];
        let files: Vec<&str> = summary.files.iter().map(String::as_str).collect();
        if !files.is_empty() {
            rows.push(("files beside it", files.join(", ")));
        }
        for (title, list) in [("inputs", &summary.inputs), ("outputs", &summary.outputs)] {
            for (index, (name, kind)) in list.iter().take(SHOWN).enumerate() {
                rows.push((if index == 0 { title } else { "" }, format!("{name}: {kind}")));
            }
            if list.len() > SHOWN {
                rows.push(("", format!("and {} more (--json lists all)", list.len() - SHOWN)));
            }
        }
        let read = match &self.not_read {
            None => "yes".to_owned(),
            Some(why) => format!("no: {why}"),
        };
        rows.push(("read as a graph", read));
        let plain: Vec<(&str, String)> =
            rows.into_iter().map(|(name, value)| (name, value.escape_debug().to_string())).collect();
        table(f, &self.path, &plain)
    }
}
