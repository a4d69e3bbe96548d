//! Every route of the API's own document does its work, on a fleet that has something of everything: for the least role
//! that may, after everybody below it was refused the very same, and answers as the document promises, field by field. So
//! what was refused has changed nothing.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::collections::{BTreeMap, BTreeSet};

use proto::v1::agent_message::Kind as Said;
use proto::v1::series::Value as Measured;
use proto::v1::{Heartbeat, HostMetrics, Label, MetricFamily, MetricKind, Metrics, Series};
use serde_json::{Value, json};
use story::agent::{Agent, Answer as Reply, Session, runtime};
use story::client::{Answer, Client};
use story::{Master, documented, eventually};

const CONFIG: &str = include_str!("../../proto/tests/config/accepted/minimal.toml");

/// Somebody of each role, from the least on.
struct Walk {
    master: Master,
    callers: [(&'static str, Client); 4],
    demands: BTreeMap<String, String>,
    promises: Promises,
    walked: BTreeSet<String>,
}

/// What the document says of answers.
struct Promises(Value);

impl Promises {
    /// The document, with no room for fields that it does not name.
    fn read(master: &Master) -> Self {
        let mut document = master.anonymous().get("/api/v1/openapi.json").json;
        let parts = parts(&document);
        for (name, schema) in document["components"]["schemas"].as_object_mut().unwrap() {
            if !parts.contains(&format!("#/components/schemas/{name}")) {
                close(schema);
            }
        }
        Self(document)
    }

    /// Holds a good answer with JSON against the schema of its route and status.
    #[track_caller]
    fn hold(&self, route: &str, answer: &Answer) {
        let (method, path) = route.split_once(' ').unwrap();
        let responses = &self.0["paths"][path][method.to_lowercase()]["responses"];
        let response = &responses[answer.status.to_string()];
        assert!(response.is_object(), "{route} does not promise {}", answer.status);
        let Some(schema) = response["content"].get("application/json") else { return };
        let mut schema = schema["schema"].clone();
        close(&mut schema);
        schema["components"] = self.0["components"].clone();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let wrong: Vec<String> = validator
            .iter_errors(&answer.json)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{route}: {wrong:#?}\n{:#}", answer.json);
    }
}

/// The schemas that are parts of others.
fn parts(value: &Value) -> BTreeSet<String> {
    let own = value["allOf"].as_array().into_iter().flatten();
    let own = own.filter_map(|part| part["$ref"].as_str().map(str::to_owned));
    let inner = value.as_object().into_iter().flat_map(|object| object.values());
    let inner = inner.chain(value.as_array().into_iter().flatten());
    own.chain(inner.flat_map(parts)).collect()
}

/// Objects have the properties that are named, and no others.
fn close(schema: &mut Value) {
    if let Some(list) = schema.as_array_mut() {
        return list.iter_mut().for_each(close);
    }
    let Some(object) = schema.as_object_mut() else { return };
    let has_parts = object.contains_key("allOf");
    if has_parts || object.contains_key("properties") && !object.contains_key("additionalProperties") {
        object.insert("unevaluatedProperties".to_owned(), false.into());
    }
    object.iter_mut().filter(|(name, _)| *name != "allOf").for_each(|(_, inner)| close(inner));
}

impl Walk {
    fn begin() -> Self {
        let master =
            Master::start_with("[alerts]\njudge_every = \"100ms\"\n[webhooks]\nallow = [\"127.0.0.0/8\"]\n");
        let callers = [
            ("open", master.anonymous()),
            ("viewer", master.user("a-viewer", "viewer")),
            ("operator", master.user("an-operator", "operator")),
            ("admin", master.admin()),
        ];
        let (demands, promises) = (documented(&master), Promises::read(&master));
        Self { master, callers, demands, promises, walked: BTreeSet::new() }
    }

    /// Does what a route is for, with these names in its path; gives the answer to the least role that may.
    #[track_caller]
    fn step(&mut self, route: &str, names: &[&str], body: Option<Value>) -> Answer {
        let (method, template) = route.split_once(' ').unwrap();
        let mut names = names.iter();
        let parts =
            template.split('/').map(|part| if part.starts_with('{') { names.next().unwrap() } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        let demand = self.demands.get(route).unwrap_or_else(|| panic!("there is no {route}"));
        let body = body.map(|body| body.to_string());
        for (role, client) in &self.callers {
            let answer = client.send(method, &path, body.clone());
            if role == demand {
                assert!(
                    (200..300).contains(&answer.status),
                    "{route} as {role}: {} {}",
                    answer.status,
                    answer.json
                );
                self.promises.hold(route, &answer);
                self.walked.insert(route.to_owned());
                return answer;
            }
            answer.assert_refused(if *role == "open" { 401 } else { 403 }, "authorization");
        }
        panic!("{route} is for {demand}, who is nobody");
    }

    /// The same for a route that answers with data, as JSON.
    #[track_caller]
    fn data(&mut self, route: &str, names: &[&str], body: Option<Value>) -> Value {
        let answer = self.step(route, names, body);
        assert_eq!(answer.json["code"], answer.status, "{}", answer.json);
        assert!(!answer.json["trace_id"].as_str().unwrap().is_empty(), "{}", answer.json);
        answer.data().clone()
    }
}

/// The ids of a list.
fn ids<'a>(list: &'a Value, name: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|entry| entry[name].as_str().unwrap()).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[test]
fn every_route_does_its_work_for_the_least_role_that_may() {
    let mut walk = Walk::begin();
    walk_doors(&mut walk);
    walk_people(&mut walk);
    let (agent, session) = walk_enrolment(&mut walk);
    walk_nodes(&mut walk);
    walk_configs(&mut walk, &agent);
    walk_commands(&mut walk);
    walk_metrics(&mut walk, &session);
    walk_alerts(&mut walk);
    walk_webhooks(&mut walk);
    walk_the_end(&mut walk);
    let all: BTreeSet<String> = walk.demands.keys().cloned().collect();
    let missed: Vec<&String> = all.difference(&walk.walked).collect();
    assert!(missed.is_empty(), "nobody went there: {missed:?}");
}

fn walk_doors(walk: &mut Walk) {
    assert_eq!(walk.data("GET /health", &[], None)["status"], "ok");
    let document = walk.step("GET /api/v1/openapi.json", &[], None).json;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let page = walk.step("GET /api/v1/docs", &[], None);
    assert!(String::from_utf8(page.bytes).unwrap().contains("/api/v1/nodes"));
    let login = json!({ "username": "admin", "password": walk.master.password() });
    let token = text(&walk.data("POST /api/v1/auth/login", &[], Some(login))["token"]);
    let by_token = walk.master.anonymous().with_token(&token);
    assert_eq!(by_token.get("/api/v1/auth/me").data()["name"], "admin");
    let renewed = text(&walk.data("POST /api/v1/auth/refresh", &[], Some(json!({})))["token"]);
    walk.callers[1].1 = walk.master.anonymous().with_token(&renewed);
    assert_eq!(walk.data("GET /api/v1/auth/me", &[], None)["role"], "viewer");
    let new = json!({ "old_password": "correct horse battery", "new_password": "staple battery horse" });
    assert_eq!(walk.data("PUT /api/v1/users/me/password", &[], Some(new))["name"], "a-viewer");
}

fn walk_people(walk: &mut Walk) {
    let bob = json!({ "username": "bob", "role": "viewer", "password": "correct horse battery" });
    assert_eq!(walk.data("POST /api/v1/users", &[], Some(bob))["username"], "bob");
    let users = walk.data("GET /api/v1/users", &[], None);
    assert_eq!(ids(&users, "username"), ["a-viewer", "admin", "an-operator", "bob"]);
    assert_eq!(walk.data("GET /api/v1/users/{username}", &["bob"], None)["role"], "viewer");
    let promoted = walk.data("PUT /api/v1/users/{username}", &["bob"], Some(json!({ "role": "operator" })));
    assert_eq!(promoted["role"], "operator");
    assert_eq!(walk.data("DELETE /api/v1/users/{username}", &["bob"], None)["removed"], "bob");

    let key = json!({ "name": "ci", "role": "viewer", "expires_in_s": 60 });
    let made = walk.data("POST /api/v1/api-keys", &[], Some(key));
    let id = text(&made["api_key"]["id"]);
    assert_eq!(ids(&walk.data("GET /api/v1/api-keys", &[], None), "id"), [id.as_str()]);
    assert_eq!(walk.data("GET /api/v1/api-keys/{id}", &[&id], None)["name"], "ci");
    let client = walk.master.anonymous().with_token(made["key"].as_str().unwrap());
    assert_eq!(client.get("/api/v1/nodes").status, 200);
    assert_eq!(walk.data("DELETE /api/v1/api-keys/{id}", &[&id], None)["removed"], id);
    assert_eq!(client.get("/api/v1/nodes").status, 401);
}

fn walk_enrolment(walk: &mut Walk) -> (Agent, Session) {
    let token = walk.data("POST /api/v1/join-tokens", &[], Some(json!({ "uses": 2 })));
    let agent = Agent::new(&runtime(), "a").in_region("hk");
    agent.enrol(walk.master.grpc(), token["token"].as_str().unwrap()).unwrap();
    let tokens = walk.data("GET /api/v1/join-tokens", &[], None);
    assert_eq!((&tokens[0]["uses"], &tokens[0]["uses_max"]), (&json!(1), &json!(2)));
    let id = text(&tokens[0]["id"]);
    assert_eq!(walk.data("DELETE /api/v1/join-tokens/{id}", &[&id], None)["removed"], id);
    let session = agent.connect(walk.master.grpc(), Reply::Apply).unwrap();
    let host = HostMetrics { cpu_busy_ratio: 0.5, memory_bytes: 100, ..HostMetrics::default() };
    session.say(Said::Heartbeat(Heartbeat { sequence: 1, host: Some(host), ..Heartbeat::default() }));
    (agent, session)
}

fn walk_nodes(walk: &mut Walk) {
    let viewer = walk.callers[1].1.clone();
    eventually("the heartbeat is there", || {
        viewer.get("/api/v1/nodes/a/status").data()["host"].is_object().then_some(())
    });
    assert_eq!(ids(&walk.data("GET /api/v1/nodes", &[], None), "id"), ["a"]);
    assert_eq!(walk.data("GET /api/v1/nodes/{id}", &["a"], None)["region"], "hk");
    let changed = walk.data("PUT /api/v1/nodes/{id}", &["a"], Some(json!({ "description": "the first" })));
    assert_eq!(changed["description"], "the first");
    let status = walk.data("GET /api/v1/nodes/{id}/status", &["a"], None);
    assert_eq!((&status["connected"], &status["host"]["cpu_busy_ratio"]), (&json!(true), &json!(0.5)));
    let moved = walk.data("PUT /api/v1/nodes/{id}/place", &["a"], Some(json!({ "region": "sg" })));
    assert_eq!((&moved["region"], &moved["moved_from"]["region"]), (&json!("sg"), &json!("hk")));
    let back = walk.data("PUT /api/v1/nodes/{id}/place", &["a"], Some(json!({ "region": "hk" })));
    assert_eq!(back["region"], "hk");
    let tagged = walk.data("PUT /api/v1/nodes/{id}/tags/{tag}", &["a", "canary"], None);
    assert_eq!(tagged["tags"], json!(["canary"]));
    assert_eq!(walk.data("GET /api/v1/tags", &[], None), json!([{ "tag": "canary", "nodes": 1 }]));
    let untagged = walk.data("DELETE /api/v1/nodes/{id}/tags/{tag}", &["a", "canary"], None);
    assert_eq!(untagged["tags"], json!([]));
}

fn walk_configs(walk: &mut Walk, agent: &Agent) {
    for version in ["one", "two"] {
        let body = json!({ "version": version, "config_data": format!("# {version}\n{CONFIG}") });
        assert_eq!(walk.data("POST /api/v1/configs", &[], Some(body))["version"], version);
    }
    let valid = walk.data("POST /api/v1/configs/validate", &[], Some(json!({ "config_data": CONFIG })));
    assert_eq!(valid["valid"], true);
    assert_eq!(ids(&walk.data("GET /api/v1/configs", &[], None), "version"), ["two", "one"]);
    for version in ["one", "two"] {
        let published = walk.data("POST /api/v1/configs/{version}/publish", &[version], Some(json!({})));
        assert_eq!(published["targets"][0]["node"], "a");
    }
    let back = walk.data("POST /api/v1/configs/{version}/rollback", &["one"], Some(json!({})));
    assert_eq!(back["publish"]["revision"], 3);
    eventually("the node serves it", || (agent.applied() == 3).then_some(()));
    let viewer = walk.callers[1].1.clone();
    eventually("the master knows", || {
        (viewer.get("/api/v1/configs/one").data()["convergence"]["applied"] == 1).then_some(())
    });
    assert!(
        text(&walk.data("GET /api/v1/configs/{version}", &["one"], None)["config_data"]).starts_with("# one")
    );
    let nodes = walk.data("GET /api/v1/configs/{version}/nodes", &["one"], None);
    assert_eq!((&nodes[0]["node"], &nodes[0]["state"]), (&json!("a"), &json!("applied")));
    let diff = walk.data("GET /api/v1/configs/{a}/diff/{b}", &["one", "two"], None);
    assert!(text(&diff["diff"]).contains("+# two"), "{diff}");
    let history = walk.data("GET /api/v1/configs/history", &[], None);
    assert_eq!(ids(&history, "kind"), ["rollback", "publish", "publish"]);
}

fn walk_commands(walk: &mut Walk) {
    let wish = json!({ "command": "status", "target_type": "all" });
    let task = text(&walk.data("POST /api/v1/commands", &[], Some(wish))["task_id"]);
    assert_eq!(ids(&walk.data("GET /api/v1/commands", &[], None), "task_id"), [task.as_str()]);
    let found = walk.data("GET /api/v1/commands/{task_id}", &[&task], None);
    assert_eq!(found["results"][0]["node"], "a");
    let cancelled = walk.data("POST /api/v1/commands/{task_id}/cancel", &[&task], None);
    assert_eq!(cancelled["task_id"], json!(task));
    for command in ["restart", "reload", "drain", "undrain"] {
        let begun = walk.data(&format!("POST /api/v1/nodes/{{id}}/{command}"), &["a"], None);
        assert_eq!(begun["command"], command);
    }
}

fn walk_metrics(walk: &mut Walk, session: &Session) {
    let route = Label { name: "route".to_owned(), value: "chat".to_owned() };
    for requests in [0.0, 42.0] {
        let series = Series { labels: vec![route.clone()], value: Some(Measured::Number(requests)) };
        let family = MetricFamily {
            name: "millrace_requests_total".to_owned(),
            kind: MetricKind::Counter.into(),
            series: vec![series],
            ..MetricFamily::default()
        };
        session.say(Said::Metrics(Metrics {
            dataplane_started_at_unix_ms: 1,
            families: vec![family],
            ..Metrics::default()
        }));
    }
    let viewer = walk.callers[1].1.clone();
    let counted = "millrace_requests_total{node=\"a\",region=\"hk\",role=\"edge\",route=\"chat\"} 42";
    eventually("the report is there", || {
        String::from_utf8(viewer.get("/metrics").bytes).unwrap().contains(counted).then_some(())
    });
    let node = walk.data("GET /api/v1/metrics/nodes/{id}", &["a"], None);
    assert_eq!(node["now"]["cpu_percent"], 50.0, "{node}");
    assert!(!node["history"].as_array().unwrap().is_empty(), "{node}");
    let fleet = walk.data("GET /api/v1/metrics/aggregate", &[], None);
    assert_eq!((&fleet["nodes"], &fleet["regions"][0]["region"]), (&json!(1), &json!("hk")));
    let scrape = String::from_utf8(walk.step("GET /metrics", &[], None).bytes).unwrap();
    assert!(scrape.contains(counted), "{scrape}");
}

fn walk_alerts(walk: &mut Walk) {
    let rule = json!({ "id": "warm", "metric": "cpu_percent", "comparison": ">", "threshold": 1, "severity": "info" });
    assert_eq!(walk.data("POST /api/v1/alert-rules", &[], Some(rule.clone()))["id"], "warm");
    assert_eq!(walk.data("GET /api/v1/alert-rules", &[], None).as_array().unwrap().len(), 10);
    assert_eq!(walk.data("GET /api/v1/alert-rules/{id}", &["warm"], None)["origin"], "custom");
    let mut changed = rule;
    changed["severity"] = json!("warning");
    assert_eq!(
        walk.data("PUT /api/v1/alert-rules/{id}", &["warm"], Some(changed))["rule"]["severity"],
        "warning"
    );
    let viewer = walk.callers[1].1.clone();
    let id = eventually("it fires", || {
        let alerts = viewer.get("/api/v1/alerts?rule=warm&state=firing&severity=warning&node=a");
        alerts.data()[0]["id"].as_str().map(str::to_owned)
    });
    assert_eq!(walk.data("GET /api/v1/alerts", &[], None)[0]["rule"], "warm");
    assert_eq!(walk.data("GET /api/v1/alerts/{id}", &[&id], None)["value"], 50.0);
    let silence = json!({ "duration": "1h", "comment": "it is known" });
    let silenced = walk.data("POST /api/v1/alerts/{id}/silence", &[&id], Some(silence));
    assert_eq!(silenced["silence"]["by"], "an-operator");
    assert_eq!(walk.data("DELETE /api/v1/alerts/{id}/silence", &[&id], None)["silence"], Value::Null);
    assert_eq!(walk.data("DELETE /api/v1/alert-rules/{id}", &["warm"], None)["removed"], "warm");
}

fn walk_webhooks(walk: &mut Walk) {
    let hook = json!({ "url": "http://127.0.0.1:9/nobody-listens" });
    let id = text(&walk.data("POST /api/v1/webhooks", &[], Some(hook.clone()))["id"]);
    assert_eq!(ids(&walk.data("GET /api/v1/webhooks", &[], None), "id"), [id.as_str()]);
    assert_eq!(walk.data("GET /api/v1/webhooks/{id}", &[&id], None)["url"], hook["url"]);
    let off = json!({ "url": hook["url"], "enabled": false });
    assert_eq!(walk.data("PUT /api/v1/webhooks/{id}", &[&id], Some(off))["enabled"], false);
    walk.data("POST /api/v1/webhooks/{id}/test", &[&id], None);
    assert_eq!(walk.data("DELETE /api/v1/webhooks/{id}", &[&id], None)["removed"], id);
}

fn walk_the_end(walk: &mut Walk) {
    let copy = walk.step("GET /api/v1/backup", &[], None).bytes;
    assert_eq!(&copy[..4], b"redb");
    assert_eq!(walk.data("DELETE /api/v1/nodes/{id}", &["a"], None)["removed"], "a");
    let log = walk.data("GET /api/v1/audit", &[], None);
    assert_eq!(ids(&walk.data("GET /api/v1/barred-nodes", &[], None), "id"), ["a"]);
    assert_eq!(walk.data("DELETE /api/v1/barred-nodes/{id}", &["a"], None)["removed"], "a");
    let last = log.as_array().unwrap().iter().find(|entry| entry["outcome"] == "done").unwrap();
    assert_eq!((&last["action"], &last["actor"]), (&json!("nodes.delete"), &json!("an-operator")));
    let refused = log.as_array().unwrap().iter().filter(|entry| entry["outcome"] == "refused").count();
    assert!(refused > 10, "who was refused is not noted: {log}");
    assert_eq!(walk.data("POST /api/v1/auth/logout", &[], None)["removed"], "a-viewer");
    assert_eq!(walk.callers[1].1.get("/api/v1/auth/me").status, 401);
}
