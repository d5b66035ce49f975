/// The name nearest to a misspelt one, if any is near.
pub(crate) fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = |other: &str| strsim::damerau_levenshtein(name, other);
    let allowed = (name.chars().count() / 3).max(1);
    known
        .map(|other| (wrong(other), other))
        .filter(|(edits, _)| *edits <= allowed)
        .min()
        .map(|(_, other)| other)
}
