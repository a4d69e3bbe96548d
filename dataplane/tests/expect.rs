//! `Expect: 100-continue`: a client that waits for permission to send its body gets one, the origin's or in the end the proxy's, and
//! never two; an origin that has refused a body is not sent it.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use story::config::Config;
use story::wire::{End, Wire};
use story::{DRIVERS, Proxy};

/// The silence of an origin after which its client is told to go on.
const SILENCE: Duration = Duration::from_secs(1);
/// Longer than that by what a slow clock and a busy machine add.
const SILENCE_SURELY: Duration = Duration::from_millis(1500);

const POST: &str = "POST / HTTP/1.1\r\nHost: story\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nokay";

fn start(driver: &str) -> (TcpListener, Proxy) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(&Config::to(listener.local_addr().unwrap()).driver(driver).workers(1));
    (listener, proxy)
}

/// Asks for permission, and waits until the origin has the question.
fn ask(proxy: &Proxy, listener: &TcpListener, request: &str) -> (Wire, Wire) {
    let mut client = proxy.connect();
    client.send(request);
    let mut upstream = Wire::accept(listener);
    let head = upstream.head();
    assert_eq!(head.field("Expect").is_some(), request.contains("HTTP/1.1"), "{}", head.raw);
    (client, upstream)
}

#[test]
fn whoever_waits_for_an_origin_that_never_says_100_is_told_by_us_after_a_second() {
    for driver in DRIVERS {
        let (listener, proxy) = start(driver);
        for framing in ["Content-Length: 2", "Transfer-Encoding: chunked"] {
            let began = Instant::now();
            let (mut client, mut upstream) =
                ask(&proxy, &listener, &POST.replace("Content-Length: 2", framing));
            assert_eq!(client.head().raw, "HTTP/1.1 100 Continue\r\n\r\n", "{driver}");
            let waited = began.elapsed();
            // A tick may have begun before the wait did.
            assert!(waited > SILENCE - Duration::from_millis(50), "{driver}: after {waited:?}");
            assert!(waited < 5 * SILENCE, "{driver}: after {waited:?}");
            let body = if framing.contains("chunked") { "2\r\nhi\r\n0\r\n\r\n" } else { "hi" };
            client.send(body);
            assert_eq!(upstream.exact(body.len()), body.as_bytes(), "{driver}");
            // The origin's own permission comes late: the client has had one.
            upstream.send(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"));
            let (head, answer) = client.response();
            assert_eq!((head.status(), answer.as_slice()), (200, &b"okay"[..]), "{driver}");
            // Both connections go on.
            client.get("/next");
            assert_eq!(upstream.head().start, "GET /next HTTP/1.1", "{driver}");
            upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nnext");
            assert_eq!(client.response().1, b"next", "{driver}");
        }
        proxy.assert_at_rest();
    }
}

#[test]
fn the_origins_own_permission_is_passed_on_and_no_second_one() {
    for driver in DRIVERS {
        let (listener, proxy) = start(driver);
        let (mut client, mut upstream) = ask(&proxy, &listener, POST);
        upstream.send("HTTP/1.1 100 Continue\r\nX-From: origin\r\n\r\n");
        assert_eq!(client.head().field("X-From"), Some("origin"), "{driver}");
        upstream.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        assert_eq!(client.head().status(), 103, "{driver}: other interim answers pass");
        std::thread::sleep(SILENCE_SURELY);
        client.send("hi");
        assert_eq!(upstream.exact(2), b"hi", "{driver}");
        upstream.send(OK);
        assert_eq!(client.head().status(), 200, "{driver}: nothing was said in between");
    }
}

#[test]
fn hints_are_no_permission() {
    for driver in DRIVERS {
        let (listener, proxy) = start(driver);
        let (mut client, mut upstream) = ask(&proxy, &listener, POST);
        upstream.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        assert_eq!(client.head().status(), 103, "{driver}");
        assert_eq!(client.head().status(), 100, "{driver}");
        client.send("hi");
        assert_eq!(upstream.exact(2), b"hi", "{driver}");
        upstream.send(OK);
        assert_eq!(client.head().status(), 200, "{driver}");
    }
}

#[test]
fn an_origin_that_answers_instead_is_not_sent_what_comes_next() {
    for driver in DRIVERS {
        let (listener, proxy) = start(driver);
        for status in ["417 Expectation Failed", "401 Unauthorized", "200 OK"] {
            let (mut client, mut upstream) = ask(&proxy, &listener, POST);
            upstream.send(format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nso"));
            let head = client.head();
            assert_eq!(head.start, format!("HTTP/1.1 {status}"), "{driver}");
            assert_eq!(head.field("Connection"), Some("close"), "{driver} {status}");
            // In the middle of the answer the client says more, which may be a body or the next request.
            client.send("GET /smuggled HTTP/1.1\r\nHost: story\r\n\r\n");
            upstream.send("me");
            assert_eq!(client.exact(4), b"some", "{driver} {status}");
            assert_eq!(upstream.end().0, b"", "{driver} {status}: it was sent what is not for it");
            assert_eq!(client.end(), (Vec::new(), End::Fin), "{driver} {status}");
        }
        proxy.assert_at_rest();
    }
}

#[test]
fn whoever_does_not_wait_is_told_nothing() {
    for driver in DRIVERS {
        let (listener, proxy) = start(driver);
        // The body comes behind the question; at once with it; or with no question at all.
        let parts =
            [(POST.to_owned(), "hi"), (format!("{POST}hi"), ""), (POST.replace("Expect", "X-Was"), "")];
        for (request, behind) in parts {
            let mut client = proxy.connect();
            client.send(&request);
            let mut upstream = Wire::accept(&listener);
            upstream.head();
            client.send(behind);
            std::thread::sleep(SILENCE_SURELY);
            assert!(client.is_silent(), "{driver} {request:?}: it was told something");
            if request.contains("X-Was") {
                client.send("hi");
            }
            assert_eq!(upstream.exact(2), b"hi", "{driver}");
            upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(client.head().status(), 200, "{driver}");
        }
    }
}

#[test]
fn an_http_1_0_client_is_never_told_to_go_on() {
    for driver in DRIVERS {
        let (listener, proxy) = start(driver);
        let (mut client, mut upstream) = ask(&proxy, &listener, &POST.replace("HTTP/1.1", "HTTP/1.0"));
        upstream.send("HTTP/1.1 100 Continue\r\n\r\n");
        std::thread::sleep(SILENCE_SURELY);
        assert!(client.is_silent(), "{driver}");
        client.send("hi");
        assert_eq!(upstream.exact(2), b"hi", "{driver}");
        upstream.send(OK);
        assert_eq!(client.head().status(), 200, "{driver}");
    }
}

/// The client leaves while it waits: the origin knows at once.
#[test]
fn a_client_that_leaves_while_it_waits_is_gone() {
    for driver in DRIVERS {
        let (listener, proxy) = start(driver);
        let (client, mut upstream) = ask(&proxy, &listener, POST);
        let began = Instant::now();
        drop(client);
        upstream.end();
        assert!(began.elapsed() < SILENCE, "{driver}: after {:?}", began.elapsed());
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
        proxy.assert_at_rest();
    }
}
