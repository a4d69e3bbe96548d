//! What a scrape says, read back line by line.

use std::collections::{HashMap, HashSet};

use dataplane_core::endpoint::{EndpointAddress, EndpointHealth, EndpointId, ResolvedEndpoint};
use proto::config::Config;

use super::*;

const CONFIG: &str = r#"
[[listeners]]
name = "http"
bind = "127.0.0.1:0"
[[routes]]
name = "chat"
cluster = "llm"
[[clusters]]
name = "llm"
endpoints = [{ address = "llm.internal:8000" }]
"#;

fn snapshot(workers: usize) -> Snapshot {
    let config = Config::parse(CONFIG, &|_| None, "node").unwrap();
    let address = EndpointAddress::Ip("10.0.0.1:8000".parse().unwrap());
    let endpoint = ResolvedEndpoint {
        id: EndpointId::of("llm", &address),
        address,
        name: "llm.internal:8000".to_owned(),
        weight: 1,
        health: Arc::new(EndpointHealth::new()),
    };
    Snapshot::build(Arc::new(config), 3, vec![vec![endpoint]], None, workers)
}

fn scrape(snapshot: &Snapshot) -> String {
    let node = NodeFigures { generation: snapshot.generation, ready: true, ..NodeFigures::default() };
    let names = [("llm.internal:8000", true), ("gone.internal:8000", false)];
    let names = names.map(|(endpoint, is_resolved)| Name { cluster: "llm", endpoint, is_resolved });
    let (workers, process) = (&snapshot.workers, Process::now());
    render(&Scrape { snapshot: Some(snapshot), workers, names: &names, node, process })
}

#[test]
fn counters_of_all_workers_are_added_up() {
    let snapshot = snapshot(2);
    for stats in &snapshot.routes[0].stats {
        stats.count_request(Some(200));
        stats.count_fault(FaultKind::FirstByteTimeout);
        stats.first_byte.record(3_000_000);
    }
    snapshot.listeners[0].stats[1].bytes_in.add(17);
    let text = scrape(&snapshot);
    for line in [
        "millrace_requests_total{route=\"chat\",cluster=\"llm\",status_class=\"2xx\"} 2",
        "millrace_faults_total{route=\"chat\",cluster=\"llm\",blame=\"upstream\",kind=\"first_byte_timeout\"} 2",
        "millrace_first_byte_seconds_count{route=\"chat\",cluster=\"llm\"} 2",
        "millrace_first_byte_seconds_sum{route=\"chat\",cluster=\"llm\"} 0.006",
        "millrace_listener_received_bytes_total{listener=\"http\"} 17",
        "millrace_config_generation 3",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

/// The values of all series of a metric.
fn values(text: &str, name: &str) -> Vec<u64> {
    let samples =
        text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn what_nothing_happened_to_has_no_series_but_health_and_connections() {
    let text = scrape(&snapshot(2));
    let samples = || text.lines().filter(|line| !line.starts_with('#'));
    let of_config =
        |line: &&str| ["route=", "cluster=", "listener="].iter().any(|label| line.contains(label));
    let expected = [
        "millrace_connections{listener=\"http\"} 0",
        "millrace_connections_refused_total{listener=\"http\"} 0",
        "millrace_accept_failures_total{listener=\"http\"} 0",
        "millrace_endpoint_healthy{cluster=\"llm\",endpoint=\"llm.internal:8000\",address=\"10.0.0.1:8000\"} 1",
        "millrace_endpoint_healthy{cluster=\"llm\",endpoint=\"gone.internal:8000\",address=\"\"} 0",
        "millrace_endpoint_resolved{cluster=\"llm\",endpoint=\"llm.internal:8000\"} 1",
        "millrace_endpoint_resolved{cluster=\"llm\",endpoint=\"gone.internal:8000\"} 0",
    ];
    assert_eq!(samples().filter(of_config).collect::<Vec<_>>(), expected);
}

#[test]
fn a_route_shows_the_kinds_and_times_that_it_has_had() {
    let snapshot = snapshot(2);
    let stats = &snapshot.routes[0].stats[1];
    stats.count_request(Some(502));
    stats.count_fault(FaultKind::ConnectRefused);
    stats.chunk_gap.record(1);
    let text = scrape(&snapshot);
    assert_eq!(values(&text, "millrace_requests_total"), [1]);
    assert_eq!(values(&text, "millrace_faults_total"), [1]);
    assert_eq!(
        values(&text, "millrace_requests_in_flight"),
        [0],
        "an idle route that was used shows its numbers"
    );
    assert_eq!(values(&text, "millrace_retries_total"), [0]);
    assert_eq!(values(&text, "millrace_chunk_gap_seconds_count"), [1]);
    assert!(values(&text, "millrace_first_byte_seconds_count").is_empty());
}

#[test]
fn the_node_shows_every_class_and_kind_from_the_start() {
    let snapshot = snapshot(2);
    snapshot.workers[0].count_request(Some(404));
    snapshot.workers[1].count_request(Some(404));
    snapshot.workers[1].count_fault(FaultKind::NoRoute);
    let text = scrape(&snapshot);
    assert_eq!(values(&text, "millrace_node_requests_total"), [0, 0, 0, 0, 2, 0]);
    let faults = values(&text, "millrace_node_faults_total");
    assert_eq!((faults.len(), faults.iter().sum::<u64>()), (FaultKind::ALL.len(), 1));
    assert!(text.contains("millrace_node_faults_total{blame=\"client\",kind=\"no_route\"} 1\n"), "{text}");
}

#[test]
fn an_unhealthy_endpoint_shows() {
    let snapshot = snapshot(1);
    snapshot.clusters[0].endpoints[0].resolved.health.set_healthy(false);
    let line = "millrace_endpoint_healthy{cluster=\"llm\",endpoint=\"llm.internal:8000\",address=\"10.0.0.1:8000\"} 0";
    assert!(scrape(&snapshot).lines().any(|found| found == line));
}

#[test]
fn an_endpoint_without_an_address_shows_as_one_that_takes_nothing() {
    let text = scrape(&snapshot(1));
    for line in [
        "millrace_endpoint_resolved{cluster=\"llm\",endpoint=\"llm.internal:8000\"} 1",
        "millrace_endpoint_resolved{cluster=\"llm\",endpoint=\"gone.internal:8000\"} 0",
        "millrace_endpoint_healthy{cluster=\"llm\",endpoint=\"gone.internal:8000\",address=\"\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn a_scrape_before_the_first_config_has_the_process_and_the_workers() {
    let workers = [Arc::new(WorkerStats::default())];
    let text = render(&Scrape {
        snapshot: None,
        workers: &workers,
        names: &[],
        node: NodeFigures::default(),
        process: Process::now(),
    });
    assert!(text.contains("millrace_worker_tick{worker=\"0\"} 0\n"), "{text}");
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
}

/// The rules of the format that a scraper holds us to.
#[test]
fn every_line_keeps_the_format() {
    let text = scrape(&snapshot(2));
    let mut families = HashMap::new();
    let mut series = HashSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(name, kind).is_none(), "{name} twice");
            current = name;
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(sample.starts_with(current), "{line} stands below {current}");
            assert!(series.insert(sample), "{sample} twice");
        }
    }
    assert!(text.ends_with('\n'));
    for (name, kind) in families {
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(name.starts_with("millrace_") || name.starts_with("process_"), "{name}");
    }
}
