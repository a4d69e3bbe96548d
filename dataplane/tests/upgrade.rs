//! A binary upgrade: a new process takes over, no connection is refused, no stream is cut; and one that fails changes
//! nothing.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{DataPlane, SlowOrigin, end_stream, forward_to, get, origin};
use rustix::process::Signal;

#[test]
fn a_new_process_takes_over_and_the_old_one_ends() {
    let mut it = DataPlane::start(&forward_to(origin("hello")));
    let address = it.address("http");
    let old = it.status()["pid"].as_i64().unwrap();
    it.signal(Signal::USR2);
    let new = it.wait_for_takeover();
    assert_ne!(i64::from(new), old);
    assert!(it.wait_for_end().success(), "{}", it.log());
    assert_eq!(it.address("http"), address, "the port that the kernel chose is still the same");
    assert_eq!(get(address, "/").unwrap().body, "hello");
}

#[test]
fn a_stream_that_the_old_process_carries_comes_to_its_end() {
    let slow = SlowOrigin::start();
    let mut it = DataPlane::start(&forward_to(slow.address));
    let mut client = TcpStream::connect(it.address("http")).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let stream = slow.begun();
    it.signal(Signal::USR2);
    it.wait_for_takeover();
    end_stream(stream);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("5\r\nended\r\n0\r\n\r\n"), "{answer}");
    assert!(it.wait_for_end().success(), "{}", it.log());
}

#[test]
fn no_connection_is_refused_while_processes_change() {
    let mut it = DataPlane::start(&forward_to(origin("hello")));
    let address = it.address("http");
    let (is_over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (is_over, asked) = (Arc::clone(&is_over), Arc::clone(&asked));
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let answer = get(address, "/").expect("a request failed");
                    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        it.signal(Signal::USR2);
        it.wait_for_takeover();
        let before = asked.load(Ordering::Relaxed);
        it.wait_until("requests go on", |_| asked.load(Ordering::Relaxed) > before + 50);
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("a client failed");
    }
}

#[test]
fn a_new_process_that_fails_leaves_the_old_one_serving() {
    let mut it = DataPlane::start(&forward_to(origin("hello")));
    it.write_config("nonsense = 1\n");
    it.signal(Signal::USR2);
    it.wait_until("the failure is told of", |it| it.log().contains("the upgrade failed"));
    assert_eq!(get(it.address("http"), "/").unwrap().body, "hello");
    assert_eq!(it.status()["pid"].as_i64(), Some(i64::from(it.pid())));
}

#[test]
fn a_config_that_came_over_the_api_goes_from_process_to_process() {
    let mut it = DataPlane::start(&forward_to(origin("file")));
    let config = it.config(&forward_to(origin("api")));
    assert_eq!(it.admin("PUT", "/config", &config).status, 200);
    // Twice: the process that was left the config has to leave it to the next one.
    for _ in 0..2 {
        it.signal(Signal::USR2);
        it.wait_for_takeover();
        assert_eq!(it.admin("GET", "/config", "").body, config);
    }
    assert_eq!(get(it.address("http"), "/").unwrap().body, "api");
}

#[test]
fn another_number_of_workers_takes_all_sockets_over() {
    let origin = origin("hello");
    for (before, after) in [(4, 1), (1, 3)] {
        let workers = |count: usize| format!("runtime = {{ workers = {count} }}\n{}", forward_to(origin));
        let mut it = DataPlane::start(&workers(before));
        let address = it.address("http");
        it.write_config(&workers(after));
        it.signal(Signal::USR2);
        it.wait_for_takeover();
        assert_eq!(it.status()["workers"], after);
        it.wait_for_end();
        for _ in 0..30 {
            assert_eq!(get(address, "/").unwrap().body, "hello");
        }
    }
}
