//! A client that goes away is noticed, whatever the origin is doing for it, and at once.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod client;

use std::time::{Duration, Instant};

use bench::origin::{Abort, Origin, Phase, monotonic_ns};
use client::{Client, Leave, PATIENCE, start};

/// From the FIN or RST until the origin has noticed.
const AT_ONCE_NS: u64 = 50_000_000;

/// Leaves once the origin is at work on `request`, and gives what the origin wrote down about it.
fn abort(origin: &Origin, request: &str, ready: impl Fn(&mut Client), how: Leave) -> Abort {
    origin.reset();
    let mut client = Client::connect(origin.addr());
    client.send(request);
    origin.wait_for(PATIENCE, |stats| stats.requests.in_flight == 1).unwrap();
    ready(&mut client);
    assert_eq!(origin.stats().aborts.total, 0, "an abort before the client left");
    let left = monotonic_ns();
    let _open = client.leave(how);
    let stats =
        origin.wait_for(PATIENCE, |stats| stats.aborts.total == 1 && stats.requests.in_flight == 0).unwrap();
    let abort = stats.aborts.recorded[0].clone();
    assert!(abort.at_ns >= left, "noticed before it happened");
    let delay = abort.at_ns - left;
    assert!(delay < AT_ONCE_NS, "{request} {how:?}: noticed after {} µs", delay / 1000);
    assert_eq!(stats.requests.completed + stats.requests.faulted, 0);
    abort
}

fn at_once(_: &mut Client) {}

fn after_head(client: &mut Client) {
    client.head();
}

fn after_two_events(client: &mut Client) {
    client.head();
    client.chunk().unwrap();
    client.chunk().unwrap();
}

#[test]
fn before_the_head() {
    let (origin, _client) = start();
    for how in Leave::ALL {
        for request in ["GET /?stall_before=1h", "GET /sse?stall_before=1h"] {
            let abort = abort(&origin, &format!("{request} HTTP/1.1\r\n\r\n"), at_once, how);
            assert_eq!((abort.phase, abort.bytes_sent), (Phase::BeforeHead, 0));
        }
    }
}

#[test]
fn before_the_first_token() {
    let (origin, _client) = start();
    for how in Leave::ALL {
        let abort = abort(&origin, "GET /sse?ttft=1h HTTP/1.1\r\n\r\n", after_head, how);
        assert_eq!((abort.phase, abort.bytes_sent, abort.path), (Phase::Body, 0, "/sse"));
    }
}

#[test]
fn between_slow_tokens() {
    let (origin, _client) = start();
    for how in Leave::ALL {
        let request = "GET /sse?tokens=9&tokens_per_second=0&stall_at=2 HTTP/1.1\r\n\r\n";
        let abort = abort(&origin, request, after_two_events, how);
        assert_eq!((abort.phase, abort.bytes_sent), (Phase::Body, 240));
    }
}

#[test]
fn in_a_stream_without_pace() {
    let (origin, _client) = start();
    for how in Leave::ALL {
        let request = "GET /sse?tokens=1000000000&tokens_per_second=0 HTTP/1.1\r\n\r\n";
        abort(&origin, request, after_two_events, how);
    }
}

#[test]
fn while_the_client_does_not_read() {
    let (origin, _client) = start();
    let blocked = |client: &mut Client| {
        client.head();
        // The buffers of both sockets are full when the count has stood still for a while.
        let (mut seen, mut since) = (0, Instant::now());
        while since.elapsed() < Duration::from_millis(50) {
            let sent = origin.stats().bytes_out;
            if sent != seen {
                (seen, since) = (sent, Instant::now());
            }
            std::thread::yield_now();
        }
        assert!(seen > 0 && seen < 1 << 30);
    };
    for how in Leave::ALL {
        abort(&origin, "GET /bytes/1GiB HTTP/1.1\r\n\r\n", blocked, how);
    }
}

#[test]
fn within_the_request_body() {
    let (origin, _client) = start();
    for how in Leave::ALL {
        let request = "POST /upload HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc";
        let abort = abort(&origin, request, at_once, how);
        assert_eq!((abort.phase, abort.path), (Phase::RequestBody, "/upload"));
    }
}

#[test]
fn while_everything_is_frozen() {
    let (origin, _client) = start();
    origin.inject("freeze=1h".parse().unwrap());
    let abort = abort(&origin, "GET / HTTP/1.1\r\n\r\n", at_once, Leave::Close);
    assert_eq!(abort.phase, Phase::BeforeHead);
}

#[test]
fn behind_a_pipelined_request() {
    let (origin, _client) = start();
    let request = "GET /?stall_before=1h HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    abort(&origin, request, at_once, Leave::Close);
    assert_eq!(origin.stats().requests.total, 1, "the pipelined one is never begun");
}

#[test]
fn an_abort_tells_who_and_how_long() {
    let (origin, _client) = start();
    let request = "POST /v1/chat/completions HTTP/1.1\r\nX-Mock-Ttft: 1h\r\nX-Request-ID: cancel-me\r\n\
        Content-Length: 29\r\n\r\n{\"messages\":[],\"stream\":true}";
    let abort = abort(&origin, request, after_head, Leave::Close);
    assert_eq!(abort.request_id.as_deref(), Some("cancel-me"));
    assert_eq!(abort.path, "/v1/chat/completions");
    assert!(abort.after_ms > 0.0 && abort.after_ms < PATIENCE.as_secs_f64() * 1000.0);
}

#[test]
fn a_client_that_leaves_after_the_end_has_not_aborted() {
    let (origin, mut client) = start();
    client.get("/sse?tokens=2&tokens_per_second=0");
    drop(client);
    let stats = origin.wait_for(PATIENCE, |stats| stats.connections.open == 0).unwrap();
    assert_eq!((stats.aborts.total, stats.requests.completed), (0, 1));
}
