//! What the measuring commands write: their record as JSON, text for people, and a line that shows how far they are.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::Context as _;

/// Writes a record to a file, or to stdout if the file is `-`.
pub(crate) fn write_json(record: &impl serde::Serialize, path: &Path) -> anyhow::Result<()> {
    let mut json = serde_json::to_string_pretty(record)?;
    json.push('\n');
    if path == Path::new("-") {
        return print(&json);
    }
    std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
}

/// A reader that went away (`load … | head`) is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("stdout"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether anybody would see a line that is written over and over.
pub(crate) fn has_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Shows a line in place of the last one.
pub(crate) fn overwrite_line(line: &str) {
    // To the start of the line, and away with what is left of a longer one.
    eprint!("\r{line}\x1b[K");
}
