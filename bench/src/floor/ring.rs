//! The bare relay: one io_uring, multishot accept and receive, provided buffers, one send in flight each way. This is
//! the floor that reports quote.
//!
//! ```text
//! accept → connect → receive ⇒ queue → send   (each way; ⇒ completes many times)
//!                       ↑ armed again when the queue is short or a buffer came back
//! ```
//!
//! Readers that are slow on every connection at once can hold all buffers; nobody else receives then.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::Shutdown;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::reset;
use super::sys::{self, Chunk, Completion, Ring};

/// Chunks that may wait for a slow reader before its sender is no longer read.
const QUEUE_MAX: usize = 16;

/// Relays every connection of `listener` to `to`, for ever.
pub(super) fn run(listener: &TcpListener, to: SocketAddr) -> io::Result<()> {
    let mut relay = Relay {
        ring: Ring::new()?,
        to: sys::for_ever(to),
        domain: Domain::for_address(to),
        pairs: Vec::new(),
        free: Vec::new(),
        starved: Vec::new(),
    };
    relay.ring.accept(listener.as_fd(), Token::ACCEPT)?;
    let mut completions = Vec::new();
    loop {
        relay.ring.wait(&mut completions)?;
        for completion in completions.drain(..) {
            relay.handle(completion, listener)?;
        }
        relay.feed()?;
    }
}

struct Relay {
    ring: Ring,
    to: &'static SockAddr,
    domain: Domain,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    /// Ways whose receive found no buffer.
    starved: Vec<(usize, usize)>,
}

/// A client's connection, which is side 0, and the upstream's.
struct Pair {
    sockets: [OwnedFd; 2],
    /// By the side that is read.
    ways: [Way; 2],
    /// Operations whose last completion is to come; the pair lives until there are none.
    pending: u32,
    is_connected: bool,
    has_failed: bool,
}

#[derive(Default)]
struct Way {
    queue: VecDeque<Chunk>,
    sending: Option<Chunk>,
    is_receiving: bool,
    is_paused: bool,
    /// The end has been read.
    has_ended: bool,
    /// The end has been passed on.
    is_shut: bool,
}

/// What an operation was for, as the number that travels with it: operation, side, pair.
struct Token;

impl Token {
    const ACCEPT: u64 = 0;
    const CONNECT: u64 = 1;
    const RECEIVE: u64 = 2;
    const SEND: u64 = 3;
    const CANCEL: u64 = 4;

    fn of(operation: u64, side: usize, pair: usize) -> u64 {
        (pair as u64) << 8 | (side as u64) << 4 | operation
    }

    fn parts(token: u64) -> (u64, usize, usize) {
        (token & 0xf, (token >> 4 & 0xf) as usize, (token >> 8) as usize)
    }
}

impl Pair {
    /// Resets both connections, which ends everything under way; the pair is dropped when the last of it is back.
    fn fail(&mut self) {
        if !std::mem::replace(&mut self.has_failed, true) {
            self.sockets.iter().for_each(reset);
        }
    }
}

impl Relay {
    fn handle(&mut self, completion: Completion, listener: &TcpListener) -> io::Result<()> {
        let (operation, side, index) = Token::parts(completion.token);
        if operation == Token::ACCEPT {
            if !completion.more {
                self.ring.accept(listener.as_fd(), Token::ACCEPT)?;
            }
            return match completion.result {
                Ok(accepted) => self.open(sys::accepted(accepted)),
                // Gone before it was taken, which concerns nobody. Anything else would come again at once.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
                Err(error) => Err(error),
            };
        }
        let Some(mut pair) = self.pairs[index].take() else { unreachable!("a pair outlives its operations") };
        if !completion.more {
            pair.pending -= 1;
        }
        match operation {
            Token::CONNECT => self.connected(&mut pair, index, completion.result)?,
            Token::RECEIVE => self.received(&mut pair, index, side, completion)?,
            Token::SEND => self.sent(&mut pair, index, side, completion.result)?,
            // A cancel's own completion says nothing that the cancelled one does not.
            _ => {}
        }
        self.keep_or_close(pair, index);
        Ok(())
    }

    fn open(&mut self, client: OwnedFd) -> io::Result<()> {
        let upstream = Socket::new(self.domain, Type::STREAM, None)?;
        for socket in [&SockRef::from(&client), &SockRef::from(&upstream)] {
            // A client may be gone by now, which its first receive says.
            let _ = socket.set_tcp_nodelay(true);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        self.ring.connect(upstream.as_fd(), self.to, Token::of(Token::CONNECT, 1, index))?;
        self.pairs[index] = Some(Pair {
            sockets: [client, upstream.into()],
            ways: [Way::default(), Way::default()],
            pending: 1,
            is_connected: false,
            has_failed: false,
        });
        Ok(())
    }

    fn connected(&mut self, pair: &mut Pair, index: usize, result: io::Result<u32>) -> io::Result<()> {
        if result.is_err() {
            pair.fail();
        }
        pair.is_connected = true;
        self.pump(pair, index, 0)?;
        self.pump(pair, index, 1)
    }

    fn received(
        &mut self,
        pair: &mut Pair,
        index: usize,
        side: usize,
        completion: Completion,
    ) -> io::Result<()> {
        let way = &mut pair.ways[side];
        way.is_receiving = completion.more;
        if let Some(chunk) = completion.chunk {
            way.queue.push_back(chunk);
        }
        match completion.result {
            Ok(0) => way.has_ended = true,
            Ok(_) => {}
            Err(error) if is(&error, Errno::NOBUFS) => {
                self.starved.push((index, side));
                return Ok(());
            }
            // The pause that was asked for.
            Err(error) if is(&error, Errno::CANCELED) && !pair.has_failed => {}
            Err(_) => pair.fail(),
        }
        self.pump(pair, index, side)
    }

    fn sent(
        &mut self,
        pair: &mut Pair,
        index: usize,
        side: usize,
        result: io::Result<u32>,
    ) -> io::Result<()> {
        let way = &mut pair.ways[side];
        let Some(mut chunk) = way.sending.take() else { unreachable!("a send has its chunk") };
        let sent = result.as_ref().map_or(0, |sent| *sent as usize);
        if chunk.advance(sent) && result.is_ok() {
            way.queue.push_front(chunk);
        } else {
            self.ring.recycle(chunk);
        }
        if result.is_err() {
            pair.fail();
        }
        self.pump(pair, index, side)
    }

    /// Starts whatever one way can do next.
    fn pump(&mut self, pair: &mut Pair, index: usize, side: usize) -> io::Result<()> {
        if pair.has_failed {
            return Ok(());
        }
        let Pair { sockets, ways, pending, .. } = pair;
        let (source, target, way) = (&sockets[side], &sockets[1 - side], &mut ways[side]);
        if way.sending.is_none()
            && let Some(chunk) = way.queue.pop_front()
        {
            self.ring.send(target.as_fd(), &chunk, Token::of(Token::SEND, side, index))?;
            way.sending = Some(chunk);
            *pending += 1;
        }
        if way.has_ended && way.sending.is_none() && !way.is_shut {
            // Directly, since as an operation it would go to a kernel thread. A peer that is gone needs no end.
            let _ = rustix::net::shutdown(target, Shutdown::Write);
            way.is_shut = true;
        }
        let (token, is_full) = (Token::of(Token::RECEIVE, side, index), way.queue.len() >= QUEUE_MAX);
        if way.is_receiving && is_full && !way.is_paused {
            self.ring.cancel(token, Token::of(Token::CANCEL, side, index))?;
            way.is_paused = true;
            *pending += 1;
        } else if !way.is_receiving && !is_full && !way.has_ended {
            self.ring.receive(source.as_fd(), token)?;
            (way.is_receiving, way.is_paused) = (true, false);
            *pending += 1;
        }
        Ok(())
    }

    fn keep_or_close(&mut self, mut pair: Pair, index: usize) {
        let is_over = pair.has_failed || pair.ways.iter().all(|way| way.is_shut);
        if !is_over || pair.pending > 0 {
            self.pairs[index] = Some(pair);
            return;
        }
        for chunk in pair.ways.iter_mut().flat_map(|way| way.queue.drain(..).chain(way.sending.take())) {
            self.ring.recycle(chunk);
        }
        self.free.push(index);
    }

    /// Lets those receive again that found no buffer, when there are some.
    fn feed(&mut self) -> io::Result<()> {
        if !self.ring.has_buffers() {
            return Ok(());
        }
        for (index, side) in std::mem::take(&mut self.starved) {
            // The place may be another pair's by now, which is served as it should be in any case.
            if let Some(mut pair) = self.pairs[index].take() {
                if pair.is_connected {
                    self.pump(&mut pair, index, side)?;
                }
                self.pairs[index] = Some(pair);
            }
        }
        Ok(())
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
