//! Bodies pass in both directions as they come: nothing is merged, delayed, collected or lost, whatever their framing.
//! How streams end badly is told in `cancel`, `deadlines` and `framing`.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;

use story::config::Config;
use story::wire::{End, Wire};
use story::{DRIVERS, Proxy, origin};

/// More memory than this for one stream would mean that it is collected. A fresh process has about 20 MB.
const MEMORY_BOUND: u64 = 32 << 20;

const EVENT_STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A listener that the test answers itself, and a proxy before it.
fn scripted(driver: &str) -> (TcpListener, Proxy) {
    scripted_with(|config| config.driver(driver))
}

fn scripted_with(adjust: impl FnOnce(Config) -> Config) -> (TcpListener, Proxy) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(&adjust(Config::to(listener.local_addr().unwrap())));
    (listener, proxy)
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// The origin sends an event only after the client has seen the one before it: a proxy that waits for more would stand
/// still for ever.
#[test]
fn each_event_arrives_before_the_next_is_sent() {
    for driver in DRIVERS {
        let (listener, proxy) = scripted(driver);
        assert_eq!(proxy.status()["driver"], driver);
        for request in ["GET", "POST"] {
            let mut client = proxy.connect();
            match request {
                "GET" => client.get("/events"),
                _ => client.post("/events", "{\"stream\":true}"),
            };
            let mut upstream = Wire::accept(&listener);
            let head = upstream.head();
            upstream.body(&head);
            upstream.send(EVENT_STREAM);
            let head = client.head();
            assert_eq!(head.field("Content-Type"), Some("text/event-stream; charset=utf-8"));
            for number in 0..200 {
                let event = format!("data: {number}\n\n");
                upstream.send(chunk(&event));
                assert_eq!(client.chunk(), event, "{driver} {request}");
            }
            upstream.send("0\r\n\r\n");
            assert_eq!(client.try_chunk().unwrap(), None);
        }
    }
}

#[test]
fn events_without_framing_of_their_own_arrive_one_by_one() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client.get("/events");
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    upstream.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    let head = client.head();
    assert_eq!(head.field("Transfer-Encoding"), Some("chunked"), "the end has to be known: {}", head.raw);
    for number in 0..50 {
        let event = format!("data: {number}\n\n");
        upstream.send(&event);
        assert_eq!(client.chunk(), event);
    }
    drop(upstream);
    assert_eq!(client.try_chunk().unwrap(), None);
}

#[test]
fn an_event_in_two_halves_passes_in_two_halves() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client.get("/events");
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    upstream.send(EVENT_STREAM).send("8\r\ndata");
    client.head();
    client.until("8\r\ndata");
    upstream.send(": x\n\r\n");
    assert_eq!(client.until("\r\n"), ": x\n\r\n");
}

#[test]
fn the_response_begins_while_the_upload_goes_on() {
    for driver in DRIVERS {
        let (listener, proxy) = scripted(driver);
        let mut client = proxy.connect();
        client.send("POST /both HTTP/1.1\r\nHost: story\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut upstream = Wire::accept(&listener);
        upstream.head();
        upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        for number in 0..100 {
            let part = format!("part {number}");
            client.send(chunk(&part));
            assert_eq!(upstream.chunk(), part, "{driver}");
            upstream.send(chunk(&part));
            assert_eq!(client.chunk(), part, "{driver}");
        }
        client.send("0\r\n\r\n");
        upstream.until("0\r\n\r\n");
        upstream.send("0\r\n\r\n");
        client.until("0\r\n\r\n");
        client.get("/next");
        upstream.head();
        upstream.send("HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(client.head().status(), 204);
    }
}

#[test]
fn an_upload_of_256_mib_passes_in_bounded_memory() {
    for driver in DRIVERS {
        const SIZE: usize = 256 << 20;
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let before = proxy.rss_bytes();
        let mut client = proxy.connect();
        client.send(format!("PUT /upload HTTP/1.1\r\nHost: story\r\nContent-Length: {SIZE}\r\n\r\n"));
        let part = vec![b'x'; 1 << 20];
        let mut most = 0;
        for sent in 0..SIZE / part.len() {
            client.send(&part);
            if sent % 32 == 0 {
                most = most.max(proxy.rss_bytes());
            }
        }
        let (head, body) = client.response();
        assert_eq!(
            (head.status(), String::from_utf8_lossy(&body).trim()),
            (200, format!("{{\"bytes\":{SIZE}}}").as_str())
        );
        assert!(most < before + MEMORY_BOUND, "{driver}: {before} bytes, then {most}");
    }
}

#[test]
fn a_download_of_1_gib_passes_in_bounded_memory() {
    const SIZE: u64 = 1 << 30;
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let before = proxy.rss_bytes();
    let mut client = proxy.connect();
    client.get("/bytes/1GiB");
    let head = client.head();
    assert_eq!(head.field("Content-Length"), Some("1073741824"));
    let mut most = 0;
    for _ in 0..8 {
        assert!(client.discard(SIZE / 8 - (1 << 20)) > 0);
        most = most.max(proxy.rss_bytes());
    }
    drop(client);
    assert!(most < before + MEMORY_BOUND, "{before} bytes, then {most}");
}

#[test]
fn every_byte_of_a_body_is_the_one_that_was_sent() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let mut client = proxy.connect();
        for path in
            ["/bytes/3MiB", "/bytes/3MiB?chunked", "/bytes/3MiB?chunked&chunk=1000", "/bytes/300KiB?split=7"]
        {
            let (head, body) = client.get(path).response();
            assert_eq!(head.status(), 200);
            let wrong = body.iter().enumerate().position(|(at, byte)| usize::from(*byte) != at % 251);
            assert_eq!(wrong, None, "{driver} {path}");
            assert_eq!(body.len() % 1024, 0);
        }
    }
}

#[test]
fn a_reader_that_is_slow_slows_the_origin_and_fills_no_memory() {
    for driver in DRIVERS {
        let (listener, proxy) = scripted(driver);
        let mut client = Wire::connect_narrow(proxy.addr(), 16 * 1024);
        client.get("/flood");
        let mut upstream = Wire::accept(&listener);
        upstream.head();
        const SIZE: usize = 256 << 20;
        upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        client.head();
        let before = proxy.rss_bytes();
        // Until the origin is made to wait: what went in is in the buffers between it and the client.
        let mut writer = upstream.second();
        let sent = std::thread::spawn(move || writer.send_until_blocked(SIZE)).join().unwrap();
        assert!(sent < 32 << 20, "{driver}: the origin could send {sent} bytes that nobody reads");
        assert!(proxy.rss_bytes() < before + MEMORY_BOUND, "{driver}");
        let status = proxy.status();
        // Of the same tick of the worker's clock: what it holds back is in a buffer that is counted.
        let memory = &status["memory"];
        assert!(memory["buffers"].as_u64().unwrap() >= 1, "{driver}: {status}");
        assert!((1..1 << 20).contains(&memory["buffer_bytes"].as_u64().unwrap()), "{driver}: {status}");
        // And the flow goes on when the client reads again.
        assert!(client.discard(sent as u64 / 2) > 0);
        upstream.send(vec![b'x'; 1 << 10]);
    }
}

#[test]
fn chunked_bodies_keep_their_trailers() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client.send(
        "POST /t HTTP/1.1\r\nHost: story\r\nTransfer-Encoding: chunked\r\nTrailer: X-Up\r\n\r\n\
         3\r\nabc\r\n0\r\nX-Up: yes\r\n\r\n",
    );
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    let (body, trailers) = upstream.try_chunked().unwrap();
    assert_eq!((body.as_slice(), trailers.as_str()), (&b"abc"[..], "X-Up: yes\r\n"));
    upstream.send(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Down\r\n\r\n\
         3\r\ndef\r\n0\r\nX-Down: yes\r\n\r\n",
    );
    client.head();
    let (body, trailers) = client.try_chunked().unwrap();
    assert_eq!((body.as_slice(), trailers.as_str()), (&b"def"[..], "X-Down: yes\r\n"));
}

#[test]
fn a_body_that_ends_with_the_connection_ends_with_a_last_chunk() {
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.connect();
    for _ in 0..3 {
        let (head, body) = client.get("/bytes/100KiB?close").response();
        assert_eq!(head.field("Transfer-Encoding"), Some("chunked"));
        assert_eq!(body.len(), 100 << 10);
    }
}

#[test]
fn clients_of_http_1_0_get_bare_bodies_and_an_end() {
    let origin = origin();
    let proxy = Proxy::before(&origin);
    for path in ["/bytes/100KiB?chunked", "/bytes/100KiB?close", "/bytes/100KiB", "/early-hints"] {
        let mut client = proxy.connect();
        client.send(format!("GET {path} HTTP/1.0\r\nHost: story\r\n\r\n"));
        let head = client.head();
        assert_eq!((head.status(), head.field("Transfer-Encoding")), (200, None), "{}", head.raw);
        let (body, end) = client.end();
        assert_eq!(end, End::Fin);
        if path != "/early-hints" {
            assert_eq!(body.len(), 100 << 10, "{path}");
        }
    }
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.send("GET /bytes/10 HTTP/1.0\r\nHost: story\r\nConnection: keep-alive\r\n\r\n");
        let (head, body) = client.response();
        assert_eq!(head.field("Connection").map(str::to_ascii_lowercase).as_deref(), Some("keep-alive"));
        assert_eq!(body.len(), 10);
    }
}

#[test]
fn heads_without_a_body_end_where_their_head_ends() {
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.send("HEAD /bytes/1MiB HTTP/1.1\r\nHost: story\r\n\r\n");
        let head = client.head();
        assert_eq!((head.status(), head.field("Content-Length")), (200, Some("1048576")));
        for status in [204, 304] {
            client.get(&format!("/status/{status}"));
            let head = client.head();
            assert_eq!((head.status(), head.field("Transfer-Encoding")), (status, None));
        }
        assert_eq!(client.get("/bytes/5").response().1.len(), 5);
    }
}

#[test]
fn interim_responses_are_passed_on_at_once() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client.get("/hints");
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    upstream.send("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n");
    let hints = client.head();
    assert_eq!((hints.status(), hints.field("Link")), (103, Some("</style.css>; rel=preload")));
    upstream.send("HTTP/1.1 102 Processing\r\n\r\n");
    assert_eq!(client.head().status(), 102);
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(client.response().1, b"ok");
}

#[test]
fn expect_continue_is_answered_by_the_origin() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client.send("POST /e HTTP/1.1\r\nHost: story\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let mut upstream = Wire::accept(&listener);
    let head = upstream.head();
    assert_eq!(head.field("Expect"), Some("100-continue"));
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.send("hello");
    assert_eq!(upstream.exact(5), b"hello");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(client.response().1, b"ok");

    // An origin that does not want the body says so; the client never sends it, and nothing hangs.
    let mut client = proxy.connect();
    client.send("POST /e HTTP/1.1\r\nHost: story\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    upstream.head();
    upstream.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
    let (head, body) = client.response();
    assert_eq!((head.status(), body.as_slice()), (401, &b"no"[..]));
    assert_eq!(head.field("Connection").map(str::to_ascii_lowercase).as_deref(), Some("close"));
    assert_eq!(client.end().1, End::Fin);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let mut client = proxy.connect();
        let requests: String = (0..50)
            .map(|number| match number % 3 {
                0 => format!("GET /bytes/{} HTTP/1.1\r\nHost: story\r\n\r\n", number + 1),
                1 => format!("POST /echo/{number} HTTP/1.1\r\nHost: story\r\nContent-Length: 5\r\n\r\nhello"),
                _ => format!(
                    "POST /echo/{number} HTTP/1.1\r\nHost: story\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
                ),
            })
            .collect();
        client.send(requests);
        for number in 0..50 {
            let (head, body) = client.response();
            assert_eq!(head.status(), 200, "{driver} {number}");
            match number % 3 {
                0 => assert_eq!(body.len(), number + 1, "{driver}"),
                _ => {
                    let body = String::from_utf8(body).unwrap();
                    assert!(body.contains(&format!("/echo/{number}\"")), "{driver} {number}: {body}");
                }
            }
        }
        assert_eq!(origin.stats().requests.total, 50);
    }
}

#[test]
fn an_early_answer_ends_an_upload_that_nobody_wants() {
    let (listener, proxy) = scripted("auto");
    let mut client = proxy.connect();
    client.send("POST /big HTTP/1.1\r\nHost: story\r\nContent-Length: 100000000\r\n\r\nsome");
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    upstream.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
    let (head, body) = client.response();
    assert_eq!((head.status(), body.as_slice()), (413, &b"no"[..]));
    assert_eq!(head.field("Connection").map(str::to_ascii_lowercase).as_deref(), Some("close"));
    assert_eq!(client.end().1, End::Fin);
    drop(client);
    drop(upstream);
    proxy.assert_at_rest();
}

#[test]
fn nothing_is_left_behind_by_thousand_streams() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let mut clients: Vec<Wire> = (0..250).map(|_| proxy.connect()).collect();
        for round in 0..4 {
            for client in &mut clients {
                client.get("/sse?tokens=20&tokens_per_second=200");
            }
            for client in &mut clients {
                let (head, body) = client.response();
                assert_eq!(head.status(), 200);
                let body = String::from_utf8(body).unwrap();
                assert_eq!(body.matches("data: {\"seq\":").count(), 20, "{driver} {round}: {body}");
            }
        }
        drop(clients);
        proxy.assert_at_rest();
    }
}
