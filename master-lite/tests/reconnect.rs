//! A whole fleet comes back at once after the master was killed, without the jitter that real agents keep: the worst case
//! of a restart. What it costs the master is printed: processor time, and memory with the reports of all and a history
//! that has just begun.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::time::{Duration, Instant};

use proto::v1::MetricsPiece;
use proto::v1::master_message::Kind as Told;
use story::agent::Session;
use story::client::Client;
use story::fleet::{
    assert_applied_by_all, connect_at_once, cpu_time, enrolled, memory_kib, metrics, publish,
};
use story::{Master, eventually};

/// Agents of the story.
const AGENTS: usize = 500;
/// Twice as often as agents report unless told otherwise: what holds here holds for the default with a margin.
const HEARTBEAT: Duration = Duration::from_secs(5);
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
    let agents = enrolled(&master, AGENTS, |agent| agent);
    let sessions = connect_at_once(&agents, &master);
    publish(&admin, "before", AGENTS);

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
    assert_applied_by_all(&admin, "before", AGENTS);
    publish(&admin, "after", AGENTS);

    let (resident, peak) = (memory_kib(&master, "VmRSS:"), memory_kib(&master, "VmHWM:"));
    let share = beating_cpu.as_secs_f64() / (HEARTBEAT.as_secs_f64() * ROUNDS as f64);
    println!(
        "{AGENTS} agents: all back after {back:?}, which took the master {back_cpu:?} of processor time, its start included; \
         heartbeats and full reports every {HEARTBEAT:?}: {:.1} % of a core, the slowest acknowledged after {slowest:?}; \
         resident {} MiB, at most {} MiB",
        share * 100.0,
        resident / 1024,
        peak / 1024,
    );
    assert!(resident <= RESIDENT_MAX_KIB, "{resident} KiB are resident");
}

/// All agents report in bursts, one each interval, all that a data plane of ten routes shows. Each heartbeat is acknowledged before the next is due, and no node is
/// ever seen as late. Gives the slowest acknowledgement.
fn beat_on_time(sessions: &[Session], admin: &Client) -> Duration {
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 1..=ROUNDS {
        let sent = Instant::now();
        let report = MetricsPiece::from(&metrics(round));
        for session in sessions {
            session.report_encoded(&report);
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
