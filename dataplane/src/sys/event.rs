//! The descriptors that wake a worker: an event (somebody left a message) and a periodic timer (the clock ticked).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A descriptor that becomes readable when [`signal`] is called on it or on a duplicate.
pub(crate) fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Makes an event descriptor readable. Safe to call from any thread.
pub(crate) fn signal(event: impl AsFd) {
    // The only failure of a non-blocking event is a full counter: then it is readable already.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// A descriptor that becomes readable every `period`.
pub(crate) fn periodic_timer(period: Duration) -> io::Result<OwnedFd> {
    #[cfg(test)]
    if super::simulated::now().is_some() {
        return super::simulated::periodic_timer(period);
    }
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    set_period(&timer, period)?;
    Ok(timer)
}

/// Makes a periodic timer readable every `period` from now on.
pub(crate) fn set_period(timer: impl AsFd, period: Duration) -> io::Result<()> {
    #[cfg(test)]
    if super::simulated::now().is_some() {
        super::simulated::set_period(timer.as_fd(), period);
        return Ok(());
    }
    let spec = Timespec { tv_sec: period.as_secs() as i64, tv_nsec: i64::from(period.subsec_nanos()) };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: spec, it_value: spec })?;
    Ok(())
}

/// Takes the counter of an event or a timer: how often it fired since the last take; 0 when it did not.
pub(crate) fn take(fd: impl AsFd) -> u64 {
    let mut counter = [0u8; 8];
    match rustix::io::read(fd, &mut counter) {
        Ok(8) => u64::from_ne_bytes(counter),
        Ok(_) | Err(_) => 0,
    }
}
