//! What a config means once it is accepted, and what its errors look like to programs. What is accepted at all is in
//! `config_samples.rs`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in its helpers")]

use std::net::SocketAddr;
use std::time::Duration;

use proto::config::{
    AccessLog, Account, Address, Admin, Bind, Cluster, ClusterProtocol, Config, ConfigErrors, Driver,
    Endpoint, HalfClose, HeaderEdits, HeaderMatch, HeaderRules, Health, HealthKind, HostHeader, HostPattern,
    Limits, Listener, ListenerProtocol, Log, LogLevel, Node, PathMatch, Policy, Pool, Retries, Role, Route,
    Runtime, SocketAccess, SocketOptions, TcpKeepalive, Timeouts,
};

const MINIMAL: &str = include_str!("config/accepted/minimal.toml");
const DEFAULTS: &str = include_str!("config/accepted/defaults.toml");
const EVERYTHING: &str = include_str!("config/accepted/everything.toml");

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let env = |name: &str| match name {
        "REGION" => Some("hk".to_owned()),
        "TOKEN" => Some("secret".to_owned()),
        _ => None,
    };
    Config::parse(text, &env, "test-host")
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn minimal_means_the_defaults() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config, parse(DEFAULTS).unwrap());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.routes[0].timeouts, Timeouts::default());
    assert_eq!(config.routes[0].timeouts.first_byte, secs(600), "what the SDKs wait");
    assert_eq!(config.routes[0].retries, Retries::default());
    assert_eq!(config.listeners[0].half_close, HalfClose::Auto);
    assert_eq!(config.clusters[0].pool, Pool::default());
    assert_eq!(config.listeners[0].socket, SocketOptions::listener());
    assert_eq!(config.clusters[0].socket, SocketOptions::cluster());
}

#[test]
fn unix_sockets_of_listeners_are_open_and_the_admin_socket_is_closed() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.listeners[0].socket.access, SocketAccess { mode: 0o666, owner: None, group: None });
    assert_eq!(config.admin.access, SocketAccess { mode: 0o600, owner: None, group: None });
}

#[test]
fn node_is_named_after_the_host_unless_named() {
    assert_eq!(parse(MINIMAL).unwrap().node.id, "test-host");
    assert_eq!(Config::parse(MINIMAL, &|_| None, "").unwrap().node.id, "localhost");
    assert_eq!(parse(EVERYTHING).unwrap().node.id, "hk-node-1");
}

#[test]
fn everything_arrives_where_it_belongs() {
    let config = parse(EVERYTHING).unwrap();
    assert_eq!(config.node, Node { id: "hk-node-1".into(), role: Role::Core, region: "hk".into() });
    assert_eq!(config.runtime, Runtime { workers: 4, driver: Driver::IoUring });
    let socket = Some("/run/millrace/dataplane.sock".into());
    let access = SocketAccess {
        mode: 0o660,
        owner: Some(Account::Id(1000)),
        group: Some(Account::Name("millrace".into())),
    };
    assert_eq!(config.admin, Admin { listen: Some(addr("127.0.0.1:9191")), socket, access });
    let access = AccessLog::File("/var/log/millrace/access.log".into());
    assert_eq!(config.log, Log { level: LogLevel::Debug, access });
    let limits = Limits {
        connections: 50_000,
        requests: Some(20_000),
        worker_memory_bytes: 256 << 20,
        request_head_bytes: 16 * 1024,
        request_header_fields: 100,
        request_head_timeout: secs(5),
        request_body_timeout: secs(30),
        keep_alive_timeout: secs(75),
        send_timeout: secs(45),
        drain_timeout: secs(600),
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.listeners, [full_listener()]);
    assert_eq!(config.routes[0], full_route());
    assert_eq!(config.routes[1].path, PathMatch::Exact("/health".into()));
    assert_eq!(config.clusters[0], full_cluster());
    assert_eq!(config.clusters[1].health.as_ref().unwrap().kind, HealthKind::Tcp);
    assert_eq!(config.clusters[1].host_header, HostHeader::Endpoint);
}

fn full_listener() -> Listener {
    Listener {
        name: "http".into(),
        binds: vec![
            Bind::Tcp(addr("0.0.0.0:8080")),
            Bind::Tcp(addr("[::]:8080")),
            Bind::Unix("/run/millrace/http.sock".into()),
        ],
        protocol: ListenerProtocol::Http,
        half_close: HalfClose::Serve,
        socket: SocketOptions {
            congestion: Some("bbr".into()),
            nodelay: false,
            notsent_lowat: Some(64 * 1024),
            keepalive: Some(TcpKeepalive { idle: secs(30), interval: secs(10), probes: 3 }),
            send_buffer: Some(1024 * 1024),
            receive_buffer: Some(262_144),
            fastopen: 128,
            defer_accept: Some(secs(10)),
            backlog: 1024,
            shared: true,
            freebind: true,
            access: SocketAccess {
                mode: 0o660,
                owner: Some(Account::Name("www-data".into())),
                group: Some(Account::Id(33)),
            },
        },
    }
}

fn full_route() -> Route {
    Route {
        name: "chat".into(),
        listeners: vec!["http".into()],
        hosts: vec![
            HostPattern::Exact("api.example.com".into()),
            HostPattern::Wildcard("example.com".into()),
            HostPattern::Exact("[::1]".into()),
            HostPattern::Exact("127.0.0.1".into()),
        ],
        path: PathMatch::Prefix("/v1/".into()),
        methods: vec!["GET".into(), "POST".into()],
        match_headers: vec![
            HeaderMatch { name: "x-tenant".into(), value: Some("a".into()) },
            HeaderMatch { name: "authorization".into(), value: None },
        ],
        cluster: "llm".into(),
        timeouts: Timeouts {
            connect: secs(1),
            first_byte: secs(30),
            idle: secs(60),
            total: Some(secs(3600)),
        },
        retries: Retries { attempts: 3, body_bytes_max: 128 * 1024, unsafe_methods: true },
        headers: HeaderRules {
            request: HeaderEdits {
                set: vec![pair("X-Edge", "hk"), pair("Authorization", "Bearer secret")],
                add: vec![pair("X-Hop", "one"), pair("X-Hop", "two"), pair("X-Price", "${x}")],
                remove: vec!["Cookie".into()],
            },
            response: HeaderEdits {
                set: vec![pair("Server", "millrace")],
                add: vec![pair("X-Served-By", "hk")],
                remove: vec!["X-Powered-By".into()],
            },
        },
        request_body_max: Some(10 * 1024 * 1024),
    }
}

fn full_cluster() -> Cluster {
    let endpoint = |address, weight| Endpoint { address, weight };
    Cluster {
        name: "llm".into(),
        policy: Policy::WeightedRoundRobin,
        protocol: ClusterProtocol::Http1,
        endpoints: vec![
            endpoint(Address::Ip(addr("127.0.0.1:8000")), 3),
            endpoint(Address::Ip(addr("[::1]:8000")), 1),
            endpoint(Address::Name { host: "llm.internal".into(), port: 8000 }, 2),
            endpoint(Address::Unix("/run/llm.sock".into()), 1),
        ],
        health: Some(Health {
            kind: HealthKind::Http {
                path: "/health?deep=1".into(),
                expected_status: 204,
                host: Some("llm.internal".into()),
            },
            interval: secs(10),
            timeout: secs(2),
            healthy_after: 1,
            unhealthy_after: 5,
        }),
        pool: Pool { idle_per_endpoint: 64, idle_timeout: secs(30) },
        socket: SocketOptions {
            congestion: Some("cubic".into()),
            keepalive: Some(TcpKeepalive::default()),
            send_buffer: Some(64 * 1024),
            receive_buffer: Some(64 * 1024),
            fastopen: 1,
            ..SocketOptions::cluster()
        },
        host_header: HostHeader::Fixed("llm.example.com:8443".into()),
        dns_refresh: secs(5),
    }
}

#[test]
fn route_without_listeners_serves_all_of_them() {
    let text = format!("{MINIMAL}\n[[listeners]]\nname = \"second\"\nbind = \"0.0.0.0:8081\"\n");
    assert_eq!(parse(&text).unwrap().routes[0].listeners, ["http", "second"]);
}

#[test]
fn short_health_interval_shortens_the_default_timeout() {
    let text = format!("{MINIMAL}health = {{ path = \"/\", interval = \"200ms\" }}\n");
    let health = parse(&text).unwrap().clusters[0].health.clone().unwrap();
    assert_eq!(health.timeout, Duration::from_millis(200));
}

#[test]
fn equal_texts_mean_equal_configs_and_others_do_not() {
    assert_eq!(parse(EVERYTHING).unwrap(), parse(&EVERYTHING.replace("1m15s", "75s")).unwrap());
    let changed = parse(&EVERYTHING.replace("idle_per_endpoint = 64", "idle_per_endpoint = 65")).unwrap();
    assert_ne!(parse(EVERYTHING).unwrap(), changed);
}

#[test]
fn process_environment_is_asked_for_names() {
    let named = |name: &str| MINIMAL.replace("127.0.0.1:8000", &format!("unix:/${{{name}}}"));
    assert!(Config::parse_with_process_env(&named("CARGO_PKG_NAME"), "h").is_ok());
    assert!(Config::parse_with_process_env(&named("MILLRACE_TEST_IS_NOT_SET"), "h").is_err());
}

#[test]
fn errors_are_json_as_the_admin_api_promises() {
    let errors = parse("[node]\n  regoin = \"hk\"\n").unwrap_err();
    let json = serde_json::to_value(&errors).unwrap();
    let expected = serde_json::json!({
        "path": "node.regoin", "line": 2, "column": 3,
        "message": "unknown key \"regoin\"", "help": "did you mean `region`?",
    });
    assert_eq!(json["errors"][1], expected);
    assert_eq!(json.as_object().unwrap().len(), 1);
}

#[test]
fn reports_at_most_fifty_errors_the_first_ones() {
    let keys: String =
        (0..80).map(|number| format!("[[clusters]]\nname = \"c{number}\"\nendpoints = []\n")).collect();
    let errors = parse(&format!("{keys}{MINIMAL}")).unwrap_err();
    assert_eq!(errors.as_slice().len(), 50);
    assert_eq!(errors.as_slice()[0].line, 1);
}

#[test]
fn does_not_show_the_value_of_a_secret() {
    let text = MINIMAL.replace(
        "cluster = \"llm\"",
        "cluster = \"llm\"\nheaders.request.set = { Authorization = \"Bearer ${TOKEN}\\n\" }",
    );
    let rendered = parse(&text).unwrap_err().render("edge.toml", &text, false);
    assert!(rendered.contains("edge.toml:8:"), "{rendered}");
    assert!(!rendered.contains("secret"), "{rendered}");
}

#[test]
fn sends_no_control_characters_of_the_source_to_a_terminal() {
    let text = "# \u{1b}[2J\u{9b}x\na = \u{1b}[31m\n";
    let rendered = parse(text).unwrap_err().render("edge.toml", text, false);
    assert!(!rendered.contains(['\u{1b}', '\u{9b}']), "{rendered:?}");
    let quoted = MINIMAL.replace("name = \"http\"", "name = \"\\u001B[2J\"");
    let rendered = parse(&quoted).unwrap_err().render("edge.toml", &quoted, false);
    assert!(!rendered.contains('\u{1b}'), "{rendered:?}");
}

#[test]
fn colours_are_the_only_difference_that_color_makes() {
    let text = "[node]\nregoin = 1\n";
    let errors = parse(text).unwrap_err();
    let plain = errors.render("edge.toml", text, false);
    let colored = errors.render("edge.toml", text, true);
    assert!(colored.contains("\u{1b}["));
    let stripped = colored.split('\u{1b}').map(|part| {
        part.split_once('m').map_or(part, |(code, rest)| if code.starts_with('[') { rest } else { part })
    });
    assert_eq!(stripped.collect::<String>(), plain);
}

#[test]
fn caret_stands_under_the_error_in_long_and_wide_lines() {
    for before in ["", "香港 ", &"x".repeat(500), &"香".repeat(500)] {
        let text = format!("node = {{ region = \"{before}\", idd = 1 }}\n");
        let errors = parse(&text).unwrap_err();
        let error = errors.as_slice().iter().find(|error| error.path == "node.idd").unwrap();
        let rendered = error.render("edge.toml", &text, false);
        let lines: Vec<&str> = rendered.lines().collect();
        let width = |text: &str| text.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum::<usize>();
        let shown = width(lines[2].split("idd").next().unwrap());
        assert_eq!(shown, lines[3].find("^^^").unwrap(), "{rendered}");
        assert!(width(lines[2]) < 400, "{rendered}");
    }
}

#[test]
fn warns_of_what_is_probably_not_meant() {
    assert_eq!(parse(MINIMAL).unwrap().warnings(), [""; 0]);
    let turns = format!("{MINIMAL}policy = \"round_robin\"\n");
    assert_eq!(parse(&turns).unwrap().warnings(), [""; 0]);
    let text = r#"
admin.listen = "0.0.0.0:9091"
admin.socket = "/run/millrace/admin.sock"
admin.socket_mode = "0666"
[[listeners]]
name = "served"
bind = "127.0.0.1:0"
[[listeners]]
name = "idle"
bind = "127.0.0.1:0"
[[routes]]
name = "short"
listeners = ["served"]
cluster = "weighted"
timeouts.total = "30s"
[[clusters]]
name = "weighted"
policy = "round_robin"
endpoints = [{ address = "a:1", weight = 2 }, { address = "b:1" }]
[[clusters]]
name = "by_name"
endpoints = [{ address = "a:80" }, { address = "api.example.com:443" }]
[[clusters]]
name = "by_address"
endpoints = [{ address = "[2001:db8::1]:8443" }]
"#;
    let warnings = parse(text).unwrap().warnings();
    let tls_ports = ["clear text to api.example.com:443", "clear text to [2001:db8::1]:8443"];
    let named = [
        "admin.listen",
        "has mode 0666",
        "\"idle\"",
        "\"weighted\"",
        tls_ports[0],
        tls_ports[1],
        "\"short\"",
    ];
    assert_eq!(warnings.len(), named.len(), "{warnings:?}");
    for (warning, name) in warnings.iter().zip(named) {
        assert!(warning.contains(name), "{warning}");
    }
}
