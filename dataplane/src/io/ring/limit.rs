//! A limit for what one multishot receive brings: then a peer that has much to say cannot fill a socket's inbox before its
//! receive is ended. Linux 6.17 knows it (`optlen` of a submission, in `io_recvmsg_prep`); older kernels refuse it.
//!
//! The `io-uring` crate does not offer the field yet, so it is set where the kernel's own header has it.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode};

use super::provided::{self, Provided};

/// Where a submission has its `optlen`, in 32-bit words (`struct io_uring_sqe` in `linux/io_uring.h`).
const OPTLEN_WORD: usize = 11;
const WORDS: usize = 16;

/// A multishot receive that ends when it has brought so many bytes; 0 for no limit.
pub(super) fn limited(receive: Entry, bytes_most: u32) -> Entry {
    const { assert!(size_of::<Entry>() == WORDS * 4) };
    // SAFETY: an entry is a `struct io_uring_sqe`, which is plain numbers, and as many bytes as these words are.
    let mut words: [u32; WORDS] = unsafe { std::mem::transmute(receive) };
    words[OPTLEN_WORD] = bytes_most;
    // SAFETY: as above.
    unsafe { std::mem::transmute(words) }
}

/// Whether the kernel knows the limit: one byte is received, and that was the last. Errors: there is no socket to try it
/// on.
pub(super) fn is_known(ring: &mut IoUring, provided: &mut Provided) -> io::Result<bool> {
    let (ours, mut peer) = UnixStream::pair()?;
    peer.write_all(b"x")?;
    let receive = opcode::RecvMulti::new(Fd(ours.as_raw_fd()), provided::GROUP).build();
    // SAFETY: the entry points to nothing, and the socket is open until the receive is over.
    if unsafe { ring.submission().push(&limited(receive, 1)) }.is_err() {
        return Ok(false);
    }
    // With the peer gone, the receive ends in any case.
    drop(peer);
    let mut is_known = false;
    for is_first in [true, false] {
        ring.submit_and_wait(1)?;
        let Some(entry) = ring.completion().next() else { return Ok(false) };
        let received = entry.result();
        if let Some(id) = cqueue::buffer_select(entry.flags()) {
            provided.take(id, received.max(0) as usize);
        }
        if !cqueue::more(entry.flags()) {
            is_known = is_first && received == 1;
            break;
        }
    }
    provided.publish();
    Ok(is_known)
}
