//! The host's figures, from `/proc` (proc(5)). A file that is missing or says something else leaves zeros: a report
//! with a gap is better than none.

use std::fs;
use std::path::{Path, PathBuf};

use proto::v1::{HostInfo, HostMetrics};

/// Reads the figures; it remembers what the last report was relative to.
#[derive(Debug)]
pub struct Host {
    proc: PathBuf,
    cpu: CpuTime,
}

/// Ticks of all processors since the host began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuTime {
    total: u64,
    idle: u64,
    steal: u64,
}

impl Host {
    /// This host.
    pub fn new() -> Self {
        Self::at(Path::new("/proc"))
    }

    fn at(proc: &Path) -> Self {
        let mut host = Self { proc: proc.to_owned(), cpu: CpuTime::default() };
        host.cpu = cpu_time(&host.text("stat"));
        host
    }

    /// What does not change while the host runs.
    pub fn info(&self) -> HostInfo {
        let stat = self.text("stat");
        let boot_s = stat.lines().find_map(|line| line.strip_prefix("btime ")).map_or(0, number);
        let is_cpu = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
        HostInfo {
            hostname: self.hostname(),
            kernel_version: self.text("sys/kernel/osrelease").trim().to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpus: u32::try_from(stat.lines().filter(is_cpu).count()).unwrap_or(u32::MAX),
            memory_bytes: memory_bytes(&self.text("meminfo"), "MemTotal:"),
            boot_time_unix_ms: boot_s.saturating_mul(1000),
        }
    }

    /// The host's own name.
    pub fn hostname(&self) -> String {
        self.text("sys/kernel/hostname").trim().to_owned()
    }

    /// The figures now; the processors' are since the last call.
    pub fn sample(&mut self) -> HostMetrics {
        let cpu = cpu_time(&self.text("stat"));
        let before = std::mem::replace(&mut self.cpu, cpu);
        let memory = self.text("meminfo");
        let loads = loads(&self.text("loadavg"));
        let network = network(&self.text("net/dev"));
        let files = self.text("sys/fs/file-nr");
        let mut files = files.split_ascii_whitespace().map(number);
        HostMetrics {
            cpu_busy_ratio: 1.0 - cpu.share_since(before, |time| time.idle).unwrap_or(1.0),
            cpu_steal_ratio: cpu.share_since(before, |time| time.steal).unwrap_or(0.0),
            memory_bytes: memory_bytes(&memory, "MemTotal:"),
            memory_available_bytes: memory_bytes(&memory, "MemAvailable:"),
            load_1m: loads[0],
            load_5m: loads[1],
            load_15m: loads[2],
            network_received_bytes_total: network.received_bytes,
            network_sent_bytes_total: network.sent_bytes,
            network_dropped_packets_total: network.dropped_packets,
            network_error_packets_total: network.error_packets,
            agent_resident_bytes: resident_bytes(&self.text("self/statm")),
            open_files: files.next().unwrap_or_default(),
            open_files_max: files.nth(1).unwrap_or_default(),
        }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.proc.join(name)).unwrap_or_default()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuTime {
    /// None: no time has passed.
    fn share_since(self, before: Self, part: fn(Self) -> u64) -> Option<f64> {
        let total = self.total.saturating_sub(before.total);
        // The kernel's idle counters may go back a little; a share stays a share.
        (total > 0).then(|| (part(self).saturating_sub(part(before)) as f64 / total as f64).min(1.0))
    }
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; guests are counted in user already.
fn cpu_time(stat: &str) -> CpuTime {
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else {
        return CpuTime::default();
    };
    let ticks: Vec<u64> = line.split_ascii_whitespace().take(8).map(number).collect();
    let at = |place: usize| ticks.get(place).copied().unwrap_or_default();
    CpuTime { total: ticks.iter().sum(), idle: at(3) + at(4), steal: at(7) }
}

fn memory_bytes(meminfo: &str, key: &str) -> u64 {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(key));
    value.and_then(|value| value.split_ascii_whitespace().next()).map_or(0, number).saturating_mul(1024)
}

fn loads(loadavg: &str) -> [f64; 3] {
    let mut loads = loadavg.split_ascii_whitespace().map(|load| load.parse().unwrap_or(0.0));
    [(); 3].map(|()| loads.next().unwrap_or(0.0))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Network {
    received_bytes: u64,
    sent_bytes: u64,
    dropped_packets: u64,
    error_packets: u64,
}

/// `device: bytes packets errs drop fifo frame compressed multicast | bytes packets errs drop …`.
fn network(dev: &str) -> Network {
    let mut sum = Network::default();
    for line in dev.lines() {
        let Some((device, figures)) = line.split_once(':') else { continue };
        if device.trim() == "lo" {
            continue;
        }
        let figures: Vec<u64> = figures.split_ascii_whitespace().map(number).collect();
        let at = |place: usize| figures.get(place).copied().unwrap_or_default();
        sum.received_bytes += at(0);
        sum.sent_bytes += at(8);
        sum.error_packets += at(2) + at(10);
        sum.dropped_packets += at(3) + at(11);
    }
    sum
}

fn resident_bytes(statm: &str) -> u64 {
    let pages = statm.split_ascii_whitespace().nth(1).map_or(0, number);
    pages.saturating_mul(rustix::param::page_size() as u64)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_host() {
        let mut host = Host::new();
        let info = host.info();
        assert!(info.cpus > 0 && info.memory_bytes > 1 << 20 && !info.hostname.is_empty(), "{info:?}");
        assert!(info.boot_time_unix_ms > 0 && !info.kernel_version.is_empty(), "{info:?}");
        let sample = host.sample();
        assert!((0.0..=1.0).contains(&sample.cpu_busy_ratio), "{sample:?}");
        assert!(sample.memory_available_bytes > 0 && sample.memory_available_bytes <= sample.memory_bytes);
        assert!(sample.agent_resident_bytes > 0 && sample.open_files_max >= sample.open_files);
    }

    #[test]
    fn a_host_without_proc_gives_zeros() {
        let mut host = Host::at(Path::new("/nonexistent"));
        assert_eq!(host.sample(), HostMetrics::default());
    }

    #[test]
    fn busy_is_what_is_not_idle_since_the_last_look() {
        let before = cpu_time("cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1 2 3\n");
        let after = cpu_time("cpu  150 0 120 810 10 0 0 10 99 0\n");
        assert_eq!(after.total - before.total, 100);
        assert_eq!(after.share_since(before, |time| time.idle), Some(0.2));
        assert_eq!(after.share_since(before, |time| time.steal), Some(0.1));
        assert_eq!(after.share_since(after, |time| time.idle), None);
    }

    #[test]
    fn the_loopback_is_no_network() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9\n  eth0:100 5 1 2 0 0 0 0 200 6 3 4 0 0 0 0\neth1: 1 0 0 0 0 0 0 0 1 0 0 0\n";
        let sum = Network { received_bytes: 101, sent_bytes: 201, dropped_packets: 6, error_packets: 4 };
        assert_eq!(network(dev), sum);
    }
}
