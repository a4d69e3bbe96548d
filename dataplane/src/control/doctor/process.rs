//! What the host grants to this process: descriptors, locked memory, processors.

use std::path::Path;

use dataplane_core::files::{Files, Standing};
use proto::config::{Config, defaults};

use super::text::{grouped, kernel_version, limit, processors as count_processors, read, status_field};
use super::{Finding, Host};

const LIMITS: &str = "proc/self/limits";
const STATUS: &str = "proc/self/status";

/// Whether the process may open as many files as its config asks for. The hard limit counts: a process that serves raises
/// its own to that.
pub(super) fn open_files(host: &Host<'_>, config: Option<&Config>) -> Finding {
    const NAME: &str = "open files";
    let limits = read(host.root, LIMITS).unwrap_or_default();
    let Some((_, hard)) = limit(&limits, "Max open files") else { return Finding::unknown(NAME, LIMITS) };
    let wanted = config.map_or(defaults::CONNECTIONS, |config| config.limits.connections);
    let workers = config.map_or(0, |config| config.runtime.workers);
    let workers = if workers == 0 { allowed_processors(host.root).unwrap_or(1) } else { workers };
    let standing = config.map_or(Standing { workers: workers as u64, addresses: 1, probes: 0 }, |config| {
        Standing::of(config, workers)
    });
    let files = Files::fit(hard, &standing, wanted);
    let needed = Files::needed(&standing, wanted);
    if files.connections >= wanted {
        return Finding::ok(NAME, format!("{}, {} needed", amount(hard), grouped(needed)));
    }
    let fitted = files.connections;
    Finding::warn(
        NAME,
        format!(
            "{} are enough for {} clients, limits.connections = {} ({files})",
            amount(hard),
            grouped(fitted.into()),
            grouped(wanted.into())
        ),
        format!("LimitNOFILE={needed} in the unit, or limits.connections = {fitted}"),
    )
}

/// Before 5.12 the kernel charged the memory of rings to this limit; now only registered buffers.
pub(super) fn locked_memory(host: &Host<'_>) -> Finding {
    const NAME: &str = "locked memory";
    const CHARGED_BEFORE: (u32, u32) = (5, 12);
    // A ring of 4,096 entries with its completions is about half a MiB; this is enough for 16 workers.
    const ENOUGH: u64 = 8 << 20;
    let limits = read(host.root, LIMITS).unwrap_or_default();
    let Some((soft, _)) = limit(&limits, "Max locked memory") else { return Finding::unknown(NAME, LIMITS) };
    let release = read(host.root, "proc/sys/kernel/osrelease").unwrap_or_default();
    if soft >= ENOUGH {
        return Finding::ok(NAME, format!("{} bytes", amount(soft)));
    }
    if kernel_version(&release).is_some_and(|version| version >= CHARGED_BEFORE) {
        return Finding::ok(NAME, format!("{} bytes; this kernel does not charge rings to it", amount(soft)));
    }
    Finding::warn(
        NAME,
        format!("{} bytes: this kernel charges io_uring's rings to it", amount(soft)),
        "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit",
    )
}

/// One worker for each processor, and no more than the control group pays for.
pub(super) fn processors(host: &Host<'_>, config: Option<&Config>) -> Finding {
    const NAME: &str = "processors";
    let Some(allowed) = allowed_processors(host.root) else { return Finding::unknown(NAME, STATUS) };
    let configured = config.map_or(0, |config| config.runtime.workers);
    let workers = if configured == 0 { allowed } else { configured };
    if workers > allowed {
        return Finding::warn(
            NAME,
            format!("{workers} workers share {allowed} processor(s)"),
            "runtime.workers = 0, which takes one for each processor",
        );
    }
    match quota(host.root) {
        Some(quota) if quota < workers as f64 => Finding::warn(
            NAME,
            format!(
                "{workers} workers, but the control group pays for {quota:.1}: all of them stall in turn"
            ),
            format!("runtime.workers = {}, or raise the quota (systemd: CPUQuota=)", (quota as usize).max(1)),
        ),
        Some(quota) => {
            Finding::ok(NAME, format!("{workers} worker(s), {allowed} processor(s), quota {quota:.1}"))
        }
        None => Finding::ok(NAME, format!("{workers} worker(s), {allowed} processor(s), no quota")),
    }
}

/// Processors that this process may use.
fn allowed_processors(root: &Path) -> Option<usize> {
    let status = read(root, STATUS).unwrap_or_default();
    status_field(&status, "Cpus_allowed_list").and_then(count_processors)
}

/// The smallest quota, in processors, of this process's control group and of all above it; none where nothing is set.
fn quota(root: &Path) -> Option<f64> {
    let groups = read(root, "proc/self/cgroup")?;
    groups.lines().filter_map(|line| quota_of_hierarchy(root, line)).reduce(f64::min)
}

/// A line is `0::/a/b` for version 2 (cgroup-v2.rst, "CPU") or `4:cpu,cpuacct:/a/b` for a controller of version 1.
fn quota_of_hierarchy(root: &Path, line: &str) -> Option<f64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    let is_v1_cpu = controllers.split(',').any(|controller| controller == "cpu");
    let read_quota: fn(&Path, &str) -> Option<f64> = match controllers {
        "" => quota_v2,
        _ if is_v1_cpu => quota_v1,
        _ => return None,
    };
    let groups = Path::new(group.trim_start_matches('/')).ancestors().filter_map(Path::to_str);
    groups.filter_map(|group| read_quota(root, group)).reduce(f64::min)
}

/// `cpu.max` holds `max 100000` or `150000 100000`: microseconds of CPU in each period.
fn quota_v2(root: &Path, group: &str) -> Option<f64> {
    let text = read(root, &format!("sys/fs/cgroup/{group}/cpu.max"))?;
    let (quota, period) = text.split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

/// -1 stands for no quota.
fn quota_v1(root: &Path, group: &str) -> Option<f64> {
    let number = |file: &str| -> Option<f64> {
        read(root, &format!("sys/fs/cgroup/cpu/{group}/{file}"))?.parse::<f64>().ok()
    };
    let quota = number("cpu.cfs_quota_us").filter(|quota| *quota > 0.0)?;
    Some(quota / number("cpu.cfs_period_us")?)
}

fn amount(value: u64) -> String {
    if value == u64::MAX { "unlimited".into() } else { grouped(value) }
}
