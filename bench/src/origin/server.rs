//! Workers: one thread each, with a tokio runtime of its own, its listeners and its ledger. They share the
//! options, the process-wide fault and the right to read each other's ledgers.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::connection;
use super::fault::{Faults, Injected};
use super::knobs::Knobs;
use super::socket::{Bound, Listener, Port, Stream};
use super::stats::{self, Ledger, Stats};

/// Pause after an accept or a listen that failed, most likely for want of file descriptors.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What all workers see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) defaults: Knobs,
    /// Whether the default knobs change nothing about an answer that has no tokens.
    pub(crate) defaults_are_plain: bool,
    pub(crate) faults: Faults,
    pub(crate) ledgers: Vec<Arc<Ledger>>,
    pub(crate) started: Instant,
}

impl Shared {
    pub(crate) fn new(defaults: Knobs, workers: usize, listeners: usize, request_ids_max: usize) -> Self {
        let tokens_aside = Knobs {
            tokens: defaults.tokens,
            tokens_per_second: defaults.tokens_per_second,
            token_size: defaults.token_size,
            ttft: defaults.ttft,
            ..Knobs::default()
        };
        Self {
            defaults,
            defaults_are_plain: defaults == tokens_aside,
            faults: Faults::new(listeners),
            ledgers: (0..workers).map(|_| Arc::new(Ledger::new(request_ids_max))).collect(),
            started: Instant::now(),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        stats::snapshot(&self.ledgers, self.started.elapsed())
    }

    pub(crate) fn reset(&self) {
        self.ledgers.iter().for_each(|ledger| ledger.reset());
    }
}

/// What one worker's connections see.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) ledger: Arc<Ledger>,
}

/// A listener with the port that it can be opened on again.
pub(crate) type Opened = (Arc<Port>, Bound);

/// Runs one worker on this thread until `stop` turns true. Its connections end with it.
pub(crate) fn run(worker: Worker, opened: Vec<Opened>, mut stop: watch::Receiver<bool>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let worker = Arc::new(worker);
    runtime.block_on(async {
        for (port, bound) in opened {
            tokio::spawn(accept(port, bound.register()?, Arc::clone(&worker)));
        }
        // An error means that the handle is gone, which is a stop too.
        let _ = stop.wait_for(|stopped| *stopped).await;
        Ok(())
    })
}

/// Accepts for ever, except while a fault refuses.
async fn accept(port: Arc<Port>, first: Listener, worker: Arc<Worker>) {
    let mut fault = worker.shared.faults.subscribe();
    let mut listener = Some(first);
    loop {
        let current = fault.borrow_and_update().clone();
        if let Some(until) = current.as_deref().and_then(Injected::refuses_until) {
            if listener.take().is_some() {
                worker.shared.faults.listener_closed();
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = fault.changed() => {}
            }
            continue;
        }
        if listener.is_none() {
            listener = reopen(&port).await;
            match listener {
                Some(_) => worker.shared.faults.listener_opened(),
                None => continue,
            }
        }
        let Some(open) = &listener else { continue };
        tokio::select! {
            accepted = open.accept() => match accepted {
                Ok((stream, peer)) => {
                    // The fault may have come while this waited.
                    let now = fault.borrow().clone();
                    admit(stream, peer, now.as_deref(), &worker);
                }
                Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            },
            _ = fault.changed() => {}
        }
    }
}

fn admit(stream: Stream, peer: String, fault: Option<&Injected>, worker: &Arc<Worker>) {
    if fault.is_some_and(Injected::closes_at_accept) {
        worker.ledger.connection_closed_at_accept();
        return;
    }
    tokio::spawn(connection::serve(stream, peer, Arc::clone(worker)));
}

async fn reopen(port: &Port) -> Option<Listener> {
    match port.listen().and_then(Bound::register) {
        Ok(listener) => Some(listener),
        Err(error) => {
            eprintln!("origin: cannot listen on {} again: {error}", port.address);
            tokio::time::sleep(RETRY_PAUSE).await;
            None
        }
    }
}
