//! "Did you mean": the known word that is nearest to what was written.

/// The nearest of `known`, if it is near enough to be meant.
///
/// A word is never taken for its opposite: `insecure` is nothing to suggest for `secure`.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest_and_distance(written, known).map(|(_, word)| word)
}

/// What was probably meant, of two lists.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meant<'a> {
    /// A word that is taken.
    Known(&'a str),
    /// One that is planned.
    Planned(&'a str),
    /// Nothing is near, or one of each is as near: to guess wrong could mean clear text where TLS was meant.
    Unclear,
}

/// The nearest word of both lists.
pub(crate) fn meant<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
    planned: impl IntoIterator<Item = &'a str>,
) -> Meant<'a> {
    match (nearest_and_distance(written, known), nearest_and_distance(written, planned)) {
        (Some((distance, word)), planned) if planned.is_none_or(|(other, _)| distance < other) => {
            Meant::Known(word)
        }
        (known, Some((distance, word))) if known.is_none_or(|(other, _)| distance < other) => {
            Meant::Planned(word)
        }
        _ => Meant::Unclear,
    }
}

fn nearest_and_distance<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<(usize, &'a str)> {
    // Longer than any word of the language: no need to measure a distance to it.
    if written.len() > 64 {
        return None;
    }
    let written = normal(written);
    let distance_max = (written.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&written, &normal(word)), word))
        .filter(|(distance, word)| *distance <= distance_max && !is_opposite(&written, word, *distance))
        .min_by_key(|(distance, _)| *distance)
}

/// Capitals and `-` for `_` make no other word.
fn normal(word: &str) -> String {
    word.to_lowercase().replace('-', "_")
}

/// Whether what was written is nearer to the word without its negation.
fn is_opposite(written: &str, word: &str, distance: usize) -> bool {
    let word = normal(word);
    let positive = ["un", "in", "non", "not"].iter().filter_map(|negation| word.strip_prefix(negation));
    positive
        .map(|rest| rest.trim_start_matches('_'))
        .any(|rest| strsim::damerau_levenshtein(written, rest) < distance)
}

/// Longest part of what was written that a message repeats.
const SHOWN_MAX: usize = 60;

/// What the user wrote, as it can stand in a message: one line, no control characters, not endless.
pub(crate) fn quote(written: &str) -> String {
    let shown: String = written.chars().take(SHOWN_MAX).collect();
    let more = if written.chars().nth(SHOWN_MAX).is_some() { "…" } else { "" };
    quote_whole(&(shown + more))
}

/// What is advised instead: the same, but to its end, so that it can be copied.
pub(crate) fn quote_whole(advised: &str) -> String {
    let shown: String = advised.chars().flat_map(char::escape_debug).collect();
    format!("\"{}\"", shown.replace("\\\"", "\"").replace("\\'", "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_nothing_where_a_planned_word_is_as_near() {
        assert_eq!(meant("htpp", ["http"], ["https"]), Meant::Known("http"));
        assert_eq!(meant("htps", ["http"], ["https"]), Meant::Planned("https"));
        assert_eq!(meant("httpd", ["http"], ["https"]), Meant::Unclear);
        assert_eq!(meant("gopher", ["http"], ["https"]), Meant::Unclear);
    }

    #[test]
    fn clips_what_was_written_and_not_what_is_advised() {
        let long = "a".repeat(SHOWN_MAX + 1);
        assert_eq!(quote(&long), format!("\"{}…\"", &long[1..]));
        assert_eq!(quote_whole(&long), format!("\"{long}\""));
        assert_eq!(quote("a\n\"b\"'"), "\"a\\n\"b\"'\"");
    }

    #[test]
    fn takes_no_word_for_its_opposite() {
        assert_eq!(nearest("secure", ["url", "insecure"]), None);
        assert_eq!(nearest("safe_methods", ["unsafe_methods"]), None);
        assert_eq!(nearest("insecur", ["insecure"]), Some("insecure"));
        assert_eq!(nearest("unsafe_method", ["unsafe_methods"]), Some("unsafe_methods"));
        assert_eq!(nearest("intervall", ["interval"]), Some("interval"));
        assert_eq!(nearest("idle", ["idle_timeout", "idle"]), Some("idle"));
    }
}
