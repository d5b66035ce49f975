//! Texts for perplexity and calibration: two novels in the public domain, so that what is measured on one was not
//! calibrated on it. Where they come from is said in `texts/README.md`.
//!
//! Both are old and well known, and a language model may have read them: compare models and methods with each other,
//! not with numbers from elsewhere.

/// *Northanger Abbey*, by Jane Austen: about 77,000 words; for evaluation.
pub const NORTHANGER_ABBEY: &str = include_str!("../texts/northanger_abbey.txt");

/// *Persuasion*, by Jane Austen: about 83,000 words; for calibration.
pub const PERSUASION: &str = include_str!("../texts/persuasion.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_whole_and_apart() {
        assert!(NORTHANGER_ABBEY.ends_with("No. 97, Vol. II, Rambler.\n"));
        assert!(PERSUASION.ends_with("national importance.\n\nFinis\n"));
        for text in [NORTHANGER_ABBEY, PERSUASION] {
            assert!(text.split_whitespace().count() > 75_000 && text.is_ascii());
        }
    }
}
