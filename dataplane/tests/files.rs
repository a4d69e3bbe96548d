//! Too few open files: clients that do nothing give way to those that do, origins and the admin API keep their share, and
//! what cannot be served is told for what it is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::path::Path;

use bench::origin::Origin;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;
use story::config::Config;
use story::wire::{End, Wire};
use story::{DRIVERS, Proxy, origin};

/// A figure of the part `files` of `/status`.
fn files(proxy: &Proxy, name: &str) -> u64 {
    proxy.status()["files"][name].as_u64().unwrap()
}

/// The code of the error that a client got with 503 and `Retry-After`.
fn code_of_503(client: &mut Wire) -> String {
    let (head, body) = client.response();
    assert_eq!((head.status(), head.field("Retry-After")), (503, Some("1")), "{}", head.raw);
    let error: Value = serde_json::from_slice(&body).unwrap();
    error["error"]["code"].as_str().unwrap().to_owned()
}

/// A client that was let in and has an answer that does not end.
fn begin_stream(proxy: &Proxy) -> Wire {
    let mut client = proxy.connect();
    client.get("/sse?stall_at=1");
    client
}

/// Holds that nobody was told that an origin had failed.
#[track_caller]
fn assert_no_origin_is_blamed(proxy: &Proxy) {
    for kind in
        ["connect_failed", "connect_refused", "connect_timeout", "upstream_reset", "upstream_closed_early"]
    {
        assert_eq!(proxy.faults(kind), 0, "{kind}\n{}", proxy.output());
    }
    assert_eq!(proxy.metric("millrace_connect_failures_total", &[]), 0);
    assert_eq!(proxy.metric("millrace_endpoint_failures_total", &[]), 0);
}

/// A served client, then more silent ones than there are files: what holds meanwhile and afterwards.
fn silent_clients_take_nothing_from_others(config: &Config, limit: u64) {
    let proxy = Proxy::start_with_files(config, limit, limit);
    let addr = proxy.addr();
    let mut served = proxy.connect();
    assert_eq!(served.get("/").response().0.status(), 200);
    let silent: Vec<Wire> = (0..limit + limit / 4).map(|_| Wire::connect(addr)).collect();
    proxy.eventually("some went", |proxy| {
        proxy.metric("millrace_connections_displaced_total", &["listener=\"http\""]) > limit / 4
    });
    for _ in 0..3 {
        assert_eq!(served.get("/").response().0.status(), 200, "{limit} files: who is served stays so");
        assert_eq!(
            proxy.connect().get("/").response().0.status(),
            200,
            "{limit} files: a newcomer is let in"
        );
    }
    assert_eq!(proxy.admin("GET", "/readyz", "").0, 200);
    assert!(proxy.metric("millrace_connections_displaced_total", &["listener=\"http\""]) > limit / 4);
    assert_eq!(proxy.metric("millrace_connections_refused_total", &[]), 0, "{}", proxy.output());
    assert!(proxy.status()["connections"].as_u64().unwrap() <= files(&proxy, "connections_max"));
    assert_no_origin_is_blamed(&proxy);
    let told = proxy.output().matches("WARN").count();
    assert!(told <= 3, "{told} warnings\n{}", proxy.output());
    drop((served, silent));
    proxy.assert_at_rest();
}

#[test]
fn silent_clients_take_nothing_from_others_whatever_the_limit_is() {
    let origin = origin();
    for driver in DRIVERS {
        for (limit, workers) in [(64, 1), (128, 1), (128, 2), (1024, 1)] {
            let config = Config::to(origin.addr()).driver(driver).workers(workers);
            silent_clients_take_nothing_from_others(&config, limit);
        }
    }
}

#[test]
fn a_limit_of_the_config_is_kept_in_the_same_way() {
    let origin = origin();
    for driver in DRIVERS {
        let config = Config::to(origin.addr()).driver(driver).workers(1).limits("connections = 20");
        let proxy = Proxy::start(&config);
        let mut silent: Vec<Wire> = (0..30).map(|_| proxy.connect()).collect();
        let displaced = |proxy: &Proxy| proxy.metric("millrace_connections_displaced_total", &[]);
        proxy.eventually("ten went", |proxy| displaced(proxy) == 10 && proxy.status()["connections"] == 20);
        // Which of those that came in the same tick is all the same; each has a proper end, and the others are there still.
        let mut ended = Vec::new();
        for place in (0..silent.len()).rev() {
            if !silent[place].is_silent() {
                ended.push(silent.remove(place));
            }
        }
        assert_eq!((silent.len(), ended.len()), (20, 10), "{driver}");
        for mut client in ended {
            assert_eq!(client.end(), (Vec::new(), End::Fin), "{driver}");
        }
        for client in &mut silent {
            assert_eq!(client.get("/").response().0.status(), 200, "{driver}");
        }
        // They were all served a moment ago: nobody is idle.
        assert_eq!(code_of_503(&mut proxy.connect()), "overloaded");
        assert_eq!(proxy.listener_faults("overloaded"), 1);
        assert_eq!(proxy.metric("millrace_connections_displaced_total", &[]), 10);
        // A moment later they are: the one that has been silent for longest goes.
        proxy.eventually("a newcomer is let in", |proxy| proxy.connect().get("/").head().status() == 200);
        assert_eq!(proxy.metric("millrace_connections_displaced_total", &[]), 11);
        let is_served = |client: &mut Wire| {
            client.try_send("GET / HTTP/1.1\r\nHost: story\r\n\r\n").is_ok() && client.try_head().is_ok()
        };
        let served = silent.iter_mut().filter_map(|client| is_served(client).then_some(())).count();
        assert_eq!(served, 19, "{driver}: one went, the others stay");
    }
}

#[test]
fn clients_of_a_unix_socket_give_way_too() {
    let origin = origin();
    for driver in DRIVERS {
        let config = Config::to(origin.addr()).driver(driver).workers(2).limits("connections = 10");
        let config = Config { bind: vec!["unix:{dir}/http.sock".to_owned()], ..config };
        let proxy = Proxy::start(&config);
        let connect = || Wire::try_connect_unix(&proxy.dir().join("http.sock")).unwrap();
        let silent: Vec<Wire> = (0..30).map(|_| connect()).collect();
        assert_eq!(connect().get("/").response().0.status(), 200, "{driver}");
        // The other worker may still be letting in some that came before.
        let count =
            |proxy: &Proxy, what: &str| proxy.metric(&format!("millrace_connections_{what}_total"), &[]);
        proxy.eventually("all have come", |proxy| count(proxy, "accepted") + count(proxy, "refused") == 31);
        assert_eq!(count(&proxy, "refused"), 0, "{driver}");
        // One has left by itself; each worker may have ended one more than was needed.
        proxy.eventually("all but the youngest went", |proxy| count(proxy, "displaced") >= 20);
        drop(silent);
        proxy.assert_at_rest();
    }
}

#[test]
fn another_worker_makes_room_where_a_worker_has_no_silent_client() {
    let origin = origin();
    for driver in DRIVERS {
        let config = Config::to(origin.addr()).driver(driver).workers(4).limits("connections = 2");
        let proxy = Proxy::start(&config);
        let mut silent: Vec<Wire> = Vec::new();
        for _ in 0..12 {
            while proxy.status()["connections"] != 2 {
                let before = proxy.metric("millrace_connections_accepted_total", &[]);
                silent.push(proxy.connect());
                proxy.eventually("it is let in", |proxy| {
                    proxy.metric("millrace_connections_accepted_total", &[]) > before
                });
            }
            let mut newcomer = proxy.connect();
            assert_eq!(newcomer.get("/").response().0.status(), 200, "{driver}");
            drop(newcomer);
            // Each of the workers that were asked may have ended one.
            proxy
                .eventually("the newcomer is gone", |proxy| proxy.status()["connections"].as_u64() < Some(2));
        }
        assert!(proxy.metric("millrace_connections_displaced_total", &[]) >= 12, "{driver}");
        assert_eq!(proxy.metric("millrace_connections_refused_total", &[]), 0, "{driver}");
    }
}

#[test]
fn what_was_sent_before_the_end_is_answered() {
    let origin = origin();
    for driver in DRIVERS {
        let config = Config::to(origin.addr()).driver(driver).workers(1).limits("connections = 8");
        let proxy = Proxy::start(&config);
        let addr = proxy.addr();
        let mut clients: Vec<Wire> = (0..8).map(|_| Wire::connect(addr)).collect();
        proxy.eventually("all are let in", |proxy| proxy.status()["connections"] == 8);
        // While the process stands still, newcomers and the requests of those that are to go come together.
        let pid = Pid::from_raw(proxy.pid() as i32).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        for client in &mut clients[..4] {
            client.get("/");
        }
        let mut newcomers: Vec<Wire> = (0..4).map(|_| Wire::connect(addr)).collect();
        for newcomer in &mut newcomers {
            newcomer.get("/");
        }
        kill_process(pid, Signal::CONT).unwrap();
        for client in &mut clients[..4] {
            assert_eq!(client.response().0.status(), 200, "{driver}: it was sent, so it is answered");
        }
        for newcomer in &mut newcomers {
            assert_eq!(newcomer.response().0.status(), 200, "{driver}");
        }
        assert!(proxy.metric("millrace_connections_displaced_total", &[]) >= 4, "{driver}");
    }
}

#[test]
fn clients_that_are_all_busy_leave_the_next_ones_the_truth() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).workers(1);
        let proxy = Proxy::start_with_files(&config, 128, 128);
        let mut streams: Vec<Wire> = Vec::new();
        let mut turned_away = Vec::new();
        for _ in 0..100 {
            let mut client = begin_stream(&proxy);
            let head = client.head();
            if head.status() == 200 {
                assert!(turned_away.is_empty(), "{driver}: nothing has ended meanwhile");
                streams.push(client);
            } else {
                let error: Value = serde_json::from_slice(&client.body(&head)).unwrap();
                turned_away.push((head.status(), head.field("Retry-After").map(str::to_owned), error));
            }
        }
        // Each stream has two files.
        assert!((35..=45).contains(&streams.len()), "{driver}: {}", streams.len());
        for (status, retry_after, error) in &turned_away {
            assert_eq!((*status, retry_after.as_deref()), (503, Some("1")), "{driver}");
            assert_eq!(error["error"]["code"], "out_of_files", "{driver}");
            assert_eq!(error["error"]["type"], "server_error", "{driver}");
        }
        let count = turned_away.len() as u64;
        assert_eq!(proxy.metric("millrace_connections_refused_total", &[]), count, "{driver}");
        assert_eq!(proxy.listener_faults("out_of_files"), count, "{driver}");
        assert_no_origin_is_blamed(&proxy);
        let told = proxy.output().matches("clients are turned away").count();
        assert!((1..=2).contains(&told), "{driver}: {told} warnings\n{}", proxy.output());
        assert_eq!(proxy.admin("GET", "/readyz", "").0, 200);
        // A place that is given back is taken.
        drop(streams.pop());
        proxy.eventually("the next one is served", |proxy| begin_stream(proxy).head().status() == 200);
    }
}

#[test]
fn silent_clients_that_all_begin_to_stream_are_served_or_told_but_no_origin_is_blamed() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).workers(1);
        let proxy = Proxy::start_with_files(&config, 128, 128);
        let most = files(&proxy, "connections_max");
        let mut clients: Vec<Wire> = (0..most).map(|_| proxy.connect()).collect();
        proxy.eventually("all are let in", |proxy| proxy.status()["connections"] == most);
        // Those that wait give their places up for the streams of the others.
        let (mut streams, mut ended, mut told) = (0, 0, 0);
        for client in clients.iter_mut().rev() {
            if client.try_send("GET /sse?stall_at=1 HTTP/1.1\r\nHost: story\r\n\r\n").is_err() {
                ended += 1;
                continue;
            }
            match client.try_head().map(|head| head.status()) {
                Ok(200) => streams += 1,
                Ok(503) => told += 1,
                Ok(other) => panic!("{driver}: {other}"),
                Err(_) => ended += 1,
            }
        }
        assert!(streams >= most / 2 && ended > 0, "{driver}: {streams} stream, {ended} ended, {told} told");
        assert_eq!(proxy.faults("out_of_files"), told, "{driver}");
        assert_no_origin_is_blamed(&proxy);
        assert_eq!(proxy.admin("GET", "/metrics", "").0, 200);
        assert_eq!(proxy.admin("GET", "/readyz", "").0, 200);
    }
}

#[test]
fn a_probe_that_finds_no_file_says_nothing_of_its_endpoint() {
    let origin = origin();
    let health = "health = { kind = \"tcp\", interval = \"10ms\", timeout = \"10ms\", unhealthy_after = 1 }";
    let proxy = Proxy::start(&Config::to(origin.addr()).workers(1).cluster(health));
    // No further file, whatever is closed meanwhile: the limit is one of numbers.
    let pid = Pid::from_raw(proxy.pid() as i32);
    let none = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
    let usual = prlimit(pid, Resource::Nofile, none).unwrap();
    // The admin API has none either: what is asked meanwhile is the log.
    let deadline = std::time::Instant::now() + story::PATIENCE;
    let is_told = |line: &str| line.contains("a health probe failed") && line.contains("os error 24");
    while proxy.output().lines().filter(|line| is_told(line)).count() < 5 {
        assert!(std::time::Instant::now() < deadline, "{}", proxy.output());
        std::thread::yield_now();
    }
    prlimit(pid, Resource::Nofile, usual).unwrap();
    assert_eq!(proxy.connect().get("/").response().0.status(), 200);
    assert!(!proxy.output().contains("the endpoint is unhealthy"), "{}", proxy.output());
}

/// The soft limit of a process.
fn soft_limit(pid: u32) -> u64 {
    let limits = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn config_of(origin: &Origin, connections: u64) -> Config {
    Config::to(origin.addr()).workers(1).limits(&format!("connections = {connections}"))
}

#[test]
fn the_soft_limit_is_raised_and_stays_so_through_an_upgrade() {
    let origin = origin();
    let mut proxy = Proxy::start_with_files(&config_of(&origin, 900), 64, 2000);
    for _ in 0..2 {
        assert_eq!(soft_limit(proxy.pid()), 2000);
        let status = proxy.status()["files"].clone();
        assert_eq!((&status["limit"], &status["connections_max"]), (&2000.into(), &900.into()), "{status}");
        assert_eq!(proxy.metric("process_max_fds", &[]), 2000);
        assert_eq!(proxy.connect().get("/").response().0.status(), 200);
        proxy.signal(Signal::USR2);
        proxy.await_successor();
    }
    assert!(!proxy.output().contains("does not fit"), "{}", proxy.output());
}

#[test]
fn the_start_says_the_sum_and_what_to_do() {
    let origin = origin();
    let proxy = Proxy::start_with_files(&config_of(&origin, 5000), 128, 128);
    let expected = "limits.connections = 5000 does not fit into 128 open files: 70 clients are served at once (128 = 70 \
                    clients + 10 for origins + 16 for the admin API and probes + 32 of the process). Give the process 5778 \
                    files (LimitNOFILE=5778 in the unit";
    proxy.eventually("the sum is told", |proxy| proxy.output().contains(expected));
    let status = proxy.status();
    let files = &status["files"];
    let figure = |name: &str| files[name].as_u64().unwrap();
    assert_eq!(
        figure("limit"),
        figure("connections_max")
            + figure("origins_reserve")
            + figure("control_reserve")
            + figure("process_reserve")
    );
    assert_eq!((figure("connections_wanted"), figure("needed")), (5000, 5778), "{files}");
    assert!(figure("open") > 10 && figure("open") <= figure("process_reserve"), "{files}");
    assert_eq!(status["memory"]["connections_max"], 70);
    assert_eq!(proxy.metric("millrace_connections_max", &[]), 70);
}

#[test]
fn another_config_and_another_limit_are_fitted_anew() {
    let origin = origin();
    let proxy = Proxy::start_with_files(&config_of(&origin, 20), 128, 128);
    assert_eq!(files(&proxy, "connections_max"), 20);
    let clients: Vec<Wire> = (0..20).map(|_| proxy.connect()).collect();
    proxy.eventually("all are let in", |proxy| proxy.status()["connections"] == 20);
    // More than there is room for: as many as fit, and the answer says so.
    let (status, outcome) = proxy.put_config(&config_of(&origin, 500));
    assert_eq!((status, files(&proxy, "connections_max")), (200, 70));
    let warning = outcome["warnings"][0].as_str().unwrap();
    assert!(warning.contains("limits.connections = 500 does not fit into 128 open files"), "{warning}");
    let more: Vec<Wire> = (0..50).map(|_| proxy.connect()).collect();
    proxy.eventually("all are let in", |proxy| proxy.status()["connections"] == 70);
    assert_eq!(proxy.metric("millrace_connections_displaced_total", &[]), 0);
    // Fewer: nobody is cut, and newcomers take the places of silent ones one by one.
    assert_eq!(proxy.put_config(&config_of(&origin, 30)).1["warnings"], Value::Array(Vec::new()));
    assert_eq!(proxy.status()["connections"], 70);
    drop((clients, more));
    // The limit itself, changed from outside.
    let set = |limit: u64| {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        prlimit(Pid::from_raw(proxy.pid() as i32), Resource::Nofile, limit).unwrap();
    };
    set(100);
    assert_eq!(proxy.put_config(&config_of(&origin, 500)).0, 200);
    assert_eq!((files(&proxy, "limit"), files(&proxy, "connections_max")), (100, 48));
    proxy.assert_at_rest();
}
