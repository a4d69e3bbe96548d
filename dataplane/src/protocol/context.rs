//! What the exchanges of one worker share: the snapshot they are decided by, the clock, request ids, counters.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use dataplane_core::error::FaultKind;
use dataplane_core::h1::{FieldStorage, HeadLimits};
use dataplane_core::limit::Admission;
use dataplane_core::room::Longest;
use dataplane_core::snapshot::{EndpointId, RouteEntry, Snapshot};
use dataplane_core::stats::{Gauge, RouteStats, WorkerStats};
use proto::config::Config;
use quanta::Clock;

use super::ident::RequestId;
use super::ingress::Ingress;
use crate::io::{Ticks, now, reserve_bytes_most, set_bytes_most};
use crate::metrics::access::AccessLog;
use crate::upstream::{Cluster, Pool, Pools, Shelves};

/// Lines about failed exchanges that one worker logs in a second.
const LOG_LINES_MAX: u32 = 10;
/// A second.
const LOG_WINDOW_TICKS: u64 = 100;

/// Between two warnings of one worker that files are short: it stays so for as long as the clients do. 10 s in ticks.
const FILES_WARNING_TICKS: u64 = 1000;
/// Other workers that could make no room are not asked again for so long (200 ms): newcomers are told at once meanwhile.
/// Those that do not even answer are not waited for any longer.
const ASK_AGAIN_TICKS: u64 = 20;

/// With more connections than that a worker that has found every client busy does not look again in the same tick.
const OFTEN_LOOKED_THROUGH: usize = 1024;

/// The last time that other workers were asked to make room.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    at: u64,
    /// What [`Admission::ended`] and [`Admission::looks`] were then.
    ended: u32,
    looks: u32,
}

/// What was done to make room for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Some connections of this worker are about to close.
    Here,
    /// Other workers were asked, and may have some.
    Elsewhere,
    /// Every client is busy, as far as is known.
    Nowhere,
}

/// Everything that a config means to the workers: the snapshot and what outlives it.
#[derive(Debug)]
pub(crate) struct Live {
    /// The config's immutable runtime form.
    pub(crate) snapshot: Arc<Snapshot>,
    /// Idle connections by endpoint, kept as long as an endpoint is named.
    pub(crate) shelves: HashMap<EndpointId, Arc<Shelves>>,
    /// Where finished exchanges are written down; none when the access log is off.
    pub(crate) access: Option<Arc<AccessLog>>,
    /// Exchanges of this generation, by worker.
    pub(crate) exchanges: Box<[Gauge]>,
}

/// One generation of the config as this worker uses it. An exchange keeps the view it began with.
pub(crate) struct View {
    pub(crate) live: Arc<Live>,
    pub(crate) routes: Vec<RouteView>,
    clusters: Vec<Rc<Cluster>>,
    pub(crate) head_limits: HeadLimits,
    pub(crate) request_head_timeout: Ticks,
    pub(crate) request_body_timeout: Ticks,
    pub(crate) keep_alive_timeout: Ticks,
    pub(crate) send_timeout: Ticks,
    worker: usize,
}

/// A route with its deadlines in ticks.
pub(crate) struct RouteView {
    pub(crate) entry: Arc<RouteEntry>,
    pub(crate) cluster: Rc<Cluster>,
    pub(crate) stats: Arc<RouteStats>,
    pub(crate) connect: Ticks,
    pub(crate) first_byte: Ticks,
    pub(crate) idle: Ticks,
    pub(crate) total: Option<Ticks>,
}

impl View {
    fn new(live: Arc<Live>, before: Option<&Self>, pools: &mut Pools, worker: usize) -> Self {
        let snapshot = &live.snapshot;
        let clusters: Vec<Rc<Cluster>> = snapshot
            .clusters
            .iter()
            .map(|cluster| {
                let same_name = |old: &&Rc<Cluster>| old.entry.config.name == cluster.config.name;
                let old = before.and_then(|view| view.clusters.iter().find(same_name));
                if let Some(old) = old.filter(|old| Arc::ptr_eq(&old.entry, cluster)) {
                    return Rc::clone(old);
                }
                let old = old.map(Rc::as_ref);
                Rc::new(Cluster::new(Arc::clone(cluster), old, pools, &live.shelves, worker))
            })
            .collect();
        let route_view = |route: &Arc<RouteEntry>| RouteView {
            cluster: Rc::clone(&clusters[route.cluster]),
            stats: Arc::clone(&route.stats[worker]),
            connect: route.config.timeouts.connect.into(),
            first_byte: route.config.timeouts.first_byte.into(),
            idle: route.config.timeouts.idle.into(),
            total: route.config.timeouts.total.map(Ticks::from),
            entry: Arc::clone(route),
        };
        let limits = &snapshot.config.limits;
        Self {
            routes: snapshot.routes.iter().map(route_view).collect(),
            head_limits: HeadLimits::from(limits),
            request_head_timeout: limits.request_head_timeout.into(),
            request_body_timeout: limits.request_body_timeout.into(),
            keep_alive_timeout: limits.keep_alive_timeout.into(),
            send_timeout: limits.send_timeout.into(),
            clusters,
            live: Arc::clone(&live),
            worker,
        }
    }

    /// Counts an exchange of this generation in.
    pub(crate) fn enter(&self) {
        self.live.exchanges[self.worker].increment();
    }

    /// Counts it out.
    pub(crate) fn leave(&self) {
        self.live.exchanges[self.worker].decrement();
    }
}

/// What the exchanges of one worker share.
pub(crate) struct Context {
    worker: usize,
    all_stats: Arc<[Arc<WorkerStats>]>,
    admission: Arc<Admission>,
    view: RefCell<Option<Rc<View>>>,
    pools: RefCell<Pools>,
    ingresses: RefCell<Vec<Rc<Ingress>>>,
    /// Pools of endpoints that no snapshot names any more, while exchanges of earlier views go on.
    unnamed: RefCell<Vec<Weak<Pool>>>,
    /// Those that the current snapshot does not have any more, while connections of theirs go on.
    retired: RefCell<Vec<Rc<Ingress>>>,
    draining: Cell<bool>,
    /// Asks all other workers to make room.
    ask_others: Box<dyn Fn()>,
    /// When they were asked last.
    asked: Cell<Option<Asked>>,
    /// The last tick in which this worker found no silent client.
    all_busy: Cell<Option<u64>>,
    /// From this tick on another warning about files may be written, and how many were left out.
    files_warning: Cell<(u64, u64)>,
    /// The second that the last line was logged in, and how many lines there were for it.
    logged: Cell<(u64, u32)>,
    /// Lines that were not logged, and of which the log does not know yet.
    left_out: Cell<u64>,
    clock: Clock,
    ids: RequestIds,
    /// Lent to the parser for the length of one call.
    pub(crate) fields: RefCell<FieldStorage>,
    /// Where a head is encoded before it goes into a buffer.
    pub(crate) scratch: RefCell<Vec<u8>>,
}

impl Context {
    /// The context of worker number `worker`, before its first snapshot.
    pub(crate) fn new(
        worker: usize,
        all_stats: Arc<[Arc<WorkerStats>]>,
        admission: Arc<Admission>,
        ask_others: Box<dyn Fn()>,
    ) -> Self {
        Self {
            worker,
            all_stats,
            admission,
            view: RefCell::new(None),
            pools: RefCell::default(),
            ingresses: RefCell::default(),
            unnamed: RefCell::default(),
            retired: RefCell::default(),
            draining: Cell::new(false),
            ask_others,
            asked: Cell::new(None),
            all_busy: Cell::new(None),
            files_warning: Cell::new((0, 0)),
            logged: Cell::new((0, 0)),
            left_out: Cell::new(0),
            clock: Clock::new(),
            ids: RequestIds::new(),
            fields: RefCell::new(FieldStorage::default()),
            scratch: RefCell::new(vec![0; crate::io::HEAD_BYTES_MAX]),
        }
    }

    /// Serves by `live` from the next exchange on.
    pub(crate) fn apply(&self, live: Arc<Live>) {
        let mut pools = self.pools.borrow_mut();
        let before = self.view();
        let view = View::new(live, before.as_deref(), &mut pools, self.worker);
        self.bound_memory(&view.live.snapshot.config);
        let unnamed = pools.extract_if(|id, _| !view.live.shelves.contains_key(id));
        self.unnamed.borrow_mut().extend(unnamed.map(|(_, pool)| Rc::downgrade(&pool)));
        drop(pools);
        self.empty_unnamed();
        if let Some(before) = before {
            self.retire(&view.live.snapshot, &before);
        }
        self.view.replace(Some(Rc::new(view)));
    }

    /// Sets the most that this worker lends to its exchanges, and says what that comes to.
    fn bound_memory(&self, config: &Config) {
        set_bytes_most(usize::try_from(config.limits.worker_memory_bytes).unwrap_or(usize::MAX));
        let stats = self.stats();
        stats.exchange_bytes_max.set(super::exchange::bytes_max(config) as u64);
        stats.reserve_bytes_max.set(reserve_bytes_most() as u64);
    }

    /// Lets each listener follow `snapshot`; those that it does not have stay with the view `before`.
    fn retire(&self, snapshot: &Snapshot, before: &Rc<View>) {
        self.ingresses.borrow_mut().retain(|ingress| match snapshot.listener(ingress.name()) {
            Some(index) => {
                ingress.follow(index);
                true
            }
            None => {
                ingress.retire(now(), Rc::clone(before));
                self.retired.borrow_mut().push(Rc::clone(ingress));
                false
            }
        });
    }

    /// The listener with this name, as known to this worker: of the current snapshot, or one that was just removed.
    pub(crate) fn ingress(&self, name: &str) -> Option<Rc<Ingress>> {
        let named = |ingress: &&Rc<Ingress>| ingress.name() == name;
        if let Some(ingress) = self.ingresses.borrow().iter().find(named) {
            return Some(Rc::clone(ingress));
        }
        let view = self.view()?;
        let Some(index) = view.live.snapshot.listener(name) else {
            return self.retired.borrow().iter().rfind(named).cloned();
        };
        let stats = Arc::clone(&view.live.snapshot.listeners[index].stats[self.worker]);
        let ingress = Rc::new(Ingress::new(name, index, stats));
        self.ingresses.borrow_mut().push(Rc::clone(&ingress));
        Some(ingress)
    }

    /// The view that a new exchange is decided by; none before the first snapshot.
    pub(crate) fn view(&self) -> Option<Rc<View>> {
        self.view.borrow().clone()
    }

    /// This worker's counters.
    pub(crate) fn stats(&self) -> &WorkerStats {
        &self.all_stats[self.worker]
    }

    /// The node's limits.
    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// Lets a client in, if there is a place and a file for its request.
    #[must_use]
    pub(crate) fn try_connection(&self) -> bool {
        let in_flight = || self.all_stats.iter().map(|stats| stats.requests_in_flight.value()).sum();
        self.admission.try_connection(in_flight)
    }

    /// Why a client that was not let in was not.
    pub(crate) fn refusal(&self) -> FaultKind {
        let view = self.view.borrow();
        let wanted = view.as_ref().map_or(0, |view| view.live.snapshot.config.limits.connections);
        // Below its own limit the node is full for want of files.
        if self.admission.connections() < wanted { FaultKind::OutOfFiles } else { FaultKind::Overloaded }
    }

    /// Makes room for another connection: ends those whose clients have been silent for longest, here or, if there are
    /// none, on the other workers. They close within the next turns.
    pub(crate) fn make_room(&self) -> Room {
        if self.end_longest_silent() {
            return Room::Here;
        }
        let others = self.all_stats.len() as u32 - 1;
        if others == 0 {
            return Room::Nowhere;
        }
        let (ended, looks) = (self.admission.ended(), self.admission.looks());
        if let Some(asked) = self.asked.get().filter(|asked| now() < asked.at + ASK_AGAIN_TICKS) {
            let have_all_looked = looks.wrapping_sub(asked.looks) >= others;
            if ended == asked.ended {
                return if have_all_looked { Room::Nowhere } else { Room::Elsewhere };
            }
            if !have_all_looked {
                return Room::Elsewhere;
            }
        }
        self.asked.set(Some(Asked { at: now(), ended, looks }));
        (self.ask_others)();
        Room::Elsewhere
    }

    /// Does what another worker has asked for.
    pub(crate) fn make_room_for_others(&self) {
        self.end_longest_silent();
        self.admission.note_look();
    }

    /// Ends connections of this worker for others, a few at a time; false if every client is busy.
    fn end_longest_silent(&self) -> bool {
        let (now, connections) = (now(), self.stats().connections.value() as usize);
        if self.all_busy.get() == Some(now) && connections > OFTEN_LOOKED_THROUGH {
            return false;
        }
        let ingresses = self.ingresses.borrow();
        let mut longest = Longest::of(connections);
        for (index, ingress) in ingresses.iter().enumerate() {
            ingress.offer_silent(now, |rank, place| longest.offer(rank, (index, place)));
        }
        let ended = longest.into_items().map(|(index, place)| ingresses[index].displace(place)).count();
        self.admission.note_ended(ended as u32);
        self.all_busy.set((ended == 0).then_some(now));
        ended > 0
    }

    /// Whether files are so short that it is worth a warning now; with how many times it was not since the last one.
    pub(crate) fn may_warn_of_files(&self) -> Option<u64> {
        let (from, left_out) = self.files_warning.get();
        if now() < from {
            self.files_warning.set((from, left_out + 1));
            return None;
        }
        self.files_warning.set((now() + FILES_WARNING_TICKS, 0));
        Some(left_out)
    }

    /// From now on connections are closed after their exchange.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
    }

    /// From now on they are kept again.
    pub(crate) fn undrain(&self) {
        self.draining.set(false);
    }

    /// Whether connections are closed after their exchange.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// A fine time stamp, only good for [`Context::nanoseconds`].
    pub(crate) fn stamp(&self) -> u64 {
        self.clock.raw()
    }

    /// The time between two stamps.
    pub(crate) fn nanoseconds(&self, from: u64, to: u64) -> u64 {
        self.clock.delta_as_nanos(from, to)
    }

    /// 32 hexadecimal digits that no other request has.
    pub(crate) fn request_id(&self) -> RequestId {
        RequestId::Ours(self.ids.next())
    }

    /// The worker with the fewest exchanges, if this one has more than `margin` more.
    pub(crate) fn idler_worker(&self, margin: u64) -> Option<usize> {
        if self.all_stats.len() < 2 {
            return None;
        }
        let load = |stats: &WorkerStats| stats.requests_in_flight.value();
        let ours = load(self.stats());
        let (other, least) =
            self.all_stats.iter().map(|stats| load(stats)).enumerate().min_by_key(|(_, load)| *load)?;
        (other != self.worker && ours > least + margin).then_some(other)
    }

    /// Whether another line of the log is within what one worker writes in a second; the rest is in the metrics, and the
    /// log says how many lines that were.
    pub(crate) fn may_log(&self) -> bool {
        let second = now() / LOG_WINDOW_TICKS;
        let (window, lines) = self.logged.get();
        if window != second {
            self.tell_left_out();
        }
        let lines = if window == second { lines + 1 } else { 1 };
        self.logged.set((second, lines));
        let may_log = lines <= LOG_LINES_MAX;
        if !may_log {
            self.left_out.set(self.left_out.get() + 1);
            self.stats().log_lines_left_out.increment();
        }
        may_log
    }

    /// Logs how many lines were left out since this was said last, if any were.
    fn tell_left_out(&self) {
        let lines = self.left_out.take();
        if lines > 0 {
            tracing::warn!(worker = self.worker, lines, "lines about failed exchanges were left out");
        }
    }

    /// Ends connections of either side that are of no more use, and those whose clients have been silent for too long.
    /// Called each tick.
    pub(crate) fn end_unused(&self) {
        self.empty_unnamed();
        let view = self.view.borrow();
        let keep_alive = view.as_ref().map_or(Ticks::of_millis(1), |view| view.keep_alive_timeout);
        let (now, is_draining) = (now(), self.is_draining());
        self.retired.borrow().iter().for_each(|ingress| ingress.end_silent(now, keep_alive, true));
        self.ingresses.borrow().iter().for_each(|ingress| ingress.end_silent(now, keep_alive, is_draining));
    }

    /// Closes idle upstream connections that are dead or too old, forgets listeners that are gone, and says what the log
    /// has left out.
    pub(crate) fn sweep(&self) {
        // Where no further exchange fails, nobody else says it.
        self.tell_left_out();
        let is_needed = |ingress: &Rc<Ingress>| Rc::strong_count(ingress) > 1 || !ingress.is_forgotten(now());
        self.retired.borrow_mut().retain(is_needed);
        let Some(view) = self.view() else { return };
        view.clusters.iter().for_each(|cluster| cluster.sweep());
    }

    /// Closes idle upstream connections that are too old, and looks at none where none can be.
    pub(crate) fn sweep_due(&self) {
        let Some(view) = self.view() else { return };
        view.clusters.iter().for_each(|cluster| cluster.sweep_due());
    }

    /// Descriptors have run out: closes some idle upstream connections, so that there are others soon. False if there is
    /// none.
    pub(crate) fn give_up_some_idle(&self) -> bool {
        let Some(view) = self.view() else { return false };
        // Each cluster is asked, also behind one that had some.
        view.clusters.iter().filter(|cluster| cluster.give_up_some_idle()).count() > 0
    }

    /// Closes idle connections to endpoints that are not used any more; an exchange that ends late may bring another one.
    fn empty_unnamed(&self) {
        self.unnamed.borrow_mut().retain(|pool| {
            let pool = pool.upgrade();
            pool.inspect(|pool| _ = pool.sweep(u64::MAX, 0, 0)).is_some()
        });
    }
}

/// Request ids: a random start per worker, then a permutation of a counter, so that they neither repeat nor tell how
/// many there were (SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Debug)]
struct RequestIds {
    /// The first half of each: this worker's digits.
    high: [u8; 16],
    low: Cell<u64>,
}

impl RequestIds {
    fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        let random = |salt: u64| RandomState::new().hash_one((salt, now()));
        Self { high: hexadecimal(random(1)), low: Cell::new(random(2)) }
    }

    fn next(&self) -> [u8; 32] {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let state = self.low.get().wrapping_add(STEP);
        self.low.set(state);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        let mut digits = [0; 32];
        digits[..16].copy_from_slice(&self.high);
        digits[16..].copy_from_slice(&hexadecimal(mixed));
        digits
    }
}

fn hexadecimal(number: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|place| DIGITS[(number >> (60 - 4 * place)) as usize & 0xF])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_hexadecimal_and_do_not_repeat() {
        let ids = RequestIds::new();
        let seen: std::collections::HashSet<_> = (0..10_000).map(|_| ids.next()).collect();
        assert_eq!(seen.len(), 10_000);
        assert!(seen.iter().flatten().all(u8::is_ascii_hexdigit));
    }
}
