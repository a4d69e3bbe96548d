//! Nodes: getting in with a join token, being seen, being tagged, being thrown out.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use bytes::Bytes;
use proto::fleet::limits::MESSAGE_BYTES_MAX;
use proto::fleet::{NodeCredential, SECRET_BYTES};
use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{
    EnrollRequest, GoodbyeReason, Heartbeat, Leaving, MetricFamily, Metrics, MetricsPiece, Register,
};
use serde_json::{Value, json};
use story::agent::{Agent, Answer, runtime};
use story::client::Client;
use story::{Master, eventually};
use tonic::Code;

fn state(client: &Client, node: &str) -> String {
    client.get(&format!("/api/v1/nodes/{node}")).data()["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_join_token_lets_in_as_many_as_it_says() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let token = master.join_token(1);
    let (first, second) = (Agent::new(&runtime, "a"), Agent::new(&runtime, "b"));
    first.enrol(master.grpc(), &token).unwrap();
    first.enrol(master.grpc(), &token).expect("the answer to the first may have been lost");
    assert_eq!(second.enrol(master.grpc(), &token).unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(second.enrol(master.grpc(), "mrj1.x.y").unwrap_err().code(), Code::Unauthenticated);
    let tokens = admin.get("/api/v1/join-tokens");
    assert_eq!((&tokens.data()[0]["uses"], &tokens.data()[0]["uses_max"]), (&json!(1), &json!(1)));
    assert!(!tokens.json.to_string().contains(&token), "a list shows the token");
    let id = tokens.data()[0]["id"].as_str().unwrap();
    assert_eq!(admin.delete(&format!("/api/v1/join-tokens/{id}")).status, 200);
    let noted = admin.get("/api/v1/audit?action=nodes.enrol&outcome=refused");
    assert_eq!(noted.json["meta"]["total"], 2, "{}", noted.json);
}

#[test]
fn a_token_for_one_region_lets_nobody_else_in() {
    let master = Master::start();
    let runtime = runtime();
    let body = json!({ "region": "hk", "role": "edge", "uses": 5 });
    let token = master.admin().post("/api/v1/join-tokens", &body);
    let token = token.data()["token"].as_str().unwrap();
    let elsewhere = Agent::new(&runtime, "a").in_region("sg");
    assert_eq!(elsewhere.enrol(master.grpc(), token).unwrap_err().code(), Code::PermissionDenied);
    Agent::new(&runtime, "a").in_region("hk").enrol(master.grpc(), token).unwrap();
    let taken = Agent::new(&runtime, "a-longer-name");
    let other = NodeCredential::new("a".parse().unwrap(), [9; SECRET_BYTES]);
    let stolen = taken.connect_as(master.grpc(), Answer::Keep, &other.reveal(), "a").err().unwrap();
    assert_eq!(stolen.code(), Code::Unauthenticated);
}

#[test]
fn a_token_that_has_ended_lets_nobody_in() {
    let master = Master::start();
    let runtime = runtime();
    let token = master.admin().post("/api/v1/join-tokens", &json!({ "expires_in_s": 1, "uses": 1000 }));
    let token = token.data()["token"].as_str().unwrap().to_owned();
    let mut number = 0;
    let deadline = std::time::Instant::now() + story::PATIENCE;
    loop {
        number += 1;
        let attempt = Agent::new(&runtime, &format!("n{number}")).enrol(master.grpc(), &token);
        if let Err(status) = attempt {
            assert_eq!(status.code(), Code::Unauthenticated);
            break;
        }
        assert!(std::time::Instant::now() < deadline && number < 1000, "the token does not end");
    }
    let post = |body| master.admin().post("/api/v1/join-tokens", &body);
    post(json!({ "expires_in_s": 0 })).assert_refused(422, "expires_in_s");
    post(json!({ "uses": 100_000 })).assert_refused(422, "uses");
    post(json!({ "role": "king" })).assert_refused(400, "role");
}

#[test]
fn a_node_is_as_its_heartbeats_say() {
    let master = Master::start_with("[agents]\nheartbeat = \"200ms\"\n");
    let (admin, runtime) = (master.admin(), runtime());
    let agent = Agent::new(&runtime, "a").in_region("hk");
    agent.enrol(master.grpc(), &master.join_token(1)).unwrap();
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    session.beat(1);
    eventually("the node is online", || (state(&admin, "a") == "online").then_some(()));
    session.say(Said::Heartbeat(Heartbeat { problems: vec!["disk".into()], ..Heartbeat::default() }));
    eventually("the node is degraded", || (state(&admin, "a") == "degraded").then_some(()));
    eventually("the node is offline", || (state(&admin, "a") == "offline").then_some(()));
    assert!(session.told().iter().any(|told| matches!(told, Told::HeartbeatAck(ack) if ack.sequence == 1)));
    let again = agent.connect(master.grpc(), Answer::Apply).unwrap();
    again.beat(1);
    eventually("the node is back", || (state(&admin, "a") == "online").then_some(()));
    again.say(Said::Leaving(Leaving::default()));
    eventually("the node has left", || (state(&admin, "a") == "offline").then_some(()));
}

#[test]
fn nodes_are_found_by_role_region_tag_and_state() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let token = master.join_token(2);
    for (node, region) in [("a", "hk"), ("b", "sg")] {
        Agent::new(&runtime, node).in_region(region).enrol(master.grpc(), &token).unwrap();
    }
    assert_eq!(admin.put("/api/v1/nodes/a/tags/canary", &json!({})).data()["tags"], json!(["canary"]));
    let changed =
        admin.put("/api/v1/nodes/b", &json!({ "tags": ["x", "canary"], "description": "the second" }));
    assert_eq!(changed.data()["tags"], json!(["canary", "x"]));
    let found = |query: &str| {
        let nodes = admin.get(&format!("/api/v1/nodes?{query}"));
        let nodes =
            nodes.data().as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap().to_owned());
        nodes.collect::<Vec<_>>()
    };
    assert_eq!(found("region=sg"), ["b"]);
    assert_eq!(found("tag=canary&role=edge"), ["a", "b"]);
    assert_eq!(found("tag=x"), ["b"]);
    assert!(found("role=core").is_empty());
    assert_eq!(found("page_size=1&page=2"), ["b"]);
    let tags = admin.get("/api/v1/tags");
    assert_eq!(tags.data()[0], json!({ "tag": "canary", "nodes": 2 }));
    assert_eq!(admin.delete("/api/v1/nodes/b/tags/x").data()["tags"], json!(["canary"]));
    admin.delete("/api/v1/nodes/b/tags/x").assert_refused(404, "tag");
    admin.put("/api/v1/nodes/b", &json!({ "tags": ["../x"] })).assert_refused(422, "tags[0]");
    let many: Vec<String> = (0..33).map(|number| format!("t{number}")).collect();
    admin.put("/api/v1/nodes/b", &json!({ "tags": many })).assert_refused(422, "tags");
    admin.put("/api/v1/nodes/b", &json!({ "region": "hk" })).assert_refused(400, "region");
    admin.get("/api/v1/nodes?state=asleep").assert_refused(400, "state");
    admin.get("/api/v1/nodes/..%2fb").assert_refused(422, "id");
    admin.get("/api/v1/nodes/c").assert_refused(404, "id");
}

#[test]
fn a_deleted_node_is_thrown_out_and_stays_out() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let agent = Agent::new(&runtime, "a");
    agent.enrol(master.grpc(), &master.join_token(1)).unwrap();
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    assert_eq!(admin.delete("/api/v1/nodes/a").status, 200);
    eventually("the session ends", || session.ended());
    let removed = GoodbyeReason::Removed;
    assert!(
        session
            .told()
            .iter()
            .any(|told| matches!(told, Told::Goodbye(goodbye) if goodbye.reason() == removed))
    );
    let refused = agent.connect(master.grpc(), Answer::Apply).err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    admin.get("/api/v1/nodes/a").assert_refused(404, "id");
}

#[test]
fn a_session_without_its_own_credential_is_refused() {
    let master = Master::start();
    let runtime = runtime();
    let token = master.join_token(2);
    let (a, b) = (Agent::new(&runtime, "a"), Agent::new(&runtime, "b"));
    a.enrol(master.grpc(), &token).unwrap();
    b.enrol(master.grpc(), &token).unwrap();
    let nonsense = a.connect_as(master.grpc(), Answer::Keep, "nonsense", "a").err().unwrap();
    assert_eq!(nonsense.code(), Code::Unauthenticated);
    let credential = NodeCredential::new("a".parse().unwrap(), [b'a'; SECRET_BYTES]);
    let other = a.connect_as(master.grpc(), Answer::Keep, &credential.reveal(), "b").err().unwrap();
    assert_eq!(other.code(), Code::PermissionDenied);
}

#[test]
fn what_is_no_wish_to_enrol_is_refused_with_the_field_and_noted() {
    let master = Master::start();
    let (admin, agent, token) = (master.admin(), Agent::new(&runtime(), "a"), master.join_token(1));
    let refused = |change: fn(&mut EnrollRequest), field: &str| {
        let status = agent.enrol_as(master.grpc(), &token, change).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(&format!("{field}: ")), "{status}");
    };
    refused(|request| request.node_id = "../../etc".to_owned(), "node_id");
    refused(|request| request.node_id = String::new(), "node_id");
    refused(|request| request.node_id = "a".repeat(129), "node_id");
    refused(|request| request.credential_sha256 = vec![1; 31].into(), "credential_sha256");
    refused(|request| request.region = "hk\nsg".to_owned(), "region");
    refused(|request| request.region = "x".repeat(129), "region");
    let noted = admin.get("/api/v1/audit?action=nodes.enrol&outcome=refused");
    assert_eq!(noted.json["meta"]["total"], 6, "{}", noted.json);
    assert_eq!(admin.get("/api/v1/join-tokens").data()[0]["uses"], 0, "a refused wish used the token");
    agent.enrol(master.grpc(), &token).expect("and the token is still good");
}

#[test]
fn an_agent_that_says_nonsense_ends_its_own_session_only() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let token = master.join_token(2);
    let agents = ["good", "bad"].map(|node| Agent::new(&runtime, node));
    agents.iter().for_each(|agent| agent.enrol(master.grpc(), &token).unwrap());
    let [good, bad] = agents.each_ref().map(|agent| agent.connect(master.grpc(), Answer::Apply).unwrap());
    let endless = MetricFamily { help: "x".repeat(MESSAGE_BYTES_MAX), ..MetricFamily::default() };
    bad.say(Said::Metrics(Metrics { families: vec![endless], ..Metrics::default() }));
    eventually("its session ends", || bad.ended());
    let again = agents[1].connect(master.grpc(), Answer::Apply).unwrap();
    again.say(Said::Register(Register { node_id: "good".to_owned(), ..Register::default() }));
    let status = eventually("its session ends", || again.ended());
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let rubbish = MetricsPiece { data: Bytes::from_static(b"\xff"), is_last: true };
    let long = MetricsPiece { data: vec![0; MESSAGE_BYTES_MAX / 2 + 1].into(), is_last: false };
    for pieces in [vec![rubbish], vec![long.clone(), long]] {
        let again = agents[1].connect(master.grpc(), Answer::Apply).unwrap();
        pieces.into_iter().for_each(|piece| again.say(Said::MetricsPiece(piece)));
        let status = eventually("its session ends", || again.ended());
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with("metrics_piece.data: "), "{status}");
    }
    good.beat(1);
    eventually("the other one is heard", || {
        good.told()
            .iter()
            .any(|told| matches!(told, Told::HeartbeatAck(ack) if ack.sequence == 1))
            .then_some(())
    });
    assert!(good.ended().is_none());
    let refused = agents[1].connect_as(master.grpc(), Answer::Keep, "mrc1.bad.secret", "bad").err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let noted = admin.get("/api/v1/audit?action=nodes.connect&outcome=refused");
    assert_eq!(noted.json["meta"]["total"], 1, "{}", noted.json);
    let noted = admin.get("/api/v1/audit?action=nodes.session&outcome=refused");
    let entry = |entry: &Value| {
        let text = |field: &str| entry[field].as_str().unwrap().to_owned();
        assert_eq!([text("actor"), text("actor_kind"), text("target")], ["bad", "node", "bad"]);
        text("detail")
    };
    let why: Vec<String> = noted.data().as_array().unwrap().iter().map(entry).collect();
    let begin =
        ["metrics_piece.data: the pieces of", "metrics_piece.data: the", "register: ", "Error, decoded"];
    assert_eq!(why.len(), begin.len(), "{why:?}");
    why.iter().zip(begin).for_each(|(why, begin)| assert!(why.starts_with(begin), "{why}, not {begin}"));
}

#[test]
fn who_fails_to_enrol_too_often_has_to_wait() {
    let master = Master::start();
    let runtime = runtime();
    let token = master.join_token(1);
    let agent = Agent::new(&runtime, "a");
    for _ in 0..30 {
        assert_eq!(agent.enrol(master.grpc(), "mrj1.x.y").unwrap_err().code(), Code::Unauthenticated);
    }
    assert_eq!(agent.enrol(master.grpc(), &token).unwrap_err().code(), Code::ResourceExhausted);
}
