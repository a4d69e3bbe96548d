//! The machine that figures are of: kernel, CPU, memory and the kernel settings that a proxy feels. Read, never set,
//! but for this process's own limit of open files.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::{Deserialize, Serialize};

use crate::memory::kilobytes;

/// The kernel settings that a report quotes; those that this kernel lacks are left out.
const SYSCTLS: [&str; 12] = [
    "kernel.io_uring_disabled",
    "net.core.default_qdisc",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_wmem",
];

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Release of the kernel.
    pub kernel: String,
    /// As the CPU calls itself.
    pub cpu_model: String,
    /// Those that this process may use.
    pub cpus: Vec<u32>,
    /// Of all of it.
    pub memory_bytes: u64,
    /// Files that one process may have open.
    pub open_files_max: u64,
    /// By name.
    pub sysctls: BTreeMap<String, String>,
}

impl Host {
    /// This machine. What it does not tell is `unknown`.
    pub fn read() -> Self {
        let sysctls = SYSCTLS.iter().filter_map(|name| {
            let value = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
            Some(((*name).to_owned(), value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")))
        });
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
            cpu_model: cpu_model().unwrap_or_else(|| "unknown".to_owned()),
            cpus: cpus(),
            memory_bytes: memory_field("MemTotal:").unwrap_or(0),
            open_files_max: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            sysctls: sysctls.collect(),
        }
    }
}

/// Lets this process and its children open as many files as the hard limit allows.
///
/// # Errors
/// The kernel refuses, which it has no reason to.
pub(crate) fn raise_open_files() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

fn cpus() -> Vec<u32> {
    let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
    let ids = (0..CpuSet::MAX_CPU).filter(|id| set.is_set(*id));
    ids.filter_map(|id| u32::try_from(id).ok()).collect()
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_field(name: &str) -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let host = Host::read();
        assert!(!host.cpus.is_empty() && host.memory_bytes > 1 << 20 && host.open_files_max > 0, "{host:?}");
        assert!(host.kernel.contains('.') && host.sysctls.contains_key("net.ipv4.tcp_rmem"), "{host:?}");
    }
}
