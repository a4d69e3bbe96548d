//! What is told to the outside about the data plane: the Prometheus text, and the records of the access log.
//!
//! The counters themselves are `dataplane_core::stats`; here they are added up over the workers and named. Nothing in
//! this module serves HTTP or writes a file: `control` does.
//!
//! How long the Prometheus text is depends on what happened, not on how much the config names: a route, a cluster or an
//! endpoint has series from its first request on, a kind of fault from its first fault on, and absent means 0. There from
//! the start are the node's and the workers' own figures (the number of workers is that of cores), three of each listener,
//! the health of each endpoint, and whether one that is a name has an address.

pub(crate) mod access;
mod names;
pub(crate) mod process;
mod text;

use std::sync::Arc;

use dataplane_core::error::FaultKind;
use dataplane_core::snapshot::Snapshot;
use dataplane_core::stats::{
    ClusterStats, Counter, EndpointStats, ListenerStats, RouteStats, StatusClass, WorkerStats,
};

use names::{Number, Times};
use process::Process;
use text::Text;

/// Everything that one scrape shows.
pub(crate) struct Scrape<'a> {
    /// What is served by; none before the first config was applied.
    pub(crate) snapshot: Option<&'a Snapshot>,
    /// What each worker counts of itself.
    pub(crate) workers: &'a [Arc<WorkerStats>],
    /// The endpoints that the served config has by name.
    pub(crate) names: &'a [Name<'a>],
    /// What the control thread knows of the node.
    pub(crate) node: NodeFigures,
    /// What the kernel says of the process.
    pub(crate) process: Process,
}

/// An endpoint that the config has by name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<'a> {
    /// The cluster's name.
    pub(crate) cluster: &'a str,
    /// As configured.
    pub(crate) endpoint: &'a str,
    /// Whether there is an address for it.
    pub(crate) is_resolved: bool,
}

/// What the control thread counts itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NodeFigures {
    /// The generation that is served; 0 before the first.
    pub(crate) generation: u64,
    /// Generations that still have exchanges, the live one included.
    pub(crate) generations_live: u64,
    /// Configs that were applied.
    pub(crate) applies: u64,
    /// Configs that were refused.
    pub(crate) refusals: u64,
    /// The most client connections there may be.
    pub(crate) connections_max: u64,
    /// Whether `/readyz` says yes.
    pub(crate) ready: bool,
    /// Whether the node takes no new connections.
    pub(crate) draining: bool,
    /// Worker threads that ended although they should not have, and were started again.
    pub(crate) worker_restarts: u64,
    /// Panics caught on workers.
    pub(crate) worker_panics: u64,
    /// Wakes of tasks on another thread than theirs, which woke nothing.
    pub(crate) worker_lost_wakes: u64,
    /// Access log records that found the queue full, or could not be written.
    pub(crate) access_dropped: u64,
    /// Lines of the process's log that found too many waiting.
    pub(crate) log_dropped: u64,
    /// Look-ups of names that failed.
    pub(crate) name_failures: u64,
}

/// The media type of [`render`]'s text.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The Prometheus text exposition, format 0.0.4.
pub(crate) fn render(scrape: &Scrape<'_>) -> String {
    let mut text = Text::default();
    node(&mut text, scrape);
    workers(&mut text, scrape.workers);
    if let Some(snapshot) = scrape.snapshot {
        listeners(&mut text, snapshot);
        routes(&mut text, snapshot);
        clusters(&mut text, snapshot);
        endpoints(&mut text, snapshot, scrape.names);
    }
    text.into_string()
}

/// A label's name and its value.
type Label<'a> = (&'static str, &'a str);

/// Which series of a family are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// All, the ones at zero too: of the node as a whole, so that `rate` sees the first event of each.
    All,
    /// Those that have counted something. What a config names may be thousands of routes, most of them idle; absent is 0.
    Counted,
}

impl Shown {
    fn includes(self, value: u64) -> bool {
        self == Shown::All || value > 0
    }
}

fn node(text: &mut Text, scrape: &Scrape<'_>) {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    text.family(&names::BUILD_INFO).sample(&version, 1);
    for number in names::NODE {
        text.family(&number.metric).sample(&[], (number.value)(&scrape.node));
    }
    for number in names::PROCESS {
        text.family(&number.metric).sample(&[], (number.value)(&scrape.process));
    }
    text.family(&names::PROCESS_CPU).seconds(&[], scrape.process.cpu_ns);
    text.family(&names::PROCESS_START).seconds(&[], scrape.process.started_unix_ns);
    let all = sum(scrape.workers, WorkerStats::merge);
    let all: &[([Label<'_>; 0], &WorkerStats)] = &[([], &all)];
    by_class(text, &names::NODE_REQUESTS, all, Shown::All, |stats| &stats.requests);
    by_kind(text, &names::NODE_FAULTS, all, Shown::All, |stats| &stats.faults);
}

/// Workers are as many as cores, whatever the config says: they show all that they have.
fn workers(text: &mut Text, workers: &[Arc<WorkerStats>]) {
    let ids: Vec<String> = (0..workers.len()).map(|id| id.to_string()).collect();
    let labelled: Vec<([Label<'_>; 1], &WorkerStats)> =
        ids.iter().zip(workers).map(|(id, stats)| ([("worker", id.as_str())], stats.as_ref())).collect();
    numbers(text, names::WORKER, &labelled);
}

fn listeners(text: &mut Text, snapshot: &Snapshot) {
    let sums: Vec<([Label<'_>; 1], ListenerStats)> = snapshot
        .listeners
        .iter()
        .map(|entry| ([("listener", entry.config.name.as_str())], sum(&entry.stats, ListenerStats::merge)))
        .collect();
    let all = by_reference(&sums);
    let used: Vec<_> = all.iter().copied().filter(|(_, stats)| stats.is_used()).collect();
    numbers(text, names::LISTENER_FROM_START, &all);
    numbers(text, names::LISTENER, &used);
    by_class(text, &names::LISTENER_REQUESTS, &used, Shown::Counted, |stats| &stats.requests);
    by_kind(text, &names::LISTENER_FAULTS, &used, Shown::Counted, |stats| &stats.faults);
}

fn routes(text: &mut Text, snapshot: &Snapshot) {
    let used = snapshot.routes.iter().filter(|entry| entry.stats.iter().any(|stats| stats.is_used()));
    let sums: Vec<([Label<'_>; 2], RouteStats)> = used
        .map(|entry| {
            let labels = [("route", entry.config.name.as_str()), ("cluster", entry.config.cluster.as_str())];
            (labels, sum(&entry.stats, RouteStats::merge))
        })
        .collect();
    let sums = by_reference(&sums);
    numbers(text, names::ROUTE, &sums);
    by_class(text, &names::REQUESTS, &sums, Shown::Counted, |stats| &stats.requests);
    by_kind(text, &names::FAULTS, &sums, Shown::Counted, |stats| &stats.faults);
    times(text, names::ROUTE_TIMES, &sums);
}

fn clusters(text: &mut Text, snapshot: &Snapshot) {
    let sums: Vec<([Label<'_>; 1], ClusterStats)> = snapshot
        .clusters
        .iter()
        .map(|entry| ([("cluster", entry.config.name.as_str())], sum(&entry.stats, ClusterStats::merge)))
        .filter(|(_, stats)| stats.is_used())
        .collect();
    numbers(text, names::CLUSTER, &by_reference(&sums));
}

fn endpoints(text: &mut Text, snapshot: &Snapshot, names: &[Name<'_>]) {
    let entries = || {
        snapshot
            .clusters
            .iter()
            .flat_map(|cluster| cluster.endpoints.iter().map(move |entry| (cluster, entry)))
    };
    let addresses: Vec<String> = entries().map(|(_, entry)| entry.resolved.address.to_string()).collect();
    let labelled = || {
        entries().zip(&addresses).map(|((cluster, entry), address)| {
            let (cluster, name) = (cluster.config.name.as_str(), entry.resolved.name.as_str());
            ([("cluster", cluster), ("endpoint", name), ("address", address.as_str())], entry)
        })
    };
    // Health is state, and the one thing that an endpoint shows before its first request.
    let mut healthy = text.family(&names::ENDPOINT_HEALTHY);
    for (labels, entry) in labelled() {
        healthy.sample(&labels, u64::from(entry.resolved.health.is_healthy()));
    }
    // An endpoint without an address takes no requests: an alert on clusters without a healthy endpoint must see it.
    for name in names.iter().filter(|name| !name.is_resolved) {
        healthy.sample(&[("cluster", name.cluster), ("endpoint", name.endpoint), ("address", "")], 0);
    }
    let mut resolved = text.family(&names::ENDPOINT_RESOLVED);
    for name in names {
        let labels = [("cluster", name.cluster), ("endpoint", name.endpoint)];
        resolved.sample(&labels, u64::from(name.is_resolved));
    }
    let used = labelled().filter(|(_, entry)| entry.stats.iter().any(|stats| stats.is_used()));
    let sums: Vec<([Label<'_>; 3], EndpointStats)> =
        used.map(|(labels, entry)| (labels, sum(&entry.stats, EndpointStats::merge))).collect();
    numbers(text, names::ENDPOINT, &by_reference(&sums));
}

/// What all workers have counted, added up.
fn sum<T: Default>(of_workers: &[Arc<T>], merge: impl Fn(&T, &T)) -> T {
    let sum = T::default();
    of_workers.iter().for_each(|stats| merge(&sum, stats));
    sum
}

fn by_reference<'a, T, const N: usize>(sums: &'a [([Label<'a>; N], T)]) -> Vec<([Label<'a>; N], &'a T)> {
    sums.iter().map(|(labels, stats)| (*labels, stats)).collect()
}

fn numbers<T, const N: usize>(text: &mut Text, numbers: &[Number<T>], entries: &[([Label<'_>; N], &T)]) {
    for number in numbers {
        let mut family = text.family(&number.metric);
        for (labels, stats) in entries {
            family.sample(labels, (number.value)(stats));
        }
    }
}

/// A histogram has some twenty-five series: it is there from its first observation on.
fn times<T, const N: usize>(text: &mut Text, times: &[Times<T>], entries: &[([Label<'_>; N], &T)]) {
    for time in times {
        let mut family = text.family(&time.metric);
        for (labels, stats) in entries {
            let histogram = (time.histogram)(stats);
            if histogram.count() > 0 {
                family.histogram(labels, histogram);
            }
        }
    }
}

fn by_class<T, const N: usize>(
    text: &mut Text,
    metric: &names::Metric,
    entries: &[([Label<'_>; N], &T)],
    shown: Shown,
    counters: impl Fn(&T) -> &[Counter; StatusClass::ALL.len()],
) {
    let mut family = text.family(metric);
    for (labels, stats) in entries {
        let counts =
            StatusClass::ALL.iter().zip(counters(stats)).map(|(class, count)| (class, count.value()));
        for (class, count) in counts.filter(|(_, count)| shown.includes(*count)) {
            family.sample(&[&labels[..], &[("status_class", class.as_str())]].concat(), count);
        }
    }
}

fn by_kind<T, const N: usize>(
    text: &mut Text,
    metric: &names::Metric,
    entries: &[([Label<'_>; N], &T)],
    shown: Shown,
    counters: impl Fn(&T) -> &[Counter; FaultKind::ALL.len()],
) {
    let mut family = text.family(metric);
    for (labels, stats) in entries {
        let counts = FaultKind::ALL.iter().zip(counters(stats)).map(|(kind, count)| (kind, count.value()));
        for (kind, count) in counts.filter(|(_, count)| shown.includes(*count)) {
            let fault = [("blame", kind.blame().as_str()), ("kind", kind.as_str())];
            family.sample(&[&labels[..], &fault[..]].concat(), count);
        }
    }
}

#[cfg(test)]
mod tests;
