//! Whether silence means success: that the kernel tells nothing of a send that took all, and tells at once of every other.
//! `send.rs` relies on it; it is tried when the ring is set up, and where it is not so every send is told of.
//!
//! No kernel documents it: that a send is tried while the submissions are taken follows from how the kernel is built.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use socket2::SockRef;

use super::{GETEVENTS, NOBODY};

/// How such a send is made: all of it or a failure, and nothing in between that would have to be told later.
pub(super) const MESSAGE_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL;
/// And no completion for success.
pub(super) const ENTRY_FLAGS: Flags = Flags::SKIP_SUCCESS;

/// More than the socket takes that is tried. Nothing frees it: a send that a kernel keeps may read it at any time.
static CONTENT: [u8; 64 * 1024] = [0; 64 * 1024];

/// Whether it is so on this kernel. To be asked of a ring on which nothing else is under way. Errors: there is no socket
/// to try it on.
pub(super) fn means_success(ring: &mut IoUring) -> io::Result<bool> {
    holds(ring, |fd, content| {
        let send = opcode::Send::new(fd, content.as_ptr(), content.len() as u32);
        send.flags(libc::MSG_NOSIGNAL | MESSAGE_FLAGS).build().flags(ENTRY_FLAGS)
    })
}

fn holds(ring: &mut IoUring, send: impl Fn(Fd, &'static [u8]) -> Entry) -> io::Result<bool> {
    let (ours, peer) = UnixStream::pair()?;
    peer.set_nonblocking(true)?;
    // As little as the kernel allows, which is less than the content.
    SockRef::from(&ours).set_send_buffer_size(1)?;
    let fd = Fd(ours.as_raw_fd());
    let whole = tell(ring, send(fd, &CONTENT[..1]))?;
    if whole.is_some() || read_all(&peer)? != 1 {
        return Ok(false);
    }
    let Some(part) = tell(ring, send(fd, &CONTENT))? else { return Ok(false) };
    let full = tell(ring, send(fd, &CONTENT))?;
    let taken = read_all(&peer)?;
    let is_part = (1..CONTENT.len()).contains(&taken) && usize::try_from(part) == Ok(taken);
    Ok(is_part && full == Some(-libc::EAGAIN))
}

/// What the kernel tells of an entry by the time it has taken it.
fn tell(ring: &mut IoUring, entry: Entry) -> io::Result<Option<i32>> {
    // SAFETY: what the entry points to is static.
    if unsafe { ring.submission().push(&entry.user_data(NOBODY)) }.is_err() {
        return Ok(None);
    }
    // SAFETY: no argument is passed, and one entry was put into the queue.
    unsafe { ring.submitter().enter::<()>(1, 0, GETEVENTS, None)? };
    Ok(ring.completion().next().map(|completion| completion.result()))
}

/// Takes what is there, and says how much it was.
fn read_all(mut socket: &UnixStream) -> io::Result<usize> {
    let (mut taken, mut room) = (0, [0; 4096]);
    loop {
        match socket.read(&mut room) {
            Ok(0) => return Ok(taken),
            Ok(count) => taken += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> IoUring {
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8).unwrap()
    }

    #[test]
    fn a_kernel_that_tells_of_failures_alone_and_at_once_is_known() {
        assert!(means_success(&mut ring()).unwrap());
    }

    /// What a kernel would look like that knows one of the flags not, or not as it is used here.
    #[test]
    fn a_kernel_that_does_otherwise_is_found_out() {
        let kernels = [
            (MESSAGE_FLAGS, Flags::empty(), "tells of success"),
            (libc::MSG_WAITALL, ENTRY_FLAGS, "waits for room"),
            (libc::MSG_DONTWAIT, ENTRY_FLAGS, "takes a part for the whole"),
        ];
        for (message_flags, entry_flags, does) in kernels {
            let holds = holds(&mut ring(), |fd, content| {
                let send = opcode::Send::new(fd, content.as_ptr(), content.len() as u32);
                send.flags(libc::MSG_NOSIGNAL | message_flags).build().flags(entry_flags)
            });
            assert!(!holds.unwrap(), "one that {does}");
        }
    }
}
