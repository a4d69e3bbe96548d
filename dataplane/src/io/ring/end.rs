//! The end of a ring: no memory that its kernel may still read or write is used for anything else.
//!
//! What is under way is cancelled and waited for, which takes a turn or two. What has not ended within a bound is left to
//! the kernel: its buffers are leaked on purpose, and those that the kernel picks from are leaked with it.

use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use io_uring::opcode;
use io_uring::squeue::Flags;
use io_uring::types::CancelBuilder;

use super::super::driver::Driver;
use super::kernel::Kernel;
use super::socket::{Receiving, Sending};
use super::{NOBODY, Ring};

/// How long the kernel may take to end what was cancelled. It does so at once, unless it is just about to do what is to
/// be cancelled; a worker that ends is waited for longer than this.
const END_WITHIN: Duration = Duration::from_millis(500);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

impl<K: Kernel> Ring<K> {
    /// Ends all operations; false if some have not ended in time.
    fn end(&mut self) -> bool {
        let began = Instant::now();
        while self.sockets.under_way() > 0 {
            // Nothing is armed anew; and what was about to begin at the last cancel has begun by this one.
            self.starved.clear();
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            self.push(cancel.user_data(NOBODY).flags(Flags::SKIP_SUCCESS));
            if self.turn(false).is_err() || began.elapsed() > END_WITHIN {
                return false;
            }
            if self.sockets.under_way() > 0 {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        true
    }
}

impl<K: Kernel> Drop for Ring<K> {
    fn drop(&mut self) {
        if self.end() {
            // SAFETY: it is not used again, and the kernel has nothing left to do that would fill a buffer.
            unsafe { ManuallyDrop::drop(&mut self.provided) };
            return;
        }
        tracing::warn!("the kernel does not end operations of a closed ring: their buffers are given up");
        for socket in self.sockets.open() {
            std::mem::forget(std::mem::replace(&mut socket.receiving, Receiving::Off));
            std::mem::forget(std::mem::replace(&mut socket.sending, Sending::Off));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::ops::Range;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::super::super::buf::{Buf, LARGE_SIZE, SMALL_SIZE, buffers_out};
    use super::super::super::driver::{Told, Want};
    use super::super::provided::PLACES;
    use super::*;

    /// A socket of the ring, and its peer.
    fn socket(ring: &mut Ring) -> (u32, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        (ring.adopt(OwnedFd::from(ours)).unwrap(), peer)
    }

    fn full_buf() -> Buf {
        let mut buf = Buf::large();
        buf.append(&vec![7; buf.spare()]);
        buf
    }

    /// A ring with receives and sends of all kinds under way, and the peers of their sockets.
    fn busy_ring() -> (Ring, Vec<UnixStream>) {
        let mut ring = Ring::new().unwrap();
        let sockets: Vec<(u32, UnixStream)> = (0..5).map(|_| socket(&mut ring)).collect();
        let key = |place: usize| sockets[place].0;
        ring.arm(key(0), Want::Any);
        ring.arm(key(1), Want::Any);
        ring.sockets.fold(key(1));
        ring.arm(key(2), Want::Bulk);
        for place in [3, 4] {
            // Until the peer's room is full: the last one stays under way.
            while !matches!(ring.sockets.at(key(place)).sending, Sending::Submitted(_)) {
                ring.sockets.at(key(place)).sending = Sending::Off;
                ring.send(key(place), full_buf(), if place == 3 { Told::AtOnce } else { Told::WithNext });
                ring.turn(false).unwrap();
                ring.turn(false).unwrap();
            }
        }
        assert_eq!(ring.sockets.under_way(), 5);
        (ring, sockets.into_iter().map(|(_, peer)| peer).collect())
    }

    #[test]
    fn a_dropped_ring_has_ended_what_was_under_way() {
        let before = buffers_out();
        let (ring, peers) = busy_ring();
        drop(ring);
        assert_eq!(buffers_out(), before, "every buffer has come back");
        for (place, mut peer) in peers.into_iter().enumerate() {
            // An operation that was under way would hold the socket open.
            assert_eq!(peer.write(b"late").unwrap_err().kind(), ErrorKind::BrokenPipe, "socket {place}");
            let mut sent = Vec::new();
            peer.read_to_end(&mut sent).unwrap();
            assert!(sent.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn what_the_kernel_does_not_end_is_never_handed_out_again() {
        let (mut ring, mut peers) = busy_ring();
        let mut given_up: Vec<Range<usize>> = ring.provided.lent_ranges().collect();
        // As if one receive and one send went on forever.
        let (lent, at, _) = Buf::large().lend();
        let (key, peer) = socket(&mut ring);
        let socket = ring.sockets.at(key);
        (socket.receiving, socket.under_way) = (Receiving::Once(lent), 1);
        given_up.push(at as usize..at as usize + 1);
        peers.push(peer);
        drop(ring);
        for peer in &mut peers {
            let _ = peer.write(b"late");
        }
        // More of each size than the ring had, so that whatever it freed would be among them.
        let small: Vec<Buf> = (0..2 * PLACES).map(|_| Buf::small()).collect();
        let large: Vec<Buf> = (0..PLACES / 4).map(|_| Buf::large()).collect();
        let addresses = |bufs: &[Buf], size: usize| -> Vec<Range<usize>> {
            let starts = bufs.iter().map(|buf| buf.bytes().as_ptr() as usize);
            starts.map(|start| start..start + size).collect()
        };
        for taken in [addresses(&small, SMALL_SIZE), addresses(&large, LARGE_SIZE)].concat() {
            let overlaps = |one: &&Range<usize>| one.start < taken.end && taken.start < one.end;
            assert_eq!(given_up.iter().find(overlaps), None, "handed out again");
        }
    }
}
