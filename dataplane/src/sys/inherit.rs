//! Descriptors that a new process takes over from this one: kept open in the child alone, and owned again there.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the child of `command` have `fds`, under the same numbers. In this process they stay close-on-exec.
///
/// The caller keeps them open until the child was spawned.
pub(crate) fn keep_in_child(command: &mut Command, fds: Vec<RawFd>) {
    let clear_close_on_exec = move || fds.iter().try_for_each(|fd| set_descriptor_flags(*fd, 0));
    // SAFETY: between fork and exec only `fcntl` is called, which is async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(clear_close_on_exec) };
}

/// Takes over a descriptor that the parent process left open under this number; it is close-on-exec again.
///
/// # Errors
/// `EBADF` where nothing is open under that number.
pub(crate) fn take(fd: RawFd) -> io::Result<OwnedFd> {
    set_descriptor_flags(fd, libc::FD_CLOEXEC)?;
    // SAFETY: it is open (the call above failed otherwise), and each number of the parent's list is taken once, before
    // this process opens anything else that could own it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_descriptor_flags(fd: RawFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: `fcntl` with F_SETFD takes an int and touches no memory of ours; on a bad number it fails.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
