//! Config changes under load lose nothing: hundreds of them during hundreds of live streams, with listeners that come
//! and go. What a reload is, one at a time, is told in `reload`.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use rustix::process::Signal;
use story::config::Config;
use story::load::{Load, Mix};
use story::wire::Wire;
use story::{DRIVERS, Proxy, origin};

const APPLIES: u64 = 200;
const STREAMS: usize = 500;

/// The config number `number`: each differs from the one before, most in more than one place.
fn variant(base: &Config, origin: std::net::SocketAddr, number: u64) -> Config {
    let route = format!(
        "[[routes]]\nname = \"extra\"\npath = \"/extra/{number}\"\ncluster = \"extra\"\n\
         headers = {{ request = {{ set = {{ X-Variant = \"{number}\" }} }} }}\n\
         [[clusters]]\nname = \"extra\"\nendpoints = [{{ address = \"{origin}\", weight = {} }}]\n",
        number % 7 + 1
    );
    let listener = "[[listeners]]\nname = \"second\"\nbind = \"127.0.0.1:0\"";
    let config = base.clone().more(&route);
    if number.is_multiple_of(3) { config.more(listener) } else { config }
}

#[test]
fn two_hundred_applies_during_five_hundred_streams_lose_nothing() {
    let origin = origin();
    let base = Config::to(origin.addr());
    let proxy = Proxy::start(&base);
    let mix = Mix { streams: STREAMS, events: 40, events_per_second: 4, keep_alive: 8, fresh: 0 };
    let load = Load::start(proxy.addr(), mix);
    let (connections, requests) = (origin.stats().connections.accepted, load.requests());
    for number in 1..=APPLIES {
        let (status, answer) = proxy.put_config(&variant(&base, origin.addr(), number));
        assert_eq!((status, answer["generation"].as_u64()), (200, Some(number + 1)), "{answer}");
    }
    let status = proxy.status();
    assert_eq!(
        load.streams_ended(),
        0,
        "the applies took longer than the streams: they prove less than they say"
    );
    assert!(load.requests() > requests + APPLIES, "hardly any traffic went on beside");
    let generations = status["generations"].as_array().unwrap();
    let first = generations.iter().find(|generation| generation["generation"] == 1);
    assert_eq!(
        first.unwrap()["streams"],
        STREAMS,
        "streams stay on the generation they began with: {status}"
    );
    assert_eq!(status["generation"], APPLIES + 1);
    let dialled = origin.stats().connections.accepted - connections;
    assert!(dialled <= 8, "an unchanged cluster lost its pool: {dialled} connections were dialled");

    let report = load.finish();
    println!(
        "{APPLIES} applies: {} streams, {} events, {} requests",
        report.streams_whole, report.events, report.requests
    );
    assert!(report.losses.is_empty(), "{:#?}", report.losses);
    assert_eq!(report.streams_whole, STREAMS as u64);
    assert_eq!(report.events, 40 * STREAMS as u64);
    assert_eq!(report.reconnects, 0, "a kept connection was closed by a reload");
    proxy.eventually("the old generations are gone", |proxy| {
        proxy.status()["generations"].as_array().unwrap().len() == 1
    });
    assert_eq!(proxy.metric("millrace_config_applies_total", &[]), APPLIES + 1);
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
fn a_refused_config_says_where_and_why_and_changes_nothing() {
    let origin = origin();
    let base = Config::to(origin.addr());
    let proxy = Proxy::start(&base);
    let (_, before) = proxy.admin("GET", "/status", "");
    let (status, answer) =
        proxy.put_config(&base.clone().route("timeouts = { idle = \"soon\" }").limits("conections = 5"));
    assert_eq!(status, 422);
    let errors = answer["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 2, "{answer}");
    for error in errors {
        assert!(error["line"].as_u64().unwrap() > 1 && error["column"].as_u64().unwrap() >= 1, "{error}");
    }
    assert!(
        answer.to_string().contains("limits.connections") || answer.to_string().contains("connections"),
        "{answer}"
    );
    assert_eq!(proxy.status()["generation"], before["generation"]);
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
