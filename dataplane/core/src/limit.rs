//! Limits: how many connections and exchanges the node takes on.
//!
//! [`Limit`] is exact for the whole process, so it is one atomic number that all workers share. Connections touch it
//! when they open and close, which is rare. Exchanges touch theirs only where the config has `limits.requests`;
//! without it a request costs no shared write. Shares per worker would cost less, but turn requests away while other
//! workers are idle, which no operator expects of `requests = 10`.
//!
//! No guards: what was admitted the driver gives back, in the one place where it counts the end. Rates are not here.

use std::sync::atomic::{AtomicU32, Ordering};

use proto::config::Limits;

/// At most so many at once, over all workers. On a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
pub struct Limit {
    in_use: AtomicU32,
    max: AtomicU32,
}

impl Limit {
    /// None in use.
    pub fn new(max: u32) -> Self {
        Limit { in_use: AtomicU32::new(0), max: AtomicU32::new(max) }
    }

    /// Takes one, if there are fewer than the most. Who gets true calls [`Limit::release`] once.
    #[must_use]
    pub fn try_acquire(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let one_more = |in_use: u32| (in_use < max).then(|| in_use + 1);
        // The number guards no other memory, so relaxed is enough.
        self.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Gives one back.
    pub fn release(&self) {
        let before = self.in_use.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "gave back more than was taken");
    }

    /// Sets another maximum. What is in use above it stays until it is given back.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// How many are in use.
    pub fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// The most there may be.
    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }
}

/// Who gets in: one for the process, shared by all workers.
#[derive(Debug)]
pub struct Admission {
    connections: Limit,
    requests: Limit,
}

/// An exchange was admitted; goes back through [`Admission::release_request`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an exchange that is not given back is in flight for ever"]
pub struct RequestPermit {
    /// Whether it counts: it does not if there was no limit when it was admitted.
    is_counted: bool,
}

impl RequestPermit {
    /// Whether it counts against a limit, so that another exchange may be waiting for it.
    pub fn is_counted(&self) -> bool {
        self.is_counted
    }
}

/// `Limit::max` of requests where the config has no limit.
const UNLIMITED: u32 = u32::MAX;

impl Admission {
    /// By the node's limits.
    pub fn new(limits: &Limits) -> Self {
        Admission {
            connections: Limit::new(limits.connections),
            requests: Limit::new(limits.requests.unwrap_or(UNLIMITED)),
        }
    }

    /// Other limits from now on; nothing that was admitted is cut.
    pub fn reconfigure(&self, limits: &Limits) {
        self.connections.set_max(limits.connections);
        self.requests.set_max(limits.requests.unwrap_or(UNLIMITED));
    }

    /// Lets a connection in; false: it is answered 503 and closed.
    #[must_use]
    pub fn try_connection(&self) -> bool {
        self.connections.try_acquire()
    }

    /// A connection that was let in has closed.
    pub fn release_connection(&self) {
        self.connections.release();
    }

    /// Lets an exchange in; none: it is answered 503 with `Retry-After`.
    pub fn try_request(&self) -> Option<RequestPermit> {
        if self.requests.max() == UNLIMITED {
            return Some(RequestPermit { is_counted: false });
        }
        self.requests.try_acquire().then_some(RequestPermit { is_counted: true })
    }

    /// An exchange that was let in has ended.
    pub fn release_request(&self, permit: RequestPermit) {
        if permit.is_counted {
            self.requests.release();
        }
    }

    /// Open connections.
    pub fn connections(&self) -> u32 {
        self.connections.in_use()
    }
}
