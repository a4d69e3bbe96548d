//! What the kernel says of this process, read from `/proc/self`. A file that cannot be read leaves zeros: figures are
//! missing then, and nothing else suffers.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Figures of the process, in the words of Prometheus's own client libraries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Process {
    /// Memory in RAM.
    pub(crate) rss_bytes: u64,
    /// Address space in use.
    pub(crate) virtual_bytes: u64,
    /// Open file descriptors.
    pub(crate) open_fds: u64,
    /// The limit of open file descriptors.
    pub(crate) max_fds: u64,
    /// Threads.
    pub(crate) threads: u64,
    /// Processor time in user and kernel mode.
    pub(crate) cpu_ns: u64,
    /// When the process began, since the Unix epoch.
    pub(crate) started_unix_ns: u64,
}

impl Process {
    /// The figures now.
    pub(crate) fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let kib = |name| status_field(&status, name) * 1024;
        let (cpu_ns, uptime_ns) = times();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Process {
            rss_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            open_fds: open_fds(),
            max_fds: limit_field(&limits, "Max open files"),
            threads: status_field(&status, "Threads:"),
            cpu_ns,
            started_unix_ns: (since_epoch.as_nanos() as u64).saturating_sub(uptime_ns),
        }
    }
}

/// Since Linux 6.2 the folder's size says how many there are; reading a hundred thousand entries takes milliseconds.
fn open_fds() -> u64 {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).map_or(0, |folder| folder.len()) {
        0 => fs::read_dir(FOLDER).map_or(0, |entries| entries.count() as u64),
        count => count,
    }
}

fn status_field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn limit_field(limits: &str, name: &str) -> u64 {
    let soft = limits.lines().find_map(|line| line.strip_prefix(name));
    soft.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Processor time used, and how long ago the process began.
fn times() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the command's name in brackets, which may hold spaces and brackets.
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let field = |number: usize| fields.get(number - FIRST_FIELD).copied().unwrap_or(0);
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split_whitespace().next().and_then(|seconds| seconds.parse::<f64>().ok());
    let uptime = Duration::try_from_secs_f64(uptime.unwrap_or(0.0)).unwrap_or_default();
    let age_ns = (uptime.as_nanos() as u64).saturating_sub(field(STARTTIME) * JIFFY_NS);
    ((field(UTIME) + field(STIME)) * JIFFY_NS, age_ns)
}

/// proc(5) numbers the fields of `stat` from 1; the first after the command's name is the third.
const FIRST_FIELD: usize = 3;
const UTIME: usize = 14;
const STIME: usize = 15;
const STARTTIME: usize = 22;
/// `USER_HZ` is 100 on every architecture that we build for.
const JIFFY_NS: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_threads_and_an_age() {
        let process = Process::now();
        assert!(process.rss_bytes > 100 * 1024, "{process:?}");
        assert!(process.virtual_bytes >= process.rss_bytes, "{process:?}");
        assert!(process.threads >= 1 && process.open_fds >= 3, "{process:?}");
        assert!(process.max_fds >= process.open_fds, "{process:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let age = Duration::from_nanos(now - process.started_unix_ns);
        assert!(age < Duration::from_secs(3600), "{age:?}");
    }
}
