//! What never answers: files that are no files, pipes that nobody reads, admin clients that stop in the middle. Signals
//! and `/readyz` work meanwhile, and the process ends in time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;
use story::config::Config;
use story::{DRIVERS, PATIENCE, PROGRAM, Proxy, origin, run_to_end};

fn fifo(path: PathBuf) -> PathBuf {
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    path
}

/// Opens a FIFO for both, so that a writer finds a reader, who never reads.
fn hold(fifo: &Path) -> File {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(fifo).unwrap()
}

/// A FIFO that is full, for as long as the file is held.
fn full_fifo(dir: &Path) -> (PathBuf, File) {
    let path = fifo(dir.join("full"));
    let mut held = hold(&path);
    let full = loop {
        if let Err(error) = held.write(&[b'.'; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    (path, held)
}

/// The program with one of its outputs, by the shell's number, into a pipe.
fn into_pipe(output: u8, pipe: &Path) -> impl Fn(&Path) -> Command {
    move |program| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("exec \"$0\" \"$@\" {output}>\"$PIPE\""))
            .arg(program)
            .env("PIPE", pipe);
        command
    }
}

/// The proxy is ready, and serves.
fn assert_serves(proxy: &Proxy) {
    assert_eq!(proxy.admin("GET", "/readyz", "").0, 200);
    assert_eq!(proxy.connect().get("/").response().0.status(), 200);
}

#[test]
fn a_fifo_as_config_at_a_reload_is_refused_and_signals_and_readiness_go_on() {
    let origin = origin();
    let mut proxy = Proxy::before(&origin);
    let path = proxy.dir().join("edge.toml");
    std::fs::remove_file(&path).unwrap();
    fifo(path.clone());
    proxy.signal(Signal::HUP);
    proxy.eventually("the reload is refused", |proxy| proxy.output().contains("it is a FIFO"));
    assert_serves(&proxy);
    assert_eq!(proxy.metric("millrace_config_refusals_total", &[]), 1);
    std::fs::remove_file(&path).unwrap();
    proxy.write_config(&Config::to(origin.addr()));
    proxy.signal(Signal::HUP);
    proxy.eventually("the next reload is good", |proxy| proxy.status()["generation"] == 2);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn what_is_no_config_file_is_refused_at_the_start_with_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long.toml");
    std::fs::write(&long, vec![b'#'; 5 * 1024 * 1024]).unwrap();
    let cases = [
        (fifo(dir.path().join("fifo")), "it is a FIFO: a config is a regular file"),
        (dir.path().to_owned(), "it is a directory"),
        (PathBuf::from("/dev/zero"), "it is a device"),
        (long, "it is longer than 4194304 bytes"),
    ];
    for (path, reason) in &cases {
        for subcommand in ["run", "check", "doctor"] {
            let ended = run_to_end(&[subcommand, "-c", path.to_str().unwrap()]);
            assert_eq!(ended.code, Some(2), "{subcommand}: {}", ended.stderr);
            assert!(ended.stderr.contains(reason), "{subcommand}: {}", ended.stderr);
        }
    }
}

#[test]
fn an_access_log_into_a_fifo_that_nobody_reads_is_refused_and_nothing_waits_for_it() {
    let origin = origin();
    let mut proxy = Proxy::before(&origin);
    let path = fifo(proxy.dir().join("access.fifo"));
    let mut config = Config::to(origin.addr());
    config.log = format!("access = {path:?}\n");
    let (status, body) = proxy.put_config(&config);
    assert_eq!(status, 422, "{body}");
    assert_eq!(body["errors"][0]["path"], "log.access");
    assert!(body["errors"][0]["message"].as_str().unwrap().contains("nobody reads"), "{body}");
    proxy.write_config(&config);
    proxy.signal(Signal::HUP);
    proxy.eventually("the reload is refused", |proxy| {
        proxy.metric("millrace_config_refusals_total", &[]) == 2
    });
    assert_serves(&proxy);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn a_pipe_for_the_access_log_that_is_full_holds_up_neither_requests_nor_a_reload_nor_the_end() {
    let origin = origin();
    let dir = tempfile::tempdir().unwrap();
    let (path, _held) = full_fifo(dir.path());
    let mut to_file = Config::to(origin.addr());
    to_file.log = format!("access = {path:?}\n");
    let mut to_stdout = Config::to(origin.addr());
    to_stdout.log = "access = \"stdout\"\n".to_owned();
    let proxies = [Proxy::start(&to_file), Proxy::start_as(&to_stdout, into_pipe(1, &path))];
    for mut proxy in proxies {
        assert_serves(&proxy);
        proxy
            .eventually("it is told of", |proxy| proxy.output().contains("the access log cannot be written"));
        proxy.signal(Signal::HUP);
        proxy.eventually("a reload is done", |proxy| proxy.status()["generation"] == 2);
        assert_serves(&proxy);
        // Another place is taken at once.
        let access = proxy.dir().join("access.log");
        let mut elsewhere = Config::to(origin.addr());
        elsewhere.log = format!("access = {access:?}\n");
        assert_eq!(proxy.put_config(&elsewhere).0, 200);
        assert_serves(&proxy);
        proxy.eventually("records go there", |_| {
            std::fs::read_to_string(&access).unwrap().lines().count() >= 1
        });
        assert!(proxy.metric("millrace_access_log_dropped_total", &[]) > 0);
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait().code(), Some(0));
    }
}

#[test]
fn the_end_does_not_wait_for_a_pipe_that_takes_no_access_log() {
    let origin = origin();
    let dir = tempfile::tempdir().unwrap();
    let (path, _held) = full_fifo(dir.path());
    let mut config = Config::to(origin.addr());
    config.log = "access = \"stdout\"\n".to_owned();
    for signal in [Signal::TERM, Signal::INT] {
        let mut proxy = Proxy::start_as(&config, into_pipe(1, &path));
        assert_serves(&proxy);
        proxy.signal(signal);
        assert_eq!(proxy.wait().code(), Some(0));
    }
}

#[test]
fn a_standard_error_that_nobody_reads_costs_lines_of_the_log_and_nothing_else() {
    for driver in DRIVERS {
        let origin = origin();
        let dir = tempfile::tempdir().unwrap();
        let (path, _held) = full_fifo(dir.path());
        let config = Config::to(origin.addr()).driver(driver);
        let mut proxy = Proxy::start_as(&config, into_pipe(2, &path));
        assert_serves(&proxy);
        // Each refused reload is a line, until more wait than are kept.
        let nonsense = Config::to(origin.addr()).route("nonsense = 1");
        while proxy.metric("millrace_log_dropped_total", &[]) == 0 {
            (0..100).for_each(|_| assert_eq!(proxy.put_config(&nonsense).0, 422));
        }
        assert_serves(&proxy);
        proxy.signal(Signal::HUP);
        proxy.eventually("a reload is done", |proxy| proxy.status()["generation"] == 2);
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait().code(), Some(0), "{driver}");
    }
}

#[test]
fn a_start_that_fails_ends_although_nobody_reads_why() {
    let dir = tempfile::tempdir().unwrap();
    let (_, held) = full_fifo(dir.path());
    let config = dir.path().join("edge.toml");
    // The first cannot be read, the second not be served.
    std::fs::write(
        &config,
        Config::to("127.0.0.1:1".parse().unwrap()).listener("nonsense = 1").render(dir.path()),
    )
    .unwrap();
    for path in [&dir.path().join("missing.toml"), &config] {
        let stderr = Stdio::from(OpenOptions::new().write(true).open(dir.path().join("full")).unwrap());
        let mut child =
            Command::new(PROGRAM).args(["run", "-c", path.to_str().unwrap()]).stderr(stderr).spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() >= until {
                child.kill().unwrap();
            }
            std::thread::yield_now();
        };
        assert_eq!(status.code(), Some(2));
    }
    drop(held);
}

#[test]
fn admin_clients_that_stop_in_the_middle_hold_up_nobody_and_not_the_end() {
    let origin = origin();
    let mut proxy = Proxy::before(&origin);
    let halves: Vec<_> = [
        "",
        "GET /readyz HTTP/1.1\r\nHos",
        "PUT /config HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
    ]
    .iter()
    .cycle()
    .take(30)
    .map(|half| {
        let mut client = std::os::unix::net::UnixStream::connect(proxy.admin_socket()).unwrap();
        client.write_all(half.as_bytes()).unwrap();
        client
    })
    .collect();
    assert_serves(&proxy);
    assert_eq!(proxy.put_config(&Config::to(origin.addr())).0, 200);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    drop(halves);
}
