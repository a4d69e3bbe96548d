//! `[limits]`: what one node takes on at most, and how long it waits for a client.

use std::time::Duration;

/// Limits of the whole node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Open client connections; the next one is answered 503 and closed.
    pub connections: u32,
    /// Exchanges in flight; the next one is answered 503 with `Retry-After`. None: no limit but connections.
    pub requests: Option<u32>,
    /// Bytes of buffers that one worker lends to its exchanges; above it a new request is answered 503 with
    /// `Retry-After`, and those that go on get small buffers only.
    pub worker_memory_bytes: u64,
    /// Bytes of a request (and of a response) head; 431 above it.
    pub request_head_bytes: u32,
    /// Header fields of a request (and of a response) head; 431 above it. At most [`FIELDS_MAX`].
    pub request_header_fields: u32,
    /// From the first byte of a request head to its last.
    pub request_head_timeout: Duration,
    /// Longest silence of a client in the middle of its request body.
    pub request_body_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub keep_alive_timeout: Duration,
    /// How long a client may take none of the bytes that wait for it.
    pub send_timeout: Duration,
    /// How long exchanges may go on after a drain began.
    pub drain_timeout: Duration,
}

/// Most header fields that one head may have: the parser keeps them on the stack.
pub const FIELDS_MAX: u32 = 256;
