//! Runs that are killed or interrupted from outside, at whatever moment, and go on.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use pilotfish_pipeline::PipelineError;
use pilotfish_pipeline::steps::Run;

const STEPS: u64 = 60;
const ROOT: &str = "PILOTFISH_RESUME_TEST";

fn value(step: u64) -> Vec<f64> {
    (0..50).map(|i| 1.0 / (step * 50 + i + 1) as f64).collect()
}

fn open(root: &Path) -> pilotfish_pipeline::Result<Run> {
    // The child shows its progress.
    Run::open(root, "resume", &"x", false, std::env::var_os(ROOT).is_none())
}

/// Does all steps; `each` is called after every one, and says whether it was computed.
fn work(root: &Path, mut each: impl FnMut(u64, bool)) -> pilotfish_pipeline::Result<()> {
    let mut run = open(root)?;
    run.expect(STEPS);
    for step in 0..STEPS {
        let mut computed = false;
        let result = run.step(&format!("step {step}"), || {
            computed = true;
            std::thread::sleep(Duration::from_millis(1));
            Ok::<_, std::convert::Infallible>(value(step))
        })?;
        assert_eq!(result, value(step), "to the last bit");
        each(step, computed);
    }
    run.finish();
    Ok(())
}

/// Not a test by itself: what the other tests start as a process of its own.
#[test]
fn child() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let mut line = String::new();
    let each = |step, _| {
        println!("\ndone {step}");
        if step == 2 {
            // Whoever holds the other end decides when to go on; at its end, at once.
            std::io::stdin().read_line(&mut line).unwrap();
        }
    };
    match work(&root, each) {
        Ok(()) => println!("\nfinished"),
        Err(PipelineError::Interrupted { path }) => println!("\ninterrupted {path}"),
        Err(error) => panic!("{error}"),
    }
}

fn start(root: &Path, input: Stdio) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROOT, root)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// Reads until that many steps are done.
fn wait(output: &mut impl BufRead, steps: u64) {
    let done = |line: &std::io::Result<String>| line.as_ref().unwrap().starts_with("done ");
    assert_eq!(output.lines().filter(done).take(steps as usize).count() as u64, steps);
}

#[test]
fn killed_runs_go_on_where_they_stopped() {
    let root = tempfile::tempdir().unwrap();
    let mut least = 0;
    for steps in [1, 7, 20] {
        let (mut child, mut output) = start(root.path(), Stdio::null());
        wait(&mut output, steps);
        child.kill().unwrap();
        child.wait().unwrap();
        let finished = open(root.path()).unwrap().finished() as u64;
        assert!(finished >= steps.max(least), "{finished} after {steps}");
        least = finished;
    }
    let mut computed = 0;
    work(root.path(), |step, new| {
        computed += u64::from(new);
        assert_eq!(new, step >= least, "step {step}");
    })
    .unwrap();
    assert_eq!(computed, STEPS - least);
}

#[test]
fn interruptions_are_noticed_between_steps_and_say_how_to_go_on() {
    let root = tempfile::tempdir().unwrap();
    let (mut child, mut output) = start(root.path(), Stdio::piped());
    wait(&mut output, 3);
    assert!(matches!(open(root.path()), Err(PipelineError::Busy { .. })), "another process is at work");
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    drop(child.stdin.take());
    let last: Vec<String> =
        output.lines().map(Result::unwrap).filter(|line| line.starts_with("inter")).collect();
    assert_eq!(last.len(), 1, "{last:?}");
    assert!(child.wait().unwrap().success());
    let run = open(root.path()).unwrap();
    assert!((3..STEPS as usize).contains(&run.finished()));
    let error = PipelineError::Interrupted { path: run.folder().display().to_string() };
    assert!(error.to_string().contains("run the same command again"), "{error}");
    drop(run);
    work(root.path(), |_, _| {}).unwrap();
}

#[test]
fn without_a_terminal_progress_is_a_line_a_step() {
    let root = tempfile::tempdir().unwrap();
    for (want, not) in [("[60/60] step 59\n", "(kept)"), ("[60/60] step 59 (kept)\n", "step 59\n")] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(ROOT, root.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("[1/60] step 0") && text.contains(want) && !text.contains(not), "{text}");
    }
}
