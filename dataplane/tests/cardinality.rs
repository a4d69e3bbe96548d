//! How long the metrics are depends on what happened, not on how much the config names; and what they leave out is 0. By
//! itself, because thousands of routes take the time of everything beside them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::time::{Duration, Instant};

use story::config::Config;
use story::wire::Wire;
use story::{Proxy, origin};

#[test]
fn five_thousand_idle_routes_are_a_small_and_quick_scrape() {
    const ROUTES: usize = 5_000;
    /// Most lines of it are the endpoints' health, one each.
    const BYTES_MAX: usize = 1_000_000;
    /// Prometheus gives up after ten seconds; this one is measured in milliseconds, also where the program is not optimised.
    const SCRAPE_MAX: Duration = Duration::from_secs(2);
    let origin = origin();
    let tenants: String = (0..ROUTES)
        .map(|number| {
            format!(
                "[[routes]]\nname = \"r{number}\"\nhosts = [\"t{number}.example.com\"]\ncluster = \"c{number}\"\n\
                 [[clusters]]\nname = \"c{number}\"\nendpoints = [{{ address = \"{}\" }}]\n",
                origin.addr()
            )
        })
        .collect();
    let proxy = Proxy::start(&Config::to(origin.addr()).more(&tenants));
    let began = Instant::now();
    let idle = proxy.text("/metrics");
    let took = began.elapsed();
    assert!(idle.len() < BYTES_MAX, "{} bytes", idle.len());
    assert!(took < SCRAPE_MAX, "{took:?}");
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series(&idle) < ROUTES + 200, "{} series", series(&idle));
    assert!(!idle.contains("route=\""), "no route has anything to show");
    // One of them is used: it has what happened to it, and the others have nothing still.
    let mut client = proxy.connect();
    let mut ask = |request: &str| {
        client.send(format!("{request}\r\nHost: t7.example.com\r\n\r\n")).response().0.status()
    };
    assert_eq!((ask("GET / HTTP/1.1"), ask("GET /status/503 HTTP/1.1")), (200, 503));
    assert_eq!(ask("GET / HTTP/1.1\r\nTransfer-Encoding: x"), 400);
    proxy.eventually("all are counted", |proxy| proxy.metric("millrace_node_requests_total", &[]) == 3);
    let used = proxy.text("/metrics");
    let of_routes: Vec<&str> = used.lines().filter(|line| line.contains("route=\"")).collect();
    assert!(of_routes.iter().all(|line| line.contains("{route=\"r7\",cluster=\"c7\"")), "{of_routes:?}");
    assert!(used.len() - idle.len() < 20_000, "{} bytes more", used.len() - idle.len());
    assert!(!used.contains("millrace_faults_total{route"), "none of these is a fault of a route");
    for (name, labels, value) in [
        ("millrace_requests_total", vec!["route=\"r7\"", "2xx"], 1),
        ("millrace_requests_total", vec!["route=\"r7\"", "5xx"], 1),
        ("millrace_requests_total", vec![], 2),
        ("millrace_first_byte_seconds_count", vec![], 2),
        ("millrace_requests_in_flight", vec!["r7"], 0),
        ("millrace_endpoint_requests_total", vec!["cluster=\"c7\""], 2),
        ("millrace_endpoint_requests_total", vec![], 2),
        ("millrace_listener_requests_total", vec![], 3),
        ("millrace_listener_faults_total", vec!["kind=\"malformed_request\""], 1),
        ("millrace_node_faults_total", vec!["kind=\"malformed_request\"", "blame=\"client\""], 1),
        ("millrace_node_faults_total", vec![], 1),
    ] {
        assert_eq!(proxy.metric(name, &labels), value, "{name} {labels:?}");
    }
}

#[test]
fn totals_of_the_node_survive_the_end_of_a_listener_and_a_route() {
    let origin = origin();
    let config = Config::to(origin.addr());
    let with = config.clone().more(
        "[[listeners]]\nname = \"second\"\nbind = \"127.0.0.1:0\"\n\
         [[routes]]\nname = \"extra\"\npath = \"/extra\"\ncluster = \"origin\"",
    );
    let proxy = Proxy::start(&with);
    assert_eq!(Wire::connect(proxy.addr_of("second")).get("/extra").response().0.status(), 404);
    let mut client = proxy.connect();
    assert_eq!(client.get("/\u{1}").response().0.status(), 400);
    let totals = |proxy: &Proxy| {
        let all = |name: &str| proxy.metric(name, &[]);
        (all("millrace_node_requests_total"), all("millrace_node_faults_total"))
    };
    proxy.eventually("both are counted", |proxy| totals(proxy) == (2, 1));
    assert_eq!(proxy.put_config(&config).0, 200);
    assert_eq!(proxy.metric("millrace_listener_requests_total", &[]), 1, "of the listener that is left");
    assert_eq!(totals(&proxy), (2, 1));
}
