//! What an operator sees: the access log, the metrics by route, readiness, the log's level.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::time::{Duration, SystemTime};

use serde_json::Value;
use story::config::Config;
use story::hole::{Hole, Refusing};
use story::{DRIVERS, PATIENCE, Proxy, origin};

/// The access log's records, once there are so many.
fn records(proxy: &Proxy, count: usize) -> Vec<Value> {
    let path = proxy.dir().join("access.log");
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    proxy.eventually("the records are written", |_| lines().lines().count() >= count);
    lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_access_log_tells_how_a_stream_went() {
    for driver in DRIVERS {
        let origin = origin();
        let mut config = Config::to(origin.addr()).driver(driver).route("timeouts = { idle = \"1500ms\" }");
        config.log.push_str("access = \"{dir}/access.log\"\n");
        let proxy = Proxy::start(&config);
        let mut client = proxy.connect();
        let asked = SystemTime::now();
        // The head comes at once, the first token a second later, the others 100 ms after each other.
        client.get_with("/sse?ttft=1s&tokens=4&tokens_per_second=10&key=secret", "X-Request-ID: one\r\n");
        assert_eq!(client.response().0.status(), 200);
        records(&proxy, 1);
        let written = SystemTime::now();
        client.post("/sse?stall_at=2&tokens_per_second=0", "{}");
        let head = client.head();
        assert!(client.try_body(&head).is_err());
        let records = records(&proxy, 2);
        let whole = &records[0];
        let (peer, endpoint) = (client.local_addr().to_string(), origin.addr().to_string());
        let expected = [
            ("client", peer.as_str()),
            ("endpoint", endpoint.as_str()),
            ("request_id", "one"),
            ("listener", "http"),
            ("method", "GET"),
            ("host", "story"),
            ("path", "/sse"),
            ("route", "all"),
            ("cluster", "origin"),
            ("end", "complete"),
        ];
        for (name, value) in expected {
            assert_eq!(whole[name], value, "{driver}: {whole}");
        }
        assert_eq!(whole["status"], 200, "{driver}: {whole}");
        // Four, unless this host was so busy that some came together; never the end of the chunks, which is no piece.
        assert!((2..=4).contains(&whole["chunks"].as_u64().unwrap()), "{driver}: {whole}");
        assert_eq!(whole["bytes_out"], 480, "{driver}: {whole}");
        let ms = |record: &Value, name: &str| record[name].as_f64().unwrap();
        assert!(
            (900.0..10_000.0).contains(&ms(whole, "ttft_ms")),
            "{driver}: first byte is not first token: {whole}"
        );
        assert!((50.0..900.0).contains(&ms(whole, "largest_gap_ms")), "{driver}: {whole}");
        assert!(ms(whole, "duration_ms") > 1250.0, "{driver}: {whole}");
        assert!(ms(whole, "duration_ms") < 60_000.0 && whole["blame"].is_null(), "{driver}: {whole}");
        let time = humantime::parse_rfc3339(whole["time"].as_str().unwrap()).unwrap();
        let duration = Duration::from_secs_f64(ms(whole, "duration_ms") / 1000.0);
        // It is to the millisecond, which may have begun before.
        assert!(time + Duration::from_millis(1) >= asked && time + duration <= written, "{driver}: {whole}");
        let cut = &records[1];
        assert_eq!(
            (&cut["end"], &cut["blame"]),
            (&"idle_timeout".into(), &"upstream".into()),
            "{driver}: {cut}"
        );
        assert_eq!((&cut["method"], cut["request_id"].as_str().unwrap().len()), (&"POST".into(), 32));
        assert_eq!((&cut["status"], &cut["bytes_in"]), (&200.into(), &2.into()), "{driver}: {cut}");
        assert!(
            !records.iter().any(|record| record.to_string().contains("secret")),
            "a query may hold secrets"
        );
    }
}

#[test]
fn the_access_log_tells_who_ended_an_exchange_that_had_no_answer() {
    let (origin, refusing) = (origin(), Refusing::new());
    let mut config = Config::to(origin.addr()).more(&format!(
        "[[routes]]\nname = \"refused\"\npath = \"/refused\"\ncluster = \"refusing\"\n\
         [[clusters]]\nname = \"refusing\"\nendpoints = [{{ address = \"{}\" }}]",
        refusing.addr()
    ));
    config.log.push_str("access = \"{dir}/access.log\"\n");
    let proxy = Proxy::start(&config);
    assert_eq!(proxy.connect().get("/refused").response().0.status(), 502);
    let mut leaving = proxy.connect();
    leaving.get("/?stall_before=60s");
    origin.wait_for(PATIENCE, |stats| stats.requests.in_flight == 1).expect("it is on its way");
    drop(leaving);
    let records = records(&proxy, 2);
    for (record, end, blame, status) in
        [(&records[0], "connect_refused", "upstream", 502), (&records[1], "client_gone", "client", 499)]
    {
        assert_eq!((&record["end"], &record["blame"]), (&end.into(), &blame.into()), "{record}");
        assert_eq!((&record["status"], &record["bytes_out"]), (&status.into(), &0.into()), "{record}");
        assert!(record["ttft_ms"].is_null(), "{record}");
    }
    assert_eq!(records[0]["endpoint"], refusing.addr().to_string());
    for (route, class) in [("refused", "5xx"), ("all", "4xx")] {
        let labels = [format!("route=\"{route}\""), format!("status_class=\"{class}\"")];
        assert_eq!(
            proxy.metric("millrace_requests_total", &labels.each_ref().map(String::as_str)),
            1,
            "{class}"
        );
    }
}

#[test]
fn metrics_count_by_route_and_time_the_parts() {
    let (origin, hole) = (origin(), Hole::new());
    let proxy = Proxy::start(&Config::to(origin.addr()).more(&format!(
        "[[routes]]\nname = \"far\"\npath = \"/far\"\ncluster = \"far\"\ntimeouts = {{ connect = \"200ms\" }}\n\
         [[clusters]]\nname = \"far\"\npolicy = \"round_robin\"\n\
         endpoints = [{{ address = \"{}\" }}, {{ address = \"{}\" }}]",
        hole.addr(),
        origin.addr()
    )));
    let mut client = proxy.connect();
    for _ in 0..5 {
        // The first token comes well behind the head: the wait for it is no gap between two.
        client.get("/sse?stall_before=100ms&ttft=50ms&tokens=3&tokens_per_second=20");
        assert_eq!(client.response().0.status(), 200);
    }
    client.post("/status/404", "asked");
    let (head, not_found) = client.response();
    assert_eq!(head.status(), 404);
    proxy.eventually("all are counted", |proxy| {
        proxy.metric("millrace_requests_total", &["route=\"all\""]) == 6
    });
    assert_eq!(proxy.metric("millrace_requests_total", &["route=\"all\"", "2xx"]), 5);
    assert_eq!(proxy.metric("millrace_requests_total", &["route=\"all\"", "4xx"]), 1);
    for name in ["millrace_first_byte_seconds", "millrace_upstream_seconds", "millrace_proxy_seconds"] {
        assert_eq!(proxy.metric(&format!("{name}_count"), &["route=\"all\""]), 6, "{name}");
    }
    // Two of three tokens come after a gap, unless this host was so busy that some came together.
    let gaps = proxy.metric("millrace_chunk_gap_seconds_count", &["route=\"all\""]);
    assert!((5..=10).contains(&gaps), "{gaps} gaps");
    assert_eq!(proxy.metric("millrace_requests_in_flight", &[]), 0);
    for (name, label, counted) in [
        ("listener_requests_total", "listener=\"http\"", 6),
        ("request_body_bytes_total", "route=\"all\"", 5),
        ("listener_received_bytes_total", "listener=\"http\"", 5),
        ("response_body_bytes_total", "route=\"all\"", 5 * 360 + not_found.len() as u64),
        ("listener_sent_bytes_total", "listener=\"http\"", 5 * 360 + not_found.len() as u64),
        ("endpoint_requests_total", "cluster=\"origin\"", 6),
        ("connections_accepted_total", "listener=\"http\"", 1),
    ] {
        assert_eq!(proxy.metric(&format!("millrace_{name}"), &[label]), counted, "{name}");
    }
    client.get("/sse?stall_at=1");
    client.head();
    client.until("\n\n");
    for name in
        ["millrace_requests_in_flight", "millrace_connections", "millrace_endpoint_requests_in_flight"]
    {
        assert_eq!(proxy.metric(name, &[]), 1, "{name}");
    }
    // The origin took its time, the proxy did not: the two are told apart.
    let at_most_of = |route: &str, name: &str, seconds: &str| {
        let labels = [&format!("route=\"{route}\""), &format!("le=\"{seconds}\"")];
        proxy.metric(&format!("{name}_bucket"), &labels.map(String::as_str))
    };
    let at_most = |name: &str, seconds: &str| at_most_of("all", name, seconds);
    let text = proxy.text("/metrics");
    let bound = text.lines().find_map(|line| {
        let bound =
            line.strip_prefix("millrace_proxy_seconds_bucket")?.split("le=\"").nth(1)?.split('"').next()?;
        bound.parse::<f64>().ok().filter(|bound| (0.02..0.09).contains(bound)).map(|_| bound.to_owned())
    });
    let bound = bound.expect("a bucket between 20 and 90 ms");
    assert_eq!(at_most("millrace_upstream_seconds", &bound), 1, "only the 404 was fast at the origin");
    assert_eq!(at_most("millrace_proxy_seconds", &bound), 6, "the proxy added little");
    // Half of these first try an endpoint that does not take the connection: that is not the time of the one that answers.
    for _ in 0..2 {
        assert_eq!(proxy.connect().get("/far").response().0.status(), 404);
    }
    proxy.eventually("both are counted", |proxy| {
        proxy.metric("millrace_requests_total", &["route=\"far\""]) == 2
    });
    assert_eq!(at_most_of("far", "millrace_upstream_seconds", &bound), 2);
    assert!(at_most_of("far", "millrace_proxy_seconds", &bound) < 2);
}

#[test]
fn the_log_level_can_be_changed_while_it_runs() {
    let origin = origin();
    let proxy = Proxy::before(&origin);
    assert_eq!(proxy.admin("GET", "/log", "").1["level"], "debug");
    assert_eq!(proxy.admin("PUT", "/log", "{\"level\":\"warn\"}").0, 200);
    assert_eq!(proxy.admin("GET", "/log", "").1["level"], "warn");
    assert_eq!(proxy.admin("PUT", "/log", "{\"level\":\"loud\"}").0, 422);
    assert_eq!(proxy.connect().get("/\u{1}").response().0.status(), 400);
    proxy.eventually("it is counted", |proxy| proxy.listener_faults("malformed_request") == 1);
    assert_eq!(proxy.admin("PUT", "/log", "{\"level\":\"debug\"}").0, 200);
    assert_eq!(proxy.connect().get("/\u{1}").response().0.status(), 400);
    proxy.eventually("it is written", |proxy| proxy.output().contains("malformed_request"));
    // The output is in order: what is there behind the level, but not before it, was held back.
    assert_eq!(proxy.output().matches("malformed_request").count(), 1, "{}", proxy.output());
}

#[test]
fn a_drained_node_is_alive_and_not_ready() {
    let origin = origin();
    let proxy = Proxy::before(&origin);
    assert_eq!(proxy.admin("GET", "/readyz", "").0, 200);
    let mut stream = proxy.connect();
    stream.get("/sse?stall_at=1");
    stream.head();
    let (status, answer) = proxy.admin("POST", "/drain", "");
    assert_eq!((status, &answer["streams"]), (202, &1.into()));
    assert_eq!(proxy.admin("GET", "/readyz", "").0, 503);
    assert_eq!(proxy.admin("GET", "/healthz", "").0, 200);
    assert_eq!(proxy.status()["draining"], true);
    stream.until("\n\n");
}
