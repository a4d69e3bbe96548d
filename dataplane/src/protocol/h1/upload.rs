//! A request body on its way up, while its response may already be on its way down.

use std::os::fd::AsRawFd;

use dataplane_core::error::{Fault, FaultKind};
use dataplane_core::h1::BodyDecoder;

use super::super::exchange::{Exchange, count, send_all};
use super::Connection;
use crate::io::{Buf, Side, Stream, Timer, Told};
use crate::relay::Transit;

/// How an upload ended.
pub(super) enum Uploaded {
    /// The endpoint has all of it. Bytes that followed are the beginning of the next request.
    Whole(Option<Buf>),
    /// The endpoint takes no more. Its answer, if there is one, tells why.
    NotWanted,
}

/// Carries what is still to come of a request body to `upstream`.
///
/// # Errors
/// The client went away, fell silent, or sent what is no body.
pub(super) async fn upload(
    client: &Connection,
    exchange: &Exchange,
    upstream: &Stream,
    decoder: BodyDecoder,
) -> Result<Uploaded, FaultKind> {
    let deadlines = &client.deadlines;
    let max = exchange.route().entry.config.request_body_max;
    let mut transit = Transit::Same(decoder);
    let mut is_full = false;
    loop {
        client.arm(Side::ClientRead, Timer::RequestBody, exchange.view.request_body_timeout);
        let received = if is_full { client.stream.recv_bulk().await } else { client.stream.recv().await };
        let mut buf = match received {
            Ok(Some(received)) => received,
            Ok(None) | Err(_) if deadlines.fired() == Some(Timer::RequestBody) => {
                return Err(FaultKind::RequestBodyTimeout);
            }
            Ok(None) | Err(_) => return Err(FaultKind::ClientGone),
        };
        is_full = buf.fills_small();
        let received = buf.len();
        let passed = transit
            .pass(&mut buf)
            .map_err(|error| exchange.explain(Fault::because(FaultKind::MalformedRequest, error.as_str())))?;
        count(&exchange.tally.bytes_in, passed.payload);
        if max.is_some_and(|max| exchange.tally.bytes_in.get() > max) {
            return Err(FaultKind::BodyTooLarge);
        }
        exchange.keep(buf.bytes());
        let rest = (passed.beyond > 0).then(|| {
            let mut rest = Buf::of(passed.beyond);
            rest.append(buf.behind(received - passed.beyond, passed.beyond));
            rest
        });
        deadlines.disarm(Side::ClientRead);
        deadlines.arm(Side::Upload, Timer::UpstreamSend, upstream.as_raw_fd(), exchange.view.send_timeout);
        let is_awaited = upstream.is_listening() && (passed.done || client.stream.is_listening());
        let told = if is_awaited { Told::WithNext } else { Told::AtOnce };
        let (sent, _) = send_all(upstream, buf, told).await;
        deadlines.disarm(Side::Upload);
        if sent.is_err() {
            return Ok(Uploaded::NotWanted);
        }
        if passed.done {
            return Ok(Uploaded::Whole(rest));
        }
    }
}
