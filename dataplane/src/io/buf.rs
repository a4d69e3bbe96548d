//! Buffers: fixed sizes, taken from a pool of the worker's thread and given back when dropped.
//!
//! A buffer that is lent to the kernel moves into the driver, and comes back when the kernel is done with it; so it can be
//! neither touched nor freed while the kernel may write to it. Every buffer keeps room in front, where a rewritten head fits
//! without moving the body behind it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// Payload of a small buffer: a usual head with a prompt of 4 KiB, or one event of a stream. With the rooms around it 8 KiB,
/// which an allocator has a class for.
pub(crate) const SMALL_BYTES: usize = 8 * 1024 - HEADROOM_BYTES - TAILROOM_BYTES;
/// Payload of a large buffer: bulk bodies. What was received into one is still in the core's cache when it is sent, with
/// those of some other connections. Twice as much is not, and makes answers of 1 MiB a quarter to a third dearer; those of
/// 64 KiB, which it takes whole, were an eighth cheaper.
pub(crate) const LARGE_BYTES: usize = 32 * 1024;
/// Heads longer than this are refused whatever the limits say.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Room in front of the payload for what a rewritten head is longer than the one that came.
pub(crate) const HEADROOM_BYTES: usize = 1024;

/// Room behind the payload, never received into: the end of a chunk fits there.
const TAILROOM_BYTES: usize = 16;

/// Free buffers kept by one worker; more are given back to the allocator.
const SMALL_KEPT: usize = 4096;
const LARGE_KEPT: usize = 128;

/// What a small and a large buffer take, and one for the longest head, with their rooms.
pub(crate) const SMALL_SIZE: usize = HEADROOM_BYTES + SMALL_BYTES + TAILROOM_BYTES;
pub(crate) const LARGE_SIZE: usize = HEADROOM_BYTES + LARGE_BYTES + TAILROOM_BYTES;
pub(crate) const HEAD_SIZE: usize = HEADROOM_BYTES + HEAD_BYTES_MAX + TAILROOM_BYTES;
/// The most that one worker's free buffers take.
pub(crate) const KEPT_BYTES_MOST: usize = SMALL_KEPT * SMALL_SIZE + LARGE_KEPT * LARGE_SIZE;

thread_local! {
    static POOL: Pool = const { Pool::new() };
}

struct Pool {
    small: RefCell<Vec<Memory>>,
    large: RefCell<Vec<Memory>>,
    buffers_out: Cell<usize>,
    bytes_out: Cell<usize>,
    /// The most that were out at once.
    bytes_peak: Cell<usize>,
    /// With so many out, no more work is taken on.
    bytes_most: Cell<usize>,
}

impl Pool {
    const fn new() -> Self {
        Self {
            small: RefCell::new(Vec::new()),
            large: RefCell::new(Vec::new()),
            buffers_out: Cell::new(0),
            bytes_out: Cell::new(0),
            bytes_peak: Cell::new(0),
            bytes_most: Cell::new(usize::MAX),
        }
    }

    fn count_out(&self, size: usize) {
        self.buffers_out.set(self.buffers_out.get() + 1);
        let bytes = self.bytes_out.get() + size;
        self.bytes_out.set(bytes);
        if bytes > self.bytes_peak.get() {
            self.bytes_peak.set(bytes);
        }
    }

    fn take(&self, free: &RefCell<Vec<Memory>>, bytes: usize) -> Buf {
        let memory = Self::take_memory(free, bytes);
        self.count_out(memory.size);
        Buf::empty(memory)
    }

    fn take_memory(free: &RefCell<Vec<Memory>>, bytes: usize) -> Memory {
        let size = HEADROOM_BYTES + bytes + TAILROOM_BYTES;
        free.borrow_mut().pop().unwrap_or_else(|| Memory::of(size))
    }

    #[cfg_attr(not(test), expect(unused_mut, reason = "tests spoil what comes back"))]
    fn give_back(&self, mut memory: Memory) {
        #[cfg(test)]
        super::simulated::come_back(memory.bytes_mut());
        self.buffers_out.set(self.buffers_out.get() - 1);
        self.bytes_out.set(self.bytes_out.get() - memory.size);
        let (free, kept) = match memory.size - HEADROOM_BYTES - TAILROOM_BYTES {
            SMALL_BYTES => (&self.small, SMALL_KEPT),
            LARGE_BYTES => (&self.large, LARGE_KEPT),
            _ => return,
        };
        let mut free = free.borrow_mut();
        if free.len() < kept {
            free.push(memory);
        }
    }
}

/// Buffers that are in use on this thread.
pub(crate) fn buffers_out() -> usize {
    POOL.with(|pool| pool.buffers_out.get())
}

/// Bytes of buffers that are in use on this thread.
pub(crate) fn bytes_out() -> usize {
    POOL.with(|pool| pool.bytes_out.get())
}

/// The most bytes of buffers that were in use on this thread at once.
pub(crate) fn bytes_peak() -> usize {
    POOL.with(|pool| pool.bytes_peak.get())
}

/// From now on this thread [is short](is_short) of memory with so many bytes of buffers in use.
pub(crate) fn set_bytes_most(bytes: usize) {
    POOL.with(|pool| pool.bytes_most.set(bytes));
}

/// Whether so many buffers are in use that nothing new should be begun, and what goes on has to do with small ones.
pub(crate) fn is_short() -> bool {
    POOL.with(|pool| pool.bytes_out.get() >= pool.bytes_most.get())
}

/// The memory of a small buffer, for the kernel to fill: it becomes a buffer, and counts as one, when it is
/// [`Buf::received`].
pub(super) fn lend_small() -> Memory {
    POOL.with(|pool| Pool::take_memory(&pool.small, SMALL_BYTES))
}

/// The memory of a buffer, with its rooms. Outside of this file it has an address and nothing else, so that whoever gives
/// the address to the kernel cannot read or write behind the kernel's back.
///
/// It is no `Box`: a box that is moved asserts that nobody else uses what it points to, and the compiler may rely on that,
/// while the kernel is writing there.
#[derive(Debug)]
pub(super) struct Memory {
    at: NonNull<u8>,
    size: usize,
}

impl Memory {
    fn of(size: usize) -> Self {
        debug_assert!(size > HEADROOM_BYTES);
        let layout = Self::layout(size);
        // SAFETY: the size is not 0: every buffer has room in front.
        let at = unsafe { alloc_zeroed(layout) };
        let Some(at) = NonNull::new(at) else { handle_alloc_error(layout) };
        Self { at, size }
    }

    fn layout(size: usize) -> Layout {
        Layout::array::<u8>(size).expect("a buffer is far smaller than the address space")
    }

    /// Where the kernel may write, behind the headroom.
    pub(super) fn payload(&mut self) -> *mut u8 {
        self.at(HEADROOM_BYTES)
    }

    /// The address of its byte `offset`, which may be the one behind the last.
    fn at(&mut self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.size);
        // SAFETY: within the allocation, or just behind it.
        unsafe { self.at.add(offset) }.as_ptr()
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes were allocated there, and written with zeros. Nobody else writes to them meanwhile: memory
        // that the kernel may write to is kept as `Memory` or as `Lent`, which give no bytes to anybody.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.size) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and it is borrowed for as long as these bytes are.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.size) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has the address any more.
        unsafe { dealloc(self.at.as_ptr(), Self::layout(self.size)) };
    }
}

/// A pooled buffer: `memory[start..end]` is its content, what is behind `end` can be received into.
#[derive(Debug)]
pub(crate) struct Buf {
    /// Given back to the pool by the drop.
    memory: ManuallyDrop<Memory>,
    start: u32,
    end: u32,
}

/// A buffer that the kernel receives into. Until it comes back there is nothing to be done with it but to keep it.
#[derive(Debug)]
pub(super) struct Lent(Buf);

impl Lent {
    /// The buffer again, with `count` bytes more: the kernel has received them, and is done.
    pub(super) fn back(self, count: usize) -> Buf {
        let Self(mut buf) = self;
        buf.advance(count);
        buf
    }
}

impl Buf {
    fn empty(memory: Memory) -> Self {
        let start = HEADROOM_BYTES as u32;
        Self { memory: ManuallyDrop::new(memory), start, end: start }
    }

    /// An empty buffer of [`SMALL_BYTES`].
    pub(crate) fn small() -> Self {
        POOL.with(|pool| pool.take(&pool.small, SMALL_BYTES))
    }

    /// An empty buffer of [`LARGE_BYTES`].
    pub(crate) fn large() -> Self {
        POOL.with(|pool| pool.take(&pool.large, LARGE_BYTES))
    }

    /// An empty buffer for `bytes` of content, outside of the pool: for what no pooled size fits.
    pub(crate) fn of(bytes: usize) -> Self {
        let size = HEADROOM_BYTES + bytes + TAILROOM_BYTES;
        POOL.with(|pool| pool.count_out(size));
        Self::empty(Memory::of(size))
    }

    /// The buffer of `memory`, into which `count` bytes were received behind its headroom.
    pub(super) fn received(memory: Memory, count: usize) -> Self {
        POOL.with(|pool| pool.count_out(memory.size));
        let mut buf = Self::empty(memory);
        buf.advance(count);
        buf
    }

    /// The content.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.start as usize..self.end as usize]
    }

    /// The content, to be edited in place.
    pub(crate) fn content_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[self.start as usize..self.end as usize]
    }

    /// Length of the content.
    pub(crate) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// `count` bytes that were cut off the content, which began at its byte `at`.
    pub(crate) fn behind(&self, at: usize, count: usize) -> &[u8] {
        &self.memory.bytes()[self.start as usize + at..][..count]
    }

    /// Whether there is no content.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes that can still be received behind the content.
    pub(crate) fn spare(&self) -> usize {
        (self.memory.size - TAILROOM_BYTES).saturating_sub(self.end as usize)
    }

    /// Drops the first `count` bytes of the content.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count as u32).min(self.end);
    }

    /// Keeps the first `count` bytes of the content.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.end = self.end.min(self.start + count as u32);
    }

    /// Puts `head` in front of the content; false, and nothing done, when it does not fit there.
    pub(crate) fn prepend(&mut self, head: &[u8]) -> bool {
        let Some(start) = (self.start as usize).checked_sub(head.len()) else { return false };
        self.memory.bytes_mut()[start..self.start as usize].copy_from_slice(head);
        self.start = start as u32;
        true
    }

    /// Puts `tail` behind the content, in the room kept there if need be; false, and nothing done, when it does not fit there.
    pub(crate) fn append(&mut self, tail: &[u8]) -> bool {
        let end = self.end as usize;
        if self.memory.size - end < tail.len() {
            return false;
        }
        self.memory.bytes_mut()[end..end + tail.len()].copy_from_slice(tail);
        self.end += tail.len() as u32;
        true
    }

    /// Lends it to the kernel: where that can receive bytes behind the content, and how many.
    pub(super) fn lend(mut self) -> (Lent, *mut u8, usize) {
        let (at, bytes) = (self.memory.at(self.end as usize), self.spare());
        (Lent(self), at, bytes)
    }

    /// Everything behind the content, to be written to; [`Buf::advance`] then says how much was.
    pub(crate) fn tail_mut(&mut self) -> &mut [u8] {
        let end = self.end as usize;
        &mut self.memory.bytes_mut()[end..]
    }

    /// Adds `count` bytes, written through [`Buf::tail_mut`], to the content.
    pub(crate) fn advance(&mut self, count: usize) {
        self.end = (self.end as usize + count).min(self.memory.size) as u32;
    }

    /// Where the content begins: with [`Buf::rewind`] what was consumed by a send can be sent again.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.start)
    }

    /// Makes the content begin where it did at `mark`.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.start = mark.0.min(self.end);
    }

    /// Whether a small buffer would have been filled by this content: then more is likely to follow at once.
    pub(crate) fn fills_small(&self) -> bool {
        self.spare() == 0 || self.len() > SMALL_BYTES
    }

    /// The same content with room behind it: in a longer buffer, unless it is as long as a head may be.
    pub(crate) fn with_room(self) -> Self {
        if self.spare() > 0 || self.len() >= HEAD_BYTES_MAX {
            return self;
        }
        let mut longer = if self.len() < LARGE_BYTES { Self::large() } else { Self::of(HEAD_BYTES_MAX) };
        longer.append(self.bytes());
        longer
    }
}

/// A position in a [`Buf`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(u32);

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: nobody uses the buffer after its drop.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        // At the end of a thread the pool may be gone before the last buffer: then the allocator takes it.
        let _ = POOL.try_with(|pool| pool.give_back(memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_every_byte_back_when_dropped() {
        let before = bytes_out();
        let buffers = [Buf::small(), Buf::large(), Buf::small()];
        let room = HEADROOM_BYTES + TAILROOM_BYTES;
        assert_eq!(bytes_out() - before, 3 * room + 2 * SMALL_BYTES + LARGE_BYTES);
        drop(buffers);
        assert_eq!(bytes_out(), before);
    }

    #[test]
    fn makes_room_up_to_the_longest_head() {
        let mut buf = Buf::small();
        let mut lengths = Vec::new();
        while buf.len() < HEAD_BYTES_MAX {
            buf = buf.with_room();
            lengths.push(buf.len() + buf.spare());
            let piece = vec![b'h'; buf.spare()];
            assert!(buf.append(&piece));
        }
        assert_eq!(lengths, [SMALL_BYTES, LARGE_BYTES, HEAD_BYTES_MAX]);
        assert_eq!(buf.with_room().bytes(), vec![b'h'; HEAD_BYTES_MAX], "and no further");
    }

    #[test]
    fn is_short_of_memory_from_the_limit_on_and_remembers_the_peak() {
        set_bytes_most(2 * SMALL_SIZE);
        let first = Buf::small();
        assert!(!is_short());
        let second = Buf::small();
        assert!(is_short());
        drop((first, second));
        assert!(!is_short());
        assert_eq!((bytes_out(), bytes_peak()), (0, 2 * SMALL_SIZE));
    }

    #[test]
    fn puts_a_longer_head_in_front_of_the_body_without_moving_it() {
        let mut buf = Buf::small();
        assert!(buf.append(b"HEAD\r\n\r\nbody"));
        buf.consume(8);
        let body = buf.bytes().as_ptr();
        assert!(buf.prepend(&[b'x'; HEADROOM_BYTES]));
        assert_eq!(buf.bytes()[HEADROOM_BYTES..].as_ptr(), body);
        assert!(buf.bytes().ends_with(b"xbody"));
        assert!(!buf.prepend(&[b'y'; 9]), "only 8 bytes of the old head are left in front");
    }

    #[test]
    fn sends_again_from_a_mark() {
        let mut buf = Buf::small();
        buf.append(b"request");
        let mark = buf.mark();
        buf.consume(7);
        assert!(buf.is_empty());
        buf.rewind(mark);
        assert_eq!(buf.bytes(), b"request");
    }

    #[test]
    fn what_the_kernel_writes_is_there_when_a_buffer_comes_back_wherever_it_was_kept_meanwhile() {
        let mut buf = Buf::small();
        buf.append(b"partial ");
        let (lent, at, room) = buf.lend();
        assert_eq!(room, SMALL_BYTES - 8);
        let mut places = vec![Some(lent)];
        places.reserve(100);
        // SAFETY: what the kernel does with the address that it was given.
        unsafe { std::ptr::copy_nonoverlapping(b"head".as_ptr(), at, 4) };
        let lent = places[0].take().unwrap();
        assert_eq!(lent.back(4).bytes(), b"partial head");

        let mut memory = lend_small();
        let at = memory.payload();
        let mut places = vec![Some(memory)];
        places.reserve(100);
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(b"picked".as_ptr(), at, 6) };
        assert_eq!(Buf::received(places[0].take().unwrap(), 6).bytes(), b"picked");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut buf = Buf::small();
        assert!(!buf.append(&[0; SMALL_BYTES + TAILROOM_BYTES + 1]));
        assert!(buf.append(&[1; SMALL_BYTES]));
        assert_eq!(buf.spare(), 0, "the room behind the payload is not received into");
        let mut large = buf.with_room();
        assert!(large.append(b"\r\n"));
        large.truncate(SMALL_BYTES);
        assert_eq!((large.len(), large.spare()), (SMALL_BYTES, LARGE_BYTES - SMALL_BYTES));
    }
}
