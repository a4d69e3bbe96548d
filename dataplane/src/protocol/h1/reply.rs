//! What the proxy itself says to a client: errors in JSON, and a decent end of the connection.

use std::os::fd::OwnedFd;

use dataplane_core::error::{Detail, FaultKind};
use dataplane_core::h1::{BodyDecoder, ErrorBody, encode_error};

use super::super::ident::RequestId;
use super::request::Refusal;
use super::{Connection, Ended};
use crate::io::{Buf, Side, Ticks, Timer, Told};

/// How long a client may take to close after it was told the end, or to send the little that is left of a refused request.
const LINGER: Ticks = Ticks::of_millis(2_000);
/// How much it may still send meanwhile: the rest of a body that nobody wants.
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How much of its request a client that is turned away may have sent by then, without losing the answer to a reset.
const REFUSED_BYTES_MAX: usize = 64 * 1024;
/// Room for an error response: head and JSON.
const ERROR_BYTES_MAX: usize = 2048;

/// An error response.
pub(super) struct Reply {
    pub(super) kind: FaultKind,
    pub(super) id: RequestId,
    pub(super) keep_alive: bool,
    pub(super) head_only: bool,
    pub(super) detail: Option<&'static str>,
}

impl From<&Refusal> for Reply {
    fn from(refusal: &Refusal) -> Self {
        let &Refusal { kind, ref id, keep_alive, head_only, detail, .. } = refusal;
        Self { kind, id: id.clone(), keep_alive, head_only, detail: detail.and_then(Detail::for_client) }
    }
}

/// Sends an error response; false when the connection is over.
pub(super) async fn send(client: &Connection, reply: &Reply) -> bool {
    let Some(buf) = encode(reply) else { return false };
    client.arm(Side::ClientWrite, Timer::Send, client.send_timeout());
    let (sent, _) = super::super::exchange::send_all(&client.stream, buf, Told::AtOnce).await;
    client.deadlines.disarm(Side::ClientWrite);
    sent.is_ok() && reply.keep_alive
}

/// Ends a connection whose client may still be sending: our end goes out first, and what comes is thrown away for a
/// while. A close with bytes unread would be a reset, which can overtake the response (RFC 9112, section 9.6).
pub(super) async fn linger(client: &Connection) {
    client.stream.shutdown_write();
    client.arm(Side::ClientRead, Timer::Linger, LINGER);
    let mut thrown_away = 0;
    while thrown_away < LINGER_BYTES_MAX {
        match client.stream.recv().await {
            Ok(Some(received)) => thrown_away += received.len(),
            Ok(None) | Err(_) => return,
        }
    }
}

/// Throws away the rest of a body whose request was refused, so that the connection can go on behind it.
pub(super) async fn discard(client: &Connection, mut body: BodyDecoder) -> Ended {
    client.arm(Side::ClientRead, Timer::Linger, LINGER);
    loop {
        let Ok(Some(mut buf)) = client.stream.recv().await else { return Ended::Closed };
        let Ok(scan) = body.scan(buf.bytes()) else { return Ended::Closed };
        if scan.done {
            client.deadlines.disarm(Side::ClientRead);
            buf.consume(scan.consumed);
            return Ended::Open((!buf.is_empty()).then_some(buf));
        }
    }
}

/// Tells a client that the node is full, without waiting, and ends our side of the connection.
pub(super) fn refuse_connection(socket: &OwnedFd, kind: FaultKind, id: RequestId) {
    let Some(buf) = encode(&Reply { kind, id, keep_alive: false, head_only: false, detail: None }) else {
        return;
    };
    // Best effort: the few bytes fit into an empty send queue, and nobody waits for a client that is turned away.
    let _ = rustix::net::send(socket, buf.bytes(), rustix::net::SendFlags::NOSIGNAL);
    crate::sys::socket::shutdown(socket, rustix::net::Shutdown::Write);
    crate::sys::socket::discard(socket, REFUSED_BYTES_MAX);
}

fn encode(reply: &Reply) -> Option<Buf> {
    let status = reply.kind.status()?;
    let body = ErrorBody {
        message: &reply.kind.explain(reply.detail),
        kind: reply.kind.error_type(),
        code: reply.kind.as_str(),
        request_id: reply.id.as_str(),
    };
    let mut room = [0; ERROR_BYTES_MAX];
    let retry_after = reply.kind.retry_after_s();
    let bytes =
        encode_error(&mut room, status, &body, reply.keep_alive, retry_after, reply.head_only).ok()?;
    let mut buf = Buf::small();
    buf.append(&room[..bytes]).then_some(buf)
}
