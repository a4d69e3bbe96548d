//! Signals and the drain: what an operator's `systemctl reload` and `stop` mean for those who are being served.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::{DataPlane, SlowOrigin, end_stream, forward_to, get, origin};
use rustix::process::Signal;

#[test]
fn hangup_reads_the_file_again() {
    let mut it = DataPlane::start(&forward_to(origin("before")));
    let address = it.address("http");
    it.write_config(&forward_to(origin("after")));
    it.signal(Signal::HUP);
    it.wait_until("the second generation serves", |it| it.status()["generation"] == 2);
    assert_eq!(get(address, "/").unwrap().body, "after");
}

#[test]
fn hangup_with_a_wrong_file_changes_nothing() {
    let mut it = DataPlane::start(&forward_to(origin("before")));
    it.write_config("nonsense = 1\n");
    it.signal(Signal::HUP);
    it.wait_until("the refusal is told of", |it| it.log().contains("config refused"));
    assert_eq!(it.status()["generation"], 1);
    assert_eq!(get(it.address("http"), "/").unwrap().body, "before");
}

#[test]
fn terminate_lets_a_stream_end_and_takes_nothing_new() {
    let slow = SlowOrigin::start();
    let mut it = DataPlane::start(&forward_to(slow.address));
    let address = it.address("http");
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let stream = slow.begun();
    it.signal(Signal::TERM);
    it.wait_until("it takes no connections", |_| TcpStream::connect(address).is_err());
    assert_eq!(it.admin("GET", "/readyz", "").status, 503);
    end_stream(stream);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("5\r\nended\r\n0\r\n\r\n"), "{answer}");
    assert!(it.wait_for_end().success(), "{}", it.log());
    assert!(!it.path("admin.sock").exists());
}

#[test]
fn terminate_cuts_what_the_drain_timeout_does_not_wait_for() {
    let slow = SlowOrigin::start();
    let config = format!("limits = {{ drain_timeout = \"1s\" }}\n{}", forward_to(slow.address));
    let mut it = DataPlane::start(&config);
    let mut client = TcpStream::connect(it.address("http")).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let _stream = slow.begun();
    it.signal(Signal::TERM);
    assert!(it.wait_for_end().success(), "{}", it.log());
    let mut answer = Vec::new();
    // A reset is as good an end as any here, but a clean one would be a lie.
    let _ = client.read_to_end(&mut answer);
    assert!(!answer.ends_with(b"0\r\n\r\n"), "a cut stream must not look whole");
}

#[test]
fn interrupt_ends_it_at_once() {
    let slow = SlowOrigin::start();
    let mut it = DataPlane::start(&forward_to(slow.address));
    let mut client = TcpStream::connect(it.address("http")).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let _stream = slow.begun();
    it.signal(Signal::INT);
    assert!(it.wait_for_end().success(), "{}", it.log());
}
