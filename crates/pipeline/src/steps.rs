//! Steps that are done once: long work is cut into steps whose results are written as they are finished, so that
//! a run that is interrupted, by whatever, goes on where it stopped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
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
/// Steps are kept in `steps.jsonl`, one a line; a line that a killed run left half-written is dropped. The
/// folder's name holds a hash of the configuration, so runs with other options do not mix.
pub struct Run {
    folder: PathBuf,
    log: File,
    done: BTreeMap<String, Json>,
    bar: ProgressBar,
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
        Ok(Self { folder, log, done, bar, interrupted, signals, _lock: lock })
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
        let result = match kept {
            Some(result) => result,
            None => {
                let result =
                    work().map_err(|error| PipelineError::Step { id: id.into(), source: error.into() })?;
                self.append(id, &result)?;
                result
            }
        };
        self.bar.inc(1);
        Ok(result)
    }

    fn append(&mut self, id: &str, result: &impl Serialize) -> Result<()> {
        let path = self.folder.join("steps.jsonl");
        let json = serde_json::to_value(result)
            .map_err(|error| PipelineError::malformed(&path, error.to_string()))?;
        let mut line = serde_json::json!({ "step": id, "result": json }).to_string();
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

/// The steps of a log, and the length of its whole lines.
fn read_steps(path: &Path) -> Result<(BTreeMap<String, Json>, u64)> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((BTreeMap::new(), 0)),
        Err(source) => return Err(PipelineError::io(path, source)),
    };
    let (mut done, mut whole) = (BTreeMap::new(), 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        #[derive(serde::Deserialize)]
        struct Line {
            step: String,
            result: Json,
        }
        let parsed = line.ends_with(b"\n").then(|| serde_json::from_slice::<Line>(line).ok()).flatten();
        // Whatever follows a broken line was written by nobody we know.
        let Some(Line { step, result }) = parsed else { break };
        done.insert(step, result);
        whole += line.len();
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
        (add(&mut run, "a", &mut calls), add(&mut run, "b", &mut calls));
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
        std::fs::write(&path, "{\"step\": \"a\"}\n{\"step\": \"b\", \"result\": 1}\n").expect("writable");
        assert_eq!(open(root.path(), 1).expect("free").finished(), 0);
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
