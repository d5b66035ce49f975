//! Text to tokens and back.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use pilotfish_graph::weights::gguf::{Gguf, Metadata};
use serde_json::Value as Json;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NormalizerWrapper, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{
    AddedToken, DecoderWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Inner,
};

use crate::{ArchitectureError, Result};

/// The largest `tokenizer.json` that is read.
const LARGEST_FILE: u64 = 64 << 20;
/// Ids beyond this are taken for a broken file.
const LARGEST_ID: u64 = 1 << 24;
/// Text longer than this is encoded in pieces cut at white space: merging is quadratic in the worst case.
const PIECE: usize = 1 << 20;
/// A run without white space longer than this is refused for the same reason.
const LONGEST_WORD: usize = 1 << 22;

/// Llama 3's pattern of words, from its published tokenizer.json.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokeniser.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    bytes: HashMap<char, u8>,
    byte_level: bool,
    /// Ids of tokens that are matched as they are written.
    added: HashSet<u32>,
}

fn refuse(why: impl std::fmt::Display) -> ArchitectureError {
    ArchitectureError::Tokenizer(why.to_string())
}

/// Some malformed tokenisers make the library panic instead of returning an error.
fn guarded<T>(what: &str, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| refuse(format!("{what}: {error}"))),
        Err(_) => Err(refuse(format!("{what}: the tokeniser is malformed"))),
    }
}

impl Tokenizer {
    /// The text of a `tokenizer.json` that gives this tokeniser back.
    ///
    /// # Errors
    /// A tokeniser that cannot be written.
    pub fn to_json(&self) -> Result<String> {
        guarded("writing", || self.inner.to_string(false))
    }

    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is too large or is not a tokeniser; merges of tokens that do not exist; two tokens with one
    /// id; truncation or padding that can never work.
    pub fn from_file(path: &Path) -> Result<Self> {
        let meta =
            std::fs::metadata(path).map_err(|error| ArchitectureError::malformed(path, error.to_string()))?;
        if !meta.is_file() || meta.len() > LARGEST_FILE {
            return Err(ArchitectureError::malformed(path, "not a regular file of at most 64 MB"));
        }
        let bytes =
            std::fs::read(path).map_err(|error| ArchitectureError::malformed(path, error.to_string()))?;
        Self::from_bytes(&bytes).map_err(|error| ArchitectureError::malformed(path, error.to_string()))
    }

    /// Reads the contents of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let json: Json = serde_json::from_slice(bytes).map_err(refuse)?;
        validate(&json)?;
        let mut inner = guarded("reading", || Inner::from_bytes(bytes))?;
        // Padding and truncation belong to batches, not to texts.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(refuse)?;
        check_added(&json, &inner)?;
        Ok(Self::wrap(inner))
    }

    /// Rebuilds a tokeniser from GGUF metadata: byte-level BPE with merges (`gpt2`), or BPE by scores with byte
    /// fall-back (`llama`, as SentencePiece does it).
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let texts: Vec<&str> = gguf
            .list("tokenizer.ggml.tokens")?
            .iter()
            .map(|token| match token {
                Metadata::Text(text) => Ok(text.as_str()),
                _ => Err(refuse("a token is not a text")),
            })
            .collect::<Result<_>>()?;
        let kinds: Vec<i128> = match gguf.list("tokenizer.ggml.token_type") {
            Ok(kinds) => {
                kinds.iter().map(|kind| if let Metadata::Int(kind) = kind { *kind } else { 1 }).collect()
            }
            Err(_) => vec![1; texts.len()],
        };
        if kinds.len() != texts.len() {
            return Err(refuse("token_type and tokens differ in length"));
        }
        let mut inner = match gguf.text("tokenizer.ggml.model")? {
            "gpt2" => byte_level(gguf, &texts)?,
            "llama" => sentence_piece(gguf, &texts)?,
            other => {
                return Err(refuse(format!("tokeniser model {other:?} is not supported (gpt2, llama are)")));
            }
        };
        // 3: control, 4: user-defined.
        let special = |kind: i128| -> Vec<AddedToken> {
            let chosen = texts.iter().zip(&kinds).filter(|(_, other)| **other == kind);
            chosen.map(|(text, _)| AddedToken::from(text.to_string(), kind == 3).normalized(false)).collect()
        };
        guarded("special tokens", || inner.add_special_tokens(special(3)))?;
        guarded("added tokens", || inner.add_tokens(special(4)))?;
        inner.with_post_processor(around(gguf, &texts)?);
        Ok(Self::wrap(inner))
    }

    fn wrap(inner: Inner) -> Self {
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let added = inner.get_added_tokens_decoder().into_keys().collect();
        Self { inner, bytes: byte_characters(), byte_level, added }
    }

    /// Number of ids: one more than the largest.
    pub fn vocab(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The id of a token's text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Tokens of a text. With `special`, the template's own tokens are added around it (`[CLS]` and `[SEP]` in
    /// BERT); tokens named in the text, such as `<|im_start|>`, are always recognised.
    ///
    /// # Errors
    /// A run of more than 4 MB without white space; a tokeniser that has no tokens for some byte.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        if text.len() <= PIECE {
            return self.encode_piece(text, special);
        }
        // What the template puts around a text does not depend on the text.
        let (mut ids, after) = if special { self.around()? } else { Default::default() };
        let mut rest = text;
        while !rest.is_empty() {
            ids.extend(self.encode_piece(take_piece(&mut rest)?, false)?);
        }
        ids.extend(after);
        Ok(ids)
    }

    fn encode_piece(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        guarded("encoding", || Ok(self.inner.encode(text, special)?.get_ids().to_vec()))
    }

    /// The tokens that the template puts before and after a text.
    fn around(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let (bare, mut before) = (self.encode_piece("a", false)?, self.encode_piece("a", true)?);
        let at = before.windows(bare.len().max(1)).position(|window| window == bare);
        let at = at.ok_or_else(|| refuse("the template changes the text's own tokens"))?;
        let after = before.split_off(at + bare.len());
        before.truncate(at);
        Ok((before, after))
    }

    /// The text of tokens; with `skip_special`, control tokens are left out. Bytes that are no UTF-8 become
    /// replacement characters.
    ///
    /// # Errors
    /// An id without a token.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(refuse(format!("no token has the id {id}")));
        }
        guarded("decoding", || self.inner.decode(ids, skip_special))
    }

    /// The bytes a token stands for within a text; `None` for an id without a token. Joined, they are the text
    /// in byte-level vocabularies and in those with byte fall-back; tokenisers that drop white space, such as
    /// BERT's, have no such bytes and give the token as it is written.
    pub fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        if self.added.contains(&id) {
            return Some(token.into_bytes());
        }
        if self.byte_level {
            return token.chars().map(|c| self.bytes.get(&c).copied()).collect();
        }
        if let Some(byte) =
            token.strip_prefix("<0x").and_then(|hex| u8::from_str_radix(hex.strip_suffix('>')?, 16).ok())
        {
            return Some(vec![byte]);
        }
        Some(token.replace('\u{2581}', " ").into_bytes())
    }

    /// A decoder that gives text out as tokens come in.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder { tokenizer: self, pending: Vec::new() }
    }
}

/// Decodes token by token and never gives out half a character.
#[derive(Clone, Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u8>,
}

impl StreamDecoder<'_> {
    /// The text that this token completes; empty while a character is incomplete. Bytes that can never become a
    /// character are given out as replacement characters. An id without a token adds nothing.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.extend(self.tokenizer.bytes(id).unwrap_or_default());
        let mut out = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            used += chunk.valid().len();
            let broken = chunk.invalid();
            let unfinished = std::str::from_utf8(broken).is_err_and(|error| error.error_len().is_none());
            if broken.is_empty() || unfinished {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            used += broken.len();
        }
        self.pending.drain(..used);
        out
    }

    /// What is left at the end.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

fn take_piece<'t>(rest: &mut &'t str) -> Result<&'t str> {
    let text: &'t str = rest;
    if text.len() <= PIECE {
        *rest = "";
        return Ok(text);
    }
    // A cut before white space that follows a word: such a place always separates tokens.
    let cut = text.char_indices().zip(text.chars().skip(1)).find_map(|((at, c), next)| {
        let end = at + c.len_utf8();
        (end >= PIECE && !c.is_whitespace() && next.is_whitespace()).then_some(end)
    });
    let cut = cut.unwrap_or(text.len());
    if cut > LONGEST_WORD + PIECE {
        return Err(refuse("a run of more than 4 MB without white space"));
    }
    let (piece, after) = text.split_at(cut);
    *rest = after;
    Ok(piece)
}

/// Checks what the library would panic on, or would silently get wrong.
fn validate(json: &Json) -> Result<()> {
    if let Some(Json::Object(truncation)) = json.get("truncation") {
        let number = |key: &str| truncation.get(key).and_then(Json::as_u64).unwrap_or(0);
        if number("stride") >= number("max_length").max(1) {
            return Err(refuse("truncation: stride must be below max_length"));
        }
    }
    if json.pointer("/pre_tokenizer").is_some_and(has_zero_length) {
        return Err(refuse("a FixedLength pre-tokeniser of length 0"));
    }
    if let Some(processor) = json.get("post_processor") {
        check_template(processor)?;
    }
    let Some(model) = json.get("model") else { return Err(refuse("no model")) };
    // Unigram has a list of pairs, in which ids are places.
    if let Some(Json::Array(pairs)) = model.get("vocab") {
        let mut seen = HashMap::with_capacity(pairs.len());
        for (id, pair) in pairs.iter().enumerate() {
            let Some(token) = pair.get(0).and_then(Json::as_str) else {
                return Err(refuse(format!("entry {id} of the vocabulary has no token")));
            };
            if let Some(other) = seen.insert(token, id) {
                return Err(refuse(format!("ids {other} and {id} have the same token {token:?}")));
            }
        }
    }
    let Some(Json::Object(vocab)) = model.get("vocab") else { return Ok(()) };
    let mut owners: HashMap<u64, &str> = HashMap::with_capacity(vocab.len());
    for (token, id) in vocab {
        let Some(id) = id.as_u64().filter(|id| *id < LARGEST_ID) else {
            return Err(refuse(format!("token {token:?} has no id between 0 and 2^24")));
        };
        if let Some(other) = owners.insert(id, token) {
            return Err(refuse(format!("tokens {other:?} and {token:?} share the id {id}")));
        }
    }
    for merge in model.get("merges").and_then(Json::as_array).into_iter().flatten() {
        let pair = match merge {
            Json::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
            Json::Array(parts) => match parts.as_slice() {
                [Json::String(a), Json::String(b)] => Some((a.clone(), b.clone())),
                _ => None,
            },
            _ => None,
        };
        let Some((a, b)) = pair else { return Err(refuse(format!("merge {merge} is not a pair"))) };
        let prefix = model.get("continuing_subword_prefix").and_then(Json::as_str).unwrap_or("");
        let joined = format!("{a}{}", b.strip_prefix(prefix).unwrap_or(&b));
        if let Some(missing) = [&a, &b, &joined].into_iter().find(|token| !vocab.contains_key(*token)) {
            return Err(refuse(format!(
                "merge {a:?} {b:?} needs the token {missing:?}, which does not exist"
            )));
        }
    }
    Ok(())
}

/// A template must define the special tokens it names.
fn check_template(processor: &Json) -> Result<()> {
    for inner in processor.get("processors").and_then(Json::as_array).into_iter().flatten() {
        check_template(inner)?;
    }
    let pieces = ["single", "pair"].iter().filter_map(|key| processor.get(key)?.as_array()).flatten();
    for piece in pieces {
        let Some(id) = piece.pointer("/SpecialToken/id") else { continue };
        let defined = id.as_str().and_then(|id| processor.get("special_tokens")?.get(id));
        if defined.is_none() {
            return Err(refuse(format!("the template names {id}, which is not among its special tokens")));
        }
    }
    Ok(())
}

/// The library numbers added tokens itself: an id of the file that it cannot keep would be silently another.
fn check_added(json: &Json, inner: &Inner) -> Result<()> {
    for token in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
        let (Some(text), Some(id)) =
            (token.get("content").and_then(Json::as_str), token.get("id").and_then(Json::as_u64))
        else {
            return Err(refuse("an added token without content or id"));
        };
        match inner.token_to_id(text) {
            _ if text.is_empty() => {}
            Some(found) if u64::from(found) == id => {}
            other => {
                return Err(refuse(format!("the added token {text:?} has the id {id}, but gets {other:?}")));
            }
        }
    }
    Ok(())
}

fn has_zero_length(pre: &Json) -> bool {
    let own = pre.get("type").and_then(Json::as_str) == Some("FixedLength")
        && pre.get("length").and_then(Json::as_u64) == Some(0);
    own || pre
        .get("pretokenizers")
        .and_then(Json::as_array)
        .is_some_and(|list| list.iter().any(has_zero_length))
}

fn vocabulary(texts: &[&str]) -> Result<HashMap<String, u32>> {
    let mut vocab = HashMap::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        if let Some(other) = vocab.insert((*text).to_owned(), id as u32) {
            return Err(refuse(format!("ids {other} and {id} have the same token {text:?}")));
        }
    }
    Ok(vocab)
}

fn check_merge(vocab: &HashMap<String, u32>, a: &str, b: &str) -> Result<()> {
    let joined = format!("{a}{b}");
    match [a, b, &joined].into_iter().find(|token| !vocab.contains_key(*token)) {
        Some(missing) => {
            Err(refuse(format!("merge {a:?} {b:?} needs the token {missing:?}, which does not exist")))
        }
        None => Ok(()),
    }
}

/// The tokens that a file wants before and after a text.
fn around(gguf: &Gguf, texts: &[&str]) -> Result<Option<TemplateProcessing>> {
    let flag = |key: &str, default: bool| match gguf.metadata().get(key) {
        Some(Metadata::Bool(flag)) => *flag,
        _ => default,
    };
    let scores = gguf.text("tokenizer.ggml.model")? == "llama";
    let token = |wanted: bool, key: &str| -> Result<Option<(String, u32)>> {
        if !wanted || !gguf.has(key) {
            return Ok(None);
        }
        let id = gguf.count(key)?;
        let text = texts.get(id).ok_or_else(|| refuse(format!("{key} is {id}, which no token has")))?;
        Ok(Some(((*text).to_owned(), id as u32)))
    };
    let first = token(flag("tokenizer.ggml.add_bos_token", scores), "tokenizer.ggml.bos_token_id")?;
    let last = token(flag("tokenizer.ggml.add_eos_token", false), "tokenizer.ggml.eos_token_id")?;
    if first.is_none() && last.is_none() {
        return Ok(None);
    }
    // Pieces by place, since a token's text may contain anything.
    let mut single = Vec::new();
    let mut special = Vec::new();
    let mut put = |name: &str, token: &Option<(String, u32)>| -> Result<()> {
        if let Some((text, id)) = token {
            single.push(name.to_owned());
            special.push(SpecialToken::new(name.into(), vec![*id], vec![text.clone()]).map_err(refuse)?);
        }
        Ok(())
    };
    put("first", &first)?;
    put("last", &last)?;
    single.insert(usize::from(first.is_some()), "$A".into());
    let template =
        TemplateProcessing::builder().try_single(single).map_err(refuse)?.special_tokens(special).build();
    template.map(Some).map_err(refuse)
}

fn byte_level(gguf: &Gguf, texts: &[&str]) -> Result<Inner> {
    let vocab = vocabulary(texts)?;
    let mut merges = Vec::new();
    for merge in gguf.list("tokenizer.ggml.merges")? {
        let Metadata::Text(text) = merge else { return Err(refuse("a merge is not a text")) };
        let Some((a, b)) = text.split_once(' ') else {
            return Err(refuse(format!("merge {text:?} is not a pair")));
        };
        check_merge(&vocab, a, b)?;
        merges.push((a.to_owned(), b.to_owned()));
    }
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
    let model = guarded("merges", || {
        let builder = BPE::builder().vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges);
        // Llama 3 takes a whole word that is a token without merging.
        builder.ignore_merges(pre == "llama-bpe").build()
    })?;
    let mut inner = Inner::new(model);
    let byte_level = ByteLevel::new(false, true, true);
    let steps: Vec<PreTokenizerWrapper> = match pre {
        "default" | "gpt-2" => vec![byte_level.into()],
        "smollm" => vec![Digits::new(true).into(), byte_level.into()],
        "llama-bpe" => {
            let pattern = SplitPattern::Regex(LLAMA3_WORDS.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(refuse)?;
            vec![split.into(), ByteLevel::new(false, true, false).into()]
        }
        other => {
            let known = "smollm, llama-bpe, gpt-2, default";
            return Err(refuse(format!("pre-tokeniser {other:?} is not known ({known} are)")));
        }
    };
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    inner.with_decoder(Some(byte_level));
    Ok(inner)
}

fn sentence_piece(gguf: &Gguf, texts: &[&str]) -> Result<Inner> {
    let vocab = vocabulary(texts)?;
    let scores: Vec<f64> = gguf
        .list("tokenizer.ggml.scores")?
        .iter()
        .map(|score| if let Metadata::Float(score) = score { *score } else { f64::NAN })
        .collect();
    if scores.len() != texts.len() || scores.iter().any(|score| score.is_nan()) {
        return Err(refuse("scores do not match tokens"));
    }
    // Every way to split a token into two tokens is a merge, in the order of the scores of what it makes; the
    // splits of one token in the order of their parts' ids.
    let mut merges: Vec<(f64, u32, u32, u32)> = Vec::new();
    for (id, text) in texts.iter().enumerate() {
        let mut local: Vec<(u32, u32)> = text
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*vocab.get(&text[..at])?, *vocab.get(&text[at..])?)))
            .collect();
        local.sort_unstable();
        merges.extend(local.into_iter().map(|(a, b)| (scores[id], a, b, id as u32)));
    }
    merges.sort_by(|x, y| y.0.total_cmp(&x.0));
    let merges = merges
        .into_iter()
        .map(|(_, a, b, _)| (texts[a as usize].to_owned(), texts[b as usize].to_owned()))
        .collect();
    let unknown = gguf.count("tokenizer.ggml.unknown_token_id").ok().and_then(|id| texts.get(id)).copied();
    let model = guarded("merges", || {
        let mut builder = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .fuse_unk(true)
            .byte_fallback(true);
        if let Some(unknown) = unknown {
            builder = builder.unk_token(unknown.into());
        }
        builder.build()
    })?;
    let mut inner = Inner::new(model);
    let replace = |from: &str, to: &str| Replace::new(from, to).map_err(refuse);
    let mut steps = vec![
        DecoderWrapper::Replace(replace("\u{2581}", " ")?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    let spaces = replace(" ", "\u{2581}")?;
    // Unless told otherwise, SentencePiece starts each text with a space.
    if gguf.metadata().get("tokenizer.ggml.add_space_prefix") == Some(&Metadata::Bool(false)) {
        inner.with_normalizer(Some(spaces)).map_err(refuse)?;
    } else {
        let normal: Vec<NormalizerWrapper> = vec![Prepend::new("\u{2581}".into()).into(), spaces.into()];
        inner.with_normalizer(Some(Normalizers::new(normal))).map_err(refuse)?;
        steps.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    inner.with_decoder(Some(Decoders::new(steps)));
    Ok(inner)
}

/// The characters that stand for bytes in byte-level vocabularies: printable Latin-1 as it is, the rest from
/// U+0100 on.
fn byte_characters() -> HashMap<char, u8> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100u32;
    (0..=255u8)
        .filter_map(|byte| {
            let c = if plain(byte) {
                char::from(byte)
            } else {
                next += 1;
                char::from_u32(next - 1)?
            };
            Some((c, byte))
        })
        .collect()
}
