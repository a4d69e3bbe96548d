//! Several edges, each with a data plane and an agent, under the real master.
//!
//! `MILLRACE_KILLS` says how often the master is killed (a few times unless given), `MILLRACE_SEED` repeats the moments.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bench::origin::{Origin, OriginOptions};
use serde_json::json;

use crate::edge::{Edge, config_in, exchange};
use crate::fleet_master::{FleetMaster, Operator};

/// Each round takes longer than the one before, since agents wait longer for a master that dies again soon. The master's
/// own tests kill it more often, without agents.
const KILLS: u64 = 4;
/// Of each stream that is under way meanwhile; about as many seconds as a master is away.
const TOKENS: usize = 30;
/// From one kill to the next: about what a few publishes take.
const ALIVE_MAX_MS: u64 = 150;

/// One text for edges that share a host: each finds its own folder and address in its environment.
fn text(route: &str, endpoint: &str) -> String {
    config_in("${MILLRACE_STORY_DIR}", "${MILLRACE_STORY_BIND}", route, endpoint)
}

fn edge(master: &FleetMaster, node: &str, variables: &[(&str, &str)]) -> Edge {
    let mut edge = Edge::start_as(node, variables);
    edge.write_agent_config(&master.agent_config());
    edge.start_agent();
    edge
}

#[test]
fn what_one_node_cannot_use_it_refuses_while_the_others_apply_it() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    let origin = origin.addr().to_string();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    let (anywhere, model) =
        (("MILLRACE_STORY_BIND", "127.0.0.1:0"), ("MILLRACE_STORY_MODEL", origin.as_str()));
    let master = FleetMaster::start();
    let good = edge(&master, "good", &[anywhere, model]);
    let lacking = edge(&master, "lacking", &[anywhere]);
    let blocked = edge(&master, "blocked", &[("MILLRACE_STORY_BIND", &taken_address), model]);
    let operator = master.operator();

    let before = text("before", "127.0.0.1:9").replace("${MILLRACE_STORY_BIND}", "127.0.0.1:0");
    operator.publish("before", &before);
    operator.await_convergence("before", 3, 0);

    let wanted = text("wanted", "${MILLRACE_STORY_MODEL}");
    operator.publish("wanted", &wanted);
    operator.await_convergence("wanted", 1, 2);
    assert_eq!((good.serves(), good.get("/health").unwrap().0), (wanted.clone(), 200));
    for (edge, node, why) in
        [(&lacking, "lacking", "MILLRACE_STORY_MODEL"), (&blocked, "blocked", &taken_address)]
    {
        let (state, reason) = operator.progress("wanted", node);
        assert!(state == "refused" && reason.contains(why), "{node}: {state}: {reason}");
        assert_eq!(edge.serves(), before, "{node} serves what it served");
        assert_eq!(edge.metric("millrace_config_refusals_total"), 1, "{node} was asked once");
    }

    // A new publish is a new try: the port is free by now.
    drop(taken);
    operator.post("/api/v1/configs/wanted/publish", &json!({}));
    operator.await_convergence("wanted", 2, 1);
    assert_eq!((blocked.serves(), lacking.serves()), (wanted, before.clone()));
    operator.post("/api/v1/configs/before/rollback", &json!({}));
    operator.await_convergence("before", 3, 0);
    assert!([&good, &lacking, &blocked].iter().all(|edge| edge.serves() == before));
}

#[test]
fn edges_converge_after_each_kill_of_a_master_that_publishes() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    let origin = origin.addr().to_string();
    let kills = setting("MILLRACE_KILLS").unwrap_or(KILLS);
    let seed = setting("MILLRACE_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("MILLRACE_SEED={seed}");
    let mut master = FleetMaster::start();
    let anywhere = [("MILLRACE_STORY_BIND", "127.0.0.1:0")];
    let edges = [edge(&master, "one", &anywhere), edge(&master, "two", &anywhere)];
    let operator = master.operator();
    operator.publish("first", &text("first", &origin));
    operator.await_convergence("first", 2, 0);

    let is_over = AtomicBool::new(false);
    let streamed = std::thread::scope(|scope| {
        let streaming = scope.spawn(|| stream_until_over(edges[0].address(), &is_over));
        let rounds = std::panic::AssertUnwindSafe(|| {
            let mut revision = 0;
            let mut random = seed;
            for round in 0..kills {
                let wait = Duration::from_millis(below(&mut random, ALIVE_MAX_MS));
                let acknowledged = kill_while_publishing(&mut master, round, &origin, wait);
                revision = assert_converges(&master, &edges, &origin, acknowledged.max(revision));
            }
        });
        let rounds = std::panic::catch_unwind(rounds);
        is_over.store(true, Ordering::Release);
        rounds.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        streaming.join().unwrap()
    });
    assert!(streamed > 0, "no stream was under way");
    println!("{kills} kills, {streamed} streams of {TOKENS} tokens, none broken");
}

/// The last revision that was acknowledged before the master was killed; 0: none.
fn kill_while_publishing(master: &mut FleetMaster, round: u64, origin: &str, wait: Duration) -> u64 {
    let (operator, is_killed) = (master.operator(), AtomicBool::new(false));
    let acknowledged = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| publish_until_killed(&operator, round, origin, &is_killed));
        // The moment of the kill is what is random here, and nothing waits for it.
        std::thread::sleep(wait);
        is_killed.store(true, Ordering::Release);
        master.kill();
        publishing.join().unwrap()
    });
    master.start_again();
    acknowledged
}

/// Whatever the master knows last is what all edges come to serve; gives its revision.
fn assert_converges(master: &FleetMaster, edges: &[Edge], origin: &str, acknowledged: u64) -> u64 {
    let operator = master.operator();
    let last = operator.get("/api/v1/configs/history?page_size=1")[0].clone();
    let (revision, version) = (last["revision"].as_u64().unwrap(), last["version"].as_str().unwrap());
    assert!(revision >= acknowledged, "revision {acknowledged} was acknowledged, and is lost: {last}");
    operator.await_convergence(version, edges.len() as u64, 0);
    for edge in edges {
        assert_eq!(edge.serves(), text(version, origin));
    }
    revision
}

/// One stream after another through an edge; how many there were. Each has all its tokens and a clean end.
fn stream_until_over(edge: SocketAddr, is_over: &AtomicBool) -> u64 {
    let body = r#"{"model": "mock", "stream": true, "messages": []}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: story\r\nConnection: close\r\nContent-Type: application/json\r\n\
         X-Mock-Tokens: {TOKENS}\r\nX-Mock-Tokens-Per-Second: 20\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut streams = 0;
    while !is_over.load(Ordering::Acquire) {
        let (status, answer) = exchange(TcpStream::connect(edge).unwrap(), &request).unwrap();
        let tokens = answer.matches("\"content\":").count();
        assert!(
            status == 200 && tokens >= TOKENS && answer.contains("[DONE]"),
            "{status}, {tokens}: {answer}"
        );
        streams += 1;
    }
    streams
}

/// The last revision that was acknowledged; 0: none.
fn publish_until_killed(operator: &Operator, round: u64, origin: &str, is_killed: &AtomicBool) -> u64 {
    let mut last = 0;
    for number in 0.. {
        let version = format!("r{round}-{number}");
        match operator.try_publish(&version, &text(&version, origin)) {
            Some(revision) => last = revision,
            None => break,
        }
    }
    assert!(is_killed.load(Ordering::Acquire), "the master went by itself");
    last
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// A draw of SplitMix64.
fn below(state: &mut u64, limit: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % limit
}
