//! What is wrong with a config, where, and what to write instead; with the text form that `check` prints.
//!
//! An error knows nothing of the file's name or of terminals: both are given when it is rendered.

use std::fmt::{self, Write as _};
use std::ops::Range;

use serde::Serialize;
use unicode_width::UnicodeWidthChar;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigError {
    /// The key, such as `clusters[0].endpoints[1].address`; empty where no key is meant.
    pub path: String,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// What to write instead; may have several lines.
    pub help: Option<String>,
    /// Bytes of the source that are wrong; always inside it and at character boundaries.
    #[serde(skip)]
    pub span: Range<usize>,
}

/// Everything that is wrong with a config, by position; never empty.
///
/// Serialised it is the body of a refusal: `{"errors":[{"path","line","column","message","help"}]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
}

/// Most errors that are reported at once; nobody reads more, and finding some of them costs a look at the whole file.
pub(crate) const ERRORS_MAX: usize = 50;

/// Longest part of a source line that is shown; the rest is cut.
const LINE_SHOWN_MAX: usize = 160;

impl ConfigErrors {
    /// Sorts the errors by position and keeps the first [`ERRORS_MAX`]. `errors` must not be empty.
    pub(crate) fn new(mut errors: Vec<ConfigError>) -> Self {
        debug_assert!(!errors.is_empty());
        errors.sort_by(|a, b| (a.span.start, &a.path).cmp(&(b.span.start, &b.path)));
        errors.truncate(ERRORS_MAX);
        Self { errors }
    }

    /// By position in the source.
    pub fn as_slice(&self) -> &[ConfigError] {
        &self.errors
    }

    /// Each error as `file:line:column: message`, the line with a caret, and what to write.
    ///
    /// `source` is the text that was parsed; `color` adds ANSI colours.
    pub fn render(&self, file_name: &str, source: &str, color: bool) -> String {
        let rendered: Vec<String> =
            self.errors.iter().map(|error| error.render(file_name, source, color)).collect();
        rendered.join("\n")
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// Places an error in `source`; a span that does not fit is pulled into it.
    pub(crate) fn new(
        source: &str,
        span: Range<usize>,
        path: String,
        message: String,
        help: Option<String>,
    ) -> Self {
        let start = source.floor_char_boundary(span.start);
        let end = source.ceil_char_boundary(span.end.clamp(start, source.len()));
        let line_start = source[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line = source[..start].matches('\n').count() + 1;
        let column = source[line_start..start].chars().count() + 1;
        Self { path, line, column, message, help, span: start..end }
    }

    /// `file:line:column: message`, the line with a caret, and what to write; ends with a newline.
    pub fn render(&self, file_name: &str, source: &str, color: bool) -> String {
        let paint = Paint { color };
        let gutter = " ".repeat(self.line.to_string().len());
        let bar = paint.dim("|");
        let mut out = format!("{file_name}:{}:{}: {}\n", self.line, self.column, paint.bold(&self.message));
        if let Some((text, caret)) = self.excerpt(source) {
            let number = paint.dim(&format!("{} |", self.line));
            let caret = paint.red(&caret);
            // Writing to a String does not fail.
            let _ = writeln!(out, "{gutter} {bar}\n{number} {text}\n{gutter} {bar} {caret}");
        }
        if !self.path.is_empty() {
            let _ = writeln!(out, "{gutter} {} key: {}", paint.dim("="), self.path);
        }
        if let Some(help) = &self.help {
            let mut lines = help.lines();
            let first = lines.next().unwrap_or_default();
            let _ = writeln!(out, "{gutter} {} help: {}", paint.dim("="), paint.green(first));
            for line in lines {
                let line = format!("{gutter}         {line}");
                let _ = writeln!(out, "{}", paint.green(line.trim_end()));
            }
        }
        out
    }

    /// The line of the error as it can be shown in a terminal, and the caret line below it.
    fn excerpt(&self, source: &str) -> Option<(String, String)> {
        let start = self.span.start;
        let line_start = source.get(..start)?.rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = source[start..].find('\n').map_or(source.len(), |newline| start + newline);
        let line = source.get(line_start..line_end)?.trim_end_matches('\r');
        if line.trim().is_empty() {
            return None;
        }
        // A line of a machine-written file can be as long as the file: show the part around the error.
        let cut = source.floor_char_boundary(start.saturating_sub(LINE_SHOWN_MAX / 2).max(line_start));
        let shown: String = source[cut..line_start + line.len()].chars().take(LINE_SHOWN_MAX).collect();
        let before = source[cut..start].chars().map(visible_width).sum();
        let marked = &source[start..self.span.end.min(line_end)];
        let room = LINE_SHOWN_MAX.saturating_sub(before).max(1);
        let width = marked.chars().map(visible_width).sum::<usize>().clamp(1, room);
        let text = shown.chars().map(visible).collect();
        Some((text, format!("{}{}", " ".repeat(before), "^".repeat(width))))
    }
}

/// Control characters are not sent to a terminal: the source may come from anyone.
fn visible(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

fn visible_width(c: char) -> usize {
    visible(c).width().unwrap_or(1)
}

/// ANSI colours, or none.
struct Paint {
    color: bool,
}

impl Paint {
    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }
    fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }
    fn red(&self, text: &str) -> String {
        self.with("1;31", text)
    }
    fn green(&self, text: &str) -> String {
        self.with("32", text)
    }
    fn with(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
