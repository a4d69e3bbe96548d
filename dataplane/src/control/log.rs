//! The process's log: lines on standard error from a level on that can be changed while it runs. Not the access log.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::Mutex;
use std::time::Duration;

use proto::config::LogLevel;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use super::lines::Lines;

/// How long the last lines may take to be written when the process ends.
pub(crate) const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);
/// The same for the lines about a panic, which may be the last ones, and which a worker waits for.
const PANIC_WITHIN: Duration = Duration::from_millis(100);

/// Changes the level of the log.
#[derive(Debug)]
pub(crate) struct LogSwitch {
    handle: reload::Handle<LevelFilter, Registry>,
    level: Mutex<LogLevel>,
    lines: Lines,
}

/// Starts the log, in which panics are told of too. Where the process has one already, that one stays as it is.
///
/// # Errors
/// There is no thread to write it.
pub(crate) fn start(level: LogLevel) -> io::Result<LogSwitch> {
    let (filter, handle) = reload::Layer::new(filter(level));
    let is_terminal = io::stderr().is_terminal();
    let lines = Lines::start(io::stderr())?;
    let layer = fmt::layer().with_writer(lines.clone()).with_ansi(is_terminal).with_target(false);
    // Fails only where a log has been started before.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    let of_panics = lines.clone();
    std::panic::set_hook(Box::new(move |panic| tell_of_panic(&of_panics, panic)));
    Ok(LogSwitch { handle, level: Mutex::new(level), lines })
}

/// As the standard library does, but for a write that may wait forever.
fn tell_of_panic(lines: &Lines, panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let mut text = format!("thread '{}' {panic}\n", thread.name().unwrap_or("without a name"));
    if backtrace.status() == BacktraceStatus::Captured {
        text.push_str(&format!("{backtrace}\n"));
    }
    lines.push(text.as_bytes());
    lines.flush_within(PANIC_WITHIN);
}

impl LogSwitch {
    /// Writes from `level` on.
    pub(crate) fn set(&self, level: LogLevel) {
        *self.lock() = level;
        // Fails only where another log was started first, which has its own level.
        let _ = self.handle.modify(|current| *current = filter(level));
    }

    /// The lines on their way to standard error.
    pub(crate) fn lines(&self) -> &Lines {
        &self.lines
    }

    /// The level now.
    pub(crate) fn level(&self) -> LogLevel {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LogLevel> {
        self.level.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A switch of a log that nobody hears, so that tests keep the terminal to themselves.
#[cfg(test)]
pub(crate) fn unheard(level: LogLevel) -> LogSwitch {
    let (_, handle) = reload::Layer::new(filter(level));
    LogSwitch { handle, level: Mutex::new(level), lines: Lines::start(io::sink()).unwrap() }
}

/// The level with this name, as the config has it.
pub(crate) fn level_of(name: &str) -> Option<LogLevel> {
    LEVELS.into_iter().find(|level| level.name() == name)
}

/// All of them, the rarest lines first.
pub(crate) const LEVELS: [LogLevel; 5] =
    [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
