//! HTTP/1.0 and HTTP/1.1 with clients.
//!
//! ```text
//!  parked ── readable ──► requests: receive ─► head ─► exchange ─► answer ─┐
//!    ▲                        ▲                                           │
//!    │                        └──── the next one came soon ───────────────┤
//!    └────────────────────────────── silent ─────────────────────────────┘
//! ```
//!
//! A parked connection is a small task that holds no buffer; what a request needs is boxed and freed when the connection
//! falls silent.

mod answer;
mod reply;
mod request;
mod upload;

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;

use dataplane_core::h1::HeadScan;
use proto::config::Limits;

use super::context::{Context, Ingress};
use super::watch::{Seen, Watching, watch};
use crate::io::{Buf, Deadlines, Side, Stream, Timer, now};
use request::{Admitted, Reading};

/// Requests that come within this many ticks of each other make a connection busy.
const BUSY_TICKS: u64 = 10;

/// A client connection.
pub(crate) struct Connection {
    pub(super) stream: Stream,
    /// None on a Unix socket.
    pub(super) peer: Option<SocketAddr>,
    pub(super) ingress: Rc<Ingress>,
    pub(super) context: Rc<Context>,
    pub(super) deadlines: Deadlines,
}

impl Connection {
    /// Takes an accepted socket over; none when the node is full, and then the client was told so.
    pub(crate) fn open(
        socket: OwnedFd,
        peer: Option<SocketAddr>,
        ingress: &Rc<Ingress>,
        context: &Rc<Context>,
    ) -> Option<Self> {
        if !context.admission().try_connection() {
            ingress.stats().refused.increment();
            context.stats().refused.increment();
            reply::refuse_connection(&socket, context);
            return None;
        }
        let connection = Stream::adopt(socket).ok().map(|stream| Self {
            stream,
            peer,
            ingress: Rc::clone(ingress),
            context: Rc::clone(context),
            deadlines: Deadlines::new(),
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
        connection
    }

    fn arm(&self, side: Side, timer: Timer, after: crate::io::Ticks) {
        self.deadlines.arm(side, timer, self.stream.as_raw_fd(), after);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
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

/// Serves a connection to its end.
pub(crate) async fn serve(connection: Connection) {
    let client = &connection;
    let mut waiting = pin!(None);
    loop {
        let Some(view) = client.context.view() else { return };
        client.arm(Side::ClientRead, Timer::KeepAlive, view.keep_alive_timeout);
        drop(view);
        let seen = match waiting.as_mut().as_pin_mut() {
            Some(armed) => armed.await,
            None => {
                waiting.set(Some(watch(&client.stream, false)));
                continue;
            }
        };
        waiting.set(None);
        let input = match seen {
            Seen::Gone => return,
            Seen::Bytes(input) => Some(input),
            Seen::Readable => None,
        };
        if let Next::Close = Box::pin(requests(client, waiting.as_mut(), input)).await {
            return;
        }
    }
}

/// Serves requests as long as they follow each other closely. `waiting` is the connection's watch for its client's
/// next move, which outlives this call.
async fn requests<W: Future<Output = Seen>>(
    client: &Connection,
    mut waiting: Pin<&mut Option<W>>,
    mut input: Option<Buf>,
) -> Next
where
    Watcher<W>: Sized,
{
    let _ = (&mut waiting, &mut input);
    Next::Close
}
