//! From text to the file types: TOML, the environment, and the file types' own shape.
//!
//! Rules about what values mean are not here.

mod env;
mod shape;
pub(crate) mod suggest;

use toml::de::DeTable;

use super::error::{ConfigError, ConfigErrors};
use super::file::File;
use super::problem::Problems;

/// Longest config text: far above ten thousand routes, far below what would hurt the node that reads it.
pub const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Reads what can be read. A text that is no TOML is an error of its own; every other mistake is noted and its key
/// left out.
pub(crate) fn read(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Result<File, ConfigErrors> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the config is longer than {TEXT_BYTES_MAX} bytes");
        return Err(ConfigErrors::new(vec![ConfigError::new(text, 0..0, String::new(), message, None)]));
    }
    let mut document = DeTable::parse(text).map_err(|error| syntax_error(&error, text))?.into_inner();
    env::expand(&mut document, text, env, problems);
    Ok(shape::deserialize(document, problems))
}

/// The parser stops making sense of a text at its first mistake, so there is only one.
fn syntax_error(error: &toml::de::Error, text: &str) -> ConfigErrors {
    let span = error.span().unwrap_or(0..0);
    let message = format!("not valid TOML: {}", error.message().replace('\n', ", "));
    ConfigErrors::new(vec![ConfigError::new(text, span, String::new(), message, None)])
}
