//! The agent's config file: read, and checked by the model that is in `proto`.

use std::io::{self, IsTerminal};
use std::path::Path;

use proto::config::agent::AgentConfig;

use crate::Failure;
use crate::report::host::Host;

/// Reads and checks the file.
///
/// # Errors
/// It cannot be read, or what is wrong with it, as `file:line:column`, for people.
pub fn read(path: &Path) -> Result<AgentConfig, Failure> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Unusable(format!("{name}: cannot be read: {error}\n")))?;
    AgentConfig::parse(&text, &|variable| std::env::var(variable).ok(), &Host::new().hostname())
        .map_err(|errors| Failure::Unusable(errors.render(&name, &text, io::stderr().is_terminal())))
}
