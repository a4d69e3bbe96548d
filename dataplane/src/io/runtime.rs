//! One runtime a worker: monoio on a ring that is set up for it, or on epoll.

use std::cell::Cell;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Submission entries of a worker's ring.
const RING_ENTRIES: u32 = 4096;
/// Completion entries: one loop may complete far more than it submitted, when many streams tick at once.
const RING_COMPLETIONS: u32 = 32768;

/// How a worker talks to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Completions from a ring.
    IoUring,
    /// Readiness from epoll, where the kernel or a sandbox forbids rings.
    Epoll,
}

impl Mode {
    /// The name in logs and in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

thread_local! {
    static NONBLOCKING: Cell<bool> = const { Cell::new(false) };
}

/// Whether sockets of this worker must be non-blocking. On a ring they must not: the kernel waits only for blocking ones.
pub(crate) fn sockets_nonblocking() -> bool {
    NONBLOCKING.get()
}

/// Tries whether this process may set up a ring as the workers will. Errors: what the kernel said.
pub(crate) fn probe_io_uring() -> io::Result<()> {
    ring_builder().build(8).map(drop)
}

/// Runs `main`, and what it spawns, on this thread until `main` is done.
pub(crate) fn run<T>(mode: Mode, main: impl Future<Output = T>) -> io::Result<T> {
    NONBLOCKING.set(mode == Mode::Epoll);
    Ok(match mode {
        Mode::IoUring => RuntimeBuilder::<IoUringDriver>::new()
            .uring_builder(ring_builder())
            .with_entries(RING_ENTRIES)
            .build()?
            .block_on(main),
        Mode::Epoll => RuntimeBuilder::<LegacyDriver>::new().build()?.block_on(main),
    })
}

/// Starts a task on this worker. A panic in it ends it alone, and is counted.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    monoio::spawn(Guarded(task));
}

/// Tasks that ended by a panic since the process began, on all workers. Each is a bug.
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// `COOP_TASKRUN` saves the interrupt that would run completions at once; `SINGLE_ISSUER` lets the kernel skip locks.
/// Together they are worth a quarter of the CPU time of a relayed request.
fn ring_builder() -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_coop_taskrun().setup_single_issuer().setup_cqsize(RING_COMPLETIONS);
    builder
}

/// A task whose panic is caught: one connection's bug must not end the others of its worker.
struct Guarded<F>(F);

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<()> {
        // SAFETY: the task is pinned with `self` and never moved out of it.
        let task = unsafe { self.map_unchecked_mut(|this| &mut this.0) };
        std::panic::catch_unwind(AssertUnwindSafe(|| task.poll(context))).unwrap_or_else(|_| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(())
        })
    }
}
