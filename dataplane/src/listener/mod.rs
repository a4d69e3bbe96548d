//! Accepting: in bursts when the listening socket is readable, within the node's limit, and evenly over the workers. Where the
//! node is full, clients that are silent make room; what room there is and who goes first is decided in the core.
//!
//! Readiness and `accept4` rather than an accept on the ring: an accept that is cancelled could lose the connection it
//! had just taken, and stopping a listener must lose none.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use dataplane_core::error::FaultKind;
use dataplane_core::limit::ConnectionPermit;
use tracing::warn;

use crate::io::{self as driver, Stream, TICK};
use crate::protocol::{Connection, Context, Ingress, Room, serve, turn_away};
use crate::sys::{files, socket};

/// Connections taken in one turn, before the others of the worker get theirs.
const BURST: usize = 64;
/// Pause after the process ran out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// A worker keeps a new connection unless it has this many streams more than the idlest one.
const IMBALANCE_STREAMS: u64 = 16;

/// How often room is made for a newcomer before it is turned away, a tick after each other: what was let go may have had a
/// last request, and another worker may have been faster at its place.
const ROOM_TRIES: usize = 20;
/// Turns of the worker in which connections that were let go have closed, unless another worker has them: one for the
/// kernel to say that nothing more comes, one for the connection to end.
const ROOM_TURNS: usize = 4;

/// A connection that one worker has accepted and another is to serve.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The connected socket.
    pub(crate) socket: OwnedFd,
    /// The peer; none on a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
    /// The listener's name.
    pub(crate) listener: String,
    /// Its place.
    pub(crate) permit: ConnectionPermit,
}

/// Ends an accept loop from outside of its task.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    stopped: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Stop {
    /// No further connection is taken; what waits in the queue already is.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        std::future::poll_fn(|context| {
            if self.stopped.get() {
                return Poll::Ready(());
            }
            self.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Accepts on `socket` until stopped. Errors: the socket cannot be watched.
pub(crate) async fn accept(
    socket: OwnedFd,
    ingress: Rc<Ingress>,
    context: Rc<Context>,
    hand_over: impl Fn(usize, Accepted),
    stop: Rc<Stop>,
) -> io::Result<()> {
    let socket = Stream::adopt(socket)?;
    let door = Door { ingress, context, hand_over };
    loop {
        let stopped = first(stop.wait(), socket.readable()).await;
        match door.accept_burst(&socket) {
            // Closing a socket resets what waits in its queue: take that first, however many bursts it needs.
            Ok(Burst::Emptied) if stopped => return Ok(()),
            Ok(Burst::Emptied | Burst::Cut) => {}
            Ok(Burst::Full(newcomer)) => Box::pin(door.make_room_for(newcomer)).await,
            Err(error) => {
                door.tell_exhausted(&error);
                if !door.context.give_up_some_idle() {
                    door.context.make_room();
                }
                driver::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// How a burst of accepts ended.
enum Burst {
    /// Nothing is left in the queue.
    Emptied,
    /// The others of the worker have their turn.
    Cut,
    /// The node is full. The next ones wait in the kernel's queue.
    Full(Newcomer),
}

/// A connection that was accepted and is not let in yet.
struct Newcomer {
    socket: OwnedFd,
    /// None on a Unix socket.
    peer: Option<SocketAddr>,
}

/// What an accept loop does with whoever comes.
struct Door<H> {
    ingress: Rc<Ingress>,
    context: Rc<Context>,
    hand_over: H,
}

impl<H: Fn(usize, Accepted)> Door<H> {
    /// Takes what waits in the queue, up to a burst. Errors: the process or the host has run out of descriptors or memory.
    fn accept_burst(&self, socket: &Stream) -> io::Result<Burst> {
        for _ in 0..BURST {
            let (socket, peer) = match socket::accept(socket) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Burst::Emptied),
                Err(error) if socket::is_exhausted(&error) => return Err(error),
                // The peer gave up while it waited in the queue.
                Err(_) => continue,
            };
            let mut newcomer = Newcomer { socket, peer };
            if !self.admits(&mut newcomer) {
                return Ok(Burst::Full(newcomer));
            }
            self.seat(newcomer);
        }
        Ok(Burst::Cut)
    }

    /// Whether there is a place for it, which it has then, and a file that is not kept for others.
    fn admits(&self, newcomer: &mut Newcomer) -> bool {
        files::is_below(&mut newcomer.socket, self.context.admission().ceiling())
            && self.context.try_connection()
    }

    /// Has it served, here or by a worker with less to do.
    fn seat(&self, Newcomer { socket, peer }: Newcomer) {
        let Self { ingress, context, hand_over } = self;
        match context.idler_worker(IMBALANCE_STREAMS) {
            Some(other) => {
                context.stats().handovers_out.increment();
                let permit = ConnectionPermit::taken(Arc::clone(context.admission()));
                hand_over(other, Accepted { socket, peer, listener: ingress.name().to_owned(), permit });
            }
            None => begin(socket, peer, ingress, context),
        }
    }

    /// Lets clients go that have been silent for longest, and the newcomer in; or turns it away, where all are busy.
    async fn make_room_for(&self, mut newcomer: Newcomer) {
        for _ in 0..ROOM_TRIES {
            // Those that were let in just now may have asked already: then they are not silent.
            next_turn().await;
            if self.admits(&mut newcomer) {
                return self.seat(newcomer);
            }
            // Idle connections to endpoints have files, but no places.
            let is_out_of_files = !files::is_below(&mut newcomer.socket, self.context.admission().ceiling());
            let is_given_up = is_out_of_files && self.context.give_up_some_idle();
            if !is_given_up && self.context.make_room() == Room::Nowhere {
                break;
            }
            for _ in 0..ROOM_TURNS {
                next_turn().await;
                if self.admits(&mut newcomer) {
                    return self.seat(newcomer);
                }
            }
            driver::sleep(TICK).await;
            if self.admits(&mut newcomer) {
                return self.seat(newcomer);
            }
        }
        let kind = self.context.refusal();
        if kind == FaultKind::OutOfFiles {
            self.tell_full(kind);
        }
        turn_away(&newcomer.socket, newcomer.peer, kind, &self.ingress, &self.context);
    }

    /// Says that clients are turned away for want of files.
    fn tell_full(&self, kind: FaultKind) {
        let Some(left_out) = self.context.may_warn_of_files() else { return };
        let admission = self.context.admission();
        warn!(
            listener = self.ingress.name(),
            kind = kind.as_str(),
            connections = admission.connections(),
            connections_max = admission.connections_max(),
            left_out,
            "no open file is left for another client and none is idle, clients are turned away: raise the limit of open \
             files, or lower limits.connections"
        );
    }

    /// Says that the kernel gives no file to a client.
    fn tell_exhausted(&self, error: &io::Error) {
        self.ingress.stats().accept_failures.increment();
        if let Some(left_out) = self.context.may_warn_of_files() {
            warn!(
                listener = self.ingress.name(),
                %error,
                left_out,
                "cannot accept; waiting for connections to close"
            );
        }
    }
}

/// Serves a connection that was let in on this worker.
pub(crate) fn begin(socket: OwnedFd, peer: Option<SocketAddr>, ingress: &Rc<Ingress>, context: &Rc<Context>) {
    if let Some(connection) = Connection::open(socket, peer, ingress, context) {
        driver::spawn(serve(connection));
    }
}

/// Waits until everybody else who can has had a turn.
async fn next_turn() {
    let mut has_turned = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_turned, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// True when `stop` was first (or both are ready), false when `ready` was.
async fn first(stop: impl Future<Output = ()>, ready: impl Future<Output = io::Result<()>>) -> bool {
    let mut stop = std::pin::pin!(stop);
    let mut ready = std::pin::pin!(ready);
    std::future::poll_fn(|context| {
        if stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(true);
        }
        ready.as_mut().poll(context).map(|_| false)
    })
    .await
}
