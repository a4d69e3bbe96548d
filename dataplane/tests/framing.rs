//! Framing over real sockets: requests that two parsers could read differently reach no origin, the others reach it
//! exactly once; broken answers reach no client, and an answer that breaks off never looks whole.
//!
//! The rows are those of the core's tables. Debian's nginx is asked the same for comparison, which decides nothing.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

#[path = "../core/tests/h1_table/mod.rs"]
mod h1_table;
mod story;

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use h1_table::Row;
use serde_json::Value;
use story::capture::Capture;
use story::config::Config;
use story::wire::{End, Wire};
use story::{DRIVERS, Proxy, origin};

/// Rows longer than this are not sent byte by byte.
const DRIP_MAX: usize = 1000;

/// How a row's bytes are handed to the kernel.
#[derive(Clone, Copy, Debug)]
enum Pieces {
    Whole,
    Bytes,
}

fn send(client: &mut Wire, raw: &[u8], pieces: Pieces) {
    match pieces {
        Pieces::Whole => drop(client.try_send(raw)),
        // Whoever refuses early may have closed before the last byte.
        Pieces::Bytes => drop(raw.chunks(1).try_for_each(|byte| client.try_send(byte))),
    }
}

/// How many requests a row that is taken consists of.
fn requests_in(row: &Row) -> usize {
    1 + row.text("rest").map_or(0, |rest| rest.matches(" HTTP/1.1\r\n").count())
}

fn status_of(row: &Row) -> u16 {
    row.column("status").and_then(Value::as_u64).unwrap_or(400) as u16
}

/// Sends a row that must be refused: what is wrong with the answer, if anything.
fn refused(proxy: &Proxy, origin: &Capture, row: &Row, pieces: Pieces) -> Option<String> {
    let mut client = proxy.connect();
    send(&mut client, &row.raw, pieces);
    let head = match client.try_head() {
        Ok(head) => head,
        Err(error) => return Some(format!("no answer: {error}")),
    };
    let body = if row.raw.starts_with(b"HEAD ") { Ok(Vec::new()) } else { client.try_body(&head) };
    if head.status() != status_of(row) {
        return Some(format!("{}, not {}", head.status(), status_of(row)));
    }
    let body: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
    if !body["error"]["code"].is_string()
        || body["error"]["request_id"] != head.field("X-Request-ID").unwrap_or("")
    {
        return Some(format!("an error in another shape: {body}, {}", head.raw));
    }
    client.half_close();
    let (rest, _) = client.end();
    if !rest.is_empty() {
        return Some(format!("more than one answer: {}", String::from_utf8_lossy(&rest)));
    }
    let seen = origin.take();
    (!seen.is_empty()).then(|| format!("the origin saw {seen:?}"))
}

/// Sends a row that must be taken: what is wrong with what became of it, if anything.
fn taken(proxy: &Proxy, origin: &Capture, row: &Row, pieces: Pieces) -> Option<String> {
    let mut client = proxy.connect();
    send(&mut client, &row.raw, pieces);
    let is_head = row.raw.starts_with(b"HEAD ");
    for _ in 0..requests_in(row) {
        let head = match client.try_head() {
            Ok(head) => head,
            Err(error) => return Some(format!("no answer: {error}")),
        };
        if head.status() != 200 {
            return Some(format!("refused with {}", head.status()));
        }
        if !is_head && client.try_body(&head).ok().as_deref() != Some(b"ok") {
            return Some("another body".to_owned());
        }
    }
    if row.column("keep_alive") == Some(&Value::Bool(false)) {
        let (rest, end) = client.end();
        if !rest.is_empty() || end != End::Fin {
            return Some(format!("a bad end: {end:?}, {rest:?}"));
        }
    } else if !client.is_silent() {
        return Some("the connection was closed, or more than asked for was said".to_owned());
    }
    let seen = origin.take();
    if seen.len() != requests_in(row) {
        return Some(format!("the origin saw {} requests: {seen:?}", seen.len()));
    }
    if let Some(why) = seen.iter().find_map(|seen| seen.ambiguity()) {
        return Some(format!("the origin could misread it, {why}: {seen:?}"));
    }
    let length = seen[0].body.len() as u64;
    let is_sized = row.column("length").and_then(Value::as_u64);
    is_sized.filter(|expected| *expected != length).map(|_| format!("a body of {length} bytes"))
}

/// Sends the beginning of a request and leaves: nothing must come of it.
fn incomplete(proxy: &Proxy, origin: &Capture, row: &Row, pieces: Pieces) -> Option<String> {
    let mut client = proxy.connect();
    send(&mut client, &row.raw, pieces);
    client.half_close();
    let (answer, _) = client.end();
    if !answer.is_empty() {
        return Some(format!("answered: {}", String::from_utf8_lossy(&answer)));
    }
    let seen = origin.take();
    (!seen.is_empty()).then(|| format!("the origin saw {seen:?}"))
}

#[test]
fn every_request_is_taken_or_refused_as_the_table_says() {
    for driver in DRIVERS {
        let origin = Capture::start();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let mut wrong = String::new();
        let mut refusals = 0;
        for row in h1_table::requests() {
            for pieces in [Pieces::Whole, Pieces::Bytes] {
                // A head that never ends may be waited for: it ends with its deadline.
                let is_ended = memchr::memmem::find(&row.raw, b"\r\n\r\n").is_some();
                if matches!(pieces, Pieces::Bytes) && (row.raw.len() > DRIP_MAX || !is_ended) {
                    continue;
                }
                let problem = match row.expect() {
                    "ok" => taken(&proxy, &origin, &row, pieces),
                    "incomplete" => incomplete(&proxy, &origin, &row, pieces),
                    _ => {
                        refusals += 1;
                        refused(&proxy, &origin, &row, pieces)
                    }
                };
                if let Some(problem) = problem {
                    writeln!(wrong, "{driver} {pieces:?} {}: {problem}", row.name()).unwrap();
                }
                origin.take();
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
        assert!(proxy.metric("millrace_listener_faults_total", &["blame=\"client\""]) >= refusals);
        proxy.assert_at_rest();
    }
}

/// Debian's nginx, one process, with an answer to every request of the table.
struct Nginx {
    child: Child,
    dir: tempfile::TempDir,
}

impl Nginx {
    fn start(origin: &Capture) -> Option<Self> {
        let program = Path::new("/usr/sbin/nginx");
        if !program.exists() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display();
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {here}/{name};\n"))
            .collect();
        let config = format!(
            "daemon off;\nmaster_process off;\npid {here}/pid;\nerror_log {here}/error.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{temp}upstream origin {{ server {}; keepalive 16; }}\n\
             server {{ listen unix:{here}/http.sock; location / {{ proxy_pass http://origin; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; proxy_set_header Host $http_host; proxy_request_buffering off; }} }}\n}}\n",
            origin.addr()
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut child = Command::new(program)
            .arg("-e")
            .arg(dir.path().join("error.log"))
            .arg("-c")
            .arg(dir.path().join("nginx.conf"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + story::PATIENCE;
        while Wire::try_connect_unix(&dir.path().join("http.sock")).is_err() {
            assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline, "nginx does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { child, dir })
    }

    /// What it says to a row: its statuses, or that it waits.
    fn ask(&self, row: &Row) -> String {
        let mut client = Wire::try_connect_unix(&self.dir.path().join("http.sock")).unwrap();
        client.patience(Duration::from_millis(150));
        send(&mut client, &row.raw, Pieces::Whole);
        let mut statuses = Vec::new();
        for _ in 0..requests_in(row) {
            match client.try_head() {
                Ok(head) => {
                    statuses.push(head.status().to_string());
                    let _ =
                        if row.raw.starts_with(b"HEAD ") { Ok(Vec::new()) } else { client.try_body(&head) };
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    statuses.push("waits".to_owned());
                    break;
                }
                Err(_) => {
                    statuses.push("closes".to_owned());
                    break;
                }
            }
        }
        statuses.join(" ")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn nginx_answers_the_same_rows_for_comparison() {
    let origin = Capture::start();
    let Some(nginx) = Nginx::start(&origin) else {
        println!("skipped: there is no /usr/sbin/nginx");
        return;
    };
    let mut table =
        String::from("class | row | expected here | nginx | requests at the origin behind nginx\n");
    let (mut rows, mut same) = (0, 0);
    for row in h1_table::requests() {
        let expected = match row.expect() {
            "ok" => vec!["200"; requests_in(&row)].join(" "),
            "incomplete" => "waits".to_owned(),
            _ => status_of(&row).to_string(),
        };
        let said = nginx.ask(&row);
        let seen = origin.take().len();
        (rows, same) = (rows + 1, same + usize::from(said == expected));
        let class = row.text("class").unwrap();
        writeln!(table, "{class} | {} | {expected} | {said} | {seen}", row.name()).unwrap();
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("h1_framing_nginx.txt");
    std::fs::write(&path, table).unwrap();
    println!("nginx answers {same} of {rows} rows as expected here; all of them are in {}", path.display());
    assert!(same > rows / 4, "nginx answers hardly anything: the comparison compares nothing");
}

/// A request that the answer of this row belongs to.
fn ask_for(row: &Row) -> String {
    let upgrade = match row.column("asked_upgrade") {
        Some(Value::Bool(true)) => "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        _ => "",
    };
    format!("{} / HTTP/1.1\r\nHost: story\r\n{upgrade}\r\n", row.text("method").unwrap_or("GET"))
}

#[test]
fn ambiguous_answers_become_a_502_that_names_the_reason_in_the_log() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&Config::to(listener.local_addr().unwrap()).driver(driver));
        let mut wrong = String::new();
        let rows = h1_table::responses();
        for row in rows.iter().filter(|row| matches!(row.expect(), "refused" | "incomplete")) {
            let mut client = proxy.connect();
            client.send(ask_for(row));
            let mut upstream = Wire::accept(&listener);
            upstream.head();
            let _ = upstream.try_send(&row.raw);
            upstream.half_close();
            let head = client.head();
            if head.status() != 502 {
                writeln!(wrong, "{driver} {}: {}", row.name(), head.raw.trim()).unwrap();
                continue;
            }
            if row.text("method") != Some("HEAD") {
                let body: Value = serde_json::from_slice(&client.body(&head)).unwrap();
                assert_eq!(body["error"]["type"], "upstream_error", "{}", row.name());
            }
            upstream.end();
        }
        assert!(wrong.is_empty(), "{wrong}");
        // No more lines are logged in a second than somebody could read, so not every row has one.
        let output = proxy.output();
        let is_told = |line: &&str| line.contains(" INFO ") && line.contains("upstream_malformed");
        let line = output.lines().find(is_told).unwrap_or_else(|| panic!("{driver}: no line in {output}"));
        let kinds = rows.iter().filter_map(|row| row.text("kind"));
        assert!(kinds.into_iter().any(|kind| line.contains(kind)), "{driver}: {line}");
    }
}

/// What a client is to see of a row that is passed on.
struct Seen {
    /// The final head's framing: `Content-Length`, `Transfer-Encoding`.
    framing: (Option<String>, Option<String>),
    body: Vec<u8>,
}

/// The bytes of a row's answer with a body that fits its head, and whether it ends with the connection.
fn whole_answer(row: &Row) -> (Vec<u8>, Seen, bool) {
    let head_len = memchr::memmem::find(&row.raw, b"\r\n\r\n").unwrap() + 4;
    let (mut raw, given) = (row.raw.clone(), row.raw[head_len..].to_vec());
    let chunked = || Some("chunked".to_owned());
    if let Some(length) = row.column("length").and_then(Value::as_u64) {
        let length = length as usize;
        raw.resize(head_len + length.max(given.len()), b'x');
        let body = raw[head_len..head_len + length].to_vec();
        return (raw, Seen { framing: (Some(length.to_string()), None), body }, false);
    }
    match row.text("length").unwrap() {
        "chunked" => {
            let ends = given.ends_with(b"0\r\n\r\n");
            raw.extend_from_slice(if ends { b"" } else { b"2\r\nhi\r\n0\r\n\r\n" });
            let body = if raw.ends_with(b"hi\r\n0\r\n\r\n") { b"hi".to_vec() } else { Vec::new() };
            (raw, Seen { framing: (None, chunked()), body }, false)
        }
        // The length is not known beforehand: the client gets chunks.
        "until_close" => (raw, Seen { framing: (None, chunked()), body: given }, true),
        length => {
            assert_eq!(length, "none", "{}", row.name());
            let sent = row.text("sent").map(ToOwned::to_owned);
            (raw, Seen { framing: (sent, None), body: Vec::new() }, false)
        }
    }
}

/// Lets an origin answer with a row: what is wrong with what the client sees, or with the origin's connection, if anything.
fn passed_on(proxy: &Proxy, listener: &TcpListener, row: &Row) -> Option<String> {
    let (raw, expected, ends_with_connection) = whole_answer(row);
    let is_interim = row.column("interim") == Some(&Value::Bool(true));
    let mut client = proxy.connect();
    client.send(ask_for(row));
    let mut upstream = Wire::accept(listener);
    upstream.head();
    upstream.send(&raw);
    let mut head = client.head();
    if head.raw.split(' ').nth(1) != Some(str::from_utf8(&row.raw[9..12]).unwrap()) {
        return Some(format!("another status: {}", head.raw));
    }
    if is_interim {
        if head.field("Content-Length").is_some() || head.field("Transfer-Encoding").is_some() {
            return Some(format!("an interim answer with framing: {}", head.raw));
        }
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        head = client.head();
    }
    if ends_with_connection {
        upstream.half_close();
    }
    let framing = ["Content-Length", "Transfer-Encoding"].map(|name| head.all(name).join("|"));
    let framing = framing.map(|value| Some(value).filter(|value| !value.is_empty()));
    if !is_interim && framing != [expected.framing.0, expected.framing.1] {
        return Some(format!("another framing: {}", head.raw));
    }
    if head.status() == 101 {
        return None;
    }
    let has_body = is_interim || row.text("length") != Some("none");
    let body = if has_body { client.try_body(&head) } else { Ok(Vec::new()) };
    if body.as_ref().ok() != Some(&expected.body) {
        return Some(format!("another body: {body:?}"));
    }
    if row.column("keep_alive") == Some(&Value::Bool(true)) {
        // Its next request comes on the same connection.
        let mut next = proxy.connect();
        next.get("/again");
        if let Err(error) = upstream.try_head() {
            return Some(format!("the origin's connection is not used again: {error}"));
        }
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        next.head();
    }
    upstream.end();
    None
}

#[test]
fn answers_with_one_reading_are_passed_on_in_our_own_words_and_doubtful_connections_are_left() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config::to(listener.local_addr().unwrap()).driver(driver).workers(1);
        let proxy = Proxy::start(&config);
        let mut wrong = String::new();
        let rows = h1_table::responses();
        // CONNECT is answered by the proxy itself.
        let is_passed =
            |row: &&Row| matches!(row.expect(), "ok" | "redundant") && row.text("method") != Some("CONNECT");
        for row in rows.iter().filter(is_passed) {
            if let Some(problem) = passed_on(&proxy, &listener, row) {
                writeln!(wrong, "{driver} {}: {problem}", row.name()).unwrap();
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
        proxy.assert_sound();
    }
}

/// The mock origin's broken answers: a 502 where the head is broken, else an end that cannot be taken for a whole.
#[test]
fn no_broken_answer_looks_whole() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy =
            Proxy::start(&Config::to(origin.addr()).driver(driver).route("timeouts = { idle = \"2s\" }"));
        for (name, _) in bench::origin::BadFraming::ALL {
            let mut client = proxy.connect();
            client.get(&format!("/?bad_framing={name}"));
            let head = client.head();
            match name {
                "body_long" => {
                    assert_eq!((head.status(), client.body(&head).len()), (200, 5), "{driver}");
                    assert_eq!(
                        client.get("/").response().1,
                        b"hello\n",
                        "{driver}: the rest is not passed on"
                    );
                }
                // Chunks count more than a length, and a 204 has no body: both are passed on in our own words.
                "cl_te" => {
                    assert_eq!(head.field("Content-Length"), None, "{driver}");
                    assert_eq!((head.status(), client.body(&head)), (200, b"hello".to_vec()), "{driver}");
                }
                "body_on_204" => {
                    assert_eq!((head.status(), head.field("Content-Length")), (204, None), "{driver}");
                    assert_eq!(
                        client.get("/").response().1,
                        b"hello\n",
                        "{driver}: its body is not passed on"
                    );
                }
                "body_short" => {
                    assert_eq!(head.status(), 200);
                    assert!(client.try_body(&head).is_err(), "{driver} {name} looks whole");
                }
                _ => assert_eq!(head.status(), 502, "{driver} {name}: {}", head.raw),
            }
        }
        // Nothing of them is left for the next one.
        for _ in 0..20 {
            assert_eq!(proxy.connect().get("/").response().1, b"hello\n", "{driver}");
        }
        proxy.assert_sound();
    }
}

#[test]
fn an_origin_that_dies_in_mid_body_never_gives_a_clean_end() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let mut faults = 0;
        for death in ["cut_at", "rst_at"] {
            for shape in ["", "&chunked"] {
                for at in [0, 1, 1000, 500_000] {
                    let path = format!("/bytes/1MiB?{death}={at}{shape}");
                    let mut client = proxy.connect();
                    client.get(&path);
                    let Ok(head) = client.try_head() else { panic!("{driver} {path}: no head") };
                    faults += 1;
                    if head.status() == 502 {
                        // Not a byte of the body had come: the proxy can still say what happened.
                        assert!(at < 2, "{driver} {path}");
                        continue;
                    }
                    assert!(client.try_body(&head).is_err(), "{driver} {path} looks whole");
                }
            }
        }
        for event in 0..3 {
            let mut client = proxy.connect();
            client.get(&format!("/sse?cut_at={}&tokens_per_second=0", event * 120 + 60));
            let head = client.head();
            assert!(client.try_body(&head).is_err(), "{driver}: a cut stream looks whole");
            faults += 1;
        }
        let counted = proxy.metric("millrace_faults_total", &["blame=\"upstream\""]);
        assert_eq!(counted, faults, "{driver}");
    }
}

/// Where the end of the connection is the end of the body, only a reset tells the two ends apart.
#[test]
fn an_http_1_0_client_gets_a_reset_for_an_end_that_is_none() {
    for driver in DRIVERS {
        let origin = origin();
        let proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        for path in ["/bytes/1MiB?chunked&cut_at=1000", "/bytes/1MiB?close&rst_at=1000"] {
            let mut client = proxy.connect();
            client.send(format!("GET {path} HTTP/1.0\r\nHost: story\r\n\r\n"));
            match client.try_head() {
                Ok(_) => assert_eq!(client.end().1, End::Reset, "{driver} {path}"),
                // The reset was faster than the reading of what came before it.
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{driver} {path}")
                }
            }
        }
    }
}
