//! One worker's side of the clusters: which endpoint gets an exchange, and a connection to it.
//!
//! What an endpoint has (its pool, its count of exchanges) outlives the snapshot that named it, as long as a later one
//! names the same endpoint.

mod connect;
mod pool;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use dataplane_core::balance::{Balancer, Endpoints, Tried};
use dataplane_core::endpoint::{EndpointAddress, EndpointHealth};
use dataplane_core::snapshot::{ClusterEntry, EndpointId};
use dataplane_core::stats::{ClusterStats, EndpointStats};

use crate::io::Stream;

pub(crate) use connect::{ConnectFailure, connect};
pub(crate) use pool::{Pool, Shelves, now_ms};

/// One endpoint as a worker sees it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: EndpointId,
    /// As written in the config: what the `Host` header and the log say.
    pub(crate) name: String,
    pub(crate) address: EndpointAddress,
    pub(crate) stats: Arc<EndpointStats>,
    health: Arc<EndpointHealth>,
    in_flight: Cell<u32>,
    pool: Pool,
}

/// One cluster as a worker sees it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) entry: Arc<ClusterEntry>,
    endpoints: Vec<(Rc<Endpoint>, u32)>,
    balancer: RefCell<Balancer>,
    idle_timeout_ms: u64,
    stats: Arc<ClusterStats>,
}

impl Cluster {
    /// The cluster for worker number `worker`, with what it had as `before`; `known` are all endpoints of the worker.
    pub(crate) fn new(
        entry: Arc<ClusterEntry>,
        before: Option<&Self>,
        known: &mut HashMap<EndpointId, Rc<Endpoint>>,
        shelves: &HashMap<EndpointId, Arc<Shelves>>,
        worker: usize,
    ) -> Self {
        let endpoints: Vec<_> = entry
            .endpoints
            .iter()
            .map(|endpoint| {
                let resolved = &endpoint.resolved;
                let ours = known.entry(resolved.id).or_insert_with(|| {
                    let shelves =
                        shelves.get(&resolved.id).cloned().unwrap_or_else(|| Arc::new(Shelves::new(0)));
                    Rc::new(Endpoint {
                        id: resolved.id,
                        name: resolved.name.clone(),
                        address: resolved.address.clone(),
                        stats: Arc::clone(&endpoint.stats[worker]),
                        health: Arc::clone(&resolved.health),
                        in_flight: Cell::new(0),
                        pool: Pool::new(shelves, worker),
                    })
                });
                (Rc::clone(ours), resolved.weight)
            })
            .collect();
        let balancer = match before {
            Some(before) if before.entry.config.policy == entry.config.policy => {
                let index_before = |id| before.endpoints.iter().position(|(endpoint, _)| endpoint.id == id);
                let kept: Vec<_> = endpoints.iter().map(|(endpoint, _)| index_before(endpoint.id)).collect();
                let mut balancer = before.balancer.borrow().clone();
                balancer.carry_over(&kept);
                balancer
            }
            Some(_) | None => Balancer::new(entry.config.policy, worker),
        };
        let idle_timeout_ms = entry.config.pool.idle_timeout.as_millis() as u64;
        let stats = Arc::clone(&entry.stats[worker]);
        Self { entry, endpoints, balancer: RefCell::new(balancer), idle_timeout_ms, stats }
    }

    /// The endpoint for the next try of an exchange, with its index; none if all are down or tried.
    pub(crate) fn pick(&self, tried: &Tried) -> Option<(usize, InFlight)> {
        let index = self.balancer.borrow_mut().pick(&Candidates(&self.endpoints), tried)?;
        Some((index, InFlight::new(Rc::clone(&self.endpoints[index].0))))
    }

    /// The endpoint with this index, for another connection to it.
    pub(crate) fn at(&self, index: usize) -> Option<(usize, InFlight)> {
        self.endpoints.get(index).map(|(endpoint, _)| (index, InFlight::new(Rc::clone(endpoint))))
    }

    /// This worker's counters of the cluster.
    pub(crate) fn stats(&self) -> &ClusterStats {
        &self.stats
    }

    /// Takes an idle connection to `endpoint`, of this worker or of another.
    pub(crate) fn take_idle(&self, endpoint: &Endpoint) -> Option<Stream> {
        let search = endpoint.pool.take(now_ms(), self.idle_timeout_ms);
        endpoint.stats.pool_stale.add(search.stale);
        let Some(taken) = search.found else {
            endpoint.stats.pool_misses.increment();
            return None;
        };
        if taken.from_another {
            endpoint.stats.pool_takes.increment();
        } else {
            endpoint.stats.pool_hits.increment();
        }
        Some(taken.stream)
    }

    /// Keeps a connection on which a whole exchange has ended cleanly.
    pub(crate) fn keep_idle(&self, endpoint: &Endpoint, stream: Stream) {
        endpoint.pool.put(stream, now_ms(), self.entry.config.pool.idle_per_endpoint as usize);
        endpoint.stats.pool_idle.set(endpoint.pool.idle() as u64);
    }

    /// Closes idle connections that are dead or too old.
    pub(crate) fn sweep(&self) {
        for (endpoint, _) in &self.endpoints {
            let closed = endpoint.pool.sweep(now_ms(), self.idle_timeout_ms);
            endpoint.stats.pool_stale.add(closed);
            endpoint.stats.pool_idle.set(endpoint.pool.idle() as u64);
        }
    }
}

/// One exchange at an endpoint: counted while it lives.
#[derive(Debug)]
pub(crate) struct InFlight(Rc<Endpoint>);

impl InFlight {
    fn new(endpoint: Rc<Endpoint>) -> Self {
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
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
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.stats.in_flight.decrement();
    }
}

struct Candidates<'a>(&'a [(Rc<Endpoint>, u32)]);

impl Endpoints for Candidates<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_available(&self, endpoint: usize) -> bool {
        self.0[endpoint].0.health.is_healthy()
    }

    fn in_flight(&self, endpoint: usize) -> u32 {
        self.0[endpoint].0.in_flight.get()
    }

    fn weight(&self, endpoint: usize) -> u32 {
        self.0[endpoint].1
    }
}
