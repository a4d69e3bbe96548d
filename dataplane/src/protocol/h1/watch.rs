//! An eye on a client while its request is carried: whether it has left. What the end of its side means, the core decides
//! (`half_close`); here it is noticed, and a client that may still be there is looked after.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dataplane_core::half_close::Verdict;

use super::super::exchange::Exchange;
use super::Connection;
use crate::io::{Input, Side, Stream, Ticks, now, sleep};
use crate::sys::socket::is_abandoned;

/// How often a half-closed client is looked after: a reset is not told by a socket whose end is known already. Each look is a system
/// call, and such clients are few.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the client can still send meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// The rest of its request's body.
    Body,
    /// Only what comes behind its request.
    Behind,
}

/// What is known of the client's side: nothing, or that it has ended.
#[derive(Default)]
pub(super) struct Watch(RefCell<Option<HalfClosed>>);

/// A client whose side has ended, and which may be there still.
struct HalfClosed {
    /// The tick since which the origin has been silent, as far as this has looked.
    silent_since: u64,
    /// Pieces of the answer's body by then.
    chunks: u64,
    /// Until the next look.
    pause: Pin<Box<dyn Future<Output = ()>>>,
}

impl Watch {
    /// Waits until the client has left, as far as that can be known.
    pub(super) fn poll_left(
        &self,
        client: &Connection,
        exchange: &Exchange,
        sending: Sending,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let mut known = self.0.borrow_mut();
        let verdict = || exchange.when_input_ends.with(exchange.answer.get());
        let half_closed = match &mut *known {
            Some(half_closed) => half_closed,
            None => {
                ready!(poll_end(&client.stream, sending, context));
                if verdict() == Verdict::Cancel || is_abandoned(&client.stream) {
                    return Poll::Ready(());
                }
                let chunks = exchange.tally.chunks.get();
                known.insert(HalfClosed { silent_since: now(), chunks, pause: Box::pin(sleep(LOOK_EVERY)) })
            }
        };
        loop {
            let chunks = exchange.tally.chunks.get();
            // As long as the origin has not got all of the request, or the client has not taken what it said, it has to wait.
            let is_held_up = sending == Sending::Body || client.deadlines.is_armed(Side::ClientWrite);
            if chunks != half_closed.chunks || is_held_up {
                (half_closed.silent_since, half_closed.chunks) = (now(), chunks);
            }
            let waited = now().saturating_sub(half_closed.silent_since);
            match verdict() {
                Verdict::Cancel => return Poll::Ready(()),
                Verdict::ServeFor(silence) if waited >= Ticks::from(silence).count() => {
                    return Poll::Ready(());
                }
                Verdict::ServeFor(_) | Verdict::Serve => {}
            }
            ready!(half_closed.pause.as_mut().poll(context));
            if is_abandoned(&client.stream) {
                return Poll::Ready(());
            }
            half_closed.pause = Box::pin(sleep(LOOK_EVERY));
        }
    }
}

/// Waits until the client has ended its side, or the connection has failed.
fn poll_end(client: &Stream, sending: Sending, context: &Context<'_>) -> Poll<()> {
    if sending == Sending::Body {
        // Reading the body notices its end, but while the endpoint takes no more, nobody reads.
        return client.poll_hangup(context);
    }
    match ready!(client.poll_input(context)) {
        Input::Ended => Poll::Ready(()),
        // Its next request is here already: what comes behind that is the hangup.
        Input::Bytes => client.poll_hangup(context),
    }
}
