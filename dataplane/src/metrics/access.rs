//! The access log: one record for each ended exchange, and for each request or connection that ended before it was one,
//! from the workers to the thread that writes them down.
//!
//! A worker only pushes into a bounded queue without locks; formatting and writing happen elsewhere
//! (`control::access_log`). When the writer falls behind, records are dropped and counted: the log never slows traffic.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_queue::ArrayQueue;
use dataplane_core::error::FaultKind;
use dataplane_core::request::Method;
use dataplane_core::snapshot::RouteEntry;
use serde::Serialize;

/// Records that may wait for the writer: a second of a busy node, and a few MiB.
const RECORDS_MAX: usize = 16_384;

/// What is written of one exchange, or of what did not become one. Made only while the access log is on.
#[derive(Debug)]
pub(crate) struct AccessRecord {
    /// When the request head was complete, in milliseconds since the Unix epoch. Of a head that was never complete: when
    /// it began.
    pub(crate) began_unix_ms: u64,
    /// The id that the origin and the client saw, each as far as it saw anything.
    pub(crate) request_id: Box<str>,
    /// The peer; none on a Unix socket.
    pub(crate) client: Option<SocketAddr>,
    /// The listener's name.
    pub(crate) listener: Box<str>,
    /// None if the head could not be read.
    pub(crate) method: Option<Method>,
    /// As the client sent it; none if it sent none, or none that could be read.
    pub(crate) host: Option<Box<str>>,
    /// Without the query, which may hold secrets. None if it could not be read.
    pub(crate) path: Option<Box<str>>,
    /// None if no route matched.
    pub(crate) route: Option<Arc<RouteEntry>>,
    /// The last endpoint that was tried, as written in the config.
    pub(crate) endpoint: Option<Box<str>>,
    /// What the client saw; none if no response was begun.
    pub(crate) status: Option<u16>,
    /// From the end of the request head to the first byte of the response body sent to the client: of a stream, its first
    /// token, which may come long after the response's head.
    pub(crate) ttft_ns: Option<u64>,
    /// The longest silence between two pieces of the response body.
    pub(crate) largest_gap_ns: u64,
    /// Pieces of the response body.
    pub(crate) chunks: u64,
    /// Request body bytes.
    pub(crate) bytes_in: u64,
    /// Response body bytes.
    pub(crate) bytes_out: u64,
    /// From the end of the request head, or from the beginning of one that was never complete, to the end of the exchange.
    pub(crate) duration_ns: u64,
    /// What ended it; none: it came to its own end.
    pub(crate) fault: Option<FaultKind>,
    /// What is known of the fault beyond its kind.
    pub(crate) detail: Option<&'static str>,
}

/// The queue between the workers and the writer.
#[derive(Debug)]
pub(crate) struct AccessLog {
    queue: ArrayQueue<AccessRecord>,
    dropped: AtomicU64,
}

impl AccessLog {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        Self::with_capacity(RECORDS_MAX)
    }

    fn with_capacity(records_max: usize) -> Self {
        AccessLog { queue: ArrayQueue::new(records_max), dropped: AtomicU64::new(0) }
    }

    /// Hands a record to the writer; counts it as dropped when the queue is full.
    pub(crate) fn push(&self, record: AccessRecord) {
        if self.queue.push(record).is_err() {
            self.count_dropped();
        }
    }

    /// The oldest record that waits.
    pub(crate) fn pop(&self) -> Option<AccessRecord> {
        self.queue.pop()
    }

    /// Counts a record that was lost.
    pub(crate) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Records lost so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl AccessRecord {
    /// Writes the record as one line of JSON. Times are in milliseconds, with the microseconds as decimals.
    ///
    /// # Errors
    /// What `out` says.
    pub(crate) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let began = UNIX_EPOCH + Duration::from_millis(self.began_unix_ms);
        let route = self.route.as_ref().map(|route| &route.config);
        let line = Line {
            time: humantime::format_rfc3339_millis(began).to_string(),
            request_id: &self.request_id,
            client: self.client,
            listener: &self.listener,
            method: self.method.map(Method::as_str),
            host: self.host.as_deref(),
            path: self.path.as_deref(),
            route: route.map(|route| route.name.as_str()),
            cluster: route.map(|route| route.cluster.as_str()),
            endpoint: self.endpoint.as_deref(),
            status: self.status.or_else(|| self.fault.map(FaultKind::log_status)),
            ttft_ms: self.ttft_ns.map(milliseconds),
            largest_gap_ms: milliseconds(self.largest_gap_ns),
            chunks: self.chunks,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration_ms: milliseconds(self.duration_ns),
            end: self.fault.map_or("complete", FaultKind::as_str),
            blame: self.fault.map(|fault| fault.blame().as_str()),
            detail: self.fault.map(|fault| fault.explain(self.detail)),
        };
        serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
        out.write_all(b"\n")
    }
}

/// One line of the log; these names are what people write queries for.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    request_id: &'a str,
    client: Option<SocketAddr>,
    listener: &'a str,
    method: Option<&'static str>,
    host: Option<&'a str>,
    path: Option<&'a str>,
    route: Option<&'a str>,
    cluster: Option<&'a str>,
    endpoint: Option<&'a str>,
    status: Option<u16>,
    ttft_ms: Option<f64>,
    largest_gap_ms: f64,
    chunks: u64,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    end: &'static str,
    blame: Option<&'static str>,
    detail: Option<Cow<'static, str>>,
}

/// Writes the line that stands for `records` of which there is none.
///
/// # Errors
/// What `out` says.
pub(crate) fn write_dropped(out: &mut impl Write, now: SystemTime, records: u64) -> io::Result<()> {
    let time = humantime::format_rfc3339_millis(now);
    writeln!(out, "{{\"time\":\"{time}\",\"dropped\":{records}}}")
}

fn milliseconds(ns: u64) -> f64 {
    (ns / 1_000) as f64 / 1_000.0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record of a stream that the client cut.
    pub(crate) fn cut_stream() -> AccessRecord {
        AccessRecord {
            began_unix_ms: 1_700_000_000_123,
            request_id: "abc\"d".into(),
            client: Some("192.0.2.7:4711".parse().unwrap()),
            listener: "http".into(),
            method: Some(Method::Post),
            host: Some("api.example.com".into()),
            path: Some("/v1/chat".into()),
            route: None,
            endpoint: Some("127.0.0.1:8000".into()),
            status: Some(200),
            ttft_ns: Some(12_345_678),
            largest_gap_ns: 50_000_000,
            chunks: 20,
            bytes_in: 400,
            bytes_out: 2_400,
            duration_ns: 1_000_000_000,
            fault: Some(FaultKind::ClientGone),
            detail: None,
        }
    }

    #[test]
    fn a_record_is_one_line_of_json_with_its_times_in_milliseconds() {
        let mut out = Vec::new();
        cut_stream().write_json(&mut out).unwrap();
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["time"], "2023-11-14T22:13:20.123Z");
        assert_eq!(line["request_id"], "abc\"d");
        assert_eq!(line["client"], "192.0.2.7:4711");
        assert_eq!((&line["method"], &line["status"]), (&"POST".into(), &200.into()));
        assert_eq!((&line["ttft_ms"], &line["largest_gap_ms"]), (&12.345.into(), &50.0.into()));
        assert_eq!((&line["end"], &line["blame"]), (&"client_gone".into(), &"client".into()));
        assert_eq!(line["detail"], "The client closed the connection.");
        assert!(line["route"].is_null());
    }

    #[test]
    fn what_is_known_of_a_fault_stands_behind_its_sentence() {
        let text = |record: AccessRecord| {
            let mut out = Vec::new();
            record.write_json(&mut out).unwrap();
            serde_json::from_slice::<serde_json::Value>(&out).unwrap()["detail"].clone()
        };
        let fault = Some(FaultKind::Overloaded);
        let full = text(AccessRecord { fault, detail: Some("limits.requests"), ..cut_stream() });
        assert_eq!(full, "The server is overloaded; try again shortly. (limits.requests)");
        assert!(
            text(AccessRecord { fault: None, detail: Some("of a try before"), ..cut_stream() }).is_null()
        );
    }

    #[test]
    fn dropped_records_leave_a_line_of_json() {
        let mut out = Vec::new();
        write_dropped(&mut out, UNIX_EPOCH + Duration::from_millis(1_700_000_000_123), 7).unwrap();
        assert_eq!(out, b"{\"time\":\"2023-11-14T22:13:20.123Z\",\"dropped\":7}\n");
    }

    #[test]
    fn an_exchange_that_got_no_response_is_logged_with_499() {
        let mut out = Vec::new();
        AccessRecord { status: None, ..cut_stream() }.write_json(&mut out).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["status"], 499);
    }

    #[test]
    fn a_full_queue_drops_the_new_record_and_counts_it() {
        let log = AccessLog::with_capacity(1);
        log.push(cut_stream());
        log.push(AccessRecord { chunks: 99, ..cut_stream() });
        assert_eq!(log.dropped(), 1);
        assert_eq!(log.pop().map(|record| record.chunks), Some(20));
        assert!(log.pop().is_none());
    }
}
