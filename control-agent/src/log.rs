//! The process's log: lines on standard error, from a level on that a reload may change.

use std::io::IsTerminal;

use proto::config::LogLevel;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes the level of the log.
#[derive(Debug)]
pub struct LogSwitch(reload::Handle<LevelFilter, Registry>);

impl LogSwitch {
    /// Starts the log. Where the process has one already, that one stays as it is.
    pub fn start(level: LogLevel) -> Self {
        let (filter, switch) = reload::Layer::new(filter(level));
        let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
        let _ = tracing_subscriber::registry().with(filter).with(lines.with_target(false)).try_init();
        Self(switch)
    }

    /// Writes from `level` on.
    pub fn set(&self, level: LogLevel) {
        // Fails only where another log was started first, which has its own level.
        let _ = self.0.modify(|current| *current = filter(level));
    }
}

/// The words of the config are those of `tracing`.
fn filter(level: LogLevel) -> LevelFilter {
    level.name().parse().unwrap_or(LevelFilter::INFO)
}
