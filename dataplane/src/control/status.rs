//! `GET /status`: the node in one JSON document, for people and for the agent. Figures over time are `/metrics`'.

use dataplane_core::files::{Files, Standing};
use dataplane_core::snapshot::{ClusterEntry, EndpointEntry, ListenerEntry};
use dataplane_core::stats::{EndpointStats, WorkerStats};
use serde::Serialize;

use super::node::{Applied, Generation, Node};
use super::resolve::{Failure, NamedEndpoint};
use super::source::Sourced;
use crate::metrics::process::Process;
use crate::protocol::IDLE_CONNECTION_BYTES;

/// The document.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    version: &'static str,
    pid: u32,
    ready: bool,
    draining: bool,
    generation: u64,
    generations: Vec<Generation>,
    /// Where the config came from, and since when it is served; null before the first.
    source: Option<Sourced>,
    node: Option<NodeStatus>,
    workers: usize,
    driver: &'static str,
    connections: u64,
    streams: u64,
    listeners: Vec<ListenerStatus>,
    clusters: Vec<ClusterStatus>,
    threads: Vec<ThreadStatus>,
    memory: MemoryStatus,
    files: FileStatus,
}

#[derive(Debug, Serialize)]
struct NodeStatus {
    id: String,
    role: &'static str,
    region: String,
}

#[derive(Debug, Serialize)]
struct ListenerStatus {
    name: String,
    protocol: &'static str,
    /// As bound.
    addresses: Vec<String>,
    connections: u64,
}

#[derive(Debug, Serialize)]
struct ClusterStatus {
    name: String,
    policy: &'static str,
    protocol: &'static str,
    endpoints: Vec<EndpointStatus>,
}

#[derive(Debug, Serialize)]
struct EndpointStatus {
    /// As configured.
    name: String,
    /// As resolved; null where there is none yet.
    address: Option<String>,
    healthy: bool,
    weight: u32,
    streams: u64,
    idle_connections: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    unresolved: Option<UnresolvedStatus>,
}

/// Why an endpoint that is given by name has no address.
#[derive(Debug, Serialize)]
struct UnresolvedStatus {
    error: String,
    /// In UTC (RFC 3339).
    since: String,
}

#[derive(Debug, Serialize)]
struct ThreadStatus {
    worker: usize,
    connections: u64,
    streams: u64,
    buffer_bytes: u64,
    buffer_bytes_peak: u64,
    restarts: u64,
    tick: u64,
}

#[derive(Debug, Serialize)]
struct MemoryStatus {
    rss_bytes: u64,
    /// Of all workers: what is lent to connections now, and the most that each of them had lent at once.
    buffers: u64,
    buffer_bytes: u64,
    buffer_bytes_peak: u64,
    /// The most that one stream can hold.
    stream_bytes_max: u64,
    /// What one worker lends before it turns new requests away.
    worker_bytes_max: u64,
    /// What one worker may have beside that: free buffers, and those that the kernel fills next.
    worker_reserve_bytes_max: u64,
    /// How many connections there may be, and what each of them takes while it is idle.
    connections_max: u32,
    idle_connection_bytes: u64,
    /// The sum: of all workers with their reserves, and of all connections.
    bytes_max: u64,
}

/// How the open files of the process are divided: the parts are the limit.
#[derive(Debug, Default, Serialize)]
struct FileStatus {
    /// The most that may be open, as of the config's application; and how many are.
    limit: u64,
    open: u64,
    /// What `limits.connections` asks for, and as many client connections as fit.
    connections_wanted: u32,
    connections_max: u32,
    /// Kept for origins, for the control thread's work, and for the process itself.
    origins_reserve: u64,
    control_reserve: u64,
    process_reserve: u64,
    /// The least limit that has room for all clients wanted.
    needed: u64,
}

/// The node as it is now.
pub(crate) fn of(node: &Node) -> Status {
    let applied = node.applied();
    let applied = applied.as_deref();
    let snapshot = applied.map(|applied| applied.live.snapshot.as_ref());
    let names = node.names();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        ready: node.unready().is_none(),
        draining: node.is_draining(),
        generation: snapshot.map_or(0, |snapshot| snapshot.generation),
        generations: node.generations(),
        source: node.source(),
        node: snapshot.map(|snapshot| NodeStatus {
            id: snapshot.config.node.id.clone(),
            role: snapshot.config.node.role.name(),
            region: snapshot.config.node.region.clone(),
        }),
        workers: node.workers.count(),
        driver: node.mode.as_str(),
        connections: node.connections(),
        streams: node.streams(),
        listeners: applied.map(listeners).unwrap_or_default(),
        clusters: snapshot
            .map(|snapshot| snapshot.clusters.iter().map(|cluster| cluster_status(cluster, &names)).collect())
            .unwrap_or_default(),
        threads: threads(node),
        memory: memory(node),
        files: applied.map(|applied| files(node, applied)).unwrap_or_default(),
    }
}

fn listeners(applied: &Applied) -> Vec<ListenerStatus> {
    let status = |entry: &std::sync::Arc<ListenerEntry>| {
        let bound = applied.bound.iter().filter(|bound| bound.listener == entry.config.name);
        ListenerStatus {
            name: entry.config.name.clone(),
            protocol: entry.config.protocol.name(),
            addresses: bound.map(|bound| bound.actual.to_string()).collect(),
            connections: entry.stats.iter().map(|stats| stats.connections.value()).sum(),
        }
    };
    applied.live.snapshot.listeners.iter().map(status).collect()
}

fn cluster_status(cluster: &ClusterEntry, names: &[NamedEndpoint]) -> ClusterStatus {
    let named = names.iter().filter(|named| named.cluster == cluster.config.name);
    ClusterStatus {
        name: cluster.config.name.clone(),
        policy: cluster.config.policy.name(),
        protocol: cluster.config.protocol.name(),
        endpoints: cluster
            .endpoints
            .iter()
            .map(endpoint_status)
            .chain(named.filter_map(unresolved_status))
            .collect(),
    }
}

fn endpoint_status(endpoint: &EndpointEntry) -> EndpointStatus {
    let total = |figure: fn(&EndpointStats) -> u64| endpoint.stats.iter().map(|stats| figure(stats)).sum();
    EndpointStatus {
        name: endpoint.resolved.name.clone(),
        address: Some(endpoint.resolved.address.to_string()),
        healthy: endpoint.resolved.health.is_healthy(),
        weight: endpoint.resolved.weight,
        streams: total(|stats| stats.in_flight.value()),
        idle_connections: total(|stats| stats.pool_idle.value()),
        unresolved: None,
    }
}

fn unresolved_status(named: &NamedEndpoint) -> Option<EndpointStatus> {
    let Failure { error, since } = named.unresolved.clone()?;
    Some(EndpointStatus {
        name: named.endpoint.clone(),
        address: None,
        healthy: false,
        weight: named.weight,
        streams: 0,
        idle_connections: 0,
        unresolved: Some(UnresolvedStatus {
            error,
            since: humantime::format_rfc3339_seconds(since).to_string(),
        }),
    })
}

fn threads(node: &Node) -> Vec<ThreadStatus> {
    let restarts = node.workers.restarts();
    node.worker_stats
        .iter()
        .zip(restarts)
        .enumerate()
        .map(|(worker, (stats, restarts))| ThreadStatus {
            worker,
            connections: stats.connections.value(),
            streams: stats.requests_in_flight.value(),
            buffer_bytes: stats.buffer_bytes.value(),
            buffer_bytes_peak: stats.buffer_bytes_peak.value(),
            restarts,
            tick: stats.heartbeat_tick.value(),
        })
        .collect()
}

fn files(node: &Node, applied: &Applied) -> FileStatus {
    let config = &applied.live.snapshot.config;
    let Files { limit, process, control, origins, connections } = applied.files;
    let standing = Standing::of(config, node.workers.count());
    FileStatus {
        limit,
        open: Process::now().open_fds,
        connections_wanted: config.limits.connections,
        connections_max: connections,
        origins_reserve: origins,
        control_reserve: control,
        process_reserve: process,
        needed: Files::needed(&standing, config.limits.connections),
    }
}

fn memory(node: &Node) -> MemoryStatus {
    let all = WorkerStats::default();
    node.worker_stats.iter().for_each(|stats| all.merge(stats));
    // Workers are alike: what is true of the first is true of each.
    let one = |figure: fn(&WorkerStats) -> u64| node.worker_stats.first().map_or(0, |stats| figure(stats));
    let applied = node.applied();
    let limits = applied.as_ref().map(|applied| &applied.live.snapshot.config.limits);
    let worker_bytes_max = limits.map_or(0, |limits| limits.worker_memory_bytes);
    let connections_max = applied.as_ref().map_or(0, |applied| applied.files.connections);
    let worker_reserve_bytes_max = one(|stats| stats.reserve_bytes_max.value());
    let idle_connection_bytes = IDLE_CONNECTION_BYTES as u64;
    let of_workers = (worker_bytes_max + worker_reserve_bytes_max) * node.worker_stats.len() as u64;
    MemoryStatus {
        rss_bytes: Process::now().rss_bytes,
        buffers: all.buffers.value(),
        buffer_bytes: all.buffer_bytes.value(),
        buffer_bytes_peak: all.buffer_bytes_peak.value(),
        stream_bytes_max: one(|stats| stats.exchange_bytes_max.value()),
        worker_bytes_max,
        worker_reserve_bytes_max,
        connections_max,
        idle_connection_bytes,
        bytes_max: of_workers + u64::from(connections_max) * idle_connection_bytes,
    }
}
