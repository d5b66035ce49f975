//! Steps that are done once: long work is cut into steps whose results are written as they are finished, so that
//! a run that is interrupted, by whatever, goes on where it stopped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fs4::fs_std::FileExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::error::{PipelineError, Result};

/// A run of an experiment with one configuration, in a folder of its own.
///
/// Steps are kept in `steps.jsonl`, one a line; a line that a killed run left half-written is dropped, and one that
/// cannot be read is passed over. The folder's name holds a hash of the configuration and of the version, so runs
/// with other options do not mix; what else a result depends on, such as the files of a model, belongs into the
/// configuration.
///
/// On a terminal a bar shows progress, elsewhere a line a step.
///
/// ```
/// use pilotfish_pipeline::steps::Run;
/// let results = std::env::temp_dir().join(format!("pilotfish-steps-{}", std::process::id()));
/// for _ in 0..2 {
///     let mut run = Run::open(&results, "squares", &["up to 3"], false, true)?;
///     run.expect(3);
///     let squares = (1..=3u64)
///         // Computed the first time, read the second.
///         .map(|n| run.step(&format!("{n} squared"), || Ok::<_, std::io::Error>(n * n)))
///         .collect::<Result<Vec<_>, _>>()?;
///     assert_eq!(squares, [1, 4, 9]);
///     run.finish();
/// }
/// # std::fs::remove_dir_all(&results)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Run {
    folder: PathBuf,
    log: File,
    done: BTreeMap<String, Json>,
    bar: ProgressBar,
    lines: bool,
    interrupted: Arc<AtomicBool>,
    signals: Vec<signal_hook::SigId>,
    _lock: File,
}

impl Run {
    /// Opens the folder of a configuration below `root`, and what was finished there before unless `fresh`.
    ///
    /// # Errors
    /// A folder that cannot be written; another run that is at work in it.
    pub fn open(
        root: &Path,
        experiment: &str,
        config: &impl Serialize,
        fresh: bool,
        quiet: bool,
    ) -> Result<Self> {
        let json = serde_json::to_string(config)
            .map_err(|error| PipelineError::malformed(root, error.to_string()))?;
        let version = env!("CARGO_PKG_VERSION");
        let digest = Sha256::digest(format!("{experiment} {version} {json}"));
        let key: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
        let folder = root.join(experiment).join(key);
        std::fs::create_dir_all(&folder).map_err(|source| PipelineError::io(&folder, source))?;
        let lock_path = folder.join(".lock");
        let lock = File::create(&lock_path).map_err(|source| PipelineError::io(&lock_path, source))?;
        if !lock.try_lock_exclusive().map_err(|source| PipelineError::io(&lock_path, source))? {
            return Err(PipelineError::Busy { path: folder.display().to_string() });
        }
        let path = folder.join("steps.jsonl");
        if fresh && path.exists() {
            std::fs::remove_file(&path).map_err(|source| PipelineError::io(&path, source))?;
        }
        let (done, whole) = read_steps(&path)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| PipelineError::io(&path, source))?;
        log.set_len(whole).map_err(|source| PipelineError::io(&path, source))?;
        let bar = ProgressBar::new(0);
        if quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template(
            "{msg:36!} {wide_bar:.cyan/dim} {pos}/{len} {elapsed_precise} eta {eta}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let interrupted = Arc::new(AtomicBool::new(false));
        let mut signals = Vec::new();
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            let io = |source| PipelineError::io("(signals)", source);
            // A second signal ends the process at once.
            signals.push(
                signal_hook::flag::register_conditional_shutdown(signal, 130, interrupted.clone())
                    .map_err(io)?,
            );
            signals.push(signal_hook::flag::register(signal, interrupted.clone()).map_err(io)?);
        }
        let lines = !quiet && !std::io::stderr().is_terminal();
        Ok(Self { folder, log, done, bar, lines, interrupted, signals, _lock: lock })
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Says how many steps there will be, for the progress bar.
    pub fn expect(&self, steps: u64) {
        self.bar.set_length(steps);
    }

    /// Steps finished before, in this run or an earlier one.
    pub fn finished(&self) -> usize {
        self.done.len()
    }

    /// The result of a step: from the log if it was done before, else computed and written now.
    ///
    /// # Errors
    /// The step's own error; an interruption, which is noticed between steps; a log that cannot be written.
    pub fn step<T, E>(&mut self, id: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if self.interrupted.load(Ordering::Relaxed) {
            self.bar.abandon();
            return Err(PipelineError::Interrupted { path: self.folder.display().to_string() });
        }
        self.bar.set_message(id.to_owned());
        // A result whose form has changed is computed again.
        let kept = self.done.get(id).and_then(|json| serde_json::from_value(json.clone()).ok());
        let (result, how) = match kept {
            Some(result) => (result, " (kept)"),
            None => {
                let result =
                    work().map_err(|error| PipelineError::Step { id: id.into(), source: error.into() })?;
                self.append(id, &result)?;
                (result, "")
            }
        };
        self.bar.inc(1);
        if self.lines {
            let of = self.bar.length().filter(|length| *length > 0).map(|length| format!("/{length}"));
            // A closed pipe is no reason to stop.
            let _ =
                writeln!(std::io::stderr(), "[{}{}] {id}{how}", self.bar.position(), of.unwrap_or_default());
        }
        Ok(result)
    }

    fn append(&mut self, id: &str, result: &impl Serialize) -> Result<()> {
        let path = self.folder.join("steps.jsonl");
        let json = serde_json::to_value(result)
            .map_err(|error| PipelineError::malformed(&path, error.to_string()))?;
        let mut line =
            serde_json::json!({ "step": id, "result": json, "check": check(id, &json) }).to_string();
        line.push('\n');
        self.log
            .write_all(line.as_bytes())
            .and_then(|()| self.log.sync_data())
            .map_err(|source| PipelineError::io(&path, source))?;
        self.done.insert(id.into(), json);
        Ok(())
    }

    /// Ends the progress bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for signal in self.signals.drain(..) {
            signal_hook::low_level::unregister(signal);
        }
    }
}

/// What tells a step from one whose bits have changed since it was written.
fn check(id: &str, result: &Json) -> String {
    let digest = Sha256::digest(format!("{id}\n{result}"));
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The steps of a log, and its length up to where a line was cut off.
fn read_steps(path: &Path) -> Result<(BTreeMap<String, Json>, u64)> {
    #[derive(serde::Deserialize)]
    struct Line {
        step: String,
        result: Json,
        check: String,
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((BTreeMap::new(), 0)),
        Err(source) => return Err(PipelineError::io(path, source)),
    };
    let mut done = BTreeMap::new();
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    for (number, line) in bytes[..whole].split_inclusive(|&byte| byte == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(Line { step, result, check: written }) if written == check(&step, &result) => {
                done.insert(step, result);
            }
            _ => {
                let (path, line) = (path.display(), number + 1);
                tracing::warn!(%path, line, "a step that cannot be read is done again");
            }
        }
    }
    Ok((done, whole as u64))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn open(root: &Path, config: u32) -> Result<Run> {
        Run::open(root, "test", &config, false, true)
    }

    fn add(run: &mut Run, id: &str, calls: &mut u32) -> u32 {
        run.step(id, || {
            *calls += 1;
            Ok::<_, Infallible>(10 * *calls)
        })
        .expect("never fails")
    }

    #[test]
    fn finished_steps_are_not_done_again() {
        let root = tempfile::tempdir().expect("a folder");
        let mut calls = 0;
        let mut run = open(root.path(), 1).expect("free");
        assert_eq!((add(&mut run, "a", &mut calls), add(&mut run, "b", &mut calls)), (10, 20));
        drop(run);
        let mut run = open(root.path(), 1).expect("free");
        assert_eq!((add(&mut run, "a", &mut calls), add(&mut run, "b", &mut calls), calls), (10, 20, 2));
        assert_eq!(add(&mut run, "c", &mut calls), 30);
        // Another configuration has another folder.
        assert_eq!(open(root.path(), 2).expect("free").finished(), 0);
        drop(run);
        let run = Run::open(root.path(), "test", &1u32, true, true).expect("free");
        assert_eq!(run.finished(), 0, "fresh");
    }

    #[test]
    fn a_log_cut_anywhere_is_picked_up() {
        let root = tempfile::tempdir().expect("a folder");
        let mut calls = 0;
        let mut run = open(root.path(), 1).expect("free");
        let path = run.folder().join("steps.jsonl");
        add(&mut run, "a", &mut calls);
        add(&mut run, "b", &mut calls);
        drop(run);
        let bytes = std::fs::read(&path).expect("there");
        let first = bytes.iter().position(|&byte| byte == b'\n').expect("two lines") + 1;
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("writable");
            let mut run = open(root.path(), 1).expect("free");
            assert_eq!(run.finished(), usize::from(cut >= first), "cut at {cut}");
            add(&mut run, "z", &mut calls);
            drop(run);
            assert!(open(root.path(), 1).expect("free").done.contains_key("z"), "cut at {cut}");
        }
        // One spoilt line does not take the others with it.
        let lines: Vec<&str> = std::str::from_utf8(&bytes).expect("text").lines().collect();
        for spoilt in ["{\"step\": \"a\"}", "\0\0\0", "", "null", "[1]", "{\"step\": 1, \"result\": 2}"] {
            std::fs::write(&path, format!("{spoilt}\n{}\n", lines[1])).expect("writable");
            let run = open(root.path(), 1).expect("free");
            assert_eq!(run.done.keys().collect::<Vec<_>>(), ["b"], "{spoilt:?}");
        }
        std::fs::write(&path, [0xff; 100]).expect("writable");
        assert_eq!(open(root.path(), 1).expect("free").finished(), 0);
    }

    #[test]
    fn a_flipped_bit_spoils_one_step_at_most() {
        let root = tempfile::tempdir().expect("a folder");
        let mut calls = 0;
        let mut run = open(root.path(), 1).expect("free");
        let path = run.folder().join("steps.jsonl");
        for id in ["a", "b", "c"] {
            add(&mut run, id, &mut calls);
        }
        drop(run);
        let bytes = std::fs::read(&path).expect("there");
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut spoilt = bytes.clone();
                spoilt[at] ^= 1 << bit;
                std::fs::write(&path, &spoilt).expect("writable");
                let (done, _) = read_steps(&path).expect("readable");
                let right = [("a", 10), ("b", 20), ("c", 30)];
                let right = right.iter().filter(|(id, value)| done.get(*id) == Some(&Json::from(*value)));
                // The end of a line gone, two lines are one.
                let least = if bytes[at] == b'\n' { 1 } else { 2 };
                assert!(right.count() == done.len() && done.len() >= least, "byte {at}, bit {bit}: {done:?}");
            }
        }
    }

    #[test]
    fn a_step_of_another_form_is_done_again() {
        let root = tempfile::tempdir().expect("a folder");
        let mut run = open(root.path(), 1).expect("free");
        assert_eq!(run.step("a", || Ok::<_, Infallible>(1)).expect("works"), 1);
        let text = run.step("a", || Ok::<_, Infallible>("one".to_owned())).expect("works");
        assert_eq!(text, "one");
        drop(run);
        let mut run = open(root.path(), 1).expect("free");
        let text: String = run.step("a", || Err::<String, _>("not asked")).expect("the last form is kept");
        assert_eq!(text, "one");
    }

    #[test]
    fn folders_and_logs_in_the_way_are_named() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = open(root.path(), 1).expect("free").folder().to_owned();
        std::fs::remove_file(folder.join("steps.jsonl")).expect("there");
        std::fs::create_dir(folder.join("steps.jsonl")).expect("writable");
        for fresh in [false, true] {
            match Run::open(root.path(), "test", &1u32, fresh, true) {
                Err(PipelineError::Io { path, .. }) => assert!(path.ends_with("steps.jsonl"), "{path}"),
                other => panic!("{:?}", other.map(|run| run.finished())),
            }
        }
        let blocked = root.path().join("blocked");
        std::fs::write(&blocked, "a file in the way").expect("writable");
        assert!(matches!(open(&blocked, 1), Err(PipelineError::Io { .. })));
    }

    #[test]
    fn one_run_a_folder() {
        let root = tempfile::tempdir().expect("a folder");
        let held = open(root.path(), 1).expect("free");
        assert!(matches!(open(root.path(), 1), Err(PipelineError::Busy { .. })));
        drop(held);
        assert!(open(root.path(), 1).is_ok());
    }

    #[test]
    fn errors_and_interruptions_keep_what_is_done() {
        let root = tempfile::tempdir().expect("a folder");
        let mut run = open(root.path(), 1).expect("free");
        let mut calls = 0;
        add(&mut run, "a", &mut calls);
        let failed = run.step("b", || Err::<u32, _>("broken"));
        assert_eq!(failed.expect_err("fails").to_string(), "step b: broken");
        run.interrupted.store(true, Ordering::Relaxed);
        let stopped = run.step("c", || Ok::<_, Infallible>(1));
        assert!(matches!(stopped, Err(PipelineError::Interrupted { .. })));
        drop(run);
        assert_eq!(open(root.path(), 1).expect("free").finished(), 1);
    }
}
