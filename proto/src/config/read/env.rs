//! `${NAME}` in a string becomes the value of that environment variable; `$${` becomes `${`.
//!
//! Values are put in as they are: what is in a variable is never expanded again.

use std::borrow::Cow;
use std::mem;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::suggest::quote;
use crate::config::problem::Problems;

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands every string value of the document; one that cannot be expanded is noted and taken out.
pub(super) fn expand(table: &mut DeTable<'_>, text: &str, env: Env<'_>, problems: &mut Problems) {
    let mut removed = Vec::new();
    for (key, value) in table.iter_mut() {
        if !expand_value(value, text, env, problems) {
            removed.push(key.get_ref().clone().into_owned());
        }
    }
    for key in removed {
        table.remove(key.as_str());
    }
}

/// False if the value is to be taken out.
fn expand_value(value: &mut Spanned<DeValue<'_>>, text: &str, env: Env<'_>, problems: &mut Problems) -> bool {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(string) => match expand_string(string, env) {
            Ok(None) => true,
            Ok(Some(expanded)) => {
                *string = Cow::Owned(expanded);
                true
            }
            Err(failure) => {
                let part = failure.place(text, &span);
                problems.wrong_part(&span, part, failure.message, failure.help);
                problems.note_removed(span);
                false
            }
        },
        DeValue::Table(table) => {
            expand(table, text, env, problems);
            true
        }
        DeValue::Array(array) => {
            let elements = mem::replace(array, DeArray::new()).into_iter();
            *array = elements
                .filter_map(|mut element| expand_value(&mut element, text, env, problems).then_some(element))
                .collect::<DeArray<'_>>();
            true
        }
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => true,
    }
}

struct Failure {
    /// The reference as it was written, from its `$`.
    reference: String,
    message: String,
    help: String,
}

impl Failure {
    /// Where in the source the reference stands; the whole string where escapes hide it.
    fn place(&self, text: &str, span: &Range<usize>) -> Range<usize> {
        let written = &text[span.clone()];
        let is_escaped = |at: usize| written[..at].ends_with('$');
        written.match_indices(&self.reference).find(|(at, _)| !is_escaped(*at)).map_or(
            span.clone(),
            |(at, _)| {
                let start = span.start + at;
                start..start + self.reference.len()
            },
        )
    }
}

/// None: there is nothing to expand.
fn expand_string(string: &str, env: Env<'_>) -> Result<Option<String>, Failure> {
    if !string.contains("${") {
        return Ok(None);
    }
    let mut expanded = String::with_capacity(string.len());
    let mut rest = string;
    while let Some(at) = rest.find("${") {
        let after = &rest[at + "${".len()..];
        if let Some(before) = rest[..at].strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        let Some(name) = after.find('}').map(|end| &after[..end]) else {
            return Err(Failure {
                reference: "${".to_owned(),
                message: "`${` without a `}` behind it".to_owned(),
                help: "write `${NAME}` for an environment variable, or `$${` for a plain `${`".to_owned(),
            });
        };
        let reference = format!("${{{name}}}");
        if !is_name(name) {
            let message = format!("{} is no name of an environment variable", quote(name));
            let help = "a name has letters, digits and `_`; write `$${` for a plain `${`".to_owned();
            return Err(Failure { reference, message, help });
        }
        let Some(value) = env(name) else {
            let message = format!("the environment variable {name} is not set");
            let help =
                format!("set {name} before the start, or write `$${{{name}}}` if the text itself is meant");
            return Err(Failure { reference, message, help });
        };
        expanded.push_str(&rest[..at]);
        expanded.push_str(&value);
        rest = &after[name.len() + "}".len()..];
    }
    expanded.push_str(rest);
    Ok(Some(expanded))
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(string: &str) -> Result<String, String> {
        let env = |name: &str| (name == "HOME").then(|| "/root/${HOME}".to_owned());
        let result = expand_string(string, &env).map(|new| new.unwrap_or_else(|| string.to_owned()));
        result.map_err(|failure| failure.reference)
    }

    #[test]
    fn expands_names_once_and_keeps_other_dollars() {
        assert_eq!(expanded("a${HOME}b").unwrap(), "a/root/${HOME}b");
        assert_eq!(expanded("$HOME $ ${HOME}$").unwrap(), "$HOME $ /root/${HOME}$");
        assert_eq!(expanded("$${HOME} ${HOME}").unwrap(), "${HOME} /root/${HOME}");
        assert_eq!(expanded("plain").unwrap(), "plain");
    }

    #[test]
    fn names_the_reference_that_cannot_be_expanded() {
        assert_eq!(expanded("${HOME}${NOPE}").unwrap_err(), "${NOPE}");
        assert_eq!(expanded("${}").unwrap_err(), "${}");
        assert_eq!(expanded("${1A}").unwrap_err(), "${1A}");
        assert_eq!(expanded("${HOME").unwrap_err(), "${");
    }
}
