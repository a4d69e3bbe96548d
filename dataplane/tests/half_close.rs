//! Clients that end their side of the connection (FIN) behind their request: who is answered all the same, for how long, and whose
//! request is cancelled. What is cancelled at once, and how soon the origin knows, is in `cancel.rs`.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use story::capture::Capture;
use story::config::Config;
use story::wire::{End, Wire};
use story::{DRIVERS, Proxy};

/// The silence after which a plain request of a half-closed client is cancelled.
const SILENCE: Duration = Duration::from_secs(1);
/// Longer than that by what a slow clock and a busy machine add.
const SILENCE_SURELY: Duration = Duration::from_millis(1500);
/// What is noticed at once, is noticed in less.
const AT_ONCE: Duration = Duration::from_millis(700);

/// A client that may be there still is looked after every 100 ms; what needs no such look is noticed in less.
const BEFORE_THE_NEXT_LOOK: Duration = Duration::from_millis(60);
/// How often that is measured: the soonest counts, since a busy machine only ever makes it later.
const ROUNDS: u64 = 7;

fn soonest(measure: impl Fn() -> Duration) -> Duration {
    (0..ROUNDS).map(|_| measure()).min().unwrap()
}

/// A proxy with this rule in front of an origin that the story plays itself.
fn before_listener(driver: &str, rule: &str) -> (TcpListener, Proxy) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config::to(listener.local_addr().unwrap()).driver(driver).listener(rule);
    let proxy = Proxy::start(&config);
    (listener, proxy)
}

/// Sends a request and the end of the client's side, and waits until the origin has the request.
fn ask(proxy: &Proxy, listener: &TcpListener, request: &str) -> (Wire, Wire) {
    let mut client = proxy.connect();
    client.send(request).half_close();
    let mut upstream = Wire::accept(listener);
    upstream.head();
    (client, upstream)
}

fn plain(method: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: story\r\n\r\n")
}

const POST: &str = "POST / HTTP/1.1\r\nHost: story\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn whoever_only_reads_is_answered_by_default() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "");
        for method in ["GET", "HEAD", "OPTIONS"] {
            let (mut client, mut upstream) = ask(&proxy, &listener, &plain(method));
            upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n");
            if method != "HEAD" {
                upstream.send("ok");
            }
            assert_eq!(client.head().status(), 200, "{driver} {method}");
            let (rest, end) = client.end();
            assert_eq!(
                (rest.len(), end),
                (if method == "HEAD" { 0 } else { 2 }, End::Fin),
                "{driver} {method}"
            );
        }
        assert_eq!(proxy.faults("client_gone"), 0, "{driver}");
        proxy.assert_at_rest();
    }
}

#[test]
fn everything_that_was_sent_before_the_end_is_answered() {
    for (driver, rule) in
        DRIVERS.into_iter().flat_map(|driver| [(driver, ""), (driver, "half_close = \"serve\"")])
    {
        let origin = Capture::start();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver).listener(rule));
        let mut client = proxy.connect();
        let last = if rule.is_empty() { plain("GET") } else { POST.to_owned() };
        client.send(format!("{}{}{last}", plain("GET"), plain("OPTIONS"))).half_close();
        for place in 0..3 {
            assert_eq!(client.response().1, b"ok", "{driver} {rule}: answer {place}");
        }
        assert_eq!(client.end(), (Vec::new(), End::Fin), "{driver} {rule}");
        assert_eq!(origin.take().len(), 3, "{driver} {rule}");
        proxy.assert_at_rest();
    }
}

#[test]
fn a_plain_request_waits_a_second_for_its_answer_to_begin() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "");
        let began = Instant::now();
        let (mut client, mut upstream) = ask(&proxy, &listener, &plain("GET"));
        upstream.end();
        let waited = began.elapsed();
        // A tick may have begun before the wait did.
        assert!(waited > SILENCE - Duration::from_millis(50), "{driver}: cancelled after {waited:?}");
        assert!(waited < 5 * SILENCE, "{driver}: cancelled only after {waited:?}");
        assert!(client.end().0.is_empty(), "{driver}");
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
        proxy.assert_at_rest();
    }
}

#[test]
fn an_answer_that_has_begun_may_take_its_time_but_not_fall_silent() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "");
        let (mut client, mut upstream) = ask(&proxy, &listener, &plain("GET"));
        upstream.send("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 8\r\n\r\ns");
        client.head();
        for piece in ["l", "o", "w", "l"] {
            std::thread::sleep(SILENCE * 2 / 5);
            upstream.send(piece);
        }
        // Longer than one silence may be, and none of them was.
        client.until("slowl");
        let began = Instant::now();
        upstream.end();
        let waited = began.elapsed();
        assert!(waited > SILENCE - Duration::from_millis(150), "{driver}: cancelled after {waited:?}");
        assert!(waited < 5 * SILENCE, "{driver}: cancelled only after {waited:?}");
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
        proxy.assert_at_rest();
    }
}

#[test]
fn an_answer_that_turns_out_to_be_an_event_stream_is_cancelled_at_once() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "");
        let (_client, mut upstream) = ask(&proxy, &listener, &plain("GET"));
        let began = Instant::now();
        upstream.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        upstream.end();
        assert!(began.elapsed() < AT_ONCE, "{driver}: cancelled after {:?}", began.elapsed());
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
        proxy.assert_at_rest();
    }
}

#[test]
fn what_may_cost_a_model_something_is_cancelled_at_once_by_default() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "");
        let events = "GET / HTTP/1.1\r\nHost: story\r\nAccept: text/html, Text/Event-Stream;q=0.9\r\n\r\n";
        for request in [POST, events, &plain("PURGE"), &plain("DELETE")] {
            let (mut client, mut upstream) = ask(&proxy, &listener, request);
            let began = Instant::now();
            upstream.end();
            assert!(began.elapsed() < AT_ONCE, "{driver} {request}: after {:?}", began.elapsed());
            assert!(client.end().0.is_empty(), "{driver} {request}");
        }
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 4);
        proxy.assert_at_rest();
    }
}

#[test]
fn cancel_takes_every_end_for_a_goodbye() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "half_close = \"cancel\"");
        let (mut client, mut upstream) = ask(&proxy, &listener, &plain("GET"));
        let began = Instant::now();
        upstream.end();
        assert!(began.elapsed() < AT_ONCE, "{driver}: after {:?}", began.elapsed());
        assert!(client.end().0.is_empty(), "{driver}");
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
        proxy.assert_at_rest();
    }
}

#[test]
fn serve_answers_whatever_came_in_whole_however_long_it_takes() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "half_close = \"serve\"");
        let (mut client, mut upstream) = ask(&proxy, &listener, POST);
        upstream.exact(2);
        std::thread::sleep(SILENCE_SURELY);
        upstream.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: a\n\n",
        );
        assert_eq!(client.response().1, b"data: a\n\n", "{driver}");
        assert_eq!(client.end(), (Vec::new(), End::Fin), "{driver}");
        assert_eq!(proxy.faults("client_gone"), 0, "{driver}");
    }
}

/// The end of the client's side is here long before the origin has taken the body.
#[test]
fn serve_lets_an_origin_take_a_long_upload_slowly() {
    const LENGTH: usize = 24 << 20;
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "half_close = \"serve\"");
        let mut client = proxy.connect();
        let mut sender = client.second();
        let sent = std::thread::spawn(move || {
            sender.send(format!("POST / HTTP/1.1\r\nHost: story\r\nContent-Length: {LENGTH}\r\n\r\n"));
            sender.send(vec![b'x'; LENGTH]).half_close();
        });
        let mut upstream = Wire::accept(&listener);
        upstream.head();
        assert_eq!(upstream.exact(LENGTH).len(), LENGTH);
        sent.join().unwrap();
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(client.response().1, b"ok", "{driver}");
        assert_eq!(client.end(), (Vec::new(), End::Fin), "{driver}");
        assert_eq!(proxy.faults("client_gone"), 0, "{driver}");
    }
}

#[test]
fn an_end_within_a_body_is_a_goodbye_under_every_rule() {
    for driver in DRIVERS {
        for rule in ["", "half_close = \"serve\"", "half_close = \"cancel\""] {
            let (listener, proxy) = before_listener(driver, rule);
            let cut = "POST / HTTP/1.1\r\nHost: story\r\nContent-Length: 10\r\n\r\nhalf";
            let (mut client, mut upstream) = ask(&proxy, &listener, cut);
            upstream.end();
            assert!(client.end().0.is_empty(), "{driver} {rule}");
            proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
            proxy.assert_at_rest();
        }
    }
}

#[test]
fn a_reset_is_a_goodbye_at_once_under_every_rule() {
    for driver in DRIVERS {
        for rule in ["", "half_close = \"serve\"", "half_close = \"cancel\""] {
            let (listener, proxy) = before_listener(driver, rule);
            let soonest = soonest(|| {
                let mut client = proxy.connect();
                client.get("/");
                let mut upstream = Wire::accept(&listener);
                upstream.head();
                let began = Instant::now();
                client.reset();
                upstream.end();
                began.elapsed()
            });
            assert!(soonest < BEFORE_THE_NEXT_LOOK, "{driver} {rule}: after {soonest:?}");
            proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == ROUNDS);
        }
    }
}

#[test]
fn a_reset_behind_the_end_is_noticed_while_the_origin_is_silent() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "half_close = \"serve\"");
        let (client, mut upstream) = ask(&proxy, &listener, POST);
        let began = Instant::now();
        client.reset();
        upstream.exact(2);
        upstream.end();
        assert!(began.elapsed() < 5 * SILENCE, "{driver}: after {:?}", began.elapsed());
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
        proxy.assert_at_rest();
    }
}

#[test]
fn a_client_that_has_closed_is_noticed_by_what_it_is_sent() {
    for driver in DRIVERS {
        let (listener, proxy) = before_listener(driver, "half_close = \"serve\"");
        let (client, mut upstream) = ask(&proxy, &listener, &plain("GET"));
        drop(client);
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        // The first piece is answered with a reset, which is found with the next piece or the next look.
        upstream.end();
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
        proxy.assert_at_rest();
    }
}

/// A Unix socket tells a close from the end of one side.
#[test]
fn a_unix_client_that_closes_is_cancelled_at_once_and_one_that_only_ends_its_side_is_served() {
    for (driver, rule) in
        DRIVERS.into_iter().flat_map(|driver| [(driver, ""), (driver, "half_close = \"serve\"")])
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&Config {
            bind: vec!["unix:{dir}/http.sock".to_owned()],
            ..Config::to(listener.local_addr().unwrap()).driver(driver).listener(rule)
        });
        let connect = || Wire::try_connect_unix(&proxy.dir().join("http.sock")).unwrap();
        let mut client = connect();
        client.get("/").half_close();
        let mut upstream = Wire::accept(&listener);
        upstream.head();
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        assert_eq!(client.response().1, b"ok", "{driver} {rule}");

        let soonest = soonest(|| {
            let mut client = connect();
            client.get("/");
            let mut upstream = Wire::accept(&listener);
            upstream.head();
            let began = Instant::now();
            drop(client);
            upstream.end();
            began.elapsed()
        });
        assert!(soonest < BEFORE_THE_NEXT_LOOK, "{driver} {rule}: after {soonest:?}");
        proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == ROUNDS);
        proxy.assert_at_rest();
    }
}

#[test]
fn a_reload_changes_the_rule_for_the_next_request() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config::to(listener.local_addr().unwrap());
    let proxy = Proxy::start(&config);
    let mut kept = proxy.connect();
    let (status, body) = proxy.put_config(&config.clone().listener("half_close = \"cancel\""));
    assert_eq!(status, 200, "{body}");
    kept.get("/").half_close();
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    let began = Instant::now();
    upstream.end();
    assert!(began.elapsed() < AT_ONCE, "after {:?}", began.elapsed());
    proxy.eventually("gone clients are counted", |proxy| proxy.faults("client_gone") == 1);
}
