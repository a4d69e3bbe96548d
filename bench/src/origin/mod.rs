//! The mock LLM origin: an HTTP/1.1 server that speaks the model APIs, misbehaves on request, and counts
//! what it saw. Written on raw sockets so that it can send what no HTTP library would. It is no model, and
//! no server for anything but tests, demos and benchmarks.
//!
//! ```text
//! server (threads, accept) → connection (bytes) → exchange (one request) → endpoint → response
//!                                                       ↑ knobs, fault                  ↓ stats
//! ```

mod anthropic;
mod body;
mod clock;
mod connection;
mod control;
mod endpoint;
mod exchange;
mod fault;
mod framing;
mod knobs;
mod openai;
mod request;
mod response;
mod route;
mod server;
mod socket;
mod sse;
mod stats;
mod stream;
mod tokens;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub use clock::monotonic_ns;
pub use fault::{Fault, FaultError};
pub use framing::BadFraming;
pub use knobs::{EarlyResponse, KnobError, Knobs, NAMES as KNOB_NAMES};
#[cfg(feature = "measure")]
pub(crate) use knobs::{parse_duration, parse_size};
pub use socket::{Address, AddressError};
pub use stats::{Abort, Aborts, ConnectionCounts, ConnectionStats, Phase, RequestCounts, RequestIds, Stats};

use server::{Opened, Shared, Worker};
use socket::Port;

/// How often [`Origin::wait_for`] looks.
const WAIT_STEP: Duration = Duration::from_millis(1);

/// How an origin is started. The default listens on a free port of 127.0.0.1 with one worker.
#[derive(Clone, Debug)]
pub struct OriginOptions {
    /// At least one address.
    pub listen: Vec<Address>,
    /// Threads; each TCP address is shared by all of them, a Unix socket is served by the first.
    pub workers: usize,
    /// Knobs of requests that bring none.
    pub defaults: Knobs,
    /// Different `X-Request-ID`s that are counted, per worker; 0 counts none.
    pub request_ids_max: usize,
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self {
            listen: vec![Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))],
            workers: 1,
            defaults: Knobs::default(),
            request_ids_max: 100_000,
        }
    }
}

/// A running origin. It stops when it is dropped.
#[derive(Debug)]
pub struct Origin {
    shared: Arc<Shared>,
    addresses: Vec<Address>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Origin {
    /// Binds every address and starts the workers. When it returns, connections are accepted.
    ///
    /// # Errors
    /// What binding or starting a thread failed with; nothing is left running then.
    pub fn start(options: OriginOptions) -> io::Result<Self> {
        let workers = options.workers.max(1);
        let ports: Vec<Arc<Port>> = options
            .listen
            .iter()
            .map(|address| {
                Port::reserve(address, workers > 1).map(Arc::new).map_err(|error| explain(address, &error))
            })
            .collect::<io::Result<_>>()?;
        let opened = (0..workers).map(|worker| open(&ports, worker)).collect::<io::Result<Vec<_>>>()?;
        let listeners = opened.iter().map(Vec::len).sum();
        let mut origin = Self {
            shared: Arc::new(Shared::new(options.defaults, workers, listeners, options.request_ids_max)),
            addresses: ports.iter().map(|port| port.address.clone()).collect(),
            stop: watch::Sender::new(false),
            threads: Vec::new(),
        };
        for (index, opened) in opened.into_iter().enumerate() {
            origin.spawn(index, opened)?;
        }
        Ok(origin)
    }

    /// The first TCP address, with its real port.
    ///
    /// # Panics
    /// If it listens on Unix sockets only.
    pub fn addr(&self) -> SocketAddr {
        let tcp = self.addresses.iter().find_map(|address| match address {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        });
        tcp.expect("the origin listens on no TCP address")
    }

    /// Every address, with real ports, in the order of the options.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// `path` at the first TCP address, as a URL.
    ///
    /// # Panics
    /// As [`Origin::addr`].
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr())
    }

    /// What it has seen so far.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Waits until the statistics satisfy `done`, looking every millisecond.
    ///
    /// # Errors
    /// The last statistics if `patience` ran out.
    pub fn wait_for(&self, patience: Duration, done: impl Fn(&Stats) -> bool) -> Result<Stats, Box<Stats>> {
        let deadline = Instant::now() + patience;
        loop {
            let stats = self.stats();
            if done(&stats) {
                return Ok(stats);
            }
            if Instant::now() >= deadline {
                return Err(Box::new(stats));
            }
            std::thread::sleep(WAIT_STEP);
        }
    }

    /// How many requests carried this `X-Request-ID`.
    pub fn request_count(&self, request_id: &str) -> u64 {
        stats::request_count(&self.shared.ledgers, request_id)
    }

    /// The open connections, the oldest first.
    pub fn connections(&self) -> Vec<ConnectionStats> {
        stats::connections(&self.shared.ledgers, usize::MAX)
    }

    /// Zeroes the counters. What is open or in flight stays counted as such.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Puts a fault in force, in place of the one before it. When it returns, the next connection meets it.
    pub fn inject(&self, fault: Fault) {
        self.shared.faults.inject(fault);
        self.settle();
    }

    /// Ends the fault in force. When it returns, connections are accepted again.
    pub fn clear_fault(&self) {
        self.shared.faults.clear();
        self.settle();
    }

    /// Closes everything and waits for the threads.
    ///
    /// # Errors
    /// What a worker failed with.
    pub fn stop(mut self) -> io::Result<()> {
        self.join()
    }

    fn settle(&self) {
        let deadline = Instant::now() + fault::SETTLE_TIME;
        while !self.shared.faults.is_settled() && Instant::now() < deadline {
            std::thread::sleep(fault::SETTLE_STEP);
        }
    }

    fn spawn(&mut self, index: usize, opened: Vec<Opened>) -> io::Result<()> {
        let worker =
            Worker { shared: Arc::clone(&self.shared), ledger: Arc::clone(&self.shared.ledgers[index]) };
        let stop = self.stop.subscribe();
        let thread = std::thread::Builder::new().name(format!("origin-{index}"));
        self.threads.push(thread.spawn(move || server::run(worker, opened, stop))?);
        Ok(())
    }

    fn join(&mut self) -> io::Result<()> {
        self.stop.send_replace(true);
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            result = result.and(thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked"))));
        }
        result
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.join();
    }
}

/// The listeners of one worker.
fn open(ports: &[Arc<Port>], worker: usize) -> io::Result<Vec<Opened>> {
    let served = ports.iter().filter(|port| worker == 0 || matches!(port.address, Address::Tcp(_)));
    let opened = served.map(|port| {
        let bound = port.listen().map_err(|error| explain(&port.address, &error))?;
        Ok((Arc::clone(port), bound))
    });
    opened.collect()
}

fn explain(address: &Address, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}
