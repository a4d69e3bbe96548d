//! Configs on their way from the master to a client's answer, or back with a reason.

use bench::origin::{Origin, OriginOptions};
use proto::v1::{CommandKind, CommandOutcome, ConfigRefusal};

use crate::edge::Edge;
use crate::master::Master;

#[test]
fn a_published_config_serves_and_is_acknowledged() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    let master = Master::start();
    let edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let text = edge.config_to("published", &origin.addr().to_string());
    let ack = master.await_ack(master.publish(&text));
    assert_eq!((ack.generation, edge.serves()), (2, text));
    let status = edge.status();
    assert_eq!((&status["generation"], &status["source"]["kind"]), (&2.into(), &"agent".into()));
    assert_eq!(edge.get("/health").unwrap().0, 200, "a client's request reaches the origin");
    let state = master.await_some("the state in a heartbeat", |known| {
        let state = known.heartbeats.last()?.config.clone()?;
        (state.applied == ack.config).then_some(state)
    });
    assert_eq!((state.generation, state.drifted, state.pending), (2, false, None));
}

#[test]
fn a_refused_config_changes_nothing_and_says_why() {
    let master = Master::start();
    let edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let good = edge.config_to("good", "127.0.0.1:9");
    master.await_ack(master.publish(&good));

    let misspelt = good.replace("[[routes]]", "[[routs]]");
    let nack = master.await_nack(master.publish(&misspelt));
    assert_eq!(nack.reason(), ConfigRefusal::Invalid);
    let problem = &nack.problems[0];
    assert_eq!((problem.line, problem.message.as_str()), (9, "unknown key \"routs\""));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unusable = good.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    let nack = master.await_nack(master.publish(&unusable));
    assert_eq!(nack.reason(), ConfigRefusal::Unusable);
    assert_eq!(nack.problems[0].path, "listeners[0].bind");

    let nack = master.await_nack(master.publish_as(&good, vec![7; 32]));
    assert_eq!(nack.reason(), ConfigRefusal::Checksum);

    assert_eq!((edge.serves(), edge.status()["generation"].as_u64()), (good.clone(), Some(2)));
    master.await_ack(master.publish(&good));
}

#[test]
fn a_refused_revision_is_answered_from_memory() {
    let master = Master::start();
    let edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unusable =
        edge.config_to("x", "127.0.0.1:9").replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    master.await_nack(master.publish(&unusable));
    for count in 2..5 {
        master.offer_again();
        master.await_some("another nack", |known| (known.nacks.len() == count).then_some(()));
    }
    assert_eq!(edge.metric("millrace_config_refusals_total"), 1, "the data plane was asked once");
    // A new publish of the same text is a new try: the address may be free by now.
    drop(taken);
    master.await_ack(master.publish(&unusable));
}

#[test]
fn what_names_the_environment_is_left_to_the_data_plane() {
    let master = Master::start();
    let edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let text = edge.config_to("x", "${MILLRACE_STORY_UNSET}");
    let nack = master.await_nack(master.publish(&text));
    assert_eq!(nack.reason(), ConfigRefusal::Unusable, "the data plane has the last word");
    assert!(nack.message.contains("MILLRACE_STORY_UNSET"), "{}", nack.message);
}

#[test]
fn a_draining_data_plane_gets_its_config_later() {
    let master = Master::start();
    let mut edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    master.command("c1", CommandKind::Drain);
    let text = edge.config_to("later", "127.0.0.1:9");
    let revision = master.publish(&text);
    let deferred = master.await_some("that it waits", |known| known.deferred.last().cloned());
    assert_eq!(
        (deferred.config.unwrap().revision, deferred.reason.as_str()),
        (revision, "the node is draining")
    );
    // As systemd would: the next process does not drain.
    edge.kill_dataplane();
    edge.start_dataplane();
    master.await_ack(revision);
    assert_eq!(edge.serves(), text);
}

#[test]
fn a_reload_gives_the_published_config_again() {
    let master = Master::start();
    let edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let text = edge.config_to("published", "127.0.0.1:9");
    master.await_ack(master.publish(&text));
    let (result, _) = master.command("c1", CommandKind::Reload);
    assert_eq!(
        (result.outcome(), result.message.as_str()),
        (CommandOutcome::Succeeded, "generation 3 serves")
    );
    assert_eq!((edge.serves(), edge.status()["generation"].as_u64()), (text, Some(3)));
}
