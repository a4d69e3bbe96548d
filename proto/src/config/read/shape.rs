//! From the document to the file types, as far as it goes: a key that does not fit is noted, mended or taken out,
//! and the rest is read again.
//!
//! So one pass tells every unknown key and every wrong type, with serde's own types as the only description of
//! the file.

use std::mem;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use super::suggest::{Meant, meant, quote};
use crate::config::planned::PlannedKey;
use crate::config::problem::Problems;

/// Reads what fits.
pub(super) fn deserialize<T: DeserializeOwned + Default>(
    mut document: DeTable<'_>,
    planned: &'static [PlannedKey],
    problems: &mut Problems,
) -> T {
    loop {
        let root = Spanned::new(0..0, DeValue::Table(document.clone()));
        let error = match T::deserialize(ValueDeserializer::from(root)) {
            Ok(file) => return file,
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        let mended = match UnknownKey::parse(error.message()) {
            Some(unknown) => mend_unknown_key(&mut document, &span, &unknown, planned, problems),
            None => remove_wrong_type(&mut document, &span, error.message(), problems),
        };
        // Each turn takes one key away or gives it a known name, so this ends; but not later than the reader's patience.
        if !mended || problems.is_full() {
            return T::default();
        }
    }
}

/// Notes a key that no type has, and reads it as the one that was probably meant.
fn mend_unknown_key(
    document: &mut DeTable<'_>,
    span: &Range<usize>,
    unknown: &UnknownKey<'_>,
    planned: &'static [PlannedKey],
    problems: &mut Problems,
) -> bool {
    let Some((table, table_name)) = table_with_key(document, "", span) else {
        problems.wrong(span, format!("unknown key {}", quote(unknown.key)), None);
        return false;
    };
    let Some((key, value)) = table.remove_entry(unknown.key) else { return false };
    if let Some(planned) = PlannedKey::find(planned, &table_name, unknown.key) {
        let message = format!("this version of Millrace does not support {}; it is planned", planned.what);
        problems.wrong(span, message, planned.help);
        return true;
    }
    let of_table = planned.iter().filter(|planned| planned.is_of(&table_name)).map(|planned| planned.key);
    let meant = meant(unknown.key, unknown.known.iter().copied(), of_table);
    let help = match meant {
        Meant::Known(word) => format!("did you mean `{word}`?"),
        Meant::Planned(word) => {
            let then = PlannedKey::find(planned, &table_name, word).map(|planned| planned.help);
            format!("did you mean `{word}`? It is planned, not there yet; {}", then.unwrap_or_default())
        }
        Meant::Unclear => format!("the keys here are: {}", unknown.known.join(", ")),
    };
    problems.wrong(span, format!("unknown key {}", quote(unknown.key)), help);
    if let Meant::Known(word) = meant
        && !table.contains_key(word)
    {
        table.insert(Spanned::new(key.span(), word.to_owned().into()), value);
    }
    true
}

/// Notes a value of a wrong type, and takes it out.
fn remove_wrong_type(
    document: &mut DeTable<'_>,
    span: &Range<usize>,
    message: &str,
    problems: &mut Problems,
) -> bool {
    problems.wrong(span, reworded(message), how_to_write(message));
    problems.note_removed(span.clone());
    remove_from_table(document, span)
}

/// The table that has a key at `span`, and the name it goes by: its key, or that of the array it stands in.
fn table_with_key<'t, 'i>(
    table: &'t mut DeTable<'i>,
    name: &str,
    span: &Range<usize>,
) -> Option<(&'t mut DeTable<'i>, String)> {
    if table.keys().any(|key| key.span() == *span) {
        return Some((table, name.to_owned()));
    }
    table.iter_mut().find_map(|(key, value)| value_with_key(value.get_mut(), key.get_ref(), span))
}

fn value_with_key<'t, 'i>(
    value: &'t mut DeValue<'i>,
    name: &str,
    span: &Range<usize>,
) -> Option<(&'t mut DeTable<'i>, String)> {
    if let DeValue::Table(table) = value {
        return table_with_key(table, name, span);
    }
    let DeValue::Array(array) = value else { return None };
    array.iter_mut().find_map(|element| value_with_key(element.get_mut(), name, span))
}

/// Takes the value at `span` out of its table or array; false: there is none.
fn remove_from_table(table: &mut DeTable<'_>, span: &Range<usize>) -> bool {
    let here =
        table.iter().find(|(_, value)| value.span() == *span).map(|(key, _)| key.get_ref().to_string());
    if let Some(key) = here {
        return table.remove(key.as_str()).is_some();
    }
    table.iter_mut().any(|(_, value)| remove_from_value(value.get_mut(), span))
}

fn remove_from_value(value: &mut DeValue<'_>, span: &Range<usize>) -> bool {
    if let DeValue::Table(table) = value {
        return remove_from_table(table, span);
    }
    let DeValue::Array(array) = value else { return false };
    if array.iter().any(|element| element.span() == *span) {
        let elements = mem::replace(array, DeArray::new()).into_iter();
        *array = elements.filter(|element| element.span() != *span).collect::<DeArray<'_>>();
        return true;
    }
    array.iter_mut().any(|element| remove_from_value(element.get_mut(), span))
}

/// The same value in the type that is wanted, where it can be guessed.
fn how_to_write(message: &str) -> Option<String> {
    let (found, expected) = message.strip_prefix("invalid type: ")?.rsplit_once(", expected ")?;
    if found == "map" && expected == "a sequence" {
        return Some("several of these may stand here: write the header as `[[…]]`".to_owned());
    }
    if found == "sequence" && expected == "a table" {
        return Some(
            "only one of these may stand here: write a `[…]` header, or `{ key = value }`".to_owned(),
        );
    }
    let number = found.strip_prefix("integer `").and_then(|rest| rest.strip_suffix('`'));
    let text = found.strip_prefix("string \"").and_then(|rest| rest.strip_suffix('"'));
    match (number, text) {
        (_, Some(text)) if expected == "a sequence" => Some(format!("write [{}]", quote(text))),
        _ if expected == "a table" => {
            Some("a table is written as `{ key = value }`, or under a header of its own".to_owned())
        }
        (Some(number), _) if expected.starts_with("a duration") => {
            Some(format!("write \"{number}s\" or \"{number}ms\""))
        }
        (Some(number), _) if expected == "a string" => Some(format!("write \"{number}\"")),
        (_, Some(text)) if expected == "i64" && text.parse::<i64>().is_ok() => Some(format!("write {text}")),
        (_, Some(text)) if expected == "a boolean" && text.parse::<bool>().is_ok() => {
            Some(format!("write {text}"))
        }
        _ => None,
    }
}

/// serde speaks of sequences and maps, and of what it found first.
fn reworded(message: &str) -> String {
    let found_and_expected = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "));
    let Some((found, expected)) = found_and_expected else { return message.to_owned() };
    let found = match found {
        "sequence" => "an array".to_owned(),
        "map" => "a table".to_owned(),
        found if found.ends_with(" as i128") || found.ends_with(" as u128") => "a larger one".to_owned(),
        found => clipped(found),
    };
    let expected = match expected {
        "a sequence" => "an array",
        "a boolean" => "true or false",
        "i64" => "an integer",
        expected => expected,
    };
    format!("expected {expected}, found {found}")
}

fn clipped(found: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let mut shown: String = found.chars().take(SHOWN_MAX).collect();
    if found.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// serde tells an unknown key as ``unknown field `a`, expected one of `b`, `c` ``, and only in words.
struct UnknownKey<'a> {
    key: &'a str,
    known: Vec<&'a str>,
}

impl<'a> UnknownKey<'a> {
    fn parse(message: &'a str) -> Option<Self> {
        let rest = message.strip_prefix("unknown field `")?;
        let (key, expected) = rest.rsplit_once("`, expected ")?;
        let known = expected.split('`').skip(1).step_by(2).collect();
        Some(Self { key, known })
    }
}
