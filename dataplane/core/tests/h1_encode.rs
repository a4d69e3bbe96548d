//! What the origin and the client get to see: heads before and after, as text.
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a test that fails")]

use dataplane_core::h1::{
    Asked, Client, FieldStorage, Full, HeadLimits, HeadScan, HostChoice, RequestEdits, ResponseEdits,
    SendLength, encode_request, encode_response, parse_request, parse_response, response_framing,
};
use dataplane_core::request::{BodyLength, Method, Version};
use proto::config::HeaderEdits;

const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 128 };
const NO_RULES: HeaderEdits = HeaderEdits { set: Vec::new(), add: Vec::new(), remove: Vec::new() };
const TAIL: &str = "X-Forwarded-For: 192.0.2.7\nX-Forwarded-Proto: http\nX-Forwarded-Host: a\nX-Request-ID: id\nVia: 1.1 millrace\n";

/// Edits as for a plain request to an endpoint that gets the client's `Host`.
fn edits(rules: &HeaderEdits) -> RequestEdits<'_> {
    RequestEdits {
        host: HostChoice::Keep { fallback: "origin:8000" },
        client: Some([192, 0, 2, 7].into()),
        scheme: "http",
        trust_forwarded: false,
        request_id: b"id",
        via: "millrace",
        rules,
        body: BodyLength::None,
        expect_continue: false,
        upgrade: true,
        close: false,
    }
}

/// The request with its lines ended by LF only, rewritten, in the same notation. The body's length is the client's.
fn request_with(text: &str, edits: RequestEdits<'_>) -> String {
    let raw = text.replace('\n', "\r\n");
    let mut storage = FieldStorage::new();
    let head = parse_request(raw.as_bytes(), &mut HeadScan::default(), &mut storage, &LIMITS)
        .unwrap()
        .expect("complete");
    let edits = RequestEdits { body: head.length, ..edits };
    let mut out = vec![0; 64 * 1024];
    let len = encode_request(&mut out, &head, &edits).unwrap();
    for size in 0..len {
        assert_eq!(encode_request(&mut out[..size], &head, &edits), Err(Full));
    }
    let text = String::from_utf8(out[..len].to_vec()).unwrap();
    lines_of(&text)
}

/// One head and nothing else, with its lines ended by LF only and without the empty line.
fn lines_of(head: &str) -> String {
    let fields = head.strip_suffix("\r\n\r\n").unwrap();
    assert!(!fields.contains("\r\n\r\n"), "the head ends too early: {head:?}");
    fields.replace("\r\n", "\n") + "\n"
}

fn request(text: &str) -> String {
    request_with(text, edits(&NO_RULES))
}

#[test]
fn end_to_end_fields_pass_as_they_came_and_in_order() {
    let sent = request("GET /a?b HTTP/1.1\nACCEPT:  */*\nHost: a\nx-one: 1\nX-One: 2 \nCookie: c\n\n");
    assert_eq!(
        sent,
        format!("GET /a?b HTTP/1.1\nHost: a\nACCEPT:  */*\nx-one: 1\nX-One: 2 \nCookie: c\n{TAIL}")
    );
}

#[test]
fn hop_by_hop_fields_are_dropped_and_so_is_what_connection_names() {
    let sent = request(
        "GET / HTTP/1.1\nHost: a\nConnection: keep-alive, X-Hop\nKeep-Alive: timeout=5\nX-Hop: 1\nProxy-Connection: x\n\
         Proxy-Authorization: Basic x\nTE: gzip\nTrailer: X-Sum\nUpgrade: websocket\nHTTP2-Settings: x\nX-Kept: 1\nx-hop: 2\n\n",
    );
    assert_eq!(sent, format!("GET / HTTP/1.1\nHost: a\nX-Kept: 1\n{TAIL}"));
}

/// The attack: name the field by which the origin knows the client, and the proxy removes it.
#[test]
fn connection_cannot_take_away_what_the_origin_relies_on() {
    let sent = request(
        "GET / HTTP/1.1\nHost: a\nConnection: close, Host, X-Forwarded-For, X-Forwarded-Port, X-Request-ID, Via, Cookie, \
         Authorization, Content-Type, X-Real-IP\nX-Forwarded-For: 10.0.0.1\nX-Forwarded-Port: 1\nX-Request-ID: c\nVia: 1.0 b\n\
         Cookie: k\nAuthorization: z\nContent-Type: t\nX-Real-IP: 10.0.0.1\n\n",
    );
    assert_eq!(
        sent,
        "GET / HTTP/1.1\nHost: a\nX-Forwarded-Port: 1\nVia: 1.0 b\nCookie: k\nAuthorization: z\nContent-Type: t\n\
         X-Real-IP: 10.0.0.1\nX-Forwarded-For: 10.0.0.1, 192.0.2.7\nX-Forwarded-Proto: http\nX-Forwarded-Host: a\n\
         X-Request-ID: id\nVia: 1.1 millrace\n"
    );
}

#[test]
fn names_that_origins_read_like_ours_are_dropped() {
    let sent = request(
        "POST / HTTP/1.1\nHost: a\nX_Forwarded_For: 10.0.0.1\nContent_Length: 9\nTransfer_Encoding: chunked\nx_forwarded-proto: https\n\
         X-Request_ID: z\nx_own: kept\nContent-Length: 2\n\n",
    );
    assert_eq!(sent, format!("POST / HTTP/1.1\nHost: a\nx_own: kept\n{TAIL}Content-Length: 2\n"));
}

#[test]
fn forwarded_for_is_one_line_that_ends_with_the_client() {
    let text = "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: 10.0.0.1\nX-Forwarded-For:\nx-forwarded-for: 10.0.0.2, 10.0.0.3\n\n";
    assert!(request(text).contains("X-Forwarded-For: 10.0.0.1, 10.0.0.2, 10.0.0.3, 192.0.2.7\n"));
    let rules = NO_RULES;
    let unix = request_with(text, RequestEdits { client: None, ..edits(&rules) });
    assert!(unix.contains("X-Forwarded-For: 10.0.0.1, 10.0.0.2, 10.0.0.3\n"), "{unix}");
    let none = request_with("GET / HTTP/1.1\nHost: a\n\n", RequestEdits { client: None, ..edits(&rules) });
    assert!(!none.contains("X-Forwarded-For"), "{none}");
    let v6 = RequestEdits { client: Some("2001:db8::1".parse().unwrap()), ..edits(&rules) };
    assert!(request_with("GET / HTTP/1.1\nHost: a\n\n", v6).contains("X-Forwarded-For: 2001:db8::1\n"));
    let mapped = RequestEdits { client: Some("::ffff:192.0.2.9".parse().unwrap()), ..edits(&rules) };
    assert!(request_with("GET / HTTP/1.1\nHost: a\n\n", mapped).contains("X-Forwarded-For: 192.0.2.9\n"));
}

#[test]
fn forwarded_gets_our_element_only_where_the_client_sent_one() {
    let sent = request("GET / HTTP/1.1\nHost: a\nForwarded: for=10.0.0.1\nForwarded: for=\"open\n\n");
    assert!(sent.contains("\nForwarded: for=10.0.0.1, for=192.0.2.7;host=\"a\";proto=http\n"), "{sent}");
    assert_eq!(sent.matches("Forwarded: for").count(), 1, "{sent}");
    let rules = NO_RULES;
    let v6 = RequestEdits { client: Some("::1".parse().unwrap()), ..edits(&rules) };
    let sent = request_with("GET / HTTP/1.1\nHost: a\nForwarded: for=x\n\n", v6);
    assert!(sent.contains("Forwarded: for=x, for=\"[::1]\";host=\"a\";proto=http\n"), "{sent}");
}

#[test]
fn only_a_trusted_client_says_proto_and_host() {
    let text = "GET / HTTP/1.1\nHost: a\nX-Forwarded-Proto: https\nX-Forwarded-Host: evil\n\n";
    assert_eq!(request(text), format!("GET / HTTP/1.1\nHost: a\n{TAIL}"));
    let rules = NO_RULES;
    let trusted = request_with(text, RequestEdits { trust_forwarded: true, ..edits(&rules) });
    assert!(trusted.contains("X-Forwarded-Proto: https\nX-Forwarded-Host: evil\n"), "{trusted}");
    assert_eq!(trusted.matches("X-Forwarded-").count(), 3, "{trusted}");
}

#[test]
fn request_ids_are_kept_only_when_fit() {
    let id = |fields: &str| {
        let raw = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let mut storage = FieldStorage::new();
        let head =
            parse_request(raw.as_bytes(), &mut HeadScan::default(), &mut storage, &LIMITS).unwrap().unwrap();
        head.request_id().map(str::to_owned)
    };
    assert_eq!(id("X-Request-ID: abc-1\r\n").as_deref(), Some("abc-1"));
    assert_eq!(id("X-Request-ID: a b\r\n"), None);
    assert_eq!(id("X-Request-ID: \r\n"), None);
    assert_eq!(id("X-Request-ID: a\r\nX-Request-ID: a\r\n"), None);
    assert_eq!(id(&format!("X-Request-ID: {}\r\n", "x".repeat(128))), Some("x".repeat(128)));
    assert_eq!(id(&format!("X-Request-ID: {}\r\n", "x".repeat(129))), None);
}

#[test]
fn rules_remove_then_set_then_add() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let rules = HeaderEdits {
        remove: vec!["cookie".to_owned(), "via".to_owned()],
        set: vec![pair("X-Edge", "hk"), pair("x-forwarded-for", "-"), pair("Host", "rule.example")],
        add: vec![pair("X-Edge", "2"), pair("Cookie", "new")],
    };
    let sent =
        request_with("GET / HTTP/1.1\nHost: a\nx-edge: client\nCOOKIE: c\nVia: 1.1 x\n\n", edits(&rules));
    assert_eq!(
        sent,
        "GET / HTTP/1.1\nHost: rule.example\nX-Forwarded-Proto: http\nX-Forwarded-Host: a\nX-Request-ID: id\n\
         X-Edge: hk\nx-forwarded-for: -\nX-Edge: 2\nCookie: new\n"
    );
}

#[test]
fn rules_cannot_touch_framing() {
    let names = ["Content-Length", "transfer-encoding", "Connection", "Upgrade", "TE", "Expect"];
    let pairs: Vec<_> = names.iter().map(|name| (name.to_string(), "7".to_owned())).collect();
    let rules = HeaderEdits { set: pairs.clone(), add: pairs, remove: vec!["host".to_owned()] };
    let sent = request_with("POST / HTTP/1.1\nHost: a\nContent-Length: 2\n\n", edits(&rules));
    assert_eq!(sent, format!("POST / HTTP/1.1\nHost: a\n{TAIL}Content-Length: 2\n"));
}

#[test]
fn host_is_the_clients_or_the_clusters() {
    let rules = NO_RULES;
    let replaced = RequestEdits { host: HostChoice::Replace("llm:1"), ..edits(&rules) };
    let sent = request_with("GET / HTTP/1.1\nHost: a\n\n", replaced);
    assert_eq!(sent, format!("GET / HTTP/1.1\nHost: llm:1\n{TAIL}"));
    let old = request("GET / HTTP/1.0\n\n");
    assert!(
        old.starts_with("GET / HTTP/1.1\nHost: origin:8000\n") && old.contains("Via: 1.0 millrace\n"),
        "{old}"
    );
    assert!(!old.contains("X-Forwarded-Host"), "{old}");
    let absolute = request("GET http://A:80?q HTTP/1.0\n\n");
    assert!(absolute.starts_with("GET /?q HTTP/1.1\nHost: A:80\n"), "{absolute}");
    assert!(request("OPTIONS http://a HTTP/1.1\nHost: a\n\n").starts_with("OPTIONS * HTTP/1.1\nHost: a\n"));
}

#[test]
fn framing_is_written_anew() {
    let chunked = "POST / HTTP/1.1\nHost: a\nTransfer-Encoding:  Chunked\nTrailer: X-Sum\nTE: trailers\n\n";
    assert_eq!(
        request(chunked),
        format!(
            "POST / HTTP/1.1\nHost: a\nTrailer: X-Sum\n{TAIL}TE: trailers\nConnection: TE\nTransfer-Encoding: chunked\n"
        )
    );
    assert!(request("POST / HTTP/1.1\nHost: a\nContent-Length: 007\n\n").ends_with("\nContent-Length: 7\n"));
    assert!(request("POST / HTTP/1.1\nHost: a\nContent-Length: 0\n\n").ends_with("\nContent-Length: 0\n"));
}

#[test]
fn upgrade_and_expect_are_passed_on_only_if_the_driver_says_so() {
    let rules = NO_RULES;
    let websocket = "GET /ws HTTP/1.1\nHost: a\nConnection: keep-alive, Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: k\n\n";
    let sent = request(websocket);
    assert!(sent.contains("Sec-WebSocket-Key: k\n"), "{sent}");
    assert!(sent.ends_with("Connection: Upgrade\nUpgrade: websocket\n"), "{sent}");
    let plain = request_with(websocket, RequestEdits { upgrade: false, ..edits(&rules) });
    assert!(!plain.contains("pgrade") && !plain.contains("Connection"), "{plain}");

    let expecting = "POST / HTTP/1.1\nHost: a\nExpect: 100-Continue\nContent-Length: 2\n\n";
    assert!(!request(expecting).contains("Expect"));
    let passed = request_with(expecting, RequestEdits { expect_continue: true, ..edits(&rules) });
    assert!(passed.contains("\nExpect: 100-continue\n"), "{passed}");
    let closing = request_with("GET / HTTP/1.1\nHost: a\n\n", RequestEdits { close: true, ..edits(&rules) });
    assert!(closing.ends_with("\nConnection: close\n"), "{closing}");
}

/// The response with its lines ended by LF only, as it is sent to such a client.
fn response_with(text: &str, client: Client, rules: &HeaderEdits) -> String {
    let raw = text.replace('\n', "\r\n");
    let mut storage = FieldStorage::new();
    let asked = Asked { method: client.method, upgrade: true };
    let head = parse_response(raw.as_bytes(), &mut HeadScan::default(), &mut storage, asked, &LIMITS)
        .unwrap()
        .expect("complete");
    let sending = response_framing(&client, &head);
    let edits =
        ResponseEdits { client_version: client.version, sending, rules, via: None, request_id: Some(b"id") };
    let mut out = vec![0; 4096];
    let len = encode_response(&mut out, &head, &edits).unwrap();
    for size in 0..len {
        assert_eq!(encode_response(&mut out[..size], &head, &edits), Err(Full));
    }
    let text = String::from_utf8(out[..len].to_vec()).unwrap();
    lines_of(&text)
}

const NEW: Client = Client { version: Version::Http11, keep_alive: true, method: Method::Get };
const OLD: Client = Client { version: Version::Http10, keep_alive: true, method: Method::Get };

fn response(text: &str, client: Client) -> String {
    response_with(text, client, &NO_RULES)
}

#[test]
fn responses_pass_without_hop_by_hop_fields() {
    let sent = response(
        "HTTP/1.1 404 Gone Away\nDate: now\nConnection: keep-alive, x-hop\nKeep-Alive: 5\nX-Hop: 1\nX-Request-ID: theirs\n\
         Proxy-Authenticate: Basic\nUpgrade: h2\nContent-Length: 5\nSet-Cookie: a\nSet-Cookie: b\n\n",
        NEW,
    );
    assert_eq!(
        sent,
        "HTTP/1.1 404 Gone Away\nDate: now\nSet-Cookie: a\nSet-Cookie: b\nX-Request-ID: id\nContent-Length: 5\n"
    );
}

#[test]
fn each_client_gets_a_framing_that_it_knows() {
    let sized = "HTTP/1.1 200 OK\nContent-Length: 5\n\n";
    let chunked = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X\n\n";
    let open = "HTTP/1.1 200 OK\nTrailer: X\n\n";
    let head = "HTTP/1.1 200 OK\nX-Request-ID: id\n";
    assert_eq!(response(sized, NEW), format!("{head}Content-Length: 5\n"));
    assert_eq!(response(sized, OLD), format!("{head}Connection: keep-alive\nContent-Length: 5\n"));
    assert_eq!(
        response(chunked, NEW),
        "HTTP/1.1 200 OK\nTrailer: X\nX-Request-ID: id\nTransfer-Encoding: chunked\n"
    );
    assert_eq!(response(chunked, OLD), format!("{head}Connection: close\n"));
    assert_eq!(response(open, NEW), format!("{head}Transfer-Encoding: chunked\n"));
    assert_eq!(response(open, OLD), format!("{head}Connection: close\n"));
    let closing = Client { keep_alive: false, ..NEW };
    assert_eq!(response(sized, closing), format!("{head}Connection: close\nContent-Length: 5\n"));
}

#[test]
fn responses_without_a_body_say_what_they_may() {
    let head = Client { method: Method::Head, ..NEW };
    let declared = response("HTTP/1.1 200 OK\nContent-Length: 5\n\n", head);
    assert_eq!(declared, "HTTP/1.1 200 OK\nX-Request-ID: id\nContent-Length: 5\n");
    let chunked = response("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", head);
    assert_eq!(chunked, "HTTP/1.1 200 OK\nX-Request-ID: id\n");
    let unmodified = response("HTTP/1.1 304 Not Modified\nContent-Length: 5\n\n", NEW);
    assert_eq!(unmodified, "HTTP/1.1 304 Not Modified\nX-Request-ID: id\nContent-Length: 5\n");
    let empty = response("HTTP/1.1 204 No Content\nContent-Length: 0\n\n", OLD);
    assert_eq!(empty, "HTTP/1.1 204 No Content\nX-Request-ID: id\nConnection: keep-alive\n");
}

#[test]
fn interim_and_upgrade_responses_keep_their_shape() {
    let rules = HeaderEdits { set: vec![("X-Edge".to_owned(), "hk".to_owned())], ..NO_RULES };
    let hints = response_with("HTTP/1.1 103 Early Hints\nLink: </a>\nConnection: x\nX: 1\n\n", NEW, &rules);
    assert_eq!(hints, "HTTP/1.1 103 Early Hints\nLink: </a>\n");
    let switching = "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\nSec-WebSocket-Accept: z\n\n";
    assert_eq!(
        response(switching, NEW),
        "HTTP/1.1 101 Switching Protocols\nSec-WebSocket-Accept: z\nX-Request-ID: id\nConnection: Upgrade\nUpgrade: websocket\n"
    );
    let required = response(
        "HTTP/1.1 426 Upgrade Required\nConnection: upgrade\nUpgrade: TLS/1.2\nContent-Length: 0\n\n",
        NEW,
    );
    assert!(
        required.contains("Upgrade: TLS/1.2\n") && required.contains("Connection: Upgrade\n"),
        "{required}"
    );
}

#[test]
fn response_rules_apply() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let rules = HeaderEdits {
        remove: vec!["Server".to_owned()],
        set: vec![pair("X-Request-ID", "-"), pair("Content-Length", "9")],
        add: vec![pair("Vary", "Origin")],
    };
    let sent = response_with("HTTP/1.1 200 OK\nserver: x\nVary: A\nContent-Length: 5\n\n", NEW, &rules);
    assert_eq!(sent, "HTTP/1.1 200 OK\nVary: A\nContent-Length: 5\nX-Request-ID: -\nVary: Origin\n");
}

#[test]
fn framing_closes_where_the_length_ends_with_the_connection() {
    let raw = b"HTTP/1.1 200 OK\r\n\r\n";
    let mut storage = FieldStorage::new();
    let asked = Asked { method: Method::Get, upgrade: false };
    let head = parse_response(raw, &mut HeadScan::default(), &mut storage, asked, &LIMITS).unwrap().unwrap();
    let old = response_framing(&OLD, &head);
    assert_eq!((old.length, old.keep_alive), (SendLength::UntilClose, false));
    let new = response_framing(&NEW, &head);
    assert_eq!((new.length, new.keep_alive), (SendLength::Chunked, true));
}
