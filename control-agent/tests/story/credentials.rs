//! How the agent's credential is replaced, and what it has on its disk at each moment of that.

use proto::fleet::{NodeCredential, Verifier, capability};

use crate::edge::Edge;
use crate::master::Master;

fn on_disk(edge: &Edge, name: &str) -> Option<Verifier> {
    let text = std::fs::read_to_string(edge.path("state").join(name)).ok()?;
    Some(text.trim_end().parse::<NodeCredential>().unwrap().verifier())
}

#[test]
fn a_credential_is_replaced_when_the_master_wants_another() {
    let mut master = Master::start();
    let mut edge = Edge::with_agent(&master.url());
    let register = master.await_registers(1);
    assert!(register.capabilities.contains(&capability::CREDENTIAL_CHANGE.to_owned()));
    let first = on_disk(&edge, "credential");
    master.knowledge().want_credential();
    let kept = master.await_some("another is kept", |known| known.kept_credentials.first().copied());
    assert_eq!((on_disk(&edge, "credential"), on_disk(&edge, "credential.previous")), (Some(kept), first));
    assert!(Some(kept) != first && on_disk(&edge, "credential.next").is_none());
    assert_eq!(master.knowledge().registers.len(), 1, "the session goes on");

    // The old one is void: what the agent shows from now on is the new one, after a crash, too.
    master.knowledge().enrolled.clear();
    edge.kill_agent();
    edge.start_agent();
    master.await_registers(2);

    // A master that was restored from a backup knows the one before alone, and the join token is used up.
    let mut known = master.knowledge();
    known.next_credentials.clear();
    known.enrolled.insert(register.node_id, first.unwrap());
    drop(known);
    master.kill();
    master.restart();
    master.await_registers(3);
    assert_eq!(master.knowledge().enrolments, 1);
}

#[test]
fn an_agent_that_dies_before_its_new_credential_is_taken_goes_on_with_the_old_one() {
    let master = Master::start();
    let mut edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let first = on_disk(&edge, "credential");
    master.knowledge().takes_no_credential = true;
    master.knowledge().want_credential();
    let made = master.await_some("another is made", |known| known.next_credentials.first().copied());
    assert_eq!((on_disk(&edge, "credential"), on_disk(&edge, "credential.next")), (first, Some(made)));
    edge.kill_agent();
    // Nobody but a copy would show it.
    master.knowledge().next_credentials.clear();
    edge.start_agent();
    master.await_registers(2);
    master.knowledge().takes_no_credential = false;
    master.knowledge().want_credential();
    let kept = master.await_some("another is kept", |known| known.kept_credentials.first().copied());
    assert!(on_disk(&edge, "credential") == Some(kept) && kept != made);
}

#[test]
fn a_node_that_is_not_known_any_more_enrols_with_a_credential_that_nobody_has_seen() {
    let mut master = Master::start();
    let mut edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let first = on_disk(&edge, "credential").unwrap();
    // As if the node had been deleted and let in again, with a token that has uses left.
    let mut known = master.knowledge();
    known.enrolled.clear();
    known.used_tokens.clear();
    drop(known);
    master.kill();
    master.restart();
    master.await_registers(2);
    let second = on_disk(&edge, "credential").unwrap();
    assert!(first != second && master.knowledge().enrolled.values().all(|verifier| *verifier == second));
    assert!(on_disk(&edge, "credential.new").is_none());
    edge.kill_agent();
    edge.start_agent();
    master.await_registers(3);
    assert_eq!(master.knowledge().enrolments, 2);
}

#[test]
fn a_credential_that_was_used_before_is_not_shown_twice() {
    let master = Master::start();
    // The answer to the first enrolment was lost, and the node deleted and let in again meanwhile.
    master.knowledge().refuses_once = true;
    let edge = Edge::with_agent(&master.url());
    master.await_registers(1);
    let known = master.knowledge();
    assert_eq!(known.enrolments, 2);
    assert_ne!(known.refused_credentials, known.enrolled.values().copied().collect::<Vec<_>>());
    drop(known);
    assert!(on_disk(&edge, "credential.new").is_none());
}
