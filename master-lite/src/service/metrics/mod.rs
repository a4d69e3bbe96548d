//! What nodes report of themselves, kept in memory: the newest report for scrapes, and a bounded past. Nothing of it is
//! stored: after a restart of the master nodes report again within seconds, and their past begins anew.

mod block;
pub(crate) mod exposition;
pub(crate) mod fleet_text;
#[cfg(test)]
mod full_day;
pub(crate) mod histogram;
pub(crate) mod history;
mod kept;
pub(crate) mod point;
mod report;
mod row;
pub(crate) mod totals;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::v1::{self, HostMetrics};

pub(crate) use kept::Kept;

use history::{History, NODE_BYTES_MAX, Resolution};
use kept::Names;
use point::{BoundSets, Figures, Point};
use totals::Timeline;

/// Longest time that one report may cover. A node that comes back after an outage has counted all the while: what it
/// did then is no news of now, and would show as a peak.
const COVERED_MS_MAX: u64 = 10 * 60_000;

/// What the pasts of all nodes may take together, shared out evenly: a day of five hundred busy nodes (`full_day` measures
/// it). With more nodes, or busier ones, the past of each is shorter.
const HISTORY_BYTES_MAX: usize = 68 << 20;

/// And their newest reports: of each node some hundred series, of a few nodes all that they may send.
const REPORTS_BYTES_MAX: usize = 24 << 20;

/// Everything that is known of what nodes do.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    fleet: Mutex<Fleet>,
}

#[derive(Debug, Default)]
struct Fleet {
    nodes: HashMap<String, Node>,
    sets: BoundSets,
    names: Names,
}

#[derive(Debug, Default)]
struct Node {
    history: History,
    host: Option<(u64, HostMetrics)>,
    report: Option<Report>,
}

/// The bytes that one node may take.
#[derive(Clone, Copy, Debug)]
struct Share {
    history: usize,
    report: usize,
}

impl Fleet {
    /// A node with what is needed to add to it.
    fn node(&mut self, node: &str) -> (&mut Node, &mut BoundSets, &mut Names, Share) {
        // One that is new counts from its second report on.
        let share = self.share();
        (self.nodes.entry(node.to_owned()).or_default(), &mut self.sets, &mut self.names, share)
    }

    fn share(&self) -> Share {
        let count = self.nodes.len().max(1);
        Share { history: (HISTORY_BYTES_MAX / count).min(NODE_BYTES_MAX), report: REPORTS_BYTES_MAX / count }
    }
}

/// The newest report.
#[derive(Clone, Debug)]
struct Report {
    at_ms: u64,
    kept: Kept,
    certificate_not_after_s: Option<f64>,
}

/// The newest of one node, for a scrape.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    /// How its host does.
    pub(crate) host: Option<HostMetrics>,
    /// What its data plane reported.
    pub(crate) report: Option<Kept>,
}

impl Metrics {
    /// A heartbeat has told how the host does.
    pub(crate) fn handle_heartbeat(&self, node: &str, host: &HostMetrics, now_ms: u64) {
        let mut fleet = self.lock();
        let (node, sets, _, share) = fleet.node(node);
        let point = Point { figures: host_figures(node.host.as_ref(), host, now_ms), ..Point::default() };
        node.history.add(now_ms, &point, sets, share.history);
        node.host = Some((now_ms, *host));
    }

    /// A data plane's report has come.
    pub(crate) fn handle_report(&self, node: &str, report: v1::Metrics, now_ms: u64) {
        let mut fleet = self.lock();
        let (node, sets, names, share) = fleet.node(node);
        let report = report::checked(report, share.report);
        let earlier = node.report.as_ref().and_then(|earlier| {
            let covered_ms = now_ms.saturating_sub(earlier.at_ms);
            (covered_ms <= COVERED_MS_MAX).then(|| (covered_ms, earlier.kept.watched()))
        });
        let (covered_ms, earlier) = earlier.unzip();
        let point = report::difference(earlier.as_ref(), &report, covered_ms.unwrap_or(0), sets);
        node.history.add(now_ms, &point, sets, share.history);
        node.report = Some(Report {
            at_ms: now_ms,
            kept: Kept::of(&report, names),
            certificate_not_after_s: report::certificate_not_after_s(&report),
        });
    }

    /// Forgets nodes that are gone, and of the others what does not fit any more since there are more of them.
    pub(crate) fn keep(&self, is_known: impl Fn(&str) -> bool) {
        let mut fleet = self.lock();
        fleet.nodes.retain(|node, _| is_known(node));
        let share = fleet.share();
        for node in fleet.nodes.values_mut() {
            node.history.forget(share.history);
            // A node that still reports keeps to its share by itself; of one that does not, the report is old.
            node.report = node.report.take().filter(|report| report.kept.bytes() <= 2 * share.report);
        }
        fleet.names.tidy();
    }

    /// What a node did in the last `window_ms`; none where it reported nothing.
    pub(crate) fn recent(&self, node: &str, window_ms: u64, now_ms: u64) -> Option<Point> {
        let fleet = self.lock();
        fleet.nodes.get(node)?.history.recent(window_ms, now_ms, &fleet.sets)
    }

    /// When a node's first certificate ends, in seconds since the Unix epoch; none where it does not tell.
    pub(crate) fn certificate_not_after_s(&self, node: &str) -> Option<f64> {
        self.lock().nodes.get(node)?.report.as_ref()?.certificate_not_after_s
    }

    /// Lays a node's past from a time on over those of others.
    pub(crate) fn add_past(&self, node: &str, resolution: Resolution, from_ms: u64, sum: &mut Timeline) {
        let fleet = self.lock();
        if let Some(node) = fleet.nodes.get(node) {
            node.history.visit(resolution, from_ms, &fleet.sets, |dated| sum.add(dated));
        }
    }

    /// The same by itself.
    #[cfg(test)]
    fn past(&self, node: &str, resolution: Resolution, from_ms: u64) -> Vec<history::Dated> {
        let (fleet, mut points) = (self.lock(), Vec::new());
        let history = &fleet.nodes[node].history;
        history.visit(resolution, from_ms, &fleet.sets, |dated| points.push(dated));
        points
    }

    /// The newest of a node.
    pub(crate) fn latest(&self, node: &str) -> Latest {
        let fleet = self.lock();
        let Some(node) = fleet.nodes.get(node) else { return Latest::default() };
        let report = node.report.as_ref().map(|report| report.kept.clone());
        Latest { host: node.host.map(|(_, host)| host), report }
    }

    /// Memory that all pasts and newest reports take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let of_report = |report: &Report| report.kept.bytes();
        let of_node = |node: &Node| node.history.bytes() + node.report.as_ref().map_or(0, of_report);
        self.lock().nodes.values().map(of_node).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a heartbeat adds to a point. A host that was started anew counts from zero.
fn host_figures(earlier: Option<&(u64, HostMetrics)>, host: &HostMetrics, now_ms: u64) -> Figures {
    let used = host.memory_bytes.saturating_sub(host.memory_available_bytes);
    let mut figures = Figures {
        host_samples: 1,
        cpu_busy: share(host.cpu_busy_ratio),
        memory_used: share(used as f64 / host.memory_bytes as f64),
        load: if host.load_1m.is_finite() { host.load_1m.max(0.0) as f32 } else { 0.0 },
        ..Figures::default()
    };
    let Some((earlier_ms, earlier)) = earlier else { return figures };
    let covered_ms = now_ms.saturating_sub(*earlier_ms);
    if covered_ms <= COVERED_MS_MAX {
        let grown = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        figures.host_covered_ms = covered_ms;
        figures.received_bytes =
            grown(host.network_received_bytes_total, earlier.network_received_bytes_total);
        figures.sent_bytes = grown(host.network_sent_bytes_total, earlier.network_sent_bytes_total);
    }
    figures
}

/// What a node says is a share is made one; what is no number is 0.
fn share(ratio: f64) -> f32 {
    if ratio.is_finite() { ratio.clamp(0.0, 1.0) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::report::tests::{family, series};
    use super::*;

    fn host(received: u64) -> HostMetrics {
        HostMetrics {
            cpu_busy_ratio: 0.5,
            memory_bytes: 100,
            memory_available_bytes: 25,
            network_received_bytes_total: received,
            ..HostMetrics::default()
        }
    }

    fn report(requests: f64) -> v1::Metrics {
        let series = vec![series(&[("route", "a")], v1::series::Value::Number(requests))];
        v1::Metrics {
            dataplane_started_at_unix_ms: 1,
            families: vec![family("millrace_requests_total", v1::MetricKind::Counter, series)],
            ..v1::Metrics::default()
        }
    }

    #[test]
    fn heartbeats_and_reports_become_rates() {
        let metrics = Metrics::default();
        for tick in 0..3 {
            metrics.handle_heartbeat("n", &host(1_000 * tick), tick * 10_000);
            metrics.handle_report("n", report(50.0 * tick as f64), tick * 10_000);
        }
        let figures = metrics.recent("n", 60_000, 30_000).unwrap().figures;
        assert_eq!(figures.cpu_percent(), Some(50.0));
        assert_eq!(figures.memory_percent(), Some(75.0));
        assert_eq!(figures.received_bytes_per_s(), Some(100.0));
        assert_eq!(figures.requests_per_s(), Some(5.0));
        assert_eq!(metrics.past("n", Resolution::TenSeconds, 10_000).len(), 2);
        assert!(metrics.latest("n").report.unwrap().family("millrace_requests_total").is_some());
        metrics.keep(|node| node != "n");
        assert_eq!(metrics.recent("n", 60_000, 30_000), None);
        assert_eq!(metrics.bytes(), 0);
    }

    #[test]
    fn what_was_counted_during_an_outage_is_no_peak() {
        let metrics = Metrics::default();
        metrics.handle_report("n", report(0.0), 0);
        metrics.handle_heartbeat("n", &host(0), 0);
        let later_ms = COVERED_MS_MAX + 1;
        metrics.handle_report("n", report(1e9), later_ms);
        metrics.handle_heartbeat("n", &host(1 << 40), later_ms);
        let figures = metrics.recent("n", 20_000, later_ms + 1).unwrap().figures;
        assert_eq!((figures.requests, figures.received_bytes), (0, 0));
    }

    #[test]
    fn what_is_no_share_is_made_one() {
        let metrics = Metrics::default();
        let wild = HostMetrics { cpu_busy_ratio: f64::NAN, load_1m: f64::INFINITY, ..HostMetrics::default() };
        metrics.handle_heartbeat("n", &wild, 0);
        metrics.handle_heartbeat("n", &HostMetrics { cpu_busy_ratio: 7.0, ..wild }, 1);
        let figures = metrics.recent("n", 60_000, 30_000).unwrap().figures;
        assert_eq!((figures.cpu_percent(), figures.load_average()), (Some(50.0), Some(0.0)));
        assert_eq!(figures.memory_percent(), Some(0.0));
    }
}
