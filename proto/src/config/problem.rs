//! Mistakes while they are collected: each knows its bytes, its key is looked up when the list is complete.
//!
//! A mistake can cause others: a key that could not be read is missing later. Those are left out here, so that what
//! the user sees are the causes.

use std::collections::HashMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors, ERRORS_MAX};

/// The list of mistakes.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<Problem>,
    /// Places of what was taken out of the document because it could not be used.
    removed: Vec<Range<usize>>,
}

#[derive(Debug)]
struct Problem {
    /// The key or value whose path is named.
    node: Range<usize>,
    /// A key of that value which is not there.
    missing: Option<&'static str>,
    /// The array of tables whose names were searched in vain.
    searched: Option<&'static str>,
    /// What the caret stands under.
    span: Range<usize>,
    message: String,
    help: Option<String>,
}

impl Problems {
    /// A value (or key) that is wrong.
    pub(crate) fn wrong(&mut self, node: &Range<usize>, message: impl Into<String>, help: impl Help) {
        self.wrong_part(node, node.clone(), message, help);
    }

    /// A part of a value that is wrong.
    pub(crate) fn wrong_part(
        &mut self,
        node: &Range<usize>,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Help,
    ) {
        self.push(node, span, None, None, message.into(), help);
    }

    /// A key of the table at `node` that is needed and not there, or empty.
    pub(crate) fn missing(
        &mut self,
        node: &Range<usize>,
        key: &'static str,
        message: impl Into<String>,
        help: impl Help,
    ) {
        self.push(node, node.clone(), Some(key), None, message.into(), help);
    }

    /// A name at `node` that none of the tables of `array` has.
    pub(crate) fn unknown_name(
        &mut self,
        node: &Range<usize>,
        array: &'static str,
        message: String,
        help: impl Help,
    ) {
        self.push(node, node.clone(), None, Some(array), message, help);
    }

    /// Remembers that what stands at `node` was taken out of the document.
    pub(crate) fn note_removed(&mut self, node: Range<usize>) {
        self.removed.push(node);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// No more can be reported.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= ERRORS_MAX
    }

    fn push(
        &mut self,
        node: &Range<usize>,
        span: Range<usize>,
        missing: Option<&'static str>,
        searched: Option<&'static str>,
        message: String,
        help: impl Help,
    ) {
        // What can be told is bounded before it is sorted out, well above what is shown: see `into_error`.
        if self.list.len() >= ERRORS_MAX * 20 {
            return;
        }
        let help = help.into_help();
        self.list.push(Problem { node: node.clone(), missing, searched, span, message, help });
    }

    /// The value, or what is wrong with `text`.
    pub(crate) fn into_result<T>(self, value: T, text: &str) -> Result<T, ConfigErrors> {
        if self.list.is_empty() {
            return Ok(value);
        }
        let paths = Paths::of(text);
        let removed: Vec<String> = self.removed.iter().map(|span| paths.at(span)).collect();
        let problems = self.list.into_iter();
        let errors = problems.filter_map(|problem| problem.into_error(text, &paths, &removed)).collect();
        Err(ConfigErrors::new(errors))
    }
}

impl Problem {
    /// None: it follows from something that was taken out, which has its own error.
    fn into_error(self, text: &str, paths: &Paths, removed: &[String]) -> Option<ConfigError> {
        let mut path = paths.at(&self.node);
        if let Some(key) = self.missing {
            path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            if removed.iter().any(|gone| is_at_or_below(gone, &path)) {
                return None;
            }
        }
        if let Some(array) = self.searched
            && removed.iter().any(|gone| may_hold_name(gone, array))
        {
            return None;
        }
        Some(ConfigError::new(text, self.span, path, self.message, self.help))
    }
}

fn is_at_or_below(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Whether what stood at `gone` may have been the name that is searched in `array`: the array itself, one of its
/// tables or the name of one.
fn may_hold_name(gone: &str, array: &str) -> bool {
    gone.strip_prefix(array).is_some_and(|rest| {
        rest.is_empty() || rest.starts_with('[') && (rest.ends_with(']') || rest.ends_with("].name"))
    })
}

/// Help is optional, and written in several ways.
pub(crate) trait Help {
    fn into_help(self) -> Option<String>;
}

impl Help for &str {
    fn into_help(self) -> Option<String> {
        Some(self.to_owned())
    }
}

impl Help for String {
    fn into_help(self) -> Option<String> {
        Some(self)
    }
}

impl Help for Option<String> {
    fn into_help(self) -> Option<String> {
        self
    }
}

/// The dotted path of every key and value of a document, by its bytes.
struct Paths(HashMap<(usize, usize), String>);

impl Paths {
    fn of(text: &str) -> Self {
        let mut paths = Self(HashMap::new());
        if let Ok(document) = DeTable::parse(text) {
            paths.walk_table(document.get_ref(), "");
        }
        paths
    }

    /// Empty where nothing stands at these bytes.
    fn at(&self, span: &Range<usize>) -> String {
        self.0.get(&(span.start, span.end)).cloned().unwrap_or_default()
    }

    /// An implicit table has the bytes of its header, as has the table that the header is for: the inner one, which
    /// comes later, is meant.
    fn note(&mut self, span: Range<usize>, path: &str) {
        self.0.insert((span.start, span.end), path.to_owned());
    }

    fn walk_table(&mut self, table: &DeTable<'_>, path: &str) {
        for (key, value) in table.iter() {
            let separator = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{separator}{}", key_as_written(key.get_ref()));
            self.note(key.span(), &path);
            self.note(value.span(), &path);
            self.walk(value.get_ref(), &path);
        }
    }

    fn walk(&mut self, value: &DeValue<'_>, path: &str) {
        if let DeValue::Table(table) = value {
            self.walk_table(table, path);
        }
        if let DeValue::Array(array) = value {
            for (index, element) in array.iter().enumerate() {
                let path = format!("{path}[{index}]");
                self.note(element.span(), &path);
                self.walk(element.get_ref(), &path);
            }
        }
    }
}

fn key_as_written(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_bare { key.to_owned() } else { format!("\"{}\"", key.escape_debug()) }
}
