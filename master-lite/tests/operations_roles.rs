//! Every route of commands, metrics, alerts and webhooks, with every role: who is let through, and who is not.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use serde_json::{Value, json};
use story::Master;

/// Method, path, and the least role that is let through.
const ROUTES: [(&str, &str, &str); 31] = [
    ("GET", "/metrics", "viewer"),
    ("GET", "/api/v1/metrics/nodes/a", "viewer"),
    ("GET", "/api/v1/metrics/aggregate", "viewer"),
    ("GET", "/api/v1/commands", "viewer"),
    ("POST", "/api/v1/commands", "operator"),
    ("GET", "/api/v1/commands/a", "viewer"),
    ("POST", "/api/v1/commands/a/cancel", "operator"),
    ("POST", "/api/v1/nodes/a/restart", "operator"),
    ("POST", "/api/v1/nodes/a/reload", "operator"),
    ("POST", "/api/v1/nodes/a/drain", "operator"),
    ("POST", "/api/v1/nodes/a/undrain", "operator"),
    ("GET", "/api/v1/alerts", "viewer"),
    ("GET", "/api/v1/alerts/a", "viewer"),
    ("POST", "/api/v1/alerts/a/silence", "operator"),
    ("DELETE", "/api/v1/alerts/a/silence", "operator"),
    ("GET", "/api/v1/alert-rules", "viewer"),
    ("POST", "/api/v1/alert-rules", "operator"),
    ("GET", "/api/v1/alert-rules/a", "viewer"),
    ("PUT", "/api/v1/alert-rules/a", "operator"),
    ("DELETE", "/api/v1/alert-rules/a", "operator"),
    ("GET", "/api/v1/webhooks", "operator"),
    ("POST", "/api/v1/webhooks", "admin"),
    ("GET", "/api/v1/webhooks/a", "operator"),
    ("PUT", "/api/v1/webhooks/a", "admin"),
    ("DELETE", "/api/v1/webhooks/a", "admin"),
    ("POST", "/api/v1/webhooks/a/test", "admin"),
    ("HEAD", "/metrics", "viewer"),
    ("HEAD", "/api/v1/alerts", "viewer"),
    ("HEAD", "/api/v1/commands", "viewer"),
    ("HEAD", "/api/v1/webhooks", "operator"),
    ("HEAD", "/api/v1/metrics/aggregate", "viewer"),
];

/// The least first.
const ROLES: [&str; 3] = ["viewer", "operator", "admin"];

#[test]
fn each_role_comes_as_far_as_it_may() {
    let master = Master::start();
    let clients = ROLES.map(|role| master.user(&format!("some-{role}"), role));
    for (method, path, least) in ROUTES {
        let body = matches!(method, "POST" | "PUT").then(|| json!({}).to_string());
        let anonymous = master.anonymous().send(method, path, body.clone());
        assert_eq!(anonymous.status, 401, "{method} {path}");
        let needed = ROLES.iter().position(|role| *role == least).unwrap();
        for (rank, client) in clients.iter().enumerate() {
            let answer = client.send(method, path, body.clone());
            let is_let_through = answer.status != 403;
            assert_eq!(is_let_through, rank >= needed, "{method} {path} as {}: {}", ROLES[rank], answer.status);
            assert!(answer.status != 401 && answer.status < 500, "{method} {path}: {}", answer.status);
        }
    }
}

#[test]
fn no_route_is_left_out_here() {
    let master = Master::start();
    let document = master.anonymous().get("/api/v1/openapi.json").json;
    let ours = ["metrics", "commands", "alerts", "webhooks"];
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let tag = operation["tags"][0].as_str().unwrap_or_default();
            let shown = path.replace("{id}", "a").replace("{task_id}", "a");
            let is_listed = ROUTES.iter().any(|(listed, path, least)| {
                let role = Value::from(*least);
                listed.eq_ignore_ascii_case(method) && *path == shown && operation["security"][0]["token"][0] == role
            });
            assert!(!ours.contains(&tag) || is_listed, "{method} {path} is not listed with its role");
        }
    }
}
