//! Which cores this process may use, and how a thread is pinned to one of them.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Ids of the cores that this process may run on, ascending; never empty.
pub(crate) fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return vec![0] };
    let ids: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&id| set.is_set(id)).collect();
    if ids.is_empty() { vec![0] } else { ids }
}

/// Pins the calling thread to core `id`.
pub(crate) fn pin_this_thread(id: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(id);
    Ok(sched_setaffinity(None, &set)?)
}
