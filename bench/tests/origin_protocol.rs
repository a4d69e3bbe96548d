//! HTTP/1.1 itself: what the origin does with well-formed and malformed messages when no fault is asked
//! for.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod client;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use bench::origin::{Address, Origin, OriginOptions};
use client::{Client, End, PATIENCE, start};
use serde_json::json;

#[test]
fn hello_is_about_110_bytes() {
    let (_origin, mut client) = start();
    client.send("GET / HTTP/1.1\r\nHost: o\r\nConnection: close\r\n\r\n");
    let (bytes, _) = client.rest();
    let close = "Connection: close\r\n".len();
    assert_eq!(bytes.len() - close, 107);
    let mut client = Client::connect(_origin.addr());
    let response = client.get("/");
    assert_eq!((response.status, response.text().as_str()), (200, "hello\n"));
    let date = response.field("date").unwrap();
    assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
}

#[test]
fn a_connection_is_kept_and_pipelined_requests_are_answered_in_order() {
    let (origin, mut client) = start();
    let pipelined: String = (0..50)
        .map(|index| {
            let body = "b".repeat(index);
            format!("POST /echo/{index} HTTP/1.1\r\nHost: o\r\nContent-Length: {index}\r\n\r\n{body}")
        })
        .collect();
    client.send(pipelined);
    for index in 0..50 {
        let answer = client.response().json();
        assert_eq!(
            (&answer["path"], &answer["body_bytes"]),
            (&json!(format!("/echo/{index}")), &json!(index))
        );
    }
    assert_eq!(client.get("/").status, 200);
    let stats = origin.wait_for(PATIENCE, |stats| stats.requests.completed == 51).unwrap();
    assert_eq!((stats.connections.accepted, stats.requests.by_path["/echo"]), (1, 50));
}

#[test]
fn requests_pipelined_behind_a_stream_wait_for_its_end() {
    let (_origin, mut client) = start();
    client.send("GET /sse?tokens=5&tokens_per_second=100 HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n");
    assert_eq!(client.response().chunks.len(), 5);
    assert_eq!(client.response().json()["status"], "ok");
}

#[test]
fn a_request_that_comes_byte_by_byte_is_read() {
    let (_origin, mut client) = start();
    for byte in b"POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" {
        client.send([*byte]);
    }
    assert_eq!(client.response().json()["bytes"], 3);
}

#[test]
fn chunked_and_sized_uploads_are_counted_hashed_and_give_the_connection_back() {
    let (_origin, mut client) = start();
    // SHA-256 of 3,000,000 zero bytes.
    let sum = "35bce4eae54ec8e6cc2868baa8d157914d6ae2858811b4cc0c078c94460fa26f";
    client.send("POST /upload?sha256 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..300 {
        client.send(b"2710\r\n");
        client.send([0; 10_000]);
        client.send(b"\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().json(), json!({ "bytes": 3_000_000, "sha256": sum }));
    client.send("PUT /upload HTTP/1.1\r\nX-Mock-Sha256: 1\r\nContent-Length: 3000000\r\n\r\n");
    client.send(vec![0; 3_000_000]);
    assert_eq!(client.response().json()["sha256"], sum);
    assert_eq!(client.post("/upload", "abc").json(), json!({ "bytes": 3 }));
}

#[test]
fn echo_shows_what_came_trailers_included() {
    let (_origin, mut client) = start();
    client
        .send("PURGE http://h/echo/p?q=1 HTTP/1.1\r\nX-A: 1\r\nx-a: 2\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n");
    let answer = client.response().json();
    assert_eq!(answer["method"], "PURGE");
    assert_eq!(answer["target"], "http://h/echo/p?q=1");
    assert_eq!((&answer["path"], &answer["query"]), (&json!("/echo/p"), &json!("q=1")));
    assert_eq!(answer["headers"], json!([["X-A", "1"], ["x-a", "2"], ["Transfer-Encoding", "chunked"]]));
    assert_eq!((&answer["body"], &answer["body_bytes"]), (&json!("abc"), &json!(3)));
    assert_eq!(answer["trailers"], json!([["X-Sum", "9"]]));
}

#[test]
fn raw_echo_gives_each_piece_back_before_the_next_is_sent() {
    let (_origin, mut client) = start();
    client.send("POST /echo?raw HTTP/1.1\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.head().field("content-type"), Some("a/b"));
    for piece in ["one", "two", "three"] {
        client.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
        assert_eq!(client.chunk().unwrap(), piece.as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk(), None);
}

#[test]
fn continue_is_sent_before_the_body_and_only_then() {
    let (_origin, mut client) = start();
    client.send("POST /upload HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(client.response().status, 100);
    client.send("abc");
    assert_eq!(client.response().json()["bytes"], 3);
    // A body that is there already needs no invitation.
    client.send("POST /upload HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.response().json()["bytes"], 3);
    client.send("POST /echo?raw HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(client.response().status, 100);
    client.send("abc");
    assert_eq!(client.response().text(), "abc");
}

#[test]
fn head_has_the_fields_and_not_the_body() {
    let (_origin, mut client) = start();
    for (target, field, value) in [
        ("/", "content-length", "6"),
        ("/bytes/1MiB", "content-length", "1048576"),
        ("/sse", "transfer-encoding", "chunked"),
        ("/trailers", "transfer-encoding", "chunked"),
    ] {
        client.send(format!("HEAD {target} HTTP/1.1\r\n\r\n"));
        assert_eq!(client.head().field(field), Some(value), "{target}");
    }
    assert_eq!(client.get("/").text(), "hello\n");
}

#[test]
fn http_1_0_gets_no_chunks_no_interim_and_a_close() {
    let (origin, mut client) = start();
    client.send("GET /sse?tokens=3&tokens_per_second=0 HTTP/1.0\r\n\r\n");
    let response = client.response();
    assert_eq!((response.field("transfer-encoding"), response.field("connection")), (None, Some("close")));
    assert_eq!((response.events().len(), response.end), (3, End::Clean));
    let mut client = Client::connect(origin.addr());
    client.send("GET /early-hints HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.field("connection")), (200, Some("keep-alive")));
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.response().text(), "hello\n");
    assert!(client.is_closed());
}

#[test]
fn bodies_of_every_size_and_framing_are_the_same_bytes() {
    let (origin, mut client) = start();
    for size in [0_usize, 1, 250, 251, 65_536, 65_537, 3 << 20] {
        let expected: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        for query in ["", "chunk=1000", "chunked", "chunked&chunk=777"] {
            let response = client.get(&format!("/bytes/{size}?{query}"));
            assert_eq!(response.end, End::Clean);
            assert!(response.body == expected, "/bytes/{size}?{query}");
        }
        let mut closing = Client::connect(origin.addr());
        let response = closing.get(&format!("/bytes/{size}?close"));
        assert_eq!(response.field("content-length"), None);
        assert!(response.body == expected, "/bytes/{size}?close");
    }
    assert_eq!(client.get("/bytes/64KiB").body.len(), 65_536);
    for wrong in ["/bytes/", "/bytes/x", "/bytes/2GiB", "/bytes/-1"] {
        assert_eq!(client.get(wrong).status, 400, "{wrong}");
    }
}

#[test]
fn statuses_trailers_and_early_hints_are_sent() {
    let (_origin, mut client) = start();
    for code in [200, 204, 302, 304, 404, 418, 503, 599] {
        let response = client.get(&format!("/status/{code}"));
        assert_eq!(response.status, code);
        assert_eq!(response.body.is_empty(), code == 204 || code == 304);
    }
    assert_eq!(client.get("/status/99").status, 400);
    let response = client.get("/trailers");
    assert_eq!(response.text(), "hello trailers\n");
    assert_eq!(response.trailers[0], ("X-Bytes".to_owned(), "15".to_owned()));
    let hints = client.get("/early-hints");
    assert!((hints.status, hints.field("link").is_some()) == (103, true));
    assert_eq!(client.response().text(), "hello\n");
    assert_eq!(client.get("/nothing").status, 404);
}

#[test]
fn malformed_requests_are_refused_counted_and_closed() {
    let (origin, _client) = start();
    let malformed = [
        "GARBAGE\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef",
    ];
    for text in malformed {
        let mut client = Client::connect(origin.addr());
        client.send(text);
        let response = client.response();
        assert_eq!((response.status, response.field("connection")), (400, Some("close")), "{text}");
        assert!(client.is_closed());
    }
    let stats =
        origin.wait_for(PATIENCE, |stats| stats.requests.malformed == malformed.len() as u64).unwrap();
    assert_eq!(stats.requests.in_flight, 0);
}

#[test]
fn a_head_that_is_cut_off_is_counted() {
    let (origin, mut client) = start();
    client.send("GET / HTT");
    drop(client);
    origin.wait_for(PATIENCE, |stats| stats.requests.truncated == 1).unwrap();
}

#[test]
fn the_statistics_are_there_over_http_too() {
    let (origin, mut client) = start();
    for id in ["a", "b", "a"] {
        client.send(format!("GET / HTTP/1.1\r\nX-Request-ID: {id}\r\n\r\n"));
        client.response();
    }
    let stats = client.get("/_origin/stats").json();
    assert_eq!(stats["requests"]["by_path"], json!({ "/": 3 }));
    assert_eq!(stats["requests"]["by_status"], json!({ "2xx": 3 }));
    assert_eq!(stats["request_ids"]["doubled"], json!({ "a": 2 }));
    assert_eq!(client.get("/_origin/stats?id=b").json()["requests"], 1);
    let connections = client.get("/_origin/connections").json();
    assert_eq!(connections["connections"][0]["requests"], 6);
    assert_eq!(connections["connections"][0]["peer"], client.stream.local_addr().unwrap().to_string());
    assert_eq!(client.post("/_origin/reset", "").status, 200);
    let stats = origin.stats();
    assert_eq!((stats.requests.total, stats.request_ids.distinct, stats.connections.open), (0, 0, 1));
}

#[test]
fn bytes_are_counted_as_the_socket_carries_them() {
    let (origin, mut client) = start();
    let request = "GET /bytes/1MiB HTTP/1.1\r\n\r\n";
    client.send(request);
    client.response();
    let stats = origin.wait_for(PATIENCE, |stats| stats.requests.completed == 1).unwrap();
    assert_eq!(stats.bytes_in, request.len() as u64);
    let head = stats.bytes_out - (1 << 20);
    assert!((100..300).contains(&head), "{head}");
}

#[test]
fn a_unix_socket_serves_and_goes_with_the_origin() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("origin");
    let options = OriginOptions { listen: vec![Address::Unix(path.clone())], ..OriginOptions::default() };
    let origin = Origin::start(options).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");
    origin.stop().unwrap();
    assert!(!path.exists());
}

#[test]
fn workers_share_an_address_and_their_counts_add_up() {
    let origin = Origin::start(OriginOptions { workers: 3, ..OriginOptions::default() }).unwrap();
    for _ in 0..60 {
        assert_eq!(Client::connect(origin.addr()).get("/").status, 200);
    }
    let stats = origin.wait_for(PATIENCE, |stats| stats.connections.open == 0).unwrap();
    assert_eq!((stats.requests.total, stats.connections.accepted), (60, 60));
}

#[test]
fn a_stopped_origin_is_gone() {
    let (origin, mut client) = start();
    let address = origin.addr();
    client.get("/");
    origin.stop().unwrap();
    assert!(client.is_closed());
    assert!(std::net::TcpStream::connect(address).is_err());
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-bench"));
    command.arg("origin").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_program_says_where_it_listens_and_stops_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("port");
    let arguments = ["--listen", "127.0.0.1:0", "--knob", "tokens=2", "--port-file", file.to_str().unwrap()];
    let mut running = Program(program(&arguments).spawn().unwrap());
    let mut line = String::new();
    let mut output = std::io::BufReader::new(running.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let address = line.trim().strip_prefix("origin listening on http://").unwrap();
    assert!(address.ends_with(&format!(":{}", std::fs::read_to_string(&file).unwrap().trim())));
    assert_eq!(Client::connect(address.parse().unwrap()).get("/sse").chunks.len(), 2);
    assert!(Command::new("kill").arg("-TERM").arg(running.0.id().to_string()).status().unwrap().success());
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn unusable_arguments_exit_with_2_and_a_taken_port_with_1() {
    for arguments in [["--listen", "nowhere"], ["--knob", "tokns=2"], ["--workers", "0"]] {
        let output = program(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = program(&["--listen", &taken.local_addr().unwrap().to_string()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot listen on"));
}
