//! Configs applied one after another while requests and a long stream go through: nothing is lost, the stream ends on
//! the generation that it began with.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{DataPlane, SlowOrigin, end_stream, forward_to, get, origin};

/// How many configs are applied one after another.
const APPLIES: u64 = 60;

/// Sends requests on one connection until told to stop; panics if one is not answered as it should be.
fn keep_asking(address: SocketAddr, is_over: &AtomicBool, asked: &AtomicUsize) {
    let mut stream = TcpStream::connect(address).expect("the connection was refused");
    let mut received = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("the connection was closed");
        while !received.ends_with(b"\r\n\r\nhello") {
            let mut part = [0; 4096];
            let length = stream.read(&mut part).expect("the answer was cut");
            assert!(length > 0, "closed after {:?}", String::from_utf8_lossy(&received));
            received.extend_from_slice(&part[..length]);
        }
        assert!(received.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&received));
        received.clear();
        asked.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn many_applies_under_traffic_lose_nothing() {
    let config = forward_to(origin("hello"));
    let mut it = DataPlane::start(&config);
    let address = it.address("http");
    let (is_over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (is_over, asked) = (Arc::clone(&is_over), Arc::clone(&asked));
            std::thread::spawn(move || keep_asking(address, &is_over, &asked))
        })
        .collect();
    for round in 0..APPLIES {
        // Every other config has other limits and another listener beside the one in use.
        let more = if round % 2 == 0 {
            "[limits]\nconnections = 5000\n[[listeners]]\nname = \"other\"\nbind = \"127.0.0.1:0\"\n"
        } else {
            ""
        };
        let answer = it.admin("PUT", "/config", &it.config(&format!("{config}{more}")));
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(get(address, "/").expect("a new connection failed").body, "hello");
    }
    let before = asked.load(Ordering::Relaxed);
    it.wait_until("requests go on", |_| asked.load(Ordering::Relaxed) > before + 50);
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("a client failed");
    }
    assert_eq!(it.status()["generation"], APPLIES + 1);
}

#[test]
fn a_stream_ends_on_the_generation_that_it_began_with() {
    let slow = SlowOrigin::start();
    let mut it = DataPlane::start(&forward_to(slow.address));
    let mut client = TcpStream::connect(it.address("http")).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let stream = slow.begun();
    let other = it.config(&forward_to(origin("other")));
    assert_eq!(it.admin("PUT", "/config", &other).status, 200);
    let both = serde_json::json!([{ "generation": 1, "streams": 1 }, { "generation": 2, "streams": 0 }]);
    assert_eq!(it.status()["generations"], both);
    assert_eq!(get(it.address("http"), "/").unwrap().body, "other");

    end_stream(stream);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("5\r\nended\r\n0\r\n\r\n"), "{answer}");
    let one = serde_json::json!([{ "generation": 2, "streams": 0 }]);
    it.wait_until("the first generation is gone", |it| it.status()["generations"] == one);
}

#[test]
fn a_refused_config_leaves_traffic_alone() {
    let it = DataPlane::start(&forward_to(origin("hello")));
    let answer = it.admin("PUT", "/config", "[[listeners]]\nname = 1\n");
    assert_eq!(answer.status, 422);
    let errors: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(errors["errors"][0]["line"], 1, "{errors}");
    assert_eq!(get(it.address("http"), "/").unwrap().body, "hello");
}
