//! What the origin saw. Each worker writes to a ledger of its own, and a snapshot adds them up; the one
//! lock per ledger is taken by its worker and, rarely, by who asks. Latencies are not measured here: the
//! origin cannot see them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::clock::monotonic_ns;
use super::route::Route;

/// Aborts that are kept with their details, per worker. All are counted.
const ABORTS_KEPT_MAX: usize = 10_000;

/// Longest request id that is kept as it is.
const REQUEST_ID_LEN_MAX: usize = 256;

/// Everything that the origin counts, since its start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Since the start.
    pub uptime_ms: u64,
    /// `CLOCK_MONOTONIC` when the snapshot was taken, to compare with `aborts.recorded[].at_ns`.
    pub now_ns: u64,
    /// Connections, that of a client who asks for these statistics included.
    pub connections: ConnectionCounts,
    /// Requests, without those to `/_origin/…`.
    pub requests: RequestCounts,
    /// Stream events written.
    pub events: u64,
    /// Bytes read from sockets, heads included.
    pub bytes_in: u64,
    /// Bytes written to sockets, heads included.
    pub bytes_out: u64,
    /// Clients that went away before their response was complete.
    pub aborts: Aborts,
    /// What `X-Request-ID` said.
    pub request_ids: RequestIds,
}

/// Connections by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ConnectionCounts {
    /// Accepted and served.
    pub accepted: u64,
    /// Open now; not reset.
    pub open: u64,
    /// Closed at once by a fault.
    pub closed_at_accept: u64,
}

/// Requests by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RequestCounts {
    /// Heads that were read whole.
    pub total: u64,
    /// Being answered now; not reset.
    pub in_flight: u64,
    /// Answered to the last byte.
    pub completed: u64,
    /// Cut off by a fault that was asked for.
    pub faulted: u64,
    /// Refused as malformed, head or body.
    pub malformed: u64,
    /// Connections that ended within a head.
    pub truncated: u64,
    /// By endpoint, those that were asked at least once.
    pub by_path: BTreeMap<&'static str, u64>,
    /// By class of the status that was sent: `2xx` …
    pub by_status: BTreeMap<&'static str, u64>,
}

/// Clients that went away.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Aborts {
    /// All of them.
    pub total: u64,
    /// The first of them, with details; at most 10,000 per worker.
    pub recorded: Vec<Abort>,
}

/// One client that went away.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Abort {
    /// The endpoint.
    pub path: &'static str,
    /// `X-Request-ID`, if there was one.
    pub request_id: Option<String>,
    /// How far the exchange had come.
    pub phase: Phase,
    /// From the head's arrival until the origin noticed.
    pub after_ms: f64,
    /// `CLOCK_MONOTONIC` when the origin noticed.
    pub at_ns: u64,
    /// Bytes of the response body that had been sent.
    pub bytes_sent: u64,
}

/// How far an exchange had come when its client went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// While the request body was being read.
    RequestBody,
    /// Before the first byte of the response.
    BeforeHead,
    /// After the head.
    Body,
}

/// The account of `X-Request-ID`, which proves that a request was never doubled.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RequestIds {
    /// Different ids seen.
    pub distinct: u64,
    /// Requests whose id found no room (`OriginOptions::request_ids_max`).
    pub uncounted: u64,
    /// Ids seen more than once, with their count.
    pub doubled: BTreeMap<String, u64>,
}

/// One open connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConnectionStats {
    /// Counts up from 1, per worker.
    pub id: u64,
    /// Which worker serves it.
    pub worker: usize,
    /// Its other end, `unix` for a socket file.
    pub peer: String,
    /// Age.
    pub age_ms: u64,
    /// Requests so far, the one in flight included.
    pub requests: u64,
    /// Endpoint of the request in flight, if there is one.
    pub serving: Option<&'static str>,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
}

/// What an open connection writes down about itself.
#[derive(Debug)]
pub(crate) struct ConnectionRecord {
    id: u64,
    peer: String,
    opened: Instant,
    pub(crate) requests: AtomicU64,
    /// Index of the route being served, `usize::MAX` between requests.
    serving: AtomicUsize,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// The account of one worker.
#[derive(Debug)]
pub(crate) struct Ledger {
    request_ids_max: usize,
    accepted: AtomicU64,
    closed_at_accept: AtomicU64,
    total: AtomicU64,
    in_flight: AtomicU64,
    completed: AtomicU64,
    faulted: AtomicU64,
    malformed: AtomicU64,
    truncated: AtomicU64,
    events: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    aborts: AtomicU64,
    by_route: [AtomicU64; Route::ALL.len()],
    by_status: [AtomicU64; STATUS_CLASSES.len()],
    kept: Mutex<Kept>,
}

const STATUS_CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

#[derive(Debug, Default)]
struct Kept {
    aborts: Vec<Abort>,
    request_ids: HashMap<Box<str>, u64>,
    uncounted: u64,
    connections: HashMap<u64, Arc<ConnectionRecord>>,
    connections_seen: u64,
}

impl Ledger {
    pub(crate) fn new(request_ids_max: usize) -> Self {
        Self {
            request_ids_max,
            accepted: AtomicU64::default(),
            closed_at_accept: AtomicU64::default(),
            total: AtomicU64::default(),
            in_flight: AtomicU64::default(),
            completed: AtomicU64::default(),
            faulted: AtomicU64::default(),
            malformed: AtomicU64::default(),
            truncated: AtomicU64::default(),
            events: AtomicU64::default(),
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            aborts: AtomicU64::default(),
            by_route: Default::default(),
            by_status: Default::default(),
            kept: Mutex::default(),
        }
    }

    pub(crate) fn connection_opened(&self, peer: String) -> Arc<ConnectionRecord> {
        self.accepted.fetch_add(1, Relaxed);
        let mut kept = self.kept();
        kept.connections_seen += 1;
        let id = kept.connections_seen;
        let record = Arc::new(ConnectionRecord {
            id,
            peer,
            opened: Instant::now(),
            requests: AtomicU64::default(),
            serving: AtomicUsize::new(usize::MAX),
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
        });
        kept.connections.insert(id, Arc::clone(&record));
        record
    }

    pub(crate) fn connection_closed(&self, record: &ConnectionRecord) {
        self.kept().connections.remove(&record.id);
    }

    pub(crate) fn connection_closed_at_accept(&self) {
        self.closed_at_accept.fetch_add(1, Relaxed);
    }

    pub(crate) fn bytes_read(&self, record: &ConnectionRecord, count: usize) {
        self.bytes_in.fetch_add(count as u64, Relaxed);
        record.bytes_in.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn bytes_written(&self, record: &ConnectionRecord, count: usize) {
        self.bytes_out.fetch_add(count as u64, Relaxed);
        record.bytes_out.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn request_started(&self, record: &ConnectionRecord, route: Route, request_id: Option<&str>) {
        record.requests.fetch_add(1, Relaxed);
        record.serving.store(route as usize, Relaxed);
        if route.is_control() {
            return;
        }
        self.total.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        self.by_route[route as usize].fetch_add(1, Relaxed);
        if let Some(id) = request_id.filter(|_| self.request_ids_max > 0) {
            self.kept().count_id(id, self.request_ids_max);
        }
    }

    pub(crate) fn status_sent(&self, route: Route, status: u16) {
        let class = usize::from(status / 100).wrapping_sub(2);
        if let Some(counter) = self.by_status.get(class).filter(|_| !route.is_control()) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn request_ended(&self, record: &ConnectionRecord, route: Route, outcome: Outcome) {
        record.serving.store(usize::MAX, Relaxed);
        if route.is_control() {
            return;
        }
        match outcome {
            Outcome::Completed => self.completed.fetch_add(1, Relaxed),
            Outcome::Faulted => self.faulted.fetch_add(1, Relaxed),
            Outcome::Malformed => self.malformed.fetch_add(1, Relaxed),
            Outcome::Aborted(abort) => {
                let mut kept = self.kept();
                if kept.aborts.len() < ABORTS_KEPT_MAX {
                    kept.aborts.push(abort);
                }
                self.aborts.fetch_add(1, Relaxed)
            }
        };
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(crate) fn head_malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    pub(crate) fn head_truncated(&self) {
        self.truncated.fetch_add(1, Relaxed);
    }

    pub(crate) fn events_sent(&self, count: u64) {
        self.events.fetch_add(count, Relaxed);
    }

    /// Zeroes what counts up; what is open or in flight stays.
    pub(crate) fn reset(&self) {
        let counters = [
            &self.accepted,
            &self.closed_at_accept,
            &self.total,
            &self.completed,
            &self.faulted,
            &self.malformed,
            &self.truncated,
            &self.events,
            &self.bytes_in,
            &self.bytes_out,
            &self.aborts,
        ];
        for counter in counters.into_iter().chain(&self.by_route).chain(&self.by_status) {
            counter.store(0, Relaxed);
        }
        let mut kept = self.kept();
        kept.aborts = Vec::new();
        kept.request_ids = HashMap::new();
        kept.uncounted = 0;
    }

    fn add_to(&self, stats: &mut Stats) {
        stats.connections.accepted += self.accepted.load(Relaxed);
        stats.connections.closed_at_accept += self.closed_at_accept.load(Relaxed);
        stats.requests.total += self.total.load(Relaxed);
        stats.requests.in_flight += self.in_flight.load(Relaxed);
        stats.requests.completed += self.completed.load(Relaxed);
        stats.requests.faulted += self.faulted.load(Relaxed);
        stats.requests.malformed += self.malformed.load(Relaxed);
        stats.requests.truncated += self.truncated.load(Relaxed);
        stats.events += self.events.load(Relaxed);
        stats.bytes_in += self.bytes_in.load(Relaxed);
        stats.bytes_out += self.bytes_out.load(Relaxed);
        stats.aborts.total += self.aborts.load(Relaxed);
        for (route, count) in Route::ALL.iter().zip(&self.by_route) {
            add_count(&mut stats.requests.by_path, route.pattern(), count);
        }
        for (class, count) in STATUS_CLASSES.iter().zip(&self.by_status) {
            add_count(&mut stats.requests.by_status, class, count);
        }
        let kept = self.kept();
        stats.connections.open += kept.connections.len() as u64;
        stats.aborts.recorded.extend_from_slice(&kept.aborts);
        stats.request_ids.uncounted += kept.uncounted;
    }

    /// A panic of another thread while it held the lock leaves counters that are still good to read.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an exchange ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Completed,
    Faulted,
    Malformed,
    Aborted(Abort),
}

impl Kept {
    fn count_id(&mut self, id: &str, max: usize) {
        let id: String = id.chars().take(REQUEST_ID_LEN_MAX).collect();
        if let Some(count) = self.request_ids.get_mut(id.as_str()) {
            *count += 1;
        } else if self.request_ids.len() < max {
            self.request_ids.insert(id.into_boxed_str(), 1);
        } else {
            self.uncounted += 1;
        }
    }
}

/// Adds up the ledgers of all workers.
pub(crate) fn snapshot(ledgers: &[Arc<Ledger>], uptime: Duration) -> Stats {
    let mut stats = Stats { uptime_ms: millis(uptime), now_ns: monotonic_ns(), ..Stats::default() };
    let mut ids: HashMap<Box<str>, u64> = HashMap::new();
    for ledger in ledgers {
        ledger.add_to(&mut stats);
        for (id, count) in &ledger.kept().request_ids {
            *ids.entry(id.clone()).or_default() += count;
        }
    }
    stats.request_ids.distinct = ids.len() as u64;
    stats.request_ids.doubled = ids
        .into_iter()
        .filter(|(_, count)| *count > 1)
        .map(|(id, count)| (id.into_string(), count))
        .collect();
    stats
}

/// How often one request id was seen.
pub(crate) fn request_count(ledgers: &[Arc<Ledger>], id: &str) -> u64 {
    ledgers.iter().filter_map(|ledger| ledger.kept().request_ids.get(id).copied()).sum()
}

/// The open connections, the oldest first, at most `limit`.
pub(crate) fn connections(ledgers: &[Arc<Ledger>], limit: usize) -> Vec<ConnectionStats> {
    let mut all: Vec<_> = ledgers
        .iter()
        .enumerate()
        .flat_map(|(worker, ledger)| {
            let records: Vec<_> = ledger.kept().connections.values().cloned().collect();
            records.into_iter().map(move |record| describe(worker, &record))
        })
        .collect();
    all.sort_by_key(|connection| (std::cmp::Reverse(connection.age_ms), connection.worker, connection.id));
    all.truncate(limit);
    all
}

fn describe(worker: usize, record: &ConnectionRecord) -> ConnectionStats {
    ConnectionStats {
        id: record.id,
        worker,
        peer: record.peer.clone(),
        age_ms: millis(record.opened.elapsed()),
        requests: record.requests.load(Relaxed),
        serving: Route::ALL.get(record.serving.load(Relaxed)).map(|route| route.pattern()),
        bytes_in: record.bytes_in.load(Relaxed),
        bytes_out: record.bytes_out.load(Relaxed),
    }
}

fn add_count(map: &mut BTreeMap<&'static str, u64>, name: &'static str, count: &AtomicU64) {
    match count.load(Relaxed) {
        0 => {}
        count => *map.entry(name).or_default() += count,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(ledgers: &[Arc<Ledger>]) -> Stats {
        snapshot(ledgers, Duration::ZERO)
    }

    #[test]
    fn a_request_id_on_two_workers_is_doubled() {
        let ledgers = [Arc::new(Ledger::new(10)), Arc::new(Ledger::new(10))];
        for ledger in &ledgers {
            let record = ledger.connection_opened(String::new());
            ledger.request_started(&record, Route::Hello, Some("same"));
        }
        assert_eq!(seen(&ledgers).request_ids.doubled.get("same"), Some(&2));
        assert_eq!(request_count(&ledgers, "same"), 2);
    }

    #[test]
    fn request_ids_are_bounded_and_the_rest_is_counted() {
        let ledgers = [Arc::new(Ledger::new(2))];
        let record = ledgers[0].connection_opened(String::new());
        for id in ["a", "b", "c", "a"] {
            ledgers[0].request_started(&record, Route::Hello, Some(id));
        }
        let ids = seen(&ledgers).request_ids;
        assert_eq!((ids.distinct, ids.uncounted, ids.doubled.len()), (2, 1, 1));
    }

    #[test]
    fn control_requests_are_not_counted() {
        let ledgers = [Arc::new(Ledger::new(2))];
        let record = ledgers[0].connection_opened(String::new());
        ledgers[0].request_started(&record, Route::Stats, Some("a"));
        let stats = seen(&ledgers);
        assert_eq!((stats.requests.total, stats.request_ids.distinct), (0, 0));
    }

    #[test]
    fn a_reset_keeps_what_is_open_and_in_flight() {
        let ledgers = [Arc::new(Ledger::new(2))];
        let record = ledgers[0].connection_opened(String::new());
        ledgers[0].request_started(&record, Route::Sse, Some("a"));
        ledgers[0].reset();
        let stats = seen(&ledgers);
        assert_eq!((stats.connections.open, stats.requests.in_flight), (1, 1));
        assert_eq!((stats.connections.accepted, stats.requests.total, stats.request_ids.distinct), (0, 0, 0));
        ledgers[0].request_ended(&record, Route::Sse, Outcome::Completed);
        assert_eq!(seen(&ledgers).requests.in_flight, 0);
    }
}
