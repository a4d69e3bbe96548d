//! Claims about `doctor`, on hosts made up below a temporary directory.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::config::{
    AccessLog, Address, Admin, Bind, Cluster, ClusterProtocol, Config, Driver, Endpoint, HalfClose,
    HostHeader, Limits, Listener, ListenerProtocol, Log, LogLevel, Node, Policy, Pool, Role, Runtime,
    SocketAccess, SocketOptions,
};

use super::{Finding, Host, Report, State, examine, text};

/// A host below a temporary directory, and what its io_uring answers.
struct FakeHost {
    root: tempfile::TempDir,
    io_uring: fn() -> io::Result<()>,
}

impl FakeHost {
    /// A new kernel, tuned, with room for 100,000 streams and nothing to complain about.
    fn good() -> FakeHost {
        let host = FakeHost { root: tempfile::tempdir().unwrap(), io_uring: || Ok(()) };
        host.put("proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
        host.put("proc/sys/kernel/io_uring_disabled", "0\n");
        host.put("proc/sys/net/core/somaxconn", "4096\n");
        host.put("proc/sys/net/ipv4/ip_local_port_range", "16384\t65535\n");
        host.put("proc/sys/net/ipv4/tcp_available_congestion_control", "reno cubic bbr\n");
        host.put("proc/sys/net/ipv4/tcp_allowed_congestion_control", "reno cubic bbr\n");
        host.put("proc/self/cgroup", "0::/system.slice/millrace.service\n");
        host.put("proc/self/status", "Name:\tdoctor\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-3\n");
        host.put("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
        host.limits("1048576", "1048576", "unlimited");
        host
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn limits(&self, files_soft: &str, files_hard: &str, locked: &str) {
        let header = "Limit                     Soft Limit           Hard Limit           Units     \n";
        let files = format!("Max open files            {files_soft:<20} {files_hard:<20} files     \n");
        let locked = format!("Max locked memory         {locked:<20} {locked:<20} bytes     \n");
        self.put("proc/self/limits", &format!("{header}{files}{locked}"));
    }

    fn examine(&self, config: &Config) -> Report {
        examine(&Host { root: self.root.path(), probe_io_uring: &self.io_uring }, Some(config))
    }

    fn find(&self, config: &Config, name: &str) -> Finding {
        let report = self.examine(config);
        report.findings.into_iter().find(|finding| finding.name == name).expect("the check exists")
    }
}

/// A config with one listener on `bind` and one endpoint, and no admin API.
fn config(bind: Bind) -> Config {
    let second = Duration::from_secs(1);
    let socket = SocketOptions {
        congestion: None,
        nodelay: true,
        notsent_lowat: None,
        keepalive: None,
        send_buffer: None,
        receive_buffer: None,
        fastopen: 0,
        defer_accept: None,
        backlog: 4096,
        shared: false,
        freebind: false,
        access: SocketAccess::listener(),
    };
    Config {
        node: Node { id: "n".into(), role: Role::Edge, region: String::new() },
        runtime: Runtime { workers: 0, driver: Driver::Auto },
        admin: Admin { listen: None, socket: None, access: SocketAccess::admin() },
        log: Log { level: LogLevel::Info, access: AccessLog::Off },
        limits: Limits {
            connections: 40_000,
            requests: None,
            worker_memory_bytes: 1 << 20,
            request_head_bytes: 32 << 10,
            request_header_fields: 128,
            request_head_timeout: second,
            request_body_timeout: second,
            keep_alive_timeout: second,
            send_timeout: second,
            drain_timeout: second,
        },
        listeners: vec![Listener {
            name: "http".into(),
            binds: vec![bind],
            protocol: ListenerProtocol::Http,
            half_close: HalfClose::Auto,
            socket: socket.clone(),
        }],
        routes: Vec::new(),
        clusters: vec![Cluster {
            name: "llm".into(),
            policy: Policy::RoundRobin,
            protocol: ClusterProtocol::Http1,
            endpoints: vec![endpoint(8000)],
            health: None,
            pool: Pool { idle_per_endpoint: 1, idle_timeout: second },
            socket,
            host_header: HostHeader::Keep,
            dns_refresh: second,
        }],
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint { address: Address::Ip(SocketAddr::from((Ipv4Addr::LOCALHOST, port))), weight: 1 }
}

/// Port 0: the kernel gives a free one, so the bind always works.
fn any_port() -> Bind {
    Bind::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

fn mend(finding: &Finding) -> &str {
    finding.mend.as_deref().expect("a finding that is not ok says what mends it")
}

#[test]
fn finds_nothing_on_a_good_host() {
    let report = FakeHost::good().examine(&config(any_port()));
    assert!(report.findings.iter().all(|finding| finding.state == State::Ok), "{}", report.render(false));
    assert_eq!(report.exit_code(), 0);
}

#[test]
fn looks_at_the_default_ports_without_a_config() {
    let host = FakeHost::good();
    let report = examine(&Host { root: host.root.path(), probe_io_uring: &host.io_uring }, None);
    let ports: Vec<_> = report.findings.iter().rev().take(2).map(|finding| finding.found.as_str()).collect();
    assert!(ports[1].starts_with("0.0.0.0:8080"), "{ports:?}");
    assert!(ports[0].starts_with("127.0.0.1:9091"), "{ports:?}");
}

#[test]
fn a_host_without_proc_and_sys_is_a_warning_for_each_check_and_no_failure() {
    let empty = FakeHost { root: tempfile::tempdir().unwrap(), io_uring: || Ok(()) };
    let report = empty.examine(&config(any_port()));
    let warned = report.findings.iter().filter(|finding| finding.state == State::Warn).count();
    assert_eq!(warned, 8, "{}", report.render(false));
    assert_eq!(report.exit_code(), 0);
}

#[test]
fn every_finding_that_is_not_ok_says_what_mends_it() {
    let empty =
        FakeHost { root: tempfile::tempdir().unwrap(), io_uring: || Err(io::ErrorKind::Unsupported.into()) };
    for finding in empty.examine(&config(any_port())).findings {
        assert_eq!(finding.mend.is_none(), finding.state == State::Ok, "{finding:?}");
    }
}

#[test]
fn old_kernels_are_named_with_what_they_lack() {
    let host = FakeHost::good();
    for release in ["5.10.0-30-amd64", "5.19.0", "6.0.19"] {
        host.put("proc/sys/kernel/osrelease", release);
        let finding = host.find(&config(any_port()), "kernel");
        assert_eq!(finding.state, State::Warn, "{release}");
        assert!(finding.found.contains("DEFER_TASKRUN"), "{finding:?}");
    }
    host.put("proc/sys/kernel/osrelease", "6.1.0");
    assert_eq!(host.find(&config(any_port()), "kernel").state, State::Ok);
}

#[test]
fn io_uring_that_is_disabled_warns_and_names_the_sysctl() {
    let mut host = FakeHost::good();
    host.io_uring = || Err(io::ErrorKind::PermissionDenied.into());
    host.put("proc/sys/kernel/io_uring_disabled", "2");
    let finding = host.find(&config(any_port()), "io_uring");
    assert_eq!(finding.state, State::Warn);
    assert_eq!(mend(&finding), "sysctl -w kernel.io_uring_disabled=0");
}

#[test]
fn io_uring_that_is_kept_for_a_group_names_the_group() {
    let mut host = FakeHost::good();
    host.io_uring = || Err(io::ErrorKind::PermissionDenied.into());
    host.put("proc/sys/kernel/io_uring_disabled", "1");
    assert!(mend(&host.find(&config(any_port()), "io_uring")).contains("kernel.io_uring_group="));
}

#[test]
fn io_uring_refused_by_a_kernel_that_allows_it_points_at_seccomp_or_memory() {
    let mut host = FakeHost::good();
    host.io_uring = || Err(io::ErrorKind::PermissionDenied.into());
    assert!(mend(&host.find(&config(any_port()), "io_uring")).contains("seccomp"));
    host.io_uring = || Err(io::ErrorKind::OutOfMemory.into());
    assert!(mend(&host.find(&config(any_port()), "io_uring")).contains("LimitMEMLOCK=infinity"));
}

#[test]
fn io_uring_that_the_config_insists_on_fails_and_that_it_renounces_does_not_matter() {
    let mut host = FakeHost::good();
    host.io_uring = || Err(io::ErrorKind::PermissionDenied.into());
    let mut config = config(any_port());
    config.runtime.driver = Driver::IoUring;
    let report = host.examine(&config);
    assert_eq!(report.exit_code(), 1, "{}", report.render(false));
    config.runtime.driver = Driver::Epoll;
    assert_eq!(host.find(&config, "io_uring").state, State::Ok);
}

#[test]
fn open_files_are_held_against_clients_with_what_is_kept_for_others() {
    let host = FakeHost::good();
    let config = config(any_port()); // 40,000 connections
    // Four workers with one address: 24 + 4 * 8 files of the process, 32 of the control thread.
    host.limits("1024", "45802", "unlimited");
    let finding = host.find(&config, "open files");
    assert_eq!((finding.state, finding.found.as_str()), (State::Ok, "45,802, 45,802 needed"));
    host.limits("1024", "45801", "unlimited");
    let finding = host.find(&config, "open files");
    assert_eq!(finding.state, State::Warn);
    let found = "45,801 are enough for 39,999 clients, limits.connections = 40,000 (45801 = 39999 clients + 5714 for \
                 origins + 32 for the admin API and probes + 56 of the process)";
    assert_eq!(finding.found, found);
    assert_eq!(mend(&finding), "LimitNOFILE=45802 in the unit, or limits.connections = 39999");
}

#[test]
fn open_files_that_the_process_raises_by_itself_are_no_fault() {
    let host = FakeHost::good();
    host.limits("1024", "unlimited", "unlimited");
    assert_eq!(host.find(&config(any_port()), "open files").state, State::Ok);
}

#[test]
fn locked_memory_matters_only_to_kernels_that_charge_rings_to_it() {
    let host = FakeHost::good();
    host.limits("1048576", "1048576", "65536");
    assert_eq!(host.find(&config(any_port()), "locked memory").state, State::Ok);
    host.put("proc/sys/kernel/osrelease", "5.10.0-30-amd64");
    assert_eq!(host.find(&config(any_port()), "locked memory").state, State::Warn);
    host.limits("1048576", "1048576", "8388608");
    assert_eq!(host.find(&config(any_port()), "locked memory").state, State::Ok);
}

#[test]
fn somaxconn_is_held_against_the_longest_backlog() {
    let host = FakeHost::good();
    let mut config = config(any_port());
    config.listeners[0].socket.backlog = 4097;
    let finding = host.find(&config, "accept queue");
    assert_eq!((finding.state, mend(&finding)), (State::Warn, "sysctl -w net.core.somaxconn=4097"));
}

#[test]
fn local_ports_count_once_for_each_endpoint_address() {
    let host = FakeHost::good();
    host.put("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"); // 28,232 ports
    let mut config = config(any_port()); // 40,000 connections
    assert_eq!(host.find(&config, "local ports").state, State::Warn);
    // The same address in another cluster shares its ports.
    config.clusters.push(config.clusters[0].clone());
    assert_eq!(host.find(&config, "local ports").state, State::Warn);
    config.clusters[0].endpoints.push(endpoint(8001));
    assert_eq!(host.find(&config, "local ports").state, State::Ok);
    // Unix sockets need none.
    config.clusters.truncate(1);
    config.clusters[0].endpoints = vec![Endpoint { address: Address::Unix("/run/o.sock".into()), weight: 1 }];
    assert_eq!(host.find(&config, "local ports").state, State::Ok);
}

#[test]
fn congestion_control_is_looked_for_only_where_the_config_names_it() {
    let host = FakeHost::good();
    host.put("proc/sys/net/ipv4/tcp_available_congestion_control", "reno cubic");
    let mut config = config(any_port());
    assert_eq!(host.find(&config, "congestion").state, State::Ok);
    config.clusters[0].socket.congestion = Some("bbr".into());
    let finding = host.find(&config, "congestion");
    assert_eq!((finding.state, mend(&finding)), (State::Warn, "modprobe tcp_bbr"));
}

#[test]
fn congestion_control_that_only_root_may_choose_warns_others() {
    let host = FakeHost::good();
    host.put("proc/sys/net/ipv4/tcp_allowed_congestion_control", "reno cubic");
    let mut config = config(any_port());
    config.listeners[0].socket.congestion = Some("bbr".into());
    let finding = host.find(&config, "congestion");
    assert_eq!(mend(&finding), "sysctl -w net.ipv4.tcp_allowed_congestion_control='reno cubic bbr'");
    // CAP_NET_ADMIN is bit 12.
    host.put("proc/self/status", "CapEff:\t0000000000001000\nCpus_allowed_list:\t0\n");
    assert_eq!(host.find(&config, "congestion").state, State::Ok);
}

#[test]
fn slow_clocks_name_a_fast_one_where_the_host_has_it() {
    let host = FakeHost::good();
    let folder = "sys/devices/system/clocksource/clocksource0";
    for current in ["hpet", "acpi_pm"] {
        host.put(&format!("{folder}/current_clocksource"), current);
        host.put(&format!("{folder}/available_clocksource"), "tsc hpet acpi_pm");
        let finding = host.find(&config(any_port()), "clock");
        assert_eq!(mend(&finding), format!("echo tsc >/{folder}/current_clocksource"));
        host.put(&format!("{folder}/available_clocksource"), "hpet acpi_pm");
        assert!(mend(&host.find(&config(any_port()), "clock")).contains("kernel parameter"));
    }
    host.put(&format!("{folder}/current_clocksource"), "kvm-clock");
    assert_eq!(host.find(&config(any_port()), "clock").state, State::Ok);
}

#[test]
fn more_workers_than_processors_warn() {
    let host = FakeHost::good();
    let mut config = config(any_port());
    config.runtime.workers = 5;
    assert!(mend(&host.find(&config, "processors")).starts_with("runtime.workers = 0"));
    config.runtime.workers = 4;
    assert_eq!(host.find(&config, "processors").state, State::Ok);
}

#[test]
fn a_quota_of_any_group_above_counts() {
    let host = FakeHost::good();
    host.put("sys/fs/cgroup/system.slice/millrace.service/cpu.max", "max 100000");
    assert_eq!(host.find(&config(any_port()), "processors").state, State::Ok);
    host.put("sys/fs/cgroup/system.slice/cpu.max", "150000 100000");
    let finding = host.find(&config(any_port()), "processors");
    assert_eq!(finding.state, State::Warn);
    assert!(finding.found.contains("pays for 1.5"), "{finding:?}");
    assert!(mend(&finding).starts_with("runtime.workers = 1"), "{finding:?}");
}

#[test]
fn a_quota_of_the_old_hierarchy_counts() {
    let host = FakeHost::good();
    host.put("proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/docker/x\n0::/\n");
    host.put("sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000");
    host.put("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "-1");
    assert_eq!(host.find(&config(any_port()), "processors").state, State::Ok);
    host.put("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "200000");
    assert_eq!(host.find(&config(any_port()), "processors").state, State::Warn);
}

#[test]
fn a_port_that_another_program_holds_fails_and_names_it() {
    let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = held.local_addr().unwrap();
    let mut config = config(Bind::Tcp(address));
    config.admin.listen = Some(address);
    let report = FakeHost::good().examine(&config);
    assert_eq!(report.exit_code(), 1);
    for name in ["listener http", "admin"] {
        let finding = report.findings.iter().find(|finding| finding.name == name).unwrap();
        assert_eq!(finding.state, State::Fail);
        assert!(finding.found.contains(&format!("(pid {})", std::process::id())), "{finding:?}");
    }
    drop(held);
    assert_eq!(FakeHost::good().examine(&config).exit_code(), 0);
}

#[test]
fn an_address_of_another_host_fails() {
    // 192.0.2.0/24 is for documentation (RFC 5737): no interface has it.
    let finding = FakeHost::good().find(&config(Bind::Tcp("192.0.2.1:80".parse().unwrap())), "listener http");
    assert_eq!(finding.state, State::Fail);
    assert!(mend(&finding).starts_with("ip address add 192.0.2.1"), "{finding:?}");
}

#[test]
fn a_unix_socket_is_taken_only_while_someone_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("http.sock");
    let config = config(Bind::Unix(path.clone()));
    assert_eq!(FakeHost::good().find(&config, "listener http").state, State::Ok);
    let held = UnixListener::bind(&path).unwrap();
    let finding = FakeHost::good().find(&config, "listener http");
    assert_eq!(finding.state, State::Fail);
    assert!(finding.found.contains(&format!("(pid {})", std::process::id())), "{finding:?}");
    drop(held); // the file stays behind, as after a crash
    assert_eq!(FakeHost::good().find(&config, "listener http").state, State::Ok);
}

#[test]
fn a_unix_socket_in_a_missing_folder_fails() {
    let mut config = config(any_port());
    config.admin.socket = Some("/nonexistent/millrace/dataplane.sock".into());
    let finding = FakeHost::good().find(&config, "admin socket");
    assert_eq!(finding.state, State::Fail);
    assert!(mend(&finding).contains("RuntimeDirectory="), "{finding:?}");
}

#[test]
fn the_text_shows_state_finding_and_mending_and_sums_up() {
    let report = Report {
        findings: vec![
            Finding::ok("kernel", "6.1"),
            Finding::warn("accept queue", "too short", "sysctl -w x=1"),
            Finding::fail("admin", "taken", "stop it"),
        ],
    };
    let text = "\
ok    kernel        6.1
warn  accept queue  too short
                    to mend: sysctl -w x=1
FAIL  admin         taken
                    to mend: stop it
1 ok, 1 to improve, 1 failed
";
    assert_eq!(report.render(false), text);
    assert_eq!(report.exit_code(), 1);
    assert!(report.render(true).contains("\x1b[31mFAIL\x1b[0m  admin"));
}

#[test]
fn small_texts_of_the_kernel_are_taken_apart() {
    assert_eq!(text::kernel_version("6.18.44-fc-v657"), Some((6, 18)));
    assert_eq!(text::kernel_version("6.1+"), Some((6, 1)));
    assert_eq!(text::kernel_version("linux"), None);
    assert_eq!(text::processors("0-3,8,10-11"), Some(7));
    assert_eq!(text::processors("3-1"), None);
    assert_eq!(
        text::limit("Max open files   unlimited  4096  files", "Max open files"),
        Some((u64::MAX, 4096))
    );
    assert_eq!(text::limit("Max open files", "Max open files"), None);
    assert_eq!(text::grouped(1_048_576), "1,048,576");
    assert_eq!(text::grouped(999), "999");
    assert_eq!(text::read(Path::new("/nonexistent"), "x"), None);
}
