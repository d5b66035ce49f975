use std::path::Path;

use pilotfish_model::{CausalModel, LogitForm, Parents, RowSet, Skip, Step, Streams, Token};
use rand::Rng;
use rand::seq::index::sample;

use super::process::Process;
use crate::drafters::number;
use crate::state::{self, In, Out};
use crate::{DecodingError, Result};

/// Numbers of the search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSearchConfig {
    /// Share of the sub-layers between the first layer and the last that is left out.
    pub ratio: f64,
    /// New tokens that a set is judged by.
    pub window: usize,
    /// Rounds between two trials.
    pub interval: usize,
    /// Every so many trials the set comes from the process instead of chance; 0 for never.
    pub bayes_interval: usize,
    /// The search ends after more trials than this; 0 keeps the first set.
    pub max_trials: usize,
    /// It ends after more trials in a row without a better set than this.
    pub max_tolerance: usize,
    /// It ends once a set is better than this.
    pub max_score: f64,
    /// Deviations that the process adds to its mean.
    pub kappa: f64,
    /// Points at which the process is asked.
    pub candidates: usize,
    /// Seed.
    pub seed: u64,
}

impl Default for LayerSearchConfig {
    fn default() -> Self {
        Self {
            ratio: 0.45,
            window: 32,
            interval: 1,
            bayes_interval: 25,
            max_trials: 1000,
            max_tolerance: 300,
            max_score: 0.95,
            kappa: 2.5,
            candidates: 2000,
            seed: 2024,
        }
    }
}

impl LayerSearchConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A share outside 0 to 1, an empty window, an interval of 0, anything that is not finite.
    pub fn check(&self) -> Result<()> {
        if !(self.ratio >= 0.0 && self.ratio <= 1.0) {
            return Err(number("ratio", self.ratio, "from 0 to 1"));
        }
        if !(self.kappa >= 0.0 && self.kappa.is_finite()) {
            return Err(number("kappa", self.kappa, "0 or more"));
        }
        if !(self.max_score >= 0.0 && self.max_score.is_finite()) {
            return Err(number("max_score", self.max_score, "0 or more"));
        }
        for (name, value) in
            [("window", self.window), ("interval", self.interval), ("candidates", self.candidates)]
        {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        Ok(())
    }
}

/// A set to be judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// The set.
    pub skip: Skip,
    /// Where it stands in the cube: attentions of layers `1..L-1`, then MLPs.
    pub point: Vec<f32>,
}

/// Observations that the process is fitted to: the latest.
const REMEMBERED: usize = 256;
const KIND: &[u8; 4] = b"SWFT";
/// Networks beyond this are taken for a broken file.
const MOST_LAYERS: usize = 1 << 12;

/// The search for the set of sub-layers whose absence is noticed least. It goes on from text to text.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSearch {
    layers: usize,
    config: LayerSearchConfig,
    set: Skip,
    best: f64,
    trials: usize,
    tolerance: usize,
    over: bool,
    points: Vec<Vec<f32>>,
    scores: Vec<f32>,
}

impl LayerSearch {
    /// A search over a network of `layers` layers. It begins with every second layer, from 1 on.
    ///
    /// # Errors
    /// Numbers out of range; fewer than three layers, of which the first and the last are never left out.
    pub fn new(layers: usize, config: LayerSearchConfig) -> Result<Self> {
        config.check()?;
        if !(3..=MOST_LAYERS).contains(&layers) {
            let want = "3 to 4096: the first and the last are never left out";
            return Err(DecodingError::BadParameter { name: "layers", value: layers, want });
        }
        let odd = || (1..layers - 1).step_by(2);
        Ok(Self {
            layers,
            config,
            set: Skip::new(odd(), odd()),
            best: 0.0,
            trials: 0,
            tolerance: 0,
            over: config.max_trials == 0,
            points: Vec::new(),
            scores: Vec::new(),
        })
    }

    /// The same, from another set.
    ///
    /// # Errors
    /// A set that leaves out the first layer, the last, or one that does not exist.
    pub fn with_set(mut self, set: Skip) -> Result<Self> {
        if !fits(&set, self.layers) {
            let want = "sub-layers between the first layer and the last";
            return Err(DecodingError::BadParameter { name: "set", value: set.len(), want });
        }
        self.set = set;
        Ok(self)
    }

    /// Layers of the network.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// The numbers it runs on.
    pub fn config(&self) -> &LayerSearchConfig {
        &self.config
    }

    /// Sub-layers that a tried set leaves out: `floor(2 (L-2) r)`.
    pub fn count(&self) -> usize {
        // Half of a billionth is more than a product of two such numbers rounds away.
        ((2 * (self.layers - 2)) as f64 * self.config.ratio + 1e-9) as usize
    }

    /// The best set so far.
    pub fn set(&self) -> &Skip {
        &self.set
    }

    /// Its score when it was found; 0 for the set that the search began with.
    pub fn best(&self) -> f64 {
        self.best
    }

    /// Trials so far.
    pub fn trials(&self) -> usize {
        self.trials
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The next set to judge; nothing once the search is over.
    pub fn next_trial(&self) -> Option<Trial> {
        if self.over {
            return None;
        }
        let trial = self.trials + 1;
        let mut rng = Streams::new(self.config.seed).fork(trial as u64).stream("layers");
        let places = 2 * (self.layers - 2);
        if self.config.bayes_interval > 0 && trial % self.config.bayes_interval == 0 {
            let point = self.suggest(&mut rng);
            let mut order: Vec<usize> = (0..places).collect();
            order.sort_by(|&a, &b| point[b].total_cmp(&point[a]).then(a.cmp(&b)));
            return Some(Trial { skip: self.skip_of(&order[..self.count()]), point });
        }
        let chosen = sample(&mut rng, places, self.count()).into_vec();
        let mut point = vec![0.0; places];
        chosen.iter().for_each(|&place| point[place] = 1.0);
        Some(Trial { skip: self.skip_of(&chosen), point })
    }

    fn skip_of(&self, places: &[usize]) -> Skip {
        let inner = self.layers - 2;
        let attention = places.iter().filter(|&&place| place < inner).map(|place| place + 1);
        let mlp = places.iter().filter(|&&place| place >= inner).map(|place| place - inner + 1);
        Skip::new(attention, mlp)
    }

    /// The point of the largest upper confidence bound among random points and neighbours of the best point seen.
    fn suggest(&self, rng: &mut impl Rng) -> Vec<f32> {
        let places = 2 * (self.layers - 2);
        let mut uniform = |_| (0..places).map(|_| rng.random::<f32>()).collect::<Vec<f32>>();
        let mut candidates: Vec<Vec<f32>> = (0..self.config.candidates).map(&mut uniform).collect();
        // With a noise of 0.01, as the reference code has it.
        let Some(process) = Process::fit(&self.points, &self.scores, 1e-2) else {
            return candidates.swap_remove(0);
        };
        let best = (0..self.scores.len()).max_by(|&a, &b| self.scores[a].total_cmp(&self.scores[b]));
        if let Some(best) = best {
            for _ in 0..self.config.candidates / 4 {
                let mut near = self.points[best].clone();
                for _ in 0..rng.random_range(1..=4) {
                    near[rng.random_range(0..places)] = rng.random();
                }
                candidates.push(near);
            }
        }
        let bound = |point: &Vec<f32>| {
            let (mean, deviation) = process.at(point);
            mean + self.config.kappa * deviation
        };
        let bounds: Vec<f64> = candidates.iter().map(bound).collect();
        let most = (0..bounds.len()).max_by(|&a, &b| bounds[a].total_cmp(&bounds[b]).then(b.cmp(&a)));
        candidates.swap_remove(most.unwrap_or(0))
    }

    /// Tells what a trial scored, and so ends it. Whether the set is the best now.
    pub fn report(&mut self, trial: Trial, score: f64) -> bool {
        if self.points.len() == REMEMBERED {
            self.points.remove(0);
            self.scores.remove(0);
        }
        self.points.push(trial.point);
        self.scores.push(score as f32);
        self.trials += 1;
        let better = score > self.best;
        if better {
            (self.best, self.set, self.tolerance) = (score, trial.skip, 0);
            self.over |= score > self.config.max_score;
        } else {
            self.tolerance += 1;
        }
        self.over |= self.tolerance > self.config.max_tolerance || self.trials > self.config.max_trials;
        better
    }

    /// Writes the search into a file: set, score, counters and what the process has seen.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut out = Out::default();
        let mut put = |value: usize| out.u64(value as u64);
        put(self.layers);
        for list in [self.set.attention(), self.set.mlp()] {
            put(list.len());
            list.iter().for_each(|&layer| put(layer));
        }
        for value in [self.trials, self.tolerance, usize::from(self.over), self.scores.len()] {
            put(value);
        }
        out.u64(self.best.to_bits());
        for (point, &score) in self.points.iter().zip(&self.scores) {
            point.iter().for_each(|&x| out.f32(x));
            out.f32(score);
        }
        state::save(path.as_ref(), KIND, &out.0)
    }

    /// Goes on with a search that was saved, on these numbers.
    ///
    /// # Errors
    /// A file that is spoilt or of something else; numbers out of range.
    pub fn load(path: impl AsRef<Path>, config: LayerSearchConfig) -> Result<Self> {
        let path = path.as_ref();
        let payload = state::load(path, KIND)?;
        let layers = In(&payload).u64().and_then(|layers| usize::try_from(layers).ok()).unwrap_or(0);
        if !(3..=MOST_LAYERS).contains(&layers) {
            return Err(state::bad(path, "a network of no such size"));
        }
        let search = Self::new(layers, config)?;
        search.filled(&payload).ok_or_else(|| state::bad(path, "it is no search over the layers it names"))
    }

    fn filled(mut self, payload: &[u8]) -> Option<Self> {
        let mut input = In(payload);
        let mut take = || input.u64().and_then(|value| usize::try_from(value).ok());
        take()?;
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            let count = take().filter(|&count| count < self.layers)?;
            *list = (0..count).map(|_| take()).collect::<Option<Vec<usize>>>()?;
        }
        let [attention, mlp] = lists;
        let counted = attention.len() + mlp.len();
        self.set = Skip::new(attention, mlp);
        let (trials, tolerance, over, seen) = (take()?, take()?, take()?, take()?);
        (self.trials, self.tolerance, self.over) = (trials, tolerance, over == 1 || self.over);
        self.best = f64::from_bits(input.u64()?);
        let places = 2 * (self.layers - 2);
        let right = fits(&self.set, self.layers)
            && counted == self.set.len()
            && over <= 1
            && (0.0..=1.0).contains(&self.best)
            && seen <= REMEMBERED
            && input.left() == 4 * seen * (places + 1);
        if !right {
            return None;
        }
        let unit = |x: &f32| (0.0..=1.0).contains(x);
        for _ in 0..seen {
            self.points.push((0..places).map(|_| input.f32().filter(unit)).collect::<Option<Vec<f32>>>()?);
            self.scores.push(input.f32().filter(unit)?);
        }
        input.done().then_some(self)
    }
}

fn fits(set: &Skip, layers: usize) -> bool {
    set.attention().iter().chain(set.mlp()).all(|&layer| 0 < layer && layer + 1 < layers)
}

/// The share of the tokens `g_2..` of a text's new tokens `g_1..` that the target would have predicted without some
/// sub-layers, all in one pass that reads the target's own rows of the prompt. The cache, which holds the prompt in
/// its first `prompt` rows, is afterwards what it was.
///
/// # Errors
/// Fewer than two new tokens, no prompt, or whatever the model refuses.
pub fn matchness(model: &mut dyn CausalModel, prompt: usize, new: &[Token], skip: &Skip) -> Result<f64> {
    if new.len() < 2 {
        return Err(DecodingError::BadParameter { name: "new tokens", value: new.len(), want: "at least 2" });
    }
    if prompt == 0 {
        return Err(DecodingError::EmptyPrompt);
    }
    let before = model.len();
    // The first follows the prompt, not the rows that the target has since made of these very tokens.
    let read = &new[..new.len() - 1];
    let parents: Vec<Option<usize>> =
        (0..read.len()).map(|row| Some(if row == 0 { prompt - 1 } else { before + row - 1 })).collect();
    let step = Step::chain(read).want(RowSet::All).form(LogitForm::Argmax);
    let answer = model.step_without(&Step { parents: Parents::Rows(&parents), ..step }, skip);
    model.truncate(before)?;
    let logits = answer?.logits;
    let mut hits = 0;
    for (row, &token) in new[1..].iter().enumerate() {
        hits += usize::from(logits.argmax(row)? == token);
    }
    Ok(hits as f64 / read.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(search: &mut LayerSearch, trials: usize, score: impl Fn(&Skip) -> f64) {
        for _ in 0..trials {
            if let Some(trial) = search.next_trial() {
                let score = score(&trial.skip);
                search.report(trial, score);
            }
        }
    }

    #[test]
    fn a_search_survives_a_restart_and_no_spoilt_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("layers");
        let config = LayerSearchConfig { bayes_interval: 5, candidates: 50, ..LayerSearchConfig::default() };
        let score = |skip: &Skip| skip.attention().iter().sum::<usize>() as f64 / 100.0;
        let mut search = LayerSearch::new(6, config).expect("valid");
        scored(&mut search, 7, score);
        search.save(&path).expect("saved");
        let mut again = LayerSearch::load(&path, config).expect("loaded");
        assert_eq!(search, again);
        scored(&mut search, 20, score);
        scored(&mut again, 20, score);
        assert_eq!(search, again, "it goes on as if it had never stopped");
        assert!(search.trials() == 27 && search.best() > 0.0);
        let mut small = LayerSearch::new(3, config).expect("valid");
        scored(&mut small, 2, score);
        small.save(&path).expect("saved");
        state::spoil(&path, |path| LayerSearch::load(path, config));
        // Whole, of the right kind, and no search.
        let save = |numbers: &[u64]| {
            let mut out = Out::default();
            numbers.iter().for_each(|&number| out.u64(number));
            state::save(&path, KIND, &out.0).expect("saved");
            LayerSearch::load(&path, config)
        };
        assert!(save(&[6, 1, 2, 0, 0, 0, 0, 0, 0]).is_ok());
        for bad in [
            &[2, 0, 0, 0, 0, 0, 0, 0][..],
            &[6, 1, 5, 0, 0, 0, 0, 0, 0],
            &[6, 2, 2, 2, 0, 0, 0, 0, 0, 0],
            &[6, u64::MAX, 2],
            &[6, 0, 0, 0, 0, 2, 0, 0],
            &[6, 0, 0, 0, 0, 0, u64::MAX, 0],
            &[6, 0, 0, 0, 0, 0, 0, f64::NAN.to_bits()],
            &[6, 0, 0, 0, 0, 0, 0, 0, 0],
            &[u64::MAX],
            &[],
        ] {
            assert!(matches!(save(bad), Err(DecodingError::State { .. })), "{bad:?}");
        }
    }

    #[test]
    fn the_process_does_better_than_chance() {
        // Planted: the score is how many of eight sub-layers are in the set.
        let planted = Skip::new([2, 3, 7, 9], [5, 6, 10, 12]);
        let score = |skip: &Skip| {
            let attention = skip.attention().iter().filter(|&&layer| planted.skips_attention(layer)).count();
            let mlp = skip.mlp().iter().filter(|&&layer| planted.skips_mlp(layer)).count();
            (attention + mlp) as f64 / 8.0
        };
        let mean = |bayes_interval: usize| {
            let seeds = 0..4;
            let best = seeds.map(|seed| {
                let ratio = 1.0 / 3.0;
                let config = LayerSearchConfig {
                    bayes_interval,
                    seed,
                    ratio,
                    candidates: 400,
                    max_score: 1.0,
                    ..LayerSearchConfig::default()
                };
                let mut search = LayerSearch::new(14, config).expect("valid");
                assert_eq!(search.count(), 8);
                scored(&mut search, 60, score);
                search.best()
            });
            best.sum::<f64>() / 4.0
        };
        let (chance, process) = (mean(0), mean(2));
        assert!(process > chance + 0.1, "{process} {chance}");
    }
}
