//! All sockets of a ring. One that only waits for its peer is folded to a few bytes, which is what an idle connection
//! costs here; whoever does something with it unfolds it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::super::table::Table;
use super::super::waker::Waiter;
use super::socket::{Receiving, Socket};

/// Unfolded memory that is kept for those that are unfolded next, so that nothing is allocated for a request.
const SPARE_MOST: usize = 1024;

/// What a folded socket takes.
#[cfg(test)]
pub(crate) const FOLDED_BYTES: usize = Table::<Place>::ENTRY_BYTES;

/// Sockets by key.
#[derive(Debug)]
pub(super) struct Sockets {
    table: Table<Place>,
    /// Silent sockets of nobody.
    spare: Vec<Memory>,
}

/// Of an unfolded socket: boxed, so that the table stays small.
type Memory = Box<Socket>;

#[derive(Debug)]
struct Place {
    fd: OwnedFd,
    state: State,
}

#[derive(Debug)]
enum State {
    Folded(Folded),
    Open(Memory),
}

/// What is left of a socket that [is silent](Socket::is_silent).
#[derive(Clone, Copy, Debug)]
struct Folded {
    reader: Waiter,
    bulk: u8,
    is_armed: bool,
}

impl Sockets {
    /// None.
    pub(super) const fn new() -> Self {
        Self { table: Table::new(), spare: Vec::new() }
    }

    /// Takes a descriptor over, on which nothing is under way.
    pub(super) fn insert(&mut self, fd: OwnedFd) -> u32 {
        let folded = Folded { reader: Waiter::NOBODY, bulk: 0, is_armed: false };
        self.table.insert(Place { fd, state: State::Folded(folded) })
    }

    /// Gives a descriptor up, on which nothing is under way.
    ///
    /// # Panics
    /// There is none: a bug of the caller.
    pub(super) fn remove(&mut self, key: u32) -> OwnedFd {
        let Place { fd, state } = self.table.remove(key).expect("a socket is removed once");
        if let State::Open(mut socket) = state
            && self.spare.len() < SPARE_MOST
        {
            *socket = Socket::default();
            self.spare.push(socket);
        }
        fd
    }

    /// The descriptor.
    pub(super) fn fd(&self, key: u32) -> RawFd {
        self.table[key].fd.as_raw_fd()
    }

    /// The descriptor, for a call that wants to know it open.
    pub(super) fn borrow_fd(&self, key: u32) -> BorrowedFd<'_> {
        self.table[key].fd.as_fd()
    }

    /// The socket, unfolded.
    pub(super) fn at(&mut self, key: u32) -> &mut Socket {
        unfolded(&mut self.table[key], &mut self.spare)
    }

    /// As [`Sockets::at`]; none if it was removed.
    pub(super) fn find(&mut self, key: u32) -> Option<&mut Socket> {
        let place = self.table.get_mut(key)?;
        Some(unfolded(place, &mut self.spare))
    }

    /// Whether a socket is folded, and will be told of what its peer does.
    pub(super) fn waits(&self, key: u32) -> bool {
        matches!(self.table[key].state, State::Folded(Folded { is_armed: true, .. }))
    }

    /// Folds a socket if it is silent.
    pub(super) fn fold(&mut self, key: u32) {
        let place = &mut self.table[key];
        let State::Open(socket) = &mut place.state else { return };
        if !socket.is_silent() {
            return;
        }
        let is_armed = matches!(socket.receiving, Receiving::Multishot);
        let folded = State::Folded(Folded { reader: socket.reader, bulk: socket.bulk, is_armed });
        if let State::Open(mut silent) = std::mem::replace(&mut place.state, folded)
            && self.spare.len() < SPARE_MOST
        {
            silent.inbox.shrink();
            self.spare.push(silent);
        }
    }

    /// Operations of all sockets that the kernel has not ended.
    pub(super) fn under_way(&mut self) -> usize {
        let places = self.table.iter_mut();
        places.map(|place| usize::from(place.state.under_way())).sum()
    }

    /// All that are unfolded.
    pub(super) fn open(&mut self) -> impl Iterator<Item = &mut Socket> {
        self.table.iter_mut().filter_map(|place| match &mut place.state {
            State::Open(socket) => Some(socket.as_mut()),
            State::Folded(_) => None,
        })
    }
}

impl State {
    fn under_way(&self) -> u8 {
        match self {
            Self::Folded(folded) => u8::from(folded.is_armed),
            Self::Open(socket) => socket.under_way,
        }
    }
}

fn unfolded<'a>(place: &'a mut Place, spare: &mut Vec<Memory>) -> &'a mut Socket {
    if let State::Folded(Folded { reader, bulk, is_armed }) = place.state {
        let mut socket = spare.pop().unwrap_or_default();
        // Everything else is as in every silent socket.
        socket.reader = reader;
        socket.bulk = bulk;
        socket.receiving = if is_armed { Receiving::Multishot } else { Receiving::Off };
        socket.under_way = u8::from(is_armed);
        place.state = State::Open(socket);
    }
    match &mut place.state {
        State::Open(socket) => socket,
        State::Folded(_) => unreachable!("it was unfolded just now"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::buf::Buf;
    use super::super::socket::{End, Polling};
    use super::*;
    use crate::sys::event;

    fn socket(sockets: &mut Sockets) -> u32 {
        sockets.insert(event::event().unwrap())
    }

    #[test]
    fn what_a_folded_socket_knew_is_there_when_it_is_unfolded() {
        let mut sockets = Sockets::new();
        let key = socket(&mut sockets);
        let armed = sockets.at(key);
        (armed.receiving, armed.under_way, armed.bulk) = (Receiving::Multishot, 1, 3);
        sockets.fold(key);
        assert!(sockets.waits(key) && sockets.open().next().is_none());
        let again = sockets.at(key);
        assert!(matches!(again.receiving, Receiving::Multishot));
        assert_eq!((again.under_way, again.bulk), (1, 3));
        assert!(again.is_silent() && !sockets.waits(key));
    }

    #[test]
    fn a_socket_with_anything_in_it_is_not_folded() {
        let mut sockets = Sockets::new();
        let all: [fn(&mut Socket); 8] = [
            |socket| socket.inbox.push(Buf::small(), 1),
            |socket| socket.ended = Some(End::Closed),
            |socket| socket.is_closing = true,
            |socket| socket.hangup = Polling::Submitted,
            |socket| socket.readable = Polling::Done(0),
            |socket| (socket.receiving, socket.under_way) = (Receiving::Once(Buf::large().lend().0), 1),
            |socket| {
                (socket.receiving, socket.under_way, socket.is_stopping) = (Receiving::Multishot, 1, true);
            },
            |socket| socket.under_way = 1,
        ];
        for (number, put) in all.iter().enumerate() {
            let key = socket(&mut sockets);
            put(sockets.at(key));
            sockets.fold(key);
            assert_eq!(sockets.open().count(), 1, "number {number}");
            *sockets.at(key) = Socket::default();
            sockets.remove(key);
        }
    }

    #[test]
    fn memory_of_folded_sockets_is_used_again_up_to_a_limit() {
        let mut sockets = Sockets::new();
        let keys: Vec<u32> = (0..SPARE_MOST + 8).map(|_| socket(&mut sockets)).collect();
        keys.iter().for_each(|key| assert!(sockets.at(*key).is_silent()));
        keys.iter().for_each(|key| sockets.fold(*key));
        assert_eq!(sockets.spare.len(), SPARE_MOST);
        sockets.at(keys[0]);
        assert_eq!(sockets.spare.len(), SPARE_MOST - 1);
    }
}
