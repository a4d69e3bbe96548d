//! A data plane's config as text: decoding what came over the API, checking it with the data plane's own code, and
//! comparing two of them. Pure; nothing is stored here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use proto::config::{Config, TEXT_BYTES_MAX};
use similar::TextDiff;

use super::name::check_name;
use super::refusal::{Detail, Kind, Refusal};

/// Values for `${NAME}` that stand for what nodes have in their environments. They are for the check alone.
pub(crate) type Variables = BTreeMap<String, String>;

/// Variables of one config: more than a config has places for secrets.
pub(crate) const VARIABLES_MAX: usize = 64;

/// After that a diff becomes coarser instead of better: two texts of megabytes with nothing in common.
const DIFF_TIMEOUT: Duration = Duration::from_secs(2);

/// Lines around a difference, as `diff -u` has them.
const DIFF_CONTEXT_LINES: usize = 3;

/// The text of `config_data`: plain TOML, or the same in base64.
///
/// A TOML config has line breaks, blanks, brackets or `=` between its words, which base64 does not; so the two cannot be
/// mixed up.
///
/// # Errors
/// It looks like base64 but is none, is no UTF-8, or is too long.
pub(crate) fn decode(data: &str) -> Result<String, Refusal> {
    let refuse = |code: &str, message: &str| Refusal::invalid("config_data", code, message);
    let text = if is_base64(data) {
        let compact: String = data.split_ascii_whitespace().collect();
        let engine = if compact.ends_with('=') { &STANDARD } else { &STANDARD_NO_PAD };
        let padded = engine.decode(&compact).or_else(|_| STANDARD.decode(&compact));
        let bytes =
            padded.map_err(|error| refuse("bad_base64", &format!("`config_data` is no base64: {error}")))?;
        proto::config::decode(bytes).map_err(|errors| {
            let why: Vec<String> = errors.as_slice().iter().map(described).collect();
            refuse("not_utf8", &format!("`config_data` is no UTF-8 inside of its base64: {}", why.join("; ")))
        })?
    } else {
        data.to_owned()
    };
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("`config_data` may have at most {TEXT_BYTES_MAX} bytes");
        return Err(Refusal::of(Kind::TooLarge, "config_data", "too_long", message));
    }
    Ok(text)
}

/// Checks a text with the code of the data plane's `check`; gives its warnings.
///
/// # Errors
/// Each mistake, as `config_data:LINE:COLUMN`.
pub(crate) fn check(text: &str, variables: &Variables) -> Result<Vec<String>, Refusal> {
    check_variables(variables)?;
    let unset = RefCell::new(BTreeSet::new());
    let variable = |name: &str| {
        let value = variables.get(name).cloned();
        if value.is_none() {
            unset.borrow_mut().insert(name.to_owned());
        }
        value
    };
    // `node.id` has a default that is each host's own: its name plays no part in the check.
    match Config::parse(text, &variable, "node") {
        Ok(config) => Ok(config.warnings()),
        Err(errors) => {
            let details = errors.as_slice().iter().map(|error| Detail {
                field: format!("config_data:{}:{}", error.line, error.column),
                code: "bad_config".to_owned(),
                message: described(error),
            });
            let mut details: Vec<Detail> = details.collect();
            let message = match details.len() {
                1 => "the config has 1 mistake".to_owned(),
                count => format!("the config has {count} mistakes"),
            };
            let whole = "what a data plane would refuse".to_owned();
            details.push(Detail {
                field: "config_data".to_owned(),
                code: "bad_config".to_owned(),
                message: whole,
            });
            // The help of the mistake itself is for a host, where it is the environment that lacks a name.
            details.extend(unset.into_inner().into_iter().take(VARIABLES_MAX).map(|name| Detail {
                field: format!("variables.{}", name.escape_debug()),
                code: "missing".to_owned(),
                message: "nodes have their own: give a value here for the check".to_owned(),
            }));
            Err(Refusal { kind: Kind::Invalid, message, details })
        }
    }
}

/// The way from one text to another, as `diff -u` shows it; empty where they are equal.
pub(crate) fn unified_diff(from: (&str, &str), to: (&str, &str)) -> String {
    let diff = TextDiff::configure().timeout(DIFF_TIMEOUT).diff_lines(from.1, to.1);
    if from.1 == to.1 {
        return String::new();
    }
    let mut unified = diff.unified_diff();
    unified.context_radius(DIFF_CONTEXT_LINES).header(from.0, to.0).to_string()
}

fn is_base64(data: &str) -> bool {
    let body = data.trim_end();
    let body = body.trim_end_matches('=');
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    !body.is_empty() && body.bytes().all(|byte| is_digit(byte) || byte == b'\n' || byte == b'\r')
}

fn described(error: &proto::config::ConfigError) -> String {
    let key = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path) };
    let help = error.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{key}{}{help}", error.message)
}

fn check_variables(variables: &Variables) -> Result<(), Refusal> {
    if variables.len() > VARIABLES_MAX {
        let message = format!("`variables` may have at most {VARIABLES_MAX} entries");
        return Err(Refusal::invalid("variables", "too_many", message));
    }
    variables.keys().try_for_each(|name| check_name(&format!("variables.{}", name.escape_debug()), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = include_str!("../../../proto/tests/config/accepted/minimal.toml");

    #[test]
    fn another_encoding_inside_of_base64_is_named() {
        let utf16: Vec<u8> = CONFIG.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let refusal = format!("{:?}", decode(&STANDARD.encode(utf16)).unwrap_err());
        assert!(refusal.contains("not_utf8") && refusal.contains("iconv -f UTF-16LE "), "{refusal}");
    }

    #[test]
    fn plain_text_and_base64_are_the_same() {
        assert_eq!(decode(CONFIG).unwrap(), CONFIG);
        assert_eq!(decode(&STANDARD.encode(CONFIG)).unwrap(), CONFIG);
        assert_eq!(decode(&STANDARD_NO_PAD.encode(CONFIG)).unwrap(), CONFIG);
        let mut wrapped = STANDARD.encode(CONFIG);
        wrapped.insert(76, '\n');
        assert_eq!(decode(&wrapped).unwrap(), CONFIG);
    }

    #[test]
    fn bad_base64_and_bad_texts_name_the_field() {
        for bad in ["AAAAA", "/w==", "/+//"] {
            assert_eq!(decode(bad).unwrap_err().details[0].field, "config_data", "{bad}");
        }
        let long = decode(&" ".repeat(TEXT_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(long.kind, Kind::TooLarge);
    }

    #[test]
    fn mistakes_have_their_lines() {
        let refusal = check("[node]\nrole = \"king\"\n", &Variables::new()).unwrap_err();
        assert!(refusal.details.iter().any(|detail| detail.field == "config_data:2:8"), "{refusal:?}");
    }

    #[test]
    fn one_mistake_is_told_as_one() {
        let told = |node: &str| {
            check(&format!("{CONFIG}\n[node]\n{node}\n"), &Variables::new()).unwrap_err().message
        };
        assert_eq!(told("region = \"${A}\""), "the config has 1 mistake");
        assert_eq!(told("region = \"${A}\"\nid = \"${B}\""), "the config has 2 mistakes");
    }

    #[test]
    fn a_variable_stands_for_what_a_node_has() {
        let text = format!("{CONFIG}\n[node]\nregion = \"${{REGION}}\"\n");
        let refusal = check(&text, &Variables::new()).unwrap_err();
        assert!(refusal.details.iter().any(|detail| detail.field == "variables.REGION"), "{refusal:?}");
        let variables = Variables::from([("REGION".to_owned(), "hk".to_owned())]);
        assert!(check(&text, &variables).is_ok());
    }

    #[test]
    fn the_master_gives_nothing_of_its_own_environment_away() {
        let text = format!("{CONFIG}\n[node]\nregion = \"${{PATH}}\"\n");
        assert!(check(&text, &Variables::new()).is_err());
    }

    #[test]
    fn a_diff_is_one_that_patch_understands() {
        let diff = unified_diff(("a", "1\n2\n3\n"), ("b", "1\nzwei\n3\n"));
        assert_eq!(diff, "--- a\n+++ b\n@@ -1,3 +1,3 @@\n 1\n-2\n+zwei\n 3\n");
        assert_eq!(unified_diff(("a", "1\n"), ("b", "1\n")), "");
    }
}
