//! The text that the mock model speaks: the same tokens for the same knobs, streamed or not, so that a
//! test can compare what it got with what it must be. ASCII without anything that JSON would escape.

use super::knobs::{Knobs, TOKENS_WHOLE_MAX};

const WORDS: [&str; 24] = [
    "The", " model", " answers", " one", " token", " at", " a", " time", " and", " every", " token",
    " leaves", " the", " origin", " in", " a", " write", " of", " its", " own", ";", " nothing", " waits",
    ".",
];

/// Bytes of a prompt that count as one token: the usual rule of thumb for English.
const PROMPT_BYTES_PER_TOKEN: usize = 4;

/// Appends the text of token `index`.
pub(crate) fn push_token(index: u64, size: Option<usize>, text: &mut Vec<u8>) {
    match size {
        None => {
            let at = (index % WORDS.len() as u64) as usize;
            if index > 0 && at == 0 {
                text.push(b' ');
            }
            text.extend_from_slice(WORDS[at].as_bytes());
        }
        Some(size) => {
            let letter = b'a' + (index % 26) as u8;
            text.resize(text.len() + size, letter);
        }
    }
}

/// The text of the first `count` tokens.
pub(crate) fn whole_text(count: u64, size: Option<usize>) -> String {
    let mut text = Vec::new();
    (0..count).for_each(|index| push_token(index, size, &mut text));
    String::from_utf8_lossy(&text).into_owned()
}

/// How many tokens are given, and whether the client's limit cut them short.
pub(crate) fn planned(knobs: &Knobs, limit: Option<u64>, streams: bool) -> (u64, bool) {
    let wanted = if streams { knobs.tokens } else { knobs.tokens.min(TOKENS_WHOLE_MAX) };
    match limit {
        Some(limit) if limit < wanted => (limit, true),
        _ => (wanted, false),
    }
}

/// What the prompt is counted as.
pub(crate) fn prompt_tokens(body: &[u8]) -> u64 {
    body.len().div_ceil(PROMPT_BYTES_PER_TOKEN) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_made_of_its_tokens_and_needs_no_escaping() {
        let text = whole_text(60, None);
        assert!(text.starts_with("The model answers") && text.contains(". The model"));
        assert_eq!(serde_json::to_string(&text).unwrap(), format!("\"{text}\""));
        assert_eq!(whole_text(3, Some(4)), "aaaabbbbcccc");
    }

    #[test]
    fn the_clients_limit_cuts_the_plan() {
        let knobs = Knobs { tokens: 10, ..Knobs::default() };
        assert_eq!(planned(&knobs, Some(4), true), (4, true));
        assert_eq!(planned(&knobs, Some(10), true), (10, false));
        assert_eq!(planned(&knobs, None, true), (10, false));
    }
}
