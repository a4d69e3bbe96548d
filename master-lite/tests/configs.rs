//! Configs, from a text that an operator posts to the nodes that say they serve it: versions, publishing, going back, and
//! who is how far.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use story::agent::{Agent, Answer, runtime};
use story::client::Client;
use story::{Master, eventually};

const CONFIG: &str = include_str!("../../proto/tests/config/accepted/minimal.toml");

/// Makes a version.
fn create(client: &Client, version: &str, more: Value) {
    let mut body = json!({ "version": version, "config_data": format!("# {version}\n{CONFIG}") });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = client.post("/api/v1/configs", &body);
    assert_eq!(answer.status, 201, "{}", answer.json);
}

fn publish(client: &Client, version: &str) -> u64 {
    let answer = client.post(&format!("/api/v1/configs/{version}/publish"), &json!({}));
    answer.data()["publish"]["revision"].as_u64().unwrap()
}

/// State and reason of each node that should have a version.
fn progress(client: &Client, version: &str) -> Vec<(String, String, String)> {
    let answer = client.get(&format!("/api/v1/configs/{version}/nodes"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let nodes = answer.data().as_array().unwrap().iter();
    nodes.map(|node| (text(&node["node"]), text(&node["state"]), text(&node["reason"]))).collect()
}

#[test]
fn a_version_never_changes_and_is_checked_as_a_data_plane_would() {
    let master = Master::start_with("[limits]\nconfig_versions = 3\n");
    let admin = master.admin();
    create(&admin, "one", json!({ "description": "the first" }));
    let encoded = json!({ "version": "two", "config_data": STANDARD.encode(CONFIG) });
    assert_eq!(admin.post("/api/v1/configs", &encoded).status, 201);
    let two = admin.get("/api/v1/configs/two");
    assert_eq!(two.data()["config_data"], CONFIG);
    assert_eq!(two.data()["config"]["sha256"].as_str().unwrap().len(), 64);
    let post = |body| admin.post("/api/v1/configs", &body);
    post(json!({ "version": "one", "config_data": CONFIG })).assert_refused(409, "version");
    post(json!({ "version": "../one", "config_data": CONFIG })).assert_refused(422, "version");
    post(json!({ "version": "x", "config_data": "AAAAA" })).assert_refused(422, "config_data");
    let refused = post(json!({ "version": "x", "config_data": "[node]\nrole = \"king\"\n" }));
    refused.assert_refused(422, "config_data:2:8");
    post(json!({ "version": "x", "config_data": CONFIG, "nodes": ["a", "../b"] }))
        .assert_refused(422, "nodes[1]");
    post(json!({ "version": "x", "config_data": CONFIG, "region": "hk" })).assert_refused(400, "region");
    post(json!({ "version": "x", "config_data": "#".repeat(4 << 20) + CONFIG }))
        .assert_refused(413, "config_data");
    post(json!({ "version": "x", "config_data": "#".repeat(9 << 20) })).assert_refused(413, "body");
    admin.get("/api/v1/configs/x").assert_refused(404, "version");
    let noted = admin.get("/api/v1/audit?action=configs.create&outcome=refused");
    assert_eq!(noted.json["meta"]["total"], 8, "{}", noted.json);
    let third = post(json!({ "config_data": CONFIG }));
    assert_eq!(third.data()["version"], "v3");
    post(json!({ "config_data": CONFIG })).assert_refused(409, "version");
    let versions = admin.get("/api/v1/configs?page_size=2");
    assert_eq!(versions.data()[0]["version"], "v3");
    assert_eq!(versions.json["meta"]["total"], 3);
    assert_eq!(admin.get("/api/v1/configs?page=2&page_size=2").data()[0]["version"], "one");
    let diff = admin.get("/api/v1/configs/two/diff/one");
    assert!(diff.data()["diff"].as_str().unwrap().contains("\n+# one\n"), "{}", diff.json);
    admin.get("/api/v1/configs/two/diff/none").assert_refused(404, "b");
    let good = admin.post("/api/v1/configs/validate", &json!({ "config_data": CONFIG }));
    assert_eq!(good.data()["valid"], true);
}

#[test]
fn a_publish_reaches_the_nodes_that_it_is_for() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let token = master.join_token(3);
    let hk = Agent::new(&runtime, "hk-1").in_region("hk");
    let (sg, bad) =
        (Agent::new(&runtime, "sg-1").in_region("sg"), Agent::new(&runtime, "hk-2").in_region("hk"));
    for agent in [&hk, &sg, &bad] {
        agent.enrol(master.grpc(), &token).unwrap();
    }
    let hk_session = hk.connect(master.grpc(), Answer::Apply).unwrap();
    let sg_session = sg.connect(master.grpc(), Answer::Apply).unwrap();
    let _bad_session = bad.connect(master.grpc(), Answer::Refuse).unwrap();
    create(&admin, "one", json!({ "regions": ["hk"] }));
    let dry = admin.post("/api/v1/configs/one/publish", &json!({ "dry_run": true }));
    assert_eq!(dry.data()["publish"]["revision"], 1);
    assert_eq!(dry.data()["targets"].as_array().unwrap().len(), 2);
    assert_eq!(dry.data()["targets"][0]["change"], true);
    assert_eq!(admin.send("POST", "/api/v1/configs/one/publish?dry_run=true", None).status, 200);
    assert_eq!(admin.get("/api/v1/configs/history").json["meta"]["total"], 0, "a dry run was none");
    assert_eq!(publish(&admin, "one"), 1);
    let expected = [
        ("hk-1".to_owned(), "applied".to_owned(), String::new()),
        ("hk-2".to_owned(), "refused".to_owned(), "unusable: the port is taken".to_owned()),
    ];
    eventually("both have answered", || (progress(&admin, "one") == expected).then_some(()));
    assert_eq!(hk_session.offered(), ["one"]);
    assert!(sg_session.offered().is_empty(), "a node got what is not for it");
    assert_eq!(
        admin.get("/api/v1/configs/one").data()["convergence"],
        json!({ "pending": 0, "applied": 1, "refused": 1 })
    );
    let status = admin.get("/api/v1/nodes/hk-1/status");
    assert_eq!(status.data()["config"]["applied_version"], "one");
    assert_eq!(status.data()["config"]["generation"], 7);
}

#[test]
fn going_back_is_a_publish_of_its_own() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let agent = Agent::new(&runtime, "a");
    agent.enrol(master.grpc(), &master.join_token(1)).unwrap();
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    for version in ["one", "two", "never"] {
        create(&admin, version, json!({}));
    }
    admin.post("/api/v1/configs/one/rollback", &json!({})).assert_refused(409, "version");
    assert_eq!((publish(&admin, "one"), publish(&admin, "two")), (1, 2));
    let back = admin.post("/api/v1/configs/one/rollback", &json!({ "comment": "two is slow" }));
    assert_eq!(back.data()["publish"]["revision"], 3);
    eventually("the node is back", || (agent.applied() == 3).then_some(()));
    assert_eq!(session.offered().last().map(String::as_str), Some("one"));
    let history = admin.get("/api/v1/configs/history");
    let kinds: Vec<&str> =
        history.data().as_array().unwrap().iter().map(|publish| publish["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["rollback", "publish", "publish"]);
    assert_eq!(history.data()[0]["comment"], "two is slow");
    admin.post("/api/v1/configs/never/rollback", &json!({})).assert_refused(409, "version");
    admin.post("/api/v1/configs/none/publish", &json!({})).assert_refused(404, "version");
    admin.post("/api/v1/configs/one/publish", &json!({ "dryrun": true })).assert_refused(400, "dryrun");
}

#[test]
fn a_node_that_comes_back_gets_what_it_should_have_and_nothing_twice() {
    let mut master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    create(&admin, "one", json!({}));
    assert_eq!(publish(&admin, "one"), 1);
    let agent = Agent::new(&runtime, "a");
    agent.enrol(master.grpc(), &master.join_token(1)).unwrap();
    let new = agent.connect(master.grpc(), Answer::Refuse).unwrap();
    eventually("a new node gets what is published", || (new.offered() == ["one"]).then_some(()));
    eventually("the refusal is known", || {
        progress(&admin, "one").iter().any(|(_, state, _)| state == "refused").then_some(())
    });
    master.restart_after_kill();
    let again = agent.connect(master.grpc(), Answer::Apply).unwrap();
    let admin = master.admin();
    assert_eq!(publish(&admin, "one"), 2);
    eventually("a new publish is applied", || (agent.applied() == 2).then_some(()));
    assert_eq!(again.offered(), ["one"], "what was refused was offered again");
    let third = agent.connect(master.grpc(), Answer::Apply).unwrap();
    third.beat(1);
    eventually("the master has read on", || third.told().len().checked_sub(2));
    assert!(third.offered().is_empty(), "a node was offered what it has");
    eventually("the older session ends", || again.ended());
}

#[test]
fn going_back_in_one_region_leaves_the_others_what_they_have() {
    let master = Master::start();
    let (admin, runtime) = (master.admin(), runtime());
    let token = master.join_token(3);
    let agents: Vec<Agent> =
        ["hk", "sg", "us"].map(|region| Agent::new(&runtime, region).in_region(region)).into();
    for agent in &agents {
        agent.enrol(master.grpc(), &token).unwrap();
    }
    let _sessions: Vec<_> =
        agents.iter().map(|agent| agent.connect(master.grpc(), Answer::Apply).unwrap()).collect();
    create(&admin, "all", json!({}));
    create(&admin, "of-hk", json!({ "regions": ["hk"] }));
    create(&admin, "of-sg", json!({ "regions": ["sg"] }));
    create(&admin, "unused", json!({}));
    for version in ["all", "of-hk", "of-sg"] {
        publish(&admin, version);
    }
    let serve = |versions: [&str; 3]| {
        let wanted = |node: &str| {
            let status = admin.get(&format!("/api/v1/nodes/{node}/status"));
            status.data()["config"]["applied_version"].as_str().unwrap_or_default().to_owned()
        };
        eventually("each region serves its own", || {
            (["hk", "sg", "us"].map(wanted) == versions).then_some(())
        });
    };
    serve(["of-hk", "of-sg", "all"]);
    let back = |wish: Value| admin.post("/api/v1/configs/all/rollback", &wish);
    let unclear = back(json!({}));
    unclear.assert_refused(409, "from");
    assert!(unclear.json["message"].as_str().unwrap().ends_with("of-hk, of-sg"), "{}", unclear.json);
    back(json!({ "from": "unused" })).assert_refused(409, "from");
    back(json!({ "from": "all" })).assert_refused(422, "from");
    let from_hk = json!({ "from": "of-hk" }).to_string();
    let dry = admin.send("POST", "/api/v1/configs/all/rollback?dry_run=true", Some(from_hk));
    let targets = dry.data()["targets"].as_array().unwrap();
    assert_eq!(targets.iter().map(|target| &target["node"]).collect::<Vec<_>>(), ["hk"], "{}", dry.json);
    assert_eq!(admin.get("/api/v1/configs/history").json["meta"]["total"], 3, "a dry run was none");
    assert_eq!(back(json!({ "from": "of-hk" })).data()["publish"]["undoes"], "of-hk");
    serve(["all", "of-sg", "all"]);
    // One other version is left: nothing is to be guessed.
    assert_eq!(back(json!({})).data()["publish"]["undoes"], "of-sg");
    serve(["all", "all", "all"]);
    assert_eq!(admin.post("/api/v1/configs/of-sg/rollback", &json!({})).status, 200);
    serve(["all", "of-sg", "all"]);
}
