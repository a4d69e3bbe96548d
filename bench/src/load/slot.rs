//! One connection of the generator: its socket, and the exchange that is under way on it. It moves bytes and knows
//! nothing of time tables; `engine` decides what happens next.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::exchange::{Exchange, Message};

/// One connection and its work.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) socket: Socket,
    pub(crate) work: Option<Work>,
    /// Raised with every socket: an event of the one before means nothing to the next.
    pub(crate) generation: u32,
    /// Whether it ever had a socket.
    pub(crate) was_open: bool,
}

/// How far the connection is.
#[derive(Debug, Default)]
pub(crate) enum Socket {
    #[default]
    None,
    Connecting(OwnedFd),
    Open(OwnedFd),
}

/// An exchange under way.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) intended_ns: u64,
    pub(crate) begun_ns: u64,
    pub(crate) deadline_ns: u64,
    /// Bytes of the message that are written.
    pub(crate) sent: u64,
    /// Whether it belongs to the measured time.
    pub(crate) counted: bool,
    pub(crate) exchange: Exchange,
}

/// What one read gave.
#[derive(Debug)]
pub(crate) enum Read {
    Bytes(usize),
    Nothing,
    Closed,
    Reset,
}

impl Slot {
    /// Writes as much of the message as the socket takes.
    pub(crate) fn write(&mut self, message: &Message) -> Result<u64, Errno> {
        let (Socket::Open(socket), Some(work)) = (&self.socket, &mut self.work) else { return Ok(0) };
        let before = work.sent;
        while work.sent < message.length() {
            match send(socket, message.piece(work.sent), SendFlags::NOSIGNAL) {
                Ok(count) => work.sent += count as u64,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // A response may have come before the peer closed: the read tells.
                Err(Errno::PIPE) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(work.sent - before)
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Read {
        let Socket::Open(socket) = &self.socket else { return Read::Nothing };
        loop {
            match recv(socket, &mut *buffer, RecvFlags::empty()) {
                Ok((_, 0)) => return Read::Closed,
                Ok((_, count)) => return Read::Bytes(count),
                Err(Errno::AGAIN) => return Read::Nothing,
                Err(Errno::INTR) => {}
                Err(_) => return Read::Reset,
            }
        }
    }

    /// Whether part of the message waits for room in the socket.
    pub(crate) fn has_unsent(&self, message: &Message) -> bool {
        self.work.as_ref().is_some_and(|work| work.sent < message.length())
    }

    /// A connect has come to its end, good or bad.
    pub(crate) fn connected(&mut self) -> io::Result<()> {
        if let Socket::Connecting(socket) = std::mem::take(&mut self.socket) {
            crate::dial::outcome(&socket)?;
            self.socket = Socket::Open(socket);
        }
        Ok(())
    }
}
