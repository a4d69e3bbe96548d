//! Endpoints: where they are, whether they are healthy, and what a worker has in flight at each.
//!
//! [`EndpointHealth`] is shared: the one prober writes, all workers read. Everything else belongs to one worker. It
//! does not probe (`health` says when to), does not connect, and keeps no idle connections (`upstream` does).

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use proto::config::Policy;

use crate::balance::{Balancer, Endpoints, Tried};

/// Whether an endpoint is healthy, as one prober last said and all workers read.
///
/// An endpoint is healthy until it is proven otherwise. Loads and stores are relaxed: a worker that hears of a change
/// a moment late has only one exchange more to retry.
#[derive(Debug, Default)]
pub struct EndpointHealth(AtomicU8);

const HEALTHY: u8 = 0;
const UNHEALTHY: u8 = 1;

impl EndpointHealth {
    /// Healthy.
    pub fn new() -> Self {
        EndpointHealth(AtomicU8::new(HEALTHY))
    }

    /// Whether exchanges may be sent to it.
    pub fn is_healthy(&self) -> bool {
        self.0.load(Ordering::Relaxed) == HEALTHY
    }

    /// Says how it is; only the prober may.
    pub fn set_healthy(&self, is_healthy: bool) {
        self.0.store(if is_healthy { HEALTHY } else { UNHEALTHY }, Ordering::Relaxed);
    }
}

/// Where an endpoint is, names resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl std::fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EndpointAddress::Ip(address) => address.fmt(f),
            EndpointAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Names an endpoint over reloads: the same for the same cluster name and address, in any process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u64);

impl EndpointId {
    /// FNV-1a over the cluster's name and the address.
    pub fn of(cluster: &str, address: &EndpointAddress) -> Self {
        let address = address.to_string();
        // 0xff is in no UTF-8 text, so no two pairs run together to the same bytes.
        let bytes = cluster.bytes().chain([0xff]).chain(address.bytes());
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        EndpointId(bytes.fold(0xcbf2_9ce4_8422_2325, mix))
    }
}

/// One endpoint of a snapshot: an address that a configured endpoint resolved to.
#[derive(Clone, Debug)]
pub struct ResolvedEndpoint {
    /// The same over reloads.
    pub id: EndpointId,
    /// Where it is.
    pub address: EndpointAddress,
    /// The address as written in the config, for `Host`, logs and metrics.
    pub name: String,
    /// For weighted policies.
    pub weight: u32,
    /// What the prober says of it.
    pub health: Arc<EndpointHealth>,
}

impl ResolvedEndpoint {
    /// Equal in everything, and watched through the same health flag.
    pub fn is_same(&self, other: &Self) -> bool {
        let ResolvedEndpoint { id, address, name, weight, health } = other;
        self.id == *id
            && self.address == *address
            && self.name == *name
            && self.weight == *weight
            && Arc::ptr_eq(&self.health, health)
    }
}

/// Exchanges that one worker has in flight at one endpoint. An exchange keeps the `Rc`, so that it can say that it
/// has ended after the cluster's endpoints have changed.
#[derive(Debug, Default)]
pub struct Load(Cell<u32>);

impl Load {
    /// An exchange was sent there.
    pub fn begin(&self) {
        self.0.set(self.0.get() + 1);
    }

    /// It has ended, one way or another.
    pub fn end(&self) {
        debug_assert!(self.0.get() > 0, "an exchange ended that had not begun");
        self.0.set(self.0.get().saturating_sub(1));
    }

    /// Exchanges in flight.
    pub fn in_flight(&self) -> u32 {
        self.0.get()
    }
}

/// What a worker knows of one endpoint.
#[derive(Clone, Debug)]
pub struct EndpointState {
    id: EndpointId,
    weight: u32,
    health: Arc<EndpointHealth>,
    load: Rc<Load>,
}

impl EndpointState {
    /// Which one it is.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Whether exchanges may be sent to it.
    pub fn is_available(&self) -> bool {
        self.health.is_healthy()
    }

    /// This worker's exchanges there.
    pub fn load(&self) -> &Rc<Load> {
        &self.load
    }
}

/// What a worker knows of a cluster: its endpoints, and whose turn it is. A clone shares the counts of exchanges.
#[derive(Clone, Debug)]
pub struct ClusterState {
    worker: usize,
    balancer: Balancer,
    endpoints: Vec<EndpointState>,
}

impl ClusterState {
    /// The state of a cluster that `worker` has not seen before.
    pub fn new<'a>(
        policy: Policy,
        worker: usize,
        endpoints: impl IntoIterator<Item = &'a ResolvedEndpoint>,
    ) -> Self {
        let mut state =
            ClusterState { worker, balancer: Balancer::new(policy, worker), endpoints: Vec::new() };
        state.endpoints = state.states_of(endpoints);
        state
    }

    /// Takes over a changed list of endpoints. Those that stay keep their count of exchanges in flight, and the
    /// balancer goes on where it was unless the policy is another. Indices from before mean nothing afterwards.
    pub fn update<'a>(&mut self, policy: Policy, endpoints: impl IntoIterator<Item = &'a ResolvedEndpoint>) {
        let changed = self.states_of(endpoints);
        if policy == self.balancer.policy() {
            let kept: Vec<Option<usize>> = changed.iter().map(|state| self.position(state.id)).collect();
            self.balancer.carry_over(&kept);
        } else {
            self.balancer = Balancer::new(policy, self.worker);
        }
        self.endpoints = changed;
    }

    /// The endpoint for the next exchange; none if every one is unavailable or tried.
    pub fn pick(&mut self, tried: &Tried) -> Option<usize> {
        self.balancer.pick(&self.endpoints, tried)
    }

    /// An endpoint that `pick` named.
    pub fn endpoint(&self, endpoint: usize) -> Option<&EndpointState> {
        self.endpoints.get(endpoint)
    }

    /// All endpoints, in the order of the snapshot.
    pub fn endpoints(&self) -> &[EndpointState] {
        &self.endpoints
    }

    fn position(&self, id: EndpointId) -> Option<usize> {
        self.endpoints.iter().position(|state| state.id == id)
    }

    fn states_of<'a>(&self, resolved: impl IntoIterator<Item = &'a ResolvedEndpoint>) -> Vec<EndpointState> {
        let load = |id| self.position(id).map(|at| Rc::clone(&self.endpoints[at].load)).unwrap_or_default();
        let state = |endpoint: &ResolvedEndpoint| EndpointState {
            id: endpoint.id,
            weight: endpoint.weight,
            health: Arc::clone(&endpoint.health),
            load: load(endpoint.id),
        };
        resolved.into_iter().map(state).collect()
    }
}

impl Endpoints for Vec<EndpointState> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn is_available(&self, endpoint: usize) -> bool {
        self[endpoint].is_available()
    }

    fn in_flight(&self, endpoint: usize) -> u32 {
        self[endpoint].load.in_flight()
    }

    fn weight(&self, endpoint: usize) -> u32 {
        self[endpoint].weight
    }
}
