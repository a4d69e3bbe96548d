//! One request and its response: the order of things, the request body as it is read, and the account
//! that is kept. What is answered is in `endpoint`; how it is written, and where a fault cuts it, in
//! `response`.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::body::{BodyDecoder, Piece};
use super::clock::{date, monotonic_ns};
use super::connection::{ClientGone, Connection, READ_BODY_SIZE};
use super::endpoint;
use super::knobs::{EarlyResponse, KnobError, Knobs};
use super::request::{BodyLength, Malformed, Request};
use super::response::{Framing, error_body};
use super::route::Route;
use super::stats::{Abort, Outcome, Phase};

/// A body that is drained slowly is read this many times a second.
const SLOW_DRAIN_STEPS: u64 = 50;

/// `GET /`, the answer that benchmarks ask for, with a slot for the date.
const HELLO: &[u8; 107] = b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
const HELLO_DATE_AT: usize = 23;

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    KeepAlive,
    /// FIN, then read for a while what still comes.
    Close,
    /// Close without ceremony.
    Drop,
    Reset,
}

/// Why an exchange ended before its response was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    ClientGone,
    /// A fault that was asked for.
    Cut,
    /// The same by RST.
    Reset,
    /// The request body cannot be read.
    Malformed(Malformed),
}

impl From<ClientGone> for Ended {
    fn from(ClientGone: ClientGone) -> Self {
        Self::ClientGone
    }
}

impl From<Malformed> for Ended {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// One request on its way to a response.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    pub(crate) request: &'a Request,
    pub(crate) route: Route,
    pub(crate) knobs: Knobs,
    pub(crate) connection: &'a mut Connection,
    pub(crate) body: BodyDecoder,
    /// When the head had arrived.
    started: Instant,
    /// When the body was first read, for its pace.
    body_since: Option<Instant>,
    /// The client waits for `100 Continue` before it sends the body.
    continue_due: bool,
    /// Set with the head.
    pub(crate) framing: Option<Framing>,
    pub(crate) payload_sent: u64,
    pub(crate) keep_alive: bool,
}

/// Answers one request.
pub(crate) async fn answer(connection: &mut Connection, request: &Request) -> Next {
    let route = Route::of(request.path());
    let shared = &connection.worker.shared;
    let request_id = request.field("x-request-id");
    connection.worker.ledger.request_started(&connection.record, route, request_id.as_deref());
    let ordinary = request.is_plain() && shared.defaults_are_plain && !shared.faults.is_active();
    if ordinary
        && route == Route::Hello
        && request.method() == "GET"
        && request.keep_alive
        && request.minor_version == 1
    {
        return hello(connection).await;
    }
    // On the heap: a connection between requests must not be as large as its largest response.
    Box::pin(Exchange::new(connection, request, route).run()).await
}

/// Answers a head that could not be read.
pub(crate) async fn refuse(connection: &mut Connection, malformed: Malformed) -> Next {
    connection.worker.ledger.head_malformed();
    let body = error_body(Route::Unknown, malformed.status, malformed.reason);
    let head = format!(
        "HTTP/1.1 {} Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        malformed.status,
        body.len()
    );
    // The connection is closed either way.
    let _ = connection.write_all(&[head.as_bytes(), &body].concat()).await;
    Next::Close
}

/// The cheapest path: no allocation, one write.
async fn hello(connection: &mut Connection) -> Next {
    let started = Instant::now();
    let mut response = *HELLO;
    response[HELLO_DATE_AT..HELLO_DATE_AT + 29].copy_from_slice(&date());
    connection.worker.ledger.status_sent(Route::Hello, 200);
    let written = connection.write_all(&response).await;
    let (outcome, next) = match written {
        Ok(()) => (Outcome::Completed, Next::KeepAlive),
        Err(ClientGone) => {
            (Outcome::Aborted(abort(Route::Hello, None, Phase::BeforeHead, started, 0)), Next::Drop)
        }
    };
    connection.worker.ledger.request_ended(&connection.record, Route::Hello, outcome);
    next
}

impl<'a> Exchange<'a> {
    fn new(connection: &'a mut Connection, request: &'a Request, route: Route) -> Self {
        Self {
            request,
            route,
            knobs: connection.worker.shared.defaults,
            connection,
            body: BodyDecoder::new(request.body),
            started: Instant::now(),
            body_since: None,
            continue_due: request.expects_continue && request.body != BodyLength::Empty,
            framing: None,
            payload_sent: 0,
            keep_alive: request.keep_alive,
        }
    }

    async fn run(mut self) -> Next {
        let mut result = endpoint::answer(&mut self).await;
        if let (Err(Ended::Malformed(malformed)), None) = (result, self.framing) {
            self.keep_alive = false;
            let refused = self.respond_error(malformed.status, malformed.reason).await;
            result = refused.and(result);
        }
        self.account(result);
        match result {
            Ok(()) => self.settle().await,
            Err(Ended::ClientGone) => Next::Drop,
            Err(Ended::Cut | Ended::Malformed(_)) => Next::Close,
            Err(Ended::Reset) => Next::Reset,
        }
    }

    /// Lays the knobs of the process's fault and of the request over the defaults.
    pub(crate) fn turn_knobs(&mut self) -> Result<(), KnobError> {
        self.connection.worker.shared.faults.apply(&mut self.knobs, self.request.path());
        let turned = self.knobs.apply(self.request);
        self.keep_alive &= !self.knobs.conn_close && self.knobs.early_response != EarlyResponse::Close;
        if self.continue_due && self.knobs.early_response != EarlyResponse::Off {
            // RFC 9110, section 10.1.1: after a final answer in place of 100 the client may or may not send
            // the body, so the next request cannot be told from it.
            self.keep_alive = false;
        }
        turned
    }

    /// The next piece of the request body, as it arrives; `None` at its end.
    pub(crate) async fn next_piece(&mut self) -> Result<Option<Bytes>, Ended> {
        let limit = match self.knobs.slow_drain {
            Some(rate) => self.wait_for_slow_drain(rate).await,
            None => READ_BODY_SIZE,
        };
        loop {
            match self.body.poll_piece(&mut self.connection.input, limit)? {
                Piece::Data(data) => return Ok(Some(data)),
                Piece::End => return Ok(None),
                Piece::NeedMore => {
                    self.send_continue().await?;
                    self.connection.fill(limit).await?;
                }
            }
        }
    }

    /// Reads the request body and forgets it, unless the response is to come first.
    pub(crate) async fn read_body_first(&mut self) -> Result<(), Ended> {
        while self.knobs.early_response == EarlyResponse::Off && self.next_piece().await?.is_some() {}
        Ok(())
    }

    /// Reads the whole request body, of at most `limit` bytes; nothing if the response is to come first.
    pub(crate) async fn read_body_whole(&mut self, limit: usize) -> Result<Vec<u8>, Ended> {
        let mut whole = Vec::new();
        while self.knobs.early_response == EarlyResponse::Off
            && let Some(piece) = self.next_piece().await?
        {
            if whole.len() + piece.len() > limit {
                return Err(
                    Malformed { status: 413, reason: "the body is larger than this endpoint reads" }.into()
                );
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// Waits until `deadline`, watching the client.
    pub(crate) async fn pause_until(&mut self, deadline: Instant) -> Result<(), Ended> {
        Ok(self.connection.wait_until(deadline).await?)
    }

    /// Waits for `duration`, watching the client.
    pub(crate) async fn pause(&mut self, duration: Duration) -> Result<(), Ended> {
        self.pause_until(after(Instant::now(), duration)).await
    }

    /// The time that a model takes for an answer that is not streamed.
    pub(crate) async fn generate(&mut self, tokens: u64) -> Result<(), Ended> {
        let rest = self.knobs.token_offset(tokens.saturating_sub(1));
        self.pause(self.knobs.ttft.saturating_add(rest)).await
    }

    pub(crate) async fn send_continue(&mut self) -> Result<(), Ended> {
        if std::mem::take(&mut self.continue_due) && self.framing.is_none() {
            self.connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        Ok(())
    }

    /// Waits until the next step of a slow drain is due, and says how much may be read then. The client is
    /// deliberately not watched: watching is reading.
    async fn wait_for_slow_drain(&mut self, rate: u64) -> usize {
        let since = *self.body_since.get_or_insert_with(|| {
            self.connection.shrink_receive_buffer();
            Instant::now()
        });
        let step = (rate / SLOW_DRAIN_STEPS).max(1);
        let due = Duration::try_from_secs_f64((self.body.received + step) as f64 / rate as f64);
        sleep_until(after(since, due.unwrap_or(Duration::MAX))).await;
        usize::try_from(step).unwrap_or(READ_BODY_SIZE).min(READ_BODY_SIZE)
    }

    /// The response is complete: reads what is left of the request, or decides to close.
    async fn settle(mut self) -> Next {
        if !self.keep_alive {
            return Next::Close;
        }
        while !self.body.is_done() {
            match self.next_piece().await {
                Ok(_) => {}
                Err(Ended::ClientGone) => return Next::Drop,
                Err(Ended::Cut | Ended::Reset | Ended::Malformed(_)) => return Next::Close,
            }
        }
        match self.knobs.close_after {
            Some(delay) => {
                // A client that goes first has closed the connection as well.
                let _ = self.pause(delay).await;
                Next::Drop
            }
            None => Next::KeepAlive,
        }
    }

    fn account(&self, result: Result<(), Ended>) {
        let outcome = match result {
            Ok(()) => Outcome::Completed,
            Err(Ended::Cut | Ended::Reset) => Outcome::Faulted,
            Err(Ended::Malformed(_)) => Outcome::Malformed,
            Err(Ended::ClientGone) => {
                let id = self.request.field("x-request-id").map(std::borrow::Cow::into_owned);
                Outcome::Aborted(abort(self.route, id, self.phase(), self.started, self.payload_sent))
            }
        };
        self.connection.worker.ledger.request_ended(&self.connection.record, self.route, outcome);
    }

    fn phase(&self) -> Phase {
        match self.framing {
            Some(_) => Phase::Body,
            None if self.body.is_done() => Phase::BeforeHead,
            None => Phase::RequestBody,
        }
    }
}

/// `start + duration`, or a time that no test lives to see.
pub(crate) fn after(start: Instant, duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    start + duration.min(FAR)
}

fn abort(route: Route, request_id: Option<String>, phase: Phase, started: Instant, bytes_sent: u64) -> Abort {
    Abort {
        path: route.pattern(),
        request_id,
        phase,
        after_ms: started.elapsed().as_secs_f64() * 1000.0,
        at_ns: monotonic_ns(),
        bytes_sent,
    }
}
