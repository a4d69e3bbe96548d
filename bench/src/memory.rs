//! User memory of a process, as the kernel accounts for it. What the kernel holds for its sockets is not in here.

use std::fs;
use std::io;

/// Bytes of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss: u64,
    /// Resident, shared pages divided by those who share them.
    pub(crate) pss: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        match (kilobytes(&text, "Rss:"), kilobytes(&text, "Pss:")) {
            (Some(rss), Some(pss)) => Ok(Self { rss, pss }),
            _ => Err(io::Error::other(format!("process {pid} has no memory: it is gone"))),
        }
    }
}

/// The name of a process in the kernel.
pub(crate) fn name(pid: u32) -> io::Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/comm"))?.trim_end().to_owned())
}

/// `Name:   123 kB`, in bytes.
pub(crate) fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_what_is_touched() {
        let before = Memory::of(std::process::id()).unwrap();
        let touched = std::hint::black_box(vec![1_u8; 16 << 20]);
        let after = Memory::of(std::process::id()).unwrap();
        assert!(after.rss >= before.rss + (8 << 20) && after.pss > before.pss, "{before:?} {after:?}");
        drop(touched);
    }

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let text = "Rss:        12 kB\nPss:   3 kB\nPss_Dirty: 9 kB\n";
        assert_eq!(kilobytes(text, "Pss:"), Some(3072));
        assert_eq!(kilobytes(text, "Swap:"), None);
    }
}
