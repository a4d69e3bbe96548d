//! Credentials of nodes: how they are replaced, how a copy is noticed, and how a node comes back that was deleted. And what
//! an agent may say of its node's place.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{CredentialChange, CredentialStep, GoodbyeReason, Role};
use serde_json::{Value, json};
use story::agent::{Agent, Answer, Session, runtime};
use story::client::Client;
use story::{Master, eventually};
use tonic::{Code, Status};

const CONFIG: &str = include_str!("../../proto/tests/config/accepted/minimal.toml");

/// Refused for good, with this at the beginning of the reason and that in it.
#[track_caller]
fn assert_refused<T>(result: Result<T, Status>, code: Code, field: &str, reason: &str) {
    let Err(status) = result else { panic!("it was let in, and not refused: {reason}") };
    assert_eq!(status.code(), code, "{status}");
    let message = status.message();
    assert!(message.starts_with(&format!("{field}: ")) && message.contains(reason), "{message}");
}

fn audit(admin: &Client, action: &str, outcome: &str) -> Vec<(String, String)> {
    let noted = admin.get(&format!("/api/v1/audit?action={action}&outcome={outcome}"));
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let entries = noted.data().as_array().unwrap();
    entries.iter().map(|entry| (text(entry, "target"), text(entry, "detail"))).collect()
}

fn await_told(session: &Session, what: &str, is_it: impl Fn(&Told) -> bool) {
    eventually(what, || session.told().iter().any(&is_it).then_some(()));
}

fn change(session: &Session, agent: &Agent, step: CredentialStep) {
    session
        .say(Said::CredentialChange(CredentialChange { sha256: agent.verifier().into(), step: step.into() }));
}

/// Waits until the master has done all that came before.
fn await_beat(session: &Session, sequence: u64) {
    session.beat(sequence);
    await_told(
        session,
        "the heartbeat is answered",
        |told| matches!(told, Told::HeartbeatAck(ack) if ack.sequence == sequence),
    );
}

#[test]
fn a_credential_is_replaced_and_at_every_moment_one_is_good() {
    let mut master = Master::start_with("[agents]\nreplace_credentials_after = \"1s\"\n");
    let (token, runtime) = (master.join_token(1), runtime());
    let old = Agent::new(&runtime, "a").with_changes();
    let [lost, new] = [7, 8].map(|byte| Agent::new(&runtime, "a").with_changes().with_secret(byte));
    old.enrol(master.grpc(), &token).unwrap();
    let session = old.connect(master.grpc(), Answer::Apply).unwrap();
    eventually("another credential is wanted", || {
        session.beat(1);
        session.told().contains(&Told::CredentialWanted(proto::v1::CredentialWanted {})).then_some(())
    });
    // The first answer is lost with the agent, which makes another one.
    for agent in [&lost, &new] {
        change(&session, agent, CredentialStep::Made);
        await_told(
            &session,
            "it is taken",
            |told| matches!(told, Told::CredentialTaken(taken) if taken.sha256 == agent.verifier()),
        );
    }
    // As a power cut would: what was taken is taken, and nobody has said which of the two the agent has.
    master.restart_after_kill();
    let grpc = master.grpc();
    assert_eq!(lost.connect(grpc, Answer::Apply).err().unwrap().code(), Code::Unauthenticated);
    old.connect(grpc, Answer::Apply).unwrap();
    let session = new.connect(grpc, Answer::Apply).unwrap();
    await_beat(&session, 1);
    assert_refused(old.connect(grpc, Answer::Apply), Code::PermissionDenied, "authorization", "was replaced");
    new.connect(grpc, Answer::Apply).unwrap();

    // Within a session: the old one is void when the new one is kept.
    let newest = Agent::new(&runtime, "a").with_changes().with_secret(9);
    let session = new.connect(grpc, Answer::Apply).unwrap();
    change(&session, &newest, CredentialStep::Made);
    change(&session, &newest, CredentialStep::Kept);
    await_beat(&session, 1);
    assert_refused(new.connect(grpc, Answer::Apply), Code::PermissionDenied, "authorization", "was replaced");
    newest.connect(grpc, Answer::Apply).unwrap();
    // One that was used before is not taken again.
    let session = newest.connect(grpc, Answer::Apply).unwrap();
    change(&session, &old, CredentialStep::Made);
    let status = eventually("its session ends", || session.ended());
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}

#[test]
fn an_agent_that_does_not_know_of_it_is_not_asked_and_goes_on() {
    let master = Master::start_with(
        "[agents]\nreplace_credentials_after = \"1s\"\ncredentials_expire_after = \"2s\"\n",
    );
    let (admin, runtime) = (master.admin(), runtime());
    let [old, new] = ["old", "new"].map(|node| Agent::new(&runtime, node));
    let (token, new) = (master.join_token(2), new.with_changes());
    [&old, &new].iter().for_each(|agent| agent.enrol(master.grpc(), &token).unwrap());
    drop(new.connect(master.grpc(), Answer::Apply).unwrap());
    // The one that could have replaced its credential, and was away, has to enrol again.
    eventually("its credential ends", || {
        let ended = new.connect(master.grpc(), Answer::Apply).err()?;
        assert_refused::<()>(Err(ended), Code::Unauthenticated, "authorization", "has expired");
        Some(())
    });
    let session = old.connect(master.grpc(), Answer::Apply).unwrap();
    await_beat(&session, 1);
    assert!(!session.told().iter().any(|told| matches!(told, Told::CredentialWanted(_))));

    assert_refused(
        new.enrol(master.grpc(), &token),
        Code::PermissionDenied,
        "credential_sha256",
        "was used before",
    );
    assert!(new.connect(master.grpc(), Answer::Apply).is_err());
    admin.put("/api/v1/nodes/new/tags/canary", &json!({})).data();
    let again = Agent::new(&runtime, "new").with_changes().with_secret(7);
    assert_eq!(again.enrol(master.grpc(), &token).unwrap_err().code(), Code::Unauthenticated, "used up");
    again.enrol(master.grpc(), &master.join_token(1)).unwrap();
    again.connect(master.grpc(), Answer::Apply).unwrap();
    assert_eq!(admin.get("/api/v1/nodes/new").data()["tags"], json!(["canary"]), "it is the same node");
}

#[test]
fn two_agents_with_one_credential_are_noticed_and_one_is_shut_out() {
    let mut master = Master::start_with("[alerts]\njudge_every = \"100ms\"\n");
    let (token, runtime) = (master.join_token(1), runtime());
    let agent = |instance| Agent::new(&runtime, "a").with_changes().with_instance(instance);
    let (first, copy) = (agent(1), agent(2));
    first.enrol(master.grpc(), &token).unwrap();
    let connect = |agent: &Agent, grpc| {
        let session = agent.connect(grpc, Answer::Apply).unwrap();
        await_beat(&session, 1);
        session
    };
    let session = connect(&first, master.grpc());
    let copys = connect(&copy, master.grpc());
    eventually("the first is told", || session.ended());
    let replaced =
        |told: &Told| matches!(told, Told::Goodbye(bye) if bye.reason() == GoodbyeReason::Replaced);
    assert!(session.told().iter().any(replaced));
    // So far it may be the same agent, started anew; and what is known of it outlives the master.
    assert!(audit(&master.admin(), "nodes.copied_credential", "refused").is_empty());
    drop(copys);
    eventually("it is on the disk", || {
        let flushed = master.admin().get("/api/v1/nodes/a");
        (flushed.status == 200).then_some(())
    });
    master.admin().put("/api/v1/nodes/a/tags/x", &json!({})).data();
    master.restart_after_kill();
    let (admin, grpc) = (master.admin(), master.grpc());

    let session = connect(&first, grpc);
    await_told(&session, "another credential is wanted at once", |told| {
        matches!(told, Told::CredentialWanted(_))
    });
    let noted = audit(&admin, "nodes.copied_credential", "refused");
    assert!(noted.len() == 1 && noted[0].1.contains("(02020202…) is shut out"), "{noted:?}");
    assert_refused(copy.connect(grpc, Answer::Apply), Code::PermissionDenied, "instance_id", "is shut out");
    let refused = audit(&admin, "nodes.connect", "refused");
    assert!(refused[0].0 == "a" && refused[0].1.contains("each node needs a state folder"), "{refused:?}");
    eventually("the alert fires", || {
        let alerts = admin.get("/api/v1/alerts?rule=credential-copied&state=firing&node=a");
        (alerts.json["meta"]["total"] == 1).then_some(())
    });
    assert!(admin.get("/api/v1/nodes/a").data()["credential_copied_at"].is_string());
    // The first one replaces its credential: no copy is of any use, whatever instance shows it.
    let new = agent(1).with_secret(7);
    change(&session, &new, CredentialStep::Made);
    change(&session, &new, CredentialStep::Kept);
    await_beat(&session, 2);
    assert_refused(
        agent(3).connect(grpc, Answer::Apply),
        Code::PermissionDenied,
        "authorization",
        "was replaced",
    );
    connect(&new, grpc);
}

#[test]
fn an_agent_that_is_started_anew_is_no_copy() {
    let master = Master::start();
    let (token, runtime) = (master.join_token(1), runtime());
    Agent::new(&runtime, "a").enrol(master.grpc(), &token).unwrap();
    for instance in 1..5 {
        let agent = Agent::new(&runtime, "a").with_instance(instance);
        // Twice: its network is not the best.
        for _ in 0..2 {
            await_beat(&agent.connect(master.grpc(), Answer::Apply).unwrap(), 1);
        }
    }
    assert!(audit(&master.admin(), "nodes.copied_credential", "refused").is_empty());
}

#[test]
fn a_registration_that_nobody_stands_behind_shuts_nobody_out() {
    let master = Master::start();
    let (token, runtime) = (master.join_token(1), runtime());
    let agent = |instance| Agent::new(&runtime, "a").with_instance(instance);
    agent(1).enrol(master.grpc(), &token).unwrap();
    await_beat(&agent(1).connect(master.grpc(), Answer::Apply).unwrap(), 1);
    await_beat(&agent(2).connect(master.grpc(), Answer::Apply).unwrap(), 1);
    // What a process sent that has ended comes late, out of a network that was cut; nobody answers the welcome.
    drop(agent(1).connect(master.grpc(), Answer::Apply).unwrap());
    await_beat(&agent(2).connect(master.grpc(), Answer::Apply).unwrap(), 1);
    assert!(audit(&master.admin(), "nodes.copied_credential", "refused").is_empty());
}

#[test]
fn a_deleted_node_is_barred_until_an_operator_lets_it_in_and_its_credential_is_void_for_good() {
    let mut master = Master::start();
    let (token, runtime) = (master.join_token(10), runtime());
    let agent = Agent::new(&runtime, "a");
    agent.enrol(master.grpc(), &token).unwrap();
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    assert_eq!(master.admin().delete("/api/v1/nodes/a").status, 200);
    eventually("its session ends", || session.ended());
    master.restart_after_kill();
    let (admin, grpc) = (master.admin(), master.grpc());
    let anew = Agent::new(&runtime, "a").with_secret(7);
    // The token has uses left; neither the old secret nor a new one helps.
    for agent in [&agent, &anew] {
        assert_refused(
            agent.enrol(grpc, &token),
            Code::PermissionDenied,
            "node_id",
            "is barred until an operator",
        );
        assert_eq!(agent.connect(grpc, Answer::Apply).err().unwrap().code(), Code::Unauthenticated);
    }
    assert_eq!(audit(&admin, "nodes.enrol", "refused").len(), 2);
    let barred = admin.get("/api/v1/barred-nodes");
    assert_eq!((&barred.data()[0]["id"], &barred.data()[0]["deleted_by"]), (&json!("a"), &json!("admin")));

    admin.delete("/api/v1/barred-nodes/b").assert_refused(404, "id");
    assert_eq!(admin.delete("/api/v1/barred-nodes/a").data()["removed"], "a");
    admin.delete("/api/v1/barred-nodes/a").assert_refused(404, "id");
    assert_eq!(audit(&admin, "nodes.unbar", "done").len(), 1);
    // A stolen copy does not live again.
    assert_refused(agent.enrol(grpc, &token), Code::PermissionDenied, "credential_sha256", "was used before");
    anew.enrol(grpc, &token).unwrap();
    assert_refused(
        agent.connect(grpc, Answer::Apply),
        Code::PermissionDenied,
        "authorization",
        "was replaced",
    );
    anew.connect(grpc, Answer::Apply).unwrap();
    assert_eq!(admin.get("/api/v1/barred-nodes").json["meta"]["total"], 0);
}

fn publish(admin: &Client, version: &str, region: &str) {
    let text = format!("# {version}\n{CONFIG}");
    let body = json!({ "version": version, "config_data": text, "regions": [region] });
    assert_eq!(admin.post("/api/v1/configs", &body).status, 201);
    assert_eq!(admin.post(&format!("/api/v1/configs/{version}/publish"), &json!({})).status, 200);
}

#[test]
fn an_agent_is_what_it_was_granted_whatever_it_calls_itself() {
    let master = Master::start();
    let (admin, grpc, runtime) = (master.admin(), master.grpc(), runtime());
    let token = admin.post("/api/v1/join-tokens", &json!({ "region": "hk", "role": "edge", "uses": 2 }));
    let token = token.data()["token"].as_str().unwrap();
    publish(&admin, "for-hk", "hk");
    publish(&admin, "for-sg", "sg");
    let agent = |region: &str| Agent::new(&runtime, "a").in_region(region);
    agent("hk").enrol(grpc, token).unwrap();
    let mut core = agent("hk");
    core.role = Role::Core;
    for (liar, field, reason) in [
        (agent("sg"), "region", "this node is an edge in hk, as was granted, and the agent says sg"),
        (core, "role", "and the agent says another role"),
    ] {
        assert_refused(liar.connect(grpc, Answer::Apply), Code::PermissionDenied, field, reason);
        assert_refused(liar.enrol(grpc, token), Code::PermissionDenied, field, reason);
        let noted = audit(&admin, "nodes.connect", "refused");
        assert!(noted[0].0 == "a" && noted[0].1.contains(reason), "{noted:?}");
    }
    assert_eq!(admin.get("/api/v1/nodes/a").data()["region"], "hk");
    let session = agent("hk").connect(grpc, Answer::Apply).unwrap();
    eventually("it gets what is for its region", || (session.offered() == ["for-hk"]).then_some(()));
    // One that says nothing is where it was granted to be, too.
    let mut silent = Agent::new(&runtime, "b");
    silent.enrol(grpc, token).unwrap();
    silent.role = Role::Unspecified;
    let session = silent.connect(grpc, Answer::Apply).unwrap();
    eventually("it gets what is for its region", || (session.offered() == ["for-hk"]).then_some(()));
    assert_eq!(admin.get("/api/v1/nodes/b").data()["region"], "hk");
}

#[test]
fn an_operator_moves_a_node_and_its_agent_follows() {
    let master = Master::start();
    let (admin, grpc, runtime) = (master.admin(), master.grpc(), runtime());
    publish(&admin, "for-sg", "sg");
    publish(&admin, "for-hk", "hk");
    let agent = |region: &str| Agent::new(&runtime, "a").in_region(region);
    agent("hk").enrol(grpc, &master.join_token(1)).unwrap();
    let session = agent("hk").connect(grpc, Answer::Apply).unwrap();
    eventually("it gets what is for hk", || (session.offered() == ["for-hk"]).then_some(()));
    let place = |body: Value| admin.put("/api/v1/nodes/a/place", &body);
    place(json!({ "region": "s\ng" })).assert_refused(422, "region");
    place(json!({ "zone": "sg" })).assert_refused(400, "zone");
    assert_eq!(
        place(json!({ "region": "sg" })).data()["moved_from"],
        json!({ "role": "edge", "region": "hk" })
    );
    // At once, although it was published earlier than what the node has.
    eventually("it gets what is for sg", || (session.offered() == ["for-hk", "for-sg"]).then_some(()));
    // Its agent.toml says hk still, which is no lie; and the node stays where it was moved to.
    let session = agent("hk").connect(grpc, Answer::Apply).unwrap();
    eventually("it gets what is for sg", || (session.offered() == ["for-sg"]).then_some(()));
    agent("sg").connect(grpc, Answer::Apply).unwrap();
    assert_eq!(admin.get("/api/v1/nodes/a").data()["moved_from"], Value::Null);
    assert_refused(
        agent("hk").connect(grpc, Answer::Apply),
        Code::PermissionDenied,
        "region",
        "an edge in sg",
    );
    let moved = audit(&admin, "nodes.move", "done");
    assert_eq!(moved, [("a".to_owned(), "an edge in hk to an edge in sg".to_owned())]);
}
