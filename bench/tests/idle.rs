//! `millrace-bench idle` with a few hundred connections: it opens what it says, finds what was lost, and its account of
//! memory and CPU has all its parts. Whether a proxy is frugal is not here.

#![cfg(feature = "measure")]
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::Duration;

use bench::origin::{Origin, OriginOptions};
use bench::record::{Failure, IdleRecord};

fn run(line: &str) -> Output {
    let (line, proxy) = line.split_once(" -- ").unwrap_or((line, ""));
    let mut idle = Command::new(env!("CARGO_BIN_EXE_millrace-bench"));
    idle.arg("idle").args(line.split(' ')).args(["--json", "-"]);
    if !line.contains("--lag-max") {
        idle.args(["--lag-max", "1h"]);
    }
    if !proxy.is_empty() {
        idle.args(["--proxy-command", proxy]);
    }
    idle.output().unwrap()
}

fn idle(line: &str) -> (IdleRecord, i32) {
    let output = run(line);
    let record = serde_json::from_slice(&output.stdout);
    let record =
        record.unwrap_or_else(|error| panic!("{line}: {error}: {}", String::from_utf8_lossy(&output.stderr)));
    (record, output.status.code().unwrap())
}

#[test]
fn connections_are_opened_held_and_woken() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    let line = format!(
        "--target {} --connections 200 --streaming 5 --hold 500ms --sources 3 --pid {}",
        origin.url(""),
        std::process::id()
    );
    let (record, _) = idle(&line);
    assert!(!record.failed, "{record:?}");
    assert_eq!((record.idle_connections, record.streams), (190, 10));
    let stats = origin.wait_for(Duration::from_secs(5), |stats| stats.connections.open == 0).unwrap();
    assert_eq!(stats.connections.accepted, 200);
    let (wake, sse) = (record.wake_us.unwrap(), record.sse.clone().unwrap());
    assert_eq!(stats.requests.by_path["/"], 190 + wake.count, "{stats:?}");
    assert!(sse.events >= 10 * 20 && wake.count > 10, "{sse:?} {wake:?}");
    assert!(record.proxies[0].open_files > 190, "{record:?}");
    assert!(record.streaming_us_per_event.unwrap() > 0.0 && record.proxies[0].pss_bytes[0] > 0);
}

#[test]
fn holders_that_cannot_keep_up_make_the_run_invalid_and_not_failed() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    // Nobody turns to a request in the very moment of its time.
    let line = format!(
        "--target {} --connections 50 --streaming 10 --hold 300ms --lag-max 0s --pid {}",
        origin.url(""),
        std::process::id()
    );
    let (record, code) = idle(&line);
    assert_eq!((record.failed, record.valid, code), (false, false, 1), "{record:?}");
    let (of_streams, of_wakes): (Vec<&String>, Vec<&String>) =
        record.invalid_because.iter().partition(|reason| reason.starts_with("the streams: "));
    assert!(!of_streams.is_empty() && !of_wakes.is_empty(), "{record:?}");
}

#[test]
fn a_proxy_that_closes_idle_connections_fails_the_run() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    origin.inject("close_after=100ms".parse().unwrap());
    let line = format!(
        "--target {} --connections 50 --streaming 0 --hold 300ms --pid {}",
        origin.url(""),
        std::process::id()
    );
    let (record, code) = idle(&line);
    assert_eq!((record.failed, code), (true, 1));
    let wakes = record.wake_us.map_or(0, |wake| wake.count);
    assert!(record.closed_while_idle >= 50 && record.closed_while_idle <= 50 + wakes, "{record:?}");
}

#[test]
fn wrong_answers_fail_the_run() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    origin.inject("status=502&path=/".parse().unwrap());
    let line =
        format!("--target {} --connections 20 --hold 100ms --pid {}", origin.url(""), std::process::id());
    let (record, code) = idle(&line);
    assert_eq!((record.failed, code), (true, 1));
    assert!(record.failures[&Failure::Status] >= 20, "{record:?}");
}

#[test]
fn proxies_are_started_watched_and_ended() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let program = env!("CARGO_BIN_EXE_millrace-bench");
    // The origin stands in for a proxy: with two workers it lets others share its port.
    let line = format!(
        "--target http://{free} --connections 40 --streaming 10 --hold 200ms --proxy-processes 2 -- {program} origin --workers 2 --listen {free}"
    );
    let (record, _) = idle(&line);
    assert!(!record.failed, "{record:?}");
    let files: u64 = record.proxies.iter().map(|proxy| proxy.open_files).sum();
    assert!(record.proxies.len() == 2 && files > 36, "{record:?}");
    assert!(TcpListener::bind(free).is_ok(), "the proxy was not ended");
}

#[test]
fn arguments_that_cannot_be_used_are_refused() {
    let own = std::process::id();
    for (line, text) in [
        ("--target http://127.0.0.1:1".to_owned(), "--pid"),
        ("--target http://127.0.0.1:1 --pid 4194305".to_owned(), "no process"),
        (format!("--target http://127.0.0.1:1 --pid {own} --connections 0"), "--connections"),
        (format!("--target http://127.0.0.1:1 --pid {own} --streaming 100"), "left to be idle"),
        (format!("--target http://127.0.0.1:1 --pid {own} --hold 0s"), "--hold"),
        (format!("--target http://8.8.8.8:80 --sources 2 --pid {own}"), "--sources 1"),
    ] {
        let output = run(&line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(text), "{line}: {stderr}");
    }
}
