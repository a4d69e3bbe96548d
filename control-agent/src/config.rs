//! The agent's config file: read, and checked by the model that is in `proto`.

use std::io::{self, IsTerminal};
use std::path::Path;

use proto::config::agent::AgentConfig;
use proto::config::{ConfigErrors, decode};

use crate::Failure;
use crate::report::host::Host;

/// Reads and checks the file.
///
/// # Errors
/// It cannot be read, or what is wrong with it, as `file:line:column`, for people.
pub fn read(path: &Path) -> Result<AgentConfig, Failure> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::Unusable(format!("{name}: cannot be read: {error}\n")))?;
    let unusable = |errors: ConfigErrors, text: &str| {
        Failure::Unusable(errors.render(&name, text, io::stderr().is_terminal()))
    };
    let text = decode(bytes).map_err(|errors| unusable(errors, ""))?;
    AgentConfig::parse(&text, &|variable| std::env::var(variable).ok(), &Host::new().hostname())
        .map_err(|errors| unusable(errors, &text))
}
