//! What a simulation decides of the system, for tests: how time passes, and when descriptors run out. It holds for the
//! calling thread alone; a thread without a simulation has the kernel's time, and its descriptors.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use super::event;

thread_local! {
    /// Descriptors that this thread will not get.
    static REFUSALS: Cell<usize> = const { Cell::new(0) };
    static TIME: RefCell<Option<Time>> = const { RefCell::new(None) };
}

struct Time {
    now: Duration,
    timers: Vec<Timer>,
}

/// A periodic timer: an event, signalled whenever its time has come.
struct Timer {
    /// The owner's descriptor, by which it is known.
    fd: RawFd,
    event: OwnedFd,
    period: Duration,
    next: Duration,
}

/// From now on this thread's time is simulated.
pub(crate) fn begin() {
    TIME.set(Some(Time { now: Duration::ZERO, timers: Vec::new() }));
}

/// The simulated time; none where time is real.
pub(crate) fn now() -> Option<Duration> {
    TIME.with_borrow(|time| time.as_ref().map(|time| time.now))
}

/// Lets time pass.
pub(crate) fn pass(length: Duration) {
    TIME.with_borrow_mut(|time| {
        let Some(Time { now, timers }) = time else { return };
        *now += length;
        for timer in timers.iter_mut().filter(|timer| timer.next <= *now) {
            event::signal(&timer.event);
            // As a timer of the kernel: the counter tells of the periods that were missed.
            while timer.next <= *now {
                timer.next += timer.period;
            }
        }
    });
}

/// Lets time pass until the next timer is due, or for a second when there is none.
pub(crate) fn pass_to_next_timer() {
    let until_next = TIME.with_borrow(|time| {
        let time = time.as_ref()?;
        time.timers.iter().map(|timer| timer.next.saturating_sub(time.now)).min()
    });
    pass(until_next.unwrap_or(Duration::from_secs(1)));
}

/// The next so many accepts and connects of this thread find no free descriptor.
pub(crate) fn run_out_of_descriptors(calls: usize) {
    REFUSALS.set(calls);
}

pub(super) fn take_descriptor() -> io::Result<()> {
    match REFUSALS.get() {
        0 => Ok(()),
        calls => {
            REFUSALS.set(calls - 1);
            Err(io::Error::from_raw_os_error(libc::EMFILE))
        }
    }
}

pub(super) fn periodic_timer(period: Duration) -> io::Result<OwnedFd> {
    let event = event::event()?;
    let fd = event.as_raw_fd();
    let copy = event.try_clone()?;
    TIME.with_borrow_mut(|time| {
        if let Some(Time { now, timers }) = time {
            timers.retain(|timer| timer.fd != fd);
            timers.push(Timer { fd, event: copy, period, next: *now + period });
        }
    });
    Ok(event)
}

pub(super) fn set_period(fd: BorrowedFd<'_>, period: Duration) {
    TIME.with_borrow_mut(|time| {
        if let Some(Time { now, timers }) = time {
            for timer in timers.iter_mut().filter(|timer| timer.fd == fd.as_raw_fd()) {
                (timer.period, timer.next) = (period, *now + period);
            }
        }
    });
}
