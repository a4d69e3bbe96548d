//! How the kernel backs our memory.

/// Has the kernel back this process with small pages only, from now on and in what it starts.
///
/// A proxy touches a little of much memory: the first touch of a huge page clears 2 MiB, which stands in the way of a
/// burst of new streams for milliseconds, and idle connections keep more memory resident than they use. A failure leaves
/// things as they are: nothing else depends on it.
pub(crate) fn use_small_pages() {
    // SAFETY: the call takes plain numbers, and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}
