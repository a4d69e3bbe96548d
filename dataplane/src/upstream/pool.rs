//! Idle connections of one endpoint: a LIFO shelf for each worker, from which the others may take when theirs is empty.
//!
//! The newest connection is used first, so that surplus ones grow old at the other end and are closed. A shelf holds
//! bare descriptors with no operation in flight, so any worker can go on with them. No locks: each shelf is a
//! work-stealing deque (Chase and Lev, "Dynamic Circular Work-Stealing Deque", 2005).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_deque::{Steal, Stealer, Worker};
use crossbeam_queue::ArrayQueue;

use crate::io::{Stream, now};
use crate::sys::socket::{self, Peek};

/// An idle connection and when it became so, in milliseconds of the process's clock.
#[derive(Debug)]
struct Idle {
    fd: OwnedFd,
    since_ms: u64,
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
    shelves: Arc<Shelves>,
    worker: usize,
}

/// A connection that came from a shelf.
pub(crate) struct Taken {
    pub(crate) stream: Stream,
    /// It had been put there by another worker.
    pub(crate) from_another: bool,
}

/// What was found on the shelves, with how many dead connections were thrown away on the way.
pub(crate) struct Search {
    pub(crate) found: Option<Taken>,
    pub(crate) stale: u64,
}

impl Pool {
    /// The view of worker number `worker`.
    pub(crate) fn new(shelves: Arc<Shelves>, worker: usize) -> Self {
        // A worker that was started again after a panic lost its shelf: it goes on with one of its own.
        let own = shelves.unclaimed.get(worker).and_then(ArrayQueue::pop).unwrap_or_else(Worker::new_lifo);
        Self { own, shelves, worker }
    }

    /// Connections on this worker's shelf.
    pub(crate) fn idle(&self) -> usize {
        self.own.len()
    }

    /// Takes the newest live connection of this worker, else the oldest live one of another.
    /// What the origin has closed, what it has sent something on unasked, and what is older than `idle_timeout_ms`
    /// is closed on the way.
    pub(crate) fn take(&self, now_ms: u64, idle_timeout_ms: u64) -> Search {
        let mut stale = 0;
        let fresh = |idle: Idle, stale: &mut u64| {
            let usable = is_usable(&idle, now_ms, idle_timeout_ms);
            *stale += u64::from(!usable);
            usable.then(|| Stream::adopt(idle.fd)).and_then(io::Result::ok)
        };
        while let Some(idle) = self.own.pop() {
            if let Some(stream) = fresh(idle, &mut stale) {
                return Search { found: Some(Taken { stream, from_another: false }), stale };
            }
        }
        for (worker, stealer) in self.shelves.stealers.iter().enumerate() {
            if worker == self.worker || stealer.is_empty() {
                continue;
            }
            while let Some(idle) = steal(stealer) {
                if let Some(stream) = fresh(idle, &mut stale) {
                    return Search { found: Some(Taken { stream, from_another: true }), stale };
                }
            }
        }
        Search { found: None, stale }
    }

    /// Puts a connection on this worker's shelf, unless `most` are there already: then it is closed.
    pub(crate) fn put(&self, stream: Stream, now_ms: u64, most: usize) {
        if self.own.len() < most {
            self.own.push(Idle { fd: stream.into_fd(), since_ms: now_ms });
        }
    }

    /// Closes what is dead or older than `idle_timeout_ms` on this worker's shelf; returns how many.
    pub(crate) fn sweep(&self, now_ms: u64, idle_timeout_ms: u64) -> u64 {
        let Some(stealer) = self.shelves.stealers.get(self.worker) else { return 0 };
        let mut closed = 0;
        // Oldest first, each put back behind the others: after one round the order is as it was.
        for _ in 0..self.own.len() {
            let Some(idle) = steal(stealer) else { break };
            if is_usable(&idle, now_ms, idle_timeout_ms) {
                self.own.push(idle);
            } else {
                closed += 1;
            }
        }
        closed
    }
}

/// The worker's clock in milliseconds, as ages on the shelves are counted. Workers tick together to within a tick or two,
/// which is nothing against an idle timeout of seconds.
pub(crate) fn now_ms() -> u64 {
    now() * crate::io::TICK.as_millis() as u64
}

fn is_usable(idle: &Idle, now_ms: u64, idle_timeout_ms: u64) -> bool {
    // Bytes that nobody asked for would be taken for the answer to the next request: such a connection is as bad as a
    // closed one.
    now_ms.saturating_sub(idle.since_ms) <= idle_timeout_ms && socket::peek(&idle.fd) == Peek::Quiet
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
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A connected pair: our end, the origin's end.
    fn pair() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours.into(), listener.accept().unwrap().0)
    }

    fn shelve(pool: &Pool, since_ms: u64) -> TcpStream {
        let (fd, origin) = pair();
        pool.own.push(Idle { fd, since_ms });
        origin
    }

    /// Streams need a driver around them.
    fn on_a_worker(test: impl FnOnce()) {
        crate::io::run(crate::io::Mode::Epoll, async { test() }).unwrap();
    }

    #[test]
    fn takes_the_newest_of_its_own_then_the_oldest_of_another() {
        on_a_worker(|| {
            let shelves = Arc::new(Shelves::new(2));
            let [first, second] = [0, 1].map(|worker| Pool::new(Arc::clone(&shelves), worker));
            let origins = [shelve(&first, 1), shelve(&first, 2), shelve(&second, 3)];
            let took = |search: Search| {
                let taken = search.found.expect("a live connection is there");
                let peer = rustix::net::getsockname(&taken.stream).unwrap();
                let address = std::net::SocketAddr::try_from(peer).unwrap();
                let which = origins.iter().position(|origin| origin.peer_addr().unwrap() == address);
                (which.unwrap(), taken.from_another)
            };
            assert_eq!(took(second.take(3, 1000)), (2, false));
            assert_eq!(took(second.take(3, 1000)), (0, true));
            assert_eq!(took(second.take(3, 1000)), (1, true));
            assert!(second.take(3, 1000).found.is_none());
        });
    }

    #[test]
    fn never_gives_out_what_is_closed_or_spoken_on_or_old() {
        on_a_worker(|| {
            let pool = Pool::new(Arc::new(Shelves::new(1)), 0);
            let _old = shelve(&pool, 0);
            drop(shelve(&pool, 5000));
            let mut speaking = shelve(&pool, 5000);
            speaking.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").unwrap();
            // Both ends are on the loopback: what was sent or closed has arrived when the call returns.
            let search = pool.take(5001, 1000);
            assert!(search.found.is_none());
            assert_eq!(search.stale, 3);
        });
    }

    #[test]
    fn sweep_closes_the_dead_and_keeps_the_order_of_the_living() {
        on_a_worker(|| {
            let pool = Pool::new(Arc::new(Shelves::new(1)), 0);
            let _origins = [shelve(&pool, 10), shelve(&pool, 900), shelve(&pool, 901)];
            drop(shelve(&pool, 902));
            assert_eq!(pool.sweep(1020, 1000), 2);
            assert_eq!(pool.idle(), 2);
            assert_eq!(pool.own.pop().unwrap().since_ms, 901);
        });
    }

    #[test]
    fn keeps_no_more_than_it_may() {
        on_a_worker(|| {
            let pool = Pool::new(Arc::new(Shelves::new(1)), 0);
            let origins = [pair(), pair()].map(|(fd, origin)| {
                pool.put(Stream::adopt(fd).unwrap(), 0, 1);
                origin
            });
            assert_eq!(pool.idle(), 1);
            drop(origins);
        });
    }
}
