//! Config changes lose nothing: hundreds of them during hundreds of live streams, with listeners that come and go. A
//! stream ends on the generation that it began with, and a refused config changes nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::time::Instant;

use bench::origin::Origin;
use rustix::process::Signal;
use serde_json::{Value, json};
use story::config::Config;
use story::load::{Load, Mix};
use story::wire::Wire;
use story::{DRIVERS, PATIENCE, Proxy, origin};

/// What the allocator may keep more or less of after the same load.
const MEMORY_NOISE: u64 = 8 << 20;

/// The config number `number`: each differs from the one before, most in more than one place.
fn variant(base: &Config, origin: std::net::SocketAddr, number: u64) -> Config {
    let route = format!(
        "[[routes]]\nname = \"extra\"\npath = \"/extra/{number}\"\ncluster = \"extra\"\n\
         headers = {{ request = {{ set = {{ X-Variant = \"{number}\" }} }} }}\n\
         [[clusters]]\nname = \"extra\"\nendpoints = [{{ address = \"{origin}\", weight = {} }}]\n",
        number % 7 + 1
    );
    let listener = "[[listeners]]\nname = \"second\"\nbind = \"127.0.0.1:0\"";
    let mut config = base.clone().more(&route);
    if number.is_multiple_of(2) {
        config = config.limits("connections = 5000");
    }
    if number.is_multiple_of(3) { config.more(listener) } else { config }
}

#[test]
fn two_hundred_applies_during_five_hundred_streams_lose_nothing() {
    let origin = origin();
    let base = Config::to(origin.addr());
    let proxy = Proxy::start(&base);
    let mix = Mix { streams: 500, events: 40, events_per_second: 4, keep_alive: 8, fresh: 0 };
    apply_during(mix, 200, &proxy, &base, &origin);
}

#[test]
#[ignore = "takes minutes; `cargo test -p dataplane --test reload -- --ignored --nocapture` shows the promised figures"]
fn a_thousand_applies_during_a_thousand_streams_lose_nothing_and_no_memory() {
    let origin = origin();
    let base = Config::to(origin.addr());
    let proxy = Proxy::start(&base);
    let mix = Mix { streams: 1000, events: 240, events_per_second: 2, keep_alive: 100, fresh: 0 };
    // The first round is what such a load costs at all; all that the second, five times longer one may leave is noise.
    let rounds = [(Mix { events: 60, ..mix }, 200), (mix, 1000)].map(|(mix, applies)| {
        apply_during(mix, applies, &proxy, &base, &origin);
        assert_eq!(proxy.put_config(&base).0, 200);
        let idle = proxy.metric("millrace_pool_idle_connections", &[]);
        (proxy.rss_bytes(), proxy.open_files() as u64 - idle)
    });
    let [(before, files), (after, files_after)] = rounds;
    println!("{} KiB in RAM after the first round, {} KiB after the second", before >> 10, after >> 10);
    assert!(after < before + MEMORY_NOISE, "{before} bytes, then {after}");
    // A look at the files is itself a connection to the admin API, which may or may not be closed by then.
    assert!(files_after <= files + 2, "{files} descriptors apart from idle connections, then {files_after}");
}

/// Applies so many configs while such a load goes on, and holds that nobody notices.
fn apply_during(mix: Mix, applies: u64, proxy: &Proxy, base: &Config, origin: &Origin) {
    let before = proxy.status()["generation"].as_u64().unwrap();
    let addr = proxy.addr();
    let load = Load::start(addr, mix);
    let (connections, requests) = (origin.stats().connections.accepted, load.requests());
    let began = Instant::now();
    for number in before..before + applies {
        let (status, answer) = proxy.put_config(&variant(base, origin.addr(), number));
        assert_eq!((status, answer["generation"].as_u64()), (200, Some(number + 1)), "{answer}");
        assert_eq!(
            Wire::connect(addr).get("/").response().0.status(),
            200,
            "a new connection after {number}"
        );
    }
    let took = began.elapsed();
    let status = proxy.status();
    assert_eq!(
        load.streams_ended(),
        0,
        "the applies took longer than the streams: they prove less than they say"
    );
    assert!(load.requests() > requests + applies, "hardly any traffic went on beside");
    let generations = status["generations"].as_array().unwrap();
    let first = generations.iter().find(|generation| generation["generation"] == before);
    assert_eq!(
        first.unwrap()["streams"],
        mix.streams,
        "streams stay on the generation they began with: {status}"
    );
    assert_eq!(status["generation"], before + applies);
    let dialled = origin.stats().connections.accepted - connections;
    // Pools belong to workers: one for each of the clients, and one on either worker for what connects anew.
    let most = mix.keep_alive as u64 + 2;
    assert!(dialled <= most, "an unchanged cluster lost its pool: {dialled} connections were dialled");

    let asked = load.requests();
    let report = load.finish();
    println!(
        "{applies} applies in {took:?}: {} streams, {} events, {} requests",
        report.streams_whole, report.events, report.requests
    );
    assert!(report.losses.is_empty(), "{:#?}", report.losses);
    assert_eq!(report.streams_whole, mix.streams as u64);
    assert_eq!(report.events, mix.events * mix.streams as u64);
    assert!(report.requests > asked + 50, "traffic did not go on after the last of them");
    assert_eq!(report.reconnects, 0, "a kept connection was closed by a reload");
    proxy.eventually("the old generations are gone", |proxy| {
        proxy.status()["generations"].as_array().unwrap().len() == 1
    });
    assert_eq!(proxy.metric("millrace_config_applies_total", &[]), before + applies);
    proxy.assert_at_rest();
}

#[test]
fn signals_and_refusals_under_load_lose_nothing() {
    for driver in DRIVERS {
        let origin = origin();
        let base = Config::to(origin.addr()).driver(driver);
        let proxy = Proxy::start(&base);
        let mix = Mix { streams: 50, events: 20, events_per_second: 10, keep_alive: 4, fresh: 4 };
        let load = Load::start(proxy.addr(), mix);
        for number in 1..=20 {
            if number % 2 == 0 {
                proxy.write_config(&variant(&base, origin.addr(), number));
            } else {
                proxy.write_config(&base.clone().route("cluster_typo = 1"));
            }
            let before = proxy.metric("millrace_config_applies_total", &[])
                + proxy.metric("millrace_config_refusals_total", &[]);
            proxy.signal(Signal::HUP);
            proxy.eventually("the signal is heard", |proxy| {
                proxy.metric("millrace_config_applies_total", &[])
                    + proxy.metric("millrace_config_refusals_total", &[])
                    > before
            });
        }
        assert_eq!(proxy.metric("millrace_config_refusals_total", &[]), 10, "{driver}");
        let report = load.finish();
        assert!(report.losses.is_empty(), "{driver}: {:#?}", report.losses);
        assert_eq!((report.streams_whole, report.events), (50, 1000), "{driver}");
    }
}

#[test]
fn a_stream_ends_on_the_generation_that_it_began_with() {
    for driver in DRIVERS {
        let (first, second) = (origin(), origin());
        let proxy = Proxy::start(&Config::to(first.addr()).driver(driver));
        // Its answer goes on for as long as the client wants.
        let mut stream = proxy.connect();
        stream.send(
            "POST /echo?raw HTTP/1.1\r\nHost: story\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
        );
        assert_eq!((stream.head().status(), stream.exact(10)), (200, b"5\r\nbegun\r\n".to_vec()));
        assert_eq!(proxy.put_config(&Config::to(second.addr()).driver(driver)).0, 200);
        let both = json!([{ "generation": 1, "streams": 1 }, { "generation": 2, "streams": 0 }]);
        assert_eq!(proxy.status()["generations"], both, "{driver}");
        assert_eq!(proxy.connect().get("/").response().0.status(), 200);
        assert_eq!((first.stats().requests.total, second.stats().requests.total), (1, 1), "{driver}");

        stream.send("5\r\nended\r\n0\r\n\r\n");
        assert_eq!(stream.try_chunked().unwrap().0, b"ended", "{driver}");
        drop(stream);
        let one = json!([{ "generation": 2, "streams": 0 }]);
        proxy.eventually("the first generation is gone", |proxy| proxy.status()["generations"] == one);
        assert_eq!(first.stats().aborts.total, 0, "{driver}");
    }
}

#[test]
fn pools_outlive_other_settings_of_their_cluster_and_end_with_their_endpoint() {
    for driver in DRIVERS {
        let (removed, kept) = (origin(), origin());
        let both = Config::to_all([removed.addr(), kept.addr()]).driver(driver).workers(1);
        let proxy = Proxy::start(&both);
        let ask = |count: usize| {
            // At the same time, so that each has an upstream connection of its own; evenly over the endpoints.
            let mut clients: Vec<Wire> = (0..count).map(|_| proxy.connect()).collect();
            for client in &mut clients {
                client.get("/?stall_before=100ms");
            }
            clients.iter_mut().for_each(|client| assert_eq!(client.response().0.status(), 200));
        };
        let open = || [&removed, &kept].map(|origin| origin.stats().connections.open);
        ask(4);
        assert_eq!(open(), [2, 2], "{driver}");
        for other in [
            "policy = \"round_robin\"",
            "host_header = \"endpoint\"",
            "pool = { idle_per_endpoint = 100 }",
            "socket = { nodelay = false }",
        ] {
            assert_eq!(proxy.put_config(&both.clone().cluster(other)).0, 200, "{other}");
            ask(4);
            assert_eq!(open(), [2, 2], "{driver}: a pool was lost for {other}");
        }
        let accepted = || [&removed, &kept].map(|origin| origin.stats().connections.accepted);
        assert_eq!(accepted(), [2, 2], "{driver}");

        // Streams that were there before give their connections back, one after the other.
        let mut streams: Vec<Wire> = (0..4).map(|_| proxy.connect()).collect();
        for stream in &mut streams {
            stream.send("POST /echo?raw HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
            assert_eq!(stream.head().status(), 200);
        }
        ask(2);
        assert_eq!(open(), [3, 3], "{driver}");
        assert_eq!(proxy.put_config(&Config::to(kept.addr()).driver(driver).workers(1)).0, 200);
        for mut stream in streams {
            proxy.eventually("only streams keep connections to a removed endpoint", |_| {
                let stats = removed.stats();
                stats.connections.open == stats.requests.in_flight
            });
            stream.send("0\r\n\r\n");
            assert_eq!(stream.try_chunked().unwrap().0, b"x", "{driver}");
        }
        proxy.eventually("the last one ends after its stream", |_| open() == [0, 3]);
        ask(2);
        assert_eq!(open(), [0, 3], "{driver}: the endpoint that stays keeps its pool");
        assert_eq!(accepted(), [3, 3], "{driver}: the endpoint that stays keeps its pool");
    }
}

#[test]
fn a_refused_config_says_where_and_why_and_changes_nothing() {
    let origin = origin();
    let base = Config::to(origin.addr());
    let proxy = Proxy::start(&base);
    let wrong = base.route("timeouts = { idle = \"soon\" }").limits("conections = 5");
    let (status, answer) = proxy.put_config(&wrong);
    assert_eq!(status, 422);
    let text = wrong.render(proxy.dir());
    let place = |error: &Value| {
        let line = text.lines().nth(error["line"].as_u64().unwrap() as usize - 1).unwrap();
        line[error["column"].as_u64().unwrap() as usize - 1..].to_owned()
    };
    let mut places: Vec<String> = answer["errors"].as_array().unwrap().iter().map(place).collect();
    places.sort();
    assert_eq!(places, ["\"soon\" }", "conections = 5"], "{answer}");
    assert!(answer.to_string().contains("connections"), "the right word is told: {answer}");
    assert_eq!(proxy.status()["generation"], 1);
    assert_eq!(proxy.connect().get("/").response().0.status(), 200);
}

#[test]
fn a_listener_that_is_removed_ends_its_queue_and_not_its_streams() {
    for driver in DRIVERS {
        let origin = origin();
        let base = Config::to(origin.addr()).driver(driver);
        let proxy = Proxy::start(&base);
        let second = base.clone().more("[[listeners]]\nname = \"second\"\nbind = \"127.0.0.1:0\"");
        assert_eq!(proxy.put_config(&second).0, 200);
        let addr = proxy.addr_of("second");
        let mut stream = Wire::connect(addr);
        stream.get("/sse?tokens=30&tokens_per_second=30");
        stream.head();
        let mut kept = Wire::connect(addr);
        assert_eq!(kept.get("/").response().0.status(), 200);
        assert_eq!(proxy.put_config(&base).0, 200);
        proxy.eventually("nobody listens there", |_| Wire::try_connect(addr).is_err());
        let (body, _) = stream.try_chunked().unwrap();
        assert_eq!(String::from_utf8(body).unwrap().matches("data: ").count(), 30, "{driver}");
        assert_eq!(proxy.connect().get("/").response().0.status(), 200);
    }
}

#[test]
fn the_status_names_where_the_config_came_from_and_the_log_when_the_file_takes_over() {
    let origin = origin();
    let base = Config::to(origin.addr());
    let mut proxy = Proxy::start(&base);
    let file = proxy.dir().join("edge.toml");
    let kind = |proxy: &Proxy| proxy.status()["source"]["kind"].as_str().unwrap().to_owned();
    let source = proxy.status()["source"].clone();
    assert_eq!(
        (&source["kind"], &source["path"]),
        (&"file".into(), &file.to_str().unwrap().into()),
        "{source}"
    );
    let since = humantime::parse_rfc3339(source["since"].as_str().unwrap()).unwrap();
    assert!(since.elapsed().unwrap() < PATIENCE, "{source}");
    // The file again: nothing was replaced.
    proxy.signal(Signal::HUP);
    proxy.eventually("it was read", |proxy| proxy.status()["generation"] == 2);
    assert!(!proxy.output().contains("replaced by"), "{}", proxy.output());

    assert_eq!(proxy.put_config(&base.clone().limits("connections = 77")).0, 200);
    assert_eq!(kind(&proxy), "admin_api");
    assert_eq!(proxy.admin("PUT", "/config", "nonsense").0, 422);
    assert_eq!(kind(&proxy), "admin_api", "a refused config is nobody's");
    let text = base.clone().limits("connections = 78").render(proxy.dir());
    let mut agent = Wire::try_connect_unix(&proxy.admin_socket()).unwrap();
    agent.send(format!(
        "PUT /config HTTP/1.1\r\nHost: x\r\nUser-Agent: millrace-agent/9\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    ));
    assert_eq!(agent.head().status(), 200);
    assert_eq!(kind(&proxy), "agent");
    // What the agent put goes over an upgrade, and is not the file's there either.
    proxy.signal(Signal::USR2);
    proxy.await_successor();
    assert_eq!(kind(&proxy), "upgrade");
    assert_eq!(proxy.admin("POST", "/drain", "").0, 202);
    assert_eq!(proxy.admin("POST", "/undrain", "").0, 200);
    assert_eq!(kind(&proxy), "upgrade", "undrain takes the same config");

    assert_eq!(proxy.put_config(&base).0, 200);
    proxy.signal(Signal::HUP);
    proxy.eventually("the file's config is served", |proxy| kind(proxy) == "file");
    let line = format!("config of the admin API replaced by the file {}", file.display());
    proxy.eventually("the log says so", |proxy| proxy.output().contains(&line));
}
