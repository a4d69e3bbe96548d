//! Bytes both ways between two sockets, once a protocol switch has made a connection nobody's business but its ends'.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::task::Poll;

use crate::io::{Buf, Deadlines, Side, Stream, Ticks, Timer, Told};

/// How many bytes went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// From the client to the origin.
    pub(crate) up: u64,
    /// From the origin to the client.
    pub(crate) down: u64,
}

/// Carries bytes until both sides have ended, one has failed, or nothing moved for `idle`. `early` is what the client has
/// sent already.
pub(crate) async fn tunnel(
    client: &Stream,
    origin: &Stream,
    early: Option<Buf>,
    deadlines: &Deadlines,
    idle: Ticks,
) -> Carried {
    let moved = || deadlines.arm(Side::Upstream, Timer::Idle, origin.as_raw_fd(), idle);
    moved();
    let (up, down) = (Cell::new(0), Cell::new(0));
    let mut upward = pin!(one_way(client, origin, early, &up, moved));
    let mut downward = pin!(one_way(origin, client, None, &down, moved));
    let (mut up_ended, mut down_ended) = (false, false);
    std::future::poll_fn(|context| {
        let mut failed = false;
        if !up_ended && let Poll::Ready(clean) = upward.as_mut().poll(context) {
            up_ended = true;
            failed |= !clean;
        }
        if !down_ended && let Poll::Ready(clean) = downward.as_mut().poll(context) {
            down_ended = true;
            failed |= !clean;
        }
        if failed || (up_ended && down_ended) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    deadlines.disarm(Side::Upstream);
    Carried { up: up.get(), down: down.get() }
}

/// Carries `early` and then `from` to `to` until its end, which is passed on; false when either failed.
async fn one_way(
    from: &Stream,
    to: &Stream,
    early: Option<Buf>,
    count: &Cell<u64>,
    moved: impl Fn(),
) -> bool {
    let mut next = early;
    let mut is_full = false;
    loop {
        if let Some(mut buf) = next {
            count.set(count.get() + buf.len() as u64);
            is_full = buf.fills_small();
            while !buf.is_empty() {
                let told = if from.is_listening() { Told::WithNext } else { Told::AtOnce };
                let (result, sent) = to.send(buf, told).await;
                buf = sent;
                if !matches!(result, Ok(1..)) {
                    return false;
                }
            }
        }
        next = match if is_full { from.recv_bulk().await } else { from.recv().await } {
            Ok(None) => {
                to.shutdown_write();
                return true;
            }
            Ok(received) => received,
            Err(_) => return false,
        };
        moved();
    }
}
