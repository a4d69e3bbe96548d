//! Memory that the simulated kernel was lent: what it may still read stays as it was, what it may still write to is
//! nobody else's, and neither comes back to the pool before the kernel is done with it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::fault;

/// What lies in memory that the kernel may write to, until it does.
const UNWRITTEN: u8 = 0xA7;
/// As much of it as is compared at a time.
const UNTOUCHED: [u8; 4096] = [UNWRITTEN; 4096];
/// What lies in memory that came back to the pool, until it is written to again.
const SPOILED: u8 = 0xDB;

thread_local! {
    /// Address, length and purpose of what the kernel of this thread was lent.
    static LENT: RefCell<BTreeMap<usize, (usize, &'static str)>> = const { RefCell::new(BTreeMap::new()) };
}

/// A buffer's memory comes back to its pool. With a simulated kernel or without: nobody may use it any more.
pub(crate) fn come_back(memory: &mut [u8]) {
    memory.fill(SPOILED);
    // At the end of a thread the list may be gone before the last buffer.
    let lent = LENT.try_with(|lent| overlapping(&lent.borrow(), memory.as_ptr().addr(), memory.len()));
    if let Ok(Some(purpose)) = lent {
        fault(format!("memory came back to the pool that the kernel was lent for {purpose}"));
    }
}

fn overlapping(lent: &BTreeMap<usize, (usize, &'static str)>, at: usize, len: usize) -> Option<&'static str> {
    let (before, (before_len, purpose)) = lent.range(..at + len).next_back()?;
    (before + before_len > at).then_some(*purpose)
}

fn lend(at: usize, len: usize, purpose: &'static str) {
    LENT.with_borrow_mut(|lent| {
        if let Some(other) = overlapping(lent, at, len) {
            fault(format!("memory was lent for {purpose} that is lent for {other} already"));
        }
        lent.insert(at, (len, purpose));
    });
}

fn is_lent(at: usize) {
    LENT.with_borrow_mut(|lent| {
        if lent.remove(&at).is_none() {
            fault("memory was given back twice".to_owned());
        }
    });
}

/// Memory that the kernel may read until the operation ends.
#[derive(Debug)]
pub(super) struct ToRead {
    at: usize,
    /// What was in it when it was lent.
    copy: Vec<u8>,
}

/// Memory that the kernel may write to until the operation ends.
#[derive(Debug)]
pub(super) struct ToWrite {
    at: usize,
    len: usize,
}

impl ToRead {
    pub(super) fn new(at: u64, len: usize) -> Self {
        let at = at as usize;
        lend(at, len, "a send");
        Self { at, copy: bytes(at, len).to_vec() }
    }

    /// What is there now.
    pub(super) fn bytes(&self) -> &'static [u8] {
        let now = bytes(self.at, self.copy.len());
        if now != self.copy {
            fault("what was lent for a send has changed before it was sent".to_owned());
        }
        now
    }
}

impl Drop for ToRead {
    fn drop(&mut self) {
        is_lent(self.at);
    }
}

impl ToWrite {
    pub(super) fn new(at: u64, len: usize, purpose: &'static str) -> Self {
        let at = at as usize;
        lend(at, len, purpose);
        bytes_mut(at, len).fill(UNWRITTEN);
        Self { at, len }
    }

    /// The memory, in which nobody has written meanwhile.
    pub(super) fn bytes(&mut self) -> &'static mut [u8] {
        let bytes = bytes_mut(self.at, self.len);
        if bytes.chunks(UNTOUCHED.len()).any(|chunk| *chunk != UNTOUCHED[..chunk.len()]) {
            fault("what was lent to be received into was written to by another".to_owned());
        }
        bytes
    }
}

impl Drop for ToWrite {
    fn drop(&mut self) {
        is_lent(self.at);
    }
}

fn bytes(at: usize, len: usize) -> &'static [u8] {
    // SAFETY: whoever submits an operation keeps the memory until it is told of the end, as it has to with the real
    // kernel. Buffers that come back early are found by `come_back`; the pool keeps most of them mapped.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(at), len) }
}

fn bytes_mut(at: usize, len: usize) -> &'static mut [u8] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(at), len) }
}

/// The ring of provided buffers, as the kernel sees it.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: *const BufRingEntry,
    places: u16,
    /// What it has seen of the ring.
    seen: u16,
    /// Free ones, by age.
    free: VecDeque<(u16, ToWrite)>,
    /// By id.
    is_free: Vec<bool>,
}

impl Buffers {
    pub(super) fn new(at: u64, places: u16) -> Self {
        let entries = std::ptr::with_exposed_provenance(at as usize);
        Self { entries, places, seen: 0, free: VecDeque::new(), is_free: vec![false; places.into()] }
    }

    /// Looks what was published.
    pub(super) fn look(&mut self) {
        // SAFETY: the ring's memory lives until the kernel is gone; its tail is in the first entry.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
        let tail = tail.load(Ordering::Acquire);
        while self.seen != tail {
            // SAFETY: the place is within the ring, and was written before the tail moved past it.
            let entry = unsafe { &*self.entries.add(usize::from(self.seen & (self.places - 1))) };
            let memory = ToWrite::new(entry.addr(), entry.len() as usize, "whatever is received next");
            if std::mem::replace(&mut self.is_free[usize::from(entry.bid())], true) {
                fault(format!("the provided buffer {} was lent twice", entry.bid()));
            }
            self.free.push_back((entry.bid(), memory));
            self.seen = self.seen.wrapping_add(1);
        }
    }

    /// The next buffer.
    pub(super) fn next(&mut self) -> Option<&'static mut [u8]> {
        self.free.front_mut().map(|(_, memory)| memory.bytes())
    }

    /// The next buffer was filled, and goes back to its owner; its id.
    pub(super) fn take(&mut self) -> u16 {
        let id = self.free.pop_front().map_or(0, |(id, _)| id);
        self.is_free[usize::from(id)] = false;
        id
    }
}
