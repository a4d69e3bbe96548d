//! Every scenario of the load generator against the mock origin: it sends what it should, counts what it got, and finds
//! each kind of wrong answer. Whether it keeps its times under load is not here: that needs a quiet machine.

#![cfg(feature = "measure")]
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bench::origin::{Origin, OriginOptions};
use bench::record::{Failure, LoadRecord, Mode};

/// Times are not asserted here, and the machine may be busy.
const PATIENT: &str = "--lag-max 1h";

fn origin() -> Origin {
    Origin::start(OriginOptions::default()).unwrap()
}

fn run(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millrace-bench")).arg("load").args(line.split(' ')).output().unwrap()
}

/// The record of `load <line>`, and its exit code.
fn load(line: &str) -> (LoadRecord, i32) {
    let output = run(&format!("{line} {PATIENT} --json -"));
    let record = serde_json::from_slice(&output.stdout);
    let record = record.unwrap_or_else(|error| {
        panic!(
            "{line}: {error}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (record, output.status.code().unwrap())
}

fn failures(record: &LoadRecord) -> Vec<(Failure, u64)> {
    record.failures.iter().map(|(kind, count)| (*kind, *count)).collect()
}

#[test]
fn an_open_loop_sends_what_its_schedule_says() {
    let origin = origin();
    let line = format!("get --target {} --rate 500 --duration 600ms --warmup 200ms", origin.url(""));
    let (record, _) = load(&line);
    assert!(!record.failed, "{record:?}");
    assert_eq!((record.asked.mode, record.requests.intended), (Mode::Open, 300));
    assert_eq!((record.requests.sent, record.requests.completed), (300, 300));
    assert_eq!(record.statuses.get(&200), Some(&300));
    assert_eq!(record.bytes.checked, 400 * 6, "the warm-up is checked too");
    let (latency, service) = (record.latency_us.unwrap(), record.service_us.unwrap());
    assert!(latency.count == 300 && latency.mean >= service.mean, "{latency:?} {service:?}");
    assert_eq!(origin.stats().requests.total, 400);
}

#[test]
fn a_person_reads_what_came_of_a_run_without_asking_for_a_record() {
    let origin = origin();
    let said = |line: &str| String::from_utf8(run(&format!("{line} {PATIENT}")).stdout).unwrap();
    let own = std::process::id();
    let line = format!("sse --target {} --streams 5 --duration 500ms --watch-pid {own}", origin.url(""));
    let text = said(&line);
    for part in [
        "5 connections",
        "requests   ",
        "p99.9",
        "\nlatency ",
        "\nttft ",
        "\ndelay ",
        "events   ",
        "generator ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(text.contains(&format!("({own}): ")) && text.contains("µs of watched CPU per event"), "{text}");
    assert!(!text.contains("FAILED"), "{text}");
    origin.inject("status=500".parse().unwrap());
    let wrong = said(&format!("get --target {} --rate 50 --duration 300ms", origin.url("")));
    assert!(wrong.contains("\nFAILED     ") && wrong.contains(" × Status"), "{wrong}");
}

#[test]
fn processes_share_the_rate_and_the_connections() {
    let origin = origin();
    let line = format!(
        "get --target {} --rate 300 --arrivals poisson --seed 3 --duration 1s --warmup 0s --processes 3 --connections 7",
        origin.url("")
    );
    let (record, _) = load(&line);
    assert!(!record.failed, "{record:?}");
    // Six standard deviations of a Poisson count.
    let intended = record.requests.intended;
    assert!((196..=404).contains(&intended), "{intended}");
    assert_eq!((record.requests.completed, record.opened.connections), (intended, 7));
    assert_eq!(record.latency_us.unwrap().count, intended);
}

#[test]
fn a_closed_loop_keeps_every_connection_busy_and_watches_the_server() {
    let origin = origin();
    let line = format!(
        "post --target {} --closed --connections 3 --duration 300ms --warmup 0s --watch-pid {}",
        origin.url(""),
        std::process::id()
    );
    let (record, _) = load(&line);
    assert!(!record.failed && record.requests.completed > 3, "{record:?}");
    assert_eq!((record.asked.mode, record.asked.rate), (Mode::Closed, None));
    assert_eq!(record.requests.completed, record.requests.intended);
    assert!(record.watched_us_per_request().unwrap() > 0.0);
    let each = record.bytes.checked / record.requests.completed;
    assert!((900..1200).contains(&each), "an answer of {each} bytes");
}

#[test]
fn streams_are_counted_event_by_event() {
    let origin = origin();
    let line = format!(
        "sse --target {} --streams 20 --events-per-second 50 --duration 400ms --ramp 100ms",
        origin.url("")
    );
    let (record, _) = load(&line);
    assert!(!record.failed, "{record:?}");
    let sse = record.sse.unwrap();
    assert_eq!((record.requests.completed, sse.events), (20, 20 * 20));
    assert_eq!((sse.ttft_us.unwrap().count, sse.gap_us.unwrap().count), (20, 20 * 19));
    assert_eq!((sse.delay_us.unwrap().count, sse.lateness_us.unwrap().count), (400, 400));
    assert!(record.duration_s > 0.3, "{}", record.duration_s);
}

#[test]
fn events_that_the_origin_holds_back_are_found_merged() {
    let origin = origin();
    let line = format!(
        "sse --target {} --streams 4 --events-per-second 20 --events 8 --ramp 10ms --origin-holds 2",
        origin.url("")
    );
    let (record, _) = load(&line);
    let sse = record.sse.unwrap();
    assert_eq!(sse.events, 32);
    // All sixteen pairs; a generator that was held up itself finds more in a read and must doubt some.
    assert!(sse.same_read >= 16 && sse.merged >= 8, "{sse:?}");
}

#[test]
fn bodies_go_both_ways_with_every_byte_checked() {
    let origin = origin();
    for way in ["--size 1MiB", "--size 3MiB --chunked", "--size 1MiB --upload", "--size 0"] {
        let line = format!(
            "body --target {} --closed --connections 2 --duration 200ms --warmup 0s {way}",
            origin.url("")
        );
        let (record, _) = load(&line);
        assert!(!record.failed && record.requests.completed >= 2, "{way}: {record:?}");
        let moved = if way.contains("upload") { record.bytes.sent } else { record.bytes.checked };
        let size = match way {
            "--size 3MiB --chunked" => 3 << 20,
            "--size 0" => 0,
            _ => 1 << 20,
        };
        assert!(moved >= record.requests.completed * size, "{way}: {record:?}");
    }
}

#[test]
fn churn_opens_a_connection_for_each_request() {
    let origin = origin();
    let line =
        format!("churn --target {} --rate 100 --duration 500ms --warmup 0s --sources 3", origin.url(""));
    let (record, _) = load(&line);
    assert!(!record.failed, "{record:?}");
    assert_eq!((record.requests.completed, record.opened.connections), (50, 50));
    assert_eq!(record.opened.connect_us.unwrap().count, 50);
    assert_eq!(origin.stats().connections.accepted, 50);
}

#[test]
fn tcp_messages_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let port_file = folder.path().join("port");
    let mut echo = Command::new(env!("CARGO_BIN_EXE_millrace-bench"));
    echo.args(["echo", "--listen", "127.0.0.1:0", "--port-file"]).arg(&port_file).stdout(Stdio::null());
    let mut echo = echo.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !port_file.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let port = std::fs::read_to_string(&port_file).unwrap();
    let address = format!("127.0.0.1:{}", port.trim());
    let line = format!(
        "tcp --target tcp://{address} --rate 200 --size 10KiB --duration 300ms --warmup 0s --connections 4"
    );
    let (record, _) = load(&line);
    assert!(!record.failed, "{record:?}");
    assert_eq!((record.requests.completed, record.bytes.checked), (60, 60 * 10_240));
    echo.kill().unwrap();
    echo.wait().unwrap();
}

#[test]
fn each_fault_of_the_origin_fails_the_run_under_its_own_name() {
    for (fault, kind) in [
        ("status=500", Failure::Status),
        ("cut_at=2", Failure::Closed),
        ("rst_at=2", Failure::Reset),
        ("bad_framing=chunk_size", Failure::Malformed),
        ("bad_framing=body_short", Failure::Closed),
        ("stall_before=5s", Failure::Timeout),
    ] {
        let origin = origin();
        origin.inject(fault.parse().unwrap());
        // Long enough that no other fault passes for this one on a busy machine.
        let timeout = if kind == Failure::Timeout { "200ms" } else { "10s" };
        let line = format!(
            "get --target {} --rate 20 --duration 200ms --warmup 0s --timeout {timeout}",
            origin.url("")
        );
        let (record, code) = load(&line);
        assert_eq!((failures(&record), code), (vec![(kind, 4)], 1), "{fault}: {record:?}");
        assert!(record.failed && !record.failure_examples.is_empty());
    }
}

#[test]
fn a_server_that_takes_no_connection_fails_every_request() {
    let origin = origin();
    let line = format!("churn --target {} --rate 20 --duration 200ms --warmup 0s", origin.url(""));
    origin.inject("refuse=9s".parse().unwrap());
    let (record, code) = load(&line);
    assert_eq!((failures(&record), code), (vec![(Failure::Connect, 4)], 1), "{record:?}");
    // Closed with the request unread or before it came: a reset or an end.
    origin.inject("accept_close=9s".parse().unwrap());
    let (record, code) = load(&line);
    let (resets, ends) = (record.failures.get(&Failure::Reset), record.failures.get(&Failure::Closed));
    let found = resets.unwrap_or(&0) + ends.unwrap_or(&0);
    assert_eq!((found, record.requests.failed, code), (4, 4, 1), "{record:?}");
}

#[test]
fn wrong_content_fails_the_run() {
    let origin = origin();
    let pace = "--rate 20 --duration 200ms --warmup 0s";
    for (scenario, kind) in [
        (format!("get --target {} --body goodbye {pace}", origin.url("")), Failure::Content),
        (format!("get --target {} {pace}", origin.url("/health")), Failure::Content),
        (format!("body --target {} --size 1000 {pace}", origin.url("/bytes/999")), Failure::Content),
        (format!("post --target {} {pace}", origin.url("/echo")), Failure::Content),
        (format!("get --target {} {pace}", origin.url("/nowhere")), Failure::Status),
    ] {
        let (record, code) = load(&scenario);
        assert_eq!((failures(&record), code), (vec![(kind, 4)], 1), "{scenario}: {record:?}");
    }
}

/// A server that gives each connection the same answer to whatever it first says, right or wrong.
fn answering(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut request) = (stream.unwrap(), [0; 4096]);
            // A connection that never says anything is closed by the other end.
            if stream.read(&mut request).is_ok_and(|count| count > 0) {
                let _ = stream.write_all(&answer);
            }
        }
    });
    address.to_string()
}

#[test]
fn a_single_wrong_byte_or_event_fails_the_run() {
    let head = "HTTP/1.1 200 OK\r\n";
    let event = |seq: u64| format!("id: {seq}\ndata: {{\"seq\":{seq},\"ns\":1,\"pad\":\"{:.>72}\"}}\n\n", "");
    let size = event(0).len();
    let stream = |events: &[String]| format!("{head}\r\n{}", events.concat()).into_bytes();
    let body = [format!("{head}Content-Length: 4\r\n\r\n").as_bytes(), &[0, 1, 2, 4]].concat();
    let spoilt = event(1).replacen("....", "..x.", 1);
    let once = "--connections 1 --rate 5 --duration 100ms --warmup 0s";
    let sse = format!("--streams 1 --events 2 --event-size {size} --ramp 1ms");
    for (scenario, answer, flags, kind) in [
        ("body --target http", body, format!("--size 4 {once}"), Failure::Content),
        ("tcp --target tcp", vec![0, 1, 3, 3], format!("--size 4 {once}"), Failure::Content),
        ("tcp --target tcp", vec![0, 1, 2, 3, 4], format!("--size 4 {once}"), Failure::Content),
        ("sse --target http", stream(&[event(0), event(2)]), sse.clone(), Failure::Order),
        ("sse --target http", stream(&[event(0), event(0)]), sse.clone(), Failure::Order),
        ("sse --target http", stream(&[event(0), spoilt]), sse.clone(), Failure::Content),
        ("sse --target http", stream(&[event(0)]), sse.clone(), Failure::Content),
        ("sse --target http", stream(&[event(0), event(1), event(2)]), sse, Failure::Content),
    ] {
        let line = format!("{scenario}://{} {flags}", answering(answer));
        let (record, code) = load(&line);
        assert_eq!((failures(&record), code), (vec![(kind, 1)], 1), "{line}: {record:?}");
    }
}

#[test]
fn broken_streams_fail_the_run() {
    for (fault, kind) in [
        ("error_event=3", Failure::Content),
        ("cut_at=300", Failure::Closed),
        ("empty_stream=1", Failure::Content),
        ("stall_at=2", Failure::Timeout),
    ] {
        let origin = origin();
        origin.inject(fault.parse().unwrap());
        let timeout = if kind == Failure::Timeout { "200ms" } else { "10s" };
        let line =
            format!("sse --target {} --streams 3 --events 5 --ramp 10ms --timeout {timeout}", origin.url(""));
        let (record, code) = load(&line);
        assert_eq!((failures(&record), code), (vec![(kind, 3)], 1), "{fault}: {record:?}");
    }
}

#[test]
fn a_failure_in_the_warm_up_fails_the_run() {
    let origin = origin();
    let line =
        format!("get --target {} --body other --rate 20 --duration 1ms --warmup 400ms", origin.url(""));
    let (record, code) = load(&line);
    assert_eq!((record.requests.failed_in_warmup, code), (8, 1), "{record:?}");
}

#[test]
fn rejections_under_overload_are_counted_apart() {
    let origin = origin();
    origin.inject("status=503&rate=0.5".parse().unwrap());
    let line = format!("get --target {} --rate 100 --duration 400ms --warmup 0s --overload", origin.url(""));
    let (record, _) = load(&line);
    assert!(!record.failed, "{record:?}");
    let requests = record.requests;
    assert_eq!((requests.completed + requests.rejected, requests.rejected_without_retry_after), (40, 0));
    assert_eq!(requests.rejected, 20);
    assert_eq!(record.rejected_us.unwrap().count, 20);
}

#[test]
fn requests_without_a_free_connection_keep_their_intended_time() {
    let origin = origin();
    origin.inject("stall_before=200ms".parse().unwrap());
    // Twenty requests a second through one connection that takes five.
    let line = format!(
        "get --target {} --rate 20 --connections 1 --duration 1s --warmup 0s --timeout 1500ms",
        origin.url("")
    );
    let (record, code) = load(&line);
    let requests = record.requests;
    assert!(requests.unsent > 0 && requests.sent + requests.unsent == 20, "{record:?}");
    assert_eq!((failures(&record), code), (vec![(Failure::Unsent, requests.unsent)], 1));
    let (latency, service) = (record.latency_us.unwrap(), record.service_us.unwrap());
    assert!(latency.max > service.max + 200_000.0, "{latency:?} {service:?}");
    assert!(latency.p50 > service.p50 + 100_000.0, "{latency:?} {service:?}");
    assert_eq!(latency.count, 20, "what was never sent counts with the time that it waited");
}

#[test]
fn a_saturated_generator_makes_the_run_invalid() {
    let origin = origin();
    // Thirty million arrivals a second: merely counting them takes longer than the run.
    let line = format!(
        "get --target {} --rate 30000000 --duration 100ms --warmup 0s --timeout 50ms --overload --json -",
        origin.url("")
    );
    let output = run(&line);
    let record: LoadRecord = serde_json::from_slice(&output.stdout).unwrap();
    assert!(record.generator.saturated && !record.valid, "{record:?}");
    assert!(record.invalid_because[0].contains("--processes"), "{record:?}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn arguments_that_cannot_be_used_are_told_from_runs_that_fail() {
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (line, code, text) in [
        ("get --target http://127.0.0.1:1".to_owned(), 2, "--rate"),
        ("get --target 127.0.0.1:1 --closed".to_owned(), 2, "http://HOST:PORT"),
        ("tcp --target http://127.0.0.1:1 --closed".to_owned(), 2, "tcp://HOST:PORT"),
        ("get --target http://127.0.0.1:1 --rate 0".to_owned(), 2, "--rate"),
        ("get --target http://127.0.0.1:1 --rate 1 --header nonsense".to_owned(), 2, "Name: value"),
        ("get --target http://127.0.0.1:1 --closed --connections 20000000".to_owned(), 2, "--processes"),
        (
            "get --target http://127.0.0.1:1 --closed --connections 1 --processes 2".to_owned(),
            2,
            "each process",
        ),
        ("body --target http://127.0.0.1:1 --closed --size 2GiB".to_owned(), 2, "--size"),
        ("sse --target http://127.0.0.1:1 --events-per-second 0".to_owned(), 2, "--events"),
        ("get --target http://127.0.0.1:1 --closed --watch-pid 4194305".to_owned(), 2, "no such process"),
        (format!("get --target http://{refused} --closed --duration 100ms"), 1, "cannot connect"),
    ] {
        let output = run(&line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && stderr.contains(text), "{line}: {stderr}");
    }
}
