//! People: the first admin, logging in and failing to, changing users and what it does to their tokens.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use serde_json::json;
use story::Master;
use story::client::Client;

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
    let refreshed = refresh(&master, &ada);
    assert_eq!(refreshed.get("/api/v1/auth/me").status, 200);
    assert_eq!(admin.put("/api/v1/users/ada", &json!({ "role": "viewer" })).data()["role"], "viewer");
    assert_eq!(refreshed.get("/api/v1/auth/me").status, 401);
    let ada = master.log_in("ada", PASSWORD);
    assert_eq!(ada.get("/api/v1/auth/me").data()["role"], "viewer");
    assert_eq!(admin.delete("/api/v1/users/ada").status, 200);
    assert_eq!(ada.get("/api/v1/auth/me").status, 401);
    admin.delete("/api/v1/users/ada").assert_refused(404, "username");
}

/// The client with the token that its own is exchanged for.
fn refresh(master: &Master, client: &Client) -> Client {
    let answer = client.post("/api/v1/auth/refresh", &json!({}));
    master.anonymous().with_token(answer.data()["token"].as_str().unwrap())
}

fn is_in(client: &Client) -> bool {
    match client.get("/api/v1/auth/me").status {
        200 => true,
        401 => false,
        other => panic!("{other}"),
    }
}

#[test]
fn a_token_that_was_exchanged_ends_its_login_when_it_comes_again() {
    let master = Master::start();
    let (admin, first) = (master.admin(), master.user("ada", "operator"));
    let elsewhere = master.log_in("ada", PASSWORD);
    let second = refresh(&master, &first);
    let third = refresh(&master, &second);
    assert!(is_in(&third));
    // The first is somebody's copy. Whoever has the newest may be the thief, too.
    assert!(!is_in(&first) && !is_in(&second) && !is_in(&third));
    assert!(is_in(&elsewhere), "another login of the same user is none of its family");
    third.post("/api/v1/auth/refresh", &json!({})).assert_refused(401, "authorization");
    let noted = admin.get("/api/v1/audit?action=auth.reuse");
    assert_eq!(noted.json["meta"]["total"], 1, "{}", noted.json);
    let entry = &noted.data()[0];
    assert_eq!(
        (&entry["actor"], &entry["outcome"], &entry["address"]),
        (&json!("ada"), &json!("refused"), &json!("127.0.0.1"))
    );
}

#[test]
fn of_two_that_exchange_one_token_at_once_neither_keeps_the_login() {
    let master = Master::start();
    let client = master.user("ada", "viewer");
    let both = std::thread::scope(|scope| {
        let exchange = || client.post("/api/v1/auth/refresh", &json!({}));
        [scope.spawn(exchange), scope.spawn(exchange)].map(|thread| thread.join().unwrap())
    });
    let mut statuses = both.each_ref().map(|answer| answer.status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401]);
    let new = both.iter().find_map(|answer| answer.json["data"]["token"].as_str()).unwrap();
    assert!(!is_in(&master.anonymous().with_token(new)));
}

#[test]
fn a_login_outlives_the_master_and_ends_when_it_is_left() {
    let mut master = Master::start();
    let (left, stays) = (master.user("ada", "viewer"), master.log_in("ada", PASSWORD));
    assert_eq!(left.post("/api/v1/auth/logout", &json!({})).status, 200);
    assert!(!is_in(&left) && is_in(&stays));
    left.post("/api/v1/auth/logout", &json!({})).assert_refused(401, "authorization");
    let noted = master.admin().get("/api/v1/audit?action=auth.logout&outcome=done");
    assert_eq!((&noted.json["meta"]["total"], &noted.data()[0]["actor"]), (&json!(1), &json!("ada")));
    let old = refresh(&master, &stays);
    master.restart_after_kill();
    let moved = |client: &Client| client.at(master.rest());
    assert!(is_in(&moved(&old)) && !is_in(&moved(&left)));
    assert!(!is_in(&moved(&stays)), "what was exchanged before the crash is good again after it");
}

#[test]
fn everybody_changes_their_own_password_by_the_old_one() {
    let master = Master::start();
    let (here, elsewhere) = (master.user("ada", "viewer"), master.log_in("ada", PASSWORD));
    let change = |client: &Client, old: &str, new: &str| {
        let body = json!({ "old_password": old, "new_password": new });
        client.put("/api/v1/users/me/password", &body)
    };
    let new = "staple battery horse";
    change(&here, "wrong wrong wrong", new).assert_refused(403, "old_password");
    change(&here, PASSWORD, "short").assert_refused(422, "new_password");
    assert_eq!(change(&here, PASSWORD, new).data()["name"], "ada");
    assert!(is_in(&here) && !is_in(&elsewhere));
    master.log_in("ada", new);
    let old = master.anonymous().post(LOGIN, &json!({ "username": "ada", "password": PASSWORD }));
    old.assert_refused(401, "password");
    let noted = master.admin().get("/api/v1/audit?action=users.change_password&actor=ada");
    assert_eq!(noted.json["meta"]["total"], 3, "{}", noted.json);
    // A key has no password, whoever it belongs to.
    let key = json!({ "name": "ci", "role": "admin", "expires_in_s": 60 });
    let key = master.admin().post("/api/v1/api-keys", &key);
    let key = master.anonymous().with_token(key.data()["key"].as_str().unwrap());
    change(&key, master.password(), new).assert_refused(403, "authorization");
    key.post("/api/v1/auth/logout", &json!({})).assert_refused(403, "authorization");
    // Nobody guesses the old password with a stolen token.
    for _ in 0..4 {
        change(&here, "wrong wrong wrong", new).assert_refused(403, "old_password");
    }
    change(&here, new, "another battery staple").assert_refused(429, "username");
}

#[test]
fn a_name_is_taken_whatever_its_case() {
    let master = Master::start();
    let admin = master.admin();
    let create = |name: &str| {
        admin.post("/api/v1/users", &json!({ "username": name, "role": "viewer", "password": PASSWORD }))
    };
    create("Admin").assert_refused(409, "username");
    assert_eq!(create("Ada").status, 201);
    create("ADA").assert_refused(409, "username");
    assert_eq!(admin.delete("/api/v1/users/Ada").status, 200);
    assert_eq!(create("ada").status, 201);
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
