//! Random stories of streams on the simulated kernel: what the ring itself keeps books of.
//!
//! Every stream has bytes of its own in each direction, a function of its number and the place in the stream; so a byte
//! of another stream, a lost or a doubled one is seen where it arrives.

mod leases;
mod streams;

use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::{Random, fault, pattern};
use crate::io::{buffers_out, sleep, task_panics_here, turn};

/// What the suite runs of each kind.
const SEEDS: u64 = 100;
/// What is closed is let go of by the kernel within this time.
const LETS_GO_WITHIN: Duration = Duration::from_secs(30);

/// A connection between a stream of the ring and a peer.
#[derive(Debug)]
struct Link {
    number: u64,
    /// What our side sends, and what it may have sent, by segment.
    outbound: RefCell<Vec<Segment>>,
    /// Our side has sent all that it wanted, and been told so.
    is_all_sent: Cell<bool>,
    /// What the peer has sent.
    inbound: Cell<usize>,
    /// The peer has ended its side, or is gone.
    has_peer_ended: Cell<bool>,
    /// The peer has seen the end of ours, or is gone.
    is_peer_over: Cell<bool>,
    is_our_side_over: Cell<bool>,
}

/// Bytes that are sent in order. Behind a send that was given up another segment begins: nobody knows how much of the
/// last piece was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    /// Sent, as was told.
    least: usize,
    /// Handed over.
    most: usize,
}

impl Link {
    fn new(number: u64) -> Rc<Self> {
        Rc::new(Self {
            number,
            outbound: RefCell::new(vec![Segment::default()]),
            is_all_sent: Cell::new(false),
            inbound: Cell::new(0),
            has_peer_ended: Cell::new(false),
            is_peer_over: Cell::new(false),
            is_our_side_over: Cell::new(false),
        })
    }

    fn is_over(&self) -> bool {
        self.is_peer_over.get() && self.is_our_side_over.get()
    }

    fn outbound_bytes(&self, segment: usize, from: usize, count: usize) -> Vec<u8> {
        // The lowest bit tells segments apart that follow each other.
        let bytes = pattern(self.number << 8 | segment as u64, from, count);
        bytes.into_iter().map(|byte| byte & !1 | (segment & 1) as u8).collect()
    }

    fn inbound_bytes(&self, from: usize, count: usize) -> Vec<u8> {
        pattern(self.number << 8 | 0xFF, from, count)
    }

    fn fault(&self, what: &str) {
        fault(format!("stream {}: {what}: {self:?}", self.number));
    }
}

/// Two ends of a connection with small buffers.
fn pair(random: &mut Random) -> (UnixStream, UnixStream) {
    let (ours, peers) = UnixStream::pair().expect("a pair of sockets");
    for socket in [&ours, &peers] {
        socket.set_nonblocking(true).expect("a socket that does not wait");
        let bytes = random.of([2048, 20_000, 200_000]);
        socket2::SockRef::from(socket).set_send_buffer_size(bytes).expect("a small buffer");
    }
    (ours, peers)
}

/// Waits until every stream is over, and everything has been given back.
async fn come_to_rest(links: &[Rc<Link>]) {
    while !links.iter().all(|link| link.is_over()) {
        sleep(Duration::from_millis(10)).await;
        if task_panics_here() > 0 {
            fault("a task panicked".to_owned());
        }
    }
    let mut waited = Duration::ZERO;
    while buffers_out() > 0 {
        sleep(Duration::from_millis(10)).await;
        waited += Duration::from_millis(10);
        if waited > LETS_GO_WITHIN {
            return fault(format!("{} buffers were not given back", buffers_out()));
        }
    }
}

/// A few turns in which nothing is wanted, or a while.
async fn rest(random: &mut Random) {
    match random.below(20) {
        0 => sleep(Duration::from_millis(random.below(200) as u64)).await,
        turns @ 1..5 => {
            for _ in 0..turns {
                turn().await;
            }
        }
        _ => {}
    }
}

/// The output of a future, unless it was polled so often in vain: then it is dropped.
async fn settle<T>(polls_most: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut polls = 0;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if polls >= polls_most => Poll::Ready(None),
        Poll::Pending => {
            polls += 1;
            if polls_most < usize::MAX {
                context.waker().wake_by_ref();
            }
            Poll::Pending
        }
    })
    .await
}
