//! Checkpoints of runs. A file is: a line that says what it is; the length of a header, 8 bytes; the header, JSON;
//! numbers, little-endian, in the header's order; SHA-256 of all that, 32 bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::DType;
use pilotfish_graph::Graph;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::optimizer::Numbers;
use crate::{Progress, Result, Trainer, TrainerConfig, TrainingError};

const MAGIC: &[u8] = b"pilotfish training checkpoint 1\n";

/// Bytes of the digest at the end.
const DIGEST: usize = 32;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    config: TrainerConfig,
    fingerprint: String,
    step: u64,
    arrays: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// `None`: the parameter itself.
    moment: Option<usize>,
    wide: bool,
    count: usize,
}

/// What a checkpoint holds.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) config: TrainerConfig,
    pub(crate) fingerprint: String,
    pub(crate) step: u64,
    pub(crate) params: BTreeMap<String, Numbers>,
    pub(crate) moments: BTreeMap<String, Vec<Numbers>>,
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> TrainingError {
    let path = path.display().to_string();
    move |source| TrainingError::Io { path: path.clone(), source }
}

/// Writes through, and digests on the way.
struct Digesting {
    file: BufWriter<File>,
    digest: Sha256,
}

impl Digesting {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.digest.update(bytes);
        self.file.write_all(bytes)
    }

    fn numbers(&mut self, numbers: &Numbers) -> std::io::Result<()> {
        // Pieces, so that no second copy of a large matrix is made.
        match numbers {
            Numbers::F32(values) => values.chunks(4096).try_for_each(|piece| {
                self.put(&piece.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
            }),
            Numbers::F64(values) => values.chunks(4096).try_for_each(|piece| {
                self.put(&piece.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
            }),
        }
    }
}

/// A file that is removed unless it gets its name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the renaming there is nothing under this name.
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(crate) fn write(
    path: &Path,
    config: &TrainerConfig,
    fingerprint: &str,
    step: u64,
    params: &BTreeMap<&str, Numbers>,
    moments: &BTreeMap<String, Vec<Numbers>>,
) -> Result<()> {
    let wide = |numbers: &Numbers| numbers.dtype() == DType::F64;
    let mut arrays = Vec::new();
    for (name, numbers) in params {
        let (name, count) = ((*name).to_owned(), numbers.len());
        arrays.push(Entry { name, moment: None, wide: wide(numbers), count });
    }
    for (name, all) in moments {
        for (moment, numbers) in all.iter().enumerate() {
            let (name, count) = (name.clone(), numbers.len());
            arrays.push(Entry { name, moment: Some(moment), wide: wide(numbers), count });
        }
    }
    let header = Header { config: config.clone(), fingerprint: fingerprint.into(), step, arrays };
    let header = serde_json::to_vec(&header)
        .map_err(|error| TrainingError::Io { path: path.display().to_string(), source: error.into() })?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let temporary = Temporary(path.with_file_name(name));
    let file = File::create(&temporary.0).map_err(io(&temporary.0))?;
    let mut out = Digesting { file: BufWriter::with_capacity(1 << 20, file), digest: Sha256::new() };
    let mut put = || -> std::io::Result<()> {
        out.put(MAGIC)?;
        out.put(&(header.len() as u64).to_le_bytes())?;
        out.put(&header)?;
        for numbers in params.values().chain(moments.values().flatten()) {
            out.numbers(numbers)?;
        }
        let digest = out.digest.clone().finalize();
        out.file.write_all(&digest)?;
        out.file.flush()?;
        out.file.get_ref().sync_all()
    };
    put().map_err(io(&temporary.0))?;
    std::fs::rename(&temporary.0, path).map_err(io(path))?;
    // The new name must survive a power cut too; where folders cannot be opened the system sees to that.
    if let Some(Ok(folder)) = path.parent().map(File::open) {
        let _ = folder.sync_all();
    }
    Ok(())
}

pub(crate) fn read(path: &Path) -> Result<Saved> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    parse(&bytes).map_err(|why| TrainingError::Checkpoint { path: path.display().to_string(), why })
}

fn parse(bytes: &[u8]) -> std::result::Result<Saved, String> {
    let Some(body) = bytes.len().checked_sub(DIGEST).map(|end| &bytes[..end]) else {
        return Err(format!("{} bytes: cut short", bytes.len()));
    };
    let rest = body.strip_prefix(MAGIC).ok_or("not a training checkpoint of version 1")?;
    if Sha256::digest(body).as_slice() != &bytes[body.len()..] {
        return Err("its digest does not match: cut short or damaged".into());
    }
    let (len, rest) = rest.split_first_chunk().ok_or("no header")?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok().filter(|&len| len <= rest.len());
    let (header, mut rest) = rest.split_at(len.ok_or("a header longer than the file")?);
    let header: Header = serde_json::from_slice(header).map_err(|error| format!("header: {error}"))?;
    let (mut params, mut moments) = (BTreeMap::new(), BTreeMap::<String, Vec<Numbers>>::new());
    for entry in header.arrays {
        let size = entry.count.checked_mul(if entry.wide { 8 } else { 4 });
        let size = size.filter(|&size| size <= rest.len());
        let (bytes, after) = rest.split_at(size.ok_or_else(|| format!("no room for {}", entry.name))?);
        rest = after;
        let numbers = match entry.wide {
            true => {
                Numbers::F64(bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
            }
            false => {
                Numbers::F32(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
            }
        };
        let twice = match entry.moment {
            None => params.insert(entry.name.clone(), numbers).is_some(),
            Some(at) => {
                let all = moments.entry(entry.name.clone()).or_default();
                all.push(numbers);
                all.len() != at + 1
            }
        };
        if twice {
            return Err(format!("{} is there twice or out of order", entry.name));
        }
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes too many", rest.len()));
    }
    let Header { config, fingerprint, step, .. } = header;
    Ok(Saved { config, fingerprint, step, params, moments })
}

/// A digest of a graph and of the parameters that are not trained.
pub(crate) fn fingerprint(graph: &Graph, trained: &[&str], precision: &str) -> Result<String> {
    let mut digest = Sha256::new();
    digest.update(precision);
    digest.update(graph.to_string());
    for param in graph.params() {
        digest.update(&param.name);
        if !trained.contains(&param.name.as_str()) {
            for piece in param.tensor.to_f32()?.chunks(4096) {
                digest.update(piece.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A folder of checkpoints, of which the newest few are kept.
///
/// A new checkpoint is written beside the old ones, which go only when it is whole; a run that is killed, or a
/// disk that is full, leaves the last good one.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    every: u64,
    keep: usize,
}

impl Checkpoints {
    /// Checkpoints every `every` steps and at the end; the newest `keep` stay. The folder is made if need be.
    ///
    /// # Errors
    /// Zeros; a folder that cannot be made.
    pub fn new(folder: impl Into<PathBuf>, every: u64, keep: usize) -> Result<Self> {
        for (name, value) in [("every", every), ("keep", keep as u64)] {
            if value == 0 {
                return Err(TrainingError::BadParameter { name, value: 0.0, want: "at least 1" });
            }
        }
        let folder = folder.into();
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        Ok(Self { folder, every, keep })
    }

    pub(crate) fn due(&self, progress: &Progress) -> bool {
        progress.step % self.every == 0 || progress.step == progress.steps
    }

    /// Files in the folder, the newest first.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io(&self.folder))? {
            let path = entry.map_err(io(&self.folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let step = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".checkpoint"));
            if let Some(step) = step.and_then(|step| step.parse::<u64>().ok()) {
                files.push((step, path));
            }
        }
        files.sort();
        Ok(files.into_iter().rev().map(|(_, path)| path).collect())
    }

    /// Saves where a run is, then removes old files.
    ///
    /// # Errors
    /// The operating system's; what was there stays.
    pub fn save(&self, trainer: &mut Trainer) -> Result<PathBuf> {
        let path = self.folder.join(format!("step-{:010}.checkpoint", trainer.steps_done()));
        trainer.save(&path)?;
        for old in self.files()?.into_iter().filter(|file| *file != path).skip(self.keep - 1) {
            std::fs::remove_file(&old).map_err(io(&old))?;
        }
        Ok(path)
    }

    /// Takes a run up from the newest file that is whole. Returns which that was, and what was wrong with newer
    /// ones; without any whole file the run stays where it is.
    ///
    /// # Errors
    /// A file of another run ([`TrainingError::OtherRun`]): it is never passed over.
    pub fn restore(&self, trainer: &mut Trainer) -> Result<(Option<PathBuf>, Vec<TrainingError>)> {
        let mut spoilt = Vec::new();
        for path in self.files()? {
            match trainer.load(&path) {
                Ok(()) => return Ok((Some(path), spoilt)),
                Err(error @ (TrainingError::Checkpoint { .. } | TrainingError::Io { .. })) => {
                    spoilt.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((None, spoilt))
    }
}
