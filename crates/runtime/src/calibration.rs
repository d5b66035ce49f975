//! Which kernels are faster here: measured once for each matrix size and kept in the cache folder.
//!
//! A matrix is multiplied by ONNX Runtime's kernel and by ours, one after the other, in sessions that hold so many
//! copies of it that they do not fit into a cache, as a model's matrices do not. The best of a few rounds counts: what
//! else the machine does can only make a round slower.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fs4::fs_std::FileExt;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::Tensor as OrtTensor;
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{BinaryOp, DType, Dim, Graph, Op, Storage, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::home::Home;
use crate::products::{Products, lower_products_where, packed_bytes, product_operators};
use crate::{Result, RuntimeError, SessionConfig, library};

/// Rows that are measured; others lie between two of them, or cost as the last one does.
pub const CALIBRATED_ROWS: [usize; 5] = [1, 2, 4, 8, 16];
/// Raised whenever another thing is measured.
const FORMAT: u32 = 2;
/// Bytes that no cache of a desk or of a shared server's core holds.
const OUT_OF_CACHE: usize = 64 << 20;
const ROUNDS: usize = 5;

/// What a product of some rows takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Rows.
    pub rows: usize,
    /// ONNX Runtime's kernel, in microseconds.
    pub ort: f64,
    /// Ours.
    pub pilotfish: f64,
}

/// A timing at a number of rows that need not have been measured.
pub(crate) fn at(timings: &[Timing], rows: usize) -> Option<Timing> {
    let above = timings.iter().find(|timing| timing.rows >= rows);
    let below = timings.iter().rev().find(|timing| timing.rows <= rows);
    match (below, above) {
        (Some(low), Some(high)) if low.rows < high.rows => {
            let share = (rows - low.rows) as f64 / (high.rows - low.rows) as f64;
            let between = |low: f64, high: f64| low + share * (high - low);
            Some(Timing {
                rows,
                ort: between(low.ort, high.ort),
                pilotfish: between(low.pilotfish, high.pilotfish),
            })
        }
        (_, Some(&only)) | (Some(&only), None) => Some(only),
        (None, None) => None,
    }
}

/// The timings of one machine and version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    machine: String,
    versions: String,
    timings: BTreeMap<String, Vec<Timing>>,
}

/// Timings, in a file that several processes may use.
#[derive(Debug)]
pub struct Calibration {
    path: PathBuf,
    kept: Kept,
}

impl Calibration {
    /// The one of this machine, of this version and of the ONNX Runtime that is loaded, in the cache folder.
    ///
    /// # Errors
    /// No cache folder, no library.
    pub fn open() -> Result<Self> {
        library::environment()?;
        let folder = Home::locate()?.root().join("calibration");
        let versions = format!(
            "pilotfish {}, {FORMAT}, {}",
            env!("CARGO_PKG_VERSION"),
            library::describe().unwrap_or_else(|| "an unknown library".into())
        );
        Ok(Self::at(&folder, &machine(), &versions))
    }

    /// In a folder, for a machine and versions by name; what cannot be read there is measured again.
    pub(crate) fn at(folder: &Path, machine: &str, versions: &str) -> Self {
        let digest = Sha256::digest(format!("{machine}\n{versions}"));
        let key: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let kept = Kept { machine: machine.into(), versions: versions.into(), ..Kept::default() };
        let mut own = Self { path: folder.join(format!("{key}.json")), kept };
        own.read();
        own
    }

    fn read(&mut self) {
        let Ok(bytes) = std::fs::read(&self.path) else { return };
        match serde_json::from_slice::<Kept>(&bytes) {
            Ok(kept) if kept.machine == self.kept.machine && kept.versions == self.kept.versions => {
                self.kept = kept;
            }
            _ => tracing::warn!("{} is not a calibration; it is made anew", self.path.display()),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The timings of a matrix `[outs, ins]`, measured now if they never were; `threads` as
    /// [`SessionConfig::threads`]. A storage that our kernels do not have has none.
    ///
    /// # Errors
    /// A session that cannot be opened, a file that cannot be written.
    pub fn timings(&mut self, storage: Storage, shape: [usize; 2], threads: usize) -> Result<Vec<Timing>> {
        if packed_bytes(storage, shape).is_none() {
            return Ok(Vec::new());
        }
        let key = format!("{storage} {shape:?} {threads}");
        let valid = |timings: &&Vec<Timing>| {
            !timings.is_empty() && timings.iter().all(|timing| timing.ort > 0.0 && timing.pilotfish > 0.0)
        };
        if let Some(timings) = self.kept.timings.get(&key).filter(valid) {
            return Ok(timings.clone());
        }
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| RuntimeError::io(folder, source))?;
        }
        // Two that measure at once would measure each other.
        let lock = self.path.with_extension("lock");
        let file = File::create(&lock).map_err(|source| RuntimeError::io(&lock, source))?;
        file.lock_exclusive().map_err(|source| RuntimeError::io(&lock, source))?;
        self.read();
        if let Some(timings) = self.kept.timings.get(&key).filter(valid) {
            return Ok(timings.clone());
        }
        tracing::info!("measuring products with a matrix {key}");
        let timings = measure(storage, shape, threads)?;
        self.kept.timings.insert(key, timings.clone());
        let text = serde_json::to_vec_pretty(&self.kept).unwrap_or_default();
        let partial = self.path.with_extension("partial");
        std::fs::write(&partial, text).map_err(|source| RuntimeError::io(&partial, source))?;
        std::fs::rename(&partial, &self.path).map_err(|source| RuntimeError::io(&self.path, source))?;
        Ok(timings)
    }
}

/// What the speed of a product depends on here.
fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let name = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!("{name}, {cores} cores, {}", pilotfish_kernels::Isa::best().name())
}

/// Matrices that differ by a factor, as ONNX Runtime keeps equal ones once; their products joined by their maximum: `[1, T, ins]` to `[1, T, outs]`.
pub(crate) fn repeated(storage: Storage, [outs, ins]: [usize; 2], copies: usize) -> Result<Graph> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let matrix = Tensor::new([outs, ins], (0..outs * ins).map(|_| next()).collect())?;
    let mut g = Graph::new("products");
    let x = g.input("x", vec![1.into(), Dim::symbol("T"), ins.into()], DType::F32)?;
    let mut most = None;
    for copy in 0..copies {
        let factor = 1.0 + copy as f32 / 256.0;
        let scaled = matrix.derive([outs, ins], move |matrix, rows| {
            Ok(matrix.rows(rows)?.into_iter().map(|x| factor * x).collect())
        });
        let w = g.param(&format!("w{copy}"), scaled)?;
        let y = g.apply(Op::Linear(storage), &[x, w])?[0];
        most = Some(match most {
            Some(most) => g.apply(Op::Binary(BinaryOp::Max), &[most, y])?[0],
            None => y,
        });
    }
    if let Some(most) = most {
        g.output("y", most)?;
    }
    Ok(g)
}

fn measure(storage: Storage, shape: [usize; 2], threads: usize) -> Result<Vec<Timing>> {
    let variants = [(storage, Products::Ort), (storage, Products::Pilotfish)];
    let best = compare(&variants, shape, threads, Some(OUT_OF_CACHE), &CALIBRATED_ROWS, ROUNDS)?;
    Ok(best.into_iter().map(|(rows, best)| Timing { rows, ort: best[0], pilotfish: best[1] }).collect())
}

/// Best times of one product with a matrix `[outs, ins]`, in microseconds, for each number of rows and each variant:
/// how the matrix is stored and whose kernel multiplies it. Sessions of all variants are run in turn, one number of
/// rows after the other. With `memory`, each holds so many copies of the matrix that they take up so many bytes (256
/// at most), and else one.
///
/// # Errors
/// A graph or session that cannot be made; [`Products::Auto`], which is no kernel.
pub fn compare(
    variants: &[(Storage, Products)],
    shape: [usize; 2],
    threads: usize,
    memory: Option<usize>,
    widths: &[usize],
    rounds: usize,
) -> Result<Vec<(usize, Vec<f64>)>> {
    let folder = tempfile::tempdir().map_err(|source| RuntimeError::io(std::env::temp_dir(), source))?;
    let mut sessions = Vec::new();
    for (index, &(storage, products)) in variants.iter().enumerate() {
        let bytes = packed_bytes(storage, shape).unwrap_or(1).max(1);
        let copies = memory.map_or(1, |memory| memory.div_ceil(bytes).clamp(1, 256));
        let graph = repeated(storage, shape, copies)?;
        let (lowered, operators) = match products {
            Products::Ort => (graph, vec![]),
            Products::Pilotfish | Products::PilotfishA8 => {
                let lowered = lower_products_where(&graph, products.activations(), |_, _| true)?;
                (lowered, vec![product_operators(threads)])
            }
            Products::Auto { .. } => {
                let (value, want) = (products.to_string(), "ort, pilotfish or pilotfish-a8");
                return Err(RuntimeError::Option { option: "products", value, want });
            }
        };
        let path = folder.path().join(format!("{index}.onnx"));
        // As models are written: ONNX Runtime's products of blocks are among its own operators.
        onnx::write(&lowered, Lowering::Fused { positions: 1 }, &path)?;
        let session = SessionConfig { threads, operators, ..SessionConfig::default() }.open(&path)?;
        let binding = session.create_binding()?;
        sessions.push((session, binding, copies));
    }
    let place = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
    let ins = shape[1];
    let mut best = vec![vec![f64::INFINITY; variants.len()]; widths.len()];
    // The first round warms up.
    for round in 0..=rounds {
        for (&width, best) in widths.iter().zip(&mut best) {
            let values = (0..width * ins).map(|i| (i * 7919 % 1999) as f32 / 999.5 - 1.0).collect::<Vec<_>>();
            let x = OrtTensor::from_array(([1, width, ins], values))?;
            for ((session, binding, copies), best) in sessions.iter_mut().zip(best) {
                binding.bind_input("x", &x)?;
                binding.bind_output_to_device("y", &place)?;
                // A matrix that is to be in cache must not have been driven out by the variant before.
                let warm = usize::from(memory.is_none());
                for again in 0..=warm {
                    let clock = Instant::now();
                    session.run_binding(binding)?;
                    let time = 1e6 * clock.elapsed().as_secs_f64() / *copies as f64;
                    if round > 0 && again == warm {
                        *best = best.min(time);
                    }
                }
            }
        }
    }
    Ok(widths.iter().copied().zip(best).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TWO: [Timing; 2] =
        [Timing { rows: 2, ort: 10.0, pilotfish: 20.0 }, Timing { rows: 6, ort: 30.0, pilotfish: 24.0 }];

    #[test]
    fn times_between_and_beyond() {
        assert_eq!(at(&TWO, 2), Some(TWO[0]));
        assert_eq!(at(&TWO, 3), Some(Timing { rows: 3, ort: 15.0, pilotfish: 21.0 }));
        assert_eq!(at(&TWO, 1), Some(TWO[0]));
        assert_eq!(at(&TWO, 60), Some(TWO[1]));
        assert_eq!(at(&[], 1), None);
    }

    #[test]
    fn files_of_other_machines_and_spoilt_ones_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut own = Calibration::at(folder.path(), "m", "v");
        own.kept.timings.insert("f32 [2, 3] 1".into(), TWO.to_vec());
        std::fs::write(own.path(), serde_json::to_vec(&own.kept).unwrap()).unwrap();
        let mut again = Calibration::at(folder.path(), "m", "v");
        // Nothing is measured: no library is loaded here.
        assert_eq!(again.timings(Storage::F32, [2, 3], 1).unwrap(), TWO);
        for (machine, versions) in [("m2", "v"), ("m", "v2")] {
            let other = Calibration::at(folder.path(), machine, versions);
            assert!(other.path() != own.path() && other.kept.timings.is_empty());
        }
        let whole = std::fs::read(own.path()).unwrap();
        for cut in 0..whole.len() - 1 {
            std::fs::write(own.path(), &whole[..cut]).unwrap();
            assert!(Calibration::at(folder.path(), "m", "v").kept.timings.is_empty());
        }
    }

    /// Equal ones would be kept once and read from a cache.
    #[test]
    fn copies_of_a_matrix_differ() {
        let graph = repeated(Storage::F32, [2, 3], 256).unwrap();
        let mut seen = std::collections::HashSet::new();
        for param in graph.params() {
            let bits: Vec<u32> = param.tensor.to_f32().unwrap().iter().map(|x| x.to_bits()).collect();
            assert!(seen.insert(bits), "{}", param.name);
        }
        assert_eq!(seen.len(), 256);
    }

    #[test]
    fn a_storage_that_is_not_ours_has_no_timings() {
        let folder = tempfile::tempdir().unwrap();
        let mut own = Calibration::at(folder.path(), "m", "v");
        assert!(own.timings(Storage::Int4 { block: 16 }, [2, 32], 1).unwrap().is_empty());
    }
}
