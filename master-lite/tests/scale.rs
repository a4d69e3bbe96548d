//! What agents cost a master, one figure after the other, as `SCALING.md` has them. Without more it runs with a few agents
//! and holds only that all of it works; `MILLRACE_AGENTS=500` with a release build gives the figures.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::time::{Duration, Instant};

use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{Heartbeat, HostMetrics};
use serde_json::json;
use story::agent::{Agent, Session};
use story::authority::Authority;
use story::client::Client;
use story::fleet::{CONFIG, assert_applied_by_all, connect_at_once, cpu_time, enrolled, memory_kib, metrics};
use story::{Master, eventually};

/// Agents unless `MILLRACE_AGENTS` says otherwise.
const AGENTS: usize = 20;
/// Reports of each agent.
const ROUNDS: u64 = 5;
/// Between them. Agents report every ten seconds: what a report costs does not depend on it.
const EVERY: Duration = Duration::from_secs(2);

#[test]
fn every_figure_can_be_taken() {
    let agents_count =
        std::env::var("MILLRACE_AGENTS").map_or(AGENTS, |number| number.parse::<usize>().unwrap());
    // Over TLS, as agents on other hosts are.
    let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
    let tls = authority.listener(files.path(), ", client_certificates = \"optional\"");
    let master = Master::start_listening("", &tls);
    let admin = master.admin();
    println!("resident before: {} MiB", memory_kib(&master, "VmRSS:") / 1024);
    let meter = Meter { master: &master, agents: agents_count };

    let agents = meter.take("enrol, one by one", || {
        enrolled(&master, agents_count, |agent| agent.over_tls(&authority.pem, None))
    });
    let sessions = meter.take("connect, all at once", || connect_at_once(&agents, &master));
    println!("resident with sessions: {} MiB", memory_kib(&master, "VmRSS:") / 1024);
    let mut said = Vec::new();
    for round in 1..=ROUNDS {
        let began = Instant::now();
        let what = format!("round {round}: a heartbeat and a report of each");
        said.push(meter.take(&what, || report(&sessions, round)));
        // The pace of the agents, and time for what the master does by itself meanwhile.
        std::thread::sleep(EVERY.saturating_sub(began.elapsed()));
    }
    println!("{} bytes of a report", said[0]);
    let idle = cpu_time(&master);
    std::thread::sleep(2 * EVERY);
    println!("nobody says anything for {:?}: {:?} of processor", 2 * EVERY, cpu_time(&master) - idle);
    for version in ["one", "two"] {
        let revision = meter.take("publish, until all serve it", || publish(&admin, version, &agents));
        assert!(agents.iter().all(|agent| agent.applied() == revision));
        assert_applied_by_all(&admin, version, agents_count);
    }
    look(&meter, &admin);
    let (resident, peak) = (memory_kib(&master, "VmRSS:"), memory_kib(&master, "VmHWM:"));
    println!("resident {} MiB, at most {} MiB", resident / 1024, peak / 1024);
    assert!(sessions.iter().all(|session| session.ended().is_none()), "a session was lost");
}

/// Prints what something takes.
struct Meter<'a> {
    master: &'a Master,
    agents: usize,
}

impl Meter<'_> {
    fn take<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        let (began, before) = (Instant::now(), cpu_time(self.master));
        let done = work();
        let (took, cpu) = (began.elapsed(), cpu_time(self.master) - before);
        println!(
            "{what}: {took:?}, {cpu:?} of processor, {:?} each",
            cpu / u32::try_from(self.agents).unwrap()
        );
        done
    }
}

/// Each agent reports, and hears that it was heard; how long a report is.
fn report(sessions: &[Session], round: u64) -> usize {
    let metrics = metrics(round);
    for session in sessions {
        session.report(&metrics);
        let host = HostMetrics {
            cpu_busy_ratio: 0.25,
            memory_bytes: 8 << 30,
            memory_available_bytes: 5 << 30,
            network_received_bytes_total: round * 1_000_000,
            network_sent_bytes_total: round * 10_000_000,
            ..HostMetrics::default()
        };
        session.say(Said::Heartbeat(Heartbeat { sequence: round, host: Some(host), ..Heartbeat::default() }));
    }
    for session in sessions {
        let is_acknowledged = |told: &Told| matches!(told, Told::HeartbeatAck(ack) if ack.sequence == round);
        eventually("the heartbeat is acknowledged", || {
            session.told().iter().any(is_acknowledged).then_some(())
        });
    }
    prost::Message::encoded_len(&metrics)
}

/// Makes a version and publishes it. The agents are asked whether they have it, and not the master, which would cost it.
fn publish(admin: &Client, version: &str, agents: &[Agent]) -> u64 {
    let body = json!({ "version": version, "config_data": format!("{CONFIG}# {version}\n") });
    assert_eq!(admin.post("/api/v1/configs", &body).status, 201);
    let published = admin.post(&format!("/api/v1/configs/{version}/publish"), &json!({}));
    let revision = published.data()["publish"]["revision"].as_u64().unwrap();
    eventually("all serve it", || agents.iter().all(|agent| agent.applied() == revision).then_some(()));
    revision
}

/// What people and programs look at.
fn look(meter: &Meter<'_>, admin: &Client) {
    for path in [
        "/api/v1/nodes?page_size=200",
        "/api/v1/nodes/node-7/status",
        "/api/v1/metrics/aggregate",
        "/api/v1/metrics/aggregate?step=1m",
        "/api/v1/alerts",
        "/metrics",
    ] {
        let answer = meter.take(&format!("GET {path}"), || admin.get(path));
        assert_eq!(answer.status, 200, "{path}: {}", answer.json);
        println!("    {} KiB", answer.bytes.len() >> 10);
    }
}
