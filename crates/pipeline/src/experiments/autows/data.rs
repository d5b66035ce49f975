//! Data sets as feature maps: images as pixels, messages as words and as embeddings.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array2, Axis};
use pilotfish_model::Streams;
use pilotfish_supervision::autows::draw;
use pilotfish_supervision::autows::features::{permute_images, principal};
use serde::{Deserialize, Serialize};

use crate::datasets::{DIGITS, MNIST_5K, Message, NEWSGROUPS, read_images, read_messages};
use crate::error::Failure;
use crate::experiments::Context;
use crate::experiments::features::{BATCH, Encoder, Reader, TOKENS, matrix};
use crate::steps::Run;

/// Principal components.
const COMPONENTS: usize = 100;
/// Words of the bag of words.
const WORDS: usize = 1000;
/// Characters of a message that words are taken from.
const CHARACTERS: usize = 500;

/// A data set with its feature maps.
pub(super) struct Data {
    pub(super) name: &'static str,
    pub(super) classes: usize,
    pub(super) y: Vec<usize>,
    /// Items from which labelled and unlabelled ones are drawn.
    pub(super) pool: Vec<usize>,
    pub(super) test: Vec<usize>,
    pub(super) features: Vec<(&'static str, Array2<f64>)>,
    /// Scores of classes that need no label: `[items, classes]`.
    pub(super) zero_shot: Vec<(&'static str, Array2<f64>)>,
    /// Name of the streams of its draws: data sets that share it have the same draws.
    pub(super) draws: &'static str,
}

/// A group: its name, the first word by which the language model may call it, and its description for the encoder.
const GROUPS: [(&str, &str, &str); 20] = [
    ("alt.atheism", " atheism", "atheism"),
    ("comp.graphics", " graphics", "computer graphics"),
    ("comp.os.ms-windows.misc", " Windows", "the Microsoft Windows operating system"),
    ("comp.sys.ibm.pc.hardware", " PC", "IBM PC hardware"),
    ("comp.sys.mac.hardware", " Mac", "Macintosh hardware"),
    ("comp.windows.x", " X", "the X window system"),
    ("misc.forsale", " sale", "things for sale"),
    ("rec.autos", " cars", "cars"),
    ("rec.motorcycles", " motorcycles", "motorcycles"),
    ("rec.sport.baseball", " baseball", "baseball"),
    ("rec.sport.hockey", " hockey", "hockey"),
    ("sci.crypt", " encryption", "cryptography"),
    ("sci.electronics", " electronics", "electronics"),
    ("sci.med", " medicine", "medicine"),
    ("sci.space", " space", "space flight"),
    ("soc.religion.christian", " Christianity", "the Christian religion"),
    ("talk.politics.guns", " guns", "guns and politics"),
    ("talk.politics.mideast", " Israel", "politics of the Middle East"),
    ("talk.politics.misc", " politics", "politics"),
    ("talk.religion.misc", " religion", "religion"),
];

/// Steps that embeddings take.
pub(super) fn steps(messages: usize) -> u64 {
    2 * messages.div_ceil(BATCH) as u64
}

/// Digits, the same with rows and columns in bit-reversed order, and a part of MNIST.
pub(super) fn images(context: &Context, seed: u64) -> Result<Vec<Data>, Failure> {
    let mut out = Vec::new();
    for (name, file, train, test) in [("digits", DIGITS, 1297, 500), ("mnist-5k", MNIST_5K, 2100, 1000)] {
        let read = read_images(&context.model(name)?, file)?;
        let all = Array2::from_shape_vec((file.items, file.pixels), read.pixels)?;
        let items: Vec<usize> = (0..file.items).collect();
        let streams = Streams::new(seed).fork(file.items as u64);
        let (test_items, rest) = draw(&items, &read.classes, file.classes, test, &streams)?;
        let (pool, _) = draw(&rest, &read.classes, file.classes, train, &streams.fork(1))?;
        let chosen: Vec<usize> = pool.iter().chain(&test_items).copied().collect();
        let raw = all.select(Axis(0), &chosen);
        let y: Vec<usize> = chosen.iter().map(|item| read.classes[*item]).collect();
        let data = |name, raw: Array2<f64>| -> Result<Data, Failure> {
            let components = principal(raw.view(), COMPONENTS, seed)?;
            Ok(Data {
                name,
                classes: file.classes,
                y: y.clone(),
                pool: (0..train).collect(),
                test: (train..train + test).collect(),
                features: vec![("raw", raw), ("PCA", components)],
                zero_shot: Vec::new(),
                draws: if name == "mnist-5k" { name } else { "digits" },
            })
        };
        if name == "digits" {
            let permuted = permute_images(raw.view())?;
            out.extend([data("digits", raw)?, data("permuted digits", permuted)?]);
        } else {
            out.push(data(name, raw)?);
        }
    }
    Ok(out)
}

/// Messages of 20 groups: words, their principal components, embeddings of two models.
pub(super) fn messages(
    context: &Context,
    run: &mut Run,
    train: usize,
    test: usize,
    seed: u64,
) -> Result<Data, Failure> {
    let folder = context.model("20newsgroups")?;
    let streams = Streams::new(seed).fork(20);
    let mut texts = Vec::new();
    let mut y = Vec::new();
    for (split, (file, count)) in [("train", train), ("test", test)].into_iter().enumerate() {
        let all = read_messages(&folder.join(format!("20newsgroups-{file}.tab")), NEWSGROUPS[split])?;
        let classes: Vec<usize> = all.iter().map(class).collect::<Result<_, _>>()?;
        // A message without words says nothing to anybody.
        let items: Vec<usize> = (0..all.len()).filter(|item| !all[*item].text.trim().is_empty()).collect();
        for item in draw(&items, &classes, GROUPS.len(), count, &streams.fork(split as u64))?.0 {
            texts.push(all[item].text.chars().take(CHARACTERS).collect::<String>());
            y.push(classes[item]);
        }
    }
    let words = bag_of_words(&texts, train);
    let components = principal(words.view(), COMPONENTS, seed)?;
    let (encoded, likeness) = encode(context, run, &texts)?;
    let (states, names) = read(context, run, &texts)?;
    Ok(Data {
        name: "20 newsgroups",
        classes: GROUPS.len(),
        y,
        pool: (0..train).collect(),
        test: (train..train + test).collect(),
        features: vec![
            ("raw", words),
            ("PCA", components),
            ("MiniLM", encoded),
            ("SmolLM2", states),
            ("class names", likeness.clone()),
        ],
        zero_shot: vec![("MiniLM", likeness), ("SmolLM2", names)],
        draws: "20newsgroups",
    })
}

fn class(message: &Message) -> Result<usize, Failure> {
    let found = GROUPS.iter().position(|(name, ..)| *name == message.group);
    found.ok_or_else(|| format!("there is no group {:?}", message.group).into())
}

/// Presence of the words that most texts of the first `train` have, of those in at most half of them; ties in alphabetical
/// order.
fn bag_of_words(texts: &[String], train: usize) -> Array2<f64> {
    let sets: Vec<BTreeSet<&str>> = texts.iter().map(|text| text.split_whitespace().collect()).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    sets[..train].iter().flatten().for_each(|word| *counts.entry(word).or_default() += 1);
    let mut words: Vec<(&str, usize)> = counts.into_iter().filter(|(_, count)| 2 * count <= train).collect();
    words.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    words.truncate(WORDS);
    Array2::from_shape_fn((texts.len(), words.len()), |(text, word)| {
        f64::from(u8::from(sets[text].contains(words[word].0)))
    })
}

/// Embeddings of the sentence encoder, and cosines with the groups' descriptions.
fn encode(context: &Context, run: &mut Run, texts: &[String]) -> Result<(Array2<f64>, Array2<f64>), Failure> {
    let mut encoder = Encoder::open(context, "minilm")?;
    let mut rows = Vec::new();
    for (at, batch) in texts.chunks(BATCH).enumerate() {
        rows.extend(run.step(&format!("MiniLM, messages {}", at * BATCH), || encoder.embed(batch))?);
    }
    let descriptions: Vec<String> =
        GROUPS.iter().map(|(_, _, what)| format!("a message about {what}")).collect();
    let classes = run.step("MiniLM, descriptions", || encoder.embed(&descriptions))?;
    let (rows, classes) = (matrix(&rows)?, matrix(&classes)?);
    let likeness = rows.dot(&classes.t());
    Ok((rows, likeness))
}

/// What the language model makes of one message.
#[derive(Serialize, Deserialize)]
struct Reading {
    /// Mean of the last states of its tokens.
    mean: Vec<f32>,
    /// Logits of the groups' first words after "Topic:".
    names: Vec<f32>,
}

/// Mean states of the language model, and what it says is the topic.
fn read(context: &Context, run: &mut Run, texts: &[String]) -> Result<(Array2<f64>, Array2<f64>), Failure> {
    let mut reader = Reader::open(context, "smollm2-135m")?;
    let question = reader.tokenizer().encode("\nTopic:", false)?;
    let mut firsts = Vec::new();
    for (_, word, _) in GROUPS {
        firsts.extend(reader.tokenizer().encode(word, false)?.first().copied());
    }
    if firsts.iter().collect::<BTreeSet<_>>().len() != GROUPS.len() {
        return Err("two groups' names begin with the same token of this model".into());
    }
    let mut one = |text: &String| -> Result<Reading, Failure> {
        let read = reader.read(text, TOKENS, &question)?;
        let names = firsts.iter().map(|token| read.logits[*token as usize]).collect();
        Ok(Reading { mean: read.mean, names })
    };
    let mut rows: Vec<Reading> = Vec::new();
    for (at, batch) in texts.chunks(BATCH).enumerate() {
        rows.extend(run.step(&format!("SmolLM2, messages {}", at * BATCH), || {
            batch.iter().map(&mut one).collect::<Result<Vec<_>, Failure>>()
        })?);
    }
    let (means, names): (Vec<_>, Vec<_>) =
        rows.into_iter().map(|reading| (reading.mean, reading.names)).unzip();
    Ok((matrix(&means)?, matrix(&names)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_by_hand() {
        let texts = ["a b a", "a c", "b a", "a zz", "b new"].map(str::to_owned);
        // Of the first four texts, a is in more than half; b in two; c and zz in one, in alphabetical order.
        let want = ndarray::array![
            [1.0, 0.0, 0.0],
            [0.0, 1.0, 0.0],
            [1.0, 0.0, 0.0],
            [0.0, 0.0, 1.0],
            [1.0, 0.0, 0.0]
        ];
        assert_eq!(bag_of_words(&texts, 4), want);
    }

    #[test]
    fn groups_are_twenty_different_ones() {
        let names: BTreeSet<_> = GROUPS.iter().map(|group| group.0).collect();
        let words: BTreeSet<_> = GROUPS.iter().map(|group| group.1).collect();
        assert_eq!((names.len(), words.len()), (20, 20));
        let message = |group: &str| Message { group: group.into(), text: String::new() };
        assert_eq!(class(&message("sci.space")).ok(), Some(14));
        assert!(class(&message("sci.spice")).is_err());
    }
}
