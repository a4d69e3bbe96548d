//! Every fault does what it says, and no more: the next request on a connection that was kept is fine.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod client;

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bench::origin::{BadFraming, Origin, OriginOptions};
use client::{Client, End, PATIENCE, start};

const CHAT_STREAM: &str = r#"{"messages":[],"stream":true}"#;

fn healthy(client: &mut Client) {
    assert_eq!(client.get("/").text(), "hello\n");
}

#[test]
fn knobs_work_from_header_and_query_and_the_header_wins() {
    let (_origin, mut client) = start();
    client.send("GET /?status=503 HTTP/1.1\r\nX-Mock-Status: 502\r\n\r\n");
    assert_eq!(client.response().status, 502);
    assert_eq!(client.get("/?status=503").status, 503);
    healthy(&mut client);
}

#[test]
fn wrong_knobs_are_an_error_and_strange_queries_are_not() {
    let (_origin, mut client) = start();
    client.send("GET / HTTP/1.1\r\nX-Mock-Stall-Bevor: 1s\r\n\r\n");
    assert_eq!(client.response().status, 400);
    assert_eq!(client.get("/?ttft=soon").status, 400);
    assert_eq!(client.get("/?user=7").status, 200);
}

#[test]
fn status_comes_with_an_error_body_and_retry_after() {
    let (_origin, mut client) = start();
    let response = client.post("/v1/chat/completions?status=429", CHAT_STREAM);
    assert_eq!((response.status, response.field("retry-after")), (429, Some("1")));
    assert_eq!(response.json()["error"]["code"], "rate_limit_exceeded");
    let response = client.post("/v1/chat/completions?status=500", CHAT_STREAM);
    assert_eq!((response.status, response.field("retry-after")), (500, None));
    let response = client.get("/?status=503&retry_after=7");
    assert_eq!((response.status, response.field("retry-after")), (503, Some("7")));
    healthy(&mut client);
}

#[test]
fn stall_before_holds_the_head_back() {
    let (_origin, mut client) = start();
    let started = Instant::now();
    assert_eq!(client.get("/?stall_before=120ms").status, 200);
    assert!(started.elapsed() >= Duration::from_millis(120));
    healthy(&mut client);
}

#[test]
fn a_stall_in_the_middle_comes_after_that_many_tokens() {
    let (_origin, mut client) = start();
    client.send("GET /sse?tokens=5&tokens_per_second=0&stall_at=3&stall=150ms HTTP/1.1\r\n\r\n");
    client.head();
    let mut times = Vec::new();
    while client.chunk().is_some() {
        times.push(Instant::now());
    }
    assert_eq!(times.len(), 5);
    assert!(times[3] - times[2] >= Duration::from_millis(120), "no pause before the fourth");
}

#[test]
fn an_error_event_ends_each_kind_of_stream_cleanly_and_without_done() {
    let (_origin, mut client) = start();
    for (target, prelude) in [("/v1/chat/completions", 1), ("/v1/messages", 3), ("/sse", 0)] {
        let response = client.post(&format!("{target}?error_event=2&tokens_per_second=0"), CHAT_STREAM);
        assert_eq!((response.status, response.end), (200, End::Clean), "{target}");
        let events = response.events();
        assert_eq!(events.len(), prelude + 2 + 1, "{target}");
        let (name, data) = events.last().unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert!(data["error"]["message"].is_string());
        assert_eq!(name.as_deref() == Some("error"), target != "/v1/chat/completions");
        assert!(!response.text().contains("[DONE]") && !response.text().contains("message_stop"));
    }
}

#[test]
fn an_empty_stream_is_a_clean_end_without_events() {
    let (_origin, mut client) = start();
    let response = client.post("/v1/chat/completions?empty_stream", CHAT_STREAM);
    assert_eq!((response.status, response.end, response.body.len()), (200, End::Clean, 0));
    healthy(&mut client);
}

#[test]
fn a_body_is_cut_or_reset_at_the_byte_asked_for() {
    let (origin, _client) = start();
    for (fault, end) in [("cut_at", End::Fin), ("rst_at", End::Reset)] {
        for target in ["/bytes/100000", "/bytes/10", "/bytes/100000?chunked"] {
            for at in [0, 1, 9] {
                let mut client = Client::connect(origin.addr());
                let mark = if target.contains('?') { '&' } else { '?' };
                client.send(format!("GET {target}{mark}{fault}={at} HTTP/1.1\r\n\r\n"));
                let head = client.head();
                let (mut rest, ended) = client.rest();
                if head.field("transfer-encoding").is_some() && at > 0 {
                    // The chunk announces the size it would have had.
                    rest.drain(..b"10000\r\n".len());
                }
                assert_eq!((rest.len(), ended), (at, end), "{target} {fault}={at}");
            }
        }
    }
    let stats = origin.wait_for(PATIENCE, |stats| stats.requests.faulted == 18).unwrap();
    assert_eq!(stats.aborts.total, 0, "a cut is the origin's doing");
}

#[test]
fn a_stream_that_is_cut_has_no_last_chunk() {
    let (origin, _client) = start();
    for (fault, end) in [("cut_at", End::Fin), ("rst_at", End::Reset)] {
        let response =
            Client::connect(origin.addr()).get(&format!("/sse?tokens=9&tokens_per_second=0&{fault}=360"));
        assert_eq!((response.chunks.len(), response.end), (2, end), "{fault}: two whole events, one torn");
        let response = Client::connect(origin.addr()).get(&format!("/sse?tokens=9&{fault}=300"));
        assert_eq!((response.chunks.len(), response.end), (2, end), "{fault}: two whole events, one torn");
    }
}

#[test]
fn a_slow_drain_takes_its_time_and_pushes_back() {
    let (origin, mut client) = start();
    let body = "x".repeat(20_000);
    let started = Instant::now();
    assert_eq!(client.post("/upload?slow_drain=100000", &body).json()["bytes"], 20_000);
    assert!(started.elapsed() >= Duration::from_millis(180));
    let mut client = Client::connect(origin.addr());
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    client.send("POST /upload?slow_drain=1000 HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n");
    let piece = vec![0; 1 << 20];
    let blocked = (0..100).find_map(|_| client.stream.write_all(&piece).err());
    assert_eq!(blocked.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
}

#[test]
fn close_after_closes_without_a_word() {
    let (_origin, mut client) = start();
    let response = client.get("/?close_after");
    assert_eq!((response.status, response.field("connection")), (200, None));
    assert!(client.is_closed());
}

#[test]
fn close_after_waits_as_long_as_it_says() {
    let (_origin, mut client) = start();
    client.get("/?close_after=150ms");
    let started = Instant::now();
    assert!(client.is_closed());
    assert!(started.elapsed() >= Duration::from_millis(120));
}

#[test]
fn conn_close_says_so_and_does_so() {
    let (_origin, mut client) = start();
    assert_eq!(client.get("/?conn_close").field("connection"), Some("close"));
    assert!(client.is_closed());
}

#[test]
fn an_early_response_comes_before_the_body_and_the_connection_survives() {
    let (_origin, mut client) = start();
    client.send("POST /upload?early_response&status=413 HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n");
    assert_eq!(client.response().status, 413);
    client.send(vec![0; 1_000_000]);
    healthy(&mut client);
}

#[test]
fn an_early_response_may_close_on_the_body() {
    let (_origin, mut client) = start();
    client.send("POST /upload?early_response=close HTTP/1.1\r\nContent-Length: 1000000\r\n\r\nabc");
    let response = client.response();
    assert_eq!((response.status, response.field("connection")), (200, Some("close")));
    assert!(client.is_closed());
}

#[test]
fn an_early_response_in_place_of_continue_closes() {
    let (_origin, mut client) = start();
    client.send(
        "POST /upload?early_response&status=417 HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    );
    let response = client.response();
    assert_eq!((response.status, response.field("connection")), (417, Some("close")));
}

#[test]
fn split_writes_everything_in_pieces() {
    let (_origin, mut client) = start();
    client.send("GET /?split=7&split_gap=200ms HTTP/1.1\r\n\r\n");
    assert_eq!(client.read_once(), b"HTTP/1.");
    let (_, mut client) = (drop(client), Client::connect(_origin.addr()));
    let response = client.get("/trailers?split=1");
    assert_eq!((response.text().as_str(), response.trailers.len()), ("hello trailers\n", 2));
    healthy(&mut client);
}

#[test]
fn every_bad_framing_is_sent_as_it_is_named() {
    let (origin, _client) = start();
    let marks: [(&str, &str); 20] = [
        ("no_head", ""),
        ("head_cut", "text/pl"),
        ("head_huge", "X-Huge: aaaa"),
        ("protocol", "HTTQ/1.1"),
        ("status_code", " 2x0 "),
        ("space_before_colon", "Content-Length : 5"),
        ("obs_fold", "a\r\n b"),
        ("nul", "a\0b"),
        ("bare_cr", "a\rb"),
        ("cl_te", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        ("cl_cl", "Content-Length: 5\r\nContent-Length: 6"),
        ("cl_sign", "Content-Length: +5"),
        ("te_unknown", "shrink, chunked"),
        ("te_http10", "HTTP/1.0 200 OK\r\nTransfer-Encoding"),
        ("chunk_size", "5z\r\n"),
        ("chunk_overflow", "10000000000000005\r\n"),
        ("chunk_end", "5\r\nhello!!"),
        ("body_short", "Content-Length: 100\r\n\r\nhello"),
        ("body_long", "helloHTTP/1.1 200 OK"),
        ("body_on_204", "204 No Content\r\nContent-Length: 5\r\n\r\nhello"),
    ];
    assert!(marks.iter().map(|(name, _)| *name).eq(BadFraming::ALL.iter().map(|(name, _)| *name)));
    for (name, mark) in marks {
        let mut client = Client::connect(origin.addr());
        // The second request finds out whether the connection is kept.
        client.send(format!("GET /?bad_framing={name} HTTP/1.1\r\n\r\n"));
        client.send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
        let (bytes, _) = client.rest();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(mark), "{name}: {}", &text[..text.len().min(200)]);
        let kept = matches!(name, "body_long" | "body_on_204");
        assert_eq!(text.ends_with(r#"{"status":"ok"}"#), kept, "{name}");
        assert_eq!(bytes.is_empty(), name == "no_head", "{name}");
    }
}

fn refused(origin: &Origin) -> bool {
    TcpStream::connect(origin.addr()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn refuse_closes_every_listener_for_a_while_and_leaves_connections_alone() {
    let origin = Origin::start(OriginOptions { workers: 2, ..OriginOptions::default() }).unwrap();
    let mut client = Client::connect(origin.addr());
    healthy(&mut client);
    assert_eq!(client.post("/_origin/fault?refuse=1h", "").status, 200);
    assert!((0..20).all(|_| refused(&origin)));
    healthy(&mut client);
    client.send("DELETE /_origin/fault HTTP/1.1\r\n\r\n");
    assert_eq!(client.response().status, 200);
    (0..20).for_each(|_| healthy(&mut Client::connect(origin.addr())));
}

#[test]
fn refuse_ends_by_itself() {
    let (origin, _client) = start();
    origin.inject("refuse=200ms".parse().unwrap());
    assert!(refused(&origin));
    let deadline = Instant::now() + PATIENCE;
    while refused(&origin) {
        assert!(Instant::now() < deadline, "it refuses for ever");
        std::thread::yield_now();
    }
    healthy(&mut Client::connect(origin.addr()));
}

#[test]
fn accept_close_accepts_and_closes() {
    let (origin, mut client) = start();
    healthy(&mut client);
    origin.inject("accept_close=1h".parse().unwrap());
    assert!(Client::connect(origin.addr()).is_closed());
    healthy(&mut client);
    assert_eq!(origin.stats().connections.closed_at_accept, 1);
    origin.clear_fault();
    healthy(&mut Client::connect(origin.addr()));
}

#[test]
fn a_freeze_holds_streams_and_heads_and_does_not_slow_the_schedule() {
    let (origin, mut client) = start();
    client.send("GET /sse?tokens=40&tokens_per_second=100 HTTP/1.1\r\n\r\n");
    client.head();
    client.chunk().unwrap();
    let started = Instant::now();
    origin.inject("freeze=300ms".parse().unwrap());
    let mut other = Client::connect(origin.addr());
    healthy(&mut other);
    assert!(started.elapsed() >= Duration::from_millis(300), "the head was not held");
    let mut tokens = 1;
    while client.chunk().is_some() {
        tokens += 1;
    }
    assert_eq!(tokens, 40);
    // 390 ms by the schedule; with the freeze added to it, it would be 690.
    assert!(started.elapsed() < Duration::from_millis(600), "{:?}", started.elapsed());
}

#[test]
fn a_share_of_the_requests_fails_and_the_controls_never_do() {
    let (origin, mut client) = start();
    assert_eq!(client.post("/_origin/fault", "status=503&rate=0.3&path=/v1/").status, 200);
    let failed = (0..50).filter(|_| client.get("/v1/models").status == 503).count();
    assert_eq!(failed, 15);
    assert!((0..10).all(|_| client.get("/health").status == 200));
    origin.inject("status=500".parse().unwrap());
    assert_eq!(client.get("/health").status, 500);
    assert_eq!(client.get("/_origin/stats").status, 200);
    assert_eq!(client.post("/_origin/fault", "stauts=503").status, 400);
}
