//! One worker's side of the clusters: which endpoint gets an exchange, and a connection to it.
//!
//! What an endpoint has (its pool, its count of exchanges) outlives the snapshot that named it, as long as a later one
//! names the same endpoint. Who gets an exchange is decided by the core's [`ClusterState`].

mod connect;
mod pool;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use dataplane_core::balance::Tried;
use dataplane_core::endpoint::{ClusterState, EndpointAddress, Load};
use dataplane_core::snapshot::{ClusterEntry, EndpointId};
use dataplane_core::stats::{ClusterStats, EndpointStats};

use crate::io::Stream;

pub(crate) use connect::{ConnectFailure, connect};
pub(crate) use pool::{Pool, Shelves, now_ms};

/// One endpoint of a cluster as a worker sees it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// As written in the config: what the `Host` header and the log say.
    pub(crate) name: String,
    pub(crate) address: EndpointAddress,
    pub(crate) stats: Arc<EndpointStats>,
    load: Rc<Load>,
    pool: Rc<Pool>,
}

/// The pools of a worker, by endpoint: idle connections outlive the snapshot in which they were made.
pub(crate) type Pools = HashMap<EndpointId, Rc<Pool>>;

/// One cluster as a worker sees it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) entry: Arc<ClusterEntry>,
    /// Whose turn it is, and how many exchanges each endpoint has.
    state: RefCell<ClusterState>,
    /// In the order of the entry, as `state` counts them.
    endpoints: Vec<Rc<Endpoint>>,
    idle_timeout_ms: u64,
    stats: Arc<ClusterStats>,
}

impl Cluster {
    /// The cluster for worker number `worker`, going on where `before` was.
    pub(crate) fn new(
        entry: Arc<ClusterEntry>,
        before: Option<&Self>,
        pools: &mut Pools,
        shelves: &HashMap<EndpointId, Arc<Shelves>>,
        worker: usize,
    ) -> Self {
        let policy = entry.config.policy;
        let state = match before {
            None => ClusterState::new(policy, worker, entry.resolved()),
            Some(before) => {
                let mut state = before.state.borrow().clone();
                state.update(policy, entry.resolved());
                state
            }
        };
        let pool_of = |id: EndpointId| {
            let shelves = shelves.get(&id).cloned().unwrap_or_else(|| Arc::new(Shelves::new(0)));
            Rc::new(Pool::new(shelves, worker))
        };
        let endpoints = entry.endpoints.iter().zip(state.endpoints()).map(|(endpoint, state)| {
            let resolved = &endpoint.resolved;
            Rc::new(Endpoint {
                name: resolved.name.clone(),
                address: resolved.address.clone(),
                stats: Arc::clone(&endpoint.stats[worker]),
                load: Rc::clone(state.load()),
                pool: Rc::clone(pools.entry(resolved.id).or_insert_with_key(|id| pool_of(*id))),
            })
        });
        Self {
            endpoints: endpoints.collect(),
            state: RefCell::new(state),
            idle_timeout_ms: entry.config.pool.idle_timeout.as_millis() as u64,
            stats: Arc::clone(&entry.stats[worker]),
            entry,
        }
    }

    /// The endpoint for the next try of an exchange, with its index; none if all are down or tried.
    pub(crate) fn pick(&self, tried: &Tried) -> Option<(usize, InFlight)> {
        let index = self.state.borrow_mut().pick(tried)?;
        self.at(index)
    }

    /// The endpoint with this index, for another connection to it.
    pub(crate) fn at(&self, index: usize) -> Option<(usize, InFlight)> {
        self.endpoints.get(index).map(|endpoint| (index, InFlight::new(Rc::clone(endpoint))))
    }

    /// This worker's counters of the cluster.
    pub(crate) fn stats(&self) -> &ClusterStats {
        &self.stats
    }

    /// Takes an idle connection of this worker to `endpoint`.
    pub(crate) fn take_idle(&self, endpoint: &Endpoint) -> Option<Stream> {
        let search = endpoint.pool.take(now_ms(), self.idle_timeout_ms);
        endpoint.stats.pool_stale.add(search.stale);
        if search.found.is_some() {
            endpoint.stats.pool_hits.increment();
        }
        search.found
    }

    /// Takes an idle connection of another worker to `endpoint`.
    pub(crate) async fn take_from_others(&self, endpoint: &Endpoint) -> Option<Stream> {
        if !endpoint.pool.others_have_some() {
            endpoint.stats.pool_misses.increment();
            return None;
        }
        let search = endpoint.pool.take_from_others(now_ms(), self.idle_timeout_ms).await;
        endpoint.stats.pool_stale.add(search.stale);
        let counter =
            if search.found.is_some() { &endpoint.stats.pool_takes } else { &endpoint.stats.pool_misses };
        counter.increment();
        search.found
    }

    /// Keeps a connection on which a whole exchange has ended cleanly, for as long as its endpoint has said at most.
    pub(crate) fn keep_idle(&self, endpoint: &Endpoint, stream: Stream, idle_ms_max: u32) {
        endpoint.pool.put(stream, now_ms(), idle_ms_max, self.entry.config.pool.idle_per_endpoint as usize);
        endpoint.stats.pool_idle.set(endpoint.pool.idle() as u64);
    }

    /// Closes some idle connections of all workers, for somebody who needs their descriptors more; false if there is none.
    pub(crate) fn give_up_some_idle(&self) -> bool {
        let mut any = false;
        for endpoint in &self.endpoints {
            any |= endpoint.pool.give_up_some() > 0;
            endpoint.stats.pool_idle.set(endpoint.pool.idle() as u64);
        }
        any
    }

    /// Closes idle connections that are dead or too old, or more than are kept for long.
    pub(crate) fn sweep(&self) {
        self.sweep_where(|_| true);
    }

    /// As [`Cluster::sweep`], only where one may be too old.
    pub(crate) fn sweep_due(&self) {
        self.sweep_where(|pool| pool.is_due(now_ms(), self.idle_timeout_ms));
    }

    fn sweep_where(&self, is_wanted: impl Fn(&Pool) -> bool) {
        let most = self.entry.config.pool.idle_per_endpoint as usize;
        for endpoint in self.endpoints.iter().filter(|endpoint| is_wanted(&endpoint.pool)) {
            let stale = endpoint.pool.sweep(now_ms(), self.idle_timeout_ms, most);
            endpoint.stats.pool_stale.add(stale);
            endpoint.stats.pool_idle.set(endpoint.pool.idle() as u64);
        }
    }
}

/// One exchange at an endpoint: counted while it lives.
#[derive(Debug)]
pub(crate) struct InFlight(Rc<Endpoint>);

impl InFlight {
    fn new(endpoint: Rc<Endpoint>) -> Self {
        endpoint.load.begin();
        endpoint.stats.in_flight.increment();
        endpoint.stats.exchanges.increment();
        Self(endpoint)
    }
}

impl std::ops::Deref for InFlight {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.load.end();
        self.0.stats.in_flight.decrement();
    }
}
