//! Dawid-Skene on ten million items with ten voters, in seconds and megabytes; then beside Crowd-Kit's, and Snorkel's
//! label model beside Snorkel's, on the same votes of growing size.
//!
//! `cargo xtask bench label-models [ITEMS] [--limit SECONDS] [--python PATH]`. `RAYON_NUM_THREADS` says how many threads.
//! The other side is `label_models.py` beside this file; without its packages this says how to get them, and goes on
//! without. Each size is fitted by both in turn, three times for sizes that take less than ten seconds; the fastest counts.
//! Files are read and frames built before a clock starts. Sizes grow tenfold until the other side takes longer than the
//! limit, or fails.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use pilotfish_supervision::label_models::{DawidSkene, Fitted, LabelModel, Snorkel};
use pilotfish_supervision::{Rows, Votes};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOTERS: usize = 10;
const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// Votes of voters whose error rates differ by class, one in twenty an abstention; and the truth.
fn draw(items: usize) -> (Vec<i8>, Vec<u8>) {
    let mut rng = ChaCha8Rng::seed_from_u64(items as u64);
    let rates: Vec<[f64; 2]> =
        (0..VOTERS).map(|_| [rng.random_range(0.1..0.45), rng.random_range(0.55..0.95)]).collect();
    let (mut cells, mut truth) = (Vec::with_capacity(items * VOTERS), Vec::with_capacity(items));
    for _ in 0..items {
        let y = u8::from(rng.random_bool(0.4));
        truth.push(y);
        for rate in &rates {
            let vote = i8::from(rng.random_bool(rate[usize::from(y)]));
            cells.push(if rng.random_bool(0.05) { -1 } else { vote });
        }
    }
    (cells, truth)
}

fn accuracy(fitted: &Fitted, truth: &[u8]) -> f64 {
    let right =
        truth.iter().enumerate().filter(|(item, y)| fitted.posterior.label(*item) == usize::from(**y));
    right.count() as f64 / truth.len() as f64
}

/// The largest resident size so far, MB.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes: Option<f64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kilobytes.map_or("unknown".into(), |kb| format!("{:.0} MB", kb / 1024.0))
}

fn large(items: usize) {
    println!("Dawid-Skene on {items} items x {VOTERS} voters, {} threads", rayon::current_num_threads());
    let (cells, truth) = draw(items);
    let votes = Votes::from_dense(items, VOTERS, 2, &cells).unwrap();
    drop(cells);
    println!("  votes take {} MB; peak memory so far {}", votes.memory() >> 20, peak());
    let clock = Instant::now();
    let rows = Rows::of(&votes).unwrap();
    let grouped = clock.elapsed().as_secs_f64();
    println!("  {} distinct rows, counted in {grouped:.2} s", rows.len());
    drop(rows);
    let clock = Instant::now();
    let fitted = DawidSkene::default().fit(&votes).unwrap();
    let seconds = clock.elapsed().as_secs_f64();
    println!(
        "  fitted in {seconds:.2} s (counting included), {} steps, {:?}; accuracy {:.4}",
        fitted.objective.len(),
        fitted.convergence,
        accuracy(&fitted, &truth)
    );
    println!("  peak memory {}", peak());
}

fn write_npy(path: &Path, items: usize, cells: &[i8]) {
    let mut header = format!("{{'descr': '|i1', 'fortran_order': False, 'shape': ({items}, {VOTERS}), }}");
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    file.write_all(b"\x93NUMPY\x01\x00").unwrap();
    file.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let bytes: Vec<u8> = cells.iter().map(|cell| *cell as u8).collect();
    file.write_all(&bytes).unwrap();
    file.flush().unwrap();
}

/// Seconds, steps and labels of the other side; or what it said.
fn theirs(
    python: &Path,
    script: &Path,
    which: &str,
    file: &Path,
) -> Result<(f64, u64, Vec<u8>, f64), String> {
    let labels = file.with_extension("labels");
    let output = Command::new(python)
        .arg(script)
        .args([which.as_ref(), file.as_os_str(), labels.as_os_str()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", python.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rev().find(|line| line.starts_with('{'));
    let Some(json) = line.and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok()) else {
        let error = String::from_utf8_lossy(&output.stderr);
        let why = error.lines().last().unwrap_or("no answer").to_owned();
        return Err(format!("{why} ({})", output.status));
    };
    let number = |key: &str| json[key].as_f64().unwrap_or(f64::NAN);
    let labels = std::fs::read(&labels).map_err(|error| error.to_string())?;
    Ok((number("seconds"), number("steps") as u64, labels, number("peak_mb")))
}

fn beside(python: &Path, script: &Path, which: &str, model: &dyn LabelModel, limit: f64, largest: usize) {
    println!("\n{which}: the same model, here and there, on the same votes");
    println!(
        "  {:>10} {:>12} {:>12} {:>8} {:>13} {:>11} {:>12}",
        "items", "here, s", "there, s", "ratio", "steps", "same labels", "their peak"
    );
    let folder = tempfile::tempdir().unwrap();
    for items in SIZES.into_iter().filter(|size| *size <= largest) {
        let (cells, _) = draw(items);
        let file = folder.path().join("votes.npy");
        write_npy(&file, items, &cells);
        let votes = Votes::from_dense(items, VOTERS, 2, &cells).unwrap();
        drop(cells);
        let (mut here, mut there) = (f64::INFINITY, f64::INFINITY);
        let mut last = None;
        for _ in 0..3 {
            let clock = Instant::now();
            let fitted = model.fit(&votes).unwrap();
            here = here.min(clock.elapsed().as_secs_f64());
            match theirs(python, script, which, &file) {
                Ok((seconds, steps, labels, peak)) => {
                    there = there.min(seconds);
                    last = Some((fitted, steps, labels, peak));
                }
                Err(why) => {
                    println!("  {items:>10} {here:>12.4}   there: {why}");
                    return;
                }
            }
            if there > 10.0 {
                break;
            }
        }
        let Some((fitted, steps, labels, peak)) = last else { return };
        let same =
            labels.iter().enumerate().filter(|(item, y)| fitted.posterior.label(*item) == usize::from(**y));
        println!(
            "  {items:>10} {here:>12.4} {there:>12.4} {:>8.0} {:>13} {:>11.5} {:>9.0} MB",
            there / here,
            format!("{} / {steps}", fitted.objective.len()),
            same.count() as f64 / labels.len() as f64,
            peak
        );
        if there > limit {
            println!("  (longer than {limit} s: no larger size is tried)");
            return;
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let after = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1));
    let items = words.first().and_then(|word| word.parse().ok()).unwrap_or(10_000_000);
    let limit: f64 = after("--limit").and_then(|word| word.parse().ok()).unwrap_or(60.0);
    let python = after("--python").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    large(items);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/label_models.py");
    let check = Command::new(&python).arg(&script).arg("check").stdin(Stdio::null()).output();
    let said = check.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for (which, model, package) in [
        ("crowd-kit", &DawidSkene::crowd_kit() as &dyn LabelModel, "crowd-kit==1.4.2 'scikit-learn<1.6'"),
        ("snorkel", &Snorkel::published(0), "snorkel==0.10.0"),
    ] {
        match said.lines().find(|line| line.starts_with(which)) {
            Some(version) => {
                println!("\n{version} in {}", python.display());
                beside(&python, &script, which, model, limit, items);
            }
            None => println!(
                "\n{which} is not in {}: nothing to stand beside. `python3 -m venv V && V/bin/pip install {package}`, \
                 then --python V/bin/python.",
                python.display()
            ),
        }
    }
}
