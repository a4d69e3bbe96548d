//! Alerts: from what a node says to what somebody is told, silences, rules that people change, and what a restart keeps.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use proto::v1::agent_message::Kind as Said;
use proto::v1::series::Value as Measured;
use proto::v1::{Heartbeat, Histogram, HostMetrics, Leaving, MetricFamily, MetricKind, Metrics, Series};
use serde_json::{Value, json};
use sha2::Sha256;
use story::agent::{Agent, Answer, Session, runtime};
use story::authority::Authority;
use story::client::Client;
use story::receiver::{Message, Receiver};
use story::{Master, eventually};

const ALERTS: &str = "/api/v1/alerts";
const RULES: &str = "/api/v1/alert-rules";
const WEBHOOKS: &str = "/api/v1/webhooks";

/// Judges often, and may tell this host.
const QUICK: &str = "[alerts]\njudge_every = \"100ms\"\n[webhooks]\nallow = [\"127.0.0.0/8\", \"::1/128\"]\n";

/// An enrolled agent.
fn agent(master: &Master, node: &str) -> Agent {
    let agent = Agent::new(&runtime(), node).in_region("hk");
    agent.enrol(master.grpc(), &master.join_token(1)).unwrap();
    agent
}

fn leave(session: &Session) {
    session.say(Said::Leaving(Leaving::default()));
}

/// The alert of a rule, once it is so.
fn alert(client: &Client, rule: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        let alerts = client.get(&format!("{ALERTS}?rule={rule}"));
        alerts.data().as_array().unwrap().iter().find(|alert| is_so(alert)).cloned()
    })
}

fn messages(receiver: &Receiver, count: usize) -> Vec<Message> {
    eventually("the messages are there", || Some(receiver.received()).filter(|all| all.len() >= count))
}

fn webhook(client: &Client, url: &str) -> (String, String) {
    let made = client.post(WEBHOOKS, &json!({ "url": url }));
    assert_eq!(made.status, 201, "{}", made.json);
    let text = |name: &str| made.data()[name].as_str().unwrap().to_owned();
    (text("id"), text("secret"))
}

/// As the receiver's library would verify it.
fn assert_signed(message: &Message, secret: &str) {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    let (id, at) = (message.header("webhook-id"), message.header("webhook-timestamp"));
    mac.update(format!("{id}.{at}.{}", message.body).as_bytes());
    let expected = STANDARD.encode(mac.finalize().into_bytes());
    assert_eq!(message.header("webhook-signature"), format!("v1,{expected}"));
}

#[test]
fn a_node_that_goes_is_told_and_told_again_when_it_comes_back() {
    let master = Master::start_with(QUICK);
    let (admin, receiver) = (master.admin(), Receiver::start(&[500, 302]));
    let (id, secret) = webhook(&admin, &receiver.url("127.0.0.1"));
    let agent = agent(&master, "a");
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    session.beat(1);
    leave(&session);
    let firing = alert(&admin, "node-offline", "it fires", |alert| alert["state"] == "firing");
    assert_eq!(
        (&firing["node"], &firing["region"], &firing["severity"]),
        (&json!("a"), &json!("hk"), &json!("critical"))
    );
    // The first two tries are refused, and a redirect is not followed: the same message comes a third time.
    let tries = messages(&receiver, 3);
    for message in &tries {
        assert_signed(message, &secret);
        assert_eq!(message.header("webhook-id"), tries[0].header("webhook-id"));
        assert!(message.head.starts_with("POST /hook?key=1 HTTP/1.1\r\n"), "{}", message.head);
    }
    let told = tries[0].json();
    assert_eq!((&told["type"], &told["data"]["rule"]), (&json!("alert.firing"), &json!("node-offline")));
    assert_eq!(told["data"]["id"], firing["id"]);
    let back = agent.connect(master.grpc(), Answer::Apply).unwrap();
    back.beat(1);
    let ended = alert(&admin, "node-offline", "it ends", |alert| alert["state"] == "resolved");
    assert_eq!((&ended["resolution"], &ended["id"]), (&json!("recovered"), &firing["id"]));
    let last = messages(&receiver, 4).remove(3).json();
    assert_eq!((&last["type"], &last["data"]["state"]), (&json!("alert.resolved"), &json!("resolved")));
    let standing = eventually("it is counted", || {
        let webhook = admin.get(&format!("{WEBHOOKS}/{id}"));
        Some(webhook.data().clone()).filter(|webhook| webhook["delivered"] == 2)
    });
    assert_eq!((&standing["waiting"], &standing["error"]), (&json!(0), &Value::Null));
    assert!(standing.get("secret").is_none(), "a secret is shown once");
}

#[test]
fn a_refused_config_is_an_alert() {
    let master = Master::start_with(QUICK);
    let admin = master.admin();
    let agent = agent(&master, "a");
    let _session = agent.connect(master.grpc(), Answer::Refuse).unwrap();
    publish(&admin);
    let firing = alert(&admin, "config-refused", "it fires", |alert| alert["state"] == "firing");
    assert_eq!(firing["node"], "a");
}

/// Publishes a config to everybody.
fn publish(admin: &Client) {
    let config = "[[clusters]]\nname = \"c\"\nendpoints = [{ address = \"127.0.0.1:8000\" }]\n\
        [[listeners]]\nname = \"http\"\nbind = \"127.0.0.1:8080\"\n\
        [[routes]]\nname = \"r\"\npath = \"/\"\ncluster = \"c\"\n";
    let body = json!({ "version": "v1", "description": "first", "config_data": config });
    let made = admin.post("/api/v1/configs", &body);
    assert_eq!(made.status, 201, "{}", made.json);
    let published = admin.post("/api/v1/configs/v1/publish", &json!({}));
    assert!((200..300).contains(&published.status), "{}", published.json);
}

#[test]
fn a_silenced_alert_tells_nobody_until_the_silence_ends() {
    let mut master = Master::start_with(QUICK);
    let admin = master.admin();
    let agent = agent(&master, "a");
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    leave(&session);
    let firing = alert(&admin, "node-offline", "it fires", |alert| alert["state"] == "firing");
    let path = format!("{ALERTS}/{}/silence", firing["id"].as_str().unwrap());
    for (status, field, body) in [
        (400, "comment", json!({ "duration": "1h" })),
        (422, "comment", json!({ "duration": "1h", "comment": " " })),
        (422, "duration", json!({ "duration": "31d", "comment": "x" })),
        (422, "duration", json!({ "duration": "0s", "comment": "x" })),
        (400, "duration", json!({ "duration": 5, "comment": "x" })),
        (400, "until", json!({ "duration": "1h", "comment": "x", "until": "never" })),
    ] {
        admin.post(&path, &body).assert_refused(status, field);
    }
    admin
        .post(&format!("{ALERTS}/none/silence"), &json!({ "duration": "1h", "comment": "x" }))
        .assert_refused(404, "id");
    let silenced = admin.post(&path, &json!({ "duration": "1h", "comment": "the rack is moved" }));
    assert_eq!(
        (&silenced.data()["silence"]["by"], &silenced.data()["state"]),
        (&json!("admin"), &json!("firing"))
    );
    // Told before it was silenced, if anybody had listened: a webhook that comes later hears of a new alert only.
    let back = agent.connect(master.grpc(), Answer::Apply).unwrap();
    back.beat(1);
    alert(&admin, "node-offline", "it ends", |alert| alert["state"] == "resolved");
    let receiver = Receiver::start(&[]);
    webhook(&admin, &receiver.url("localhost"));
    master.restart_after_kill();
    let admin = master.admin();
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    leave(&session);
    let again = alert(&admin, "node-offline", "it fires again", |alert| alert["state"] == "firing");
    assert_eq!(again["silence"]["comment"], "the rack is moved", "a restart forgot the silence");
    assert_eq!(receiver.received().len(), 0, "somebody was told of a silenced alert");
    assert_eq!(admin.delete(&path).data()["silence"], Value::Null);
    let told = messages(&receiver, 1).remove(0).json();
    assert_eq!((&told["type"], &told["data"]["node"]), (&json!("alert.firing"), &json!("a")));
    admin.delete(&path).assert_refused(404, "id");
}

#[test]
fn rules_can_be_made_changed_and_put_back() {
    let master = Master::start_with(QUICK);
    let admin = master.admin();
    let rules = admin.get(RULES);
    let built_in: Vec<&str> =
        rules.data().as_array().unwrap().iter().map(|rule| rule["id"].as_str().unwrap()).collect();
    assert_eq!(
        built_in,
        [
            "bgp-flapping",
            "certificate-expiring",
            "config-refused",
            "credential-copied",
            "cross-border-slow",
            "node-cpu-high",
            "node-offline",
            "store-failing",
            "websocket-reconnects"
        ]
    );
    let cpu = admin.get(&format!("{RULES}/node-cpu-high"));
    let expected = json!({ "metric": "cpu_percent", "comparison": ">", "threshold": 80.0, "for": "5m" });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&cpu.data()["rule"][name], value, "{}", cpu.json);
    }
    let hot = json!({
        "id": "hot", "metric": "cpu_percent", "comparison": ">=", "threshold": 90, "severity": "info",
        "match": { "regions": ["hk"] }, "labels": { "team": "edge" },
    });
    assert_eq!(admin.post(RULES, &hot).status, 201);
    admin.post(RULES, &hot).assert_refused(409, "id");
    let agent = agent(&master, "a");
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    let host = HostMetrics { cpu_busy_ratio: 0.95, memory_bytes: 1, ..HostMetrics::default() };
    session.say(Said::Heartbeat(Heartbeat { sequence: 1, host: Some(host), ..Heartbeat::default() }));
    let firing = alert(&admin, "hot", "it fires", |alert| alert["state"] == "firing");
    assert_eq!((&firing["labels"]["team"], &firing["severity"]), (&json!("edge"), &json!("info")));
    assert!((94.0..96.0).contains(&firing["value"].as_f64().unwrap()), "{firing}");
    let pending = alert(&admin, "node-cpu-high", "it waits", |alert| alert["state"] == "pending");
    assert_eq!((&pending["fired_at"], &pending["node"]), (&Value::Null, &json!("a")));
    assert_eq!(admin.get(&format!("{RULES}/hot")).data()["nodes_reporting"], 1);
    assert_eq!(admin.get(&format!("{RULES}/bgp-flapping")).data()["nodes_reporting"], 0, "nobody speaks BGP");
    assert_eq!(admin.delete(&format!("{RULES}/hot")).status, 200);
    let gone = alert(&admin, "hot", "it ends", |alert| alert["state"] == "resolved");
    assert_eq!(gone["resolution"], "withdrawn");
    change_a_built_in_rule(&admin);
}

fn change_a_built_in_rule(admin: &Client) {
    let path = format!("{RULES}/node-cpu-high");
    admin.delete(&path).assert_refused(409, "id");
    let as_it_is = admin.get(&path).data()["rule"].clone();
    assert_eq!(admin.put(&path, &as_it_is).status, 200, "what is shown can be sent back");
    let changed = json!({
        "metric": "cpu_percent", "comparison": ">", "threshold": 50, "for": "1m", "severity": "critical",
        "enabled": false,
    });
    let answer = admin.put(&path, &changed);
    assert_eq!(
        (&answer.data()["origin"], &answer.data()["rule"]["threshold"]),
        (&json!("changed"), &json!(50.0))
    );
    assert_eq!(admin.delete(&path).status, 200);
    assert_eq!(admin.get(&path).data()["rule"]["threshold"], 80.0);
}

#[test]
fn a_rule_without_data_is_not_shown_as_well() {
    let master = Master::start_with(QUICK);
    let admin = master.admin();
    let states = || -> BTreeMap<String, String> {
        let rules = admin.get(RULES);
        let text = |rule: &Value, name: &str| rule[name].as_str().unwrap().to_owned();
        rules.data().as_array().unwrap().iter().map(|rule| (text(rule, "id"), text(rule, "state"))).collect()
    };
    assert!(states().values().all(|state| state == "no_data"), "there is no node: {:?}", states());
    let agent = agent(&master, "a");
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    let host = HostMetrics { cpu_busy_ratio: 0.1, memory_bytes: 1, ..HostMetrics::default() };
    session.say(Said::Heartbeat(Heartbeat { sequence: 1, host: Some(host), ..Heartbeat::default() }));
    eventually("what is reported is judged", || (states()["node-cpu-high"] == "ok").then_some(()));
    assert_eq!((&*states()["node-offline"], &*states()["config-refused"]), ("ok", "ok"));
    // Nobody has WebSocket, BGP, certificates, or a tag for nodes behind a border.
    for rule in ["websocket-reconnects", "bgp-flapping", "certificate-expiring", "cross-border-slow"] {
        assert_eq!(states()[rule], "no_data", "{rule}");
        let shown = admin.get(&format!("{RULES}/{rule}"));
        assert_eq!(shown.data()["nodes_reporting"], 0, "{rule}");
        assert!(!shown.data()["source"].as_str().unwrap().is_empty(), "{rule}");
    }
    let mut off = admin.get(&format!("{RULES}/node-cpu-high")).data()["rule"].clone();
    off["enabled"] = json!(false);
    assert_eq!(admin.put(&format!("{RULES}/node-cpu-high"), &off).data()["state"], "disabled");
    leave(&session);
    eventually("who has left is judged", || (states()["node-offline"] == "firing").then_some(()));

    // A node that has such a figure is judged by it.
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    let route = |name: &str, count| family(name, MetricKind::Counter, Measured::Number(count));
    for (opened, came_back) in [(0.0, 0.0), (100.0, 6.0)] {
        session.say(Said::Metrics(Metrics {
            dataplane_started_at_unix_ms: 1,
            families: vec![
                route("millrace_websocket_connections_total", opened),
                route("millrace_websocket_reconnects_total", came_back),
            ],
            ..Metrics::default()
        }));
    }
    let pending = alert(&admin, "websocket-reconnects", "it is broken", |alert| alert["state"] == "pending");
    assert_eq!((&pending["value"], &*states()["websocket-reconnects"]), (&json!(6.0), "pending"));

    // An announced network that comes and goes.
    let flaps = |total| {
        session.say(Said::Metrics(Metrics {
            dataplane_started_at_unix_ms: 1,
            families: vec![route("millrace_bgp_flaps_total", total)],
            ..Metrics::default()
        }));
    };
    // Reports of one and the same millisecond have no rate.
    eventually("a calm one is judged", || {
        flaps(3.0);
        (states()["bgp-flapping"] == "ok").then_some(())
    });
    flaps(3_000.0);
    let firing = alert(&admin, "bgp-flapping", "it flaps", |alert| alert["state"] == "firing");
    assert!(firing["value"].as_f64().unwrap() > 10.0, "{firing}");
    assert_eq!((&firing["severity"], &firing["node"]), (&json!("critical"), &json!("a")));
}

#[test]
fn a_border_that_is_slow_to_cross_is_an_alert_on_the_nodes_that_cross_it() {
    let master = Master::start_with(QUICK);
    let admin = master.admin();
    let mut sessions = Vec::new();
    for (node, is_across) in [("far", true), ("near", false)] {
        let agent = agent(&master, node);
        if is_across {
            admin.send("PUT", &format!("/api/v1/nodes/{node}/tags/cross-border"), None).data();
        }
        let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
        for slow in [0, 100] {
            let counts = vec![0, slow, 0];
            let upstream = Measured::Histogram(Histogram { bounds: vec![0.5, 1.0], counts, sum: 1.0 });
            session.say(Said::Metrics(Metrics {
                dataplane_started_at_unix_ms: 1,
                families: vec![family("millrace_upstream_seconds", MetricKind::Histogram, upstream)],
                ..Metrics::default()
            }));
        }
        sessions.push((agent, session));
    }
    let pending = alert(&admin, "cross-border-slow", "it is broken", |alert| alert["state"] == "pending");
    assert_eq!((&pending["node"], &pending["value"]), (&json!("far"), &json!(975.0)));
    let all = admin.get(&format!("{ALERTS}?rule=cross-border-slow"));
    assert_eq!(all.json["meta"]["total"], 1, "a node without the tag is judged: {}", all.json);
}

fn family(name: &str, kind: MetricKind, value: Measured) -> MetricFamily {
    let series = vec![Series { labels: Vec::new(), value: Some(value) }];
    MetricFamily { name: name.to_owned(), kind: kind.into(), series, ..MetricFamily::default() }
}

#[test]
fn certificates_that_end_soon_are_alerts() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
    let own = authority.issue_for_only("127.0.0.1", 10 * DAY);
    let master = Master::start_over("", &authority.listener_as(files.path(), &own, ""), QUICK);
    let admin = master.admin();
    for (node, days) in [("soon", 5), ("later", 20), ("gone-by-then", 1)] {
        let certificate = authority.issue_for_only(node, days * DAY);
        let agent = Agent::new(&runtime(), node).over_tls(&authority.pem, Some(&certificate));
        agent.enrol(master.grpc(), "").unwrap();
        agent.connect(master.grpc(), Answer::Apply).unwrap();
    }
    let firing = |node: &str| {
        alert(&admin, "certificate-expiring", node, |alert| {
            alert["node"] == node && alert["state"] == "firing"
        })
    };
    for (node, days, role) in
        [("soon", 5.0, "edge"), ("gone-by-then", 1.0, "edge"), ("master:grpc", 10.0, "master")]
    {
        let alert = firing(node);
        let left = alert["value"].as_f64().unwrap();
        assert!((days - 0.1..=days).contains(&left) && alert["role"] == role, "{alert}");
    }
    let all = admin.get(&format!("{ALERTS}?rule=certificate-expiring"));
    assert_eq!(all.json["meta"]["total"], 3, "{}", all.json);
    let rule = admin.get(&format!("{RULES}/certificate-expiring"));
    assert_eq!(
        (&rule.data()["nodes"], &rule.data()["nodes_reporting"]),
        (&json!(4), &json!(4)),
        "{}",
        rule.json
    );
    let cpu = admin.get(&format!("{RULES}/node-cpu-high"));
    assert_eq!(cpu.data()["nodes"], 3, "the master is no node: {}", cpu.json);
    let scrape = String::from_utf8(admin.get("/metrics").bytes).unwrap();
    for name in [
        "millrace_master_certificate_not_after_seconds{listener=\"grpc\"}",
        "millrace_node_certificate_not_after_seconds{node=\"later\"",
    ] {
        assert!(scrape.contains(name), "{name}: {scrape}");
    }
}

#[test]
fn bad_rules_are_refused_with_the_field() {
    let master = Master::start();
    let admin = master.admin();
    let good =
        json!({ "id": "x", "metric": "cpu_percent", "comparison": ">", "threshold": 1, "severity": "info" });
    let with = |name: &str, value: Value| {
        let mut rule = good.clone();
        rule[name] = value;
        rule
    };
    for (status, field, rule) in [
        (400, "metric", with("metric", json!("rm"))),
        (400, "comparison", with("comparison", json!("=="))),
        (400, "threshold", with("threshold", json!("high"))),
        (422, "for", with("for", json!("25h"))),
        (400, "match.planet", with("match", json!({ "planet": [] }))),
        (422, "match.nodes[0]", with("match", json!({ "nodes": ["../x"] }))),
        (422, "labels.node", with("labels", json!({ "node": "x" }))),
        (422, "id", with("id", json!("a/b"))),
        (422, "id", with("id", Value::Null)),
        (409, "id", with("id", json!("node-offline"))),
    ] {
        admin.post(RULES, &rule).assert_refused(status, field);
    }
    admin.put(&format!("{RULES}/nothing"), &good).assert_refused(422, "id");
    admin.put(&format!("{RULES}/nothing"), &with("id", Value::Null)).assert_refused(404, "id");
    assert_eq!(admin.get(RULES).json["meta"]["total"], 9, "a refused rule was made");
    admin.get(&format!("{ALERTS}?state=loud")).assert_refused(400, "state");
}

#[test]
fn a_webhook_leads_nowhere_inside() {
    let master = Master::start_with("[alerts]\njudge_every = \"100ms\"\n");
    let (admin, receiver) = (master.admin(), Receiver::start(&[]));
    for url in [
        receiver.url("127.0.0.1"),
        receiver.url("[::1]"),
        receiver.url("[::ffff:127.0.0.1]"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "https://user:password@example.com/".to_owned(),
        "nonsense".to_owned(),
    ] {
        admin.post(WEBHOOKS, &json!({ "url": url })).assert_refused(422, "url");
    }
    // Names, and numbers that only a resolver reads, are looked at when they are connected to.
    for host in ["localhost", "2130706433", "0x7f.1"] {
        let (id, _) = webhook(&admin, &receiver.url(host));
        assert_eq!(admin.send("POST", &format!("{WEBHOOKS}/{id}/test"), None).status, 200);
        let standing = eventually("it is given up", || {
            let webhook = admin.get(&format!("{WEBHOOKS}/{id}")).data().clone();
            Some(webhook).filter(|webhook| webhook["failed"] == 1)
        });
        assert!(standing["error"].as_str().unwrap().contains("webhooks.allow"), "{host}: {standing}");
    }
    assert_eq!(receiver.received().len(), 0);
}

#[test]
fn webhooks_can_be_changed_tested_and_removed() {
    let master = Master::start_with(QUICK);
    let (admin, receiver) = (master.admin(), Receiver::start(&[]));
    let (id, secret) = webhook(&admin, &receiver.url("127.0.0.1"));
    let path = format!("{WEBHOOKS}/{id}");
    let body = json!({ "url": receiver.url("127.0.0.1"), "severity": "critical", "enabled": false });
    assert_eq!(admin.put(&path, &body).data()["severity"], "critical");
    assert_eq!(admin.send("POST", &format!("{path}/test"), None).status, 200);
    let message = messages(&receiver, 1).remove(0);
    assert_signed(&message, &secret);
    assert_eq!(message.json()["type"], "webhook.test");
    assert_eq!(admin.delete(&path).data()["removed"], id);
    admin.get(&path).assert_refused(404, "id");
    admin
        .post(WEBHOOKS, &json!({ "url": receiver.url("127.0.0.1"), "secret": "mine" }))
        .assert_refused(400, "secret");
    for _ in 0..50 {
        webhook(&admin, &receiver.url("127.0.0.1"));
    }
    admin.post(WEBHOOKS, &json!({ "url": receiver.url("127.0.0.1") })).assert_refused(409, "url");
}
