//! What is in a checkpoint, without running it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pilotfish_architectures::{ArchitectureError, CausalNetwork, Checkpoint, Network};

/// What is in a checkpoint.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Inspection {
    /// The file or folder.
    pub path: PathBuf,
    /// The name it gives itself.
    pub name: String,
    /// The architecture, such as `llama`.
    pub architecture: String,
    /// Number of parameters; a matrix that is used twice counts once.
    pub parameters: usize,
    /// Bytes on the disk.
    pub bytes: u64,
    /// How the weights are stored: encoding to parameters stored that way. Empty where it is not known.
    pub encodings: BTreeMap<String, usize>,
    /// Dimensions, by name.
    pub dimensions: Vec<(&'static str, String)>,
    /// What the model can do once it is loaded.
    pub capabilities: Vec<&'static str>,
}

/// Opens a checkpoint and says what is in it.
///
/// # Errors
/// It cannot be read, or its architecture is not written here.
pub fn inspect(path: &Path) -> Result<Inspection, ArchitectureError> {
    let checkpoint = Checkpoint::open(path)?;
    let has_tokenizer = match checkpoint.tokenizer() {
        Ok(_) => "yes".into(),
        Err(error) => format!("no ({error})"),
    };
    let mut encodings = BTreeMap::new();
    let (architecture, parameters, mut dimensions, capabilities) = match checkpoint.network() {
        Network::Causal(network) => {
            let dimensions = causal_dimensions(&checkpoint, network, &mut encodings);
            let capabilities = vec![
                "causal: chains and token trees",
                "embeddings in",
                "embedding table, final norm and head as separate calls",
                "taps: the final normed state; residuals listed when it is loaded",
                "layer ranges between cuts listed when it is loaded",
            ];
            (network.config().family.clone(), network.parameters(), dimensions, capabilities)
        }
        Network::Masked(masked) => {
            let network = masked.network();
            let mut dimensions = causal_dimensions(&checkpoint, network, &mut encodings);
            dimensions.push(("mask token", masked.mask().to_string()));
            dimensions.push(("logits shifted by one", yes(masked.shift())));
            let capabilities = vec!["masked: texts with holes, in both directions", "block caches"];
            (network.config().family.clone(), network.parameters(), dimensions, capabilities)
        }
        Network::Encoder(network) => {
            let config = network.config();
            let dimensions = vec![
                ("vocabulary", config.vocab.to_string()),
                ("width", config.width.to_string()),
                ("layers", config.layers.to_string()),
                ("heads", config.heads.to_string()),
                ("feed-forward width", config.ffn.to_string()),
                ("context", config.context.to_string()),
            ];
            ("bert".to_owned(), network.parameters(), dimensions, vec!["sentence encoder"])
        }
    };
    dimensions.push(("tokeniser", has_tokenizer));
    Ok(Inspection {
        path: path.to_owned(),
        name: checkpoint.name().to_owned(),
        architecture,
        parameters,
        bytes: bytes_on_disk(path),
        encodings,
        dimensions,
        capabilities,
    })
}

/// Dimensions of a decoder-only network; counts how its weights are stored.
fn causal_dimensions(
    checkpoint: &Checkpoint,
    network: &CausalNetwork,
    encodings: &mut BTreeMap<String, usize>,
) -> Vec<(&'static str, String)> {
    let config = network.config();
    for (_, stored) in network.weights().iter() {
        let numbers: usize = stored.tensor.shape().iter().product();
        *encodings.entry(stored.encoding.to_string()).or_default() += numbers;
    }
    vec![
        ("vocabulary", config.vocab.to_string()),
        ("width", config.width.to_string()),
        ("layers", config.layers.to_string()),
        ("heads (keys and values)", format!("{} ({})", config.heads, config.kv_heads)),
        ("numbers a head", config.head_dim.to_string()),
        ("feed-forward width", config.ffn.to_string()),
        ("context", config.context.to_string()),
        ("layers with a window", config.windows.iter().flatten().count().to_string()),
        ("embedding and head tied", yes(config.tied)),
        ("chat template", yes(matches!(checkpoint.chat_template(), Ok(Some(_))))),
    ]
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn bytes_on_disk(path: &Path) -> u64 {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().filter_map(|e| e.metadata().ok()).map(|file| file.len()).sum(),
        Err(_) => std::fs::metadata(path).map_or(0, |file| file.len()),
    }
}

impl std::fmt::Display for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rows: Vec<(&str, String)> = vec![
            ("name", self.name.clone()),
            ("architecture", self.architecture.clone()),
            ("parameters", millions(self.parameters as u64)),
            ("bytes", millions(self.bytes)),
        ];
        if !self.encodings.is_empty() {
            let parts: Vec<_> = self
                .encodings
                .iter()
                .map(|(encoding, numbers)| format!("{encoding}: {}", millions(*numbers as u64)))
                .collect();
            rows.push(("stored as", parts.join(", ")));
        }
        rows.extend(self.dimensions.iter().map(|(name, value)| (*name, value.clone())));
        rows.extend(
            self.capabilities
                .iter()
                .enumerate()
                .map(|(i, text)| (if i == 0 { "can" } else { "" }, (*text).to_owned())),
        );
        table(f, &self.path, &rows)
    }
}

/// A path, and names with values below it.
pub(super) fn table(
    f: &mut std::fmt::Formatter<'_>,
    path: &Path,
    rows: &[(&str, String)],
) -> std::fmt::Result {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    writeln!(f, "{}", path.display())?;
    rows.iter().try_for_each(|(name, value)| writeln!(f, "  {name:width$}  {value}"))
}

/// A count for people: `134.5 M`.
pub(crate) fn millions(count: u64) -> String {
    match count {
        0..1_000_000 => count.to_string(),
        _ => format!("{:.1} M", count as f64 / 1e6),
    }
}
