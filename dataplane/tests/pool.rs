//! Idle connections to origins: used as long as an origin keeps them, and given up before it closes them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use story::config::Config;
use story::wire::Wire;
use story::{DRIVERS, PATIENCE, Proxy};

/// A server that keeps idle connections for a time and then closes them without a word, as they all do.
struct Server {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// What it has seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    connections: usize,
    requests: usize,
    /// Connections that it closed itself, since they were idle for too long.
    timed_out: usize,
    /// Connections that were closed by the other side.
    given_up: usize,
    /// The longest time that a connection was idle before another request came on it.
    longest_idle: Duration,
}

impl Server {
    /// One that keeps connections for `keep`, and answers with `head`, which ends before its empty line.
    fn start(head: &'static str, keep: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&kept);
                seen.lock().unwrap().connections += 1;
                std::thread::spawn(move || serve(Wire::over(stream), head, keep, &seen));
            }
        });
        Self { addr, seen }
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut wire: Wire, head: &str, keep: Duration, seen: &Mutex<Seen>) {
    wire.patience(PATIENCE);
    let mut idle_since: Option<Instant> = None;
    loop {
        let request = wire.try_head();
        let idle = idle_since.map(|since| since.elapsed()).unwrap_or_default();
        let Ok(request) = request else {
            let mut seen = seen.lock().unwrap();
            if idle >= keep {
                seen.timed_out += 1
            } else {
                seen.given_up += 1
            }
            return;
        };
        if wire.try_body(&request).is_err() {
            return;
        }
        {
            let mut seen = seen.lock().unwrap();
            seen.requests += 1;
            seen.longest_idle = seen.longest_idle.max(idle);
        }
        if wire.try_send(format!("{head}Content-Length: 2\r\n\r\nok")).is_err() {
            return;
        }
        wire.patience(keep);
        idle_since = Some(Instant::now());
    }
}

#[track_caller]
fn post(proxy: &Proxy) {
    assert_eq!(proxy.connect().post("/", "{}").response().0.status(), 200, "{}", proxy.output());
}

/// Steady requests use one connection; then it is given up before the server closes it.
fn uses_a_connection_as_long_as_it_is_kept(proxy: &Proxy, server: &Server) {
    for _ in 0..5 {
        post(proxy);
        std::thread::sleep(Duration::from_millis(100));
    }
    let steady = server.seen();
    assert_eq!((steady.connections, steady.requests), (1, 5), "{steady:?}");
    proxy.eventually("it is given up", |_| server.seen().given_up + server.seen().timed_out == 1);
    assert_eq!(server.seen().given_up, 1, "before the server has closed it");
    proxy.eventually("none is idle", |proxy| proxy.metric("millrace_pool_idle_connections", &[]) == 0);
}

/// No request comes later than the server has said, nor just then.
fn uses_no_connection_for_longer(proxy: &Proxy, server: &Server, keep: Duration) {
    let before = server.seen().requests;
    // Silences on both sides of what the server has said: it would see a request that comes too late.
    for tenths in [3, 4, 5, 6, 7, 8, 9] {
        post(proxy);
        std::thread::sleep(keep * tenths / 10);
    }
    let seen = server.seen();
    assert_eq!(seen.requests, before + 7, "none is doubled: {seen:?}");
    assert!(seen.longest_idle < keep, "{seen:?}");
    assert_eq!(seen.timed_out, 0, "{seen:?}");
    assert_eq!(proxy.metric("millrace_endpoint_failures_total", &[]), 0);
}

#[test]
fn the_word_of_an_origin_is_heeded() {
    let heads = [
        "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\n",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=1, max=100\r\n",
    ];
    let keep = Duration::from_secs(1);
    std::thread::scope(|scope| {
        for (driver, head) in DRIVERS.into_iter().flat_map(|driver| heads.map(|head| (driver, head))) {
            scope.spawn(move || {
                let server = Server::start(head, keep);
                let proxy = Proxy::start(&Config::to(server.addr).driver(driver).workers(1));
                uses_a_connection_as_long_as_it_is_kept(&proxy, &server);
                uses_no_connection_for_longer(&proxy, &server, keep);
                // Another worker that takes a connection heeds it as well.
                let server = Server::start(head, keep);
                let proxy = Proxy::start(&Config::to(server.addr).driver(driver).workers(3));
                uses_no_connection_for_longer(&proxy, &server, keep);
            });
        }
    });
}

#[test]
fn without_a_word_connections_are_given_up_before_node_and_uvicorn_close_them() {
    let keep = Duration::from_secs(5);
    std::thread::scope(|scope| {
        for driver in DRIVERS {
            scope.spawn(move || {
                let server = Server::start("HTTP/1.1 200 OK\r\n", keep);
                let proxy = Proxy::start(&Config::to(server.addr).driver(driver).workers(1));
                (0..3).for_each(|_| post(&proxy));
                assert_eq!(server.seen().connections, 1);
                proxy.eventually("it is given up", |_| server.seen().given_up + server.seen().timed_out == 1);
                assert_eq!(server.seen().given_up, 1, "{driver}: {:?}", server.seen());
            });
        }
    });
}

#[test]
fn the_last_request_of_a_connection_is_its_last() {
    for driver in DRIVERS {
        let server =
            Server::start("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=0\r\n", Duration::from_secs(5));
        let proxy = Proxy::start(&Config::to(server.addr).driver(driver).workers(1));
        (0..3).for_each(|_| post(&proxy));
        assert_eq!(server.seen().connections, 3, "{driver}");
        assert_eq!(proxy.metric("millrace_pool_stale_total", &[]), 0, "{driver}");
    }
}

#[test]
fn many_clients_at_once_use_their_connections_again() {
    for driver in DRIVERS {
        let server = Server::start("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\n", Duration::from_secs(1));
        let proxy = Proxy::start(&Config::to(server.addr).driver(driver).workers(1));
        let mut clients: Vec<Wire> = (0..20).map(|_| proxy.connect()).collect();
        let began = Instant::now();
        let mut rounds = 0;
        // Longer than one of them may be idle.
        while began.elapsed() < Duration::from_millis(1500) {
            clients.iter_mut().for_each(|client| {
                client.post("/", "{}");
            });
            for client in &mut clients {
                assert_eq!(client.response().0.status(), 200, "{driver}");
            }
            rounds += 1;
        }
        let seen = server.seen();
        assert_eq!(seen.requests, 20 * rounds, "{driver}");
        // Those that only the first burst needed are given up, and may be needed once more.
        assert!(seen.connections <= 40 && rounds > 10, "{driver}: {seen:?} in {rounds} rounds");
        assert_eq!(seen.timed_out, 0, "{driver}: {seen:?}");
    }
}
