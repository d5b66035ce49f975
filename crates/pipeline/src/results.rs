//! Result files: everything a figure rests on, in one JSON file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::{PipelineError, Result, write_atomic};
use crate::machine::Machine;
use crate::plots::Plot;
use crate::tables::Table;

/// The largest result file that is read.
const LARGEST: u64 = 256 << 20;

/// A result: how it came about, and the rows, tables and plots that came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultFile {
    /// Experiment.
    pub experiment: String,
    /// Title for people.
    pub title: String,
    /// What it shows, in a paragraph.
    pub summary: String,
    /// Options and constants.
    pub config: Json,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Versions of the project and of what it ran on.
    pub versions: Vec<(String, String)>,
    /// Commit of the project, where known.
    pub commit: Option<String>,
    /// The machine.
    pub machine: Machine,
    /// Load of the machine when the run began and ended.
    pub load: [Option<f64>; 2],
    /// When it began and ended.
    pub time: [String; 2],
    /// Raw rows.
    pub rows: Vec<Json>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Plots, as data.
    pub plots: Vec<Plot>,
    /// What a reader must know: baselines, exactness, what fell short.
    pub notes: Vec<String>,
}

impl ResultFile {
    /// Reads a result file.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or is not a whole result.
    pub fn read(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|source| PipelineError::io(path, source))?;
        if !meta.is_file() || meta.len() > LARGEST {
            return Err(PipelineError::malformed(path, "not a regular file of at most 256 MB"));
        }
        let bytes = std::fs::read(path).map_err(|source| PipelineError::io(path, source))?;
        serde_json::from_slice(&bytes).map_err(|error| PipelineError::malformed(path, error.to_string()))
    }

    /// Writes it into a folder as `run.json`, with `report.html` and `report.md` beside it; each file appears
    /// whole or not at all, and none if the report cannot be made. Returns the paths of the result and of the
    /// report.
    ///
    /// # Errors
    /// A plot that cannot be drawn; a folder or file that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(PathBuf, PathBuf)> {
        let (result, report) = (folder.join("run.json"), folder.join("report.html"));
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| PipelineError::malformed(&result, error.to_string()))?;
        let (html, markdown) = (crate::report::html(self)?, crate::report::markdown(self)?);
        std::fs::create_dir_all(folder).map_err(|source| PipelineError::io(folder, source))?;
        write_atomic(&result, &json)?;
        write_atomic(&report, html.as_bytes())?;
        write_atomic(&folder.join("report.md"), markdown.as_bytes())?;
        Ok((result, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_truncation() {
        let folder = tempfile::tempdir().expect("a folder");
        let result = ResultFile {
            experiment: "x".into(),
            rows: vec![serde_json::json!({"a": 1.5})],
            ..ResultFile::default()
        };
        let (path, report) = result.write(folder.path()).expect("writable");
        assert_eq!(ResultFile::read(&path).expect("whole"), result);
        assert!(report.is_file());
        let bytes = std::fs::read(&path).expect("there");
        for cut in 0..bytes.len() - 1 {
            std::fs::write(&path, &bytes[..cut]).expect("writable");
            assert!(ResultFile::read(&path).is_err(), "cut at {cut}");
        }
        assert!(ResultFile::read(&folder.path().join("none")).is_err());
        assert!(ResultFile::read(folder.path()).is_err());
    }

    #[test]
    fn flipped_bits_are_refused_or_harmless() {
        let folder = tempfile::tempdir().expect("a folder");
        let result = ResultFile { seeds: vec![7], load: [Some(0.5), None], ..ResultFile::default() };
        let (path, _) = result.write(folder.path()).expect("writable");
        let bytes = std::fs::read(&path).expect("there");
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut spoilt = bytes.clone();
                spoilt[at] ^= 1 << bit;
                std::fs::write(&path, &spoilt).expect("writable");
                match ResultFile::read(&path) {
                    Ok(_) => {}
                    Err(PipelineError::Malformed { path: named, .. }) => assert!(named.ends_with("run.json")),
                    Err(other) => panic!("byte {at}, bit {bit}: {other}"),
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_drawn_leaves_the_last_result_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut result = ResultFile { title: "old".into(), ..ResultFile::default() };
        let (path, _) = result.write(folder.path()).expect("writable");
        result.title = "new".into();
        result.plots.push(Plot {
            title: "nothing".into(),
            x: String::new(),
            y: String::new(),
            kind: crate::plots::Kind::Lines,
            series: vec![],
            reference: None,
        });
        assert!(matches!(result.write(folder.path()), Err(PipelineError::Plot { .. })));
        assert_eq!(ResultFile::read(&path).expect("whole").title, "old");
        let missing = folder.path().join("missing");
        assert!(result.write(&missing).is_err() && !missing.exists());
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 3, "no temporary files");
    }

    #[test]
    fn a_file_that_cannot_be_replaced_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("report.html")).expect("writable");
        let error = ResultFile::default().write(folder.path()).expect_err("a folder in the way").to_string();
        assert!(error.contains("report.html"), "{error}");
        let left = std::fs::read_dir(folder.path()).expect("readable").flatten();
        assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with(".part-")));
    }

    #[cfg(unix)]
    #[test]
    fn results_are_as_readable_as_any_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let (path, _) = ResultFile::default().write(folder.path()).expect("writable");
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "").expect("writable");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }

    proptest::proptest! {
        #[test]
        fn numbers_come_back_to_the_last_bit(x in proptest::num::f64::NORMAL) {
            let folder = tempfile::tempdir().expect("a folder");
            let result = ResultFile { load: [Some(x), None], rows: vec![serde_json::json!(x)], ..ResultFile::default() };
            let (path, _) = result.write(folder.path()).expect("writable");
            proptest::prop_assert_eq!(ResultFile::read(&path).expect("whole"), result);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let blocked = folder.path().join("blocked");
        std::fs::write(&blocked, "a file in the way").expect("writable");
        assert!(matches!(ResultFile::default().write(&blocked), Err(PipelineError::Io { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 1);
    }
}
