//! Carrying one admitted request: tries, upload and answer side by side, an eye on the client, and the end.

use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Poll};

use dataplane_core::error::FaultKind;
use dataplane_core::h1::{Asked, BodyDecoder, Client};
use dataplane_core::request::{Method, Version};

use super::super::exchange::{Exchange, Failed, Reached, Try, count};
use super::answer::{Answered, answer, end_kind, send_last};
use super::reply::{self, Reply};
use super::request::Admitted;
use super::upload::{Uploaded, upload};
use super::watch::{Sending, Watch};
use super::{Connection, Ended};
use crate::io::{Buf, Side, Timer};
use crate::relay::tunnel::tunnel;

/// Carries a request to its end. The client is watched meanwhile, and may leave at any time.
pub(super) async fn carry(client: &Connection, admitted: Admitted) -> Ended {
    let Admitted { exchange, first, request, upload, mut rest, asked, client: wants } = admitted;
    if let Some(total) = exchange.route().total {
        client.deadlines.arm(Side::Exchange, Timer::Total, -1, total);
    }
    let carriage = Carriage {
        client,
        exchange: &exchange,
        asked,
        wants,
        is_uploading: Cell::new(upload.is_some()),
        is_tunnel: Cell::new(false),
        behind: Cell::new(None),
        watch: Watch::default(),
    };
    let carried = {
        let mut work = pin!(carriage.run(first, request, upload, &mut rest));
        std::future::poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(carried) => Poll::Ready(Some(carried)),
            Poll::Pending => carriage.poll_gone(context).map(|()| None),
        })
        .await
    };
    for side in [Side::Upstream, Side::Upload, Side::Exchange] {
        client.deadlines.disarm(side);
    }
    let rest = rest.or_else(|| carriage.behind.take());
    let keep_client = match carried {
        None => {
            exchange.finish(Some(FaultKind::ClientGone));
            return Ended::Closed;
        }
        Some(Ok(answered)) => {
            exchange.finish(None);
            answered.keep_client
        }
        Some(Err(fault)) => {
            exchange.finish(Some(fault));
            log(&exchange, fault);
            if exchange.tally.status.get().is_some() {
                return cut(client, wants);
            }
            Box::pin(tell(&carriage, fault)).await
        }
    };
    // Who asked for the close, and has said nothing since, will not be surprised by it.
    let is_farewell = !wants.keep_alive && !client.is_ending() && exchange.is_asked.get();
    drop(exchange);
    client.deadlines.clear();
    if !keep_client {
        if !(is_farewell && rest.is_none() && client.stream.is_quiet()) {
            Box::pin(reply::linger(client)).await;
        }
        return Ended::Closed;
    }
    Ended::Open(rest)
}

/// The parts of carrying one request that its steps share.
struct Carriage<'a> {
    client: &'a Connection,
    exchange: &'a Exchange,
    asked: Asked,
    wants: Client,
    /// The request body is still being read: then that reading notices when the client leaves.
    is_uploading: Cell<bool>,
    /// The connection is a tunnel: its ends notice for themselves.
    is_tunnel: Cell<bool>,
    /// Bytes that came behind a streamed request body.
    behind: Cell<Option<Buf>>,
    watch: Watch,
}

impl Carriage<'_> {
    /// Looks whether the client has left.
    fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_uploading.get() || self.is_tunnel.get() || self.client.is_last.get() {
            return Poll::Pending;
        }
        self.watch.poll_left(self.client, self.exchange, Sending::Behind, context)
    }

    /// Tries endpoints until one has answered to the end.
    async fn run(
        &self,
        mut next: Try,
        mut request: Buf,
        mut body: Option<Box<BodyDecoder>>,
        rest: &mut Option<Buf>,
    ) -> Result<Answered, FaultKind> {
        let deadlines = &self.client.deadlines;
        loop {
            let reached = self.exchange.reach(next, request, deadlines).await?;
            let answered = match body.take() {
                None => answer(self.client, self.exchange, &reached, self.asked, self.wants).await,
                // Boxed where it is rare, so that the usual exchange stays small to keep and to move.
                Some(body) => Box::pin(self.both(&reached, *body)).await?,
            };
            deadlines.disarm(Side::Upstream);
            let failed = match answered {
                Ok((answered, last)) if answered.is_switched => {
                    let answered = send_last(self.client, self.exchange, last, answered).await?;
                    return Ok(Box::pin(self.tunnel(&reached, answered, rest.take())).await);
                }
                Ok((answered, last)) => {
                    self.settle(reached, answered);
                    return send_last(self.client, self.exchange, last, answered).await;
                }
                Err(failed) => failed,
            };
            let Some(kept) = self.exchange.take_kept() else { return Err(failed.kind) };
            let index = reached.index;
            drop(reached);
            (next, request) = self.exchange.again(failed, index, kept, deadlines)?;
        }
    }

    /// Sends the rest of the request body and passes the answer on, side by side.
    async fn both(
        &self,
        reached: &Reached,
        body: BodyDecoder,
    ) -> Result<Result<(Answered, Buf), Failed>, FaultKind> {
        let Self { client, exchange, .. } = *self;
        // Until all of it has come by and was kept, there is no way back to the beginning of the body.
        exchange.is_body_lost.set(true);
        let mut up = pin!(upload(client, exchange, &reached.stream, body));
        let mut down = pin!(answer(client, exchange, reached, self.asked, self.wants));
        let mut is_up_ended = false;
        let answered = std::future::poll_fn(|context| {
            let mut fault = None;
            // The upload first: an answer that fails can be followed by another try only if all of the body has gone up,
            // which may have become true in this very turn.
            if exchange.is_body_declined() {
                // Whatever the client sends now is not for this endpoint.
                client.deadlines.disarm(Side::ClientRead);
            } else if !is_up_ended && let Poll::Ready(uploaded) = up.as_mut().poll(context) {
                is_up_ended = true;
                fault = self.end_upload(uploaded, reached).err();
            }
            if let Poll::Ready(answered) = down.as_mut().poll(context) {
                return Poll::Ready(Ok(answered));
            }
            if let Some(fault) = fault {
                return Poll::Ready(Err(fault));
            }
            if self.is_uploading.get()
                && self.watch.poll_left(client, exchange, Sending::Body, context).is_ready()
            {
                return Poll::Ready(Err(end_kind(client, FaultKind::ClientGone)));
            }
            Poll::Pending
        })
        .await?;
        // An answer before the end of the request: nobody will read the rest of it.
        let is_whole = exchange.is_asked.get();
        Ok(answered.map(|(answered, last)| {
            let keep_client = answered.keep_client && is_whole;
            let keep_upstream = answered.keep_upstream && is_whole;
            (Answered { keep_client, keep_upstream, ..answered }, last)
        }))
    }

    /// Notes how the upload ended; from here on the endpoint has to answer.
    fn end_upload(&self, uploaded: Result<Uploaded, FaultKind>, reached: &Reached) -> Result<(), FaultKind> {
        if let Uploaded::Whole(behind) = uploaded? {
            self.exchange.is_followed.set(behind.is_some());
            self.behind.set(behind);
            self.exchange.is_asked.set(true);
            self.exchange.is_body_lost.set(!self.exchange.is_kept());
            self.is_uploading.set(false);
        }
        self.await_answer(reached);
        Ok(())
    }

    /// The endpoint has all that it will get: from here on it has to answer.
    fn await_answer(&self, reached: &Reached) {
        use std::os::fd::AsRawFd;
        // The beginning of a head may have come before the end of the request: with nothing behind it, it is no answer.
        if self.exchange.tally.status.get().is_none() {
            let timeout = self.exchange.route().first_byte;
            let fd = reached.stream.as_raw_fd();
            self.client.deadlines.arm(Side::Upstream, Timer::FirstByte, fd, timeout);
        }
    }

    /// Puts the upstream connection back.
    fn settle(&self, Reached { stream, endpoint, .. }: Reached, answered: Answered) {
        self.client.deadlines.aim(Side::Exchange, -1);
        if answered.keep_upstream {
            self.exchange.route().cluster.keep_idle(&endpoint, stream, answered.idle_ms_max);
        }
    }

    /// Lets both ends of a switched connection speak; `early` is what the client has said already.
    async fn tunnel(&self, reached: &Reached, answered: Answered, early: Option<Buf>) -> Answered {
        let Self { client, exchange, .. } = *self;
        client.deadlines.aim(Side::Exchange, -1);
        self.is_tunnel.set(true);
        let idle = exchange.route().idle;
        let carried = tunnel(&client.stream, &reached.stream, early, &client.deadlines, idle).await;
        count(&exchange.tally.bytes_in, carried.up);
        count(&exchange.tally.bytes_out, carried.down);
        Answered { keep_client: false, keep_upstream: false, ..answered }
    }
}

/// Ends a response that has begun so that it cannot be taken for whole. With a length or chunks the missing end tells;
/// where the end of the connection is the end of the body, only a reset does (RFC 9112, section 8).
fn cut(client: &Connection, wants: Client) -> Ended {
    if wants.version == Version::Http10 {
        client.stream.reset_on_close();
    }
    Ended::Closed
}

/// Tells the client of a fault; false when its connection is over.
async fn tell(carriage: &Carriage<'_>, fault: FaultKind) -> bool {
    let Carriage { client, exchange, wants, .. } = carriage;
    client.deadlines.clear();
    let reply = Reply {
        kind: fault,
        id: exchange.id.clone(),
        keep_alive: wants.keep_alive
            && wants.version != Version::Http10
            && exchange.is_asked.get()
            && !client.is_ending(),
        head_only: exchange.method == Method::Head,
        detail: None,
    };
    reply::send(client, &reply).await
}

/// Faults are logged by their level, but no faster than someone could read: an origin that is down would fill a disk.
fn log(exchange: &Exchange, fault: FaultKind) {
    use proto::config::LogLevel;
    let kind = fault.as_str();
    let blame = fault.blame().as_str();
    let route = exchange.route().entry.config.name.as_str();
    let request_id = exchange.id.as_str();
    let detail = exchange.detail(fault);
    match fault.log_level() {
        LogLevel::Trace | LogLevel::Debug => {
            tracing::debug!(kind, detail, blame, route, request_id, "exchange failed")
        }
        level if exchange.context.may_log() => match level {
            LogLevel::Error => tracing::error!(kind, detail, blame, route, request_id, "exchange failed"),
            LogLevel::Warn => tracing::warn!(kind, detail, blame, route, request_id, "exchange failed"),
            LogLevel::Info | LogLevel::Debug | LogLevel::Trace => {
                tracing::info!(kind, detail, blame, route, request_id, "exchange failed");
            }
        },
        LogLevel::Error | LogLevel::Warn | LogLevel::Info => {}
    }
}
