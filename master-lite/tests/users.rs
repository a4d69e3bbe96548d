//! People: the first admin, logging in and failing to, changing users and what it does to their tokens.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use serde_json::json;
use story::Master;

const LOGIN: &str = "/api/v1/auth/login";
const PASSWORD: &str = "correct horse battery";

#[test]
fn the_first_start_makes_an_admin_once() {
    let mut master = Master::start();
    assert_eq!(master.admin().get("/api/v1/auth/me").data()["role"], "admin");
    master.restart_after_kill();
    assert!(!master.output().contains("password"), "{}", master.output());
    assert_eq!(master.admin().get("/api/v1/auth/me").data()["name"], "admin");
}

#[test]
fn answers_have_the_agreed_shapes() {
    let master = Master::start();
    let client = master.admin().with_header("x-request-id", "my-request");
    let client = client.with_header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let good = client.get("/api/v1/users?page_size=1");
    assert_eq!(good.json["code"], 200);
    assert_eq!(good.json["message"], "ok");
    assert_eq!(good.json["meta"], json!({ "page": 1, "page_size": 1, "total": 1 }));
    assert_eq!(good.json["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(good.header("x-request-id"), Some("my-request"));
    let bad = client.get("/api/v1/users/nobody");
    bad.assert_refused(404, "username");
    assert_eq!(bad.json["request_id"], "my-request");
    assert!(bad.json["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(bad.json["details"][0]["code"], "not_found");
    client.get("/nothing/here").assert_refused(404, "path");
    client.delete("/api/v1/users").assert_refused(405, "method");
}

#[test]
fn wrong_logins_say_nothing_and_have_to_wait() {
    let master = Master::start();
    let wrong = |name: &str| {
        master.anonymous().post(LOGIN, &json!({ "username": name, "password": "wrong wrong wrong" }))
    };
    let unknown = wrong("nobody");
    let known = wrong("admin");
    assert_eq!((known.status, &known.json["message"]), (401, &unknown.json["message"]));
    for _ in 0..4 {
        assert_eq!(wrong("admin").status, 401);
    }
    let refused =
        master.anonymous().post(LOGIN, &json!({ "username": "admin", "password": master.password() }));
    refused.assert_refused(429, "username");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(wrong("nobody").status, 401, "another name has to wait, too");
}

#[test]
fn a_changed_or_removed_user_has_to_log_in_again() {
    let master = Master::start();
    let admin = master.admin();
    let ada = master.user("ada", "operator");
    assert_eq!(ada.get("/api/v1/auth/me").data()["role"], "operator");
    let refreshed = ada.post("/api/v1/auth/refresh", &json!({}));
    let refreshed = master.anonymous().with_token(refreshed.data()["token"].as_str().unwrap());
    assert_eq!(refreshed.get("/api/v1/auth/me").status, 200);
    assert_eq!(admin.put("/api/v1/users/ada", &json!({ "role": "viewer" })).data()["role"], "viewer");
    assert_eq!(ada.get("/api/v1/auth/me").status, 401);
    assert_eq!(refreshed.get("/api/v1/auth/me").status, 401);
    let ada = master.log_in("ada", PASSWORD);
    assert_eq!(ada.get("/api/v1/auth/me").data()["role"], "viewer");
    assert_eq!(admin.delete("/api/v1/users/ada").status, 200);
    assert_eq!(ada.get("/api/v1/auth/me").status, 401);
    admin.delete("/api/v1/users/ada").assert_refused(404, "username");
}

#[test]
fn the_last_admin_stays() {
    let master = Master::start();
    let admin = master.admin();
    admin.delete("/api/v1/users/admin").assert_refused(409, "username");
    admin.put("/api/v1/users/admin", &json!({ "role": "viewer" })).assert_refused(409, "role");
    master.user("ada", "admin");
    assert_eq!(admin.delete("/api/v1/users/admin").status, 200);
}

#[test]
fn bad_users_are_refused_with_the_field() {
    let master = Master::start_with("[limits]\nusers = 2\n");
    let admin = master.admin();
    let post = |body| admin.post("/api/v1/users", &body);
    post(json!({ "username": "../etc", "role": "viewer", "password": PASSWORD }))
        .assert_refused(422, "username");
    post(json!({ "username": "ada", "role": "king", "password": PASSWORD })).assert_refused(400, "role");
    post(json!({ "username": "ada", "role": "viewer", "password": "short" })).assert_refused(422, "password");
    post(json!({ "username": "ada", "role": "viewer" })).assert_refused(400, "password");
    post(json!({ "username": "ada", "role": "viewer", "password": PASSWORD, "x": 1 }))
        .assert_refused(400, "x");
    post(json!({ "username": "admin", "role": "viewer", "password": PASSWORD }))
        .assert_refused(409, "username");
    let form = admin.with_header("content-type", "text/plain");
    form.post("/api/v1/users", &json!({})).assert_refused(415, "content-type");
    let long = json!({ "username": "ada", "role": "viewer", "password": "x".repeat(300_000) });
    post(long).assert_refused(413, "body");
    assert_eq!(admin.get("/api/v1/users").json["meta"]["total"], 1, "a refused user was made");
    admin.get("/api/v1/users?page=0").assert_refused(400, "page");
    admin.get("/api/v1/users?limit=9").assert_refused(400, "limit");
    admin.get("/api/v1/users/..%2f..%2fetc").assert_refused(422, "username");
    assert_eq!(post(json!({ "username": "ada", "role": "viewer", "password": PASSWORD })).status, 201);
    let third = json!({ "username": "bob", "role": "viewer", "password": PASSWORD });
    post(third).assert_refused(409, "username");
}
