//! A protocol switch in HTTP/1.1, as WebSocket does it: bytes pass both ways after the origin's 101, and not before.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;

use story::config::Config;
use story::wire::{End, Wire};
use story::{DRIVERS, Proxy};

const UPGRADE: &str = "GET /socket HTTP/1.1\r\nHost: story\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn scripted(driver: &str) -> (TcpListener, Proxy) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(&Config::to(listener.local_addr().unwrap()).driver(driver));
    (listener, proxy)
}

/// A tunnel: both ends, switched.
fn tunnel(listener: &TcpListener, proxy: &Proxy) -> (Wire, Wire) {
    let mut client = proxy.connect();
    client.send(UPGRADE);
    let mut upstream = Wire::accept(listener);
    let head = upstream.head();
    assert_eq!(head.field("Upgrade"), Some("websocket"));
    assert!(head.field("Connection").unwrap().eq_ignore_ascii_case("upgrade"), "{}", head.raw);
    assert_eq!(head.field("Sec-WebSocket-Version"), Some("13"));
    upstream.send(SWITCHING);
    let head = client.head();
    assert_eq!((head.status(), head.field("Upgrade")), (101, Some("websocket")));
    assert!(head.field("Connection").unwrap().eq_ignore_ascii_case("upgrade"), "{}", head.raw);
    assert_eq!(head.field("Sec-WebSocket-Accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    (client, upstream)
}

#[test]
fn bytes_pass_both_ways_after_101() {
    for driver in DRIVERS {
        let (listener, proxy) = scripted(driver);
        let (mut client, mut upstream) = tunnel(&listener, &proxy);
        for number in 0..100u32 {
            let frame = format!("\u{1}frame {number}\0");
            client.send(&frame);
            assert_eq!(upstream.exact(frame.len()), frame.as_bytes(), "{driver}");
            upstream.send(&frame);
            assert_eq!(client.exact(frame.len()), frame.as_bytes(), "{driver}");
        }
        // Much at once, in both directions.
        let bulk = vec![7; 3 << 20];
        let (mut writer, sent) = (upstream.second(), bulk.clone());
        let writing = std::thread::spawn(move || {
            writer.send(sent);
        });
        assert_eq!(client.exact(bulk.len()), bulk);
        writing.join().unwrap();
        assert_eq!(proxy.status()["streams"], 1);
        drop(client);
        assert_eq!(upstream.end().1, End::Fin);
        drop(upstream);
        proxy.assert_at_rest();
    }
}

#[test]
fn what_follows_the_101_at_once_passes() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client.send(UPGRADE);
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    upstream.send(format!("{SWITCHING}first frame"));
    assert_eq!(client.head().status(), 101);
    assert_eq!(client.exact(11), b"first frame");
}

#[test]
fn what_the_client_sends_before_the_101_passes_after_it() {
    for driver in DRIVERS {
        let (listener, proxy) = scripted(driver);
        let mut client = proxy.connect();
        // In one packet with the request, and behind it.
        client.send(format!("{UPGRADE}early "));
        let mut upstream = Wire::accept(&listener);
        upstream.head();
        client.send("bird");
        assert!(upstream.is_silent(), "{driver}: the tunnel is open before the origin's 101");
        upstream.send(SWITCHING);
        assert_eq!(client.head().status(), 101);
        assert_eq!(upstream.exact(10), b"early bird", "{driver}");
    }
}

/// A connection that is busy is read ahead; not a byte of what was read so may be lost to the tunnel.
#[test]
fn an_upgrade_right_behind_other_requests_loses_nothing() {
    for driver in DRIVERS {
        let (listener, proxy) = scripted(driver);
        let mut client = proxy.connect();
        let mut upstream = None;
        for _ in 0..5 {
            client.get("/before");
            let upstream = upstream.get_or_insert_with(|| Wire::accept(&listener));
            upstream.head();
            upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            assert_eq!(client.response().1, b"ok");
        }
        let mut upstream = upstream.unwrap();
        client.send(UPGRADE);
        upstream.head();
        client.send("early ");
        upstream.send(SWITCHING);
        assert_eq!(client.head().status(), 101);
        client.send("bird");
        assert_eq!(upstream.exact(10), b"early bird", "{driver}");
        upstream.send("song");
        assert_eq!(client.exact(4), b"song", "{driver}");
    }
}

#[test]
fn each_side_may_end_while_the_other_goes_on() {
    for driver in DRIVERS {
        let (listener, proxy) = scripted(driver);
        let (mut client, mut upstream) = tunnel(&listener, &proxy);
        client.send("last words").half_close();
        assert_eq!(upstream.end(), (b"last words".to_vec(), End::Fin), "{driver}");
        upstream.send("and the answer");
        assert_eq!(client.exact(14), b"and the answer", "{driver}");
        drop(upstream);
        assert_eq!(client.end(), (Vec::new(), End::Fin));

        let (mut client, mut upstream) = tunnel(&listener, &proxy);
        upstream.send("last words").half_close();
        assert_eq!(client.end(), (b"last words".to_vec(), End::Fin), "{driver}");
        client.send("and the answer");
        assert_eq!(upstream.exact(14), b"and the answer", "{driver}");
        drop(client);
        assert_eq!(upstream.end(), (Vec::new(), End::Fin));
        drop(upstream);
        proxy.assert_at_rest();
    }
}

#[test]
fn a_reset_of_the_client_ends_the_tunnel() {
    let (listener, proxy) = scripted("auto");
    let (client, mut upstream) = tunnel(&listener, &proxy);
    client.reset();
    upstream.end();
    drop(upstream);
    proxy.assert_at_rest();
}

/// The attack: a second request is hidden behind an upgrade that the origin refuses. It is a request of its own.
#[test]
fn a_request_behind_a_refused_upgrade_is_a_request_of_its_own() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(
            &Config::to(listener.local_addr().unwrap())
                .driver(driver)
                .route("path = \"/socket\"\nheaders = { request = { set = { X-Route = \"socket\" } } }")
                .more(
                    "[[routes]]\nname = \"admin\"\npath = \"/admin\"\ncluster = \"origin\"\n\
                     headers = { request = { set = { X-Route = \"admin\" } } }",
                ),
        );
        let mut client = proxy.connect();
        client.send(format!(
            "{UPGRADE}GET /admin HTTP/1.1\r\nHost: story\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: story\r\n\r\n"
        ));
        let mut upstream = Wire::accept(&listener);
        let head = upstream.head();
        assert_eq!(head.field("X-Route"), Some("socket"));
        assert!(upstream.is_silent(), "{driver}: the second request went along");
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
        assert_eq!(client.response().1, b"no");
        let head = upstream.head();
        assert_eq!(
            (head.start.as_str(), head.field("X-Route")),
            ("GET /admin HTTP/1.1", Some("admin")),
            "{driver}"
        );
        upstream.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        assert_eq!(client.response().0.status(), 403);
        assert_eq!(client.response().0.status(), 404, "{driver}: the third has no route");
    }
}

#[test]
fn a_101_that_nobody_asked_for_is_a_broken_answer() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client.get("/");
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    upstream.send(SWITCHING);
    assert_eq!(client.response().0.status(), 502);
    upstream.end();
}

#[test]
fn what_is_no_upgrade_goes_without_its_fields() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client
        .get_with("/", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n");
    let mut upstream = Wire::accept(&listener);
    let head = upstream.head();
    for name in ["Upgrade", "HTTP2-Settings"] {
        assert_eq!(head.field(name), None, "{}", head.raw);
    }
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(client.response().1, b"ok");
}
