//! What is told to the outside about the data plane: the Prometheus text, and the records of the access log.
//!
//! The counters themselves are `dataplane_core::stats`; here they are added up over the workers and named. Nothing in
//! this module serves HTTP or writes a file: `control` does.

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
    /// What the control thread knows of the node.
    pub(crate) node: NodeFigures,
    /// What the kernel says of the process.
    pub(crate) process: Process,
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
    /// Access log records that found the queue full, or could not be written.
    pub(crate) access_dropped: u64,
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
        endpoints(&mut text, snapshot);
    }
    text.into_string()
}

/// A label's name and its value.
type Label<'a> = (&'static str, &'a str);

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
}

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
    let sums: Vec<([Label<'_>; 1], &ListenerStats)> =
        sums.iter().map(|(labels, stats)| (*labels, stats)).collect();
    numbers(text, names::LISTENER, &sums);
    by_class(text, &names::LISTENER_REQUESTS, &sums, |stats| &stats.requests);
    by_kind(text, &names::LISTENER_FAULTS, &sums, |stats| &stats.faults);
}

fn routes(text: &mut Text, snapshot: &Snapshot) {
    let sums: Vec<([Label<'_>; 2], RouteStats)> = snapshot
        .routes
        .iter()
        .map(|entry| {
            let labels = [("route", entry.config.name.as_str()), ("cluster", entry.config.cluster.as_str())];
            (labels, sum(&entry.stats, RouteStats::merge))
        })
        .collect();
    let sums: Vec<([Label<'_>; 2], &RouteStats)> =
        sums.iter().map(|(labels, stats)| (*labels, stats)).collect();
    numbers(text, names::ROUTE, &sums);
    by_class(text, &names::REQUESTS, &sums, |stats| &stats.requests);
    by_kind(text, &names::FAULTS, &sums, |stats| &stats.faults);
    times(text, names::ROUTE_TIMES, &sums);
}

fn clusters(text: &mut Text, snapshot: &Snapshot) {
    let sums: Vec<([Label<'_>; 1], ClusterStats)> = snapshot
        .clusters
        .iter()
        .map(|entry| ([("cluster", entry.config.name.as_str())], sum(&entry.stats, ClusterStats::merge)))
        .collect();
    let sums: Vec<([Label<'_>; 1], &ClusterStats)> =
        sums.iter().map(|(labels, stats)| (*labels, stats)).collect();
    numbers(text, names::CLUSTER, &sums);
}

fn endpoints(text: &mut Text, snapshot: &Snapshot) {
    let entries = || {
        snapshot
            .clusters
            .iter()
            .flat_map(|cluster| cluster.endpoints.iter().map(move |entry| (cluster, entry)))
    };
    let addresses: Vec<String> = entries().map(|(_, entry)| entry.resolved.address.to_string()).collect();
    let sums: Vec<EndpointStats> =
        entries().map(|(_, entry)| sum(&entry.stats, EndpointStats::merge)).collect();
    let labelled: Vec<([Label<'_>; 3], &EndpointStats)> = entries()
        .zip(&addresses)
        .zip(&sums)
        .map(|(((cluster, entry), address), stats)| {
            let name = entry.resolved.name.as_str();
            ([("cluster", cluster.config.name.as_str()), ("endpoint", name), ("address", address)], stats)
        })
        .collect();
    let mut healthy = text.family(&names::ENDPOINT_HEALTHY);
    for ((_, entry), (labels, _)) in entries().zip(&labelled) {
        healthy.sample(labels, u64::from(entry.resolved.health.is_healthy()));
    }
    numbers(text, names::ENDPOINT, &labelled);
}

/// What all workers have counted, added up.
fn sum<T: Default>(of_workers: &[Arc<T>], merge: impl Fn(&T, &T)) -> T {
    let sum = T::default();
    of_workers.iter().for_each(|stats| merge(&sum, stats));
    sum
}

fn numbers<T, const N: usize>(text: &mut Text, numbers: &[Number<T>], entries: &[([Label<'_>; N], &T)]) {
    for number in numbers {
        let mut family = text.family(&number.metric);
        for (labels, stats) in entries {
            family.sample(labels, (number.value)(stats));
        }
    }
}

fn times<T, const N: usize>(text: &mut Text, times: &[Times<T>], entries: &[([Label<'_>; N], &T)]) {
    for time in times {
        let mut family = text.family(&time.metric);
        for (labels, stats) in entries {
            family.histogram(labels, (time.histogram)(stats));
        }
    }
}

fn by_class<T, const N: usize>(
    text: &mut Text,
    metric: &names::Metric,
    entries: &[([Label<'_>; N], &T)],
    counters: impl Fn(&T) -> &[Counter; StatusClass::ALL.len()],
) {
    let mut family = text.family(metric);
    for (labels, stats) in entries {
        for (class, counter) in StatusClass::ALL.iter().zip(counters(stats)) {
            family.sample(&[&labels[..], &[("status_class", class.as_str())]].concat(), counter.value());
        }
    }
}

/// Every kind is shown, the ones at zero too: a counter that appears with its first fault hides that fault from `rate`.
fn by_kind<T, const N: usize>(
    text: &mut Text,
    metric: &names::Metric,
    entries: &[([Label<'_>; N], &T)],
    counters: impl Fn(&T) -> &[Counter; FaultKind::ALL.len()],
) {
    let mut family = text.family(metric);
    for (labels, stats) in entries {
        for (kind, counter) in FaultKind::ALL.iter().zip(counters(stats)) {
            let fault = [("blame", kind.blame().as_str()), ("kind", kind.as_str())];
            family.sample(&[&labels[..], &fault[..]].concat(), counter.value());
        }
    }
}

#[cfg(test)]
mod tests;
