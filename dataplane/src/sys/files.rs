//! The table of this process's open files.

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};

use super::event;

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
