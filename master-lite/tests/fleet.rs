//! Many agents at once: a publish reaches all of them soon, and one that does not read keeps nobody waiting.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::time::{Duration, Instant};

use serde_json::json;
use story::agent::{Agent, Answer, Session, runtime};
use story::{Master, eventually};

const CONFIG: &str = include_str!("../../proto/tests/config/accepted/minimal.toml");

/// Agents of the story.
const AGENTS: u32 = 100;

/// How soon all have acknowledged a publish.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn a_publish_is_acknowledged_by_a_hundred_agents_within_two_seconds() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let token = master.join_token(AGENTS);
    let agents: Vec<Agent> =
        (0..AGENTS).map(|number| Agent::new(&runtime, &format!("node-{number}"))).collect();
    for agent in &agents {
        agent.enrol(master.grpc(), &token).unwrap();
    }
    let connect = |agent: &Agent| agent.connect(master.grpc(), Answer::Apply).unwrap();
    let _sessions: Vec<Session> = agents.iter().map(connect).collect();
    let body = json!({ "version": "one", "config_data": CONFIG });
    assert_eq!(admin.post("/api/v1/configs", &body).status, 201);
    let began = Instant::now();
    admin.post("/api/v1/configs/one/publish", &json!({})).data();
    let expected = json!({ "pending": 0, "applied": AGENTS, "refused": 0 });
    eventually("all have applied it", || {
        (admin.get("/api/v1/configs/one").data()["convergence"] == expected).then_some(())
    });
    assert!(began.elapsed() < PUBLISHED_WITHIN, "it took {:?}", began.elapsed());
}

#[test]
fn an_agent_that_does_not_read_keeps_nobody_waiting() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let token = master.join_token(2);
    let (deaf, good) = (Agent::new(&runtime, "deaf"), Agent::new(&runtime, "good"));
    for agent in [&deaf, &good] {
        agent.enrol(master.grpc(), &token).unwrap();
    }
    let _deaf = deaf.connect(master.grpc(), Answer::Deaf).unwrap();
    let _good = good.connect(master.grpc(), Answer::Apply).unwrap();
    // Longer than what a connection takes without a reader, several times over.
    let text = format!("{CONFIG}{}", "# padding\n".repeat(300_000));
    for revision in 1..=8 {
        let version = format!("v{revision}");
        let body = json!({ "version": version, "config_data": text });
        assert_eq!(admin.post("/api/v1/configs", &body).status, 201);
        admin.post(&format!("/api/v1/configs/{version}/publish"), &json!({})).data();
        eventually("the other one has it", || (good.applied() == revision).then_some(()));
    }
    assert_eq!(deaf.applied(), 0);
}
