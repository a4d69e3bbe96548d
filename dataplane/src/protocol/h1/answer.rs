//! A response on its way down: its head rewritten in its buffer, its body passed on read by read.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::task::Poll;

use dataplane_core::error::FaultKind;
use dataplane_core::expect::{Continue, ORIGIN_SILENCE_MAX};
use dataplane_core::h1::{
    Asked, BodyDecoder, CONTINUE, Client, HeadScan, ResponseEdits, ResponseHead, ResponseLength, SendLength,
    Sending, encode_response, parse_response, response_framing,
};
use dataplane_core::half_close::Answer;
use dataplane_core::request::Version;
use dataplane_core::retry::Phase;

use super::super::exchange::{Exchange, Failed, Reached, count, phase_after_send};
use super::Connection;
use super::request::{PSEUDONYM, put_head};
use crate::io::{Buf, Received, Side, Stream, Timer, Told, sleep};
use crate::relay::Transit;

/// A response that was passed on to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    /// The upstream connection can serve another exchange.
    pub(super) keep_upstream: bool,
    /// For how long it may wait for that.
    pub(super) idle_ms_max: u32,
    /// The client's connection can.
    pub(super) keep_client: bool,
    /// Both ends have left HTTP behind.
    pub(super) is_switched: bool,
}

/// What a response head has been decided to become.
struct Opening {
    transit: Transit,
    answered: Answered,
    /// Nothing follows what is in the buffer.
    is_whole: bool,
    status: u16,
    answer: Answer,
}

/// What the bytes received so far are.
enum Opened {
    /// The beginning of a head.
    Partial,
    /// An interim response.
    Interim(Interim),
    /// The response: its new head and the first of its body are in the buffer.
    Final(Opening),
}

struct Interim {
    /// In the buffer it is sent from; none if the client knows no such thing, or has had it.
    sent: Option<Buf>,
    /// Its head said no more than it may.
    is_plain: bool,
}

/// Passes on the answer of `reached`, up to its last part, which is for [`send_last`]: the endpoint has done its work then,
/// and others need not wait for its connection until a slow client has taken all.
pub(super) async fn answer(
    client: &Connection,
    exchange: &Exchange,
    reached: &Reached,
    asked: Asked,
    wants: Client,
) -> Result<(Answered, Buf), Failed> {
    let (mut opening, mut buf) = head(client, exchange, reached, asked, wants).await?;
    exchange.tally.status.set(Some(opening.status));
    exchange.answer.set(opening.answer);
    exchange.stamp_first_chunk();
    let started = |kind| Failed { kind, phase: Phase::ResponseStarted };
    let idle = exchange.route().idle;
    let upstream = &reached.stream;
    let mut is_full = buf.spare() == 0;
    loop {
        if opening.is_whole {
            return Ok((opening.answered, buf));
        }
        if !buf.is_empty() {
            let told = if upstream.is_listening() { Told::WithNext } else { Told::AtOnce };
            send(client, exchange, buf, told).await.map_err(started)?;
        }
        client.deadlines.arm(Side::Upstream, Timer::Idle, upstream.as_raw_fd(), idle);
        let received = if is_full { upstream.recv_bulk().await } else { upstream.recv().await };
        buf = match received {
            Ok(Some(received)) => received,
            Ok(None) if client.deadlines.fired().is_none() => {
                // RFC 9112, section 8: only a body that ends with the connection ends so.
                let end = opening.transit.finish().map_err(|_| started(FaultKind::UpstreamTruncated))?;
                buf = Buf::small();
                buf.append(end);
                opening.is_whole = true;
                continue;
            }
            Ok(None) => return Err(started(end_kind(client, FaultKind::UpstreamTruncated))),
            Err(error) => return Err(started(end_kind(client, failure_kind(&error)))),
        };
        // What fills a small buffer is followed by a large one, what would have fit by a small one.
        is_full = buf.fills_small();
        if pass(exchange, &mut opening, &mut buf).map_err(started)? > 0 {
            exchange.stamp_chunk();
        }
    }
}

/// Waits for the response head, passing interim ones on.
async fn head(
    client: &Connection,
    exchange: &Exchange,
    reached: &Reached,
    asked: Asked,
    wants: Client,
) -> Result<(Opening, Buf), Failed> {
    let upstream = &reached.stream;
    let await_first_byte = || {
        let timeout = exchange.route().first_byte;
        client.deadlines.arm(Side::Upstream, Timer::FirstByte, upstream.as_raw_fd(), timeout);
    };
    if exchange.is_asked.get() {
        await_first_byte();
    }
    let mut partial: Option<Buf> = None;
    let mut scan = HeadScan::default();
    let mut is_plain = true;
    loop {
        let is_nothing_received = partial.is_none();
        let received = match partial.take() {
            // Boxed where it is rare, so that the usual exchange stays small.
            None if exchange.is_permission_due() => {
                match Box::pin(recv_or_give_permission(client, exchange, upstream)).await {
                    Ok(received) => received,
                    Err(kind) => return Err(Failed { kind, phase: Phase::ResponseStarted }),
                }
            }
            None => upstream.recv().await,
            Some(partial) => {
                let mut head = partial.with_room();
                upstream.recv_behind(&mut head).await.map(|has_more| has_more.then_some(head))
            }
        };
        let mut buf = match received {
            Ok(Some(buf)) => buf,
            end @ (Ok(None) | Err(_)) => {
                reached.endpoint.stats.failures.increment();
                return Err(no_head(client, end.err(), is_nothing_received, reached.is_reused));
            }
        };
        exchange.stamp_answered();
        loop {
            match open(client, exchange, &mut buf, &mut scan, asked, wants)? {
                Opened::Partial => {
                    partial = Some(buf);
                    break;
                }
                Opened::Interim(interim) => {
                    scan = HeadScan::default();
                    is_plain &= interim.is_plain;
                    if let Some(interim) = interim.sent {
                        let started = |kind| Failed { kind, phase: Phase::ResponseStarted };
                        send_all(client, exchange, interim, Told::AtOnce).await.map_err(started)?;
                    }
                    if exchange.is_asked.get() {
                        await_first_byte();
                    }
                    if buf.is_empty() {
                        break;
                    }
                }
                Opened::Final(mut opening) => {
                    opening.answered.keep_upstream &= is_plain;
                    exchange.settle();
                    return Ok((opening, buf));
                }
            }
        }
    }
}

/// Receives from an endpoint whose client waits for permission to send its body. If nothing comes for a while and the client
/// still waits, it gets ours: an origin that does not know of the expectation never gives one (RFC 9110, section 10.1.1).
///
/// # Errors
/// The client is gone, or does not read.
async fn recv_or_give_permission(
    client: &Connection,
    exchange: &Exchange,
    upstream: &Stream,
) -> Result<Received, FaultKind> {
    {
        let mut receiving = pin!(upstream.recv());
        let mut silence = pin!(sleep(ORIGIN_SILENCE_MAX));
        let received = std::future::poll_fn(|context| match receiving.as_mut().poll(context) {
            Poll::Ready(received) => Poll::Ready(Some(received)),
            Poll::Pending => silence.as_mut().poll(context).map(|()| None),
        });
        if let Some(received) = received.await {
            return Ok(received);
        }
    }
    if exchange.is_permission_due() {
        let mut permission = Buf::small();
        permission.append(CONTINUE);
        exchange.permission.set(Continue::Told);
        send_all(client, exchange, permission, Told::AtOnce).await?;
    }
    Ok(upstream.recv().await)
}

/// Reads the head that `buf` begins with, and puts the new one in its place.
fn open(
    client: &Connection,
    exchange: &Exchange,
    buf: &mut Buf,
    scan: &mut HeadScan,
    asked: Asked,
    mut wants: Client,
) -> Result<Opened, Failed> {
    let malformed = |kind| Failed { kind, phase: Phase::ResponseStarted };
    let context = &client.context;
    wants.keep_alive &= !client.is_ending();
    let mut fields = context.fields.borrow_mut();
    let head = match parse_response(buf.bytes(), scan, &mut fields, asked, &exchange.view.head_limits) {
        Ok(Some(head)) => head,
        Ok(None) => return Ok(Opened::Partial),
        Err(error) => return Err(malformed(exchange.explain(error))),
    };
    if let Some(superfluous) = head.superfluous {
        let (status, superfluous) = (head.status, superfluous.as_str());
        tracing::debug!(
            status,
            superfluous,
            "the endpoint's response is passed on without superfluous fields"
        );
    }
    // RFC 9110, section 10.1.1: a refusal that comes before the end of the request says that the rest is not read.
    // So does any final answer to a client that still waits for permission to send it.
    let is_declined = exchange.is_permission_due() && !head.is_interim();
    wants.keep_alive &= exchange.is_asked.get() || (head.status < 300 && !is_declined);
    let sending = response_framing(&wants, &head);
    let edits = ResponseEdits {
        client_version: wants.version,
        sending,
        rules: &exchange.route().entry.config.headers.response,
        via: Some(PSEUDONYM),
        request_id: Some(exchange.id.as_bytes()),
    };
    let mut scratch = context.scratch.borrow_mut();
    let encoded = encode_response(&mut scratch, &head, &edits);
    let bytes = encoded.map_err(|_| malformed(FaultKind::UpstreamHeadTooLarge))?;
    let old_bytes = head.bytes;
    if head.is_interim() {
        // RFC 9110, section 15.2: a client of HTTP/1.0 must not be sent any.
        let permission = exchange.permission.get();
        let is_passed = wants.version != Version::Http10 && permission.passes(head.status);
        if head.status == 100 && is_passed {
            exchange.permission.set(permission.told());
        }
        let sent = is_passed.then(|| {
            let mut interim = Buf::small();
            put_head(&scratch[..bytes], &mut interim);
            interim
        });
        let is_plain = head.superfluous.is_none();
        buf.consume(old_bytes);
        return Ok(Opened::Interim(Interim { sent, is_plain }));
    }
    let mut opening = Opening {
        transit: transit(&head, sending),
        answered: Answered {
            keep_upstream: head.keep_alive && head.length != ResponseLength::UntilClose,
            idle_ms_max: head.idle_ms_max,
            keep_client: sending.keep_alive,
            is_switched: head.status == 101,
        },
        is_whole: false,
        status: head.status,
        answer: if head.is_event_stream() { Answer::EventStream } else { Answer::Begun },
    };
    buf.consume(old_bytes);
    if opening.answered.is_switched {
        // Whatever follows is no longer HTTP: it goes along as it is.
        opening.is_whole = true;
    } else {
        pass(exchange, &mut opening, buf).map_err(malformed)?;
    }
    put_head(&scratch[..bytes], buf);
    Ok(Opened::Final(opening))
}

/// How the response's body gets from the endpoint's framing to the client's.
fn transit(head: &ResponseHead<'_>, sending: Sending) -> Transit {
    let decoder = BodyDecoder::for_response(head.length);
    match (head.length, sending.length) {
        (ResponseLength::None, _) => Transit::Nothing,
        (ResponseLength::Chunked, SendLength::UntilClose) => Transit::Unwrap(decoder),
        (ResponseLength::UntilClose, SendLength::Chunked) => Transit::Wrap,
        (ResponseLength::Sized(_) | ResponseLength::Chunked | ResponseLength::UntilClose, _) => {
            Transit::Same(decoder)
        }
    }
}

/// Turns what was received of the body into what is sent of it; returns how much of it is body, not framing.
fn pass(exchange: &Exchange, opening: &mut Opening, buf: &mut Buf) -> Result<u64, FaultKind> {
    let passed = opening.transit.pass(buf).map_err(|error| exchange.explain(error.of_response()))?;
    count(&exchange.tally.bytes_out, passed.payload);
    count(&exchange.tally.chunks, u64::from(passed.payload > 0));
    opening.is_whole = passed.done;
    if passed.beyond > 0 {
        // Nobody asked for more: what comes behind could be taken for the next answer.
        opening.answered.keep_upstream = false;
    }
    Ok(passed.payload)
}

/// Sends the last part of an answer.
///
/// # Errors
/// The client is gone, or does not read.
pub(super) async fn send_last(
    client: &Connection,
    exchange: &Exchange,
    last: Buf,
    answered: Answered,
) -> Result<Answered, FaultKind> {
    let Answered { keep_client, is_switched, .. } = answered;
    let is_unhurried =
        keep_client && !is_switched && !exchange.is_end_awaited() && client.stream.is_listening();
    let told = if is_unhurried { Told::WithNext } else { Told::AtOnce };
    if !last.is_empty() {
        send(client, exchange, last, told).await?;
    }
    Ok(answered)
}

/// Sends a part of the answer.
async fn send(client: &Connection, exchange: &Exchange, part: Buf, told: Told) -> Result<(), FaultKind> {
    exchange.stamp_sent();
    send_all(client, exchange, part, told).await
}

/// Sends to the client, which may take its time but not for ever.
async fn send_all(
    client: &Connection,
    exchange: &Exchange,
    mut buf: Buf,
    told: Told,
) -> Result<(), FaultKind> {
    while !buf.is_empty() {
        client.arm(Side::ClientWrite, Timer::Send, exchange.view.send_timeout);
        let (sent, left) = client.stream.send(buf, told).await;
        client.deadlines.disarm(Side::ClientWrite);
        buf = left;
        if !matches!(sent, Ok(1..)) {
            return Err(end_kind(client, FaultKind::ClientGone));
        }
    }
    Ok(())
}

/// Why there is no response head.
fn no_head(
    client: &Connection,
    error: Option<io::Error>,
    is_nothing_received: bool,
    is_reused: bool,
) -> Failed {
    let is_reset = error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
    let kind = if is_reset { FaultKind::UpstreamReset } else { FaultKind::UpstreamClosedEarly };
    let phase = match client.deadlines.fired() {
        _ if !is_nothing_received => Phase::ResponseStarted,
        Some(_) => Phase::SentBeforeResponse,
        None => phase_after_send(is_reused),
    };
    Failed { kind: end_kind(client, kind), phase }
}

fn failure_kind(error: &io::Error) -> FaultKind {
    let is_reset = error.kind() == io::ErrorKind::ConnectionReset;
    if is_reset { FaultKind::UpstreamReset } else { FaultKind::UpstreamTruncated }
}

/// The deadline that has passed, if one has: it has made the failure. Else `otherwise`.
pub(super) fn end_kind(client: &Connection, otherwise: FaultKind) -> FaultKind {
    match client.deadlines.fired() {
        None => otherwise,
        Some(Timer::RequestHead) => FaultKind::RequestHeadTimeout,
        Some(Timer::RequestBody) => FaultKind::RequestBodyTimeout,
        Some(Timer::Linger) => FaultKind::KeepAliveTimeout,
        Some(Timer::Send) => FaultKind::SendTimeout,
        Some(Timer::Connect) => FaultKind::ConnectTimeout,
        Some(Timer::UpstreamSend | Timer::FirstByte) => FaultKind::FirstByteTimeout,
        Some(Timer::Idle) => FaultKind::IdleTimeout,
        Some(Timer::Total) => FaultKind::TotalTimeout,
    }
}
