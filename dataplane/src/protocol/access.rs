//! From the end of an exchange, or of what did not become one, to a record of the access log.
//!
//! Only used while the log is on: taking notes allocates, and a record reads the clock.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataplane_core::error::FaultKind;
use dataplane_core::h1::{Glimpse, RequestHead};
use dataplane_core::request::Method;
use dataplane_core::snapshot::RouteEntry;

use super::context::Context;
use super::exchange::Tally;
use super::ident::RequestId;
use crate::metrics::access::{AccessLog, AccessRecord};

/// What the logs want to know of a request, taken while its bytes were at hand.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(super) client: Option<SocketAddr>,
    pub(super) method: Option<Method>,
    pub(super) host: Option<Box<str>>,
    pub(super) path: Option<Box<str>>,
    /// The last endpoint that was tried.
    pub(super) endpoint: RefCell<Option<Box<str>>>,
}

impl Notes {
    /// Of a client that has said nothing.
    pub(super) fn of_client(client: Option<SocketAddr>) -> Self {
        Self { client, ..Self::default() }
    }

    /// Of a request whose head was read.
    pub(super) fn of_head(client: Option<SocketAddr>, head: &RequestHead<'_>) -> Self {
        Self {
            method: Some(head.method),
            host: head.host.map(|host| host.raw.into()),
            path: Some(head.target.path.into()),
            ..Self::of_client(client)
        }
    }

    /// Of bytes that are no head, or not yet.
    pub(super) fn of_bytes(client: Option<SocketAddr>, bytes: &[u8]) -> Self {
        let Glimpse { method, path, host } = Glimpse::of(bytes);
        Self { method, host: host.map(Box::from), path: path.map(Box::from), ..Self::of_client(client) }
    }
}

/// Something that ended, as the log has it.
pub(super) struct Entry<'a> {
    pub(super) id: &'a RequestId,
    /// The listener's name.
    pub(super) listener: &'a str,
    pub(super) notes: &'a Notes,
    pub(super) tally: &'a Tally,
    /// The route, if it had come to one.
    pub(super) route: Option<&'a Arc<RouteEntry>>,
    pub(super) status: Option<u16>,
    pub(super) fault: Option<FaultKind>,
    pub(super) detail: Option<&'static str>,
}

/// Hands the record of `entry` to the log's writer.
pub(super) fn write(log: &AccessLog, context: &Context, entry: &Entry<'_>) {
    let &Entry { id, listener, notes, tally, route, status, fault, detail } = entry;
    let since_begin = |stamp| context.nanoseconds(tally.began.get(), stamp);
    let duration_ns = since_begin(context.stamp());
    let began = SystemTime::now() - Duration::from_nanos(duration_ns);
    let ttft = Some(tally.first_body_byte.get()).filter(|stamp| *stamp != 0);
    log.push(AccessRecord {
        began_unix_ms: began.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        request_id: id.as_str().into(),
        client: notes.client,
        listener: listener.into(),
        method: notes.method,
        host: notes.host.clone(),
        path: notes.path.clone(),
        route: route.map(Arc::clone),
        endpoint: notes.endpoint.borrow().clone(),
        status,
        ttft_ns: ttft.map(since_begin),
        largest_gap_ns: tally.largest_gap_ns.get(),
        chunks: tally.chunks.get(),
        bytes_in: tally.bytes_in.get(),
        bytes_out: tally.bytes_out.get(),
        duration_ns,
        fault,
        detail,
    });
}
