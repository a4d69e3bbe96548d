//! The process's log: lines on standard error from a level on that can be changed while it runs. Not the access log.

use std::io::IsTerminal;
use std::sync::Mutex;

use proto::config::LogLevel;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes the level of the log.
#[derive(Debug)]
pub(crate) struct LogSwitch {
    handle: reload::Handle<LevelFilter, Registry>,
    level: Mutex<LogLevel>,
}

/// Starts the log. Where the process has one already, that one stays as it is.
pub(crate) fn start(level: LogLevel) -> LogSwitch {
    let (filter, handle) = reload::Layer::new(filter(level));
    let is_terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(is_terminal).with_target(false);
    // Fails only where a log has been started before.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    LogSwitch { handle, level: Mutex::new(level) }
}

impl LogSwitch {
    /// Writes from `level` on.
    pub(crate) fn set(&self, level: LogLevel) {
        *self.lock() = level;
        // Fails only where another log was started first, which has its own level.
        let _ = self.handle.modify(|current| *current = filter(level));
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
    LogSwitch { handle, level: Mutex::new(level) }
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
