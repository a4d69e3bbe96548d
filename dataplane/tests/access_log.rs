//! The access log has one line for each answered request, whatever became of it, and is kept over a rotation: what an
//! operator finds there is what clients were told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;
use story::config::Config;
use story::hole::Refusing;
use story::wire::Wire;
use story::{DRIVERS, Proxy, origin};

/// With the access log in the proxy's folder.
fn logged(mut config: Config) -> Config {
    config.log.push_str("access = \"{dir}/access.log\"\n");
    config
}

fn path(proxy: &Proxy) -> PathBuf {
    proxy.dir().join("access.log")
}

fn records_in(path: &PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last line may still be on its way.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole].lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The records, once there are so many.
#[track_caller]
fn records(proxy: &Proxy, count: usize) -> Vec<Value> {
    proxy.eventually("the records are written", |proxy| records_in(&path(proxy)).len() >= count);
    records_in(&path(proxy))
}

/// Something that a client sends and that is answered early.
struct Early {
    what: &'static str,
    sent: String,
    status: u16,
    end: &'static str,
    /// Method, path and host; a dash where they cannot be told, a star where that depends.
    seen: [&'static str; 3],
    /// A part of the reason.
    because: &'static str,
}

fn early_ends() -> Vec<Early> {
    let early = |what, sent: &str, status, end, seen, because| {
        let sent = sent.to_owned();
        Early { what, sent, status, end, seen, because }
    };
    let host = "Host: a.example\r\n";
    let long = "x".repeat(5000);
    let post = |more: &str| format!("POST /small?key=secret HTTP/1.1\r\n{host}{more}\r\n");
    let small = ["POST", "/small", "a.example"];
    vec![
        early(
            "no route",
            "GET /typo?key=secret HTTP/1.1\r\nHost: b.example:80\r\n\r\n",
            404,
            "no_route",
            ["GET", "/typo", "b.example:80"],
            "No route matches",
        ),
        early(
            "no host",
            "GET / HTTP/1.1\r\n\r\n",
            400,
            "malformed_request",
            ["GET", "/", "-"],
            "(missing_host)",
        ),
        early(
            "a space too many",
            &format!("GET /a b HTTP/1.1\r\n{host}\r\n"),
            400,
            "malformed_request",
            ["GET", "/a", "a.example"],
            "(malformed_request_line)",
        ),
        early(
            "a folded line",
            &format!("GET /f HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n"),
            400,
            "malformed_request",
            ["GET", "/f", "a.example"],
            "(obs_fold)",
        ),
        early(
            "two lengths",
            &post("Content-Length: 1\r\nContent-Length: 1\r\n"),
            400,
            "malformed_request",
            small,
            "(duplicate_length)",
        ),
        early(
            "no chunk",
            &format!("{}xyz\r\n", post("Transfer-Encoding: chunked\r\n")),
            400,
            "malformed_request",
            small,
            "(invalid_chunk_size)",
        ),
        early(
            "not HTTP",
            "\u{16}\u{3}\u{1}\u{2}\r\n\r\n",
            400,
            "malformed_request",
            ["-", "-", "-"],
            "not valid HTTP",
        ),
        early(
            "a large head",
            &format!("GET /big HTTP/1.1\r\n{host}X: {long}\r\n\r\n"),
            431,
            "request_head_too_large",
            ["GET", "/big", "a.example"],
            "(head_too_large)",
        ),
        early(
            "a long path",
            &format!("GET /{long} HTTP/1.1\r\n{host}\r\n"),
            414,
            "uri_too_long",
            ["GET", "/xxxx", "*"],
            "(target_too_long)",
        ),
        early(
            "another version",
            &format!("GET /v HTTP/1.9\r\n{host}\r\n"),
            505,
            "unsupported_version",
            ["GET", "/v", "a.example"],
            "(unsupported_version)",
        ),
        early(
            "a tunnel",
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
            501,
            "unsupported_method",
            ["CONNECT", "-", "a.example:443"],
            "(connect_refused)",
        ),
        early(
            "a coding",
            &post("Transfer-Encoding: gzip, chunked\r\n"),
            501,
            "unsupported_transfer_coding",
            small,
            "(unsupported_encoding)",
        ),
        early(
            "an expectation",
            &post("Expect: a miracle\r\nContent-Length: 1\r\n"),
            417,
            "expectation_failed",
            small,
            "(unsupported_expectation)",
        ),
        early(
            "a large body",
            &post("Expect: 100-continue\r\nContent-Length: 999\r\n"),
            413,
            "body_too_large",
            small,
            "larger than this route allows",
        ),
        early(
            "a large body in chunks",
            &format!("{}40\r\n{}\r\n", post("Transfer-Encoding: chunked\r\n"), "x".repeat(64)),
            413,
            "body_too_large",
            small,
            "larger than this route allows",
        ),
        early(
            "half a head",
            &format!("PUT /slow HTTP/1.1\r\n{host}X: y"),
            408,
            "request_head_timeout",
            ["PUT", "/slow", "a.example"],
            "did not arrive in time",
        ),
        early(
            "half a body",
            &post("Content-Length: 9\r\n"),
            408,
            "request_body_timeout",
            small,
            "did not arrive in time",
        ),
        early(
            "no endpoint takes it",
            &format!("GET /down HTTP/1.1\r\n{host}\r\n"),
            502,
            "connect_refused",
            ["GET", "/down", "a.example"],
            "refused the connection",
        ),
        early(
            "none is asked for a HEAD",
            "HEAD /typo HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n",
            404,
            "no_route",
            ["HEAD", "/typo", "b.example"],
            "No route matches",
        ),
    ]
}

fn text<'a>(record: &'a Value, name: &str) -> &'a str {
    record[name].as_str().unwrap_or("-")
}

#[test]
fn every_answered_request_has_its_line_with_the_id_that_its_client_got() {
    for driver in DRIVERS {
        let (origin, refusing) = (origin(), Refusing::new());
        let config = Config::to(origin.addr())
            .driver(driver)
            .limits(
                "request_head = \"4KiB\"\nrequest_head_timeout = \"200ms\"\nrequest_body_timeout = \"200ms\"",
            )
            .route("hosts = [\"a.example\"]\nrequest_body = \"60B\"")
            .more(&format!(
                "[[routes]]\nname = \"down\"\npath = \"/down\"\nhosts = [\"a.example\"]\ncluster = \"down\"\n\
                 [[clusters]]\nname = \"down\"\nendpoints = [{{ address = \"{}\" }}]",
                refusing.addr()
            ));
        let proxy = Proxy::start(&logged(config));
        let ends = early_ends();
        let ids: Vec<String> = ends
            .iter()
            .map(|early| {
                let mut client = proxy.connect();
                client.send(&early.sent);
                let head = client.head();
                assert_eq!(head.status(), early.status, "{driver}, {}", early.what);
                head.field("X-Request-ID").unwrap().to_owned()
            })
            .collect();
        // What comes behind a good request is a request of its own.
        let mut client = proxy.connect();
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\nrubbish\r\n\r\n");
        assert_eq!(client.response().0.status(), 200, "{driver}");
        let rubbish = client.head();
        let records = records(&proxy, ends.len() + 2);
        let of = |id: &str| {
            let found: Vec<&Value> = records.iter().filter(|record| record["request_id"] == id).collect();
            assert_eq!(found.len(), 1, "{driver}: {id} in {records:?}");
            found[0]
        };
        for (early, id) in ends.iter().zip(&ids) {
            let (record, what) = (of(id), early.what);
            assert_eq!(
                (&record["status"], text(record, "end")),
                (&early.status.into(), early.end),
                "{driver}, {what}"
            );
            let seen = ["method", "path", "host"].map(|name| text(record, name));
            let is_seen = seen.iter().zip(early.seen).all(|(seen, expected)| match expected {
                "/xxxx" => seen.starts_with("/xxxx"),
                // Whether that line was there by then is the network's business.
                "*" => true,
                expected => *seen == expected,
            });
            assert!(is_seen, "{driver}, {what}: {record}");
            assert!(text(record, "detail").contains(early.because), "{driver}, {what}: {record}");
            assert!(
                record["client"].is_string() && record["listener"] == "http",
                "{driver}, {what}: {record}"
            );
        }
        let slow = of(&ids[15]);
        assert!(slow["duration_ms"].as_f64().unwrap() >= 150.0, "{driver}: the wait for the head: {slow}");
        assert_eq!((text(of(&ids[13]), "route"), text(of(&ids[0]), "route")), ("all", "-"), "{driver}");
        assert_eq!(text(of(rubbish.field("X-Request-ID").unwrap()), "end"), "malformed_request", "{driver}");
        let complete = records.iter().find(|record| record["end"] == "complete").unwrap();
        assert!(complete["detail"].is_null() && complete["blame"].is_null(), "{driver}: {complete}");
        assert!(
            !records.iter().any(|record| record.to_string().contains("secret")),
            "a query may hold secrets"
        );
        // A line is a request, and a request is a line: whichever is looked at, none is missing.
        let lines = records.len() as u64;
        for name in ["millrace_node_requests_total", "millrace_listener_requests_total"] {
            assert_eq!(proxy.metric(name, &[]), lines, "{driver}: {name}");
        }
        for name in ["millrace_node_faults_total", "millrace_listener_faults_total"] {
            assert_eq!(proxy.metric(name, &[]), lines - 1, "{driver}: {name}");
        }
        // Found by its id in the process's log, too.
        let output = proxy.output();
        assert!(ids.iter().all(|id| output.contains(id)), "{driver}: {output}");
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_head_has_a_line_and_a_silent_one_has_none() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&logged(Config::to(origin.addr()).driver(driver)));
        drop(proxy.connect());
        let mut blank = proxy.connect();
        assert_eq!(blank.post("/upload", "{}").response().0.status(), 200, "{driver}");
        // The empty line that old clients send behind a body.
        blank.send("\r\n").half_close();
        blank.end();
        let mut leaving = proxy.connect();
        leaving.send("DELETE /half?key=secret HTTP/1.1\r\nHost: a.example\r\nX-Y").half_close();
        leaving.end();
        proxy.eventually("all are gone", |proxy| proxy.status()["connections"] == 0);
        let records = records(&proxy, 2);
        assert_eq!(records.len(), 2, "{driver}: {records:?}");
        let half = &records[1];
        let seen = ["method", "path", "host", "end"].map(|name| text(half, name));
        assert_eq!(seen, ["DELETE", "/half", "a.example", "client_gone"], "{driver}: {half}");
        assert_eq!(half["status"], 499, "{driver}: {half}");
        assert!(text(half, "detail").contains("in the middle of the request's head"), "{driver}: {half}");
    }
}

#[test]
fn a_full_node_says_in_the_log_which_limit_it_was() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).limits("connections = 2\nrequests = 1");
        let proxy = Proxy::start(&logged(config));
        let mut stream = proxy.connect();
        stream.get("/sse?stall_at=1");
        stream.head();
        let mut second = proxy.connect();
        let (head, body) = second.get("/much").response();
        let of_requests = head.field("X-Request-ID").unwrap().to_owned();
        assert!(!String::from_utf8(body).unwrap().contains("limits."), "{driver}: no client's business");
        let mut third = proxy.connect();
        let of_connections = third.head().field("X-Request-ID").unwrap().to_owned();
        let records = records(&proxy, 2);
        for (id, limit, path, route) in [
            (of_requests, "(limits.requests)", "/much", "all"),
            (of_connections, "(limits.connections)", "-", "-"),
        ] {
            let record = records.iter().find(|record| record["request_id"] == id.as_str()).unwrap();
            assert_eq!(
                (&record["status"], text(record, "end")),
                (&503.into(), "overloaded"),
                "{driver}: {record}"
            );
            assert_eq!((text(record, "path"), text(record, "route")), (path, route), "{driver}: {record}");
            assert!(text(record, "detail").ends_with(limit), "{driver}: {record}");
            assert!(record["client"].is_string(), "{driver}: {record}");
        }
        // A request that had come to its route is its route's: that is where somebody looks.
        assert_eq!((proxy.faults("overloaded"), proxy.listener_faults("overloaded")), (1, 2), "{driver}");
    }
}

#[test]
fn exchanges_that_the_end_of_the_process_cuts_have_their_lines() {
    for driver in DRIVERS {
        for signal in [Signal::INT, Signal::TERM] {
            let origin = origin();
            let config = Config::to(origin.addr()).driver(driver).limits("drain_timeout = \"100ms\"");
            let mut proxy = Proxy::start(&logged(config));
            let mut stream = proxy.connect();
            stream.get("/sse?stall_at=1");
            let id = stream.head().field("X-Request-ID").unwrap().to_owned();
            stream.until("\n\n");
            proxy.signal(signal);
            assert!(proxy.wait().success(), "{driver}, {signal:?}");
            let records = records_in(&path(&proxy));
            assert_eq!(records.len(), 1, "{driver}, {signal:?}: {records:?}");
            let record = &records[0];
            assert_eq!(
                (text(record, "request_id"), text(record, "end")),
                (id.as_str(), "drain_timeout"),
                "{driver}"
            );
            assert_eq!(
                (&record["status"], &record["bytes_out"]),
                (&200.into(), &120.into()),
                "{driver}: {record}"
            );
        }
    }
}

#[test]
fn the_reason_says_what_was_wrong_with_an_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(&logged(Config::to(listener.local_addr().unwrap())));
    let mut client = proxy.connect();
    client.get("/");
    let mut upstream = Wire::accept(&listener);
    upstream.head();
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(client.response().0.status(), 502);
    let records = records(&proxy, 1);
    assert_eq!(text(&records[0], "end"), "upstream_malformed");
    assert!(text(&records[0], "detail").ends_with("(duplicate_length)"), "{}", records[0]);
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file_and_loses_no_line() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&logged(Config::to(origin.addr()).driver(driver)));
        let mut client = proxy.connect();
        let mut count = 0;
        let mut ask = |times: usize| {
            for _ in 0..times {
                count += 1;
                assert_eq!(
                    client.get_with("/", &format!("X-Request-ID: n{count}\r\n")).response().0.status(),
                    200
                );
            }
        };
        let moved = |number: usize| proxy.dir().join(format!("access.log.{number}"));
        let total = || {
            (1..=2).map(|number| records_in(&moved(number)).len()).sum::<usize>()
                + records_in(&path(&proxy)).len()
        };
        ask(20);
        fs::rename(path(&proxy), moved(1)).unwrap();
        // Between the move and the signal lines go where the file went.
        ask(20);
        proxy.signal(Signal::HUP);
        proxy.eventually("the file is opened again", |proxy| path(proxy).is_file());
        ask(20);
        // As logrotate does it without a signal: the writer notices by itself.
        proxy.eventually("the new file is written to", |proxy| !records_in(&path(proxy)).is_empty());
        fs::rename(path(&proxy), moved(2)).unwrap();
        ask(20);
        proxy.eventually("the move is noticed", |proxy| path(proxy).is_file());
        ask(20);
        proxy.eventually("all are written", |_| total() >= 100);
        let mut ids: Vec<String> = [moved(1), moved(2), path(&proxy)]
            .iter()
            .flat_map(records_in)
            .map(|record| text(&record, "request_id").to_owned())
            .collect();
        let last = records_in(&path(&proxy));
        assert!(last.len() >= 20, "{driver}: what is asked after the move is in the new file");
        assert_eq!(text(last.last().unwrap(), "request_id"), "n100", "{driver}");
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), total()), (100, 100), "{driver}: none lost, none twice");
        assert_eq!(proxy.metric("millrace_access_log_dropped_total", &[]), 0, "{driver}");
    }
}

#[test]
fn records_that_a_full_disk_takes_are_counted_aloud() {
    let origin = origin();
    let mut config = Config::to(origin.addr());
    config.log.push_str("access = \"/dev/full\"\n");
    let proxy = Proxy::start(&config);
    for _ in 0..3 {
        assert_eq!(proxy.connect().get("/").response().0.status(), 200);
    }
    proxy.eventually("all are counted", |proxy| proxy.metric("millrace_access_log_dropped_total", &[]) == 3);
    let told = |proxy: &Proxy| {
        let output = proxy.output();
        let lines = output.lines().filter(|line| line.contains("access log records were lost"));
        lines.map(|line| line.rsplit("records=").next().unwrap().trim().parse::<u64>().unwrap()).sum::<u64>()
    };
    proxy.eventually("the log tells of each", |proxy| told(proxy) == 3);
    // Room again: the log that could not be written says what is missing in it.
    assert_eq!(proxy.put_config(&logged(Config::to(origin.addr()))).0, 200);
    let records = records(&proxy, 1);
    assert_eq!(records[0]["dropped"], 3, "{records:?}");
}

#[test]
fn a_log_of_failures_says_how_many_lines_it_left_out() {
    /// More than one worker logs in the seconds that this takes.
    const FAILURES: u64 = 200;
    let refusing = Refusing::new();
    let proxy = Proxy::start(&Config::to(refusing.addr()).workers(1));
    let mut client = proxy.connect();
    for _ in 0..FAILURES {
        assert_eq!(client.get("/").response().0.status(), 502);
    }
    let logged = |proxy: &Proxy| proxy.output().matches("exchange failed").count() as u64;
    let left_out = |proxy: &Proxy| {
        let output = proxy.output();
        let lines = output.lines().filter(|line| line.contains("lines about failed exchanges were left out"));
        lines.map(|line| line.rsplit("lines=").next().unwrap().trim().parse::<u64>().unwrap()).sum::<u64>()
    };
    proxy.eventually("each is logged or counted", |proxy| logged(proxy) + left_out(proxy) == FAILURES);
    assert!(left_out(&proxy) > 0, "this host is too slow for the limit to be reached: {}", logged(&proxy));
    assert_eq!(proxy.metric("millrace_worker_log_lines_left_out_total", &[]), left_out(&proxy));
}
