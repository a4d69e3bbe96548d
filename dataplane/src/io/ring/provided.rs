//! Buffers that the kernel picks from: a receive takes one only when bytes are there, so that a connection that waits
//! holds none.
//!
//! What the kernel has filled goes up as it is, and another buffer takes its place here.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::super::buf::{Buf, Memory, SMALL_BYTES, lend_small};
use super::kernel::Kernel;

/// The group that receives name.
pub(super) const GROUP: u16 = 0;
/// Places in the ring, a power of two: all that one turn of the busiest worker can need.
pub(super) const PLACES: u16 = 4096;
/// Buffers lent at first. More are lent when these turn out to be too few: a smaller set stays in the processor's cache.
pub(super) const LENT_AT_FIRST: u16 = 256;

/// The ring of provided buffers (io_uring_register_buf_ring(3)). It may be dropped when the kernel has ended every
/// operation that could fill one of them, and not before: whoever owns it sees to that.
#[derive(Debug)]
pub(super) struct Provided {
    places: NonNull<BufRingEntry>,
    tail: u16,
    /// What the kernel has, by buffer id.
    lent: Vec<Option<Memory>>,
}

impl Provided {
    /// Registers the group. Errors: what the kernel said.
    pub(super) fn register<K: Kernel>(kernel: &mut K) -> io::Result<ManuallyDrop<Self>> {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout()) };
        let Some(places) = NonNull::new(memory.cast::<BufRingEntry>()) else { handle_alloc_error(layout()) };
        let mut provided = Self { places, tail: 0, lent: Vec::new() };
        // SAFETY: the memory is as long as is said and page-aligned, and is not freed before the kernel is done with it.
        unsafe { kernel.register_buffers(places.as_ptr() as u64, PLACES, GROUP)? };
        provided.lend(K::LENT_AT_FIRST);
        provided.publish();
        Ok(ManuallyDrop::new(provided))
    }

    /// Takes the buffer `id`, which the kernel has filled with `count` bytes, and lends another in its place.
    pub(super) fn take(&mut self, id: u16, count: usize) -> Option<Buf> {
        let filled = self.lent.get_mut(usize::from(id))?.take()?;
        self.place(id);
        Some(Buf::received(filled, count))
    }

    /// The kernel found no buffer: lends twice as many from now on.
    pub(super) fn grow(&mut self) {
        let count = self.lent.len() as u16;
        self.lend(count.min(PLACES - count));
        self.publish();
    }

    /// Lets the kernel see what was lent since the last call.
    pub(super) fn publish(&mut self) {
        // SAFETY: the base of the ring is a valid entry, in whose reserved field the tail is kept; the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.places.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// The addresses that the kernel may fill.
    #[cfg(test)]
    pub(super) fn lent_ranges(&mut self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.lent.iter_mut().flatten().map(|memory| memory.payload() as usize).map(|at| at..at + SMALL_BYTES)
    }

    fn lend(&mut self, count: u16) {
        for _ in 0..count {
            let id = self.lent.len() as u16;
            self.lent.push(None);
            self.place(id);
        }
    }

    /// Lends a fresh buffer under `id`, which the kernel does not have at the moment: so there is a free place.
    fn place(&mut self, id: u16) {
        let mut memory = lend_small();
        let at = memory.payload();
        // SAFETY: the index is within the ring's memory; the kernel does not read this entry before `publish`.
        let entry = unsafe { self.places.add(usize::from(self.tail & (PLACES - 1))).as_mut() };
        entry.set_addr(at as u64);
        entry.set_len(SMALL_BYTES as u32);
        entry.set_bid(id);
        self.lent[usize::from(id)] = Some(memory);
        self.tail = self.tail.wrapping_add(1);
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and the kernel is done with it.
        unsafe { dealloc(self.places.as_ptr().cast(), layout()) };
    }
}

fn layout() -> Layout {
    let size = usize::from(PLACES) * size_of::<BufRingEntry>();
    Layout::from_size_align(size, 4096).expect("a page-aligned array of entries")
}
