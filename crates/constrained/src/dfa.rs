use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{ConstrainedError, Constraint, Mask, Result, Vocabulary};

const DEAD: u32 = u32::MAX;

/// A deterministic automaton over bytes. Its prefix test is exact: states from which no accepting state can be
/// reached are removed when it is made. Masks are kept by state.
///
/// ```
/// use pilotfish_constrained::{Constraint, Dfa};
/// // An even number of a, then b.
/// let mut dfa = Dfa::new(3, 0, &[2], |state, byte| match (state, byte) {
///     (0, b'a') => Some(1),
///     (1, b'a') => Some(0),
///     (0, b'b') => Some(2),
///     _ => None,
/// })?;
/// assert!(dfa.push(b"aa")? && dfa.prefix(b"b")? && !dfa.prefix(b"ab")? && !dfa.complete()?);
/// assert!(dfa.push(b"b")? && dfa.complete()?);
/// # Ok::<(), pilotfish_constrained::ConstrainedError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dfa {
    table: Arc<Table>,
    state: u32,
}

#[derive(Debug)]
struct Table {
    /// `[states, 256]`.
    next: Vec<u32>,
    accepts: Vec<bool>,
    /// By state and vocabulary.
    masks: Mutex<HashMap<(u32, u64), Mask>>,
}

/// More states are refused.
const LARGEST: usize = 1 << 16;

impl Dfa {
    /// An automaton of `states` states from its start, its accepting states and its step.
    ///
    /// # Errors
    /// No state or more than 65 536; a state outside them.
    pub fn new(
        states: usize,
        start: usize,
        accepting: &[usize],
        step: impl Fn(usize, u8) -> Option<usize>,
    ) -> Result<Self> {
        let refuse = |why: String| ConstrainedError::Grammar { kind: "automaton", why };
        if states == 0 || states > LARGEST {
            return Err(refuse(format!("{states} states, 1 to {LARGEST} are allowed")));
        }
        let inside = |state: usize| match state < states {
            true => Ok(state as u32),
            false => Err(refuse(format!("state {state} of {states}"))),
        };
        let start = inside(start)?;
        let mut accepts = vec![false; states];
        for &state in accepting {
            accepts[inside(state)? as usize] = true;
        }
        let mut next = Vec::with_capacity(states * 256);
        for state in 0..states {
            for byte in 0..=255u8 {
                next.push(step(state, byte).map_or(Ok(DEAD), inside)?);
            }
        }
        // Backwards from accepting states.
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); states];
        for (at, &to) in next.iter().enumerate().filter(|(_, to)| **to != DEAD) {
            if before[to as usize].last() != Some(&((at / 256) as u32)) {
                before[to as usize].push((at / 256) as u32);
            }
        }
        let mut alive = accepts.clone();
        let mut open: Vec<usize> = (0..states).filter(|&state| accepts[state]).collect();
        while let Some(state) = open.pop() {
            for &from in &before[state] {
                if !std::mem::replace(&mut alive[from as usize], true) {
                    open.push(from as usize);
                }
            }
        }
        next.iter_mut().filter(|to| **to != DEAD && !alive[**to as usize]).for_each(|to| *to = DEAD);
        let state = if alive[start as usize] { start } else { DEAD };
        Ok(Self { table: Arc::new(Table { next, accepts, masks: Mutex::default() }), state })
    }

    /// The texts given, and no others.
    ///
    /// # Errors
    /// More than 65 535 bytes in all.
    pub fn words(words: &[&[u8]]) -> Result<Self> {
        let mut edges: HashMap<(usize, u8), usize> = HashMap::new();
        let (mut states, mut accepting) = (1, Vec::new());
        for word in words {
            let mut state = 0;
            for &byte in *word {
                state = *edges.entry((state, byte)).or_insert_with(|| {
                    states += 1;
                    states - 1
                });
            }
            accepting.push(state);
        }
        Self::new(states, 0, &accepting, |state, byte| edges.get(&(state, byte)).copied())
    }

    fn after(&self, state: u32, more: &[u8]) -> u32 {
        more.iter().fold(state, |state, &byte| match state {
            DEAD => DEAD,
            state => self.table.next[state as usize * 256 + byte as usize],
        })
    }

    fn make_mask(&self, vocabulary: &Vocabulary) -> Mask {
        let mut mask = Mask::none(vocabulary.len());
        // States after each prefix of the token before.
        let mut states = vec![self.state];
        for (token, bytes, shared) in vocabulary.sorted() {
            states.truncate(shared + 1);
            for &byte in &bytes[states.len() - 1..] {
                let last = states[states.len() - 1];
                states.push(self.after(last, &[byte]));
            }
            if states[states.len() - 1] != DEAD {
                mask.allow(token);
            }
        }
        if self.state != DEAD && self.table.accepts[self.state as usize] {
            vocabulary.end().iter().for_each(|&token| mask.allow(token));
        }
        mask
    }
}

impl Constraint for Dfa {
    fn prefix(&mut self, more: &[u8]) -> Result<bool> {
        Ok(self.after(self.state, more) != DEAD)
    }

    fn complete(&mut self) -> Result<bool> {
        Ok(self.state != DEAD && self.table.accepts[self.state as usize])
    }

    fn push(&mut self, more: &[u8]) -> Result<bool> {
        self.state = self.after(self.state, more);
        Ok(self.state != DEAD)
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn mask(&mut self, vocabulary: &Vocabulary) -> Result<Mask> {
        let key = (self.state, vocabulary.identity());
        let mut masks = self.table.masks.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(masks.entry(key).or_insert_with(|| self.make_mask(vocabulary)).clone())
    }
}
