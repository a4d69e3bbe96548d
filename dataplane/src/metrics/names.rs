//! The metrics by name: one line each, with the field of `dataplane_core::stats` that it shows.
//!
//! Names end in their unit, and in `_total` where they only grow, as Prometheus asks for
//! (<https://prometheus.io/docs/practices/naming/>). Nothing is added up or written here.

use dataplane_core::stats::{ClusterStats, EndpointStats, Histogram, ListenerStats, RouteStats, WorkerStats};

use super::NodeFigures;
use super::process::Process;

/// What a metric is, to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A metric's name, kind and meaning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// A metric that is one number of a set.
pub(super) struct Number<T: 'static> {
    pub(super) metric: Metric,
    pub(super) value: fn(&T) -> u64,
}

/// A metric that is one histogram of a set.
pub(super) struct Times<T: 'static> {
    pub(super) metric: Metric,
    pub(super) histogram: fn(&T) -> &Histogram,
}

const fn metric(kind: Kind, name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind, help }
}

const fn counter<T>(name: &'static str, help: &'static str, value: fn(&T) -> u64) -> Number<T> {
    Number { metric: metric(Kind::Counter, name, help), value }
}

const fn gauge<T>(name: &'static str, help: &'static str, value: fn(&T) -> u64) -> Number<T> {
    Number { metric: metric(Kind::Gauge, name, help), value }
}

const fn times<T>(name: &'static str, help: &'static str, histogram: fn(&T) -> &Histogram) -> Times<T> {
    Times { metric: metric(Kind::Histogram, name, help), histogram }
}

// One line is one metric: rustfmt would break them into four each.
#[rustfmt::skip]
mod tables {
    use super::*;

    pub(in super::super) const BUILD_INFO: Metric = metric(Kind::Gauge, "millrace_build_info", "Always 1; the version is a label.");
    pub(in super::super) const PROCESS_CPU: Metric = metric(Kind::Counter, "process_cpu_seconds_total", "Processor time in user and kernel mode.");
    pub(in super::super) const PROCESS_START: Metric = metric(Kind::Gauge, "process_start_time_seconds", "When the process began, since the Unix epoch.");
    // From the start, for all kinds: dashboards and alerts of the node need a first fault to be growth, and the series of
    // routes and listeners appear with theirs. Counted by workers, so that no reload takes a part of the sum away.
    pub(in super::super) const NODE_REQUESTS: Metric = metric(Kind::Counter, "millrace_node_requests_total", "Ended requests of the node, by the class of their status.");
    pub(in super::super) const NODE_FAULTS: Metric = metric(Kind::Counter, "millrace_node_faults_total", "Requests of the node that ended badly, by who is to blame and what happened.");
    pub(in super::super) const LISTENER_REQUESTS: Metric = metric(Kind::Counter, "millrace_listener_requests_total", "Ended requests by listener, those without a route too.");
    pub(in super::super) const LISTENER_FAULTS: Metric = metric(Kind::Counter, "millrace_listener_faults_total", "Requests by listener that ended badly, those without a route too.");
    pub(in super::super) const REQUESTS: Metric = metric(Kind::Counter, "millrace_requests_total", "Ended requests by route.");
    pub(in super::super) const FAULTS: Metric = metric(Kind::Counter, "millrace_faults_total", "Requests that ended badly, by who is to blame and what happened.");
    pub(in super::super) const ENDPOINT_HEALTHY: Metric = metric(Kind::Gauge, "millrace_endpoint_healthy", "1 while requests may be sent to the endpoint.");
    pub(in super::super) const ENDPOINT_RESOLVED: Metric = metric(Kind::Gauge, "millrace_endpoint_resolved", "1 while there is an address for the endpoint; endpoints that are given by name.");

    pub(in super::super) const NODE: &[Number<NodeFigures>] = &[
        gauge("millrace_config_generation", "Generation of the config that is served.", |node| node.generation),
        gauge("millrace_config_generations_live", "Generations that still have exchanges, the served one included.", |node| node.generations_live),
        counter("millrace_config_applies_total", "Configs that were applied.", |node| node.applies),
        counter("millrace_config_refusals_total", "Configs that were refused.", |node| node.refusals),
        gauge("millrace_connections_max", "Most client connections at once: limits.connections, or what fits into the limit of open files.", |node| node.connections_max),
        gauge("millrace_ready", "1 while the node is ready for traffic.", |node| u64::from(node.ready)),
        gauge("millrace_draining", "1 while the node takes no new connections.", |node| u64::from(node.draining)),
        counter("millrace_worker_restarts_total", "Worker threads that had to be started again.", |node| node.worker_restarts),
        counter("millrace_worker_panics_total", "Panics that were caught on workers.", |node| node.worker_panics),
        counter("millrace_worker_lost_wakes_total", "Wakes of a worker's task on another thread, which woke nothing.", |node| node.worker_lost_wakes),
        counter("millrace_access_log_dropped_total", "Access log records that were not written.", |node| node.access_dropped),
        counter("millrace_log_dropped_total", "Lines of the process's log that were not written, since nobody read it.", |node| node.log_dropped),
        counter("millrace_name_failures_total", "Look-ups of endpoints' names that failed.", |node| node.name_failures),
    ];

    pub(in super::super) const PROCESS: &[Number<Process>] = &[
        gauge("process_resident_memory_bytes", "Memory in RAM.", |process| process.rss_bytes),
        gauge("process_virtual_memory_bytes", "Address space in use.", |process| process.virtual_bytes),
        gauge("process_open_fds", "Open file descriptors.", |process| process.open_fds),
        gauge("process_max_fds", "Most file descriptors that may be open.", |process| process.max_fds),
        gauge("process_threads", "Threads.", |process| process.threads),
    ];

    pub(in super::super) const WORKER: &[Number<WorkerStats>] = &[
        gauge("millrace_worker_connections", "Open client connections of the worker.", |worker| worker.connections.value()),
        counter("millrace_worker_accepted_total", "Connections the worker has accepted.", |worker| worker.accepted.value()),
        counter("millrace_worker_refused_total", "Connections closed at once because a limit was reached.", |worker| worker.refused.value()),
        counter("millrace_worker_handovers_out_total", "Connections given to another worker.", |worker| worker.handovers_out.value()),
        counter("millrace_worker_handovers_in_total", "Connections taken from another worker.", |worker| worker.handovers_in.value()),
        gauge("millrace_worker_requests_in_flight", "Requests in flight on the worker.", |worker| worker.requests_in_flight.value()),
        gauge("millrace_worker_buffers", "Buffers in use.", |worker| worker.buffers.value()),
        gauge("millrace_worker_buffer_bytes", "Bytes of the buffers in use.", |worker| worker.buffer_bytes.value()),
        gauge("millrace_worker_buffer_bytes_peak", "The most bytes of buffers that were in use at once.", |worker| worker.buffer_bytes_peak.value()),
        counter("millrace_worker_log_lines_left_out_total", "Lines about failed exchanges that were not logged because there were too many.", |worker| worker.log_lines_left_out.value()),
        counter("millrace_worker_loop_turns_total", "Turns of the worker's event loop.", |worker| worker.loop_turns.value()),
        gauge("millrace_worker_tick", "The worker's clock in its own ticks: a worker that turns advances it.", |worker| worker.heartbeat_tick.value()),
    ];

    // From the start: state, and what alerts have to see the first one of.
    pub(in super::super) const LISTENER_FROM_START: &[Number<ListenerStats>] = &[
        gauge("millrace_connections", "Open client connections.", |listener| listener.connections.value()),
        counter("millrace_connections_refused_total", "Client connections closed at once because a limit was reached.", |listener| listener.refused.value()),
        counter("millrace_accept_failures_total", "Times that no connection could be accepted: out of descriptors or memory.", |listener| listener.accept_failures.value()),
    ];

    pub(in super::super) const LISTENER: &[Number<ListenerStats>] = &[
        counter("millrace_connections_accepted_total", "Accepted client connections.", |listener| listener.accepted.value()),
        counter("millrace_connections_displaced_total", "Silent client connections that were ended to make room for others.", |listener| listener.displaced.value()),
        counter("millrace_listener_received_bytes_total", "Bytes from clients.", |listener| listener.bytes_in.value()),
        counter("millrace_listener_sent_bytes_total", "Bytes to clients.", |listener| listener.bytes_out.value()),
    ];

    pub(in super::super) const ROUTE: &[Number<RouteStats>] = &[
        gauge("millrace_requests_in_flight", "Requests in flight.", |route| route.in_flight.value()),
        counter("millrace_retries_total", "Tries after the first.", |route| route.retries.value()),
        counter("millrace_request_body_bytes_total", "Request body bytes from clients.", |route| route.bytes_in.value()),
        counter("millrace_response_body_bytes_total", "Response body bytes to clients.", |route| route.bytes_out.value()),
    ];

    pub(in super::super) const ROUTE_TIMES: &[Times<RouteStats>] = &[
        times("millrace_first_byte_seconds", "From the end of the request head to the first response byte sent to the client.", |route| &route.first_byte),
        times("millrace_chunk_gap_seconds", "Silences between two pieces of a response body.", |route| &route.chunk_gap),
        times("millrace_upstream_seconds", "From the request sent to the first response byte of the endpoint.", |route| &route.upstream_time),
        times("millrace_proxy_seconds", "What the proxy added to the time to first byte.", |route| &route.proxy_time),
    ];

    pub(in super::super) const CLUSTER: &[Number<ClusterStats>] = &[
        counter("millrace_cluster_no_endpoint_total", "Requests for which no endpoint was available.", |cluster| cluster.no_endpoint.value()),
    ];

    pub(in super::super) const ENDPOINT: &[Number<EndpointStats>] = &[
        gauge("millrace_endpoint_requests_in_flight", "Requests in flight at the endpoint.", |endpoint| endpoint.in_flight.value()),
        counter("millrace_endpoint_requests_total", "Requests sent to the endpoint, each try counted.", |endpoint| endpoint.exchanges.value()),
        counter("millrace_endpoint_failures_total", "Tries that ended in a fault of the endpoint.", |endpoint| endpoint.failures.value()),
        gauge("millrace_pool_idle_connections", "Idle connections in the pools.", |endpoint| endpoint.pool_idle.value()),
        counter("millrace_pool_hits_total", "Requests that found an idle connection of their own worker.", |endpoint| endpoint.pool_hits.value()),
        counter("millrace_pool_misses_total", "Requests for which a connection had to be dialled.", |endpoint| endpoint.pool_misses.value()),
        counter("millrace_pool_takes_total", "Requests that took an idle connection of another worker.", |endpoint| endpoint.pool_takes.value()),
        counter("millrace_pool_stale_total", "Idle connections that were closed because they were dead, too old, or not handed over in time.", |endpoint| endpoint.pool_stale.value()),
        counter("millrace_connects_total", "Connections established to the endpoint.", |endpoint| endpoint.connects.value()),
        counter("millrace_connect_failures_total", "Connections to the endpoint that could not be established.", |endpoint| endpoint.connect_failures.value()),
    ];
}

pub(super) use tables::*;
