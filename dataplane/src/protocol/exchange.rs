//! One request and its response: which endpoints are tried, what is measured, and how it ended.
//!
//! Every HTTP driver carries its exchanges through here; drivers differ only in how bytes become a request and a body.

use std::cell::{Cell, RefCell};
use std::os::fd::AsRawFd;
use std::rc::Rc;

use dataplane_core::balance::Tried;
use dataplane_core::error::FaultKind;
use dataplane_core::request::Method;
use dataplane_core::retry::{self, Body, Phase, RetryState};

use super::context::{Context, RouteView, View};
use super::ident::RequestId;
use crate::io::{Buf, Deadlines, Side, Stream, Timer};
use crate::upstream::{ConnectFailure, InFlight, connect};

/// An exchange from its routed request to its end.
pub(crate) struct Exchange {
    pub(crate) context: Rc<Context>,
    pub(crate) view: Rc<View>,
    route: usize,
    pub(crate) id: RequestId,
    pub(crate) method: Method,
    tried: RefCell<Tried>,
    attempts: Cell<u32>,
    /// The encoded request head with the body bytes that came with it, as long as it may have to be sent again.
    kept: RefCell<Option<Buf>>,
    /// Whether body bytes beyond the kept ones have been sent.
    pub(crate) body_streamed: Cell<bool>,
    pub(crate) tally: Tally,
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
    pub(crate) last_chunk: Cell<u64>,
    pub(crate) largest_gap_ns: Cell<u64>,
    pub(crate) chunks: Cell<u64>,
    /// Body bytes from the client.
    pub(crate) bytes_in: Cell<u64>,
    /// Body bytes to the client.
    pub(crate) bytes_out: Cell<u64>,
    pub(crate) status: Cell<Option<u16>>,
}

/// An endpoint that has the request, or its first part.
pub(crate) struct Reached {
    pub(crate) stream: Stream,
    pub(crate) endpoint: InFlight,
    /// The connection had served before: the endpoint may have closed it just now.
    pub(crate) reused: bool,
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
        context: Rc<Context>,
        view: Rc<View>,
        route: usize,
        id: RequestId,
        method: Method,
        began: u64,
    ) -> Self {
        view.enter();
        context.stats().requests_in_flight.increment();
        view.routes[route].stats.in_flight.increment();
        let tally = Tally::default();
        tally.began.set(began);
        Self {
            context,
            view,
            route,
            id,
            method,
            tried: RefCell::default(),
            attempts: Cell::new(0),
            kept: RefCell::new(None),
            body_streamed: Cell::new(false),
            tally,
        }
    }

    /// The route that was taken.
    pub(crate) fn route(&self) -> &RouteView {
        &self.view.routes[self.route]
    }

    /// Gets the request to an endpoint: `first` if it can, else another as far as the route allows.
    pub(crate) async fn reach(
        &self,
        mut next: Option<(usize, InFlight)>,
        mut request: Buf,
        deadlines: &Deadlines,
    ) -> Result<Reached, FaultKind> {
        loop {
            let picked = next.take().or_else(|| self.route().cluster.pick(&self.tried.borrow()));
            let Some((index, endpoint)) = picked else {
                self.route().cluster.stats().no_endpoint.increment();
                return Err(FaultKind::NoEndpoint);
            };
            self.attempts.set(self.attempts.get() + 1);
            let failed = match self.attempt(endpoint, request, deadlines).await {
                Ok(reached) => return Ok(reached),
                Err((failed, unsent)) => {
                    request = unsent;
                    failed
                }
            };
            if deadlines.fired() == Some(Timer::Total) {
                return Err(FaultKind::TotalTimeout);
            }
            if !self.may_retry(failed, index) {
                return Err(failed.kind);
            }
            deadlines.clear();
        }
    }

    /// Connects to `endpoint` and sends `request`; on failure gives it back, whole.
    async fn attempt(
        &self,
        endpoint: InFlight,
        request: Buf,
        deadlines: &Deadlines,
    ) -> Result<Reached, (Failed, Buf)> {
        let route = self.route();
        let (stream, reused) = match route.cluster.take_idle(&endpoint) {
            Some(stream) => (stream, true),
            None => {
                let options = &route.cluster.entry.config.socket;
                match connect(&endpoint, options, deadlines, route.connect).await {
                    Ok(stream) => (stream, false),
                    Err(ConnectFailure { kind, error }) => {
                        tracing::debug!(endpoint = endpoint.name, %error, "cannot connect");
                        endpoint.stats.failures.increment();
                        return Err((Failed { kind, phase: Phase::Connecting }, request));
                    }
                }
            }
        };
        let mark = request.mark();
        deadlines.arm(Side::Upstream, Timer::UpstreamSend, stream.as_raw_fd(), self.view.send_timeout);
        let (sent, mut request) = send_all(&stream, request).await;
        deadlines.disarm(Side::Upstream);
        request.rewind(mark);
        if sent.is_err() {
            endpoint.stats.failures.increment();
            let kind = if deadlines.fired().is_some() { FaultKind::SendTimeout } else { FaultKind::UpstreamReset };
            return Err((Failed { kind, phase: Phase::sent(reused) }, request));
        }
        self.tally.sent.set(self.context.stamp());
        self.kept.replace(Some(request));
        Ok(Reached { stream, endpoint, reused })
    }

    /// The request, to be sent again; none once [`Exchange::settle`] gave it up.
    pub(crate) fn take_kept(&self) -> Option<Buf> {
        self.kept.take()
    }

    /// The endpoint has begun to answer: the request will not be sent again.
    pub(crate) fn settle(&self) {
        self.kept.replace(None);
    }

    /// Decides whether another try follows `failed`, and notes the endpoint as tried.
    pub(crate) fn may_retry(&self, failed: Failed, endpoint: usize) -> bool {
        let retries = &self.route().entry.config.retries;
        let body = if self.body_streamed.get() { Body::Lost } else { Body::Kept };
        let decision = retry::decide(&RetryState {
            attempt: self.attempts.get(),
            attempts_max: retries.attempts,
            phase: failed.phase,
            idempotent: self.method.is_idempotent(),
            body,
            unsafe_methods: retries.unsafe_methods,
        });
        match decision {
            retry::Retry::SameEndpoint => {}
            retry::Retry::OtherEndpoint => self.tried.borrow_mut().insert(endpoint),
            retry::Retry::GiveUp(_) => return false,
        }
        self.route().stats.retries.increment();
        true
    }
}

/// Sends the whole content of `buf`.
pub(crate) async fn send_all(stream: &Stream, mut buf: Buf) -> (std::io::Result<()>, Buf) {
    while !buf.is_empty() {
        let (result, sent) = stream.send(buf).await;
        buf = sent;
        match result {
            Ok(1..) => {}
            Ok(0) => return (Err(std::io::ErrorKind::WriteZero.into()), buf),
            Err(error) => return (Err(error), buf),
        }
    }
    (Ok(()), buf)
}
