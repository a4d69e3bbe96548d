//! The relay on edge-triggered epoll with non-blocking sockets: read until there is no more, write at once, keep what
//! the peer does not take.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::{CHUNK_SIZE, reset};

/// Events of one turn.
const EVENTS: usize = 1024;
/// The listener's event; pairs count from 0.
const LISTENER: u64 = u64::MAX;

/// Relays every connection of `listener` to `to`, for ever.
pub(super) fn run(listener: &TcpListener, to: SocketAddr) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut relay = Relay {
        epoll: epoll::create(CreateFlags::CLOEXEC)?,
        to,
        pairs: Vec::new(),
        free: Vec::new(),
        buffer: vec![0; CHUNK_SIZE].into(),
    };
    epoll::add(&relay.epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&relay.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Places are free for new pairs only after the turn, since later events of it may be of the pair that ended.
        let mut ended = Vec::new();
        for event in &events {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == LISTENER {
                relay.accept(listener)?;
            } else if relay.handle(data, flags) {
                ended.push((data >> 1) as usize);
            }
        }
        relay.free.append(&mut ended);
    }
}

struct Relay {
    epoll: OwnedFd,
    to: SocketAddr,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    buffer: Box<[u8]>,
}

/// A client's connection, which is side 0, and the upstream's.
struct Pair {
    sockets: [TcpStream; 2],
    /// By the side that is read.
    ways: [Way; 2],
    is_connected: bool,
}

#[derive(Default)]
struct Way {
    /// What the target did not take.
    rest: Vec<u8>,
    is_readable: bool,
    /// The source has sent its end, so a short read is not the last one.
    is_ending: bool,
    has_ended: bool,
    is_shut: bool,
}

impl Relay {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            match listener.accept() {
                Ok((client, _)) => self.open(client)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Gone before it was taken, which concerns nobody.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn open(&mut self, client: TcpStream) -> io::Result<()> {
        let upstream = Socket::new(Domain::for_address(self.to), Type::STREAM, None)?;
        upstream.set_nonblocking(true)?;
        // Connecting goes on; how it ends is an event.
        let _ = upstream.connect(&self.to.into());
        let sockets = [client, upstream.into()];
        let index = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        for (side, socket) in sockets.iter().enumerate() {
            socket.set_nonblocking(true)?;
            // A client may be gone by now, which its first read says.
            let _ = socket.set_nodelay(true);
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            let data = (index as u64) << 1 | side as u64;
            epoll::add(&self.epoll, socket, EventData::new_u64(data), flags)?;
        }
        self.pairs[index] =
            Some(Pair { sockets, ways: [Way::default(), Way::default()], is_connected: false });
        Ok(())
    }

    /// Whether the pair has ended with this.
    fn handle(&mut self, data: u64, flags: EventFlags) -> bool {
        let (index, side) = ((data >> 1) as usize, (data & 1) as usize);
        // An event of a pair that an event before it in this turn has ended.
        let Some(pair) = &mut self.pairs[index] else { return false };
        let has_failed =
            flags.contains(EventFlags::ERR) || pair.advance(side, flags, &mut self.buffer).is_err();
        if has_failed {
            pair.sockets.iter().for_each(reset);
        }
        let is_over = has_failed || pair.ways.iter().all(|way| way.is_shut);
        if is_over {
            self.pairs[index] = None;
        }
        is_over
    }
}

impl Pair {
    fn advance(&mut self, side: usize, flags: EventFlags, buffer: &mut [u8]) -> io::Result<()> {
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
            self.ways[side].is_readable = true;
            self.ways[side].is_ending |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
        }
        self.is_connected |= side == 1 && flags.contains(EventFlags::OUT);
        if !self.is_connected {
            return Ok(());
        }
        self.pump(side, buffer)?;
        // What can be written to this side is the other way's business.
        self.pump(1 - side, buffer)
    }

    fn pump(&mut self, side: usize, buffer: &mut [u8]) -> io::Result<()> {
        let (mut source, mut target) = (&self.sockets[side], &self.sockets[1 - side]);
        let way = &mut self.ways[side];
        while way.flush(target)? && way.is_readable && !way.has_ended {
            match source.read(buffer) {
                Ok(0) => way.has_ended = true,
                Ok(read) => {
                    // Less than asked for: there was no more, and what comes later is an event of its own.
                    way.is_readable = read == buffer.len() || way.is_ending;
                    let sent = or_nothing(target.write(&buffer[..read]))?;
                    way.rest.extend_from_slice(&buffer[sent..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => way.is_readable = false,
                Err(error) => return Err(error),
            }
        }
        if way.has_ended && way.rest.is_empty() && !way.is_shut {
            // A peer that is gone needs no end.
            let _ = target.shutdown(Shutdown::Write);
            way.is_shut = true;
        }
        Ok(())
    }
}

impl Way {
    /// Writes what is left over. Whether nothing is any more.
    fn flush(&mut self, mut target: &TcpStream) -> io::Result<bool> {
        if !self.rest.is_empty() {
            let sent = or_nothing(target.write(&self.rest))?;
            self.rest.drain(..sent);
        }
        Ok(self.rest.is_empty())
    }
}

fn or_nothing(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}
