//! How often somebody may fail to enrol before they have to wait.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::call::Call;
use super::refusal::{Kind, Refusal};
use super::throttle::Throttle;

/// Failures from one address: join tokens cannot be guessed, so this only keeps the log and the disk quiet.
pub(crate) const FAILURES_MAX: u32 = 30;
/// How long they are counted.
pub(crate) const FAILURES_WINDOW_MS: u64 = 60_000;

/// Failed enrolments by address.
pub(super) struct Enrolments {
    failures: Mutex<Throttle<Option<IpAddr>>>,
}

impl Enrolments {
    /// Nobody has failed yet.
    pub(super) fn new() -> Self {
        Self { failures: Mutex::new(Throttle::new(FAILURES_MAX, FAILURES_WINDOW_MS)) }
    }

    /// Whether the caller may try.
    ///
    /// # Errors
    /// There were too many failures.
    pub(super) fn check(&self, call: &Call) -> Result<(), Refusal> {
        self.failures().check(&call.address, call.at_ms).map_err(|wait_ms| {
            let kind = Kind::TooMany { retry_after_s: wait_ms.div_ceil(1000) };
            Refusal::of(
                kind,
                "join_token",
                "too_many_failures",
                "too many failed enrolments: wait and try again",
            )
        })
    }

    /// Counts a failure.
    pub(super) fn count(&self, call: &Call) {
        self.failures().count(&call.address, call.at_ms);
    }

    fn failures(&self) -> MutexGuard<'_, Throttle<Option<IpAddr>>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
