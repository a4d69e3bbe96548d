//! HTTP/1.0 and HTTP/1.1 with clients.
//!
//! ```text
//!  parked ─── bytes ───► requests: receive ─► head ─► exchange ─► answer ─┐
//!    ▲                        ▲                                           │
//!    │                        └──── warm, or the next one is here ────────┤
//!    └────────────────────────────── silent ─────────────────────────────┘
//! ```
//!
//! A parked connection is a small task that holds no buffer; what a request needs is boxed and freed when the connection
//! falls silent.

mod answer;
mod carry;
mod reply;
mod request;
mod upload;
mod watch;

use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use dataplane_core::error::{Detail, FaultKind};
use dataplane_core::h1::HeadScan;

use super::access::{self, Entry, Notes};
use super::context::{Context, View};
use super::exchange::{Tally, count_end};
use super::ingress::{Ingress, Place};
use super::peer::Peer;
use super::warm::Warm;
use crate::io::{Buf, Deadlines, Input, Side, Stream, Ticks, Timer, now};
use reply::Reply;
use request::{Reading, Refusal};

/// Bytes that are kept for a connection that waits for its next request: its socket, its task, the task's future, its place
/// at the listener. Resident memory is more, by what an allocator rounds up to; the aim is 512 bytes with all of that.
pub(crate) const IDLE_CONNECTION_BYTES: usize = 144;

/// Requests that come within this many ticks of each other make a connection busy.
const BUSY_TICKS: u64 = 10;

/// The lower half of the tick until which a request follows the one before it closely.
#[derive(Clone, Copy)]
struct BusyUntil(u32);

impl BusyUntil {
    fn after(now: u64) -> Self {
        Self((now + BUSY_TICKS) as u32)
    }

    fn includes(self, now: u64) -> bool {
        u64::from(self.0.wrapping_sub(now as u32)) <= BUSY_TICKS
    }
}

/// A client connection.
pub(crate) struct Connection {
    pub(super) stream: Stream,
    /// None on a Unix socket.
    peer: Option<Peer>,
    pub(super) ingress: Rc<Ingress>,
    /// Its place among the connections of its listener.
    place: Place,
    pub(super) context: Rc<Context>,
    pub(super) deadlines: Deadlines,
    /// A request that comes until this tick follows the last one closely; the first one follows none.
    busy_until: Cell<BusyUntil>,
    /// Nothing is received any more behind what was received: the end that is seen is not the client's.
    is_last: Cell<bool>,
}

impl Connection {
    /// Takes over an accepted socket that was let in; none if it cannot be watched, and then its place is given back.
    pub(crate) fn open(
        socket: OwnedFd,
        peer: Option<SocketAddr>,
        ingress: &Rc<Ingress>,
        context: &Rc<Context>,
    ) -> Option<Self> {
        let connection = Stream::adopt(socket).ok().map(|stream| Self {
            place: ingress.enter(stream.as_raw_fd(), now()),
            stream,
            peer: peer.map(Peer::from),
            ingress: Rc::clone(ingress),
            context: Rc::clone(context),
            deadlines: Deadlines::default(),
            busy_until: Cell::new(BusyUntil(0)),
            is_last: Cell::new(false),
        });
        if connection.is_none() {
            context.admission().release_connection();
            return None;
        }
        for (connections, accepted) in [
            (&ingress.stats().connections, &ingress.stats().accepted),
            (&context.stats().connections, &context.stats().accepted),
        ] {
            connections.increment();
            accepted.increment();
        }
        // Its request is often there already: the kernel may bring it before the connection's task first asks.
        connection.inspect(|connection| connection.stream.listen())
    }

    /// What its next exchange is decided by; none before the first snapshot.
    fn view(&self) -> Option<Rc<View>> {
        self.ingress.last_view().or_else(|| self.context.view())
    }

    /// Where its client is; none on a Unix socket.
    fn peer(&self) -> Option<SocketAddr> {
        self.peer.map(SocketAddr::from)
    }

    /// Whether it is closed after the exchange that it has, if it has one.
    fn is_ending(&self) -> bool {
        self.is_last.get() || self.context.is_draining() || self.ingress.is_retired()
    }

    fn send_timeout(&self) -> Ticks {
        self.context.view().map_or(Ticks::of_millis(1), |view| view.send_timeout)
    }

    fn arm(&self, side: Side, timer: Timer, after: Ticks) {
        self.deadlines.arm(side, timer, self.stream.as_raw_fd(), after);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Before the descriptor is closed: its number may soon be another's.
        self.ingress.leave(self.place);
        self.ingress.stats().connections.decrement();
        self.context.stats().connections.decrement();
        self.context.admission().release_connection();
    }
}

/// What follows the requests of a connection.
enum Next {
    /// The wait for another one.
    Park,
    /// The end.
    Close,
}

/// How an exchange left the client's connection.
enum Ended {
    /// Ready for another request, whose first bytes may be here already.
    Open(Option<Buf>),
    /// Not to be used any further.
    Closed,
}

/// Serves a connection to its end.
#[allow(
    clippy::manual_async_fn,
    reason = "an async function would hold its argument twice, in every idle connection"
)]
pub(crate) fn serve(mut connection: Connection) -> impl Future<Output = ()> {
    async move {
        loop {
            if let Input::Ended = next(&connection).await {
                return;
            }
            if let Next::Close = Box::pin(requests(&connection)).await {
                return;
            }
            connection.deadlines.rest();
        }
    }
}

/// Serves requests as long as the connection is warm.
async fn requests(client: &Connection) -> Next {
    let mut warm = None;
    let mut input = None;
    loop {
        let Some(reading) = receive(client, input).await else { return Next::Close };
        client.deadlines.disarm(Side::ClientRead);
        let is_busy = client.busy_until.replace(BusyUntil::after(now())).includes(now());
        let ended = match reading {
            Reading::Admitted(admitted) => carry::carry(client, admitted).await,
            Reading::Refused(refusal) => Box::pin(refuse(client, refusal)).await,
            Reading::Partial(_) => return Next::Close,
        };
        let Ended::Open(rest) = ended else { return Next::Close };
        input = rest;
        if input.is_none() {
            warm = if is_busy { warm.or_else(Warm::claim) } else { None };
            if warm.is_none() {
                return Next::Park;
            }
            if let Input::Ended = next(client).await {
                return Next::Close;
            }
        }
    }
}

/// The client's next move between two requests. No async function: this is what is kept while a connection is idle.
fn next(client: &Connection) -> impl Future<Output = Input> {
    client.ingress.wait(client.place, now());
    std::future::poll_fn(|context| {
        let input = client.stream.poll_input(context);
        if input.is_ready() {
            client.is_last.set(!client.ingress.heard(client.place));
        }
        input
    })
}

/// Receives until a whole head is there, which may begin with `input`; none when the client closed without a word.
async fn receive(client: &Connection, input: Option<Buf>) -> Option<Reading> {
    let mut scan = HeadScan::default();
    let mut began = None;
    let mut input = match input {
        Some(input) => input,
        None => client.stream.recv().await.ok()??,
    };
    loop {
        let partial = match request::read(client, input, &mut scan) {
            Reading::Partial(partial) => partial,
            reading @ (Reading::Admitted(_) | Reading::Refused(_)) => return Some(reading),
        };
        let began = *began.get_or_insert_with(|| {
            let timeout = client.context.view().map_or(Ticks::of_millis(1), |view| view.request_head_timeout);
            client.arm(Side::ClientRead, Timer::RequestHead, timeout);
            client.context.stamp()
        });
        input = partial.with_room();
        if !matches!(client.stream.recv_behind(&mut input).await, Ok(true)) {
            return unfinished(client, input.bytes(), began).map(Reading::Refused);
        }
    }
}

/// What becomes of a head that came no further than this; none: there is nothing to tell of.
fn unfinished(client: &Connection, head: &[u8], began: u64) -> Option<Refusal> {
    let is_late = client.deadlines.fired() == Some(Timer::RequestHead);
    // Empty lines are no request yet: some clients send one behind the last one (RFC 9112, section 2.2).
    if !is_late && head.trim_ascii().is_empty() {
        return None;
    }
    let kind = match (is_late, client.is_last.get()) {
        (true, _) => FaultKind::RequestHeadTimeout,
        (false, true) => FaultKind::KeepAliveTimeout,
        (false, false) => FaultKind::ClientGone,
    };
    let mut refusal = Refusal::unread(kind, client.context.request_id(), began);
    if !is_late {
        refusal.detail = Some(Detail::Rule("in the middle of the request's head"));
    }
    if let Some(view) = client.view() {
        refusal.note(&view, || Notes::of_bytes(client.peer(), head));
    }
    Some(refusal)
}

/// Answers a request that is carried nowhere.
async fn refuse(client: &Connection, refusal: Refusal) -> Ended {
    tell_of(&client.context, &client.ingress, client.view(), &refusal);
    if refusal.kind.status().is_none() {
        // The client does not listen.
        return Ended::Closed;
    }
    if reply::send(client, &Reply::from(&refusal)).await {
        return match refusal.unwanted {
            None => Ended::Open(refusal.rest),
            Some(body) => Box::pin(reply::discard(client, *body)).await,
        };
    }
    reply::linger(client).await;
    Ended::Closed
}

/// Turns an accepted client away that is not let in: there are as many connections as there may be, or no files for more.
pub(crate) fn turn_away(
    socket: &OwnedFd,
    peer: Option<SocketAddr>,
    kind: FaultKind,
    ingress: &Ingress,
    context: &Context,
) {
    ingress.stats().refused.increment();
    context.stats().refused.increment();
    let mut refusal = Refusal::unread(kind, context.request_id(), context.stamp());
    let is_out_of_files = kind == FaultKind::OutOfFiles;
    let limit = if is_out_of_files { "the limit of open files" } else { "limits.connections" };
    refusal.detail = Some(Detail::Node(limit));
    let view = context.view();
    if let Some(view) = &view {
        refusal.note(view, || Notes::of_client(peer));
    }
    // Counted before the client knows of it, so that whoever sees the answer finds it counted.
    tell_of(context, ingress, view, &refusal);
    reply::refuse_connection(socket, kind, refusal.id);
}

/// Counts a request that is carried nowhere, and tells the logs of it.
fn tell_of(context: &Context, ingress: &Ingress, view: Option<Rc<View>>, refusal: &Refusal) {
    let &Refusal { kind, ref id, detail, ref route, ref notes, began, .. } = refusal;
    let (status, detail) = (Some(kind.log_status()), detail.map(Detail::as_str));
    let route = route.as_ref().map(|(view, route)| &view.routes[*route]);
    count_end(context, ingress, route.map(|route| route.stats.as_ref()), status, Some(kind));
    let Some(notes) = notes.as_deref() else { return };
    tracing::debug!(
        kind = kind.as_str(),
        detail,
        request_id = id.as_str(),
        client = notes.client.map(tracing::field::display),
        host = notes.host.as_deref(),
        path = notes.path.as_deref(),
        "request refused"
    );
    if let Some(log) = view.as_ref().and_then(|view| view.live.access.as_deref()) {
        let tally = Tally { began: Cell::new(began), ..Tally::default() };
        let (listener, route) = (ingress.name(), route.map(|route| &route.entry));
        let (tally, fault) = (&tally, Some(kind));
        access::write(log, context, &Entry { id, listener, notes, tally, route, status, fault, detail });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{FOLDED_BYTES, TASK_BYTES};
    use crate::protocol::ingress::CLIENT_BYTES;

    fn bytes_of<T>(_: impl FnOnce(Connection) -> T) -> usize {
        size_of::<T>()
    }

    #[test]
    fn an_idle_connection_takes_no_more_than_is_said() {
        let parts = [FOLDED_BYTES, TASK_BYTES, bytes_of(serve), CLIENT_BYTES];
        let sum: usize = parts.iter().sum();
        assert!(
            sum <= IDLE_CONNECTION_BYTES,
            "socket, task, its future, place at the listener: {parts:?} are {sum} bytes"
        );
    }
}
