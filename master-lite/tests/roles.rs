//! Who may what: every route of the API's own document, asked as everybody. The table below says what is right; a route
//! that is not in it, or that is in it and nowhere else, fails the test.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use story::agent::{Agent, runtime};
use story::client::{Answer, Client};
use story::{Master, documented};
use tonic::Code;

/// The least role of each route, `open` for those that need no login.
const ROUTES: &[(&str, &str)] = &[
    ("GET /health", "open"),
    ("GET /api/v1/openapi.json", "open"),
    ("GET /api/v1/docs", "open"),
    ("POST /api/v1/auth/login", "open"),
    ("POST /api/v1/auth/refresh", "viewer"),
    ("GET /api/v1/auth/me", "viewer"),
    ("PUT /api/v1/users/me/password", "viewer"),
    ("GET /api/v1/users", "admin"),
    ("POST /api/v1/users", "admin"),
    ("GET /api/v1/users/{username}", "admin"),
    ("PUT /api/v1/users/{username}", "admin"),
    ("DELETE /api/v1/users/{username}", "admin"),
    ("GET /api/v1/api-keys", "admin"),
    ("POST /api/v1/api-keys", "admin"),
    ("GET /api/v1/api-keys/{id}", "admin"),
    ("DELETE /api/v1/api-keys/{id}", "admin"),
    ("GET /api/v1/audit", "admin"),
    ("GET /api/v1/backup", "admin"),
    ("GET /api/v1/nodes", "viewer"),
    ("GET /api/v1/nodes/{id}", "viewer"),
    ("PUT /api/v1/nodes/{id}", "operator"),
    ("DELETE /api/v1/nodes/{id}", "operator"),
    ("GET /api/v1/nodes/{id}/status", "viewer"),
    ("PUT /api/v1/nodes/{id}/place", "operator"),
    ("GET /api/v1/barred-nodes", "viewer"),
    ("DELETE /api/v1/barred-nodes/{id}", "operator"),
    ("PUT /api/v1/nodes/{id}/tags/{tag}", "operator"),
    ("DELETE /api/v1/nodes/{id}/tags/{tag}", "operator"),
    ("GET /api/v1/tags", "viewer"),
    ("GET /api/v1/join-tokens", "operator"),
    ("POST /api/v1/join-tokens", "operator"),
    ("DELETE /api/v1/join-tokens/{id}", "operator"),
    ("GET /api/v1/configs", "viewer"),
    ("POST /api/v1/configs", "operator"),
    ("POST /api/v1/configs/validate", "viewer"),
    ("GET /api/v1/configs/history", "viewer"),
    ("GET /api/v1/configs/{version}", "viewer"),
    ("GET /api/v1/configs/{version}/nodes", "viewer"),
    ("GET /api/v1/configs/{a}/diff/{b}", "viewer"),
    ("POST /api/v1/configs/{version}/publish", "operator"),
    ("POST /api/v1/configs/{version}/rollback", "operator"),
    ("GET /metrics", "viewer"),
    ("GET /api/v1/metrics/nodes/{id}", "viewer"),
    ("GET /api/v1/metrics/aggregate", "viewer"),
    ("GET /api/v1/commands", "viewer"),
    ("POST /api/v1/commands", "operator"),
    ("GET /api/v1/commands/{task_id}", "viewer"),
    ("POST /api/v1/commands/{task_id}/cancel", "operator"),
    ("POST /api/v1/nodes/{id}/restart", "operator"),
    ("POST /api/v1/nodes/{id}/reload", "operator"),
    ("POST /api/v1/nodes/{id}/drain", "operator"),
    ("POST /api/v1/nodes/{id}/undrain", "operator"),
    ("GET /api/v1/alerts", "viewer"),
    ("GET /api/v1/alerts/{id}", "viewer"),
    ("POST /api/v1/alerts/{id}/silence", "operator"),
    ("DELETE /api/v1/alerts/{id}/silence", "operator"),
    ("GET /api/v1/alert-rules", "viewer"),
    ("POST /api/v1/alert-rules", "operator"),
    ("GET /api/v1/alert-rules/{id}", "viewer"),
    ("PUT /api/v1/alert-rules/{id}", "operator"),
    ("DELETE /api/v1/alert-rules/{id}", "operator"),
    ("GET /api/v1/webhooks", "operator"),
    ("POST /api/v1/webhooks", "admin"),
    ("GET /api/v1/webhooks/{id}", "operator"),
    ("PUT /api/v1/webhooks/{id}", "admin"),
    ("DELETE /api/v1/webhooks/{id}", "admin"),
    ("POST /api/v1/webhooks/{id}/test", "admin"),
    ("POST /api/v1/auth/logout", "viewer"),
];

/// What ends the token that it is asked with.
const SPENDING: [&str; 2] = ["POST /api/v1/auth/refresh", "POST /api/v1/auth/logout"];

/// From the least on.
const ROLES: [&str; 4] = ["open", "viewer", "operator", "admin"];

fn rank(role: &str) -> usize {
    ROLES.iter().position(|other| *other == role).unwrap_or_else(|| panic!("{role} is no role"))
}

/// Asks a route, with names that nothing has and a body that nothing takes: who may come in is told that, who may not is
/// told so before.
fn ask(client: &Client, route: &str) -> u16 {
    let (method, path) = route.split_once(' ').unwrap();
    let path = path.split('/').map(|part| if part.starts_with('{') { "nothing" } else { part });
    let path = path.collect::<Vec<_>>().join("/");
    let body = matches!(method, "POST" | "PUT").then(|| json!({ "nothing": 1 }).to_string());
    client.send(method, &path, body).status
}

#[test]
fn every_route_lets_in_whom_it_should_and_nobody_else() {
    let master = Master::start();
    let expected: BTreeMap<String, String> =
        ROUTES.iter().map(|&(route, role)| (route.to_owned(), role.to_owned())).collect();
    assert_eq!(documented(&master), expected, "a route has no row in this test, or the wrong one");
    for role in ["viewer", "operator"] {
        master.user(role, role);
    }
    let log_in = || {
        let [viewer, operator] =
            ["viewer", "operator"].map(|role| master.log_in(role, "correct horse battery"));
        [("open", master.anonymous()), ("viewer", viewer), ("operator", operator), ("admin", master.admin())]
    };
    let mut callers = log_in();
    for (route, wanted) in ROUTES {
        for (role, client) in &callers {
            let status = ask(client, route);
            let is_in = rank(role) >= rank(wanted);
            let expected = match (is_in, *role) {
                // A login without a good body; nobody's role is to blame.
                (true, _) => !matches!(status, 401 | 403) && status < 500,
                (false, "open") => status == 401,
                (false, _) => status == 403,
            };
            assert!(expected, "{route} as {role}: {status}");
        }
        if SPENDING.contains(route) {
            callers = log_in();
        }
    }
}

#[test]
fn a_key_reaches_as_far_as_its_role_and_its_scopes() {
    let master = Master::start();
    let admin = master.admin();
    let make = |role: &str, scopes: Value| {
        let body = json!({ "name": "ci", "role": role, "scopes": scopes, "expires_in_s": 60 });
        let made = admin.post("/api/v1/api-keys", &body);
        let key = made.data()["key"].as_str().unwrap().to_owned();
        (made.data()["api_key"]["id"].as_str().unwrap().to_owned(), master.anonymous().with_token(&key), key)
    };
    let (id, viewer, key) = make("viewer", json!([]));
    assert_eq!(viewer.get("/api/v1/nodes").status, 200);
    assert_eq!(viewer.get("/api/v1/users").status, 403);
    assert_eq!(master.anonymous().with_header("x-api-key", &key).get("/api/v1/nodes").status, 200);
    assert!(!admin.get("/api/v1/api-keys").json.to_string().contains(&key), "a list shows the key");
    let (_, scraper, _) = make("viewer", json!(["metrics:read"]));
    assert_eq!((scraper.get("/metrics").status, scraper.get("/api/v1/alerts").status), (200, 403));
    let (_, scoped, _) = make("operator", json!(["configs:read", "join-tokens:write"]));
    assert_eq!(scoped.get("/api/v1/configs").status, 200);
    assert_eq!(scoped.post("/api/v1/configs", &json!({})).status, 403);
    assert_eq!(scoped.get("/api/v1/nodes").status, 403);
    assert_eq!(scoped.post("/api/v1/join-tokens", &json!({})).status, 201);
    assert_eq!(scoped.get("/api/v1/auth/me").status, 403, "a scope that is not given");
    viewer.post("/api/v1/auth/refresh", &json!({})).assert_refused(403, "authorization");
    assert_eq!(admin.delete(&format!("/api/v1/api-keys/{id}")).status, 200);
    assert_eq!(viewer.get("/api/v1/nodes").status, 401);
    let forged = format!("{}x", &key[..key.len() - 1]);
    assert_eq!(master.anonymous().with_token(&forged).get("/api/v1/nodes").status, 401);
    let post = |body| admin.post("/api/v1/api-keys", &body);
    let bad = json!({ "name": "x", "role": "viewer", "scopes": ["nodes:delete"], "expires_in_s": 60 });
    post(bad).assert_refused(422, "scopes[0]");
    let slip =
        json!({ "name": "x", "role": "viewer", "scopes": ["*:read", "nodez:read"], "expires_in_s": 60 });
    let refused = post(slip);
    refused.assert_refused(422, "scopes[1]");
    let message = refused.json["message"].as_str().unwrap();
    assert!(message.contains("nodes:read, nodes:write") && !message.contains("health"), "{message}");
    post(json!({ "name": "x", "role": "viewer", "expires_in_s": 0 })).assert_refused(422, "expires_in_s");
    post(json!({ "name": "x", "role": "viewer" })).assert_refused(400, "expires_in_s");
}

#[test]
fn a_key_ends_with_its_person_and_shrinks_with_its_persons_role() {
    let master = Master::start();
    let (admin, ada) = (master.admin(), master.user("ada", "admin"));
    let key = |by: &Client, role: &str| {
        let made = by.post("/api/v1/api-keys", &json!({ "name": "ci", "role": role, "expires_in_s": 600 }));
        master.anonymous().with_token(made.data()["key"].as_str().unwrap())
    };
    let hers = key(&ada, "admin");
    // What is made with a key is its person's, too.
    let child = key(&hers, "operator");
    let others = key(&admin, "admin");
    let token = child.post("/api/v1/join-tokens", &json!({ "uses": 5 })).data()["token"].clone();
    let owned_by = |user: &str| -> Vec<Value> {
        let keys = admin.get("/api/v1/api-keys").data().as_array().unwrap().clone();
        keys.into_iter().filter(|key| key["owner"] == user).map(|key| key["role_now"].clone()).collect()
    };
    assert_eq!((owned_by("ada").len(), owned_by("admin")), (2, vec![json!("admin")]));
    assert_eq!((hers.get("/api/v1/users").status, child.get("/api/v1/users").status), (200, 403));

    admin.put("/api/v1/users/ada", &json!({ "role": "viewer" })).data();
    let shrunk = |client: &Client| {
        [client.get("/api/v1/users"), client.get("/api/v1/nodes")].map(|answer| answer.status)
    };
    assert_eq!((shrunk(&hers), shrunk(&child)), ([403, 200], [403, 200]));
    assert_eq!(child.post("/api/v1/join-tokens", &json!({})).status, 403);
    assert_eq!(owned_by("ada"), ["viewer", "viewer"]);
    // A join token of somebody who may make none any more lets nobody in; it does again when its maker may.
    let runtime = runtime();
    let agent = Agent::new(&runtime, "a");
    let refused = agent.enrol(master.grpc(), token.as_str().unwrap()).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    admin.put("/api/v1/users/ada", &json!({ "role": "operator" })).data();
    agent.enrol(master.grpc(), token.as_str().unwrap()).unwrap();

    let gone = admin.delete("/api/v1/users/ada");
    assert_eq!(gone.data()["api_keys"].as_array().unwrap().len(), 2, "{}", gone.json);
    assert_eq!(gone.data()["join_tokens"].as_array().unwrap().len(), 1, "{}", gone.json);
    // Somebody else of the same name has none of it.
    master.user("ada", "admin");
    let clients = [hers, child, others];
    let status = |clients: &[Client; 3]| clients.each_ref().map(|client| client.get("/api/v1/nodes").status);
    assert_eq!(status(&clients), [401, 401, 200]);
    let refused = Agent::new(&runtime, "b").enrol(master.grpc(), token.as_str().unwrap()).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let noted = admin.get("/api/v1/audit?action=users.delete");
    assert!(noted.data()[0]["detail"].as_str().unwrap().starts_with("with the API keys ["), "{}", noted.json);
}

#[test]
fn a_key_gives_no_more_than_it_has() {
    let master = Master::start();
    let make = |by: &Client, scopes: Value| {
        by.post(
            "/api/v1/api-keys",
            &json!({ "name": "ci", "role": "admin", "scopes": scopes, "expires_in_s": 60 }),
        )
    };
    let maker = make(&master.admin(), json!(["api-keys:write", "nodes:read"]));
    let maker = master.anonymous().with_token(maker.data()["key"].as_str().unwrap());
    for beyond in [json!([]), json!(["*:read"]), json!(["nodes:read", "users:write"])] {
        make(&maker, beyond).assert_refused(403, "scopes");
    }
    assert_eq!(make(&maker, json!(["nodes:read"])).status, 201);
}

#[test]
fn a_key_ends_when_it_says() {
    let master = Master::start();
    let body = json!({ "name": "ci", "role": "viewer", "expires_in_s": 1 });
    let made = master.admin().post("/api/v1/api-keys", &body);
    let client = master.anonymous().with_token(made.data()["key"].as_str().unwrap());
    assert_eq!(client.get("/api/v1/nodes").status, 200);
    story::eventually("the key ends", || (client.get("/api/v1/nodes").status == 401).then_some(()));
}

/// These fields of each entry of the audit log.
fn columns<'a, const N: usize>(log: &'a Answer, fields: [&str; N]) -> Vec<[&'a str; N]> {
    let entries = log.data().as_array().unwrap().iter();
    entries.map(|entry| fields.map(|field| entry[field].as_str().unwrap())).collect()
}

#[test]
fn the_audit_log_tells_what_was_done_and_what_was_refused() {
    let master = Master::start();
    let (admin, viewer) = (master.admin(), master.user("ada", "viewer"));
    viewer
        .with_header("x-request-id", "denied-1")
        .delete("/api/v1/users/admin")
        .assert_refused(403, "authorization");
    master.anonymous().delete("/api/v1/nodes/a").assert_refused(401, "authorization");
    admin.post("/api/v1/users", &json!({ "username": "x" })).assert_refused(400, "role");
    let log = admin.get("/api/v1/audit");
    let entries = columns(&log, ["actor", "action", "outcome", "actor_kind"]);
    let expected = [
        ["admin", "users.create", "refused", "user"],
        ["", "nodes.delete", "refused", "anonymous"],
        ["ada", "users.delete", "refused", "user"],
        ["admin", "users.create", "done", "user"],
        ["system", "users.create", "done", "system"],
    ];
    assert_eq!(entries, expected, "{}", log.json);
    let denied = admin.get("/api/v1/audit?actor=ada&outcome=refused");
    assert_eq!(denied.data()[0]["request_id"], "denied-1");
    assert_eq!(denied.data()[0]["address"], "127.0.0.1");
    assert!(!log.json.to_string().contains(master.password()));
    assert_eq!(admin.get("/api/v1/users").json["meta"]["total"], 2, "what was refused was done");
}

#[test]
fn who_looks_where_they_may_not_is_noted_too_but_not_without_end() {
    let master = Master::start();
    let (admin, viewer) = (master.admin(), master.user("ada", "viewer"));
    viewer.get("/api/v1/backup").assert_refused(403, "authorization");
    master
        .anonymous()
        .with_token("stolen.from.somebody")
        .get("/api/v1/users")
        .assert_refused(401, "authorization");
    master.anonymous().get("/api/v1/users").assert_refused(401, "authorization");
    let noted = admin.get("/api/v1/audit?outcome=refused");
    let entries = columns(&noted, ["actor", "action"]);
    assert_eq!(entries, [["", "users.list"], ["ada", "backup.read"]], "{}", noted.json);
    for _ in 0..40 {
        assert_eq!(viewer.get("/api/v1/audit").status, 403);
    }
    let noted = admin.get("/api/v1/audit?actor=ada&outcome=refused");
    assert_eq!(noted.json["meta"]["total"], 20, "the limit for looks");
}

#[test]
fn what_is_no_route_or_not_there_is_noted_with_who_tried() {
    let master = Master::start();
    let (admin, viewer) = (master.admin(), master.user("ada", "viewer"));
    viewer.post("/api/v1/nodes/a/halt", &json!({})).assert_refused(404, "path");
    viewer.delete("/api/v1/configs").assert_refused(405, "method");
    viewer.get("/api/v1/configs/%2e%2e%2fv1").assert_refused(422, "version");
    viewer.get("/api/v1/nodes?state=asleep").assert_refused(400, "state");
    master.anonymous().post("/api/v1/shell", &json!({})).assert_refused(404, "path");
    // What browsers and scanners look for without a login is no attempt at anything.
    master.anonymous().get("/favicon.ico").assert_refused(404, "path");
    let noted = admin.get("/api/v1/audit?outcome=refused");
    let entries = columns(&noted, ["actor", "action", "target"]);
    let expected = [
        ["", "unknown", "/api/v1/shell"],
        ["ada", "nodes.list", "/api/v1/nodes"],
        ["ada", "configs.read", "/api/v1/configs/%2e%2e%2fv1"],
        ["ada", "unknown", "/api/v1/configs"],
        ["ada", "unknown", "/api/v1/nodes/a/halt"],
    ];
    assert_eq!(entries, expected, "{}", noted.json);
    for _ in 0..40 {
        assert_eq!(viewer.post("/api/v1/nodes/a/halt", &json!({})).status, 404);
    }
    let noted = admin.get("/api/v1/audit?actor=ada&outcome=refused");
    assert_eq!(noted.json["meta"]["total"], 20, "the limit for what a program may repeat");
}

#[test]
fn a_flood_of_strangers_does_not_wash_the_audit_log_away() {
    let master = Master::start();
    for _ in 0..80 {
        assert_eq!(master.anonymous().delete("/api/v1/nodes/a").status, 401);
    }
    let noted = master.admin().get("/api/v1/audit?outcome=refused");
    assert_eq!(noted.json["meta"]["total"], 60, "the limit for strangers");
}
