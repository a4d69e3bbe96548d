//! `millrace-dataplane doctor`: looks at the host and says what would slow the data plane down or keep it from
//! starting, each with the command that mends it. It changes nothing, and it is not the validation of a config:
//! that has been done before a [`Config`] exists.
//!
//! Every file is read below [`Host::root`], so that a test can make up a host.

mod address;
mod kernel;
mod process;
mod text;

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use proto::config::Config;

/// The host as it is looked at.
pub struct Host<'a> {
    /// Where `proc` and `sys` are found: `/` but in tests.
    pub root: &'a Path,
    /// Tries to set up an io_uring with the flags that the workers use, and takes it down again.
    pub probe_io_uring: &'a dyn Fn() -> io::Result<()>,
}

/// How good a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing to do.
    Ok,
    /// The data plane runs, but slower or with less room than it could have.
    Warn,
    /// The data plane cannot run as configured.
    Fail,
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, such as `open files`.
    pub name: String,
    /// How good it is.
    pub state: State,
    /// What was found, with figures.
    pub found: String,
    /// The command (or the line of a config) that mends it; present unless the state is [`State::Ok`].
    pub mend: Option<String>,
}

/// All findings, in the order in which they were looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// One for each check.
    pub findings: Vec<Finding>,
}

/// Looks at everything. Without a config the defaults of one are taken for what is wanted.
///
/// Ports are tried by binding them for a moment, on this process's network whatever [`Host::root`] says.
#[must_use]
pub fn examine(host: &Host<'_>, config: Option<&Config>) -> Report {
    let mut findings = vec![
        kernel::version(host, config),
        kernel::io_uring(host, config),
        kernel::accept_queue(host, config),
        kernel::local_ports(host, config),
        kernel::congestion_control(host, config),
        kernel::clock_source(host),
        process::open_files(host, config),
        process::locked_memory(host),
        process::processors(host, config),
    ];
    findings.extend(address::free(config));
    Report { findings }
}

impl Report {
    /// 0 when nothing failed (warnings are no failure), else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(self.findings.iter().any(|finding| finding.state == State::Fail))
    }

    /// A line for each finding, one more for what mends it, and a summary; `color` adds ANSI colours.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for finding in &self.findings {
            let (on, off) = if color { (finding.state.color(), "\x1b[0m") } else { ("", "") };
            let (label, name) = (finding.state.label(), &finding.name);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{on}{label:<4}{off}  {name:<width$}  {}", finding.found);
            if let Some(mend) = &finding.mend {
                let _ = writeln!(text, "      {:<width$}  to mend: {mend}", "");
            }
        }
        let count = |state| self.findings.iter().filter(|finding| finding.state == state).count();
        let _ = writeln!(
            text,
            "{} ok, {} to improve, {} failed",
            count(State::Ok),
            count(State::Warn),
            count(State::Fail)
        );
        text
    }
}

impl State {
    fn label(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "FAIL",
        }
    }

    fn color(self) -> &'static str {
        match self {
            State::Ok => "\x1b[32m",
            State::Warn => "\x1b[33m",
            State::Fail => "\x1b[31m",
        }
    }
}

impl Finding {
    fn ok(name: &str, found: impl Into<String>) -> Finding {
        Finding { name: name.to_owned(), state: State::Ok, found: found.into(), mend: None }
    }

    fn warn(name: &str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { name: name.to_owned(), state: State::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(name: &str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { state: State::Fail, ..Finding::warn(name, found, mend) }
    }

    /// A file of `/proc` or `/sys` that is not there: nothing is known, which is worth a look but no failure.
    fn unknown(name: &str, path: &str) -> Finding {
        Finding::warn(name, format!("/{path} cannot be read"), "mount /proc and /sys, and run doctor again")
    }
}

#[cfg(test)]
mod tests;
