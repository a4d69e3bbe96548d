//! What the agent reports of its host and of the data plane, read from where others write it: `/proc` and `/metrics`.

pub mod host;
pub mod metrics;

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock, as messages have it.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
