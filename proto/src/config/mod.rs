//! The checked config: types that cannot hold a wrong value, comparable, so that what did not change is kept.
//!
//! TOML text → `file` (what the user wrote) → [`Config`] (what it means). All validation happens in that one
//! conversion ([`Config::parse`]), and the same code runs in `check`, in the master and in the data plane. Nothing here
//! opens a file, resolves a name or asks the kernel: whether an address can be bound is found out by binding it.
//!
//! To add a key: a field in `file`, a field in the checked type, a constant in [`defaults`] with its reason, its rule in
//! `check`, and samples in `tests/config/accepted` and `tests/config/refused`.

pub mod agent;
mod check;
pub mod cluster;
pub mod defaults;
mod encoding;
mod error;
mod file;
pub mod limits;
pub mod listener;
mod planned;
mod problem;
mod read;
pub mod route;
mod warnings;
mod words;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use cluster::{
    Address, Cluster, ClusterProtocol, Endpoint, Health, HealthKind, HostHeader, Policy, Pool,
};
pub use encoding::decode;
pub use error::{ConfigError, ConfigErrors};
pub use file::schema;
pub use limits::Limits;
pub use listener::{
    Account, Bind, HalfClose, Listener, ListenerProtocol, SocketAccess, SocketOptions, TcpKeepalive,
};
pub use read::TEXT_BYTES_MAX;
pub use route::{HeaderEdits, HeaderMatch, HeaderRules, HostPattern, PathMatch, Retries, Route, Timeouts};

use problem::Problems;

/// A whole checked configuration of one data plane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Who this node is in the fleet.
    pub node: Node,
    /// Threads and the I/O driver.
    pub runtime: Runtime,
    /// Where the admin API listens.
    pub admin: Admin,
    /// Log level and access log.
    pub log: Log,
    /// Limits of the whole node.
    pub limits: Limits,
    /// Listeners, in the order of the file; names are unique.
    pub listeners: Vec<Listener>,
    /// Routes, in the order of the file; names are unique.
    pub routes: Vec<Route>,
    /// Clusters, in the order of the file; names are unique.
    pub clusters: Vec<Cluster>,
}

impl Config {
    /// Reads and checks a config. `env` gives the values of `${NAME}`; `hostname` is the node's id where the text has none.
    ///
    /// # Errors
    /// Every mistake that one pass can find, by position.
    pub fn parse(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
        hostname: &str,
    ) -> Result<Self, ConfigErrors> {
        let mut problems = Problems::default();
        let file = read::read(text, env, planned::KEYS, &mut problems)?;
        let config = check::config(&file, hostname, &mut problems);
        problems.into_result(config, text)
    }

    /// [`Config::parse`] with the environment of this process.
    ///
    /// # Errors
    /// As [`Config::parse`]. A variable that is not UTF-8 counts as unset.
    pub fn parse_with_process_env(text: &str, hostname: &str) -> Result<Self, ConfigErrors> {
        Self::parse(text, &|name| std::env::var(name).ok(), hostname)
    }

    /// What is allowed but probably not meant, one sentence each; for the log and for `check`.
    pub fn warnings(&self) -> Vec<String> {
        warnings::of(self)
    }
}

/// `[node]`: who this node is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Unique in the fleet; the host's name unless given.
    pub id: String,
    /// Edge (takes users) or core (takes edges).
    pub role: Role,
    /// Free text such as `hk`; empty unless given.
    pub region: String,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Near the users.
    Edge,
    /// Near the model servers.
    Core,
}

impl Role {
    /// As written in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Core => "core",
        }
    }
}

/// `[runtime]`: threads and the I/O driver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Runtime {
    /// Worker threads; 0 means one for each core this process may use.
    pub workers: usize,
    /// How workers talk to the kernel.
    pub driver: Driver,
}

/// How workers talk to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// io_uring where the kernel allows it, else epoll with a warning.
    Auto,
    /// io_uring or fail to start.
    IoUring,
    /// epoll.
    Epoll,
}

impl Driver {
    /// As written in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// `[admin]`: where the admin API listens. Each can be turned off with `"off"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Admin {
    /// TCP address; default `127.0.0.1:9091`.
    pub listen: Option<SocketAddr>,
    /// Unix socket; default: none unless given.
    pub socket: Option<PathBuf>,
    /// Who may connect to it; default: this process's user alone.
    pub access: SocketAccess,
}

/// `[log]`: log level and access log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Log {
    /// Lowest level that is written.
    pub level: LogLevel,
    /// Where the access log goes.
    pub access: AccessLog,
}

/// Lowest level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogLevel {
    /// Failures that someone should be woken for.
    Error,
    /// Something is wrong, the node goes on.
    Warn,
    /// Changes that an operator can see.
    Info,
    /// Per connection.
    Debug,
    /// Per packet.
    Trace,
}

impl LogLevel {
    /// As written in the config, and as `tracing` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AccessLog {
    /// Nowhere (the default).
    Off,
    /// Standard output, one JSON object a line.
    Stdout,
    /// Appended to a file, one JSON object a line.
    File(PathBuf),
}
