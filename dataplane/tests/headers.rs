//! What a head is on the other side: what is dropped, kept, added, set; which limits it meets; and what the proxy's own
//! answers look like.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;

use serde_json::Value;
use story::capture::{Capture, Seen};
use story::config::Config;
use story::wire::{End, Head, Wire};
use story::{DRIVERS, Proxy, origin};

/// Sends a GET with these lines and gives what the origin saw.
fn seen_with(proxy: &Proxy, origin: &Capture, lines: &str) -> Seen {
    let mut client = proxy.connect();
    assert_eq!(client.get_with("/h?q", lines).response().0.status(), 200);
    origin.take().pop().unwrap()
}

/// A listener that the test answers itself, with one exchange under way: the client, and the origin's end of it.
fn exchange(config: impl FnOnce(Config) -> Config) -> (Proxy, Wire, Wire) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(&config(Config::to(listener.local_addr().unwrap())));
    let mut client = proxy.connect();
    client.get("/");
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    (proxy, client, upstream)
}

fn error_of(head: &Head, body: &[u8]) -> Value {
    assert_eq!(head.field("Content-Type"), Some("application/json"), "{}", head.raw);
    let body: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(body["error"].as_object().unwrap().len(), 4, "{body}");
    assert_eq!(body["error"]["request_id"].as_str(), head.field("X-Request-ID"), "{}", head.raw);
    assert!(!body["error"]["message"].as_str().unwrap().is_empty());
    body["error"].clone()
}

#[test]
fn hop_by_hop_fields_stay_behind() {
    let origin = Capture::start();
    let proxy = Proxy::start(&Config::to(origin.addr()));
    let seen = seen_with(
        &proxy,
        &origin,
        "Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nTE: trailers, gzip\r\n\
         Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nX-End: 2\r\nAuthorization: Bearer x\r\n",
    );
    for name in ["Keep-Alive", "X-Hop", "Proxy-Connection", "Proxy-Authorization"] {
        assert_eq!(seen.head.field(name), None, "{}", seen.head.raw);
    }
    // The proxy's own: it takes trailers (RFC 9110, section 10.1.4).
    assert_eq!((seen.head.field("TE"), seen.head.field("Connection")), (Some("trailers"), Some("TE")));
    assert_eq!(seen.head.field("X-End"), Some("2"));
    assert_eq!(seen.head.field("Authorization"), Some("Bearer x"));
    assert_eq!(seen.head.start, "GET /h?q HTTP/1.1");

    let (_proxy, mut client, mut upstream) = exchange(|config| config);
    upstream.send(
        "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
         Proxy-Authenticate: Basic\r\nX-End: 2\r\nContent-Length: 0\r\n\r\n",
    );
    let head = client.head();
    for name in ["Keep-Alive", "X-Hop", "Proxy-Authenticate"] {
        assert_eq!(head.field(name), None, "{}", head.raw);
    }
    assert_eq!((head.field("X-End"), head.field("Content-Length")), (Some("2"), Some("0")));
}

#[test]
fn the_origin_learns_who_asked_and_through_whom() {
    let origin = Capture::start();
    let proxy = Proxy::start(&Config::to(origin.addr()));
    let seen = seen_with(&proxy, &origin, "");
    assert_eq!(seen.head.field("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(seen.head.field("X-Forwarded-Proto"), Some("http"));
    assert_eq!(seen.head.field("X-Forwarded-Host"), Some("story"));
    assert_eq!(seen.head.field("Via"), Some("1.1 millrace"));

    // What a client claims is kept apart from what was seen here.
    let seen = seen_with(
        &proxy,
        &origin,
        "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nVia: 1.0 other\r\n",
    );
    assert_eq!(seen.head.all("X-Forwarded-For").join(", "), "1.2.3.4, 127.0.0.1");
    assert_eq!(seen.head.field("X-Forwarded-Proto"), Some("http"));
    assert_eq!(seen.head.field("X-Forwarded-Host"), Some("story"));
    assert_eq!(seen.head.all("Via").join(", "), "1.0 other, 1.1 millrace");

    // Nor can a client have a field dropped that the origin relies on.
    let seen = seen_with(&proxy, &origin, "Connection: X-Forwarded-For, Via, X-Request-ID\r\n");
    for name in ["X-Forwarded-For", "Via", "X-Request-ID"] {
        assert!(seen.head.field(name).is_some(), "{name}: {}", seen.head.raw);
    }
}

#[test]
fn every_request_has_one_id_on_both_sides() {
    let origin = Capture::start();
    let proxy = Proxy::start(&Config::to(origin.addr()));
    let mut client = proxy.connect();
    let mut ids = std::collections::HashSet::new();
    for _ in 0..20 {
        let (head, _) = client.get("/").response();
        let id = head.field("X-Request-ID").unwrap().to_owned();
        assert_eq!(origin.take()[0].head.field("X-Request-ID"), Some(id.as_str()));
        assert_eq!(id.len(), 32);
        assert!(ids.insert(id), "the same id twice");
    }
    let (head, _) = client.get_with("/", "X-Request-ID: mine-1\r\n").response();
    assert_eq!(head.field("X-Request-ID"), Some("mine-1"));
    assert_eq!(origin.take()[0].head.field("X-Request-ID"), Some("mine-1"));
}

#[test]
fn the_host_is_kept_unless_the_cluster_says_otherwise() {
    let origin = Capture::start();
    let addr = origin.addr().to_string();
    for (rule, expected) in [
        ("", "story"),
        ("keep", "story"),
        ("endpoint", addr.as_str()),
        ("llm.example:8443", "llm.example:8443"),
    ] {
        let rule = if rule.is_empty() { String::new() } else { format!("host_header = \"{rule}\"") };
        let proxy = Proxy::start(&Config::to(origin.addr()).cluster(&rule));
        assert_eq!(seen_with(&proxy, &origin, "").head.field("Host"), Some(expected), "{rule}");
    }
}

#[test]
fn rules_remove_set_and_add() {
    let origin = Capture::start();
    let proxy = Proxy::start(&Config::to(origin.addr()).route(
        "headers = { request = { remove = [\"X-Gone\"], set = { X-Edge = \"hk\" }, add = { X-More = [\"1\", \"2\"] } }, \
         response = { remove = [\"Content-Type\"], set = { Server = \"edge\" }, add = { X-Served = \"yes\" } } }",
    ));
    let seen =
        seen_with(&proxy, &origin, "x-gone: 1\r\nX-GONE: 2\r\nx-edge: theirs\r\nX-More: 0\r\nX-Stays: 1\r\n");
    assert_eq!(seen.head.field("X-Gone"), None);
    assert_eq!(seen.head.field("X-Edge"), Some("hk"));
    assert_eq!(seen.head.all("X-More"), ["0", "1", "2"]);
    assert_eq!(seen.head.field("X-Stays"), Some("1"));

    let (_proxy, mut client, mut upstream) = exchange(|config| {
        config.route(
            "headers = { response = { remove = [\"X-Inside\"], set = { Server = \"edge\" }, add = { X-Served = \"yes\" } } }",
        )
    });
    upstream.send(
        "HTTP/1.1 200 OK\r\nServer: uvicorn\r\nX-Inside: secret\r\nX-Served: first\r\nContent-Length: 0\r\n\r\n",
    );
    let head = client.head();
    assert_eq!((head.field("Server"), head.field("X-Inside")), (Some("edge"), None));
    assert_eq!(head.all("X-Served"), ["first", "yes"]);
}

#[test]
fn fields_pass_in_order_and_as_they_were_written() {
    let origin = Capture::start();
    let proxy = Proxy::start(&Config::to(origin.addr()));
    let seen =
        seen_with(&proxy, &origin, "aCCept: */*\r\nX-A: 1\r\nCookie: a=b; c=d\r\nX-A: 2\r\nX-Empty:\r\n");
    let names: Vec<&str> = seen.head.fields.iter().map(|(name, _)| name.as_str()).collect();
    let theirs: Vec<&str> =
        names.into_iter().filter(|name| ["aCCept", "X-A", "Cookie", "X-Empty"].contains(name)).collect();
    assert_eq!(theirs, ["aCCept", "X-A", "Cookie", "X-A", "X-Empty"]);
    assert_eq!(seen.head.all("X-A"), ["1", "2"]);
    assert_eq!(seen.head.field("Cookie"), Some("a=b; c=d"));
}

#[test]
fn heads_over_the_limits_are_refused() {
    let origin = Capture::start();
    let proxy = Proxy::start(
        &Config::to(origin.addr()).limits("request_head = \"4KiB\"\nrequest_header_fields = 20"),
    );
    let long = "x".repeat(5000);
    let many = "X-A: b\r\n".repeat(20);
    let cases = [
        (format!("GET /{long} HTTP/1.1\r\nHost: story\r\n\r\n"), 414, "uri_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: story\r\nX: {long}\r\n\r\n"), 431, "request_head_too_large"),
        (format!("GET / HTTP/1.1\r\nHost: story\r\n{many}\r\n"), 431, "request_head_too_large"),
    ];
    for (request, status, code) in cases {
        let mut client = proxy.connect();
        client.send(request);
        let (head, body) = client.response();
        assert_eq!(head.status(), status);
        assert_eq!(error_of(&head, &body)["code"], code);
        assert_eq!(client.end().1, End::Fin);
        assert_eq!(
            proxy.listener_faults(code),
            if code == "uri_too_long" { 1 } else { proxy.listener_faults(code) }
        );
    }
    assert_eq!(proxy.listener_faults("request_head_too_large"), 2);
    assert!(origin.take().is_empty());
    // Just within them.
    let fields = "X-A: b\r\n".repeat(19);
    assert_eq!(proxy.connect().get_with("/", &fields).response().0.status(), 200);
    assert_eq!(origin.take()[0].head.all("X-A").len(), 19);
}

#[test]
fn the_longest_heads_get_through_whole_both_ways() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config::to(listener.local_addr().unwrap()).driver(driver);
        let proxy = Proxy::start(&config.limits("request_head = \"64KiB\""));
        // Short of the limit by what the proxy adds, and over the size of every pooled buffer.
        let long: String = ('a'..='z').cycle().take(63 * 1024).collect();
        let mut client = proxy.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: story\r\nX-Long: {long}\r\n\r\n"));
        let mut upstream = Wire::accept(&listener);
        assert_eq!(upstream.head().field("X-Long"), Some(long.as_str()), "{driver}");
        upstream.send(format!("HTTP/1.1 200 OK\r\nX-Long: {long}\r\nContent-Length: 2\r\n\r\nok"));
        let (head, body) = client.response();
        assert_eq!((head.field("X-Long"), &body[..]), (Some(long.as_str()), &b"ok"[..]), "{driver}");
    }
}

#[test]
fn bodies_over_the_limit_are_refused() {
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).route("request_body = \"1KiB\""));
    let mut client = proxy.connect();
    assert_eq!(client.post("/upload", &"x".repeat(1024)).response().0.status(), 200);
    client.send("POST /upload HTTP/1.1\r\nHost: story\r\nContent-Length: 1025\r\n\r\n");
    let (head, body) = client.response();
    assert_eq!(head.status(), 413);
    assert_eq!(error_of(&head, &body)["code"], "body_too_large");
    assert_eq!(origin.stats().requests.total, 1, "one that says its length is not even begun");

    // One that does not say its length is cut when it is too long.
    let mut client = proxy.connect();
    client.send("POST /upload HTTP/1.1\r\nHost: story\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        if client.try_send(format!("200\r\n{}\r\n", "x".repeat(512))).is_err() {
            break;
        }
    }
    let (head, body) = client.response();
    assert_eq!(head.status(), 413);
    assert_eq!(error_of(&head, &body)["code"], "body_too_large");
    assert_eq!(origin.stats().requests.completed, 1);
}

#[test]
fn connections_over_the_limit_are_told_so() {
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).limits("connections = 3"));
    let mut clients: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").response().0.status(), 200);
    }
    for _ in 0..3 {
        let mut excess = proxy.connect();
        let (head, body) = excess.response();
        assert_eq!((head.status(), head.field("Retry-After")), (503, Some("1")));
        assert_eq!(error_of(&head, &body)["code"], "overloaded");
        assert_eq!(excess.end().1, End::Fin);
    }
    assert_eq!(proxy.metric("millrace_connections_refused_total", &[]), 3);
    // Those that are in are served, and a place that is given back is taken.
    for client in &mut clients {
        assert_eq!(client.get("/").response().0.status(), 200);
    }
    clients.pop();
    proxy.eventually("the place is free", |proxy| proxy.status()["connections"] == 2);
    assert_eq!(proxy.connect().get("/").response().0.status(), 200);
}

#[test]
fn requests_over_the_limit_are_told_when_to_come_back_on_the_same_connection() {
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).limits("requests = 2"));
    let mut streams: Vec<Wire> = (0..2).map(|_| proxy.connect()).collect();
    for stream in &mut streams {
        stream.get("/sse?stall_at=1");
        stream.head();
        stream.until("\n\n");
    }
    let mut excess = proxy.connect();
    let refused = |excess: &mut Wire| {
        let (head, body) = excess.response();
        assert_eq!((head.status(), head.field("Retry-After")), (503, Some("1")));
        assert_eq!(head.field("Connection"), None, "{}", head.raw);
        let error = error_of(&head, &body);
        assert_eq!((&error["code"], &error["type"]), (&"overloaded".into(), &"server_error".into()));
    };
    refused(excess.get("/"));
    // With a body that is there at once, in pieces, or in chunks; and requests behind each other.
    refused(excess.post("/", "{}"));
    // Nothing that could be taken for the beginning of a request.
    let late = "{".repeat(64 * 1024);
    let length = late.len() + 4;
    excess.send(format!("POST / HTTP/1.1\r\nHost: story\r\nContent-Length: {length}\r\n\r\nsome"));
    refused(&mut excess);
    excess.send(format!("{late}GET / HTTP/1.1\r\nHost: story\r\n\r\n")).post("/", "{}");
    excess.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n\r\n");
    excess.send("HEAD / HTTP/1.1\r\nHost: story\r\n\r\n");
    for _ in 0..3 {
        refused(&mut excess);
    }
    assert_eq!(excess.head().status(), 503);
    assert_eq!(proxy.listener_faults("overloaded"), 7);
    drop(streams);
    proxy.eventually("the streams are gone", |proxy| proxy.status()["streams"] == 0);
    // The same connection is as good as any, and nothing of what was refused has reached the origin.
    assert_eq!(excess.get("/").response().0.status(), 200);
    assert_eq!(origin.stats().requests.total, 3);
}

#[test]
fn a_refused_request_whose_end_is_far_or_unknown_ends_its_connection() {
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).route("path = \"/v1/\""));
    let post = "POST /nowhere HTTP/1.1\r\nHost: story\r\n";
    for rest in [
        format!("Content-Length: {}\r\n\r\n", 64 * 1024 + 1),
        "Content-Length: 4\r\nExpect: 100-continue\r\n\r\n".to_owned(),
        "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n".to_owned(),
        "Transfer-Encoding: chunked\r\n\r\nno chunk\r\n".to_owned(),
        "Content-Length: 4\r\nConnection: close\r\n\r\nsome".to_owned(),
    ] {
        let mut client = proxy.connect();
        client.send(format!("{post}{rest}"));
        let (head, _) = client.response();
        assert_eq!((head.status(), head.field("Connection")), (404, Some("close")), "{rest}");
        assert_eq!(client.end(), (Vec::new(), End::Fin), "{rest}");
    }
    // One whose rest does not come is waited for, but not for ever.
    let mut client = proxy.connect();
    client.send(format!("{post}Content-Length: 4\r\n\r\nso"));
    let (head, _) = client.response();
    assert_eq!((head.status(), head.field("Connection")), (404, None));
    assert_eq!(client.end(), (Vec::new(), End::Fin));
    proxy.assert_at_rest();
}

#[test]
fn a_request_without_a_route_is_a_404_and_the_connection_goes_on() {
    let origin = origin();
    let proxy = Proxy::start(&Config::to(origin.addr()).route("hosts = [\"api.example\"]\npath = \"/v1/\""));
    let mut client = proxy.connect();
    for (host, path, status) in [
        ("api.example", "/v1/models", 200),
        ("API.example:8080", "/v1/models", 200),
        ("other.example", "/v1/models", 404),
        ("api.example", "/v10/models", 404),
        ("api.example", "/v1/models", 200),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let (head, body) = client.response();
        assert_eq!(head.status(), status, "{host}{path}");
        if status == 404 {
            let error = error_of(&head, &body);
            assert_eq!(
                (&error["code"], &error["type"]),
                (&"no_route".into(), &"invalid_request_error".into())
            );
        }
    }
    // Requests behind it are answered as well, in order.
    let (nowhere, models) =
        ("/nowhere HTTP/1.1\r\nHost: x\r\n\r\n", "/v1/models HTTP/1.1\r\nHost: api.example\r\n\r\n");
    client.send(format!("HEAD {nowhere}GET {nowhere}GET {models}HEAD {nowhere}GET {models}"));
    assert_eq!(client.head().status(), 404);
    assert_eq!(client.response().0.status(), 404);
    assert_eq!(client.response().0.status(), 200);
    assert_eq!(client.head().status(), 404);
    assert_eq!(client.response().0.status(), 200, "the answer to HEAD has no body");
}
