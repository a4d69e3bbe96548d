//! A thin, safe face for the io_uring operations that the bare relay needs, and the only `unsafe` of this crate. It
//! owns the memory that the kernel reads and writes; what is relayed, and when, is the relay's business.
#![allow(unsafe_code, reason = "a ring's entries point to memory that the kernel uses later")]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;

use super::CHUNK_SIZE;

/// Submissions of one turn; more are handed over in several calls.
const SUBMISSIONS: u32 = 4096;
/// Completions of one turn: every connection may have received and sent.
const COMPLETIONS: u32 = 32768;
/// Buffers that the kernel may receive into, a power of two: 32 MiB with [`CHUNK_SIZE`].
const BUFFERS: u16 = 1024;
const BUFFER_GROUP: u16 = 0;
const PAGE_SIZE: usize = 4096;

/// Received bytes that wait to be sent on, in a buffer that is not the kernel's meanwhile. Not `Clone`: who holds it
/// gives it back with [`Ring::recycle`] once.
#[derive(Debug)]
pub(super) struct Chunk {
    buffer: u16,
    begin: usize,
    end: usize,
}

impl Chunk {
    /// Leaves out the first `bytes`, which have been sent. Whether some are left.
    pub(super) fn advance(&mut self, bytes: usize) -> bool {
        self.begin = (self.begin + bytes).min(self.end);
        self.begin < self.end
    }
}

/// What became of an operation.
#[derive(Debug)]
pub(super) struct Completion {
    /// The number that was given with the operation.
    pub(super) token: u64,
    /// A count, a descriptor, or an error.
    pub(super) result: io::Result<u32>,
    /// Whether the operation goes on and will complete again.
    pub(super) more: bool,
    /// What was received.
    pub(super) chunk: Option<Chunk>,
}

/// A ring with its receive buffers.
pub(super) struct Ring {
    ring: IoUring,
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    /// Where the next returned buffer goes; the kernel sees it when it is stored in the ring's tail.
    tail: u16,
    /// Buffers that the kernel has.
    available: u16,
}

impl Ring {
    /// Errors: the kernel refuses rings, or is older than 6.1.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let entries = pages(usize::from(BUFFERS) * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        let memory = pages(usize::from(BUFFERS) * CHUNK_SIZE);
        let submitter = ring.submitter();
        // SAFETY: the entries are page-aligned, zeroed, as many as said, and never freed.
        unsafe {
            submitter.register_buf_ring_with_flags(entries.as_ptr() as u64, BUFFERS, BUFFER_GROUP, 0)?;
        }
        let mut this = Self { ring, entries, memory, tail: 0, available: 0 };
        for buffer in 0..BUFFERS {
            this.provide(buffer);
        }
        Ok(this)
    }

    /// Hands over what was asked for, waits for at least one completion, and moves all that there are to `completions`.
    pub(super) fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The completion queue is full: taking from it is the cure.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let before = completions.len();
        completions.extend(self.ring.completion().map(|entry| completion(&entry)));
        let taken = completions[before..].iter().filter(|completion| completion.chunk.is_some()).count();
        self.available -= taken as u16;
        Ok(())
    }

    /// Accepts until the listener is closed; each completion is a connection, to be taken by [`Ring::accepted`].
    pub(super) fn accept(&mut self, listener: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.push(&opcode::AcceptMulti::new(descriptor(listener)).build().user_data(token))
    }

    /// Connects. The address lives for ever since the kernel may read it late.
    pub(super) fn connect(
        &mut self,
        socket: BorrowedFd<'_>,
        to: &'static SockAddr,
        token: u64,
    ) -> io::Result<()> {
        let entry = opcode::Connect::new(descriptor(socket), to.as_ptr().cast(), to.len());
        self.push(&entry.build().user_data(token))
    }

    /// Receives until the end; each completion but the last has a chunk.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.push(&opcode::RecvMulti::new(descriptor(socket), BUFFER_GROUP).build().user_data(token))
    }

    /// Sends a chunk, maybe a part of it. The chunk must be held until the completion, then advanced or recycled.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, chunk: &Chunk, token: u64) -> io::Result<()> {
        let begin = self.place(chunk.buffer).as_ptr().wrapping_add(chunk.begin);
        let length = (chunk.end - chunk.begin) as u32;
        let entry = opcode::Send::new(descriptor(socket), begin, length).flags(MSG_NOSIGNAL);
        self.push(&entry.build().user_data(token))
    }

    /// Ends the operation with that token; it completes with `ECANCELED`, the cancel under its own token.
    pub(super) fn cancel(&mut self, target: u64, token: u64) -> io::Result<()> {
        self.push(&opcode::AsyncCancel::new(target).build().user_data(token))
    }

    /// Lets the kernel receive into the chunk's buffer again.
    pub(super) fn recycle(&mut self, chunk: Chunk) {
        self.provide(chunk.buffer);
    }

    /// Whether something can be received.
    pub(super) fn has_buffers(&self) -> bool {
        self.available > 0
    }

    fn provide(&mut self, buffer: u16) {
        let slot = usize::from(self.tail & (BUFFERS - 1));
        let address = self.place(buffer).as_ptr() as u64;
        // SAFETY: the slot is inside the entries, and behind the tail, where the kernel does not look. The first
        // entry's last field is the tail itself, which the setters leave alone.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(slot);
            entry.set_addr(address);
            entry.set_len(CHUNK_SIZE as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        self.available += 1;
        // SAFETY: the pointer is to the tail of a ring that is never freed; the kernel reads it with acquire.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    fn place(&self, buffer: u16) -> NonNull<u8> {
        // SAFETY: a buffer's number is below BUFFERS, so this stays inside the memory.
        unsafe { self.memory.add(usize::from(buffer) * CHUNK_SIZE) }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: all that entries point to (buffers, the upstream's address) is never freed, and a number
        // that is no socket any more fails the operation and harms no memory.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }
}

/// The connection that an accept completed with.
pub(super) fn accepted(descriptor: u32) -> OwnedFd {
    // SAFETY: the kernel has made this descriptor for us, and the completion is read once.
    unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) }
}

/// A runtime's socket, which lends its number only.
pub(super) fn borrow(socket: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the socket is borrowed for as long, so it stays open.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// Never freed: an upstream's address has to outlive every connect.
pub(super) fn for_ever(address: SocketAddr) -> &'static SockAddr {
    Box::leak(Box::new(address.into()))
}

/// A peer that is gone is an error of the send, and no signal.
const MSG_NOSIGNAL: i32 = rustix::net::SendFlags::NOSIGNAL.bits() as i32;

fn descriptor(socket: BorrowedFd<'_>) -> Fd {
    Fd(socket.as_raw_fd())
}

fn completion(entry: &cqueue::Entry) -> Completion {
    let (result, flags) = (entry.result(), entry.flags());
    let chunk = cqueue::buffer_select(flags).map(|buffer| Chunk {
        buffer,
        begin: 0,
        end: usize::try_from(result).unwrap_or(0),
    });
    let result = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
    Completion { token: entry.user_data(), result, more: cqueue::more(flags), chunk }
}

/// Zeroed whole pages that are never freed: the kernel may still write to them when the ring is closed.
fn pages(bytes: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes.next_multiple_of(PAGE_SIZE), PAGE_SIZE)
        .unwrap_or_else(|_| unreachable!("a constant size"));
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}
