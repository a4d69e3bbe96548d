//! From text to the file types: TOML, the environment, and the file types' own shape.
//!
//! Rules about what values mean are not here.

mod depth;
mod env;
mod shape;
pub(crate) mod suggest;

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use super::error::{ConfigError, ConfigErrors};
use super::planned::PlannedKey;
use super::problem::Problems;

/// Longest config text: far above ten thousand routes, far below what would hurt the node that reads it.
pub const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Reads what can be read. A text that is no TOML is an error of its own; every other mistake is noted and its key
/// left out. `planned` has the keys that are refused as planned.
pub(crate) fn read<T: DeserializeOwned + Default>(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    planned: &'static [PlannedKey],
    problems: &mut Problems,
) -> Result<T, ConfigErrors> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(refused(text, 0..0, format!("the config is longer than {TEXT_BYTES_MAX} bytes")));
    }
    if let Some(span) = depth::too_deep(text) {
        return Err(refused(text, span, format!("nested more than {} deep", depth::DEPTH_MAX)));
    }
    let mut document = DeTable::parse(text).map_err(|error| syntax_error(&error, text))?.into_inner();
    env::expand(&mut document, text, env, problems);
    Ok(shape::deserialize(document, planned, problems))
}

/// A text that is not read any further.
fn refused(text: &str, span: Range<usize>, message: String) -> ConfigErrors {
    ConfigErrors::new(vec![ConfigError::new(text, span, String::new(), message, None)])
}

/// The parser stops making sense of a text at its first mistake, so there is only one.
fn syntax_error(error: &toml::de::Error, text: &str) -> ConfigErrors {
    let message = format!("not valid TOML: {}", error.message().replace('\n', ", "));
    refused(text, error.span().unwrap_or(0..0), message)
}
