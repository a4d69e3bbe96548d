//! "Did you mean": the known word that is nearest to what was written.

/// The nearest of `known`, if it is near enough to be meant.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any word of the language: no need to measure a distance to it.
    if written.len() > 64 {
        return None;
    }
    let written = written.to_lowercase().replace('-', "_");
    let distance_max = (written.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&written, &word.to_lowercase().replace('-', "_")), word))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// `did you mean "x"?`, or else the whole list.
pub(crate) fn help(written: &str, known: &[&str], what: &str) -> Option<String> {
    match nearest(written, known.iter().copied()) {
        Some(word) => Some(format!("did you mean \"{word}\"?")),
        None if known.is_empty() => None,
        None => Some(format!("{what}: {}", known.join(", "))),
    }
}

/// What the user wrote, as it can stand in a message: one line, no control characters, not endless.
pub(crate) fn quote(written: &str) -> String {
    const SHOWN_MAX: usize = 60;
    let mut shown: String = written.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if written.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    format!("\"{}\"", shown.replace("\\\"", "\"").replace("\\'", "'"))
}
