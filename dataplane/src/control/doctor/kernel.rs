//! What the kernel offers: its version, io_uring, queues, ports, congestion control, clock. What it grants to this
//! process is looked at in [`super::process`].

use std::collections::{BTreeSet, HashSet};
use std::io;

use proto::config::{Config, Driver};

use super::text::{grouped, kernel_version, read, read_number, status_field};
use super::{Finding, Host};

/// `IORING_SETUP_DEFER_TASKRUN`, the newest thing that the workers' rings need, came with 6.1.
const DEFER_TASKRUN: (u32, u32) = (6, 1);

/// Older kernels have no rings such as the workers use.
pub(super) fn version(host: &Host<'_>, config: Option<&Config>) -> Finding {
    const NAME: &str = "kernel";
    let path = "proc/sys/kernel/osrelease";
    let Some(release) = read(host.root, path) else { return Finding::unknown(NAME, path) };
    let Some(version) = kernel_version(&release) else {
        return Finding::warn(NAME, format!("{release}: not a version"), "uname -r");
    };
    if version >= DEFER_TASKRUN || driver(config) == Driver::Epoll {
        return Finding::ok(NAME, release);
    }
    Finding::warn(
        NAME,
        format!("{release}: io_uring lacks DEFER_TASKRUN (6.1); workers run on epoll, which costs more CPU"),
        "install Linux 6.1 or newer (Debian 12: apt-get install linux-image-amd64, then reboot)",
    )
}

/// Without io_uring workers run on epoll, unless the config insists.
pub(super) fn io_uring(host: &Host<'_>, config: Option<&Config>) -> Finding {
    const NAME: &str = "io_uring";
    if driver(config) == Driver::Epoll {
        return Finding::ok(NAME, "not needed: runtime.driver = \"epoll\"");
    }
    let Err(error) = (host.probe_io_uring)() else { return Finding::ok(NAME, "allowed") };
    let disabled = read_number(host.root, "proc/sys/kernel/io_uring_disabled");
    let (why, mend) = io_uring_refusal(disabled, &error);
    if driver(config) == Driver::IoUring {
        return Finding::fail(NAME, format!("{why}, and runtime.driver = \"io_uring\" insists on it"), mend);
    }
    Finding::warn(NAME, format!("{why}; workers run on epoll, which costs more CPU"), mend)
}

fn io_uring_refusal(disabled: Option<u64>, error: &io::Error) -> (String, &'static str) {
    match disabled {
        Some(1) => (
            format!("only for the group in kernel.io_uring_group ({error})"),
            "sysctl -w kernel.io_uring_disabled=0, or kernel.io_uring_group=GID of the service",
        ),
        Some(2) => ("disabled (kernel.io_uring_disabled = 2)".into(), "sysctl -w kernel.io_uring_disabled=0"),
        _ if error.kind() == io::ErrorKind::OutOfMemory => (
            format!("refused: {error}"),
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit (memory of the rings)",
        ),
        _ => (
            format!("refused: {error}"),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile \
             (systemd: SystemCallFilter=, Docker: --security-opt seccomp=PROFILE)",
        ),
    }
}

/// `listen(2)` cuts a longer backlog to `somaxconn` without a word.
pub(super) fn accept_queue(host: &Host<'_>, config: Option<&Config>) -> Finding {
    const NAME: &str = "accept queue";
    // The kernel's own default since 5.4.
    const BACKLOG_USUAL: u32 = 4096;
    let path = "proc/sys/net/core/somaxconn";
    let Some(most) = read_number(host.root, path) else { return Finding::unknown(NAME, path) };
    let backlogs = config.map(|config| config.listeners.iter().map(|listener| listener.socket.backlog));
    let wanted = u64::from(backlogs.and_then(Iterator::max).unwrap_or(BACKLOG_USUAL));
    if most >= wanted {
        return Finding::ok(NAME, format!("net.core.somaxconn = {most}, backlog {wanted}"));
    }
    Finding::warn(
        NAME,
        format!("net.core.somaxconn = {most} cuts the backlog of {wanted}: bursts of clients wait a second"),
        format!("sysctl -w net.core.somaxconn={wanted}"),
    )
}

/// Each connection to the same origin address needs a local port of its own.
pub(super) fn local_ports(host: &Host<'_>, config: Option<&Config>) -> Finding {
    const NAME: &str = "local ports";
    let path = "proc/sys/net/ipv4/ip_local_port_range";
    let range = read(host.root, path).and_then(|text| {
        let mut ends = text.split_whitespace().map(|end| end.parse::<u64>().ok());
        Some((ends.next()??, ends.next()??))
    });
    let Some((first, last)) = range else { return Finding::unknown(NAME, path) };
    let count = (last + 1).saturating_sub(first);
    let found = format!("{first} to {last}: {} connections to one origin address", grouped(count));
    let Some(config) = config else { return Finding::ok(NAME, found) };
    let endpoints = remote_endpoints(config);
    if endpoints == 0 || count * endpoints >= u64::from(config.limits.connections) {
        return Finding::ok(NAME, found);
    }
    Finding::warn(
        NAME,
        format!(
            "{found}, {endpoints} endpoint(s), but limits.connections = {}",
            grouped(config.limits.connections.into())
        ),
        "sysctl -w net.ipv4.ip_local_port_range='16384 65535', or add endpoints, or lower limits.connections",
    )
}

/// Endpoints that are dialled from a local port, the same one in two clusters counted once.
fn remote_endpoints(config: &Config) -> u64 {
    use proto::config::Address;
    let endpoints = config.clusters.iter().flat_map(|cluster| &cluster.endpoints);
    let distinct: HashSet<_> = endpoints
        .map(|endpoint| &endpoint.address)
        .filter(|address| !matches!(address, Address::Unix(_)))
        .collect();
    distinct.len() as u64
}

/// Every algorithm that the config names must be there, and this process must be allowed to choose it.
pub(super) fn congestion_control(host: &Host<'_>, config: Option<&Config>) -> Finding {
    const NAME: &str = "congestion";
    let path = "proc/sys/net/ipv4/tcp_available_congestion_control";
    let Some(available) = read(host.root, path) else { return Finding::unknown(NAME, path) };
    let wanted = congestion_wanted(config);
    if wanted.is_empty() {
        return Finding::ok(NAME, format!("the kernel's default; it offers {available}"));
    }
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    if let Some(missing) = wanted.iter().find(|name| !has(&available, name)) {
        return Finding::warn(
            NAME,
            format!("no {missing} (the kernel offers {available}): sockets keep the default"),
            format!("modprobe tcp_{missing}"),
        );
    }
    let allowed = read(host.root, "proc/sys/net/ipv4/tcp_allowed_congestion_control").unwrap_or_default();
    let forbidden = wanted.iter().find(|name| !has(&allowed, name));
    match forbidden.filter(|_| !may_administer_network(host)) {
        Some(name) => Finding::warn(
            NAME,
            format!("{name} is there, but only root may choose it: sockets keep the default"),
            format!("sysctl -w net.ipv4.tcp_allowed_congestion_control='{allowed} {name}'"),
        ),
        None => Finding::ok(NAME, format!("{} available", Vec::from_iter(wanted).join(", "))),
    }
}

/// What listeners and clusters name; BBR, which is worth having, where there is no config.
fn congestion_wanted(config: Option<&Config>) -> BTreeSet<&str> {
    let Some(config) = config else { return BTreeSet::from(["bbr"]) };
    let listeners = config.listeners.iter().map(|listener| &listener.socket);
    let clusters = config.clusters.iter().map(|cluster| &cluster.socket);
    listeners.chain(clusters).filter_map(|socket| socket.congestion.as_deref()).collect()
}

/// Whether this process holds `CAP_NET_ADMIN`, capability 12.
fn may_administer_network(host: &Host<'_>) -> bool {
    let status = read(host.root, "proc/self/status").unwrap_or_default();
    let effective = status_field(&status, "CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    effective.is_some_and(|mask| mask & (1 << 12) != 0)
}

/// Some clocks are read by a system call or a slow device; the data plane reads the time often.
pub(super) fn clock_source(host: &Host<'_>) -> Finding {
    const NAME: &str = "clock";
    const FAST: [&str; 4] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];
    let folder = "sys/devices/system/clocksource/clocksource0";
    let path = format!("{folder}/current_clocksource");
    let Some(current) = read(host.root, &path) else { return Finding::unknown(NAME, &path) };
    if FAST.contains(&current.as_str()) {
        return Finding::ok(NAME, current);
    }
    let available = read(host.root, &format!("{folder}/available_clocksource")).unwrap_or_default();
    let better = FAST.iter().find(|fast| available.split_whitespace().any(|word| word == **fast));
    Finding::warn(
        NAME,
        format!("{current}: reading the time is slow"),
        match better {
            Some(fast) => format!("echo {fast} >/{path}"),
            None => {
                "boot with the kernel parameter tsc=reliable, where the hardware's counter is sound".into()
            }
        },
    )
}

fn driver(config: Option<&Config>) -> Driver {
    config.map_or(Driver::Auto, |config| config.runtime.driver)
}
