//! A listener that stops, or a node that drains, loses nobody: who waits in the queue is served, who asks is answered and
//! told that this was all, who is silent is let go soon. What an operator's signals mean is told in `signals`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use story::config::Config;
use story::wire::{End, Wire};
use story::{DRIVERS, PATIENCE, Proxy, origin};

/// Connections that wait in the queue of one listener: many times what a worker takes in one turn.
const QUEUED: usize = 1000;
/// How many of them are served after the stop at least: less would prove little, since one turn takes 64.
const SERVED_LATE: usize = 200;
/// Longer than a client has to be silent to be let go.
const LONG_SILENT: Duration = Duration::from_millis(1200);
/// Shorter than any wait for a silent client used to be, and long enough for a slow machine.
const SOON: Duration = Duration::from_secs(4);

/// What stops a listener.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Terminate,
    Reload,
}

/// Holds the whole process up; when this returns, none of its threads runs.
fn hold_up(proxy: &Proxy) {
    proxy.signal(Signal::STOP);
    let tasks = Path::new("/proc").join(proxy.pid().to_string()).join("task");
    let stopped = |task: &Path| {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    };
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_dir(&tasks).unwrap().all(|task| stopped(&task.unwrap().path())) {
        assert!(Instant::now() < deadline, "the process does not stop");
        std::thread::yield_now();
    }
}

fn says_close(head: &story::wire::Head) -> bool {
    head.field("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

#[test]
fn a_listener_that_stops_serves_all_that_wait_in_its_queue() {
    for (driver, stop) in
        DRIVERS.into_iter().flat_map(|driver| [Stop::Terminate, Stop::Reload].map(|stop| (driver, stop)))
    {
        let origin = origin();
        let base = Config::to(origin.addr()).driver(driver).workers(1);
        let both = base.clone().more("[[listeners]]\nname = \"second\"\nbind = \"127.0.0.1:0\"");
        let proxy = Proxy::start(&both);
        let addr = proxy.addr_of("second");
        hold_up(&proxy);
        let mut clients: Vec<Wire> = (0..QUEUED).map(|_| Wire::connect(addr)).collect();
        for client in &mut clients {
            client.get("/bytes/100");
        }
        // It has arrived before the worker takes the first of them, and is heard long before it has taken the last.
        let answer = match stop {
            Stop::Terminate => {
                proxy.signal(Signal::TERM);
                None
            }
            Stop::Reload => Some(proxy.begin_admin("PUT", "/config", &base.render(proxy.dir())).unwrap()),
        };
        proxy.signal(Signal::CONT);
        let mut late = 0;
        for (index, client) in clients.iter_mut().enumerate() {
            let head = client.try_head();
            let head = head.unwrap_or_else(|error| panic!("{driver}, {stop:?}: client {index}: {error}"));
            assert_eq!((head.status(), client.body(&head).len()), (200, 100), "{driver}, {stop:?}");
            late += usize::from(says_close(&head));
        }
        println!("{driver}, {stop:?}: {late} of {QUEUED} were served after the stop");
        assert!(late >= SERVED_LATE, "{driver}, {stop:?}: only {late} were still in the queue");
        if let Some(mut answer) = answer {
            assert_eq!(answer.response().0.status(), 200);
            assert!(Wire::try_connect(addr).is_err(), "{driver}: somebody listens still");
            assert_eq!(proxy.connect().get("/").response().0.status(), 200, "{driver}");
        }
    }
}

#[test]
fn a_drain_lets_silent_clients_go_soon() {
    for driver in DRIVERS {
        let origin = origin();
        let mut proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let mut clients: Vec<Wire> = (0..40).map(|_| proxy.connect()).collect();
        use_half_of(&mut clients);
        proxy.eventually("all are accepted", |proxy| proxy.status()["connections"] == 40);
        let began = Instant::now();
        proxy.signal(Signal::TERM);
        for client in &mut clients {
            assert_eq!(client.end(), (Vec::new(), End::Fin), "{driver}");
        }
        assert!(proxy.wait().success(), "{driver}");
        assert!(began.elapsed() < SOON, "{driver}: the drain took {:?}", began.elapsed());
    }
}

#[test]
fn a_drain_answers_what_had_arrived_when_it_let_its_client_go() {
    for driver in DRIVERS {
        let origin = origin();
        let mut proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let mut clients: Vec<Wire> = (0..100).map(|_| proxy.connect()).collect();
        use_half_of(&mut clients);
        proxy.eventually("all are accepted", |proxy| proxy.status()["connections"] == 100);
        proxy.signal(Signal::TERM);
        proxy.eventually("it drains", |proxy| proxy.status()["draining"] == true);
        // When the workers go on, their clocks come first: they let all clients go before they look at what has arrived.
        hold_up(&proxy);
        std::thread::sleep(LONG_SILENT);
        for client in &mut clients {
            client.post("/upload?stall_before=100ms", "some");
        }
        proxy.signal(Signal::CONT);
        for (index, client) in clients.iter_mut().enumerate() {
            let head = client.try_head();
            let head = head.unwrap_or_else(|error| panic!("{driver}: client {index}: {error}"));
            assert_eq!((head.status(), client.body(&head)), (200, b"{\"bytes\":4}".to_vec()), "{driver}");
            assert!(says_close(&head), "{driver}: {}", head.raw);
            assert_eq!(client.end(), (Vec::new(), End::Fin), "{driver}");
        }
        assert!(proxy.wait().success(), "{driver}");
    }
}

/// Half of the clients have been served, so fast that a worker lends them a buffer for what comes next.
fn use_half_of(clients: &mut [Wire]) {
    for client in clients.iter_mut().step_by(2) {
        for _ in 0..3 {
            assert_eq!(client.get("/").response().0.status(), 200);
        }
    }
}

#[test]
fn clients_that_go_on_asking_during_a_drain_lose_no_request() {
    const CLIENTS: u64 = 40;
    for driver in DRIVERS {
        let origin = origin();
        let mut proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let before = origin.stats().requests.total;
        let asking: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let mut wire = proxy.connect();
                // From "at once" to most of the time that a client may be silent.
                let pause = Duration::from_millis(client * 15);
                std::thread::spawn(move || {
                    let mut answered = 0_u64;
                    loop {
                        wire.get("/bytes/2000");
                        let head = wire.try_head().map_err(|error| (answered, error.to_string()))?;
                        let body = wire.try_body(&head).map_err(|error| (answered, error.to_string()))?;
                        answered += 1;
                        if (head.status(), body.len()) != (200, 2000) {
                            return Err((answered, head.raw));
                        }
                        if says_close(&head) {
                            return Ok(answered);
                        }
                        std::thread::sleep(pause);
                    }
                })
            })
            .collect();
        proxy.eventually("each has asked", |_| origin.stats().requests.total > before + 10 * CLIENTS);
        proxy.signal(Signal::TERM);
        let answers: Vec<Result<u64, _>> = asking.into_iter().map(|client| client.join().unwrap()).collect();
        let lost: Vec<_> = answers.iter().filter(|answer| answer.is_err()).collect();
        assert!(lost.is_empty(), "{driver}: {lost:?}");
        let answered: u64 = answers.into_iter().flatten().sum();
        println!(
            "{driver}: {answered} requests answered, the last on each connection with `Connection: close`"
        );
        assert!(proxy.wait().success(), "{driver}");
    }
}

#[test]
fn a_removed_listener_answers_by_its_last_config_and_lets_its_clients_go() {
    for driver in DRIVERS {
        let origin = origin();
        let base = Config::to(origin.addr()).driver(driver);
        let second = base.clone().more(
            "[[listeners]]\nname = \"second\"\nbind = \"127.0.0.1:0\"\n\
             [[routes]]\nname = \"own\"\nlisteners = [\"second\"]\npath = \"/own\"\ncluster = \"origin\"\n\
             headers = { response = { set = { X-By = \"own\" } } }",
        );
        let proxy = Proxy::start(&second);
        let addr = proxy.addr_of("second");
        let mut other = proxy.connect();
        let (mut used, mut silent) = (Wire::connect(addr), Wire::connect(addr));
        for client in [&mut other, &mut used, &mut silent] {
            assert_eq!(client.get("/").response().0.status(), 200);
        }
        assert_eq!(proxy.put_config(&base).0, 200);
        let began = Instant::now();
        let (head, _) = used.get("/own/status/200").response();
        assert_eq!(head.field("X-By"), Some("own"), "{driver}: {}", head.raw);
        assert!(says_close(&head), "{driver}: {}", head.raw);
        assert_eq!(silent.end(), (Vec::new(), End::Fin), "{driver}");
        assert!(began.elapsed() < SOON, "{driver}: it took {:?}", began.elapsed());
        // The listener that stays keeps its connections, and an added one of the same name is a new one.
        assert!(!says_close(&other.get("/").response().0), "{driver}");
        assert_eq!(proxy.put_config(&second).0, 200);
        let mut again = Wire::connect(proxy.addr_of("second"));
        let (head, _) = again.get("/own/status/200").response();
        assert!(head.field("X-By") == Some("own") && !says_close(&head), "{driver}: {}", head.raw);
    }
}
