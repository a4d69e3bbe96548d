//! Faults of the whole process, as against those that one request asks for: nobody listens, connections
//! are closed as they come, everything stands still, or a share of the requests gets other knobs.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::knobs::{KnobError, Knobs, pairs, parse_duration};

/// How long an injection waits for the listeners to follow. Only a port that cannot be opened again takes
/// longer, and that is told on stderr.
pub(crate) const SETTLE_TIME: Duration = Duration::from_secs(1);

/// How often it looks.
pub(crate) const SETTLE_STEP: Duration = Duration::from_millis(1);

/// How long a fault lasts that does not say.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One fault of the whole process, written like a query: `refuse=2s`, `accept_close=500ms`, `freeze=1s`,
/// `status=503&rate=0.1&path=/v1/&for=5s`. The parts may be combined.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Close the listeners for this long: connections are refused, those that are open live on.
    pub refuse: Duration,
    /// Accept and close at once, for this long.
    pub accept_close: Duration,
    /// Send nothing at all for this long, not even the rest of what is being sent.
    pub freeze: Duration,
    /// Knobs, by name, for the requests that are hit.
    pub knobs: Vec<(String, String)>,
    /// Share of the requests that the knobs hit: exactly that share, evenly spread, not by chance.
    pub rate: f64,
    /// Start of the paths that the knobs hit.
    pub path: String,
    /// How long the knobs hit.
    pub lasts: Duration,
}

/// A fault that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// It names no effect.
    #[error(
        "the fault does nothing: write refuse=2s, accept_close=2s, freeze=2s or a knob such as status=503"
    )]
    Empty,
    /// A part of the fault that is no knob has a wrong value.
    #[error("'{value}' is not a value of '{name}': write {expected}")]
    Invalid {
        /// The part.
        name: &'static str,
        /// What was written.
        value: String,
        /// What could have been written.
        expected: &'static str,
    },
    /// A knob is wrong.
    #[error(transparent)]
    Knob(#[from] KnobError),
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut fault = Self {
            refuse: Duration::ZERO,
            accept_close: Duration::ZERO,
            freeze: Duration::ZERO,
            knobs: Vec::new(),
            rate: 1.0,
            path: String::new(),
            lasts: FOREVER,
        };
        for (name, value) in pairs(text) {
            match name {
                "refuse" => fault.refuse = duration("refuse", value)?,
                "accept_close" => fault.accept_close = duration("accept_close", value)?,
                "freeze" => fault.freeze = duration("freeze", value)?,
                "for" => fault.lasts = duration("for", value)?,
                "rate" => fault.rate = share(value)?,
                "path" => value.clone_into(&mut fault.path),
                knob => {
                    Knobs::default().set(knob, value)?;
                    fault.knobs.push((knob.to_owned(), value.to_owned()));
                }
            }
        }
        let idle = fault.refuse.is_zero() && fault.accept_close.is_zero() && fault.freeze.is_zero();
        if idle && fault.knobs.is_empty() { Err(FaultError::Empty) } else { Ok(fault) }
    }
}

/// The fault in force, seen by every worker.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Lets a request pass with one load while there is no fault.
    active: AtomicBool,
    current: watch::Sender<Option<Arc<Injected>>>,
    /// Listeners that there are, and those of them that are open.
    listeners: usize,
    open: AtomicUsize,
}

/// A fault with the time it began.
#[derive(Debug)]
pub(crate) struct Injected {
    fault: Fault,
    since: Instant,
    /// Requests that matched so far, to hit an exact share of them.
    matched: AtomicU64,
}

impl Faults {
    /// `listeners` of them are open at the start.
    pub(crate) fn new(listeners: usize) -> Self {
        Self {
            active: AtomicBool::new(false),
            current: watch::Sender::new(None),
            listeners,
            open: AtomicUsize::new(listeners),
        }
    }

    /// Whether every listener has done what the fault in force, or its end, asks of it. Who injects waits for
    /// this, so that the next connection is sure to meet the fault.
    pub(crate) fn is_settled(&self) -> bool {
        let refuses = self.current().is_some_and(|injected| injected.refuses_until().is_some());
        self.open.load(Relaxed) == if refuses { 0 } else { self.listeners }
    }

    pub(crate) fn listener_opened(&self) {
        self.open.fetch_add(1, Relaxed);
    }

    pub(crate) fn listener_closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    pub(crate) fn inject(&self, fault: Fault) {
        let injected = Injected { fault, since: Instant::now(), matched: AtomicU64::new(0) };
        self.active.store(true, Relaxed);
        self.current.send_replace(Some(Arc::new(injected)));
    }

    pub(crate) fn clear(&self) {
        self.active.store(false, Relaxed);
        self.current.send_replace(None);
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// For the accept loops, which must wake when a fault comes or goes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<Injected>>> {
        self.current.subscribe()
    }

    /// Lays the fault's knobs over `knobs` if this request is hit.
    pub(crate) fn apply(&self, knobs: &mut Knobs, path: &str) {
        let Some(injected) = self.current() else { return };
        if injected.hits(path) {
            for (name, value) in &injected.fault.knobs {
                // Checked when the fault was read.
                let _ = knobs.set(name, value);
            }
        }
    }

    /// Until when nothing may be sent.
    pub(crate) fn frozen_until(&self) -> Option<Instant> {
        let injected = self.current()?;
        pending(injected.since + injected.fault.freeze)
    }

    fn current(&self) -> Option<Arc<Injected>> {
        if self.is_active() { self.current.borrow().clone() } else { None }
    }
}

impl Injected {
    pub(crate) fn refuses_until(&self) -> Option<Instant> {
        pending(self.since + self.fault.refuse)
    }

    pub(crate) fn closes_at_accept(&self) -> bool {
        pending(self.since + self.fault.accept_close).is_some()
    }

    fn hits(&self, path: &str) -> bool {
        if !path.starts_with(&self.fault.path) || pending(self.since + self.fault.lasts).is_none() {
            return false;
        }
        let before = self.matched.fetch_add(1, Relaxed) as f64;
        ((before + 1.0) * self.fault.rate).floor() > (before * self.fault.rate).floor()
    }
}

fn pending(end: Instant) -> Option<Instant> {
    (Instant::now() < end).then_some(end)
}

fn duration(name: &'static str, value: &str) -> Result<Duration, FaultError> {
    let known = parse_duration(value).filter(|duration| *duration <= FOREVER);
    known.ok_or(FaultError::Invalid {
        name,
        value: value.to_owned(),
        expected: "a duration such as 500ms or 2s",
    })
}

fn share(value: &str) -> Result<f64, FaultError> {
    let known = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    known.ok_or(FaultError::Invalid {
        name: "rate",
        value: value.to_owned(),
        expected: "a share from 0 to 1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_hits_an_exact_share_of_the_matching_requests() {
        let faults = Faults::new(0);
        faults.inject("status=503&rate=0.25&path=/v1/".parse().unwrap());
        let hit = |path: &str| {
            let mut knobs = Knobs::default();
            faults.apply(&mut knobs, path);
            knobs.status == Some(503)
        };
        assert_eq!((0..100).filter(|_| hit("/v1/models")).count(), 25);
        assert_eq!((0..100).filter(|_| hit("/health")).count(), 0);
        faults.clear();
        assert!(!(0..8).any(|_| hit("/v1/models")));
    }

    #[test]
    fn a_fault_ends_with_its_time() {
        let faults = Faults::new(0);
        faults.inject("freeze=0s&status=503&for=0s".parse().unwrap());
        let mut knobs = Knobs::default();
        faults.apply(&mut knobs, "/");
        assert_eq!((knobs.status, faults.frozen_until()), (None, None));
        faults.inject("freeze=1h".parse().unwrap());
        assert!(faults.frozen_until().is_some());
    }

    #[test]
    fn wrong_faults_are_refused() {
        for wrong in ["", "rate=0.5", "status=99", "refuse=soon", "rate=2&status=500", "stauts=500"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
