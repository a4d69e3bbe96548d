//! `[limits]` as written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::value::{At, DurationText, SizeText};

/// Limits of the whole node, and how long it waits for a client.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Open client connections; the next one is answered 503 and closed. Default: 100000.
    #[schemars(range(min = 1))]
    pub(crate) connections: Option<At<i64>>,
    /// Exchanges in flight; the next one is answered 503. Default: no limit but `connections`.
    #[schemars(range(min = 1))]
    pub(crate) requests: Option<At<i64>>,
    /// Memory that one worker lends to its exchanges as buffers; a new request above it is answered 503; at least 1MiB.
    /// Default: 512MiB.
    pub(crate) worker_memory: Option<At<SizeText>>,
    /// Size of a request head, and of a response head; 1KiB to 64KiB. Default: 32KiB.
    pub(crate) request_head: Option<At<SizeText>>,
    /// Header fields of a request, and of a response. Default: 128.
    #[schemars(range(min = 1, max = 256))]
    pub(crate) request_header_fields: Option<At<i64>>,
    /// From the first byte of a request head to its last. Default: 10s.
    pub(crate) request_head_timeout: Option<At<DurationText>>,
    /// Longest silence of a client in the middle of its request body. Default: 60s.
    pub(crate) request_body_timeout: Option<At<DurationText>>,
    /// How long a connection may wait for its next request. Default: 75s.
    pub(crate) keep_alive_timeout: Option<At<DurationText>>,
    /// How long a client may take none of the bytes that wait for it. Default: 60s.
    pub(crate) send_timeout: Option<At<DurationText>>,
    /// How long exchanges may go on after a drain began; `0s` ends them at once. Default: 60s.
    pub(crate) drain_timeout: Option<At<DurationText>>,
}
