//! The way to the origins: connections are used again and never wrongly, requests are tried again and never doubled,
//! endpoints are found by name, number and path, and left alone while they are ill.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;
use std::time::Duration;

use bench::origin::{Address, Origin, OriginOptions};
use serde_json::Value;
use story::config::Config;
use story::hole::Refusing;
use story::wire::{Head, Wire};
use story::{DRIVERS, PATIENCE, Proxy, origin};

fn endpoint_of<'a>(status: &'a Value, name: &str) -> &'a Value {
    let endpoints = status["clusters"][0]["endpoints"].as_array().unwrap();
    endpoints
        .iter()
        .find(|endpoint| endpoint["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {status}"))
}

fn is_healthy(proxy: &Proxy, name: &str) -> bool {
    endpoint_of(&proxy.status(), name)["healthy"] == true
}

#[test]
fn one_connection_serves_all_requests_that_follow_each_other() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver).workers(1));
        for _ in 0..10 {
            let mut client = proxy.connect();
            for _ in 0..10 {
                assert_eq!(client.get("/").response().0.status(), 200);
            }
        }
        assert_eq!(origin.stats().connections.accepted, 1, "{driver}");
        assert_eq!(proxy.metric("millrace_pool_hits_total", &[]), 99);
        assert_eq!(proxy.metric("millrace_pool_misses_total", &[]), 1);
    }
}

#[test]
fn an_idle_connection_of_another_worker_is_taken_before_one_is_dialled() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver).workers(2));
        // The kernel spreads connections over both workers; one request at a time needs one upstream connection.
        for _ in 0..60 {
            assert_eq!(proxy.connect().get("/").response().0.status(), 200);
        }
        // On a crowded machine the other worker may not get its turn in time to hand a connection over. It is not waited
        // for then, and counted.
        let unanswered = proxy.metric("millrace_pool_stale_total", &[]);
        let dialled = origin.stats().connections.accepted;
        assert!(dialled <= 1 + unanswered, "{driver}: {dialled} dialled, {unanswered} not handed over");
        assert!(proxy.metric("millrace_pool_takes_total", &[]) > 0, "{driver}");
    }
}

#[test]
fn no_more_connections_than_requests_at_a_time_are_open() {
    const AT_A_TIME: usize = 20;
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).workers(2));
    let mut clients: Vec<Wire> = (0..AT_A_TIME).map(|_| proxy.connect()).collect();
    for _ in 0..10 {
        for client in &mut clients {
            client.get("/sse?tokens=3&tokens_per_second=100");
        }
        for client in &mut clients {
            assert_eq!(client.response().0.status(), 200);
        }
    }
    assert!(origin.stats().connections.accepted <= AT_A_TIME as u64, "{:?}", origin.stats().connections);
}

/// Above the limit connections go after some seconds, and not between two bursts: making one costs more than a request.
#[test]
fn the_next_burst_finds_the_connections_of_the_last_one() {
    const AT_A_TIME: usize = 20;
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).workers(1);
        let proxy = Proxy::start(&config.cluster("pool = { idle_per_endpoint = 2, idle_timeout = \"60s\" }"));
        let mut clients: Vec<Wire> = (0..AT_A_TIME).map(|_| proxy.connect()).collect();
        for _ in 0..5 {
            for client in &mut clients {
                client.get("/sse?tokens=3&tokens_per_second=100");
            }
            for client in &mut clients {
                assert_eq!(client.response().0.status(), 200);
            }
        }
        assert_eq!(origin.stats().connections.accepted, AT_A_TIME as u64, "{driver}");
        proxy.eventually("what is not needed any more has gone", |proxy| {
            origin.stats().connections.open == 2
                && endpoint_of(&proxy.status(), &origin.addr().to_string())["idle_connections"] == 2
        });
        assert_eq!(proxy.metric("millrace_pool_stale_total", &[]), 0, "{driver}: surplus is not stale");
    }
}

#[test]
fn a_pooled_connection_that_the_origin_has_closed_is_not_used() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&Config::to(listener.local_addr().unwrap()).driver(driver));
        let mut client = proxy.connect();
        for round in 0..50 {
            client.post("/", "{}");
            let mut upstream = Wire::accept(&listener);
            let head = upstream.head();
            upstream.body(&head);
            upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            assert_eq!(client.response().0.status(), 200, "{driver}, round {round}");
            match round % 2 {
                0 => drop(upstream),
                _ => upstream.reset(),
            }
        }
        assert_eq!(proxy.metric("millrace_retries_total", &[]), 0, "{driver}");
    }
}

/// The origin closes a moment after each answer without having said so: often when the next request is on its way, and
/// nobody can know whether it was read.
#[test]
fn stale_connections_cost_a_get_nothing_and_never_double_a_post() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let mut client = proxy.connect();
        let mut failed_posts = 0;
        for round in 0..300 {
            let delay = round % 3;
            assert_eq!(
                client.get(&format!("/?close_after={delay}")).response().0.status(),
                200,
                "{driver}, round {round}"
            );
            let body = "{\"messages\":[]}";
            client.send(format!(
                "POST /echo?close_after={delay} HTTP/1.1\r\nHost: story\r\nX-Request-ID: post-{round}\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            match client.response().0.status() {
                200 => {}
                502 => failed_posts += 1,
                other => panic!("{driver}, round {round}: {other}"),
            }
        }
        // The other way round: the origin has read the request, and closes a connection that had served before.
        for round in 0..50 {
            assert_eq!(client.get("/").response().0.status(), 200, "{driver}, round {round}");
            client.get_with("/echo?bad_framing=no_head", &format!("X-Request-ID: get-{round}\r\n"));
            assert_eq!(client.response().0.status(), 502, "{driver}, round {round}");
            assert_eq!(client.get("/").response().0.status(), 200, "{driver}, round {round}");
            client.send(format!(
                "POST /echo?bad_framing=no_head HTTP/1.1\r\nHost: story\r\nX-Request-ID: cut-{round}\r\n\
                 Content-Length: 2\r\n\r\n{{}}"
            ));
            assert_eq!(client.response().0.status(), 502, "{driver}, round {round}");
            assert_eq!(origin.request_count(&format!("cut-{round}")), 1, "{driver}: a POST was doubled");
            assert_eq!(origin.request_count(&format!("get-{round}")), 2, "{driver}: a GET was given up");
        }
        let posts = origin.stats().request_ids.doubled.into_keys().filter(|id| id.starts_with("post-"));
        assert_eq!(posts.collect::<Vec<_>>(), Vec::<String>::new(), "{driver}");
        println!("{driver}: of 300 POSTs {failed_posts} met a connection that was closed under them");
    }
}

/// The worst moment, made to happen: the origin closes when the request is already on its way.
#[test]
fn a_request_on_a_connection_that_dies_under_it_is_sent_again_only_if_that_does_no_harm() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&Config::to(listener.local_addr().unwrap()).driver(driver));
        let mut client = proxy.connect();
        let answer = |client: &mut Wire| {
            let mut upstream = Wire::accept(&listener);
            let head = upstream.head();
            upstream.body(&head);
            upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            assert_eq!(client.response().0.status(), 200, "{driver}");
            upstream
        };
        client.get("/first");
        let mut pooled = answer(&mut client);
        client.get("/second");
        pooled.head();
        drop(pooled);
        let mut pooled = answer(&mut client);
        client.post("/third", "once only");
        pooled.head();
        drop(pooled);
        assert_eq!(client.response().0.status(), 502, "{driver}");
        assert!(Wire::accept_within(&listener, Duration::from_millis(100)).is_none(), "{driver}: sent twice");
        assert_eq!(proxy.metric("millrace_retries_total", &[]), 1);
    }
}

#[test]
fn bytes_that_nobody_asked_for_are_not_the_answer_to_the_next_request() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(&Config::to(listener.local_addr().unwrap()));
    let mut client = proxy.connect();
    client.get("/first");
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(client.response().1, b"ok");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    client.get("/second");
    let mut fresh = Wire::accept(&listener);
    assert_eq!(fresh.head().start, "GET /second HTTP/1.1");
    fresh.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood");
    assert_eq!(client.response().1, b"good");
}

#[test]
fn a_refused_connection_is_followed_by_another_endpoint() {
    for driver in DRIVERS {
        let (origin, refusing) = (origin(), Refusing::new());
        let config = Config::to_all([refusing.addr(), origin.addr()]).driver(driver);
        let proxy = Proxy::start(&config.cluster("policy = \"round_robin\""));
        let mut client = proxy.connect();
        for round in 0..20 {
            match round % 2 {
                0 => client.get("/echo"),
                _ => client.post("/echo", "{}"),
            };
            assert_eq!(client.response().0.status(), 200, "{driver} {round}");
        }
        assert!(proxy.metric("millrace_retries_total", &[]) >= 5);
        assert_eq!(origin.stats().requests.total, 20);
    }
}

#[test]
fn a_post_that_an_origin_may_have_seen_goes_to_no_other() {
    for (method, expected, tries) in [("POST", 502, 1), ("GET", 200, 2)] {
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let proxy = Proxy::start(&Config::to_all(
            listeners.each_ref().map(|listener| listener.local_addr().unwrap()),
        ));
        let mut client = proxy.connect();
        client.send(format!("{method} / HTTP/1.1\r\nHost: story\r\nContent-Length: 2\r\n\r\n{{}}"));
        // Whoever gets it takes it whole and hangs up.
        let served = std::thread::spawn(move || {
            let mut tried = 0;
            for listener in listeners.iter().cycle().take(400) {
                let Some(mut upstream) = Wire::accept_within(listener, Duration::from_millis(2)) else {
                    continue;
                };
                let head = upstream.head();
                upstream.body(&head);
                tried += 1;
                if tried == 2 {
                    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                    upstream.end();
                }
            }
            tried
        });
        assert_eq!(client.response().0.status(), expected, "{method}");
        drop(client);
        drop(proxy);
        assert_eq!(served.join().unwrap(), tries, "{method}");
    }
}

/// An SDK sends head and body in two writes, so the body is streamed: it can be sent again only because it was kept.
#[test]
fn a_streamed_body_is_sent_again_whole_if_it_was_kept_and_never_in_part() {
    let (first, second) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    for (kept, body_bytes, expected) in [("32KiB", 20_000, 200), ("8KiB", 20_000, 502)] {
        let endpoints = [first.local_addr().unwrap(), second.local_addr().unwrap()];
        let config =
            Config::to_all(endpoints).route(&format!("retries = {{ attempts = 2, body = \"{kept}\" }}"));
        let proxy = Proxy::start(&config.cluster("policy = \"round_robin\""));
        let mut client = proxy.connect();
        client.send(format!("PUT / HTTP/1.1\r\nHost: story\r\nContent-Length: {body_bytes}\r\n\r\n"));
        // The endpoint has the head before the first byte of the body is sent.
        let (seen, other) = first_to_be_asked(&first, &second);
        let (mut upstream, head) = seen;
        let body = "x".repeat(body_bytes);
        client.send(&body);
        assert_eq!(upstream.body(&head).len(), body_bytes);
        drop(upstream);
        if expected == 200 {
            let mut upstream = Wire::accept(other);
            let head = upstream.head();
            assert_eq!(upstream.body(&head), body.as_bytes());
            upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        assert_eq!(client.response().0.status(), expected, "{kept} kept of {body_bytes}");
        assert_eq!(proxy.metric("millrace_retries_total", &[]), u64::from(expected == 200));
    }
}

/// Accepts on whichever of the two is dialled first; returns that connection with its request head, and the other one.
fn first_to_be_asked<'a>(first: &'a TcpListener, second: &'a TcpListener) -> ((Wire, Head), &'a TcpListener) {
    let started = std::time::Instant::now();
    while started.elapsed() < PATIENCE {
        for (listener, other) in [(first, second), (second, first)] {
            if let Some(mut upstream) = Wire::accept_within(listener, Duration::from_millis(5)) {
                let head = upstream.head();
                return ((upstream, head), other);
            }
        }
    }
    panic!("neither endpoint was asked");
}

#[test]
fn a_request_is_tried_as_often_as_the_route_allows() {
    let refusing = [0, 1, 2].map(|_| Refusing::new());
    let config = Config::to_all(refusing.each_ref().map(Refusing::addr));
    for (attempts, connects) in [(1, 1), (2, 2), (3, 3), (10, 3)] {
        let proxy = Proxy::start(&config.clone().route(&format!("retries = {{ attempts = {attempts} }}")));
        let mut client = proxy.connect();
        let (head, body) = client.get("/").response();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((head.status(), body["error"]["code"].as_str()), (502, Some("connect_refused")));
        assert_eq!(proxy.metric("millrace_connects_total", &[]), connects, "attempts = {attempts}");
        assert_eq!(proxy.faults("connect_refused"), 1);
    }
}

#[test]
fn health_checks_take_an_endpoint_out_and_back() {
    for health in ["kind = \"http\", path = \"/health\"", "kind = \"tcp\""] {
        let origins = [origin(), origin()];
        let proxy = Proxy::start(&Config::to_all(origins.each_ref().map(Origin::addr)).cluster(&format!(
            "policy = \"round_robin\"\n\
             health = {{ {health}, interval = \"50ms\", timeout = \"50ms\", healthy_after = 2, unhealthy_after = 2 }}"
        )));
        let name = origins[0].addr().to_string();
        assert!(is_healthy(&proxy, &name), "an endpoint is healthy until it shows otherwise");
        let fault = if health.contains("tcp") { "refuse=1h" } else { "status=503&path=/health" };
        origins[0].inject(fault.parse().unwrap());
        proxy.eventually("the endpoint is out", |proxy| !is_healthy(proxy, &name));
        origins[1].reset();
        let mut client = proxy.connect();
        for _ in 0..10 {
            assert_eq!(client.get("/echo").response().0.status(), 200);
        }
        assert_eq!(origins[1].stats().requests.by_path.get("/echo"), Some(&10), "{health}");
        assert_eq!(proxy.metric("millrace_endpoint_healthy", &[&format!("endpoint=\"{name}\"")]), 0);
        origins[0].clear_fault();
        proxy.eventually("the endpoint is back", |proxy| is_healthy(proxy, &name));
        origins[0].reset();
        for _ in 0..10 {
            assert_eq!(client.get("/echo").response().0.status(), 200);
        }
        assert!(
            origins[0].stats().requests.by_path.get("/echo").is_some_and(|count| *count >= 4),
            "{health}"
        );
    }
}

#[test]
fn all_endpoints_down_is_a_503_that_says_when_to_come_back() {
    let refusing = Refusing::new();
    let proxy = Proxy::start(&Config::to(refusing.addr()).cluster(
        "health = { kind = \"tcp\", interval = \"50ms\", timeout = \"50ms\", healthy_after = 1, unhealthy_after = 1 }",
    ));
    let name = refusing.addr().to_string();
    proxy.eventually("the endpoint is out", |proxy| !is_healthy(proxy, &name));
    let mut client = proxy.connect();
    for _ in 0..2 {
        let (head, body) = client.get("/").response();
        assert_eq!(head.status(), 503);
        assert_eq!(head.field("Retry-After"), Some("1"));
        assert_eq!(head.field("Content-Type"), Some("application/json"));
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "no_endpoint");
        assert_eq!(body["error"]["type"], "upstream_error");
    }
    assert_eq!(proxy.metric("millrace_cluster_no_endpoint_total", &[]), 2);
    let _listener = refusing.listen();
    proxy.eventually("the endpoint is back", |proxy| is_healthy(proxy, &name));
}

#[test]
fn a_health_check_is_made_once_for_all_workers() {
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).workers(4).cluster(
        "health = { kind = \"http\", path = \"/health\", interval = \"100ms\", timeout = \"100ms\" }",
    ));
    let probes = |stats: &bench::origin::Stats| stats.requests.by_path.get("/health").copied().unwrap_or(0);
    origin.wait_for(PATIENCE, |stats| probes(stats) >= 2).unwrap();
    let (before, began) = (probes(&origin.stats()), std::time::Instant::now());
    let stats = origin.wait_for(PATIENCE, |stats| probes(stats) >= before + 5).unwrap();
    // Four workers that each probed would take a quarter of the time.
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "{:?} for {}",
        began.elapsed(),
        probes(&stats) - before
    );
    drop(proxy);
}

#[test]
fn an_endpoint_is_found_by_its_name() {
    let origin = origin();
    let name = format!("localhost:{}", origin.addr().port());
    let config = Config { endpoints: vec![name.clone()], ..Config::default() };
    let proxy = Proxy::start(&config.cluster("host_header = \"endpoint\"\ndns_refresh = \"1s\""));
    let (head, body) = proxy.connect().get("/echo").response();
    assert_eq!(head.status(), 200);
    assert!(String::from_utf8(body).unwrap().contains(&name), "the Host is the name as written");
    assert_eq!(endpoint_of(&proxy.status(), &name)["address"], origin.addr().to_string());
}

#[test]
fn ipv6_on_both_sides() {
    let listen = vec![Address::Tcp("[::1]:0".parse().unwrap())];
    let origin = Origin::start(OriginOptions { listen, ..OriginOptions::default() }).unwrap();
    let config = Config { bind: vec!["[::1]:0".to_owned()], ..Config::to(origin.addr()) };
    let proxy = Proxy::start(&config);
    assert!(proxy.addr().is_ipv6());
    let mut client = Wire::connect(proxy.addr());
    let (head, body) = client.get("/echo").response();
    assert_eq!(head.status(), 200);
    assert!(String::from_utf8(body).unwrap().contains("\"::1\""), "X-Forwarded-For is the client's address");
}

#[test]
fn unix_sockets_on_both_sides() {
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin.sock");
        let listen = vec![Address::Unix(path.clone())];
        let origin = Origin::start(OriginOptions { listen, ..OriginOptions::default() }).unwrap();
        let config = Config {
            bind: vec!["unix:{dir}/http.sock".to_owned()],
            endpoints: vec![format!("unix:{}", path.display())],
            ..Config::default()
        };
        let proxy = Proxy::start(&config.driver(driver));
        let mut client = Wire::try_connect_unix(&proxy.dir().join("http.sock")).unwrap();
        for _ in 0..3 {
            let (head, body) = client.get("/bytes/300KiB").response();
            assert_eq!((head.status(), body.len()), (200, 300 << 10), "{driver}");
        }
        client.get("/sse?tokens=1000000");
        client.head();
        client.until("\n\n");
        drop(client);
        origin.wait_for(PATIENCE, |stats| stats.aborts.total == 1).expect("the cancel arrives");
        let socket = proxy.dir().join("http.sock");
        assert!(proxy.stop().success());
        assert!(!socket.exists(), "the socket's file is left behind");
    }
}
