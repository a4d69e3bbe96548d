//! A snapshot: the form of a config that workers run by. Immutable, one per generation, shared by all.
//!
//! What a new config leaves as it was is the same `Arc` in both snapshots, so that workers see at a glance which pools
//! and balancers stay. Counters belong to names, not to generations: a listener, route, cluster or endpoint that is
//! still there goes on counting where it was, changed or not. Each worker has its own, at its own index.
//!
//! It resolves no names and binds no sockets: endpoints come resolved, and [`plan`] says what to bind.

pub mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proto::config::{Cluster, Config, Listener, Route};

pub use crate::endpoint::{EndpointAddress, EndpointHealth, EndpointId, ResolvedEndpoint};
pub use plan::{Plan, diff};

use crate::route::{RequestView, RouteTable};
use crate::stats::{ClusterStats, EndpointStats, ListenerStats, RouteStats, WorkerStats};

/// All that a worker needs to serve by one config.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts configs that were applied; the first is 1.
    pub generation: u64,
    /// What it was built from.
    pub config: Arc<Config>,
    /// In the order of the config; [`Snapshot::route`] takes an index of these.
    pub listeners: Vec<Arc<ListenerEntry>>,
    /// In the order of the config.
    pub routes: Vec<Arc<RouteEntry>>,
    /// In the order of the config.
    pub clusters: Vec<Arc<ClusterEntry>>,
    /// What each worker counts of itself.
    pub workers: Vec<Arc<WorkerStats>>,
    table: Arc<RouteTable>,
}

/// A listener with its counters.
#[derive(Debug)]
pub struct ListenerEntry {
    /// As configured.
    pub config: Listener,
    /// By worker.
    pub stats: Vec<Arc<ListenerStats>>,
}

/// A route with its counters.
#[derive(Debug)]
pub struct RouteEntry {
    /// As configured.
    pub config: Route,
    /// An index of [`Snapshot::clusters`].
    pub cluster: usize,
    /// By worker.
    pub stats: Vec<Arc<RouteStats>>,
}

/// A cluster with its endpoints and counters.
#[derive(Debug)]
pub struct ClusterEntry {
    /// As configured.
    pub config: Cluster,
    /// As resolved; each address once.
    pub endpoints: Vec<EndpointEntry>,
    /// By worker.
    pub stats: Vec<Arc<ClusterStats>>,
}

/// An endpoint with its counters.
#[derive(Clone, Debug)]
pub struct EndpointEntry {
    /// Where it is.
    pub resolved: ResolvedEndpoint,
    /// By worker.
    pub stats: Vec<Arc<EndpointStats>>,
}

impl ClusterEntry {
    /// The endpoints without their counters, as `ClusterState` takes them.
    pub fn resolved(&self) -> impl Iterator<Item = &ResolvedEndpoint> {
        self.endpoints.iter().map(|endpoint| &endpoint.resolved)
    }
}

impl Snapshot {
    /// Builds the snapshot of `config` for so many workers. `resolved[i]` are the endpoints of `config.clusters[i]`;
    /// of several with one id the first is taken. What `previous` has alike is shared with it.
    ///
    /// # Panics
    /// If a route names a cluster that is not there, which no checked config does.
    pub fn build(
        config: Arc<Config>,
        generation: u64,
        resolved: Vec<Vec<ResolvedEndpoint>>,
        previous: Option<&Snapshot>,
        workers: usize,
    ) -> Snapshot {
        debug_assert_eq!(resolved.len(), config.clusters.len(), "one list of endpoints per cluster");
        let previous_clusters = by_name(previous, |old| &old.clusters, |entry| &entry.config.name);
        let clusters = config.clusters.iter().zip(resolved);
        Snapshot {
            generation,
            listeners: listener_entries(&config, previous, workers),
            routes: route_entries(&config, previous, workers),
            clusters: clusters
                .map(|(cluster, endpoints)| {
                    let old = previous_clusters.get(cluster.name.as_str()).copied();
                    cluster_entry(cluster, endpoints, old, workers)
                })
                .collect(),
            workers: carried(previous.map(|old| old.workers.as_slice()), workers),
            table: route_table(&config, previous),
            config,
        }
    }

    /// The index of the route that answers a request on the listener with this index.
    pub fn route(&self, listener: usize, request: &RequestView<'_>) -> Option<usize> {
        self.table.lookup(listener, request)
    }

    /// The index of the listener with this name.
    pub fn listener(&self, name: &str) -> Option<usize> {
        self.listeners.iter().position(|entry| entry.config.name == name)
    }

    /// The health flags of all endpoints, so that the next snapshot's can be the same ones.
    pub fn health(&self) -> HashMap<EndpointId, Arc<EndpointHealth>> {
        let endpoints = self.clusters.iter().flat_map(|cluster| cluster.resolved());
        endpoints.map(|endpoint| (endpoint.id, Arc::clone(&endpoint.health))).collect()
    }
}

fn listener_entries(config: &Config, previous: Option<&Snapshot>, workers: usize) -> Vec<Arc<ListenerEntry>> {
    let old = by_name(previous, |old| &old.listeners, |entry| &entry.config.name);
    let entry = |listener: &Listener| {
        let old = old.get(listener.name.as_str()).copied();
        match old {
            Some(old) if old.config == *listener && old.stats.len() >= workers => Arc::clone(old),
            Some(_) | None => Arc::new(ListenerEntry {
                config: listener.clone(),
                stats: carried(old.map(|old| old.stats.as_slice()), workers),
            }),
        }
    };
    config.listeners.iter().map(entry).collect()
}

fn route_entries(config: &Config, previous: Option<&Snapshot>, workers: usize) -> Vec<Arc<RouteEntry>> {
    let old = by_name(previous, |old| &old.routes, |entry| &entry.config.name);
    let clusters: HashMap<&str, usize> =
        config.clusters.iter().enumerate().map(|(at, cluster)| (cluster.name.as_str(), at)).collect();
    let entry = |route: &Route| {
        let cluster = clusters.get(route.cluster.as_str()).copied();
        let cluster = cluster.expect("a checked config has the clusters that its routes name");
        let old = old.get(route.name.as_str()).copied();
        match old {
            Some(old) if old.config == *route && old.cluster == cluster && old.stats.len() >= workers => {
                Arc::clone(old)
            }
            Some(_) | None => Arc::new(RouteEntry {
                config: route.clone(),
                cluster,
                stats: carried(old.map(|old| old.stats.as_slice()), workers),
            }),
        }
    };
    config.routes.iter().map(entry).collect()
}

fn cluster_entry(
    config: &Cluster,
    resolved: Vec<ResolvedEndpoint>,
    old: Option<&Arc<ClusterEntry>>,
    workers: usize,
) -> Arc<ClusterEntry> {
    let old_endpoints = old.map(|old| old.endpoints.as_slice()).unwrap_or_default();
    let old_stats: HashMap<EndpointId, &[Arc<EndpointStats>]> =
        old_endpoints.iter().map(|entry| (entry.resolved.id, entry.stats.as_slice())).collect();
    let mut seen = HashSet::new();
    let endpoints: Vec<EndpointEntry> = resolved
        .into_iter()
        .filter(|endpoint| seen.insert(endpoint.id))
        .map(|endpoint| EndpointEntry {
            stats: carried(old_stats.get(&endpoint.id).copied(), workers),
            resolved: endpoint,
        })
        .collect();
    let is_same = |old: &ClusterEntry| {
        old.config == *config
            && old.stats.len() >= workers
            && old.endpoints.len() == endpoints.len()
            && old.endpoints.iter().zip(&endpoints).all(|(old, new)| old.resolved.is_same(&new.resolved))
    };
    match old {
        Some(old) if is_same(old) => Arc::clone(old),
        Some(_) | None => Arc::new(ClusterEntry {
            config: config.clone(),
            endpoints,
            stats: carried(old.map(|old| old.stats.as_slice()), workers),
        }),
    }
}

fn route_table(config: &Config, previous: Option<&Snapshot>) -> Arc<RouteTable> {
    let names = |config: &Config| -> Vec<String> {
        config.listeners.iter().map(|listener| listener.name.clone()).collect()
    };
    match previous {
        Some(old) if old.config.routes == config.routes && names(&old.config) == names(config) => {
            Arc::clone(&old.table)
        }
        Some(_) | None => Arc::new(RouteTable::new(&config.routes, &names(config))),
    }
}

/// The counters of each worker: those there are, and new ones for workers that had none. Never fewer than before, since
/// what was counted is not forgotten.
fn carried<T: Default>(old: Option<&[Arc<T>]>, workers: usize) -> Vec<Arc<T>> {
    let mut stats = old.map(<[_]>::to_vec).unwrap_or_default();
    let missing = workers.saturating_sub(stats.len());
    stats.extend(std::iter::repeat_with(Arc::default).take(missing));
    stats
}

fn by_name<'a, T>(
    previous: Option<&'a Snapshot>,
    entries: impl Fn(&'a Snapshot) -> &'a Vec<Arc<T>>,
    name: impl Fn(&'a T) -> &'a String,
) -> HashMap<&'a str, &'a Arc<T>> {
    let entries = previous.map(|old| entries(old).as_slice()).unwrap_or_default();
    entries.iter().map(|entry| (name(entry).as_str(), entry)).collect()
}
