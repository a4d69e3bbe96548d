//! Deadlines: one coarse wheel a worker, driven by its clock.
//!
//! Nothing is cancelled in the kernel when a deadline moves: it is a number in a table, looked at when the wheel comes
//! by. A deadline that has passed shuts its socket down; the operation that waits there completes, and the driver asks
//! [`Deadlines::fired`] which of them it was.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use dataplane_core::timer::{TimerId, Wheel};

use super::clock::{self, TICK, now};
use super::table::Table;
use crate::sys::socket;

/// A length of time in ticks, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticks(u32);

impl Ticks {
    /// A tick count, for lengths that are known when the program is built.
    pub(crate) const fn of_millis(millis: u32) -> Self {
        Self(millis.div_ceil(TICK.as_millis() as u32))
    }

    /// How many.
    pub(crate) fn count(self) -> u64 {
        self.0.into()
    }
}

impl From<Duration> for Ticks {
    fn from(length: Duration) -> Self {
        let ticks = length.as_millis().div_ceil(TICK.as_millis()).max(1);
        Self(u32::try_from(ticks).unwrap_or(u32::MAX))
    }
}

/// The deadlines of an exchange and its connection, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The client began a request head and did not end it.
    RequestHead,
    /// The client stopped in the middle of its request body.
    RequestBody,
    /// The client does not read what waits for it.
    Send,
    /// The client was sent the end and does not close.
    Linger,
    /// The endpoint does not accept.
    Connect,
    /// The endpoint does not read the request.
    UpstreamSend,
    /// The endpoint does not begin to answer.
    FirstByte,
    /// The endpoint fell silent within its answer.
    Idle,
    /// The whole exchange took too long.
    Total,
}

impl Timer {
    /// Makes the operation complete that waits on `fd`.
    fn end_wait(self, fd: RawFd) {
        match self {
            // A client that is too slow can still be told so (RFC 9110, section 15.5.9).
            Self::RequestHead | Self::RequestBody => socket::shutdown_read_raw(fd),
            Self::Send
            | Self::Linger
            | Self::Connect
            | Self::UpstreamSend
            | Self::FirstByte
            | Self::Idle
            | Self::Total => socket::shutdown_raw(fd),
        }
    }
}

/// What a deadline watches; each side has at most one deadline at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Receiving from the client.
    ClientRead,
    /// Sending to the client.
    ClientWrite,
    /// Connecting to, sending to or receiving from the endpoint.
    Upstream,
    /// Sending the request body, while the response may be under way.
    Upload,
    /// The exchange as a whole.
    Exchange,
}

const SIDES: usize = 5;
/// A tick that never comes: the side has no deadline.
const NEVER: u64 = u64::MAX;

thread_local! {
    static TIMERS: RefCell<Timers> = RefCell::new(Timers::new());
}

struct Timers {
    wheel: Wheel,
    entries: Table<Entry>,
    /// Keys whose time has come, kept between ticks for its memory.
    due: Vec<u32>,
}

struct Entry {
    timer: TimerId,
    watches: Watches,
}

enum Watches {
    Sockets(Rc<Sockets>),
    Sleep { until: u64, waker: Option<Waker> },
}

/// The deadlines of one connection, shared with the wheel: to move one is a store, no look into the table.
#[derive(Debug)]
struct Sockets {
    /// Its place in the table.
    key: Cell<u32>,
    deadlines: [Cell<Deadline>; SIDES],
    fired: Cell<Option<Timer>>,
    /// The earliest tick that the wheel was asked for; later deadlines need not ask again.
    asked: Cell<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: u64,
    fd: RawFd,
    timer: Timer,
}

const UNARMED: Deadline = Deadline { at: NEVER, fd: -1, timer: Timer::Total };

/// Does what is due at `now`.
pub(super) fn advance(now: u64) {
    TIMERS.with_borrow_mut(|timers| timers.advance(now));
}

/// The deadlines of one client connection and of the upstream connection it uses at the moment. Until the first of them
/// is armed, and again after [`Deadlines::rest`], it is one word.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    sockets: OnceCell<Rc<Sockets>>,
}

impl Deadlines {
    /// Forgets all deadlines, for a connection that will not need any for a while.
    pub(crate) fn rest(&mut self) {
        if let Some(sockets) = self.sockets.take() {
            remove(sockets.key.get());
        }
    }

    /// Sets the deadline of `side` to `after` from now; when it passes, `fd` is shut down. The caller disarms it before
    /// it gives `fd` away.
    pub(crate) fn arm(&self, side: Side, timer: Timer, fd: RawFd, after: Ticks) {
        let at = now() + u64::from(after.0);
        let sockets = self.sockets.get_or_init(Sockets::register);
        sockets.deadlines[side as usize].set(Deadline { at, fd, timer });
        // The wheel looks again at what has moved later, so nearly always it comes by early enough.
        if at < sockets.asked.get() {
            sockets.asked.set(at);
            TIMERS.with_borrow_mut(|timers| timers.ask(sockets.key.get(), at));
        }
    }

    /// Makes the deadline of `side` shut another descriptor down when it passes; -1 for none.
    pub(crate) fn aim(&self, side: Side, fd: RawFd) {
        if let Some(sockets) = self.sockets.get() {
            let deadline = &sockets.deadlines[side as usize];
            deadline.set(Deadline { fd, ..deadline.get() });
        }
    }

    /// Whether `side` has a deadline.
    pub(crate) fn is_armed(&self, side: Side) -> bool {
        self.sockets.get().is_some_and(|sockets| sockets.deadlines[side as usize].get().at != UNARMED.at)
    }

    /// Takes the deadline of `side` away.
    pub(crate) fn disarm(&self, side: Side) {
        if let Some(sockets) = self.sockets.get() {
            sockets.deadlines[side as usize].set(UNARMED);
        }
    }

    /// The deadline that has passed, if one has; it stays so until [`Deadlines::clear`].
    pub(crate) fn fired(&self) -> Option<Timer> {
        self.sockets.get().and_then(|sockets| sockets.fired.get())
    }

    /// Forgets that a deadline has passed, for the next try or the next request.
    pub(crate) fn clear(&self) {
        if let Some(sockets) = self.sockets.get() {
            sockets.fired.set(None);
        }
    }
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        self.rest();
    }
}

/// A sleeping task's place in the worker's table.
struct Sleeping(u32);

impl Drop for Sleeping {
    fn drop(&mut self) {
        remove(self.0);
    }
}

/// Waits for `length`, to the tick.
pub(crate) async fn sleep(length: Duration) {
    let until = now() + u64::from(Ticks::from(length).0);
    let place = TIMERS.with_borrow_mut(|timers| {
        let key = timers.insert(Watches::Sleep { until, waker: None });
        timers.ask(key, until);
        Sleeping(key)
    });
    std::future::poll_fn(|context| {
        if now() >= until {
            return Poll::Ready(());
        }
        TIMERS.with_borrow_mut(|timers| timers.wake_when_due(place.0, context.waker()));
        Poll::Pending
    })
    .await;
}

/// Gives a place in the worker's table back.
fn remove(key: u32) {
    // At the end of a thread the table may be gone before the last of its users.
    let _ = TIMERS.try_with(|timers| timers.borrow_mut().remove(key));
}

impl Timers {
    fn new() -> Self {
        Self { wheel: Wheel::new(clock::read()), entries: Table::new(), due: Vec::new() }
    }

    fn insert(&mut self, watches: Watches) -> u32 {
        let timer = self.wheel.register(self.entries.next());
        self.entries.insert(Entry { timer, watches })
    }

    fn remove(&mut self, key: u32) {
        if let Some(entry) = self.entries.remove(key) {
            self.wheel.remove(entry.timer);
        }
    }

    /// Asks the wheel to come by at `at`.
    fn ask(&mut self, key: u32, at: u64) {
        if let Some(entry) = self.entries.get(key) {
            self.wheel.schedule(entry.timer, at);
        }
    }

    fn wake_when_due(&mut self, key: u32, sleeper: &Waker) {
        if let Some(Entry { watches: Watches::Sleep { waker, .. }, .. }) = self.entries.get_mut(key) {
            *waker = Some(sleeper.clone());
        }
    }

    fn advance(&mut self, now: u64) {
        let Self { wheel, entries, due } = self;
        wheel.advance(now, |key| due.push(key));
        for key in due.drain(..) {
            let Some(entry) = entries.get_mut(key) else { continue };
            if let Some(next) = entry.watches.look(now) {
                wheel.schedule(entry.timer, next);
            }
        }
    }
}

impl Watches {
    /// Does what is due, and says when to look again.
    fn look(&mut self, now: u64) -> Option<u64> {
        match self {
            Self::Sleep { until, .. } if *until > now => Some(*until),
            Self::Sleep { waker, .. } => {
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
                None
            }
            Self::Sockets(sockets) => sockets.look(now),
        }
    }
}

impl Sockets {
    /// A place in the worker's table, with nothing armed.
    fn register() -> Rc<Self> {
        let sockets = Rc::new(Self {
            key: Cell::new(0),
            deadlines: [const { Cell::new(UNARMED) }; SIDES],
            fired: Cell::new(None),
            asked: Cell::new(NEVER),
        });
        let watches = Watches::Sockets(Rc::clone(&sockets));
        sockets.key.set(TIMERS.with_borrow_mut(|timers| timers.insert(watches)));
        sockets
    }

    fn look(&self, now: u64) -> Option<u64> {
        let sending_to = self.deadlines[Side::ClientWrite as usize].get();
        for place in &self.deadlines {
            let deadline = place.get();
            if deadline.at > now {
                continue;
            }
            if self.fired.get().is_none() {
                self.fired.set(Some(deadline.timer));
            }
            deadline.timer.end_wait(deadline.fd);
            if deadline.timer == Timer::Total && sending_to.at != NEVER {
                // The exchange waits for its client, not for its origin: end that wait as well.
                socket::shutdown_raw(sending_to.fd);
            }
            place.set(UNARMED);
        }
        let next = self.deadlines.iter().map(|place| place.get().at).min().unwrap_or(NEVER);
        self.asked.set(next);
        (next != NEVER).then_some(next)
    }
}
