//! Metrics: what nodes report becomes figures of a node, of a region and of the fleet, and one scrape for Prometheus.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::collections::BTreeMap;

use proto::v1::agent_message::Kind as Said;
use proto::v1::series::Value as Measured;
use proto::v1::{Heartbeat, Histogram, HostMetrics, Label, MetricFamily, MetricKind, Metrics, Series};
use serde_json::{Value, json};
use story::agent::{Agent, Answer, Session, runtime};
use story::client::Client;
use story::{Master, eventually};

const AGGREGATE: &str = "/api/v1/metrics/aggregate";

fn agent(master: &Master, node: &str, region: &str) -> Session {
    let agent = Agent::new(&runtime(), node).in_region(region);
    agent.enrol(master.grpc(), &master.join_token(1)).unwrap();
    agent.connect(master.grpc(), Answer::Apply).unwrap()
}

fn family(name: &str, kind: MetricKind, labels: &[(&str, &str)], value: Measured) -> MetricFamily {
    let label = |(name, value): &(&str, &str)| Label { name: (*name).into(), value: (*value).into() };
    let series = Series { labels: labels.iter().map(label).collect(), value: Some(value) };
    MetricFamily { name: name.into(), help: "help".into(), kind: kind.into(), series: vec![series] }
}

/// What a data plane has counted since its start: requests, and how many upstreams answered within 10 ms and within 1 s.
fn report(session: &Session, requests: f64, fast: u64, slow: u64) {
    let upstream = Histogram {
        bounds: vec![0.01, 1.0],
        counts: vec![fast, slow, 0],
        sum: fast as f64 * 0.005 + slow as f64 * 0.5,
    };
    let route = [("route", "chat")];
    session.report(&Metrics {
        dataplane_started_at_unix_ms: 1,
        families: vec![
            family("millrace_requests_total", MetricKind::Counter, &route, Measured::Number(requests)),
            family("millrace_connections", MetricKind::Gauge, &[("listener", "http")], Measured::Number(7.0)),
            family("millrace_upstream_seconds", MetricKind::Histogram, &route, Measured::Histogram(upstream)),
        ],
        ..Metrics::default()
    });
}

fn beat(session: &Session, cpu: f64, received: u64) {
    let host = HostMetrics {
        cpu_busy_ratio: cpu,
        memory_bytes: 100,
        memory_available_bytes: 40,
        network_received_bytes_total: received,
        ..HostMetrics::default()
    };
    session.say(Said::Heartbeat(Heartbeat { sequence: 1, host: Some(host), ..Heartbeat::default() }));
}

fn until(client: &Client, path: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || Some(client.get(path).data().clone()).filter(|found| is_so(found)))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn percentiles_of_a_region_are_merged_and_not_averaged() {
    let master = Master::start();
    let admin = master.admin();
    let [a, b, c] =
        [("a", "hk"), ("b", "hk"), ("c", "sg")].map(|(node, region)| agent(&master, node, region));
    for (session, fast, slow) in [(&a, 990, 0), (&b, 0, 10), (&c, 0, 500)] {
        report(session, 0.0, 0, 0);
        report(session, 100.0, fast, slow);
        beat(session, 0.5, 0);
    }
    let path = format!("{AGGREGATE}?region=hk");
    let hk = until(&admin, &path, "both have reported", |found| {
        found["now"]["upstream"]["count"] == 1000 && found["now"]["cpu_percent"] == 50.0
    });
    // Of 1,000 answers 10 are slow: P95 is that of the fast ones. The mean of both nodes' P95 would be half a second.
    assert!(number(&hk["now"]["upstream"]["p95"]) < 10.0, "{hk}");
    assert!(number(&hk["now"]["upstream"]["p99"]) <= 10.0, "{hk}");
    assert_eq!((&hk["nodes"], &hk["now"]["nodes_reporting"]), (&json!(2), &json!(2)));
    assert_eq!(number(&hk["now"]["connections"]), 14.0, "connections add up");
    let all =
        until(&admin, AGGREGATE, "all have reported", |found| found["now"]["upstream"]["count"] == 1500);
    let regions: Vec<(&Value, &Value)> = all["regions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|region| (&region["region"], &region["nodes"]))
        .collect();
    assert_eq!(regions, [(&json!("hk"), &json!(2)), (&json!("sg"), &json!(1))]);
    assert!(number(&all["regions"][1]["now"]["upstream"]["p50"]) > 400.0, "{all}");
    assert!(number(&all["now"]["upstream"]["p95"]) > 800.0, "a third of all answers is slow: {all}");
    let alone = admin.get("/api/v1/metrics/nodes/b");
    assert!(number(&alone.data()["now"]["upstream"]["p95"]) > 900.0, "{}", alone.json);
}

#[test]
fn a_node_has_a_past_in_two_resolutions() {
    let master = Master::start();
    let admin = master.admin();
    let session = agent(&master, "a", "hk");
    beat(&session, 0.25, 1_000);
    report(&session, 10.0, 0, 0);
    report(&session, 60.0, 5, 0);
    for (step, shown) in [("10s", "10s"), ("1m", "1m")] {
        let path = format!("/api/v1/metrics/nodes/a?step={step}&since=1h");
        let found = until(&admin, &path, "it is there", |found| {
            let points = found["history"].as_array().unwrap();
            points.iter().any(|point| point["upstream"]["count"] == 5)
        });
        assert_eq!((&found["step"], &found["region"]), (&json!(shown), &json!("hk")));
        let last = found["history"].as_array().unwrap().last().unwrap();
        assert!(last["at"].as_str().unwrap().ends_with("0.000Z"), "{last}");
    }
    let nobody = admin.get("/api/v1/metrics/nodes/nobody");
    nobody.assert_refused(404, "id");
    admin.get("/api/v1/metrics/nodes/a?step=5s").assert_refused(400, "step");
    admin.get("/api/v1/metrics/nodes/a?since=yesterday").assert_refused(400, "since");
    admin.get("/api/v1/metrics/nodes/..%2fx").assert_refused(422, "id");
    admin.get(&format!("{AGGREGATE}?role=king")).assert_refused(400, "role");
    let empty = admin.get(&format!("{AGGREGATE}?region=nowhere"));
    assert_eq!((&empty.data()["nodes"], &empty.data()["now"]), (&json!(0), &Value::Null));
}

#[test]
fn the_fleet_is_one_scrape() {
    let master = Master::start();
    let admin = master.admin();
    master.anonymous().get("/metrics").assert_refused(401, "authorization");
    let sessions = [("a", "hk"), ("b", "sg")].map(|(node, region)| agent(&master, node, region));
    for session in &sessions {
        beat(session, 0.5, 123);
        report(session, 42.0, 3, 1);
    }
    let wanted = [
        "millrace_requests_total{node=\"a\",region=\"hk\",role=\"edge\",route=\"chat\"} 42",
        "millrace_requests_total{node=\"b\",region=\"sg\",role=\"edge\",route=\"chat\"} 42",
        "millrace_upstream_seconds_bucket{node=\"b\",region=\"sg\",role=\"edge\",route=\"chat\",le=\"0.01\"} 3",
        "millrace_upstream_seconds_bucket{node=\"b\",region=\"sg\",role=\"edge\",route=\"chat\",le=\"+Inf\"} 4",
        "millrace_node_cpu_busy_ratio{node=\"a\",region=\"hk\",role=\"edge\"} 0.5",
        "millrace_node_network_received_bytes_total{node=\"a\",region=\"hk\",role=\"edge\"} 123",
        "millrace_node_up{node=\"b\",region=\"sg\",role=\"edge\"} 1",
        "millrace_master_nodes{state=\"offline\"} 0",
    ];
    let text = eventually("all of it is there", || {
        let answer = admin.get("/metrics");
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = String::from_utf8(answer.bytes).unwrap();
        wanted.iter().all(|line| text.lines().any(|other| other == *line)).then_some(text)
    });
    assert_is_exposition(&text);
}

/// Each metric has one head, before its samples, and each sample a number.
fn assert_is_exposition(text: &str) {
    let mut kinds = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').unwrap();
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} has two heads");
            current = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_of = name == current || (base == Some(current.as_str()) && kinds[&current] == "histogram");
            assert!(is_of, "{line} stands under {current}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok() || value == "+Inf", "{line}");
        }
    }
    assert!(kinds.len() > 20, "{text}");
}
