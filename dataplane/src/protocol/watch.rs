//! Watching a client while its request is being answered: a client that goes away must be noticed at once.
//!
//! The watch is also the wait for the next request, so it costs nothing extra. A connection whose requests follow each
//! other closely receives straight into a buffer; one that may stay silent long waits for readiness and holds none.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::io::{Buf, Stream};
use crate::sys::socket::Peek;

/// Buffers that one worker lends to silent clients at most; more clients than that wait for readiness.
const EAGER_MOST: u32 = 512;

/// How long bytes of a client stay unread before its hangup is watched for.
const HANGUP_AFTER: Duration = crate::io::TICK;

thread_local! {
    static EAGER: Cell<u32> = const { Cell::new(0) };
}

/// What the client did.
pub(crate) enum Seen {
    /// It closed its side, or the connection failed.
    Gone,
    /// It sent bytes.
    Bytes(Buf),
    /// It sent bytes, which still wait in the kernel.
    Readable,
}

/// The right to hold a buffer while waiting.
pub(crate) struct Eager(());

impl Eager {
    /// The right, unless too many hold it.
    pub(crate) fn claim() -> Option<Self> {
        let held = EAGER.get();
        (held < EAGER_MOST).then(|| {
            EAGER.set(held + 1);
            Self(())
        })
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        EAGER.set(EAGER.get() - 1);
    }
}

/// Waits for the client's next move: with a buffer in hand, if there is a right to one.
pub(crate) async fn watch(client: &Stream, eager: Option<Eager>) -> Seen {
    if let Some(_eager) = eager {
        match client.recv(Buf::small()).await {
            (Ok(count), buf) if count > 0 => Seen::Bytes(buf),
            _ => Seen::Gone,
        }
    } else {
        loop {
            match client.readable().await.map(|()| client.peek()) {
                Ok(Peek::Data) => return Seen::Readable,
                // Somebody else has taken the bytes meanwhile.
                Ok(Peek::Quiet) => {}
                Ok(Peek::Closed) | Err(_) => return Seen::Gone,
            }
        }
    }
}

/// Waits until a client has gone whose next bytes nobody reads at the moment: those behind its request, or those of a
/// body that its endpoint does not take. Begins to watch a little later, since most such times are short.
pub(crate) async fn hangup(client: &Stream) {
    crate::io::sleep(HANGUP_AFTER).await;
    if client.hangup().await.is_err() {
        // It cannot be watched: the deadlines of the exchange hold all the same.
        std::future::pending().await
    }
}

/// A watch that may run beside an exchange: armed or not, over or not.
pub(crate) struct Watching<'a, W> {
    slot: Pin<&'a mut Option<W>>,
    seen: Option<Seen>,
}

impl<'a, W: Future<Output = Seen>> Watching<'a, W> {
    /// Takes over the slot that the connection keeps for its watch, in whatever state it is.
    pub(crate) fn new(slot: Pin<&'a mut Option<W>>) -> Self {
        Self { slot, seen: None }
    }

    /// Begins to watch, unless a watch is under way.
    pub(crate) fn arm(&mut self, watch: impl FnOnce() -> W) {
        if self.slot.is_none() && self.seen.is_none() {
            self.slot.set(Some(watch()));
        }
    }

    /// Looks whether the client has gone; bytes that it sent are kept for later.
    pub(crate) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(watch) = self.slot.as_mut().as_pin_mut() else { return Poll::Pending };
        match watch.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Seen::Gone) => {
                self.slot.set(None);
                self.seen = Some(Seen::Gone);
                Poll::Ready(())
            }
            Poll::Ready(seen @ (Seen::Bytes(_) | Seen::Readable)) => {
                self.slot.set(None);
                self.seen = Some(seen);
                Poll::Pending
            }
        }
    }

    /// Whether the client has sent bytes, so that the watch is over.
    pub(crate) fn has_bytes(&self) -> bool {
        matches!(self.seen, Some(Seen::Bytes(_) | Seen::Readable))
    }

    /// What was seen of the client's next move; none if it has not moved, and then an armed watch stays in its slot.
    pub(crate) fn into_seen(self) -> Option<Seen> {
        self.seen
    }
}
