//! A client that goes away takes its upstream request along, at once, wherever the exchange is.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;
use std::time::Duration;

use bench::origin::{Origin, Phase, monotonic_ns};
use story::config::Config;
use story::wire::Wire;
use story::{DRIVERS, PATIENCE, Proxy, origin};

/// How often each way to leave is measured.
const ROUNDS: usize = 15;
/// 10 ms is what is promised; the rest is for a machine that does other things beside the test.
const BOUND: Duration = Duration::from_millis(50);

/// How a client goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Fin,
    HalfClose,
    Reset,
}

impl Leave {
    const ALL: [Self; 3] = [Self::Fin, Self::HalfClose, Self::Reset];

    /// Leaves; what it gives back has to live until the origin has noticed.
    fn act(self, client: Wire) -> Option<Wire> {
        match self {
            Self::Fin => drop(client),
            Self::HalfClose => {
                client.half_close();
                return Some(client);
            }
            Self::Reset => client.reset(),
        }
        None
    }
}

/// Brings exchanges to a point with `begin`, leaves, and measures until the origin notices: the median has to be small.
fn measure(what: &str, phase: Phase, begin: impl Fn(&Origin, &mut Wire)) {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        for leave in Leave::ALL {
            origin.reset();
            let mut delays_us = Vec::new();
            for round in 1..=ROUNDS {
                let mut client = proxy.connect();
                begin(&origin, &mut client);
                let left_ns = monotonic_ns();
                let _client = leave.act(client);
                let stats = origin.wait_for(PATIENCE, |stats| stats.aborts.total == round as u64);
                let stats = stats.unwrap_or_else(|stats| panic!("{what}, {leave:?}: {stats:#?}"));
                let abort = stats.aborts.recorded.last().unwrap();
                assert_eq!(abort.phase, phase, "{what}, {leave:?}");
                delays_us.push(abort.at_ns.saturating_sub(left_ns) / 1000);
            }
            delays_us.sort_unstable();
            let (median, worst) = (delays_us[ROUNDS / 2], delays_us[ROUNDS - 1]);
            println!("{what}, {driver}, {leave:?}: the origin notices after {median} us (worst {worst} us)");
            assert!(Duration::from_micros(median) < BOUND, "{what}, {driver}, {leave:?}: {delays_us:?}");
        }
        assert_eq!(proxy.faults("client_gone"), 3 * ROUNDS as u64, "{what}, {driver}");
        proxy.assert_at_rest();
    }
}

fn in_flight(origin: &Origin) {
    origin.wait_for(PATIENCE, |stats| stats.requests.in_flight == 1).expect("the request is there");
}

#[test]
fn leaving_before_the_first_byte_reaches_the_origin() {
    measure("before the first byte", Phase::BeforeHead, |origin, client| {
        // As browsers' EventSource asks.
        client.get_with("/sse?stall_before=10m", "Accept: text/event-stream\r\n");
        in_flight(origin);
    });
}

#[test]
fn leaving_before_the_first_byte_of_a_post_reaches_the_origin() {
    measure("before the first byte of a POST", Phase::BeforeHead, |origin, client| {
        client.post("/v1/chat/completions?stall_before=10m", "{\"messages\":[],\"stream\":true}");
        in_flight(origin);
    });
}

#[test]
fn leaving_in_a_stream_reaches_the_origin() {
    measure("in a stream", Phase::Body, |_, client| {
        client.get("/sse?tokens=1000000&tokens_per_second=20");
        client.head();
        client.until("\n\n");
    });
}

#[test]
fn leaving_in_a_silent_stream_reaches_the_origin() {
    measure("in a silent stream", Phase::Body, |_, client| {
        client.get("/sse?stall_at=1");
        client.head();
        client.until("\n\n");
    });
}

#[test]
fn leaving_during_an_upload_reaches_the_origin() {
    measure("during an upload", Phase::RequestBody, |origin, client| {
        client.send("POST /upload HTTP/1.1\r\nHost: story\r\nContent-Length: 1000000\r\n\r\nsome");
        in_flight(origin);
    });
}

/// Only a reset can be noticed here: a FIN waits behind the bytes that nobody takes.
#[test]
fn leaving_while_the_origin_takes_no_more_of_an_upload_ends_the_exchange() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&Config::to(listener.local_addr().unwrap()).driver(driver));
        let mut client = proxy.connect();
        client.send("POST /upload HTTP/1.1\r\nHost: story\r\nContent-Length: 1000000000\r\n\r\n");
        let mut upstream = Wire::accept(&listener);
        upstream.head();
        // From here on the origin takes nothing, and so in the end the proxy does not, either.
        client.send_until_blocked(1_000_000_000);
        client.reset();
        proxy.eventually("the exchange is over", |proxy| proxy.status()["streams"] == 0);
        assert_eq!(proxy.faults("client_gone"), 1, "{driver}");
        proxy.assert_at_rest();
    }
}

#[test]
fn leaving_behind_a_pipelined_request_reaches_the_origin() {
    measure("behind a pipelined request", Phase::Body, |_, client| {
        client.get("/sse?tokens=1000000&tokens_per_second=20").get("/never");
        client.head();
        client.until("\n\n");
    });
}

#[test]
fn leaving_while_the_origin_is_being_dialled_ends_the_exchange() {
    let hole = story::hole::Hole::new();
    let proxy = Proxy::start(&Config::to(hole.addr()).route("timeouts = { connect = \"60s\" }"));
    for leave in [Leave::Fin, Leave::Reset] {
        let mut client = proxy.connect();
        client.get("/");
        proxy.eventually("the exchange has begun", |proxy| proxy.status()["streams"] == 1);
        leave.act(client);
        proxy.eventually("the exchange is over", |proxy| proxy.status()["streams"] == 0);
    }
    assert_eq!(proxy.faults("client_gone"), 2);
    proxy.assert_at_rest();
}

#[test]
fn a_slow_reader_that_leaves_frees_the_origin() {
    for driver in DRIVERS {
        let origin = origin();
        for leave in Leave::ALL {
            // Of a plain download only this rule takes the end of the client's side for its leave.
            let rule = if leave == Leave::HalfClose { "half_close = \"cancel\"" } else { "" };
            let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver).listener(rule));
            origin.reset();
            let mut client = Wire::connect_narrow(proxy.addr(), 16 * 1024);
            client.get("/bytes/1GiB");
            client.head();
            // The first bytes are taken, then no more: the proxy waits for this client to read.
            client.exact(1000);
            let client = leave.act(client);
            let aborted = origin.wait_for(PATIENCE, |stats| stats.aborts.total == 1);
            assert!(aborted.is_ok(), "{driver} {leave:?}: {}", proxy.status());
            drop(client);
            proxy.assert_at_rest();
        }
    }
}
