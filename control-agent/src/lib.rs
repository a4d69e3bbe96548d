//! The control agent: beside each data plane, it takes configs and commands from the master and reports to it.
//!
//! [`state`] decides and does nothing; everything else does and decides nothing. The data plane needs neither the agent
//! nor the master to go on serving.

pub mod agent;
pub mod backoff;
pub mod command;
pub mod config;
pub mod dataplane;
pub mod log;
pub mod master;
pub mod report;
pub mod signals;
pub mod state;
pub mod store;
pub mod systemd;

/// Why the agent did not run.
#[derive(Debug)]
pub enum Failure {
    /// Arguments or a config that cannot be used, whoever tries: exit code 2.
    Unusable(String),
    /// Something failed that may not fail the next time: exit code 1.
    Failed(String),
}

impl Failure {
    /// For people.
    pub fn message(&self) -> &str {
        match self {
            Self::Unusable(message) | Self::Failed(message) => message,
        }
    }
}
