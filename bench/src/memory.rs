//! User memory of a process, as the kernel accounts for it. What the kernel holds for its sockets is not in here.

use std::fs;
use std::io;

/// Bytes of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss: u64,
    /// Resident and its own: not the pages of program files, which come and go; shared pages divided by those who share
    /// them.
    pub(crate) pss: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        match ["Rss:", "Pss:", "Pss_File:"].map(|name| kilobytes(&text, name)) {
            [Some(rss), Some(pss), Some(of_files)] => Ok(Self { rss, pss: pss.saturating_sub(of_files) }),
            _ => Err(io::Error::other(format!("process {pid} has no memory: it is gone"))),
        }
    }
}

/// What the kernel could still give out, page cache included.
pub(crate) fn available() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    kilobytes(&text, "MemAvailable:").ok_or_else(|| io::Error::other("the kernel tells no MemAvailable"))
}

/// What the kernel holds in small objects, sockets among them, and in the buffers of TCP.
pub(crate) fn of_kernel_objects() -> io::Result<u64> {
    let slab = kilobytes(&fs::read_to_string("/proc/meminfo")?, "Slab:");
    let sockets = fs::read_to_string("/proc/net/sockstat")?;
    // `TCP: inuse 7 orphan 0 tw 0 alloc 9 mem 3`, in pages.
    let tcp = sockets
        .lines()
        .find_map(|line| line.strip_prefix("TCP:")?.rsplit_once("mem ")?.1.parse::<u64>().ok());
    match (slab, tcp) {
        (Some(slab), Some(pages)) => Ok(slab + pages * rustix::param::page_size() as u64),
        _ => Err(io::Error::other("the kernel tells no Slab or no memory of TCP")),
    }
}

/// What the memory cgroup of a process holds, the kernel's part included; `None` if it has none that can be read.
pub(crate) fn of_cgroup(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let number = |file: String| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let path =
        |line: &str, start: &str| line.strip_prefix(start).map(|path| path.trim_matches('/').to_owned());
    let unified = text.lines().find_map(|line| path(line, "0::"));
    let unified = unified.and_then(|path| number(format!("/sys/fs/cgroup/{path}/memory.current")));
    // Version 1: `4:memory:/path`.
    let first = text.lines().find_map(|line| path(line.split_once(':')?.1, "memory:"));
    unified.or_else(|| number(format!("/sys/fs/cgroup/memory/{}/memory.usage_in_bytes", first?)))
}

/// Files that a process has open.
pub(crate) fn open_files(pid: u32) -> io::Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
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
    fn the_machine_has_memory_and_the_kernel_some_of_it() {
        let (free, kernel) = (available().unwrap(), of_kernel_objects().unwrap());
        assert!(free > 1 << 20 && kernel > 1 << 20, "{free} {kernel}");
    }

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let text = "Rss:        12 kB\nPss:   3 kB\nPss_Dirty: 9 kB\n";
        assert_eq!(kilobytes(text, "Pss:"), Some(3072));
        assert_eq!(kilobytes(text, "Swap:"), None);
    }
}
