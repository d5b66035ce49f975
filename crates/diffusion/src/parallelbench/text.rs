//! Scores of free text that need neither a grammar checker nor a model.

/// Whether a text contains every word, wherever it stands: the benchmark's test, less its grammar checker.
pub fn uses_all(text: &str, words: &[String]) -> bool {
    let text = text.to_lowercase();
    !words.is_empty() && words.iter().all(|word| text.contains(&word.to_lowercase()))
}

/// Whether a text is one line that begins with a capital letter and has one mark that ends a sentence, its last
/// character. No grammar is checked.
pub fn is_one_sentence(text: &str) -> bool {
    let text = text.trim();
    let ends = |c: char| matches!(c, '.' | '!' | '?');
    !text.contains('\n')
        && text.starts_with(char::is_uppercase)
        && text.ends_with(ends)
        && text.chars().filter(|c| ends(*c)).count() == 1
}

/// Words as ROUGE and BLEU count them here: lower case, split at what is no letter or digit.
fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// ROUGE-L: the harmonic mean of the longest common subsequence's share of either text. 0 if either has no words.
/// Texts are cut at 4096 words.
pub fn rouge_l(candidate: &str, reference: &str) -> f64 {
    let (mut a, mut b) = (words(candidate), words(reference));
    a.truncate(4096);
    b.truncate(4096);
    let mut row = vec![0usize; b.len() + 1];
    for x in &a {
        let mut diagonal = 0;
        for (at, y) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if x == y { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    let common = row[b.len()] as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / a.len() as f64, common / b.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// BLEU of one sentence against one reference: the geometric mean of clipped n-gram precisions up to 4, with one added
/// to counts above unigrams (Lin and Och's smoothing), times the brevity penalty.
pub fn bleu(candidate: &str, reference: &str) -> f64 {
    let (a, b) = (words(candidate), words(reference));
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let counts = |words: &[String], n: usize| {
        let mut counts: std::collections::HashMap<Vec<String>, usize> = std::collections::HashMap::new();
        words.windows(n).for_each(|gram| *counts.entry(gram.to_vec()).or_default() += 1);
        counts
    };
    let mut log = 0.0;
    for n in 1..=4 {
        let (mine, theirs) = (counts(&a, n), counts(&b, n));
        let hits: usize =
            mine.iter().map(|(gram, count)| (*count).min(theirs.get(gram).copied().unwrap_or(0))).sum();
        let more = f64::from(u8::from(n > 1));
        let (hits, total) = (hits as f64 + more, a.len().saturating_sub(n - 1) as f64 + more);
        if hits == 0.0 {
            return 0.0;
        }
        log += (hits / total).ln() / 4.0;
    }
    let brevity = (1.0 - b.len() as f64 / a.len() as f64).min(0.0);
    (log + brevity).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let words = ["cat".to_owned(), "Sun".to_owned()];
        assert!(uses_all("The cats like the sun.", &words) && !uses_all("The cat sleeps.", &words));
        assert!(!uses_all("anything", &[]));
        assert!(is_one_sentence("The cats like the sun."));
        for text in ["the cats.", "The cats", "The. Cats.", "The\ncats.", ""] {
            assert!(!is_one_sentence(text), "{text}");
        }
        // Common subsequence "the cat on mat": 4 of 6 and 4 of 5 words.
        let got = rouge_l("the cat sat on the mat", "the cat lay on mat");
        assert!((got - 2.0 * (4.0 / 6.0) * 0.8 / (4.0 / 6.0 + 0.8)).abs() < 1e-12);
        assert_eq!(
            (rouge_l("", "x"), rouge_l("a", "b"), rouge_l("Same text!", "same TEXT")),
            (0.0, 0.0, 1.0)
        );
        assert!((bleu("the cat sat on the mat", "the cat sat on the mat") - 1.0).abs() < 1e-12);
        // Unigrams 2/2, bigrams (1+1)/(1+1), longer 1/1; shorter by half: exp(1 - 4/2).
        assert!((bleu("the cat", "the cat sat down") - (-1f64).exp()).abs() < 1e-12);
        assert_eq!((bleu("", "x"), bleu("a", "b")), (0.0, 0.0));
    }
}
