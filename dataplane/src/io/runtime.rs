//! One runtime a worker: its tasks, its driver, and its post.

use std::cell::Cell;
use std::io;

use super::driver::Driver;
use super::epoll::Epoll;
use super::ring::Ring;
use super::{clock, driver, home, task};

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
    static TURNS: Cell<u64> = const { Cell::new(0) };
}

/// Runs `main`, and what it spawns, on this thread until `main` is done. Errors: the kernel refuses the driver, or fails
/// it later.
pub(crate) fn run<T>(mode: Mode, main: impl Future<Output = T>) -> io::Result<T> {
    match mode {
        Mode::IoUring => run_on(Ring::new()?, main),
        Mode::Epoll => run_on(Epoll::new()?, main),
    }
}

/// As [`run`], on a driver of this thread.
pub(super) fn run_on<T>(driver: impl Driver + 'static, main: impl Future<Output = T>) -> io::Result<T> {
    driver::install(driver);
    let _ending = Ending;
    let _post = home::open()?;
    turn_until(main)
}

/// As [`run`], on a driver that a test has made; nothing comes from other threads.
#[cfg(test)]
pub(super) fn run_alone<T>(driver: impl Driver + 'static, main: impl Future<Output = T>) -> io::Result<T> {
    driver::install(driver);
    let _ending = Ending;
    let _post = home::alone();
    turn_until(main)
}

fn turn_until<T>(main: impl Future<Output = T>) -> io::Result<T> {
    task::run(main, |wait| {
        TURNS.set(TURNS.get() + 1);
        driver::with(|driver| driver.turn(wait))?;
        clock::turned();
        Ok(())
    })
}

/// Turns of this thread's event loop since the last call.
pub(crate) fn take_turns() -> u64 {
    TURNS.take()
}

/// Leaves the thread as it was, also after a panic: tasks first, since they hold sockets.
struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        task::clear();
        driver::uninstall();
    }
}
