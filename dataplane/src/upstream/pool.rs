//! Idle connections of one endpoint: a LIFO shelf for each worker, from which the others may take when theirs is empty.
//!
//! The newest connection is used first, so that surplus ones grow old at the other end and are closed. Not at once: a
//! burst that needed them is often followed by the next, and a connection that is closed between the two has to be made
//! again, which costs more than a request.
//!
//! A shelf holds leases: its own worker has the connection at once, another worker gets it by post. No locks: each shelf
//! is a work-stealing deque (Chase and Lev, "Dynamic Circular Work-Stealing Deque", 2005).

use std::cell::Cell;
use std::sync::Arc;

use crossbeam_deque::{Steal, Stealer, Worker};
use crossbeam_queue::ArrayQueue;

use crate::io::{Lease, Stream, now};

/// A connection above the limit that nobody has needed for so long is closed.
const SURPLUS_AFTER_MS: u64 = 2_000;

/// When descriptors run short, one in so many connections is closed at a time.
const GIVEN_UP_ONE_IN: usize = 8;

/// An idle connection.
#[derive(Debug)]
struct Idle {
    lease: Lease,
    /// When it became so, in milliseconds of the process's clock.
    since_ms: u64,
    /// How long its endpoint lets it be so.
    idle_ms_max: u32,
}

/// The shelves of all workers for one endpoint.
#[derive(Debug)]
pub(crate) struct Shelves {
    /// Each worker's own end, until that worker takes it.
    unclaimed: Box<[ArrayQueue<Worker<Idle>>]>,
    stealers: Box<[Stealer<Idle>]>,
}

impl Shelves {
    /// Empty shelves for `workers` workers.
    pub(crate) fn new(workers: usize) -> Self {
        let (unclaimed, stealers) = (0..workers)
            .map(|_| {
                let shelf = Worker::new_lifo();
                let stealer = shelf.stealer();
                let slot = ArrayQueue::new(1);
                // A fresh queue of one has room for one.
                let _ = slot.push(shelf);
                (slot, stealer)
            })
            .unzip::<_, _, Vec<_>, Vec<_>>();
        Self { unclaimed: unclaimed.into(), stealers: stealers.into() }
    }
}

/// One worker's view of the shelves.
#[derive(Debug)]
pub(crate) struct Pool {
    own: Worker<Idle>,
    /// No connection on this worker's shelf became idle before that, and no endpoint lets one be so for a shorter time than
    /// that: what is known without a look at them.
    oldest_ms: Cell<u64>,
    shortest_ms: Cell<u32>,
    shelves: Arc<Shelves>,
    worker: usize,
}

/// What was found on a shelf, with how many dead connections were thrown away on the way.
pub(crate) struct Search {
    pub(crate) found: Option<Stream>,
    pub(crate) stale: u64,
}

impl Pool {
    /// The view of worker number `worker`.
    pub(crate) fn new(shelves: Arc<Shelves>, worker: usize) -> Self {
        // A worker that was started again after a panic lost its shelf: it goes on with one of its own.
        let own = shelves.unclaimed.get(worker).and_then(ArrayQueue::pop).unwrap_or_else(Worker::new_lifo);
        Self { own, oldest_ms: Cell::new(u64::MAX), shortest_ms: Cell::new(u32::MAX), shelves, worker }
    }

    /// Connections on this worker's shelf.
    pub(crate) fn idle(&self) -> usize {
        self.own.len()
    }

    /// Takes the newest live connection of this worker. What the origin has closed, what it has sent something on unasked,
    /// and what is older than `idle_timeout_ms`, or than its endpoint allows, is closed on the way.
    pub(crate) fn take(&self, now_ms: u64, idle_timeout_ms: u64) -> Search {
        let mut stale = 0;
        while let Some(idle) = self.own.pop() {
            if let Some(stream) = idle.fresh(now_ms, idle_timeout_ms).and_then(Lease::redeem) {
                return Search { found: Some(stream), stale };
            }
            stale += 1;
        }
        Search { found: None, stale }
    }

    /// Takes the oldest live connection of another worker, on the same terms.
    pub(crate) async fn take_from_others(&self, now_ms: u64, idle_timeout_ms: u64) -> Search {
        let mut stale = 0;
        let asked_ms = self::now_ms();
        for (worker, stealer) in self.shelves.stealers.iter().enumerate() {
            if worker == self.worker {
                continue;
            }
            while let Some(idle) = steal(stealer) {
                let (since_ms, idle_ms_max) = (idle.since_ms, idle.idle_ms_max);
                // The other worker may have taken its time to hand it over.
                let is_fresh = || {
                    let now_ms = now_ms + self::now_ms().saturating_sub(asked_ms);
                    is_within(now_ms, since_ms, idle_timeout_ms, idle_ms_max)
                };
                if let Some(lease) = idle.fresh(now_ms, idle_timeout_ms)
                    && let Some(stream) = lease.claim().await
                    && is_fresh()
                {
                    return Search { found: Some(stream), stale };
                }
                stale += 1;
            }
        }
        Search { found: None, stale }
    }

    /// Whether another worker has something to take.
    pub(crate) fn others_have_some(&self) -> bool {
        let mut others =
            self.shelves.stealers.iter().enumerate().filter(|(worker, _)| *worker != self.worker);
        others.any(|(_, stealer)| !stealer.is_empty())
    }

    /// Puts a connection on this worker's shelf, if it may keep any. There may be more than it may keep for long: as many
    /// as were in use a moment ago.
    pub(crate) fn put(&self, stream: Stream, now_ms: u64, idle_ms_max: u32, most: usize) {
        if most > 0
            && let Some(lease) = stream.lease()
        {
            self.push(Idle { lease, since_ms: now_ms, idle_ms_max });
        }
    }

    fn push(&self, idle: Idle) {
        self.oldest_ms.set(self.oldest_ms.get().min(idle.since_ms));
        self.shortest_ms.set(self.shortest_ms.get().min(idle.idle_ms_max));
        self.own.push(idle);
    }

    /// Whether one on this worker's shelf may be too old. A look into two numbers: under load, when all of them come and go,
    /// a sweep for this reason is as rare as one of them could be idle for so long.
    pub(crate) fn is_due(&self, now_ms: u64, idle_timeout_ms: u64) -> bool {
        let (oldest_ms, shortest_ms) = (self.oldest_ms.get(), self.shortest_ms.get());
        !self.own.is_empty() && !is_within(now_ms, oldest_ms, idle_timeout_ms, shortest_ms)
    }

    /// Closes what is dead or older than `idle_timeout_ms` on this worker's shelf, and what it has above `most` for
    /// longer than a moment; returns how many were stale.
    pub(crate) fn sweep(&self, now_ms: u64, idle_timeout_ms: u64, most: usize) -> u64 {
        let Some(stealer) = self.shelves.stealers.get(self.worker) else { return 0 };
        let (mut stale, count) = (0, self.own.len());
        let surplus = count.saturating_sub(most);
        self.oldest_ms.set(u64::MAX);
        self.shortest_ms.set(u32::MAX);
        // Oldest first, each put back behind the others: after one round the order is as it was.
        for place in 0..count {
            let Some(idle) = steal(stealer) else { break };
            if !idle.is_fresh(now_ms, idle_timeout_ms) || !idle.lease.is_quiet() {
                stale += 1;
            } else if place >= surplus || idle.is_fresh(now_ms, SURPLUS_AFTER_MS) {
                self.push(idle);
            }
        }
        stale
    }

    /// Closes some of the oldest connections on everybody's shelves, for somebody who needs their descriptors more. Those of
    /// other workers go when these turn. Returns how many.
    pub(crate) fn give_up_some(&self) -> usize {
        let give_up = |stealer: &Stealer<Idle>| {
            let some = stealer.len().div_ceil(GIVEN_UP_ONE_IN);
            (0..some).map_while(|_| steal(stealer)).count()
        };
        self.shelves.stealers.iter().map(give_up).sum()
    }
}

/// The worker's clock in milliseconds, as ages on the shelves are counted. Workers tick together to within a tick or two,
/// which is nothing against an idle timeout of seconds.
pub(crate) fn now_ms() -> u64 {
    now() * crate::io::TICK.as_millis() as u64
}

impl Idle {
    fn is_fresh(&self, now_ms: u64, idle_timeout_ms: u64) -> bool {
        is_within(now_ms, self.since_ms, idle_timeout_ms, self.idle_ms_max)
    }

    fn fresh(self, now_ms: u64, idle_timeout_ms: u64) -> Option<Lease> {
        self.is_fresh(now_ms, idle_timeout_ms).then_some(self.lease)
    }
}

/// Whether what is idle since then may be used still.
fn is_within(now_ms: u64, since_ms: u64, idle_timeout_ms: u64, idle_ms_max: u32) -> bool {
    // `u32::MAX` stands for an endpoint that says nothing.
    let idle_ms_max = if idle_ms_max == u32::MAX { u64::MAX } else { idle_ms_max.into() };
    now_ms.saturating_sub(since_ms) <= idle_timeout_ms.min(idle_ms_max)
}

fn steal(stealer: &Stealer<Idle>) -> Option<Idle> {
    loop {
        match stealer.steal() {
            Steal::Success(idle) => return Some(idle),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;
    use crate::io::{Mode, run, turn};

    /// A connected pair: our end, the origin's end.
    fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Stream::adopt(ours.into()).unwrap(), listener.accept().unwrap().0)
    }

    fn shelve(pool: &Pool, since_ms: u64) -> TcpStream {
        shelve_for(pool, since_ms, u32::MAX)
    }

    /// A connection whose endpoint lets it be idle for so long.
    fn shelve_for(pool: &Pool, since_ms: u64, idle_ms_max: u32) -> TcpStream {
        let (stream, origin) = pair();
        pool.put(stream, since_ms, idle_ms_max, usize::MAX);
        origin
    }

    /// Which of `origins` a connection leads to.
    fn origin_of(stream: &Stream, origins: &[TcpStream]) -> usize {
        let ours = SocketAddr::try_from(rustix::net::getsockname(stream).unwrap()).unwrap();
        origins.iter().position(|origin| origin.peer_addr().unwrap() == ours).unwrap()
    }

    /// Runs a test where sockets have a driver.
    fn on_a_worker(test: impl AsyncFnOnce()) {
        run(Mode::Epoll, test()).unwrap();
    }

    #[test]
    fn takes_the_newest_of_its_own_and_the_oldest_of_another() {
        on_a_worker(async || {
            let shelves = Arc::new(Shelves::new(2));
            let [first, second] = [0, 1].map(|worker| Pool::new(Arc::clone(&shelves), worker));
            let origins = [shelve(&first, 1), shelve(&first, 2), shelve(&second, 3)];
            let took =
                |search: Search| origin_of(&search.found.expect("a live connection is there"), &origins);
            assert_eq!(took(second.take(3, 1000)), 2);
            assert!(second.take(3, 1000).found.is_none() && second.others_have_some());
            assert_eq!(took(second.take_from_others(3, 1000).await), 0);
            assert_eq!(took(second.take_from_others(3, 1000).await), 1);
            assert!(second.take_from_others(3, 1000).await.found.is_none() && !second.others_have_some());
        });
    }

    #[test]
    fn never_gives_out_what_is_closed_or_spoken_on_or_old() {
        on_a_worker(async || {
            let pool = Pool::new(Arc::new(Shelves::new(1)), 0);
            let _old = shelve(&pool, 0);
            drop(shelve(&pool, 5000));
            let mut speaking = shelve(&pool, 5000);
            speaking.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").unwrap();
            // Both ends are on the loopback: what was sent or closed has arrived, and the driver hears of it.
            turn().await;
            let search = pool.take(5001, 1000);
            assert!(search.found.is_none());
            assert_eq!(search.stale, 3);
        });
    }

    #[test]
    fn sweep_closes_the_dead_and_keeps_the_order_of_the_living() {
        on_a_worker(async || {
            let pool = Pool::new(Arc::new(Shelves::new(1)), 0);
            let _origins = [shelve(&pool, 10), shelve(&pool, 900), shelve(&pool, 901)];
            drop(shelve(&pool, 902));
            turn().await;
            assert_eq!(pool.sweep(1020, 1000, usize::MAX), 2);
            assert_eq!(pool.idle(), 2);
            assert_eq!(pool.own.pop().unwrap().since_ms, 901);
        });
    }

    #[test]
    fn none_is_used_or_kept_longer_than_its_endpoint_says() {
        on_a_worker(async || {
            let shelves = Arc::new(Shelves::new(2));
            let [first, second] = [0, 1].map(|worker| Pool::new(Arc::clone(&shelves), worker));
            let _origins = [shelve_for(&first, 0, 500), shelve_for(&first, 0, 500)];
            assert!(first.take(500, 90_000).found.is_some(), "to the tick");
            let late = second.take_from_others(501, 90_000).await;
            assert_eq!((late.found.is_none(), late.stale), (true, 1), "another worker heeds it as well");
            let _origins = [shelve_for(&first, 0, 500), shelve_for(&first, 0, 700)];
            assert_eq!((first.take(501, 90_000).found.is_some(), first.idle()), (true, 1));
            assert_eq!((first.take(501, 90_000).stale, first.idle()), (1, 0));
            let _origin = shelve_for(&first, 0, 10_000);
            assert_eq!(first.take(4001, 4000).stale, 1, "nor longer than the config says");
        });
    }

    #[test]
    fn it_is_known_without_a_look_when_a_sweep_can_find_something() {
        on_a_worker(async || {
            let pool = Pool::new(Arc::new(Shelves::new(1)), 0);
            assert!(!pool.is_due(u64::MAX, 0), "nothing is there");
            let _origins = [shelve(&pool, 1000), shelve_for(&pool, 2000, 500)];
            assert!(!pool.is_due(1500, 4000));
            assert!(pool.is_due(1501, 4000), "for all that is known without a look");
            assert_eq!((pool.sweep(1501, 4000, 9), pool.idle()), (0, 2));
            assert_eq!((pool.sweep(2501, 4000, 9), pool.idle()), (1, 1));
            assert!(
                !pool.is_due(5000, 4000) && pool.is_due(5001, 4000),
                "the other one says nothing of its own"
            );
            assert_eq!((pool.sweep(5001, 4000, 9), pool.idle()), (1, 0));
        });
    }

    #[test]
    fn what_a_burst_left_is_kept_for_a_moment_and_what_it_may_keep_for_longer() {
        on_a_worker(async || {
            let pool = Pool::new(Arc::new(Shelves::new(1)), 0);
            let _origins = [0, 10, 20].map(|since_ms| shelve(&pool, since_ms));
            let swept = |now_ms| (pool.sweep(now_ms, 90_000, 1), pool.idle());
            assert_eq!(swept(SURPLUS_AFTER_MS), (0, 3), "the next burst may need them all");
            assert_eq!(swept(SURPLUS_AFTER_MS + 5), (0, 2), "the oldest was not needed for too long");
            assert_eq!(swept(10 * SURPLUS_AFTER_MS), (0, 1), "surplus is no staleness");
            assert_eq!(pool.own.pop().unwrap().since_ms, 20, "the newest is what stays");
        });
    }

    #[test]
    fn the_oldest_of_every_worker_are_given_up_first() {
        on_a_worker(async || {
            let shelves = Arc::new(Shelves::new(2));
            let [first, second] = [0, 1].map(|worker| Pool::new(Arc::clone(&shelves), worker));
            let _origins: Vec<_> = (0..9).map(|since_ms| shelve(&first, since_ms)).collect();
            let mut lone = shelve(&second, 0);
            assert_eq!(first.give_up_some(), 3);
            assert_eq!((first.idle(), second.idle()), (7, 0), "one in eight, and never none");
            assert_eq!(
                first.take(8, 90_000).found.map(|_| first.idle()),
                Some(6),
                "the newest is there still"
            );
            assert_eq!(lone.read(&mut [0]).unwrap(), 0, "what was given up is closed");
        });
    }

    #[test]
    fn who_may_keep_none_keeps_none() {
        on_a_worker(async || {
            let pool = Pool::new(Arc::new(Shelves::new(1)), 0);
            let (stream, _origin) = pair();
            pool.put(stream, 0, u32::MAX, 0);
            assert_eq!(pool.idle(), 0);
        });
    }
}
