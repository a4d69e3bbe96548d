//! Busy neighbours: threads that only spin, on the CPU of the proxy. On two cores the load generator and the origin
//! together need more CPU than a proxy does, so that none could ever be overloaded; with three neighbours the proxy has
//! a quarter of its core, and the generator is not the bottleneck.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::sched;

const NEIGHBORS: usize = 3;
/// Rounds of spinning between two looks whether it is over.
const SPIN_ROUNDS: u32 = 1000;

/// Spinning threads. They end when this is dropped.
pub(super) struct Neighbors {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Neighbors {
    /// Errors: there is no such CPU, or no more threads.
    pub(super) fn start(cpu: u32) -> io::Result<Self> {
        let mut this = Self { is_over: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        for _ in 0..NEIGHBORS {
            let is_over = Arc::clone(&this.is_over);
            let spin = move || {
                // One that is not pinned would be a neighbour of somebody else.
                if sched::pin_this_thread(cpu).is_err() {
                    return;
                }
                while !is_over.load(Ordering::Relaxed) {
                    (0..SPIN_ROUNDS).for_each(|_| std::hint::spin_loop());
                }
            };
            this.threads.push(std::thread::Builder::new().name("neighbor".to_owned()).spawn(spin)?);
        }
        Ok(this)
    }
}

impl Drop for Neighbors {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot panic, and nobody is left to tell.
            let _ = thread.join();
        }
    }
}
