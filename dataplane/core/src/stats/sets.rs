//! The sets of counters: of a listener, a route, a cluster, an endpoint and a worker.
//!
//! `merge` takes each set apart field by field, so that a field that is added but not merged does not compile.

use super::{Counter, Gauge, Histogram};
use crate::error::FaultKind;

/// How an exchange ended, by the status that the client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StatusClass {
    /// No response was begun.
    None,
    /// 101, the only final one of its class.
    Informational,
    /// 200 to 299.
    Success,
    /// 300 to 399.
    Redirection,
    /// 400 to 499.
    ClientError,
    /// 500 and above.
    ServerError,
}

impl StatusClass {
    /// All of them, in the order of their numbers (`class as usize`).
    pub const ALL: [StatusClass; 6] = [
        StatusClass::None,
        StatusClass::Informational,
        StatusClass::Success,
        StatusClass::Redirection,
        StatusClass::ClientError,
        StatusClass::ServerError,
    ];

    /// The class of a status; none where no response was begun.
    pub fn of(status: Option<u16>) -> Self {
        match status {
            None => StatusClass::None,
            Some(0..200) => StatusClass::Informational,
            Some(200..300) => StatusClass::Success,
            Some(300..400) => StatusClass::Redirection,
            Some(400..500) => StatusClass::ClientError,
            Some(500..) => StatusClass::ServerError,
        }
    }

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            StatusClass::None => "none",
            StatusClass::Informational => "1xx",
            StatusClass::Success => "2xx",
            StatusClass::Redirection => "3xx",
            StatusClass::ClientError => "4xx",
            StatusClass::ServerError => "5xx",
        }
    }
}

/// What one worker counts for a listener.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ListenerStats {
    /// Open client connections.
    pub connections: Gauge,
    /// Connections accepted so far.
    pub accepted: Counter,
    /// Connections closed at once because a limit was reached.
    pub refused: Counter,
    /// Failures of `accept` itself.
    pub accept_failures: Counter,
    /// Silent connections that were ended to make room for others.
    pub displaced: Counter,
    /// Ended exchanges by [`StatusClass`], those without a route too.
    pub requests: [Counter; StatusClass::ALL.len()],
    /// Faults by [`FaultKind`] that ended a request before it had a route, or a connection.
    pub faults: [Counter; FaultKind::ALL.len()],
    /// Bytes from clients.
    pub bytes_in: Counter,
    /// Bytes to clients.
    pub bytes_out: Counter,
}

impl ListenerStats {
    /// Whether a client has come yet.
    pub fn is_used(&self) -> bool {
        [&self.accepted, &self.refused, &self.bytes_in, &self.bytes_out].iter().any(|count| count.value() > 0)
    }

    /// Counts an ended exchange.
    pub fn count_request(&self, status: Option<u16>) {
        self.requests[StatusClass::of(status) as usize].increment();
    }

    /// Counts a fault.
    pub fn count_fault(&self, kind: FaultKind) {
        self.faults[kind as usize].increment();
    }

    /// Adds what another worker has counted.
    pub fn merge(&self, other: &Self) {
        let Self {
            connections,
            accepted,
            refused,
            accept_failures,
            displaced,
            requests,
            faults,
            bytes_in,
            bytes_out,
        } = other;
        self.connections.merge(connections);
        self.accepted.merge(accepted);
        self.refused.merge(refused);
        self.accept_failures.merge(accept_failures);
        self.displaced.merge(displaced);
        merge_each(&self.requests, requests);
        merge_each(&self.faults, faults);
        self.bytes_in.merge(bytes_in);
        self.bytes_out.merge(bytes_out);
    }
}

/// What one worker counts for a route.
#[derive(Debug)]
#[repr(align(64))]
pub struct RouteStats {
    /// Exchanges in flight.
    pub in_flight: Gauge,
    /// Ended exchanges by [`StatusClass`].
    pub requests: [Counter; StatusClass::ALL.len()],
    /// Faults by [`FaultKind`].
    pub faults: [Counter; FaultKind::ALL.len()],
    /// Tries after the first.
    pub retries: Counter,
    /// Request body bytes from clients.
    pub bytes_in: Counter,
    /// Response body bytes to clients.
    pub bytes_out: Counter,
    /// From the end of the request head to the first byte of the response sent to the client.
    pub first_byte: Histogram,
    /// Silences between two pieces of a response body.
    pub chunk_gap: Histogram,
    /// From the request sent to the first byte of the response received.
    pub upstream_time: Histogram,
    /// What the proxy added: `first_byte` less `upstream_time`.
    pub proxy_time: Histogram,
}

impl Default for RouteStats {
    fn default() -> Self {
        RouteStats {
            in_flight: Gauge::default(),
            requests: Default::default(),
            faults: Default::default(),
            retries: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            first_byte: Histogram::wide(),
            chunk_gap: Histogram::wide(),
            upstream_time: Histogram::wide(),
            proxy_time: Histogram::fine(),
        }
    }
}

impl RouteStats {
    /// Whether a request has come this way yet: a route that none has taken has nothing to show.
    pub fn is_used(&self) -> bool {
        self.in_flight.value() > 0 || self.requests.iter().chain(&self.faults).any(|count| count.value() > 0)
    }

    /// Counts an ended exchange.
    pub fn count_request(&self, status: Option<u16>) {
        self.requests[StatusClass::of(status) as usize].increment();
    }

    /// Counts a fault.
    pub fn count_fault(&self, kind: FaultKind) {
        self.faults[kind as usize].increment();
    }

    /// Adds what another worker has counted.
    pub fn merge(&self, other: &Self) {
        let Self {
            in_flight,
            requests,
            faults,
            retries,
            bytes_in,
            bytes_out,
            first_byte,
            chunk_gap,
            upstream_time,
            proxy_time,
        } = other;
        self.in_flight.merge(in_flight);
        merge_each(&self.requests, requests);
        merge_each(&self.faults, faults);
        self.retries.merge(retries);
        self.bytes_in.merge(bytes_in);
        self.bytes_out.merge(bytes_out);
        self.first_byte.merge(first_byte);
        self.chunk_gap.merge(chunk_gap);
        self.upstream_time.merge(upstream_time);
        self.proxy_time.merge(proxy_time);
    }
}

/// What one worker counts for a cluster as a whole.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ClusterStats {
    /// Exchanges for which no endpoint was available.
    pub no_endpoint: Counter,
}

impl ClusterStats {
    /// Whether anything was counted yet.
    pub fn is_used(&self) -> bool {
        self.no_endpoint.value() > 0
    }

    /// Adds what another worker has counted.
    pub fn merge(&self, other: &Self) {
        let Self { no_endpoint } = other;
        self.no_endpoint.merge(no_endpoint);
    }
}

/// What one worker counts for an endpoint.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct EndpointStats {
    /// Exchanges in flight.
    pub in_flight: Gauge,
    /// Exchanges sent so far, tries counted one by one.
    pub exchanges: Counter,
    /// Tries that ended in a fault of the endpoint.
    pub failures: Counter,
    /// Idle connections in this worker's pool.
    pub pool_idle: Gauge,
    /// Exchanges that found an idle connection in this worker's pool.
    pub pool_hits: Counter,
    /// Exchanges for which a connection had to be dialled.
    pub pool_misses: Counter,
    /// Exchanges that took an idle connection of another worker.
    pub pool_takes: Counter,
    /// Idle connections that were found closed when they were wanted.
    pub pool_stale: Counter,
    /// Connections established.
    pub connects: Counter,
    /// Connections that could not be established.
    pub connect_failures: Counter,
}

impl EndpointStats {
    /// Whether a request was sent there yet; idle connections are left by requests alone.
    pub fn is_used(&self) -> bool {
        self.exchanges.value() > 0
    }

    /// Adds what another worker has counted.
    pub fn merge(&self, other: &Self) {
        let Self {
            in_flight,
            exchanges,
            failures,
            pool_idle,
            pool_hits,
            pool_misses,
            pool_takes,
            pool_stale,
            connects,
            connect_failures,
        } = other;
        self.in_flight.merge(in_flight);
        self.exchanges.merge(exchanges);
        self.failures.merge(failures);
        self.pool_idle.merge(pool_idle);
        self.pool_hits.merge(pool_hits);
        self.pool_misses.merge(pool_misses);
        self.pool_takes.merge(pool_takes);
        self.pool_stale.merge(pool_stale);
        self.connects.merge(connects);
        self.connect_failures.merge(connect_failures);
    }
}

/// What one worker counts of itself.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct WorkerStats {
    /// Open client connections.
    pub connections: Gauge,
    /// Connections accepted so far.
    pub accepted: Counter,
    /// Connections closed at once because a limit was reached.
    pub refused: Counter,
    /// Connections given to another worker.
    pub handovers_out: Counter,
    /// Connections taken from another worker.
    pub handovers_in: Counter,
    /// Exchanges in flight.
    pub requests_in_flight: Gauge,
    /// Ended exchanges by [`StatusClass`], of all listeners there have been.
    pub requests: [Counter; StatusClass::ALL.len()],
    /// Faults by [`FaultKind`], likewise.
    pub faults: [Counter; FaultKind::ALL.len()],
    /// Lines of the process's log that were left out because there were too many of them.
    pub log_lines_left_out: Counter,
    /// Buffers in use.
    pub buffers: Gauge,
    /// Bytes of the buffers in use.
    pub buffer_bytes: Gauge,
    /// The most bytes of buffers that were in use at once.
    pub buffer_bytes_peak: Gauge,
    /// The most bytes of buffers that one exchange can hold.
    pub exchange_bytes_max: Gauge,
    /// The most bytes of buffers that no exchange uses: free ones, and those that the kernel fills next.
    pub reserve_bytes_max: Gauge,
    /// Turns of the event loop.
    pub loop_turns: Counter,
    /// The tick of the last turn: how the watchdog knows that the worker turns. When merged, the sum of all.
    pub heartbeat_tick: Gauge,
}

impl WorkerStats {
    /// Counts an ended exchange.
    pub fn count_request(&self, status: Option<u16>) {
        self.requests[StatusClass::of(status) as usize].increment();
    }

    /// Counts a fault.
    pub fn count_fault(&self, kind: FaultKind) {
        self.faults[kind as usize].increment();
    }

    /// Adds what another worker has counted.
    pub fn merge(&self, other: &Self) {
        let Self {
            connections,
            accepted,
            refused,
            handovers_out,
            handovers_in,
            requests_in_flight,
            requests,
            faults,
            log_lines_left_out,
            buffers,
            buffer_bytes,
            buffer_bytes_peak,
            exchange_bytes_max,
            reserve_bytes_max,
            loop_turns,
            heartbeat_tick,
        } = other;
        self.connections.merge(connections);
        self.accepted.merge(accepted);
        self.refused.merge(refused);
        self.handovers_out.merge(handovers_out);
        self.handovers_in.merge(handovers_in);
        self.requests_in_flight.merge(requests_in_flight);
        merge_each(&self.requests, requests);
        merge_each(&self.faults, faults);
        self.log_lines_left_out.merge(log_lines_left_out);
        self.buffers.merge(buffers);
        self.buffer_bytes.merge(buffer_bytes);
        self.buffer_bytes_peak.merge(buffer_bytes_peak);
        self.exchange_bytes_max.merge(exchange_bytes_max);
        self.reserve_bytes_max.merge(reserve_bytes_max);
        self.loop_turns.merge(loop_turns);
        self.heartbeat_tick.merge(heartbeat_tick);
    }
}

fn merge_each(into: &[Counter], from: &[Counter]) {
    for (into, from) in into.iter().zip(from) {
        into.merge(from);
    }
}
