//! The rules of `[limits]`.

use std::time::Duration;

use super::values::{duration, integer, size};
use crate::config::file;
use crate::config::limits::{FIELDS_MAX, Limits};
use crate::config::problem::Problems;

/// More sockets than one process can have open (`fs.nr_open` allows 2^20 unless raised; a connection needs two).
const CONNECTIONS_MAX: i64 = 10_000_000;
/// Less does not carry a dozen exchanges with large bodies.
const WORKER_MEMORY_MIN: u64 = 1 << 20;
/// More than any host has for one of its cores.
const WORKER_MEMORY_MAX: u64 = 1 << 40;
/// A head shorter than this refuses ordinary requests.
const REQUEST_HEAD_MIN: u64 = 1024;
/// A head is kept in one buffer of a worker's pool.
const REQUEST_HEAD_MAX: u64 = 64 * 1024;
/// The finest that timers tell apart.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// Longer waits for a client are as good as none.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);
/// The longest streams that are worth a wait.
const DRAIN_MAX: Duration = Duration::from_hours(7 * 24);

/// Checks `[limits]`.
pub(super) fn limits(file: &file::Limits, problems: &mut Problems) -> Limits {
    let default = Limits::default();
    let range = TIMEOUT_MIN..=TIMEOUT_MAX;
    let mut timeout = |field, default| duration(field, range.clone(), default, problems);
    let request_head_timeout = timeout(&file.request_head_timeout, default.request_head_timeout);
    let request_body_timeout = timeout(&file.request_body_timeout, default.request_body_timeout);
    let keep_alive_timeout = timeout(&file.keep_alive_timeout, default.keep_alive_timeout);
    let send_timeout = timeout(&file.send_timeout, default.send_timeout);
    let drain_timeout =
        duration(&file.drain_timeout, Duration::ZERO..=DRAIN_MAX, default.drain_timeout, problems);
    let request_head = size(&file.request_head, REQUEST_HEAD_MIN..=REQUEST_HEAD_MAX, problems);
    let worker_memory = size(&file.worker_memory, WORKER_MEMORY_MIN..=WORKER_MEMORY_MAX, problems);
    let fields = 1..=i64::from(FIELDS_MAX);
    Limits {
        connections: integer(&file.connections, 1..=CONNECTIONS_MAX, default.connections, problems),
        requests: file.requests.as_ref().map(|_| integer(&file.requests, 1..=CONNECTIONS_MAX, 1, problems)),
        worker_memory_bytes: worker_memory.unwrap_or(default.worker_memory_bytes),
        request_head_bytes: request_head
            .and_then(|bytes| u32::try_from(bytes).ok())
            .unwrap_or(default.request_head_bytes),
        request_header_fields: integer(
            &file.request_header_fields,
            fields,
            default.request_header_fields,
            problems,
        ),
        request_head_timeout,
        request_body_timeout,
        keep_alive_timeout,
        send_timeout,
        drain_timeout,
    }
}
