//! The table of this process's open files.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::event;

/// Raises the limit of open files to the most that this process may have, and says what it is then.
///
/// The usual soft limit of 1,024 is kept low for programs that call `select`, which cannot name more; a process that does
/// not may raise it. Where that is refused, the limit stays as it is.
pub(crate) fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether the number of `file` is below `ceiling`, to which end it gets a lower one if there is one.
pub(crate) fn is_below(file: &mut OwnedFd, ceiling: u32) -> bool {
    let is_low = |file: &OwnedFd| u32::try_from(file.as_raw_fd()).is_ok_and(|number| number < ceiling);
    if is_low(file) {
        return true;
    }
    // The copy has the lowest number that is free now.
    match fcntl_dupfd_cloexec(&*file, 0) {
        Ok(copy) if is_low(&copy) => {
            *file = copy;
            true
        }
        Ok(_) | Err(_) => false,
    }
}

/// Has the kernel make room for `count` open files, as far as the limit allows so many, and before they come.
///
/// The table grows by doubling. Where threads share it, whoever opens the file too many waits until every processor has
/// seen the old one go (`synchronize_rcu` in `expand_fdtable`, fs/file.c): 8 to 20 ms, in which a worker serves nobody.
/// Room costs the kernel 8 bytes for each file. If there is none to be had, the table grows when it has to.
pub(crate) fn make_room(count: u64) {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let Ok(last) = i32::try_from(count.min(limit).saturating_sub(1)) else { return };
    let Ok(event) = event::event() else { return };
    // A file with the last number makes the table as long as that, and it stays so when the file is closed.
    drop(fcntl_dupfd_cloexec(event, last));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many files the table of this process has room for (proc_pid_status(5)).
    fn room() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn a_file_gets_a_lower_number_where_one_is_free() {
        let event = event::event().unwrap();
        // Other tests open files meanwhile, but not as many as that.
        let mut file = fcntl_dupfd_cloexec(&event, 900).unwrap();
        let number = file.as_raw_fd() as u32;
        assert!(is_below(&mut file, number + 1) && file.as_raw_fd() as u32 == number, "it is low enough");
        assert!(!is_below(&mut file, 0) && file.as_raw_fd() as u32 == number, "there is no lower one");
        assert!(is_below(&mut file, number) && (file.as_raw_fd() as u32) < number);
    }

    #[test]
    fn there_is_room_for_as_many_files_as_are_asked_for_and_allowed() {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        for count in [0, 600, 3000, 9000, 50_000] {
            make_room(count);
            assert!(room() >= count.min(limit), "{} of {count}", room());
        }
        // No more than the limit is asked for: that would be refused, and there would be no room at all.
        if limit <= 1 << 20 {
            make_room(limit + 1);
            assert!(room() >= limit, "{} of {limit}", room());
        }
    }
}
