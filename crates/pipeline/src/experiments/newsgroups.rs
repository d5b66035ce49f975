//! Messages of 20 newsgroups with the features that two models have of them.

use std::collections::BTreeSet;

use ndarray::Array2;
use pilotfish_model::Streams;
use rand::seq::SliceRandom;

use super::Context;
use super::features::{Model, of_texts};
use crate::datasets::{NEWSGROUPS, read_messages};
use crate::error::Failure;

/// Characters of a message that are read.
const CHARACTERS: usize = 500;

/// Messages of one group, each text once, in an order of its own.
pub(super) struct Group {
    pub(super) texts: Vec<String>,
    /// Embeddings of the sentence encoder.
    pub(super) minilm: Array2<f64>,
    /// Mean last states of the language model.
    pub(super) smollm2: Array2<f64>,
}

/// Up to `most` messages of each group, of both of the data set's splits. A text that is in two groups is in neither.
pub(super) fn load(context: &Context, names: &[&str], most: usize) -> Result<Vec<Group>, Failure> {
    let folder = context.model("20newsgroups")?;
    let mut texts: Vec<Vec<String>> = vec![Vec::new(); names.len()];
    let (mut seen, mut twice) = (BTreeSet::new(), BTreeSet::new());
    for (file, count) in ["train", "test"].into_iter().zip(NEWSGROUPS) {
        for message in read_messages(&folder.join(format!("20newsgroups-{file}.tab")), count)? {
            let text: String = message.text.chars().take(CHARACTERS).collect();
            if text.trim().is_empty() {
                continue;
            }
            let group = names.iter().position(|name| *name == message.group);
            if !seen.insert(text.clone()) {
                // Posted to a group once more, it stays; posted to another, it says nothing of either.
                if !group.is_some_and(|group| texts[group].contains(&text)) {
                    twice.insert(text);
                }
            } else if let Some(group) = group {
                texts[group].push(text);
            }
        }
    }
    let build = |(name, mut texts): (&&str, Vec<String>)| -> Result<Group, Failure> {
        texts.retain(|text| !twice.contains(text));
        texts.shuffle(&mut Streams::new(0).stream(name));
        texts.truncate(most);
        let minilm = of_texts(context, Model::MiniLm, &texts)?;
        let smollm2 = of_texts(context, Model::SmolLm2, &texts)?;
        Ok(Group { texts, minilm, smollm2 })
    };
    names.iter().zip(texts).map(build).collect()
}
