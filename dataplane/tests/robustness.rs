//! What peers and operators do to it by malice, accident or misfortune: it goes on serving, nothing panics, and everything
//! that was lent is given back.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::io::ErrorKind;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use bench::origin::Origin;
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use rustix::process::{Pid, Resource, getrlimit, prlimit};
use story::config::Config;
use story::wire::Wire;
use story::{DRIVERS, PATIENCE, Proxy, origin};

const MEMORY_BOUND: u64 = 48 << 20;

/// Pieces that requests, broken ones above all, are made of.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /upload HTTP/1.1\r\n",
        "HEAD /bytes/10 HTTP/1.0\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "Host: story\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "X: \u{0}\r\n",
        " folded\r\n",
        "\r\n",
        "\n",
        "hello",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}",
    ]);
    prop_oneof![
        8 => words.prop_map(|word| word.chars().map(|char| char as u8).collect()),
        1 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (any::<u8>(), 1..40_000_usize).prop_map(|(byte, times)| vec![byte; times]),
    ]
}

/// How a client of the random test ends.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Close,
    HalfClose,
    Reset,
}

fn leave() -> impl Strategy<Value = Leave> {
    prop::sample::select(vec![Leave::Close, Leave::HalfClose, Leave::Reset])
}

#[test]
fn random_bytes_in_random_pieces_harm_nothing() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).limits("request_head_timeout = \"1s\"");
        let proxy = Proxy::start(&config);
        let addr = proxy.addr();
        let strategy = (prop::collection::vec(piece(), 1..12), leave());
        let mut runner = TestRunner::new(Runs { cases: 300, failure_persistence: None, ..Runs::default() });
        let result = runner.run(&strategy, |(pieces, leave)| {
            let mut client = Wire::connect(addr);
            // It may be refused and closed before the last piece.
            let _ = pieces.iter().try_for_each(|piece| client.try_send(piece));
            match leave {
                Leave::Close => drop(client),
                Leave::Reset => client.reset(),
                Leave::HalfClose => {
                    client.half_close_if_open();
                    let (answer, _) = client.end();
                    prop_assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "), "{answer:?}");
                }
            }
            Ok(())
        });
        assert!(result.is_ok(), "{driver}: {result:?}\n{}", proxy.output());
        assert_eq!(proxy.connect().get("/").response().0.status(), 200);
        proxy.assert_at_rest();
    }
}

#[test]
fn two_thousand_connections_that_come_and_go_leave_nothing() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let before = proxy.rss_bytes();
        let addr = proxy.addr();
        let mut clients: Vec<Wire> = (0..2000).map(|_| Wire::connect(addr)).collect();
        proxy.eventually("all are accepted", |proxy| proxy.status()["connections"] == 2000);
        for (index, client) in clients.iter_mut().enumerate() {
            match index % 4 {
                0 => drop(client.try_send("GET / HT")),
                1 => drop(client.get("/sse?stall_at=1")),
                2 => drop(
                    client.send("POST /upload HTTP/1.1\r\nHost: story\r\nContent-Length: 100\r\n\r\nsome"),
                ),
                _ => {}
            }
        }
        proxy.eventually("the requests are under way", |proxy| proxy.status()["streams"] == 1000);
        for (index, client) in clients.into_iter().enumerate() {
            if index % 2 == 0 {
                client.reset();
            }
        }
        proxy.assert_at_rest();
        assert_eq!(proxy.connect().get("/").response().0.status(), 200);
        let after = proxy.rss_bytes();
        assert!(after < before + MEMORY_BOUND, "{driver}: {before} bytes, then {after}");
    }
}

#[test]
fn half_open_clients_do_not_pile_up() {
    let origin = origin();
    let proxy = Proxy::start(
        &Config::to(origin.addr()).limits("request_head_timeout = \"300ms\"\nkeep_alive_timeout = \"300ms\""),
    );
    let _clients: Vec<Wire> = (0..200)
        .map(|index| {
            let mut client = proxy.connect();
            if index % 2 == 0 {
                client.send("GET / HTTP/1.1\r\nHost: ");
            }
            client
        })
        .collect();
    // None of them ever says another word, and none of them closes.
    proxy.assert_at_rest();
    assert_eq!(proxy.listener_faults("request_head_timeout"), 100);
}

#[test]
fn a_node_without_descriptors_waits_for_some_and_counts_it() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let addr = proxy.addr();
        let mut stream = proxy.connect();
        stream.get("/sse?tokens=100000&tokens_per_second=100");
        stream.head();
        let usual = proxy.leave_files(0);
        let mut waiting: Vec<Wire> = (0..5).map(|_| Wire::connect(addr)).collect();
        proxy.eventually("it cannot accept", |proxy| proxy.output().contains("cannot accept"));
        stream.until("\n\n");
        prlimit(Pid::from_raw(proxy.pid() as i32), Resource::Nofile, usual).unwrap();
        // One that was let in meanwhile and said nothing may have gone for the next.
        let is_served = |client: &mut Wire| {
            client.try_send("GET / HTTP/1.1\r\nHost: story\r\n\r\n").is_ok()
                && client.try_head().is_ok_and(|head| head.status() == 200)
        };
        let served = waiting.iter_mut().filter_map(|client| is_served(client).then_some(())).count() as u64;
        let displaced = proxy.metric("millrace_connections_displaced_total", &[]);
        assert!(served > 0 && served + displaced >= 5, "{driver}: {served} served, {displaced} displaced");
        assert_eq!(proxy.connect().get("/").response().0.status(), 200, "{driver}");
        assert!(proxy.metric("millrace_accept_failures_total", &["listener=\"http\""]) > 0, "{driver}");
        drop((stream, waiting));
        proxy.assert_at_rest();
    }
}

#[test]
fn the_table_of_files_is_as_long_as_the_limits_allow_before_there_are_clients() {
    let origin = origin();
    let config = |connections: u32| Config::to(origin.addr()).limits(&format!("connections = {connections}"));
    let proxy = Proxy::start(&config(2000));
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = proxy.room_for_files();
    assert!((4000.min(allowed)..16_000).contains(&room), "{room}");
    assert_eq!(proxy.put_config(&config(8000)).0, 200);
    let room = proxy.room_for_files();
    assert!(room >= 16_000.min(allowed), "{room}");
    let metric = proxy.metric("process_open_fds", &[]);
    assert!(metric.abs_diff(proxy.open_files() as u64) <= 2, "{metric}, {}", proxy.open_files());
}

/// Requests at once, one from each client, each with a connection to `origin`: all have come there before one ends.
fn burst(clients: &mut [Wire], host: &str, origin: &Origin) -> Vec<u16> {
    for client in &mut *clients {
        client.send(format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n\r\nhalf"));
    }
    let all = clients.len() as u64;
    origin.wait_for(PATIENCE, |stats| stats.requests.in_flight == all).expect("all are there");
    for client in &mut *clients {
        client.send("a body");
    }
    clients.iter_mut().map(|client| client.response().0.status()).collect()
}

#[test]
fn who_needs_descriptors_gets_those_of_idle_connections_to_endpoints() {
    const CLIENTS: usize = 60;
    for driver in DRIVERS {
        let (first, second) = (origin(), origin());
        let more = format!(
            "[[routes]]\nname = \"second\"\nhosts = [\"second\"]\ncluster = \"second\"\n\
             [[clusters]]\nname = \"second\"\nendpoints = [{{ address = \"{}\" }}]",
            second.addr()
        );
        let proxy = Proxy::start(&Config::to(first.addr()).driver(driver).more(&more));
        let mut clients: Vec<Wire> = (0..CLIENTS).map(|_| proxy.connect()).collect();
        assert_eq!(burst(&mut clients, "first", &first), [200; CLIENTS]);
        // What the first burst used lies idle now, and there are no others for the second.
        proxy.leave_files(4);
        assert_eq!(burst(&mut clients, "second", &second), [200; CLIENTS], "{driver}");
        // Nor for further clients, but for those that the second has left.
        proxy.leave_files(0);
        let mut late: Vec<Wire> = (0..5).map(|_| proxy.connect()).collect();
        assert_eq!(burst(&mut late, "first", &first), [200; 5], "{driver}");
        drop((clients, late));
        proxy.assert_at_rest();
    }
}

/// An origin in a process of its own, so that it can be killed: it says where it listens and begins endless answers.
struct Doomed {
    child: Child,
    port: u16,
}

impl Doomed {
    fn start() -> Self {
        const SCRIPT: &str = "import socket,sys,threading\n\
            s=socket.create_server(('127.0.0.1',0),backlog=512)\n\
            print(s.getsockname()[1],flush=True)\n\
            def serve(c):\n\
            \x20while c.recv(65536):\n\
            \x20 c.sendall(b'HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n5\\r\\nhello\\r\\n')\n\
            while True:\n\
            \x20threading.Thread(target=serve,args=(s.accept()[0],),daemon=True).start()\n";
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
            .unwrap();
        Self { child, port: line.trim().parse().unwrap() }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_origin_that_is_killed_ends_its_streams_and_nothing_else() {
    for driver in DRIVERS {
        let survivor = origin();
        let mut doomed = Doomed::start();
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], doomed.port));
        let proxy = Proxy::start(&Config::to(survivor.addr()).driver(driver).more(&format!(
            "[[routes]]\nname = \"doomed\"\npath = \"/doomed\"\ncluster = \"doomed\"\n\
             [[clusters]]\nname = \"doomed\"\nendpoints = [{{ address = \"{addr}\" }}]"
        )));
        let mut bystander = proxy.connect();
        bystander.get("/sse?tokens=100000&tokens_per_second=100");
        bystander.head();
        let mut streams: Vec<Wire> = (0..50).map(|_| proxy.connect()).collect();
        for stream in &mut streams {
            stream.get("/doomed");
            stream.head();
            assert_eq!(stream.chunk(), "hello");
        }
        doomed.kill();
        for stream in &mut streams {
            let (rest, _) = stream.end();
            assert!(rest.is_empty(), "{driver}: {rest:?} behind the last that the origin said");
        }
        let mut client = proxy.connect();
        assert_eq!(client.get("/doomed").response().0.status(), 502);
        assert_eq!(client.get("/").response().0.status(), 200);
        bystander.until("\n\n");
        drop((bystander, streams, client));
        let ends = proxy.faults("upstream_truncated") + proxy.faults("upstream_reset");
        assert_eq!((ends, proxy.faults("connect_refused")), (50, 1), "{driver}");
        proxy.assert_at_rest();
    }
}

/// What comes in on both ends at once, thrown away at any moment: whatever is in flight in the kernel then, its buffers
/// come back.
#[test]
fn exchanges_cut_at_any_moment_give_their_buffers_back() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config::to(listener.local_addr().unwrap()).driver(driver);
        let proxy = Proxy::start(&config);
        let addr = proxy.addr();
        // An origin that cuts as well, at its own moments.
        let cutting = std::thread::spawn(move || {
            let mut cut = 0_usize;
            while let Some(mut upstream) = Wire::accept_within(&listener, std::time::Duration::from_secs(2)) {
                cut += 1;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n{:x}\r\n",
                    1 << 20
                );
                let bytes = &answer.as_bytes()[..cut * 7 % (answer.len() + 1)];
                let _ = upstream.try_send(bytes);
                if cut.is_multiple_of(3) {
                    upstream.reset();
                }
            }
            cut
        });
        let request =
            "POST / HTTP/1.1\r\nHost: story\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n100000\r\n";
        for round in 0..400 {
            let mut client = Wire::connect(addr);
            let _ = client.try_send(&request[..round * 11 % (request.len() + 1)]);
            match round % 4 {
                0 => client.reset(),
                1 => drop(client),
                2 => {
                    client.half_close_if_open();
                    client.end();
                }
                _ => {
                    // Waits for whatever comes first, then leaves in the middle of it.
                    client.patience(std::time::Duration::from_millis(20));
                    let some = client.try_some();
                    assert!(some.is_ok() || some.is_err_and(|error| error.kind() != ErrorKind::InvalidInput));
                }
            }
        }
        proxy.assert_at_rest();
        assert!(cutting.join().unwrap() > 50, "{driver}: hardly anything reached the origin");
    }
}
