//! Masters, agents and data planes that are killed, a network that is cut, and files that are corrupt.

use std::time::Duration;

use bench::origin::{Origin, OriginOptions};

use crate::edge::Edge;
use crate::master::{Master, Relay};

#[test]
fn an_edge_outlives_its_master() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    let mut master = Master::start();
    let edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let text = edge.config_to("published", &origin.addr().to_string());
    let revision = master.publish(&text);
    master.await_ack(revision);
    master.kill();
    edge.eventually("the agent has noticed", |edge| {
        edge.agent.as_ref().unwrap().output().contains("no master")
    });
    assert_eq!((edge.get("/health").unwrap().0, edge.serves()), (200, text));
    master.restart();
    let register = master.await_registers(2);
    assert_eq!(register.config.unwrap().applied.unwrap().revision, revision);
    assert_eq!(edge.status()["generation"], 2, "nothing was applied again");
}

#[test]
fn a_cold_start_without_a_master_serves_the_last_good_config() {
    let mut master = Master::start();
    let mut edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let text = edge.config_to("published", "127.0.0.1:9");
    master.await_ack(master.publish(&text));
    master.kill();
    edge.kill_agent();
    edge.kill_dataplane();
    edge.start_dataplane();
    assert_ne!(edge.serves(), text, "the data plane begins with its own file");
    edge.start_agent();
    edge.eventually("the published config is served", |edge| edge.serves() == text);
}

#[test]
fn a_corrupt_config_falls_back_to_the_one_before_and_is_told() {
    let master = Master::start();
    let mut edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let before = edge.config_to("before", "127.0.0.1:9");
    master.await_ack(master.publish(&before));
    master.await_ack(master.publish(&edge.config_to("after", "127.0.0.1:9")));
    edge.kill_agent();
    edge.kill_dataplane();
    let current = edge.path("state/config/current.toml");
    let mut bytes = std::fs::read(&current).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&current, bytes).unwrap();
    edge.start_dataplane();
    edge.start_agent();
    let register = master.await_registers(2);
    assert_eq!(register.config.unwrap().applied.unwrap().revision, 1);
    master.await_some("the problem", |known| {
        let problems = &known.heartbeats.last()?.problems;
        problems.iter().any(|problem| problem.contains("current.toml: the file is corrupt")).then_some(())
    });
    // The master offers what is wanted, and all is well again.
    edge.eventually("the newest config is served", |edge| edge.serves().contains("after"));
}

#[test]
fn a_data_plane_that_was_started_anew_gets_the_published_config_back() {
    let master = Master::start();
    let mut edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let text = edge.config_to("published", "127.0.0.1:9");
    master.await_ack(master.publish(&text));
    edge.kill_dataplane();
    edge.start_dataplane();
    edge.eventually("the published config is served again", |edge| edge.serves() == text);
}

#[test]
fn an_agent_that_is_killed_while_it_applies_leaves_a_whole_config() {
    let master = Master::start();
    let mut edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let mut texts = vec![edge.config_to("r0", "127.0.0.1:9")];
    master.await_ack(master.publish(&texts[0]));
    // Another moment in each round, over a bit more than an apply takes.
    for round in 1..=20_u64 {
        let text = edge.config_to(&format!("r{round}"), "127.0.0.1:9");
        texts.push(text.clone());
        let registers = master.knowledge().registers.len();
        master.publish(&text);
        std::thread::sleep(Duration::from_millis(round * 37 % 45));
        edge.kill_agent();
        assert!(texts.contains(&edge.serves()), "what is served was published, as a whole");
        edge.start_agent();
        let register = master.await_registers(registers + 1);
        let applied = register.config.unwrap().applied.unwrap().revision;
        assert!(applied >= round, "the last good config is the last or the one before: {applied} in {round}");
        edge.eventually("the last publish is served", |edge| edge.serves() == text);
        // Until the ack, so that each round begins with the config of the last one kept.
        master.await_some("the state", |known| {
            let applied = known.heartbeats.last()?.config.as_ref()?.applied.clone()?.revision;
            (applied == round + 1).then_some(())
        });
    }
}

#[test]
fn a_cut_network_is_noticed_and_survived() {
    let mut master = Master::start();
    let relay = Relay::to(master.addr);
    let edge = Edge::with_agent(&format!("http://{}", relay.addr));
    // The first heartbeat: by then the agent has the master's welcome, and it is the silence after it that is noticed.
    master.await_some("a heartbeat", |known| (!known.heartbeats.is_empty()).then_some(()));
    relay.cut(true);
    edge.eventually("the silence is noticed", |edge| {
        edge.agent.as_ref().unwrap().output().contains("the master does not answer heartbeats")
    });
    assert_eq!(edge.status()["ready"], true);
    let text = edge.config_to("published", "127.0.0.1:9");
    let revision = master.publish(&text);
    relay.cut(false);
    master.await_registers(2);
    master.await_some("the new config in a report", |known| {
        let applied = known.heartbeats.last()?.config.as_ref()?.applied.clone()?.revision;
        (applied == revision).then_some(())
    });
    assert_eq!(edge.serves(), text);
    master.kill();
}
