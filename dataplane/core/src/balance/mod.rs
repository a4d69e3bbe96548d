//! Balancing: which endpoint of a cluster gets the next exchange. One file per policy; the choice is an enum.
//!
//! All policies keep the same laws, which `tests/balancing.rs` checks over `Policy::ALL`: an endpoint that is
//! unavailable or was tried already is never picked; if any other is there, one is picked; picks are fair within the
//! weights that the policy heeds; the same inputs give the same picks.
//!
//! There is no panic mode. Where no endpoint is available nothing is picked, and the client gets 503 at once, as from
//! HAProxy: requests sent to origins that are known to be down would only take longer to fail.
//!
//! A balancer belongs to one worker, counts with that worker's exchanges only, and shares nothing.

mod least_in_flight;
mod round_robin;
mod weighted_round_robin;

use proto::config::Policy;

use least_in_flight::LeastInFlight;
use round_robin::RoundRobin;
use weighted_round_robin::WeightedRoundRobin;

/// What a policy may know of a cluster's endpoints; each is an index below `len`.
pub trait Endpoints {
    /// How many there are, available or not.
    fn len(&self) -> usize;
    /// Whether an exchange may be sent to this one.
    fn is_available(&self, endpoint: usize) -> bool;
    /// Exchanges that this worker has there now.
    fn in_flight(&self, endpoint: usize) -> u32;
    /// Its share of the load; 0 counts as 1.
    fn weight(&self, endpoint: usize) -> u32;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A policy with its state.
#[derive(Clone, Debug)]
pub enum Balancer {
    /// Each in turn.
    RoundRobin(RoundRobin),
    /// Each in turn, in proportion to its weight.
    WeightedRoundRobin(WeightedRoundRobin),
    /// The fewest exchanges in flight for its weight.
    LeastInFlight(LeastInFlight),
}

impl Balancer {
    /// A balancer that begins `start` picks into its sequence. With the worker's number as `start`, workers that begin
    /// together do not all send their first exchange to the same endpoint.
    pub fn new(policy: Policy, start: usize) -> Self {
        match policy {
            Policy::RoundRobin => Balancer::RoundRobin(RoundRobin::new(start)),
            Policy::WeightedRoundRobin => Balancer::WeightedRoundRobin(WeightedRoundRobin::new(start)),
            Policy::LeastInFlight => Balancer::LeastInFlight(LeastInFlight::new(start)),
        }
    }

    /// Which policy this is.
    pub fn policy(&self) -> Policy {
        match self {
            Balancer::RoundRobin(_) => Policy::RoundRobin,
            Balancer::WeightedRoundRobin(_) => Policy::WeightedRoundRobin,
            Balancer::LeastInFlight(_) => Policy::LeastInFlight,
        }
    }

    /// The endpoint for the next exchange; none if every one is unavailable or tried.
    pub fn pick(&mut self, endpoints: &impl Endpoints, tried: &Tried) -> Option<usize> {
        match self {
            Balancer::RoundRobin(policy) => policy.pick(endpoints, tried),
            Balancer::WeightedRoundRobin(policy) => policy.pick(endpoints, tried),
            Balancer::LeastInFlight(policy) => policy.pick(endpoints, tried),
        }
    }

    /// The endpoints are about to change: `kept[new]` is the index that endpoint `new` had before, none for a new one.
    ///
    /// Not calling it does no harm but that the sequence may stumble once.
    pub fn carry_over(&mut self, kept: &[Option<usize>]) {
        match self {
            Balancer::RoundRobin(policy) => policy.carry_over(kept),
            Balancer::WeightedRoundRobin(policy) => policy.carry_over(kept),
            Balancer::LeastInFlight(policy) => policy.carry_over(kept),
        }
    }
}

/// The endpoints that one exchange has tried already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    endpoints: [u32; Tried::MAX],
    count: usize,
}

impl Tried {
    /// How many are remembered: more tries than this for one exchange would only make an outage worse.
    pub const MAX: usize = 8;

    /// None tried yet.
    pub const NONE: Tried = Tried { endpoints: [0; Tried::MAX], count: 0 };

    /// Remembers one more; above [`Tried::MAX`] the oldest is forgotten.
    pub fn add(&mut self, endpoint: usize) {
        // An index above u32 cannot be: a config does not hold that many endpoints.
        self.endpoints[self.count % Tried::MAX] = u32::try_from(endpoint).unwrap_or(u32::MAX);
        self.count += 1;
    }

    /// Whether this one was tried.
    pub fn contains(&self, endpoint: usize) -> bool {
        self.endpoints[..self.count.min(Tried::MAX)].iter().any(|tried| *tried as usize == endpoint)
    }

    /// How many tries there were.
    pub fn count(&self) -> usize {
        self.count
    }
}

fn may_take(endpoints: &impl Endpoints, tried: &Tried, endpoint: usize) -> bool {
    endpoints.is_available(endpoint) && !tried.contains(endpoint)
}

fn weight(endpoints: &impl Endpoints, endpoint: usize) -> i64 {
    i64::from(endpoints.weight(endpoint).max(1))
}
