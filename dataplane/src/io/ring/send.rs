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
use super::socket::Sending;
use super::{Ring, SEND, parts, silence};

impl Ring {
    /// Begins to send.
    pub(super) fn send(&mut self, key: u32, buf: Buf, told: Told) {
        let mut flags = libc::MSG_NOSIGNAL;
        let mut entry_flags = Flags::empty();
        let socket = self.sockets.at(key);
        if told == Told::WithNext && self.is_silence_success {
            flags |= silence::MESSAGE_FLAGS;
            entry_flags = silence::ENTRY_FLAGS;
            socket.is_unhurried = true;
            self.unhurried.push(key);
        }
        let (at, bytes) = (buf.bytes().as_ptr(), buf.len() as u32);
        socket.sending = Sending::Submitted(buf);
        let send = opcode::Send::new(self.fd(key), at, bytes).flags(flags).build();
        self.submit(key, SEND, send.flags(entry_flags));
    }

    /// A send has completed.
    pub(super) fn sent(&mut self, key: u32, result: i32) {
        let socket = self.sockets.at(key);
        if result == -libc::EAGAIN
            && let Sending::Submitted(buf) = &socket.sending
        {
            // It was not to wait, for it could not have told of its end: now it waits.
            let (at, bytes) = (buf.bytes().as_ptr(), buf.len() as u32);
            let send = opcode::Send::new(self.fd(key), at, bytes);
            self.submit(key, SEND, send.flags(libc::MSG_NOSIGNAL).build());
            return;
        }
        socket.sent(result);
    }

    /// Ends the sends that had nothing to tell. Called with everything submitted and all completions at hand: those that
    /// are not among them have sent all they had.
    pub(super) fn end_unhurried(&mut self) {
        for (user_data, ..) in &self.completed {
            let (key, operation) = parts(*user_data);
            if operation == SEND
                && let Some(socket) = self.sockets.find(key)
            {
                socket.is_unhurried = false;
            }
        }
        for index in 0..self.unhurried.len() {
            let key = self.unhurried[index];
            let Some(socket) = self.sockets.find(key) else { continue };
            if std::mem::take(&mut socket.is_unhurried) {
                socket.under_way -= 1;
                let bytes = match &socket.sending {
                    Sending::Submitted(buf) => buf.len() as i32,
                    Sending::Off | Sending::Forgotten { .. } | Sending::Done(..) => 0,
                };
                socket.sent(bytes);
                self.remove_if_over(key);
            }
        }
        self.unhurried.clear();
    }

    /// Whether the kernel has taken all that was prepared, and has told all that it had to tell.
    pub(super) fn knows_all(&mut self) -> bool {
        let submissions = self.ring.submission();
        submissions.is_empty() && !submissions.cq_overflow() && self.unsubmitted.is_empty()
    }
}
