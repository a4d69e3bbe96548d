//! The checked config: types that cannot hold a wrong value, comparable, so that what did not change is kept.
//!
//! TOML text → [`file`] (what the user wrote) → [`Config`] (what it means). All validation happens in that one
//! conversion, and the same code runs in `check`, in the master and in the data plane.

pub mod cluster;
pub mod limits;
pub mod listener;
pub mod route;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use cluster::{
    Address, Cluster, ClusterProtocol, Endpoint, Health, HealthKind, HostHeader, Policy, Pool,
};
pub use limits::Limits;
pub use listener::{Bind, Listener, ListenerProtocol, SocketOptions, TcpKeepalive};
pub use route::{
    HeaderEdits, HeaderMatch, HeaderRules, HostPattern, PathMatch, Retries, Route, Timeouts,
};

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

/// `[admin]`: where the admin API listens. Each can be turned off with `"off"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Admin {
    /// TCP address; default `127.0.0.1:9091`.
    pub listen: Option<SocketAddr>,
    /// Unix socket with mode 0600; default: none unless given.
    pub socket: Option<PathBuf>,
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
