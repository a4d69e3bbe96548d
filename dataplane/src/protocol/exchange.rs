//! One request and its response: which endpoints are tried, what is measured, and how it ended.
//!
//! Every HTTP driver carries its exchanges through here; drivers differ only in how bytes become a request and a body.

use std::cell::{Cell, RefCell};
use std::os::fd::AsRawFd;
use std::rc::Rc;

use dataplane_core::balance::Tried;
use dataplane_core::error::{Blame, Fault, FaultKind};
use dataplane_core::expect::Continue;
use dataplane_core::half_close::{Answer, WhenInputEnds};
use dataplane_core::limit::RequestPermit;
use dataplane_core::request::Method;
use dataplane_core::retry::{self, Body, Phase, Retry, RetryState};
use dataplane_core::stats::RouteStats;
use proto::config::{Config, HostHeader};

use super::access::{self, Notes};
use super::context::{Context, RouteView, View};
use super::ident::RequestId;
use super::ingress::Ingress;
use crate::io::{
    Buf, Deadlines, HEAD_SIZE, LARGE_SIZE, Side, Stream, TICK, Timer, Told, inbox_bytes_most, sleep,
};
use crate::sys::socket::is_exhausted;
use crate::upstream::{ConnectFailure, Endpoint, InFlight, connect};

/// How often a connect is tried again for which there were no descriptors, a tick after each other.
const TRIES_WITHOUT_DESCRIPTORS: usize = 5;

/// An exchange from its routed request to its end.
pub(crate) struct Exchange {
    pub(crate) context: Rc<Context>,
    pub(crate) view: Rc<View>,
    pub(crate) ingress: Rc<Ingress>,
    route: usize,
    pub(crate) id: RequestId,
    pub(crate) method: Method,
    permit: Option<RequestPermit>,
    tried: RefCell<Tried>,
    attempts: Cell<u32>,
    /// The encoded request head with the body bytes that came with it, as long as it may have to be sent again.
    kept: RefCell<Option<Buf>>,
    /// Whether all of the request has been sent: then the endpoint has to answer.
    pub(crate) is_asked: Cell<bool>,
    /// Whether bytes behind this request have come: then its end is waited for.
    pub(crate) is_followed: Cell<bool>,
    /// Whether body bytes beyond the kept ones have been sent.
    pub(crate) is_body_lost: Cell<bool>,
    /// How far the answer has come.
    pub(crate) answer: Cell<Answer>,
    /// Whether the client waits for permission to send its body.
    pub(crate) permission: Cell<Continue>,
    /// What follows when the client ends its side.
    pub(crate) when_input_ends: WhenInputEnds,
    /// Why the last try failed, where there is more to say than the fault's kind does.
    detail: Cell<Option<(FaultKind, &'static str)>>,
    pub(crate) tally: Tally,
    /// For the access log; none while it is off.
    pub(crate) notes: Option<Box<Notes>>,
    /// Whether its end was written down: what is dropped without that was cut.
    is_finished: Cell<bool>,
}

/// What is measured of an exchange. Stamps are the worker's fine clock; 0 is "not yet".
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) began: Cell<u64>,
    /// The request, or its first part, was handed to the kernel.
    pub(crate) sent: Cell<u64>,
    /// The endpoint's first byte came.
    pub(crate) answered: Cell<u64>,
    /// The client's first byte was handed to the kernel.
    pub(crate) first_byte: Cell<u64>,
    /// The first byte of a body was handed to the kernel: of a stream, its first token. Only while the access log is on.
    pub(crate) first_body_byte: Cell<u64>,
    pub(crate) last_chunk: Cell<u64>,
    pub(crate) largest_gap_ns: Cell<u64>,
    pub(crate) chunks: Cell<u64>,
    /// Body bytes from the client.
    pub(crate) bytes_in: Cell<u64>,
    /// Body bytes to the client.
    pub(crate) bytes_out: Cell<u64>,
    /// The status that the client was sent.
    pub(crate) status: Cell<Option<u16>>,
}

/// Adds to a counter of one exchange.
pub(crate) fn count(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

/// An endpoint that has the request, or its first part.
pub(crate) struct Reached {
    pub(crate) stream: Stream,
    pub(crate) endpoint: InFlight,
    pub(crate) index: usize,
    /// The connection had served before: the endpoint may have closed it just now.
    pub(crate) is_reused: bool,
}

/// Where an exchange is to be tried.
pub(crate) struct Try {
    pub(crate) index: usize,
    pub(crate) endpoint: InFlight,
    /// Whether a pooled connection will do.
    pub(crate) may_reuse: bool,
}

/// A try that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    pub(crate) kind: FaultKind,
    pub(crate) phase: Phase,
}

impl Exchange {
    /// Counts a routed request in.
    pub(crate) fn begin(
        context: &Rc<Context>,
        view: Rc<View>,
        ingress: &Rc<Ingress>,
        (route, permit): (usize, RequestPermit),
        (id, method, began): (RequestId, Method, u64),
    ) -> Self {
        view.enter();
        context.stats().requests_in_flight.increment();
        view.routes[route].stats.in_flight.increment();
        let tally = Tally::default();
        tally.began.set(began);
        Self {
            context: Rc::clone(context),
            view,
            ingress: Rc::clone(ingress),
            route,
            id,
            method,
            permit: Some(permit),
            tried: RefCell::default(),
            attempts: Cell::new(0),
            kept: RefCell::new(None),
            is_asked: Cell::new(false),
            is_followed: Cell::new(false),
            is_body_lost: Cell::new(false),
            answer: Cell::new(Answer::Awaited),
            permission: Cell::new(Continue::NotAsked),
            when_input_ends: WhenInputEnds::Cancel,
            detail: Cell::new(None),
            tally,
            notes: None,
            is_finished: Cell::new(false),
        }
    }

    /// The route that was taken.
    pub(crate) fn route(&self) -> &RouteView {
        &self.view.routes[self.route]
    }

    /// Gets the request to an endpoint: to the one of `next` if it takes it, else to another as far as the route allows.
    pub(crate) async fn reach(
        &self,
        mut next: Try,
        mut request: Buf,
        deadlines: &Deadlines,
    ) -> Result<Reached, FaultKind> {
        loop {
            self.attempts.set(self.attempts.get() + 1);
            let index = next.index;
            let failed = match self.attempt(next, request, deadlines).await {
                Ok(reached) => return Ok(reached),
                Err((failed, unsent)) => {
                    request = unsent;
                    failed
                }
            };
            (next, request) = self.again(failed, index, request, deadlines)?;
        }
    }

    /// Connects to an endpoint and sends `request`; on failure gives it back, whole.
    async fn attempt(
        &self,
        Try { index, endpoint, may_reuse }: Try,
        request: Buf,
        deadlines: &Deadlines,
    ) -> Result<Reached, (Failed, Buf)> {
        let route = self.route();
        if let Some(notes) = &self.notes {
            notes.endpoint.replace(Some(endpoint.name.as_str().into()));
        }
        let idle = if may_reuse { route.cluster.take_idle(&endpoint) } else { None };
        let (stream, is_reused) = match idle {
            Some(stream) => (stream, true),
            // This is rare, and its future large: boxed, it is not carried along by every exchange.
            None => match Box::pin(self.obtain(&endpoint, may_reuse, deadlines)).await {
                Ok(obtained) => obtained,
                Err(kind) => {
                    if kind.blame() == Blame::Upstream {
                        endpoint.stats.failures.increment();
                    }
                    return Err((Failed { kind, phase: Phase::Connecting }, request));
                }
            },
        };
        deadlines.aim(Side::Exchange, stream.as_raw_fd());
        let mark = request.mark();
        deadlines.arm(Side::Upstream, Timer::UpstreamSend, stream.as_raw_fd(), self.view.send_timeout);
        // What follows is the answer, unless more of the request does.
        let is_awaited = self.is_asked.get() && stream.is_listening();
        let told = if is_awaited { Told::WithNext } else { Told::AtOnce };
        self.tally.sent.set(self.context.stamp());
        let (sent, mut request) = send_all(&stream, request, told).await;
        deadlines.disarm(Side::Upstream);
        request.rewind(mark);
        if sent.is_err() {
            endpoint.stats.failures.increment();
            let kind = if deadlines.fired().is_some() {
                FaultKind::FirstByteTimeout
            } else {
                FaultKind::UpstreamReset
            };
            return Err((Failed { kind, phase: phase_after_send(is_reused) }, request));
        }
        self.kept.replace(Some(request));
        Ok(Reached { stream, endpoint, index, is_reused })
    }

    /// A connection that this worker has not had idle: another worker's, or a new one. True when it has served before.
    async fn obtain(
        &self,
        endpoint: &Endpoint,
        may_reuse: bool,
        deadlines: &Deadlines,
    ) -> Result<(Stream, bool), FaultKind> {
        let route = self.route();
        if may_reuse && let Some(stream) = route.cluster.take_from_others(endpoint).await {
            return Ok((stream, true));
        }
        let socket = &route.cluster.entry.config.socket;
        let dial = || {
            let ceiling = self.context.admission().ceiling();
            connect(endpoint, socket, deadlines, route.connect, ceiling)
        };
        let mut connected = dial().await;
        for _ in 0..TRIES_WITHOUT_DESCRIPTORS {
            if !connected.as_ref().is_err_and(|failure| is_exhausted(&failure.error)) {
                break;
            }
            // A connection that serves is worth more than one that waits, to an endpoint or for a client: some of those go,
            // and in a tick or two their descriptors are free.
            if !self.context.give_up_some_idle() {
                self.context.make_room();
            }
            sleep(TICK).await;
            connected = dial().await;
        }
        connected.inspect(Stream::listen).map(|stream| (stream, false)).map_err(
            |ConnectFailure { kind, error }| {
                tracing::debug!(endpoint = endpoint.name, %error, "cannot connect");
                if kind == FaultKind::OutOfFiles && let Some(left_out) = self.context.may_warn_of_files() {
                    tracing::warn!(
                        kind = kind.as_str(),
                        left_out,
                        "no open file is left for a connection to an endpoint, the request is answered 503: raise the \
                         limit of open files, or lower limits.connections"
                    );
                }
                kind
            },
        )
    }

    /// What follows a try that failed: the next one, with the request to send.
    ///
    /// # Errors
    /// The fault to tell the client, where no other try may follow.
    pub(crate) fn again(
        &self,
        failed: Failed,
        index: usize,
        request: Buf,
        deadlines: &Deadlines,
    ) -> Result<(Try, Buf), FaultKind> {
        deadlines.aim(Side::Exchange, -1);
        if deadlines.fired() == Some(Timer::Total) {
            return Err(FaultKind::TotalTimeout);
        }
        deadlines.clear();
        let may_reuse = match self.decide(failed) {
            Retry::SameOnFreshConnection => false,
            Retry::OtherEndpoint => {
                self.tried.borrow_mut().add(index);
                true
            }
            Retry::GiveUp(_) => return Err(failed.kind),
        };
        // With the only endpoint tried there is nobody else to ask: the first failure tells more than "no endpoint".
        let tried = if may_reuse { *self.tried.borrow() } else { Tried::NONE };
        let cluster = &self.route().cluster;
        let picked = if may_reuse { cluster.pick(&tried) } else { cluster.at(index) };
        let (next, endpoint) = picked.ok_or(failed.kind)?;
        self.route().stats.retries.increment();
        self.detail.set(None);
        let request = if next != index && cluster.entry.config.host_header == HostHeader::Endpoint {
            with_host(&request, &endpoint.name)
        } else {
            request
        };
        Ok((Try { index: next, endpoint, may_reuse }, request))
    }

    /// Whether somebody waits for the end of this exchange who would not notice it by himself: a limit that it counts
    /// against, a log that says how long it took, the next request of its client.
    pub(crate) fn is_end_awaited(&self) -> bool {
        let is_counted = self.permit.as_ref().is_some_and(RequestPermit::is_counted);
        is_counted || self.notes.is_some() || self.is_followed.get()
    }

    fn decide(&self, failed: Failed) -> Retry {
        let retries = &self.route().entry.config.retries;
        retry::decide(&RetryState {
            attempt: self.attempts.get(),
            attempts_max: retries.attempts,
            phase: failed.phase,
            is_idempotent: self.method.is_idempotent(),
            body: self.body(failed.phase),
            unsafe_methods: retries.unsafe_methods,
        })
    }

    /// Whether all of the request body that was taken from the client can be sent again.
    fn body(&self, phase: Phase) -> Body {
        let bytes_max = self.route().entry.config.retries.body_bytes_max;
        let is_too_long = phase != Phase::Connecting && self.tally.bytes_in.get() > bytes_max;
        if self.is_body_lost.get() || is_too_long { Body::Lost } else { Body::Kept }
    }

    /// Keeps another part of the request for a second try, as long as one could follow and the route's bound allows.
    pub(crate) fn keep(&self, part: &[u8]) {
        let retries = &self.route().entry.config.retries;
        let may_repeat = retries.attempts > 1 && (self.method.is_idempotent() || retries.unsafe_methods);
        let mut kept = self.kept.borrow_mut();
        let Some(whole) = kept.as_mut() else { return };
        if !may_repeat || self.tally.bytes_in.get() > retries.body_bytes_max {
            *kept = None;
        } else if !whole.append(part) {
            let mut longer = Buf::of(2 * (whole.len() + part.len()));
            let fits = longer.append(whole.bytes()) && longer.append(part);
            debug_assert!(fits, "twice the room takes both");
            *whole = longer;
        }
    }

    /// Keeps the reason of a fault for the logs.
    pub(crate) fn explain(&self, fault: impl Into<Fault>) -> FaultKind {
        let fault = fault.into();
        self.detail.set(fault.detail.map(|detail| (fault.kind, detail)));
        fault.kind
    }

    /// The reason of the fault that ended it, in one word, if one was given; of another fault it says nothing.
    pub(crate) fn detail(&self, fault: FaultKind) -> Option<&'static str> {
        self.detail.get().filter(|(of, _)| *of == fault).map(|(_, detail)| detail)
    }

    /// Whether the request can be sent again from what was kept.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.borrow().is_some()
    }

    /// The request, to be sent again; none once [`Exchange::settle`] gave it up.
    pub(crate) fn take_kept(&self) -> Option<Buf> {
        self.kept.take()
    }

    /// The endpoint has begun to answer: the request will not be sent again.
    pub(crate) fn settle(&self) {
        self.kept.replace(None);
    }

    /// Whether the client waits for permission to send its body, and has sent none of it.
    pub(crate) fn is_permission_due(&self) -> bool {
        !self.is_asked.get() && self.permission.get().is_due(self.tally.bytes_in.get())
    }

    /// Whether the endpoint has answered a client that waited for permission to send its body: then there is no body (RFC 9110, section
    /// 10.1.1), and what the client sends next is not for this endpoint.
    pub(crate) fn is_body_declined(&self) -> bool {
        self.answer.get() != Answer::Awaited && self.is_permission_due()
    }

    /// Notes when the endpoint's first byte came.
    pub(crate) fn stamp_answered(&self) {
        if self.tally.answered.get() == 0 {
            self.tally.answered.set(self.context.stamp());
        }
    }

    /// Notes that a part of the response was handed to the kernel.
    pub(crate) fn stamp_sent(&self) {
        let tally = &self.tally;
        if tally.first_byte.get() == 0 {
            tally.first_byte.set(self.context.stamp());
        }
        if self.notes.is_some() && tally.first_body_byte.get() == 0 && tally.chunks.get() > 0 {
            tally.first_body_byte.set(self.context.stamp());
        }
    }

    /// Notes that the first part of the body came with the head.
    pub(crate) fn stamp_first_chunk(&self) {
        if self.tally.chunks.get() > 0 {
            self.tally.last_chunk.set(self.tally.answered.get());
        }
    }

    /// Notes that another part of the body came.
    pub(crate) fn stamp_chunk(&self) {
        let now = self.context.stamp();
        let before = self.tally.last_chunk.replace(now);
        if before == 0 {
            // The wait for the first part is no gap between two.
            return;
        }
        let gap = self.context.nanoseconds(before, now);
        self.route().stats.chunk_gap.record(gap);
        if gap > self.tally.largest_gap_ns.get() {
            self.tally.largest_gap_ns.set(gap);
        }
    }

    /// Writes down how it ended: `fault` is none for an exchange that ended well.
    pub(crate) fn finish(&self, fault: Option<FaultKind>) {
        let (tally, route) = (&self.tally, self.route());
        self.is_finished.set(true);
        let status = tally.status.get().or_else(|| fault.map(FaultKind::log_status));
        count_end(&self.context, &self.ingress, Some(&route.stats), status, fault);
        let listener = self.ingress.stats();
        for (bytes_in, bytes_out) in
            [(&route.stats.bytes_in, &route.stats.bytes_out), (&listener.bytes_in, &listener.bytes_out)]
        {
            bytes_in.add(tally.bytes_in.get());
            bytes_out.add(tally.bytes_out.get());
        }
        let (began, sent) = (tally.began.get(), tally.sent.get());
        let (answered, first_byte) = (tally.answered.get(), tally.first_byte.get());
        if first_byte != 0 {
            let between = |from, to| self.context.nanoseconds(from, to);
            let total = between(began, first_byte);
            let upstream = between(sent, answered);
            route.stats.first_byte.record(total);
            route.stats.upstream_time.record(upstream);
            route.stats.proxy_time.record(total.saturating_sub(upstream));
        }
        if let (Some(notes), Some(log)) = (&self.notes, &self.view.live.access) {
            let detail = fault.and_then(|fault| self.detail(fault));
            let (listener, route) = (self.ingress.name(), Some(&route.entry));
            let entry = access::Entry { id: &self.id, listener, notes, tally, route, status, fault, detail };
            access::write(log, &self.context, &entry);
        }
    }
}

/// Counts a request that has ended: at its listener, at its route if it had come to one, and for the node.
pub(super) fn count_end(
    context: &Context,
    ingress: &Ingress,
    route: Option<&RouteStats>,
    status: Option<u16>,
    fault: Option<FaultKind>,
) {
    ingress.stats().count_request(status);
    context.stats().count_request(status);
    if let Some(route) = route {
        route.count_request(status);
    }
    if let Some(kind) = fault {
        ingress.stats().count_fault(kind);
        context.stats().count_fault(kind);
        if let Some(route) = route {
            route.count_fault(kind);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_finished.get() {
            // Its task was ended from outside: by a panic, or with the worker.
            let kind = if std::thread::panicking() { FaultKind::Internal } else { FaultKind::DrainTimeout };
            self.finish(Some(kind));
        }
        self.view.leave();
        self.context.stats().requests_in_flight.decrement();
        self.route().stats.in_flight.decrement();
        if let Some(permit) = self.permit.take() {
            self.context.admission().release_request(permit);
        }
    }
}

/// The most bytes of buffers that one exchange can hold, its client's connection included.
pub(crate) fn bytes_max(config: &Config) -> usize {
    // From either side: what waits in the socket, and what was taken from there and is being sent on.
    let both_ways = 2 * (inbox_bytes_most() + LARGE_SIZE);
    // A head that is being read, or what came behind a streamed body.
    let ahead = HEAD_SIZE;
    // What may have to be sent again; it grows by taking twice the room.
    let body = config.routes.iter().map(|route| route.retries.body_bytes_max).max().unwrap_or(0);
    let body = usize::try_from(body).unwrap_or(usize::MAX);
    let kept = HEAD_SIZE.saturating_add(body).saturating_mul(3);
    kept.saturating_add(both_ways + ahead)
}

/// Where an exchange is when a connection fails that the request has been written to.
pub(crate) fn phase_after_send(is_reused: bool) -> Phase {
    if is_reused { Phase::ReusedAfterByte } else { Phase::SentBeforeResponse }
}

/// Sends the whole content of `buf`.
pub(crate) async fn send_all(stream: &Stream, mut buf: Buf, told: Told) -> (std::io::Result<()>, Buf) {
    while !buf.is_empty() {
        let (result, sent) = stream.send(buf, told).await;
        buf = sent;
        match result {
            Ok(1..) => {}
            Ok(0) => return (Err(std::io::ErrorKind::WriteZero.into()), buf),
            Err(error) => return (Err(error), buf),
        }
    }
    (Ok(()), buf)
}

/// The request for another endpoint: `Host` is the first field of every head that we encode.
fn with_host(request: &Buf, host: &str) -> Buf {
    let bytes = request.bytes();
    let mut ends = memchr::memchr_iter(b'\n', bytes).map(|end| end + 1);
    let (Some(line), Some(after)) = (ends.next(), ends.next()) else {
        unreachable!("a head has a Host line")
    };
    let mut changed = Buf::of(bytes.len() + host.len());
    let fits = changed.append(&bytes[..line])
        && changed.append(b"Host: ")
        && changed.append(host.as_bytes())
        && changed.append(b"\r\n")
        && changed.append(&bytes[after..]);
    debug_assert!(fits, "the old head and the new host fit");
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_endpoint_gets_its_own_host() {
        let mut request = Buf::small();
        request.append(b"POST /v1 HTTP/1.1\r\nHost: a:1\r\nX-A: Host: b\r\n\r\nbody\n\n");
        let changed = with_host(&request, "longer.example:8000");
        let expected = b"POST /v1 HTTP/1.1\r\nHost: longer.example:8000\r\nX-A: Host: b\r\n\r\nbody\n\n";
        assert_eq!(changed.bytes(), expected);
    }
}
