//! Sends on the ring: those whose end is told at once, and those that tell of a failure only.
//!
//! Of the latter the kernel posts no completion when all of it was sent. It tries each of them while it takes the
//! submissions, and they are not to wait for room: so once everything is submitted, and all completions are at hand, those
//! that are not among them have ended well. One that found no room is sent again as one that waits. `silence.rs` tries
//! whether the kernel does so, and where it does not all sends are of the first kind.

use io_uring::opcode;
use io_uring::squeue::Flags;

use super::super::buf::Buf;
use super::super::driver::Told;
use super::kernel::Kernel;
use super::socket::{Sending, Socket};
use super::{Ring, SEND, silence};

impl<K: Kernel> Ring<K> {
    /// Begins to send.
    pub(super) fn send(&mut self, key: u32, buf: Buf, told: Told) {
        let mut flags = libc::MSG_NOSIGNAL;
        let mut entry_flags = Flags::empty();
        let socket = self.sockets.at(key);
        let is_silent = told == Told::WithNext && self.offers.is_silence_success;
        if is_silent {
            flags |= silence::MESSAGE_FLAGS;
            entry_flags = silence::ENTRY_FLAGS;
            self.silent.push(key);
        }
        let (at, bytes) = (buf.bytes().as_ptr(), buf.len() as u32);
        socket.sending = if is_silent { Sending::Silent(buf) } else { Sending::Submitted(buf) };
        let send = opcode::Send::new(self.fd(key), at, bytes).flags(flags).build();
        self.submit(key, SEND, send.flags(entry_flags));
    }

    /// A send has completed.
    pub(super) fn sent(&mut self, key: u32, result: i32) {
        let socket = self.sockets.at(key);
        socket.sending = match std::mem::replace(&mut socket.sending, Sending::Off) {
            Sending::Silent(buf) | Sending::Submitted(buf) if result == -libc::EAGAIN => {
                // It was not to wait, for it could not have told of its end: now it waits, and tells.
                let (at, bytes) = (buf.bytes().as_ptr(), buf.len() as u32);
                socket.sending = Sending::Submitted(buf);
                let send = opcode::Send::new(self.fd(key), at, bytes);
                self.submit(key, SEND, send.flags(libc::MSG_NOSIGNAL).build());
                return;
            }
            Sending::Silent(buf) | Sending::Submitted(buf) => Sending::Done(result, buf),
            Sending::Forgotten { .. } | Sending::SilentForgotten { .. } => Sending::Off,
            other @ (Sending::Off | Sending::Done(..)) => other,
        };
        socket.writer.wake();
    }

    /// Ends the sends that had nothing to tell. Called when the kernel has taken every submission and told all it had to
    /// tell, and all of that was looked at: those that are silent still have sent all they had.
    ///
    /// The list may name a socket twice, or one that is gone, or one that has got the number of another. That does no
    /// harm: whatever is silent now was submitted before this turn's call into the kernel.
    pub(super) fn end_silent(&mut self) {
        for index in 0..self.silent.len() {
            let key = self.silent[index];
            if self.sockets.find(key).is_some_and(Socket::end_silent_send) {
                self.remove_if_over(key);
            }
        }
        self.silent.clear();
    }

    /// Whether the kernel has taken all that was prepared, and has told all that it had to tell.
    pub(super) fn knows_all(&mut self) -> bool {
        self.kernel.has_told_all() && self.unsubmitted.is_empty()
    }
}

impl Socket {
    /// Ends a send that had nothing to tell, if one is under way.
    fn end_silent_send(&mut self) -> bool {
        self.sending = match std::mem::replace(&mut self.sending, Sending::Off) {
            Sending::Silent(buf) => Sending::Done(buf.len() as i32, buf),
            Sending::SilentForgotten { .. } => Sending::Off,
            other
            @ (Sending::Off | Sending::Submitted(_) | Sending::Forgotten { .. } | Sending::Done(..)) => {
                self.sending = other;
                return false;
            }
        };
        self.under_way -= 1;
        self.writer.wake();
        true
    }
}
