//! Signals and the drain: what an operator's `systemctl reload` and `stop` mean for those who are being served. SIGUSR2 is
//! told in `upgrade`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use rustix::process::Signal;
use story::config::Config;
use story::wire::{End, Wire};
use story::{DRIVERS, Proxy, origin};

#[test]
fn hangup_reads_the_file_again() {
    let (before, after) = (origin(), origin());
    let proxy = Proxy::before(&before);
    let addr = proxy.addr();
    proxy.write_config(&Config::to(after.addr()));
    proxy.signal(Signal::HUP);
    proxy.eventually("the second generation serves", |proxy| proxy.status()["generation"] == 2);
    assert_eq!(Wire::connect(addr).get("/").response().0.status(), 200);
    assert_eq!((before.stats().requests.total, after.stats().requests.total), (0, 1));
}

#[test]
fn hangup_with_a_wrong_file_changes_nothing() {
    let origin = origin();
    let proxy = Proxy::before(&origin);
    proxy.write_config(&Config::to(origin.addr()).route("nonsense = 1"));
    proxy.signal(Signal::HUP);
    proxy.eventually("the refusal is told of", |proxy| proxy.output().contains("config refused"));
    let utf16: Vec<u8> = "[node]\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(proxy.dir().join("edge.toml"), utf16).unwrap();
    proxy.signal(Signal::HUP);
    proxy.eventually("the encoding is told of", |proxy| proxy.output().contains("the config is in UTF-16LE"));
    assert_eq!(proxy.status()["generation"], 1);
    assert_eq!(proxy.connect().get("/").response().0.status(), 200);
}

#[test]
fn terminate_lets_streams_finish_and_says_close_to_the_others() {
    for driver in DRIVERS {
        let origin = origin();
        let mut proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let addr = proxy.addr();
        let mut streams: Vec<Wire> = (0..20).map(|_| proxy.connect()).collect();
        for stream in &mut streams {
            stream.get("/sse?tokens=40&tokens_per_second=20");
            stream.head();
        }
        let mut kept = proxy.connect();
        assert_eq!(kept.get("/").response().0.status(), 200);
        proxy.signal(Signal::TERM);
        proxy.eventually("it drains", |proxy| proxy.status()["draining"] == true);
        // A connection that was in use is served once more, and told that this was all.
        let (head, _) = kept.get("/").response();
        assert_eq!(head.status(), 200, "{driver}");
        let connection = head.field("Connection").map(str::to_ascii_lowercase);
        assert_eq!(connection.as_deref(), Some("close"), "{driver}");
        assert_eq!(kept.end().1, End::Fin);
        proxy.eventually("nobody listens", |_| Wire::try_connect(addr).is_err());
        assert_eq!(proxy.admin("GET", "/readyz", "").0, 503, "{driver}");
        for stream in &mut streams {
            let (body, _) = stream.try_chunked().unwrap();
            assert_eq!(String::from_utf8(body).unwrap().matches("data: ").count(), 40, "{driver}");
        }
        drop(streams);
        assert_eq!(proxy.wait().code(), Some(0), "{driver}");
        assert!(!proxy.admin_socket().exists(), "{driver}: the admin socket is gone with the process");
    }
}

#[test]
fn terminate_ends_at_its_deadline_and_cut_streams_do_not_look_whole() {
    let limits = "drain_timeout = \"500ms\"";
    ends_and_cuts(Signal::TERM, limits);
}

#[test]
fn interrupt_waits_for_no_stream() {
    // So long that no test would wait for it.
    let limits = "drain_timeout = \"1h\"";
    ends_and_cuts(Signal::INT, limits);
}

/// The signal ends the program well although a stream goes on, and its client can tell that it was cut.
fn ends_and_cuts(signal: Signal, limits: &str) {
    for driver in DRIVERS {
        let origin = origin();
        let mut proxy = Proxy::start(&Config::to(origin.addr()).driver(driver).limits(limits));
        let mut stream = proxy.connect();
        stream.get("/sse?stall_at=3&tokens_per_second=0");
        let head = stream.head();
        proxy.signal(signal);
        assert!(stream.try_body(&head).is_err(), "{driver}: the stream looks whole");
        assert_eq!(proxy.wait().code(), Some(0), "{driver}");
    }
}
