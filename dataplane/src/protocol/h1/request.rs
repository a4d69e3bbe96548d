//! From a request's bytes to an exchange that is ready to go: parsed, routed, admitted, rewritten in its buffer.
//!
//! All in one call without a wait, so that the parsed head can borrow the buffer and the worker's field index.

use std::rc::Rc;

use dataplane_core::balance::Tried;
use dataplane_core::error::{Detail, FaultKind};
use dataplane_core::expect::Continue;
use dataplane_core::h1::{
    Asked, BodyDecoder, Client, HeadErrorKind, HeadScan, HostChoice, RequestEdits, RequestError, RequestHead,
    Scan, encode_request, parse_request,
};
use dataplane_core::half_close::WhenInputEnds;
use dataplane_core::limit::RequestPermit;
use dataplane_core::request::{BodyLength, Method, Version};
use dataplane_core::route::RequestView;
use proto::config::HostHeader;

use super::super::access::Notes;
use super::super::context::View;
use super::super::exchange::{Exchange, Try, count};
use super::super::ident::RequestId;
use super::Connection;
use crate::io::Buf;

/// How much of a body may still come that nobody wants, to keep its client's connection: more than a chat request has, and
/// still less work than a new connection with its handshakes.
const UNWANTED_BODY_BYTES_MAX: u64 = 64 * 1024;

/// The name of this proxy in `Via`.
pub(super) const PSEUDONYM: &str = "millrace";

/// What the bytes received so far are.
pub(super) enum Reading {
    /// The beginning of a head.
    Partial(Buf),
    /// A request to be carried.
    Admitted(Admitted),
    /// A request, or something else, that is answered here and now.
    Refused(Refusal),
}

/// A request that has a route and an endpoint.
pub(super) struct Admitted {
    pub(super) exchange: Box<Exchange>,
    pub(super) first: Try,
    /// The head for the endpoint and the body bytes that came with it.
    pub(super) request: Buf,
    /// What is still to come of the body.
    pub(super) upload: Option<Box<BodyDecoder>>,
    /// Bytes behind this request.
    pub(super) rest: Option<Buf>,
    pub(super) asked: Asked,
    pub(super) client: Client,
}

/// A request that is not carried anywhere.
pub(super) struct Refusal {
    pub(super) kind: FaultKind,
    pub(super) id: RequestId,
    /// Whether the connection can go on: its bytes are understood up to here, and little is still to come of a body.
    pub(super) keep_alive: bool,
    pub(super) head_only: bool,
    /// What is known beyond the kind.
    pub(super) detail: Option<Detail>,
    /// The route that it had come to.
    pub(super) route: Option<(Rc<View>, usize)>,
    /// What can be told of it; only where a log is going to.
    pub(super) notes: Option<Box<Notes>>,
    /// When its head was complete, or when a head began that was never complete: a stamp of the worker's fine clock.
    pub(super) began: u64,
    /// What is still to come of the request's body, if the connection can go on behind it.
    pub(super) unwanted: Option<Box<BodyDecoder>>,
    /// What came behind the request.
    pub(super) rest: Option<Buf>,
}

/// What a head has been decided to become; it borrows nothing, so that the buffer can be changed.
struct Decision {
    route: usize,
    permit: RequestPermit,
    id: RequestId,
    client: Client,
    asked: Asked,
    /// Length of the old head.
    head_bytes: usize,
    /// Length of the new one, in the worker's scratch memory.
    encoded_bytes: usize,
    /// Stands behind the body bytes that came with the head.
    decoder: BodyDecoder,
    /// What those bytes are.
    body: Scan,
    permission: Continue,
    when_input_ends: WhenInputEnds,
    first: Try,
    notes: Option<Box<Notes>>,
}

/// Why a request whose head was read goes no further.
struct Declined {
    kind: FaultKind,
    detail: Option<Detail>,
    /// How far it had come.
    route: Option<usize>,
}

impl Declined {
    fn at(route: usize, kind: FaultKind) -> Self {
        Self { kind, detail: None, route: Some(route) }
    }

    fn because(mut self, detail: Detail) -> Self {
        self.detail = Some(detail);
        self
    }
}

/// Reads the request that `input` begins with; `scan` remembers how far an unfinished head has been looked at.
pub(super) fn read(client: &Connection, input: Buf, scan: &mut HeadScan) -> Reading {
    let context = &client.context;
    let began = context.stamp();
    let Some(view) = client.view() else {
        return Reading::Refused(Refusal::unread(FaultKind::Overloaded, context.request_id(), began));
    };
    let decided = {
        let mut fields = context.fields.borrow_mut();
        match parse_request(input.bytes(), scan, &mut fields, &view.head_limits) {
            Ok(Some(head)) => decide(client, &view, &head, input.bytes()).map_err(|declined| {
                let (mut refusal, bytes) = Refusal::of(client, &declined, &head, input.bytes(), began);
                refusal.route = declined.route.map(|route| (Rc::clone(&view), route));
                refusal.note(&view, || Notes::of_head(client.peer(), &head));
                (refusal, bytes)
            }),
            Ok(None) => return Reading::Partial(input),
            Err(error) => {
                let mut refusal = Refusal::malformed(&error, context.request_id(), began);
                refusal.note(&view, || Notes::of_bytes(client.peer(), input.bytes()));
                Err((refusal, 0))
            }
        }
    };
    let decision = match decided {
        Ok(decision) => decision,
        Err((refusal, bytes)) => return Reading::Refused(refusal.behind(input, bytes)),
    };
    Reading::Admitted(rewrite(
        client,
        decision,
        |id, method, route| {
            Box::new(Exchange::begin(context, view, &client.ingress, route, (id, method, began)))
        },
        input,
    ))
}

/// Finds route and endpoint, and encodes the new head into the worker's scratch memory. `input` begins with the head.
fn decide(
    client: &Connection,
    view: &View,
    head: &RequestHead<'_>,
    input: &[u8],
) -> Result<Decision, Declined> {
    let context = &client.context;
    let id = id_of(client, head);
    let request = RequestView {
        host: head.host.map_or(&b""[..], |host| host.name.as_bytes()),
        path: head.target.path.as_bytes(),
        method: head.method_text,
        header: &|name| {
            head.fields
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))
                .map(|field| field.value)
        },
    };
    let route = view.live.snapshot.route(client.ingress.index(), &request);
    let route = route.ok_or(Declined { kind: FaultKind::NoRoute, detail: None, route: None })?;
    let declined = |kind| Declined::at(route, kind);
    let config = &view.routes[route].entry.config;
    let mut decoder = BodyDecoder::for_request(head.length);
    let body = decoder
        .scan(&input[head.bytes..])
        .map_err(|error| declined(FaultKind::MalformedRequest).because(Detail::Rule(error.as_str())))?;
    let announced = if let BodyLength::Sized(length) = head.length { length } else { body.data };
    if config.request_body_max.is_some_and(|max| announced > max) {
        return Err(declined(FaultKind::BodyTooLarge));
    }
    if crate::io::is_short() {
        // What goes on needs the memory: who comes later is better off elsewhere.
        return Err(declined(FaultKind::Overloaded).because(Detail::Node("limits.worker_memory")));
    }
    let cluster = &view.routes[route].cluster;
    let Some((index, endpoint)) = cluster.pick(&Tried::NONE) else {
        cluster.stats().no_endpoint.increment();
        return Err(declined(FaultKind::NoEndpoint));
    };
    let edits = RequestEdits {
        host: match &cluster.entry.config.host_header {
            HostHeader::Keep => HostChoice::Keep { fallback: &endpoint.name },
            HostHeader::Endpoint => HostChoice::Replace(&endpoint.name),
            HostHeader::Fixed(host) => HostChoice::Replace(host),
        },
        client: client.peer().map(|peer| peer.ip()),
        scheme: "http",
        trust_forwarded: false,
        request_id: id.as_bytes(),
        via: PSEUDONYM,
        rules: &config.headers.request,
        body: head.length,
        expect_continue: true,
        upgrade: true,
        close: false,
    };
    let encoded = encode_request(&mut context.scratch.borrow_mut(), head, &edits);
    let encoded_bytes = encoded.map_err(|_| {
        declined(FaultKind::RequestHeadTooLarge).because(Detail::Node("with the fields that the route adds"))
    })?;
    let permit = context.admission().try_request();
    let permit =
        permit.ok_or_else(|| declined(FaultKind::Overloaded).because(Detail::Node("limits.requests")))?;
    let half_close = view.live.snapshot.listeners[client.ingress.index()].config.half_close;
    Ok(Decision {
        route,
        permit,
        id,
        client: Client { version: head.version, keep_alive: head.keep_alive, method: head.method },
        asked: Asked { method: head.method, upgrade: head.upgrade.is_some() },
        head_bytes: head.bytes,
        encoded_bytes,
        decoder,
        body,
        permission: Continue::of_request(head.expect_continue),
        when_input_ends: WhenInputEnds::of_request(half_close, head.method, head.wants_events),
        first: Try { index, endpoint, may_reuse: true },
        notes: view.live.access.is_some().then(|| Box::new(Notes::of_head(client.peer(), head))),
    })
}

/// Puts the new head in the place of the old one, and finds out where the request ends.
fn rewrite(
    client: &Connection,
    decision: Decision,
    begin: impl FnOnce(RequestId, Method, (usize, RequestPermit)) -> Box<Exchange>,
    mut input: Buf,
) -> Admitted {
    let Decision { decoder, body, .. } = decision;
    let mut exchange = begin(decision.id, decision.asked.method, (decision.route, decision.permit));
    input.consume(decision.head_bytes);
    count(&exchange.tally.bytes_in, body.data);
    let is_whole = body.done || decoder.is_done();
    let rest = (body.consumed < input.len()).then(|| copy_of(&input.bytes()[body.consumed..]));
    input.truncate(body.consumed);
    let scratch = client.context.scratch.borrow();
    put_head(&scratch[..decision.encoded_bytes], &mut input);
    exchange.notes = decision.notes;
    exchange.permission.set(decision.permission);
    exchange.when_input_ends = decision.when_input_ends;
    exchange.is_asked.set(is_whole);
    exchange.is_followed.set(rest.is_some());
    let mut asked_by = decision.client;
    asked_by.keep_alive &= !client.is_ending();
    Admitted {
        exchange,
        first: decision.first,
        request: input,
        upload: (!is_whole).then(|| Box::new(decoder)),
        rest,
        asked: decision.asked,
        client: asked_by,
    }
}

/// Puts `head` in front of the content of `body`, without moving the body if the head fits there.
pub(super) fn put_head(head: &[u8], body: &mut Buf) {
    if body.prepend(head) {
        return;
    }
    let mut whole = Buf::of(head.len() + body.len());
    let fits = whole.append(head) && whole.append(body.bytes());
    debug_assert!(fits, "made to measure");
    *body = whole;
}

fn copy_of(bytes: &[u8]) -> Buf {
    let mut copy = Buf::small();
    if !copy.append(bytes) {
        copy = Buf::of(bytes.len());
        copy.append(bytes);
    }
    copy
}

/// What the request is called in logs and answers: as its client says, or by a new name.
fn id_of(client: &Connection, head: &RequestHead<'_>) -> RequestId {
    match head.request_id() {
        Some(id) => RequestId::Theirs(id.into()),
        None => client.context.request_id(),
    }
}

impl Refusal {
    /// Of something that was not read to its end, so that the connection cannot go on.
    pub(super) fn unread(kind: FaultKind, id: RequestId, began: u64) -> Self {
        Self {
            kind,
            id,
            keep_alive: false,
            head_only: false,
            detail: None,
            route: None,
            notes: None,
            began,
            unwanted: None,
            rest: None,
        }
    }

    /// Takes notes where a log is going to tell of it.
    pub(super) fn note(&mut self, view: &View, notes: impl FnOnce() -> Notes) {
        if view.live.access.is_some() || tracing::enabled!(tracing::Level::DEBUG) {
            self.notes = Some(Box::new(notes()));
        }
    }

    /// Of the request with this head, at the beginning of `input`; with the number of bytes that belong to it.
    fn of(
        client: &Connection,
        declined: &Declined,
        head: &RequestHead<'_>,
        input: &[u8],
        began: u64,
    ) -> (Self, usize) {
        let mut refusal = Self::unread(declined.kind, id_of(client, head), began);
        refusal.detail = declined.detail;
        refusal.head_only = head.method == Method::Head;
        let mut decoder = BodyDecoder::for_request(head.length);
        let Ok(scan) = decoder.scan(&input[head.bytes..]) else { return (refusal, 0) };
        if !scan.done {
            let left = match decoder {
                BodyDecoder::Sized { left } => left,
                BodyDecoder::Chunked(_) | BodyDecoder::UntilClose => u64::MAX,
            };
            // RFC 9110, section 10.1.1: who asked whether to send a body may leave it out now, or send it all the same.
            if head.expect_continue || left > UNWANTED_BODY_BYTES_MAX {
                return (refusal, 0);
            }
            refusal.unwanted = Some(Box::new(decoder));
        }
        // An error does not say `Connection: keep-alive`, which an HTTP/1.0 client would have to hear.
        refusal.keep_alive = head.keep_alive && head.version != Version::Http10 && !client.is_ending();
        (refusal, head.bytes + scan.consumed)
    }

    /// Keeps what `input` has behind the `bytes` of the refused request, which is the beginning of the next one.
    fn behind(mut self, mut input: Buf, bytes: usize) -> Self {
        if self.keep_alive {
            input.consume(bytes);
            self.rest = (!input.is_empty()).then_some(input);
        }
        self
    }

    fn malformed(error: &RequestError, id: RequestId, began: u64) -> Self {
        let kind = match error.status {
            414 => FaultKind::UriTooLong,
            417 => FaultKind::ExpectationFailed,
            431 => FaultKind::RequestHeadTooLarge,
            501 if error.kind == HeadErrorKind::UnsupportedEncoding => FaultKind::UnsupportedTransferCoding,
            501 => FaultKind::UnsupportedMethod,
            505 => FaultKind::UnsupportedVersion,
            _ => FaultKind::MalformedRequest,
        };
        Self { detail: Some(Detail::Rule(error.kind.as_str())), ..Self::unread(kind, id, began) }
    }
}
