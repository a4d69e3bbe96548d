//! Limits: how many connections and exchanges the node takes on.
//!
//! [`Limit`] is exact for the whole process, so it is one atomic number that all workers share. Connections touch it
//! when they open and close, which is rare. Exchanges touch theirs only where the config has `limits.requests`;
//! without it a request costs no shared write. Shares per worker would cost less, but turn requests away while other
//! workers are idle, which no operator expects of `requests = 10`.
//!
//! No guards: what was admitted the driver gives back, in the one place where it counts the end. Rates are not here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proto::config::Limits;

use crate::files::Files;

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
    /// Files that clients and origins may have open together.
    traffic_files: AtomicU32,
    /// The first number of a file that no worker uses.
    ceiling: AtomicU32,
    /// Connections that were ended for newcomers.
    ended: AtomicU32,
    /// Times that a worker has looked for some because another one had asked it.
    looks: AtomicU32,
}

/// A connection that was let in and has not begun: it gives its place back unless it does.
#[derive(Debug)]
#[must_use = "a place that is dropped is given back"]
pub struct ConnectionPermit(Option<Arc<Admission>>);

impl ConnectionPermit {
    /// For the place that [`Admission::try_connection`] has given.
    pub fn taken(admission: Arc<Admission>) -> Self {
        ConnectionPermit(Some(admission))
    }

    /// The connection begins: from now on its end gives the place back.
    pub fn begin(mut self) {
        self.0 = None;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some(admission) = self.0.take() {
            admission.release_connection();
        }
    }
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
    /// By the node's limits, with as many files as they want.
    pub fn new(limits: &Limits) -> Self {
        let files = Files::unlimited(limits.connections);
        Admission {
            connections: Limit::new(limits.connections),
            requests: Limit::new(limits.requests.unwrap_or(UNLIMITED)),
            traffic_files: AtomicU32::new(files.traffic()),
            ceiling: AtomicU32::new(files.ceiling()),
            ended: AtomicU32::new(0),
            looks: AtomicU32::new(0),
        }
    }

    /// Other limits from now on, with the files that they were fitted to; nothing that was admitted is cut.
    pub fn reconfigure(&self, limits: &Limits, files: &Files) {
        self.connections.set_max(files.connections.min(limits.connections));
        self.requests.set_max(limits.requests.unwrap_or(UNLIMITED));
        self.traffic_files.store(files.traffic(), Ordering::Relaxed);
        self.ceiling.store(files.ceiling(), Ordering::Relaxed);
    }

    /// Lets a connection in; false: the node is full. Whoever gets true gives it back by
    /// [`Admission::release_connection`].
    ///
    /// A client that has a request needs a second file, for its origin. So a node whose clients are all busy takes no
    /// more than half as many of them as one whose clients are silent; what it has let in can be served.
    /// `requests_in_flight`, of the whole node, is asked for only where the files could be too few.
    #[must_use]
    pub fn try_connection(&self, requests_in_flight: impl FnOnce() -> u64) -> bool {
        if !self.connections.try_acquire() {
            return false;
        }
        let files = u64::from(self.traffic_files.load(Ordering::Relaxed));
        let clients = u64::from(self.connections.in_use());
        // The newcomer will have a request, too.
        let is_ample = 2 * clients <= files;
        let is_admitted = is_ample || clients + requests_in_flight() < files;
        if !is_admitted {
            self.connections.release();
        }
        is_admitted
    }

    /// The first number of a file that no worker uses: it is kept for the control thread.
    pub fn ceiling(&self) -> u32 {
        self.ceiling.load(Ordering::Relaxed)
    }

    /// So many connections are being ended for newcomers.
    pub fn note_ended(&self, count: u32) {
        self.ended.fetch_add(count, Ordering::Relaxed);
    }

    /// How many connections were ended for newcomers, by all workers: a worker that has asked the others for room knows
    /// by this number whether they could make some.
    pub fn ended(&self) -> u32 {
        self.ended.load(Ordering::Relaxed)
    }

    /// A worker has done what another one asked it for.
    pub fn note_look(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a worker has done so: one that has asked knows by this number when all others have.
    pub fn looks(&self) -> u32 {
        self.looks.load(Ordering::Relaxed)
    }

    /// The most connections there may be.
    pub fn connections_max(&self) -> u32 {
        self.connections.max()
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
