//! A whole fleet comes back at once after the master was killed, without the jitter that real agents keep: the worst case
//! of a restart. What it costs the master is printed: processor time, and memory with a history that has just begun.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use proto::v1::master_message::Kind as Told;
use serde_json::json;
use story::agent::{Agent, Answer, Session, runtime};
use story::client::Client;
use story::{Master, eventually};
use tokio::runtime::Runtime;

const CONFIG: &str = include_str!("../../proto/tests/config/accepted/minimal.toml");

/// Agents of the story.
const AGENTS: usize = 500;
/// Five times as often as agents report unless told otherwise: what holds here holds for the default with a margin.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Heartbeats of each agent after the restart; enough that one that was missed would have shown.
const ROUNDS: u64 = 3;
/// From the first dial to the last welcome: within the default heartbeat nobody counts as late.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// Resident memory of the master with that many agents.
const RESIDENT_MAX_KIB: u64 = 150 * 1024;

#[test]
fn five_hundred_agents_come_back_at_once_after_a_kill_and_nothing_is_lost() {
    let mut master = Master::start_with(&format!("[agents]\nheartbeat = \"{}s\"", HEARTBEAT.as_secs()));
    let mut admin = master.admin();
    let agents = enrolled(&runtime(), &master);
    let sessions = connect_at_once(&agents, &master);
    publish(&admin, "before");

    master.kill();
    for session in &sessions {
        eventually("each agent has noticed", || session.ended());
    }
    master.start_again();
    admin = admin.at(master.rest());

    let began = Instant::now();
    let sessions = connect_at_once(&agents, &master);
    let back = began.elapsed();
    let back_cpu = cpu_time(&master);
    assert!(back < BACK_WITHIN, "it took {back:?}");
    let slowest = beat_on_time(&sessions, &admin);
    let beating_cpu = cpu_time(&master) - back_cpu;

    assert!(sessions.iter().all(|session| session.ended().is_none()), "a session was lost");
    let offers: usize = sessions.iter().map(|session| session.offered().len()).sum();
    assert_eq!(offers, 0, "who serves the published config is offered it again");
    assert_applied_by_all(&admin, "before");
    publish(&admin, "after");

    let (resident, peak) = (memory_kib(&master, "VmRSS:"), memory_kib(&master, "VmHWM:"));
    let share = beating_cpu.as_secs_f64() / (HEARTBEAT.as_secs_f64() * ROUNDS as f64);
    println!(
        "{AGENTS} agents: all back after {back:?}, which took the master {back_cpu:?} of processor time, its start included; \
         heartbeats every {HEARTBEAT:?}: {:.1} % of a core, the slowest acknowledged after {slowest:?}; \
         resident {} MiB, at most {} MiB",
        share * 100.0,
        resident / 1024,
        peak / 1024,
    );
    assert!(resident <= RESIDENT_MAX_KIB, "{resident} KiB are resident");
}

fn enrolled(runtime: &Arc<Runtime>, master: &Master) -> Vec<Agent> {
    let token = master.join_token(u32::try_from(AGENTS).unwrap());
    let agents: Vec<Agent> =
        (0..AGENTS).map(|number| Agent::new(runtime, &format!("node-{number}"))).collect();
    for agent in &agents {
        agent.enrol(master.grpc(), &token).unwrap();
    }
    agents
}

/// All dial in the same moment, each on a thread of its own.
fn connect_at_once(agents: &[Agent], master: &Master) -> Vec<Session> {
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
fn publish(admin: &Client, version: &str) {
    let body = json!({ "version": version, "config_data": format!("{CONFIG}# {version}\n") });
    assert_eq!(admin.post("/api/v1/configs", &body).status, 201);
    admin.post(&format!("/api/v1/configs/{version}/publish"), &json!({})).data();
    assert_applied_by_all(admin, version);
}

fn assert_applied_by_all(admin: &Client, version: &str) {
    let expected = json!({ "pending": 0, "applied": AGENTS, "refused": 0 });
    eventually("all serve it", || {
        let answer = admin.get(&format!("/api/v1/configs/{version}"));
        (answer.data()["convergence"] == expected).then_some(())
    });
}

/// All agents report in bursts, one each interval. Each heartbeat is acknowledged before the next is due, and no node is
/// ever seen as late. Gives the slowest acknowledgement.
fn beat_on_time(sessions: &[Session], admin: &Client) -> Duration {
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 1..=ROUNDS {
        let sent = Instant::now();
        for session in sessions {
            session.beat(round);
        }
        for session in sessions {
            eventually("the heartbeat is acknowledged", || is_acknowledged(session, round).then_some(()));
        }
        slowest = slowest.max(sent.elapsed());
        let due = HEARTBEAT * u32::try_from(round).unwrap();
        assert!(began.elapsed() < due, "round {round} was acknowledged after {slowest:?}");
        // The pace of the agents: each waits for its next heartbeat to be due.
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        let online = admin.get("/api/v1/nodes?state=online&page_size=1");
        assert_eq!(online.json["meta"]["total"], AGENTS, "round {round}: {}", online.json);
    }
    slowest
}

fn is_acknowledged(session: &Session, sequence: u64) -> bool {
    session.told().iter().any(|told| matches!(told, Told::HeartbeatAck(ack) if ack.sequence == sequence))
}

/// What the process has used of its processors since it started.
fn cpu_time(master: &Master) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", master.pid())).unwrap();
    // The name in parentheses may have spaces; the 12th and 13th fields behind it are clock ticks, a hundred a second.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// A line of the process's status.
fn memory_kib(master: &Master, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", master.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
