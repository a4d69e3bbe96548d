//! Many agents of one master, and what they cost it.

use std::sync::Barrier;
use std::time::Duration;

use proto::v1::series::Value as Measured;
use proto::v1::{Histogram, Label, MetricFamily, MetricKind, Metrics, Series};
use serde_json::json;

use super::agent::{Agent, Answer, Session, runtime};
use super::client::Client;
use super::{Master, eventually};

pub(crate) const CONFIG: &str = include_str!("../../../proto/tests/config/accepted/minimal.toml");

/// Routes of a data plane: four distributions of 24 bounds and thirty counters each, which is what one shows.
const ROUTES: usize = 10;

/// So many agents, each as `dress` makes it, enrolled.
pub(crate) fn enrolled(master: &Master, agents: usize, dress: impl Fn(Agent) -> Agent) -> Vec<Agent> {
    let (runtime, token) = (runtime(), master.join_token(u32::try_from(agents).unwrap()));
    let agents = (0..agents).map(|number| dress(Agent::new(&runtime, &format!("node-{number}"))));
    let agents: Vec<Agent> = agents.collect();
    for agent in &agents {
        agent.enrol(master.grpc(), &token).unwrap();
    }
    agents
}

/// All dial in the same moment, each on a thread of its own.
pub(crate) fn connect_at_once(agents: &[Agent], master: &Master) -> Vec<Session> {
    let (start, grpc) = (Barrier::new(agents.len()), master.grpc());
    std::thread::scope(|scope| {
        let connect = |agent| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                Agent::connect(agent, grpc, Answer::Apply).unwrap()
            })
        };
        let connecting: Vec<_> = agents.iter().map(connect).collect();
        connecting.into_iter().map(|session| session.join().unwrap()).collect()
    })
}

/// Makes a version and waits until all nodes serve it.
pub(crate) fn publish(admin: &Client, version: &str, agents: usize) {
    let body = json!({ "version": version, "config_data": format!("{CONFIG}# {version}\n") });
    assert_eq!(admin.post("/api/v1/configs", &body).status, 201);
    admin.post(&format!("/api/v1/configs/{version}/publish"), &json!({})).data();
    assert_applied_by_all(admin, version, agents);
}

/// Waits until that many nodes serve a version, and nobody else is to.
pub(crate) fn assert_applied_by_all(admin: &Client, version: &str, agents: usize) {
    let expected = json!({ "pending": 0, "applied": agents, "refused": 0 });
    eventually("all serve it", || {
        let answer = admin.get(&format!("/api/v1/configs/{version}"));
        (answer.data()["convergence"] == expected).then_some(())
    });
}

/// What the process has used of its processors since it started.
pub(crate) fn cpu_time(master: &Master) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", master.pid())).unwrap();
    // The name in parentheses may have spaces; the 12th and 13th fields behind it are clock ticks, a hundred a second.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// A line of the process's status.
pub(crate) fn memory_kib(master: &Master, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", master.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// As a data plane with [`ROUTES`] routes tells it, a little more each round.
pub(crate) fn metrics(round: u64) -> Metrics {
    let label = |name: &str, value: String| Label { name: name.to_owned(), value };
    let series = |value: &Measured| -> Vec<Series> {
        let of_route = |route| Series {
            labels: vec![label("route", format!("a-route-{route}")), label("cluster", "llm".to_owned())],
            value: Some(value.clone()),
        };
        (0..ROUTES).map(of_route).collect()
    };
    let family = |name: String, kind: MetricKind, value: &Measured| MetricFamily {
        name,
        help: "What it is, in a sentence of the usual length.".to_owned(),
        kind: kind.into(),
        series: series(value),
    };
    let distribution = Measured::Histogram(Histogram {
        bounds: (1..=24).map(|bound| f64::from(bound) / 100.0).collect(),
        counts: (0..=24).map(|bucket| round * (1_000_000 >> bucket)).collect(),
        sum: round as f64 * 1e4,
    });
    let times = ["first_byte", "chunk_gap", "upstream", "proxy"]
        .map(|name| family(format!("millrace_{name}_seconds"), MetricKind::Histogram, &distribution));
    let count = Measured::Number(round as f64 * 1e6);
    let counters =
        (0..29).map(|number| family(format!("millrace_counter_{number}_total"), MetricKind::Counter, &count));
    let requests = family("millrace_requests_total".to_owned(), MetricKind::Counter, &count);
    Metrics {
        dataplane_started_at_unix_ms: 1,
        families: times.into_iter().chain([requests]).chain(counters).collect(),
        ..Metrics::default()
    }
}
