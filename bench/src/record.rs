//! What a load run and an idle run write as JSON, for `compare` and for people's own scripts to read back: plain data
//! with names and units, nothing that measures. All times are microseconds unless the name ends otherwise.
//!
//! `millrace-bench load <scenario> --json FILE|-` writes one [`LoadRecord`], also when the run failed or is invalid
//! (exit code 1 then). Without a record nothing was run (exit code 2: unusable arguments).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Raised when a field changes its meaning or goes away; new fields do not raise it.
pub const FORMAT: u32 = 1;

/// The outcome of one `millrace-bench load`.
///
/// A run may be used only if [`is_good`](Self::is_good): every response was right and the generator kept up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadRecord {
    /// [`FORMAT`] of the program that wrote it.
    pub format: u32,
    /// What was asked for.
    pub asked: Asked,
    /// From the first intended send to the last completion, without the warm-up.
    pub duration_s: f64,
    /// Requests (streams, messages) that were sent per second of the time in which they were to be sent.
    pub rate_sent: f64,
    /// Goodput: requests that were answered as they should, per second of `duration_s`.
    pub rate_completed: f64,
    /// How many, by what became of them.
    pub requests: Requests,
    /// The failed ones by reason.
    pub failures: BTreeMap<Failure, u64>,
    /// The first few failures in words.
    pub failure_examples: Vec<String>,
    /// Responses by status; empty for `tcp`.
    pub statuses: BTreeMap<u16, u64>,
    /// What went over the sockets.
    pub bytes: Bytes,
    /// Connections.
    pub opened: Opened,
    /// Completed requests, from the intended send time. In a closed loop the intended time is the real one, and the
    /// figure hides what a stalled server did to the requests that were never sent.
    pub latency_us: Option<Percentiles>,
    /// Completed requests, from the time at which the request was really written.
    pub service_us: Option<Percentiles>,
    /// Requests that were turned away (`requests.rejected`), from the intended send time.
    pub rejected_us: Option<Percentiles>,
    /// Only for the scenario `sse`.
    pub sse: Option<SseRecord>,
    /// The load generator itself.
    pub generator: Generator,
    /// CPU of the processes of `--watch-pid` during the measured time.
    pub watched: Vec<Watched>,
    /// Whether the generator kept up. If not, the figures tell more of it than of what it measured.
    pub valid: bool,
    /// Why it is not valid.
    pub invalid_because: Vec<String>,
    /// Whether anything was answered wrongly or not at all: a run with one wrong byte is a failed run.
    pub failed: bool,
}

impl LoadRecord {
    /// Whether the figures may be used.
    pub fn is_good(&self) -> bool {
        self.valid && !self.failed
    }

    /// CPU microseconds of all watched processes per completed request.
    pub fn watched_us_per_request(&self) -> Option<f64> {
        self.watched_us_per(self.requests.completed)
    }

    /// CPU microseconds of all watched processes per event.
    pub fn watched_us_per_event(&self) -> Option<f64> {
        self.watched_us_per(self.sse.as_ref()?.events)
    }

    fn watched_us_per(&self, count: u64) -> Option<f64> {
        let seconds: f64 = self.watched.iter().map(|process| process.cpu_s).sum();
        (count > 0 && !self.watched.is_empty()).then(|| seconds * 1e6 / count as f64)
    }
}

/// What the run was to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// `get`, `post`, `sse`, `body`, `churn`, `tcp`.
    pub scenario: String,
    /// URL, or `tcp://` address.
    pub target: String,
    /// Whether arrivals wait for answers.
    pub mode: Mode,
    /// How arrivals are spread in an open loop.
    pub arrivals: Arrivals,
    /// Of Poisson arrivals.
    pub seed: u64,
    /// Arrivals a second over all processes; `None` in a closed loop.
    pub rate: Option<f64>,
    /// Connections over all processes.
    pub connections: u32,
    /// Processes.
    pub processes: u32,
    /// Time in which requests are sent, without the warm-up.
    pub duration_s: f64,
    /// Time before it, of which nothing is counted.
    pub warmup_s: f64,
}

/// Whether arrivals wait for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Arrival times are fixed before the run; a slow server does not slow them down.
    Open,
    /// Each connection sends its next request when it has the answer to the last one.
    Closed,
}

/// How the arrivals of an open loop are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// At equal distances.
    #[default]
    Constant,
    /// At exponentially distributed distances, as those of many independent users.
    Poisson,
}

/// How many requests, by what became of them: `sent = completed + rejected + failed - unsent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Whose time came within the run.
    pub intended: u64,
    /// Begun on a connection, or on an attempt to open one.
    pub sent: u64,
    /// Answered as they should be.
    pub completed: u64,
    /// Turned away by 503 or 429 under `--overload`.
    pub rejected: u64,
    /// Of the rejected: without a `Retry-After`.
    pub rejected_without_retry_after: u64,
    /// Failed for any reason of [`Failure`], the unsent ones included.
    pub failed: u64,
    /// Never written, because no connection became free in time. They count with the time that they had waited in
    /// `latency_us`, and under `--overload` they are not counted as failed.
    pub unsent: u64,
    /// Failures before the measured time. They are in `failures` and fail the run, and are in no other count.
    pub failed_in_warmup: u64,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection: refused, unreachable, no port left.
    Connect,
    /// The connection was reset.
    Reset,
    /// The connection was closed before the response was complete.
    Closed,
    /// Not complete after `--timeout`.
    Timeout,
    /// Another status than the one expected.
    Status,
    /// No HTTP response.
    Malformed,
    /// Wrong bytes, or wrong number of them.
    Content,
    /// An event out of order, lost or doubled.
    Order,
    /// Never sent: no connection became free in time.
    Unsent,
}

/// What went over the sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Written, heads included.
    pub sent: u64,
    /// Read, heads included.
    pub received: u64,
    /// Bodies, events or messages that were read and checked.
    pub checked: u64,
}

/// What became of connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// Opened in all, before the run too.
    pub connections: u64,
    /// Of these: in place of one that had ended.
    pub again: u64,
    /// Ended by the server between two requests.
    pub closed_while_idle: u64,
    /// From `connect` to established, during the run.
    pub connect_us: Option<Percentiles>,
}

/// What only streams have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SseRecord {
    /// Events that arrived, in order and with the right content.
    pub events: u64,
    /// Events that came in one read with the one before them.
    pub same_read: u64,
    /// Of these: written by the origin further apart than the generator's own lateness explains. Somebody held them.
    pub merged: u64,
    /// From the intended start of the stream to its first event.
    pub ttft_us: Option<Percentiles>,
    /// Between the arrivals of two events of a stream.
    pub gap_us: Option<Percentiles>,
    /// From the origin's write (`ns` in the event) to arrival: what the way through the proxy takes.
    pub delay_us: Option<Percentiles>,
    /// Arrival after the time at which the event was due, counted from the stream's first write at the origin.
    pub lateness_us: Option<Percentiles>,
    /// The part of it that the origin itself was late by.
    pub origin_lateness_us: Option<Percentiles>,
}

/// What the load generator cost and how well it kept its own times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// CPU seconds of all processes, from the scheduler's account (`schedstat`).
    pub cpu_s: f64,
    /// Seconds in which they were ready to run and had no CPU.
    pub wait_s: f64,
    /// Share of time in which the busiest process ran or was ready to run.
    pub busy_max: f64,
    /// From the intended time of a request to the time at which the generator turned to it. Waiting for a free
    /// connection is not in it: that is the server's doing.
    pub lag_us: Option<Percentiles>,
    /// Whether the generator was the bottleneck.
    pub saturated: bool,
}

/// CPU of another process during the measured time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// Process.
    pub pid: u32,
    /// Its name in the kernel.
    pub name: String,
    /// Sum over its threads, from `schedstat`.
    pub cpu_s: f64,
    /// Resident memory at the end.
    pub rss_bytes: u64,
}

/// The outcome of one `millrace-bench idle`: what open connections cost a proxy that has nothing to do for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleRecord {
    /// [`FORMAT`] of the program that wrote it.
    pub format: u32,
    /// URL.
    pub target: String,
    /// Connections that are idle after one request.
    pub idle_connections: u32,
    /// Connections that stream, besides.
    pub streams: u32,
    /// Pace of each stream.
    pub events_per_second: f64,
    /// Processes that hold the connections.
    pub holders: u32,
    /// Length of each of the two measurements, without and with streams.
    pub hold_s: f64,
    /// The processes under test.
    pub proxies: Vec<IdleProxy>,
    /// Growth of their PSS, without program files, per idle connection.
    pub user_bytes_per_idle_connection: f64,
    /// Further growth of their PSS per stream.
    pub user_bytes_per_stream: Option<f64>,
    /// Shrinkage of `MemAvailable` per idle connection that no process of ours explains: the kernel's sockets at both
    /// ends, since both are on this machine.
    pub kernel_bytes_per_idle_connection: f64,
    /// Growth of the kernel's small objects (`Slab`) and TCP's buffers per idle connection: of both ends too, and steadier
    /// than `MemAvailable`, which everybody on the machine moves.
    pub slab_bytes_per_idle_connection: f64,
    /// Growth of the memory cgroup of the first proxy per idle connection, if it has one; holders may be in it too.
    pub cgroup_bytes_per_idle_connection: Option<f64>,
    /// CPU of all proxies with every connection idle, in percent of one core.
    pub idle_cpu_percent: f64,
    /// The same with the streams running and the idle ones woken now and then.
    pub streaming_cpu_percent: f64,
    /// The same per event.
    pub streaming_us_per_event: Option<f64>,
    /// A request on the connection that has been idle for longest, from its intended time.
    pub wake_us: Option<Percentiles>,
    /// What the streams saw.
    pub sse: Option<SseRecord>,
    /// Connections that the proxy closed though it should have held them.
    pub closed_while_idle: u64,
    /// Failed requests and streams by reason.
    pub failures: BTreeMap<Failure, u64>,
    /// The first few failures in words.
    pub failure_examples: Vec<String>,
    /// Whether the figures tell of the proxy and not of the holders.
    pub valid: bool,
    /// Why not.
    pub invalid_because: Vec<String>,
    /// Whether a request failed, or a connection was lost.
    pub failed: bool,
}

/// One process under test. Bytes: before the connections, with all of them idle, and with the streams running.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleProxy {
    /// Process.
    pub pid: u32,
    /// Its name in the kernel.
    pub name: String,
    /// Files that it had open with all connections idle: how the kernel spread them.
    pub open_files: u64,
    /// Resident memory.
    pub rss_bytes: [u64; 3],
    /// Resident memory, shared pages divided by those who share them.
    pub pss_bytes: [u64; 3],
}

/// A histogram in short. Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Values.
    pub count: u64,
    /// Least.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// Greatest.
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_and_statuses_are_keys_of_json_objects() {
        let failures = BTreeMap::from([(Failure::Content, 2)]);
        let text = serde_json::to_string(&failures).unwrap();
        assert_eq!(text, r#"{"content":2}"#);
        assert_eq!(serde_json::from_str::<BTreeMap<Failure, u64>>(&text).unwrap(), failures);
        let statuses: BTreeMap<u16, u64> = serde_json::from_str(r#"{"200":7}"#).unwrap();
        assert_eq!(statuses, BTreeMap::from([(200, 7)]));
    }
}
