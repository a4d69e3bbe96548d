//! Operations of the simulated kernel: read from a raw submission entry, and done as Linux does them, with system calls
//! that do not wait, on whatever the descriptor is.

use std::io;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{cqueue, opcode};

use super::memory::{Buffers, ToRead, ToWrite};
use super::seed::Random;
use super::{Completions, Temper, fault};

/// `IORING_RECV_MULTISHOT`, in the entry's `ioprio`.
const MULTISHOT: u16 = 1 << 1;
/// `IOSQE_BUFFER_SELECT` and `IOSQE_CQE_SKIP_SUCCESS`, in the entry's flags.
const BUFFER_SELECT: u8 = 1 << 5;
const SKIP_SUCCESS: u8 = 1 << 6;
/// `IORING_ASYNC_CANCEL_ANY`, in the flags of a cancel.
const CANCEL_ANY: u32 = 1 << 2;
/// `IORING_CQE_F_BUFFER` and `IORING_CQE_F_MORE`, in a completion's flags.
const WITH_BUFFER: u32 = 1;
const MORE: u32 = 1 << 1;
/// Where a completion has the id of its buffer.
const ID_SHIFT: u32 = 16;
/// Receives of one multishot at one go (`MULTISHOT_MAX_RETRY`).
const AT_ONE_GO: usize = 32;

/// What a submission entry asks for.
#[derive(Debug)]
pub(super) enum Request {
    Operation(Operation),
    /// To cancel others.
    Cancel {
        user_data: u64,
        which: Which,
    },
}

/// Which operations are to be cancelled.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// The one with this user data.
    Named(u64),
    All,
}

/// An operation that the kernel has begun.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) user_data: u64,
    file: File,
    work: Work,
    pub(super) is_cancelled: bool,
}

#[derive(Debug)]
enum Work {
    /// Ends when it has brought `limit` bytes, if that is not 0.
    Multishot {
        limit: usize,
        brought: usize,
    },
    Receive(ToWrite),
    Send(ToRead),
    /// One that does not wait and tells of failures only.
    SilentSend(ToRead),
    Poll {
        events: i16,
    },
}

/// A descriptor, and what it stood for when the operation began.
#[derive(Debug)]
struct File {
    fd: RawFd,
    inode: u64,
}

/// Whether an operation is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Over,
    Waits,
}

/// What the operations of one kernel share.
pub(super) struct Means<'k> {
    pub(super) completions: &'k mut Completions,
    pub(super) buffers: &'k mut Buffers,
    pub(super) random: &'k mut Random,
    pub(super) temper: &'k Temper,
}

impl Request {
    /// Reads an entry, a `struct io_uring_sqe`.
    pub(super) fn read(entry: &Entry) -> Self {
        // SAFETY: an entry is a `struct io_uring_sqe`, which is plain numbers.
        let raw: [u8; 64] = unsafe { std::mem::transmute_copy(entry) };
        let byte = |at: usize| raw[at];
        let half = |at: usize| u16::from_ne_bytes([raw[at], raw[at + 1]]);
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|index| raw[at + index]));
        let long = |at: usize| u64::from_ne_bytes(std::array::from_fn(|index| raw[at + index]));
        let (code, flags, ioprio) = (byte(0), byte(1), half(2));
        let (address, len, of_operation, user_data) = (long(16), word(24) as usize, word(28), long(32));
        let work = match code {
            opcode::AsyncCancel2::CODE => {
                let which = if of_operation & CANCEL_ANY != 0 { Which::All } else { Which::Named(address) };
                return Self::Cancel { user_data, which };
            }
            opcode::PollAdd::CODE => Work::Poll { events: of_operation as i16 },
            opcode::Recv::CODE if ioprio & MULTISHOT != 0 => {
                assert!(flags & BUFFER_SELECT != 0, "a multishot receive needs provided buffers");
                Work::Multishot { limit: word(44) as usize, brought: 0 }
            }
            opcode::Recv::CODE => Work::Receive(ToWrite::new(address, len, "a receive")),
            opcode::Send::CODE if flags & SKIP_SUCCESS != 0 => {
                let expected = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;
                assert_eq!(of_operation as i32, expected, "a silent send does all at once or fails");
                Work::SilentSend(ToRead::new(address, len))
            }
            opcode::Send::CODE => Work::Send(ToRead::new(address, len)),
            code => panic!("the simulated kernel does not know operation {code}"),
        };
        let file = File::new(word(4) as RawFd);
        Self::Operation(Operation { user_data, file, work, is_cancelled: false })
    }
}

impl Operation {
    /// Whether the kernel does it while it takes the submission, or not at all.
    pub(super) fn is_done_at_once(&self) -> bool {
        matches!(self.work, Work::SilentSend(_))
    }

    /// Whether bytes of a stream are moved by it.
    pub(super) fn moves_bytes(&self) -> bool {
        !matches!(self.work, Work::Poll { .. })
    }

    /// Does what can be done now.
    pub(super) fn go_on(&mut self, means: &mut Means<'_>) -> Progress {
        if self.is_cancelled {
            return means.end(self.user_data, -libc::ECANCELED);
        }
        self.file.check();
        if self.moves_bytes() && means.random.below(1000) < means.temper.resets_per_mille {
            self.file.shut_down();
            return means.end(self.user_data, -libc::ECONNRESET);
        }
        let (user_data, fd) = (self.user_data, self.file.fd);
        match &mut self.work {
            Work::Poll { events } => match poll(fd, *events) {
                0 => Progress::Waits,
                ready => means.end(user_data, ready.into()),
            },
            Work::Receive(memory) => match receive(fd, means.some(memory.bytes())) {
                Err(libc::EAGAIN) => Progress::Waits,
                received => {
                    means.end(user_data, received.map_or_else(|number| -number, |count| count as i32))
                }
            },
            Work::Send(memory) => {
                let bytes = memory.bytes();
                let count = if means.random.percent(means.temper.short) {
                    means.random.length(bytes.len())
                } else {
                    bytes.len()
                };
                match send(fd, &bytes[..count]) {
                    Err(libc::EAGAIN) => Progress::Waits,
                    sent => means.end(user_data, sent.map_or_else(|number| -number, |count| count as i32)),
                }
            }
            Work::SilentSend(memory) => {
                let bytes = memory.bytes();
                if means.random.percent(means.temper.full) {
                    return means.end(user_data, -libc::EAGAIN);
                }
                let count = if means.random.percent(means.temper.short) {
                    means.random.length(bytes.len())
                } else {
                    bytes.len()
                };
                match send(fd, &bytes[..count]) {
                    Ok(count) if count == bytes.len() => Progress::Over,
                    Ok(count) => means.end(user_data, count as i32),
                    Err(number) => means.end(user_data, -number),
                }
            }
            Work::Multishot { limit, brought } => {
                let rounds = means.random.within(1..=AT_ONE_GO);
                for _ in 0..rounds {
                    if let Some(progress) = receive_one(user_data, fd, *limit, brought, means) {
                        return progress;
                    }
                }
                Progress::Waits
            }
        }
    }
}

/// One receive of a multishot (`io_recv` and `io_recv_finish`); none if the next may follow at once.
fn receive_one(
    user_data: u64,
    fd: RawFd,
    limit: usize,
    brought: &mut usize,
    means: &mut Means<'_>,
) -> Option<Progress> {
    let Some(room) = means.buffers.next() else {
        return Some(means.end(user_data, -libc::ENOBUFS));
    };
    let left = if limit == 0 { usize::MAX } else { limit - *brought };
    let most = room.len().min(left);
    match receive(fd, means.some(&mut room[..most])) {
        Err(libc::EAGAIN) => Some(Progress::Waits),
        Err(number) => Some(means.end(user_data, -number)),
        Ok(0) => Some(means.end(user_data, 0)),
        Ok(count) => {
            *brought += count;
            let flags = WITH_BUFFER | u32::from(means.buffers.take()) << ID_SHIFT;
            // Where a completion finds no place, the receive does not go on (`io_req_post_cqe` fails).
            let is_last = *brought == limit || means.completions.are_full();
            let flags = if is_last { flags } else { flags | MORE };
            means.completions.tell(user_data, count as i32, flags);
            is_last.then_some(Progress::Over)
        }
    }
}

impl Means<'_> {
    fn end(&mut self, user_data: u64, result: i32) -> Progress {
        self.completions.tell(user_data, result, 0);
        Progress::Over
    }

    /// All of the room, or the beginning of it.
    fn some<'b>(&mut self, room: &'b mut [u8]) -> &'b mut [u8] {
        let count =
            if self.random.percent(self.temper.short) { self.random.length(room.len()) } else { room.len() };
        &mut room[..count]
    }
}

impl File {
    fn new(fd: RawFd) -> Self {
        Self { fd, inode: inode(fd) }
    }

    /// The kernel holds the file itself, but the ring is to close nothing that an operation is under way on.
    fn check(&self) {
        if inode(self.fd) != self.inode {
            fault("a descriptor was closed while an operation was under way on it".to_owned());
        }
    }

    fn shut_down(&self) {
        super::RESETS.set(super::resets() + 1);
        crate::sys::socket::shutdown_raw(self.fd);
    }
}

/// Whether a completion is the last of its operation.
pub(super) fn is_last(flags: u32) -> bool {
    !cqueue::more(flags)
}

fn inode(fd: RawFd) -> u64 {
    // SAFETY: all of it is written by the call, or it stays plain zeroes.
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `about` is as large as it is said to be.
    unsafe { libc::fstat(fd, &raw mut about) };
    about.st_ino
}

fn poll(fd: RawFd, events: i16) -> i16 {
    let mut looked = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one entry, which lives during the call.
    unsafe { libc::poll(&raw mut looked, 1, 0) };
    looked.revents
}

/// Errors: their number.
fn receive(fd: RawFd, room: &mut [u8]) -> Result<usize, i32> {
    // SAFETY: the room is as long as is said.
    let count = unsafe { libc::recv(fd, room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| last_error())
}

/// Errors: their number.
fn send(fd: RawFd, bytes: &[u8]) -> Result<usize, i32> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are as many as is said.
    let count = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(count).map_err(|_| last_error())
}

fn last_error() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
