//! The power goes while the master publishes: what it has acknowledged is there afterwards, revisions only grow, and the
//! nodes come to serve what was published last.
//!
//! `MILLRACE_KILLS` says how often (a few dozen unless given), `MILLRACE_SEED` replays the moments of a failure.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use story::agent::{Agent, Answer, runtime};
use story::client::Client;
use story::{Master, eventually};

const CONFIG: &str = include_str!("../../proto/tests/config/accepted/minimal.toml");

/// Enough that every stage of a write is met, few enough for every run of the tests.
const KILLS: u64 = 30;
/// Nodes that come back after each kill.
const NODES: u32 = 3;
/// The longest time from one kill to the next; about what five publishes take.
const ALIVE_MAX_US: u64 = 60_000;

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// What the master has acknowledged.
#[derive(Default)]
struct Acknowledged {
    versions: Vec<String>,
    revisions: Vec<(u64, String)>,
}

/// Makes versions and publishes them until the master is gone.
fn publish_until_killed(client: &Client, round: u64, is_killed: &AtomicBool, known: &mut Acknowledged) {
    for number in 0.. {
        let version = format!("r{round}-{number}");
        let body = json!({ "version": version, "config_data": CONFIG }).to_string();
        let Some(made) = client.try_send("POST", "/api/v1/configs", Some(body)).ok() else { break };
        assert_eq!(made.status, 201, "{}", made.json);
        known.versions.push(version.clone());
        let path = format!("/api/v1/configs/{version}/publish");
        let Some(published) = client.try_send("POST", &path, Some("{}".to_owned())).ok() else { break };
        let revision = published.data()["publish"]["revision"].as_u64().unwrap();
        known.revisions.push((revision, version));
    }
    assert!(is_killed.load(Ordering::Acquire), "the master went by itself");
}

/// All publishes that the master knows, the oldest first.
fn history(client: &Client) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for page in 1.. {
        let answer = client.get(&format!("/api/v1/configs/history?page_size=200&page={page}"));
        let publishes = answer.data().as_array().unwrap();
        let pair = |publish: &serde_json::Value| {
            (publish["revision"].as_u64().unwrap(), publish["version"].as_str().unwrap().to_owned())
        };
        all.extend(publishes.iter().map(pair));
        if publishes.len() < 200 {
            break;
        }
    }
    all.reverse();
    all
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let kills = setting("MILLRACE_KILLS").unwrap_or(KILLS);
    let seed = setting("MILLRACE_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("MILLRACE_SEED={seed}");
    let mut random = Random(seed);
    let mut master = Master::start();
    // The key that signs tokens is on the disk, too: one login lasts over all restarts.
    let mut client = master.admin();
    let mut known = Acknowledged::default();
    let (runtime, token) = (runtime(), master.join_token(NODES));
    let agents: Vec<Agent> = (0..NODES).map(|node| Agent::new(&runtime, &format!("node-{node}"))).collect();
    agents.iter().for_each(|agent| agent.enrol(master.grpc(), &token).unwrap());
    let connect = |agent: &Agent, master: &Master| agent.connect(master.grpc(), Answer::Apply).unwrap();
    let mut sessions: Vec<_> = agents.iter().map(|agent| connect(agent, &master)).collect();
    for round in 0..kills {
        let wait = Duration::from_micros(random.below(ALIVE_MAX_US));
        let is_killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let publishing = scope.spawn(|| publish_until_killed(&client, round, &is_killed, &mut known));
            // The moment of the kill is what is random here, and nothing waits for it.
            std::thread::sleep(wait);
            is_killed.store(true, Ordering::Release);
            master.kill();
            publishing.join().unwrap();
        });
        master.start_again();
        client = client.at(master.rest());
        let history = history(&client);
        let grows = history.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(grows, "seed {seed}, round {round}: {history:?}");
        for publish in &known.revisions {
            assert!(history.contains(publish), "seed {seed}, round {round}: {publish:?} is lost");
        }
        // What was published last is what all come to serve, also if nobody was told that it is.
        sessions = agents.iter().map(|agent| connect(agent, &master)).collect();
        let wanted = history.last().map_or(0, |publish| publish.0);
        for agent in &agents {
            eventually(&format!("seed {seed}, round {round}: {} serves {wanted}", agent.node), || {
                (agent.applied() == wanted).then_some(())
            });
        }
        let last = known.versions.last();
        let is_there =
            last.is_none_or(|version| client.get(&format!("/api/v1/configs/{version}")).status == 200);
        assert!(is_there, "seed {seed}, round {round}: {last:?} is lost");
    }
    for version in &known.versions {
        assert_eq!(
            client.get(&format!("/api/v1/configs/{version}")).status,
            200,
            "seed {seed}: {version} is lost"
        );
    }
    let noted = client.get("/api/v1/audit?action=configs.create&outcome=done&page_size=1");
    assert!(
        noted.json["meta"]["total"].as_u64().unwrap() >= known.versions.len() as u64,
        "the audit log has gaps"
    );
    assert!(!known.revisions.is_empty(), "nothing was ever acknowledged");
    drop(sessions);
}
