//! Each deadline fires on its own, is told to the client and counted under its name, and touches nobody else.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use bench::origin::Origin;
use serde_json::Value;
use story::config::Config;
use story::hole::Hole;
use story::wire::{End, Wire};
use story::{DRIVERS, PATIENCE, Proxy, origin};

/// How much later than configured a deadline may be seen here: ticks of 10 ms, and a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// A stream beside the one that meets its deadline.
struct Bystander(Wire);

impl Bystander {
    fn on(proxy: &Proxy) -> Self {
        let mut wire = proxy.connect();
        wire.get("/sse?tokens=1000000&tokens_per_second=50");
        wire.head();
        Self(wire)
    }

    /// Three more events come.
    fn assert_alive(&mut self) {
        for _ in 0..3 {
            self.0.until("\n\n");
        }
    }
}

/// Holds that `end` comes after `deadline` and not long after it.
fn timed<T>(deadline: Duration, end: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = end();
    let took = began.elapsed();
    assert!(took + Duration::from_millis(50) >= deadline, "after {took:?}, not {deadline:?}");
    assert!(took < deadline + SLACK, "after {took:?}, not {deadline:?}");
    result
}

fn assert_error(client: &mut Wire, status: u16, code: &str) {
    let (head, body) = client.response();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((head.status(), body["error"]["code"].as_str()), (status, Some(code)), "{}", head.raw);
}

fn in_flight(origin: &Origin, count: u64) {
    origin.wait_for(PATIENCE, |stats| stats.requests.in_flight == count).expect("so many requests in flight");
}

const SHORT: Duration = Duration::from_millis(400);

#[test]
fn connect() {
    let (origin, hole) = (origin(), Hole::new());
    let proxy = Proxy::start(
        &Config::to(origin.addr())
            .route("path = \"/\"")
            .more("[[routes]]\nname = \"hole\"\npath = \"/hole\"\ncluster = \"hole\"\ntimeouts = { connect = \"400ms\" }")
            .more(&format!("[[clusters]]\nname = \"hole\"\nendpoints = [{{ address = \"{}\" }}]", hole.addr())),
    );
    let mut bystander = Bystander::on(&proxy);
    let mut client = proxy.connect();
    client.get("/hole");
    timed(SHORT, || assert_error(&mut client, 504, "connect_timeout"));
    assert_eq!(proxy.faults("connect_timeout"), 1);
    assert!(proxy.metric("millrace_connect_failures_total", &["cluster=\"hole\""]) >= 1);
    // A request without a body leaves the connection usable.
    assert_eq!(client.get("/").response().0.status(), 200);
    bystander.assert_alive();
}

#[test]
fn first_byte() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).route("timeouts = { first_byte = \"400ms\" }");
        let proxy = Proxy::start(&config);
        let mut bystander = Bystander::on(&proxy);
        for (method, body) in [("GET", ""), ("POST", "{}")] {
            origin.reset();
            let mut client = proxy.connect();
            let length = body.len();
            client.send(format!(
                "{method} /sse?stall_before=10m HTTP/1.1\r\nHost: story\r\nContent-Length: {length}\r\n\r\n{body}"
            ));
            timed(SHORT, || assert_error(&mut client, 504, "first_byte_timeout"));
            origin.wait_for(PATIENCE, |stats| stats.aborts.total == 1).expect("the origin is told");
            assert_eq!(origin.stats().requests.total, 1, "the only endpoint is asked once");
        }
        assert_eq!(proxy.faults("first_byte_timeout"), 2);
        bystander.assert_alive();
    }
}

#[test]
fn idle() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr())
            .driver(driver)
            .route("timeouts = { first_byte = \"10s\", idle = \"400ms\" }");
        let proxy = Proxy::start(&config);
        let mut bystander = Bystander::on(&proxy);
        let mut client = proxy.connect();
        client.get("/sse?stall_at=3&tokens_per_second=0&stall_before=1s");
        // The wait for the first byte is not the silence between two.
        assert_eq!(client.head().status(), 200);
        for _ in 0..3 {
            client.until("\n\n");
        }
        let (rest, _) = timed(SHORT, || client.end());
        assert!(!rest.ends_with(b"0\r\n\r\n"), "a stream that was cut looks whole");
        assert_eq!(proxy.faults("idle_timeout"), 1);
        origin.wait_for(PATIENCE, |stats| stats.aborts.total == 1).expect("the origin is told");
        bystander.assert_alive();
    }
}

#[test]
fn total_before_the_first_byte_and_after_it() {
    let origin = origin();
    let proxy = Proxy::start(
        &Config::to(origin.addr()).more("[[routes]]\nname = \"short\"\npath = \"/v1\"\ncluster = \"origin\"\ntimeouts = { total = \"400ms\" }"),
    );
    let mut bystander = Bystander::on(&proxy);
    let mut client = proxy.connect();
    client.get("/v1/models?stall_before=10m");
    timed(SHORT, || assert_error(&mut client, 504, "total_timeout"));
    let mut client = proxy.connect();
    let whole = timed(SHORT, || {
        client.post(
            "/v1/chat/completions?tokens=100000&tokens_per_second=50",
            "{\"messages\":[],\"stream\":true}",
        );
        client.head();
        client.end().0
    });
    assert!(!whole.ends_with(b"0\r\n\r\n"), "a stream that was cut looks whole");
    assert_eq!(proxy.faults("total_timeout"), 2);
    bystander.assert_alive();
}

#[test]
fn a_long_stream_outlives_first_byte_and_idle() {
    let origin = origin();
    let proxy = Proxy::start(
        &Config::to(origin.addr()).route("timeouts = { first_byte = \"300ms\", idle = \"300ms\" }"),
    );
    let mut client = proxy.connect();
    let began = Instant::now();
    client.get("/sse?tokens=100&tokens_per_second=50");
    let (head, body) = client.response();
    assert_eq!(head.status(), 200);
    assert_eq!(String::from_utf8(body).unwrap().matches("data: ").count(), 100);
    assert!(began.elapsed() > Duration::from_millis(1900));
}

#[test]
fn first_byte_begins_when_the_request_is_sent() {
    // The upload alone takes longer than the origin may take to answer.
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).route("timeouts = { first_byte = \"300ms\" }"));
    let mut client = proxy.connect();
    client.send("POST /upload HTTP/1.1\r\nHost: story\r\nContent-Length: 8\r\n\r\n");
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        client.send("x");
    }
    assert_eq!(client.response().0.status(), 200);
}

/// The origin begins its answer before it has all of the request, and falls silent within the head.
#[test]
fn half_a_head_before_the_end_of_the_request_is_no_first_byte() {
    for driver in DRIVERS {
        let origin = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config::to(origin.local_addr().unwrap())
            .driver(driver)
            .route("timeouts = { first_byte = \"400ms\" }");
        let proxy = Proxy::start(&config);
        let mut client = proxy.connect();
        client.send("POST / HTTP/1.1\r\nHost: story\r\nContent-Length: 10\r\n\r\nfirst");
        let mut upstream = Wire::accept(&origin);
        upstream.until("first");
        upstream.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 O");
        assert_eq!(client.head().status(), 100, "what stands behind it has come with it");
        client.send("other");
        upstream.until("other");
        timed(SHORT, || assert_error(&mut client, 504, "first_byte_timeout"));
    }
}

#[test]
fn request_head() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).limits("request_head_timeout = \"400ms\"");
        let proxy = Proxy::start(&config);
        let mut bystander = Bystander::on(&proxy);
        let mut client = proxy.connect();
        // One byte after the other: each is a sign of life, and the head is slow all the same.
        let mut writer = client.second();
        let dripping = std::thread::spawn(move || {
            writer.send("GET / HTTP/1.1\r\nHost: story\r\nX-Slow: ");
            while writer.try_send("x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        timed(SHORT, || assert_error(&mut client, 408, "request_head_timeout"));
        client.end();
        drop(client);
        dripping.join().unwrap();
        assert_eq!(proxy.listener_faults("request_head_timeout"), 1, "{driver}");
        bystander.assert_alive();
    }
}

#[test]
fn request_body() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).limits("request_body_timeout = \"400ms\"");
        let proxy = Proxy::start(&config);
        let mut bystander = Bystander::on(&proxy);
        origin.reset();
        let mut client = proxy.connect();
        client.send("POST /upload HTTP/1.1\r\nHost: story\r\nContent-Length: 10\r\n\r\nsome");
        timed(SHORT, || assert_error(&mut client, 408, "request_body_timeout"));
        client.end();
        assert_eq!(proxy.faults("request_body_timeout"), 1, "{driver}");
        origin.wait_for(PATIENCE, |stats| stats.aborts.total == 1).expect("the origin is told");
        bystander.assert_alive();
    }
}

#[test]
fn keep_alive() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).limits("keep_alive_timeout = \"400ms\"");
        let proxy = Proxy::start(&config);
        let mut bystander = Bystander::on(&proxy);
        let mut fresh = proxy.connect();
        assert_eq!(timed(SHORT, || fresh.end()), (Vec::new(), End::Fin), "{driver}: no request at all");
        let mut used = proxy.connect();
        for _ in 0..3 {
            assert_eq!(used.get("/").response().0.status(), 200);
        }
        assert_eq!(timed(SHORT, || used.end()), (Vec::new(), End::Fin), "{driver}: no further request");
        bystander.assert_alive();
    }
}

#[test]
fn slow_reader() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).limits("send_timeout = \"400ms\"");
        let proxy = Proxy::start(&config);
        let mut bystander = Bystander::on(&proxy);
        let mut client = Wire::connect_narrow(proxy.addr(), 16 * 1024);
        client.get("/bytes/1GiB");
        client.head();
        timed(SHORT, || proxy.eventually("it is counted", |proxy| proxy.faults("send_timeout") == 1));
        in_flight(&origin, 1);
        let taken = client.discard(u64::MAX);
        assert!(taken < 1 << 30, "{driver}");
        bystander.assert_alive();
    }
}

#[test]
fn a_reader_that_is_slow_but_reads_is_served() {
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).limits("send_timeout = \"400ms\""));
    let mut client = Wire::connect_narrow(proxy.addr(), 64 * 1024);
    client.get("/bytes/2MiB");
    client.head();
    let mut taken = 0;
    while taken < 2 << 20 {
        std::thread::sleep(Duration::from_millis(20));
        taken += client.exact(64 << 10).len();
    }
    assert_eq!(proxy.faults("send_timeout"), 0);
}
