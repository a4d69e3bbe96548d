//! The two clocks that leave this process: nanoseconds that another process on the host can compare,
//! and the `Date` field. Pacing and deadlines do not come here, they use tokio's `Instant`.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of an IMF-fixdate (RFC 9110, section 5.6.7).
pub(crate) const DATE_LEN: usize = 29;

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of Python's `time.monotonic_ns()` and of every other
/// process on this host, so that a test can subtract its own reading from one in the statistics.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The monotonic clock starts at boot: neither field is ever negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Seconds since 1970, for the `created` fields of the model APIs.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// The value of the `Date` field, formatted once a second per thread.
pub(crate) fn date() -> [u8; DATE_LEN] {
    thread_local! {
        static LAST: Cell<(u64, [u8; DATE_LEN])> = const { Cell::new((0, [b' '; DATE_LEN])) };
    }
    let second = unix_seconds();
    let (cached, text) = LAST.get();
    if cached == second {
        return text;
    }
    let fresh = format_date(second);
    LAST.set((second, fresh));
    fresh
}

fn format_date(second: u64) -> [u8; DATE_LEN] {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
    let mut fixed = [b' '; DATE_LEN];
    fixed.copy_from_slice(text.as_bytes());
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_the_example_of_the_rfc() {
        assert_eq!(&format_date(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn monotonic_clock_does_not_go_back() {
        let first = monotonic_ns();
        assert!(first > 0 && monotonic_ns() >= first);
    }
}
