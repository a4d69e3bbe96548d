//! `[[clusters]]`: the origins behind a route, how one of them is picked, watched and kept connected.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::SocketOptions;

/// A named set of endpoints that answer the same requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    /// Unique among clusters.
    pub name: String,
    /// How an endpoint is picked.
    pub policy: Policy,
    /// What is spoken to the endpoints.
    pub protocol: ClusterProtocol,
    /// At least one; addresses are unique within the cluster.
    pub endpoints: Vec<Endpoint>,
    /// Active health check; none unless given.
    pub health: Option<Health>,
    /// Idle connections.
    pub pool: Pool,
    /// Options of dialled sockets.
    pub socket: SocketOptions,
    /// Which `Host` the origin sees.
    pub host_header: HostHeader,
    /// How often names are resolved anew.
    pub dns_refresh: Duration,
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Each in turn.
    RoundRobin,
    /// Each in turn, in proportion to its weight, smoothly interleaved.
    WeightedRoundRobin,
    /// The one with the fewest exchanges in flight for its weight.
    LeastInFlight,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::RoundRobin, Self::WeightedRoundRobin, Self::LeastInFlight];

    /// As written in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::LeastInFlight => "least_in_flight",
        }
    }
}

/// What is spoken to the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClusterProtocol {
    /// HTTP/1.1 in clear text.
    Http1,
}

impl ClusterProtocol {
    /// As written in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
        }
    }
}

/// One origin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// 1 to 65,535; used by weighted policies.
    pub weight: u32,
}

/// Where an origin is: `127.0.0.1:8000`, `[::1]:8000`, `llm.internal:8000` or `unix:/run/llm.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A DNS name, lower case, and a port; every address it resolves to becomes an endpoint.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// As written in the config.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Active health check of each endpoint, run once per process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Health {
    /// What a probe is.
    pub kind: HealthKind,
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// Good probes in a row that make an unhealthy endpoint healthy.
    pub healthy_after: u32,
    /// Bad probes in a row that make a healthy endpoint unhealthy.
    pub unhealthy_after: u32,
}

/// What a health probe is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HealthKind {
    /// `GET path` answered with the expected status.
    Http {
        /// Begins with `/`.
        path: String,
        /// 200 unless given.
        expected_status: u16,
        /// The `Host` header; the endpoint's address unless given.
        host: Option<String>,
    },
    /// A connection that is accepted.
    Tcp,
}

/// Idle connections of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// Most idle connections kept for one endpoint by one worker for longer than some seconds; 0 keeps none. Between bursts
    /// there may be as many as the last one needed.
    pub idle_per_endpoint: u32,
    /// An idle connection older than this is closed; sooner, where the origin says so (`Keep-Alive: timeout=…`).
    pub idle_timeout: Duration,
}

/// Which `Host` the origin sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostHeader {
    /// What the client sent (the default).
    Keep,
    /// The endpoint's address as written in the config.
    Endpoint,
    /// This text.
    Fixed(String),
}
