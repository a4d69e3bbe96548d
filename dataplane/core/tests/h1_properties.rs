//! What holds for all HTTP/1 messages, well-formed or not, on generated ones. The invariants themselves are in `dataplane_core::fuzz`;
//! here are the generators, and what can only be said of messages whose making is known.
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a test that fails")]

use dataplane_core::fuzz;
use dataplane_core::h1::{
    BodyDecoder, FieldKind, FieldStorage, HeadLimits, HeadScan, HostChoice, RequestEdits, encode_request,
    parse_request,
};
use dataplane_core::request::BodyLength;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proto::config::HeaderEdits;

const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 128 };

/// Pieces of which almost-requests are made: each is something that parsers have stumbled over.
const REQUEST_PIECES: &[&str] = &[
    "GET",
    "POST",
    "OPTIONS",
    "CONNECT",
    " ",
    " ",
    "\t",
    "/",
    "/a?b",
    "*",
    "http://a/",
    "http://b",
    "a:443",
    " HTTP/1.1",
    " HTTP/1.0",
    " HTTP/2.0",
    "\r\n",
    "\r\n",
    "\r\n",
    "\n",
    "\r",
    "Host: a\r\n",
    "Host: b\r\n",
    "host:a\r\n",
    "Host",
    ":",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: +5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Connection: close, x\r\n",
    "Connection: upgrade\r\n",
    "Upgrade: websocket\r\n",
    "Upgrade: h2c\r\n",
    "X: y\r\n",
    "X-Forwarded-For: 1\r\n",
    "Forwarded: for=\"\r\n",
    "X-Request-ID: q\r\n",
    "TE: trailers\r\n",
    "Trailer: z\r\n",
    "Expect: 100-continue\r\n",
    "\0",
    "\u{e9}",
    ",",
    ";",
    "GET / HTTP/1.1\r\nHost: a\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\n",
    "\r\n\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
];

const RESPONSE_PIECES: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 ",
    "100",
    "101",
    "204",
    "304",
    "426",
    " ",
    "OK",
    "\r\n",
    "\r\n",
    "\n",
    "\r",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: upgrade\r\n",
    "Upgrade: websocket\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Trailer: z\r\n",
    "Content-Type: text/event-stream\r\n",
    "X: y\r\n",
    ":",
    "\0",
    "\u{e9}",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "\r\n\r\n",
];

const CHUNK_PIECES: &[&str] = &[
    "0",
    "1",
    "5",
    "a",
    "F",
    "10",
    "\r\n",
    "\r\n",
    "\n",
    "\r",
    ";",
    ";a=b",
    " ",
    "hello",
    "x",
    "0\r\n",
    "\r\n\r\n",
    "5\r\nhello\r\n",
    "1\r\nx\r\n",
    "0\r\n\r\n",
    "X: y\r\n",
    "Content-Length: 5\r\n",
    ":",
    "+",
    "-",
    "0x",
    "ffffffffffffffff",
    "\0",
];

fn soup(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    vec(select(pieces), 0..24).prop_map(|pieces| pieces.concat().into_bytes())
}

/// A well-formed field and whether it is end to end.
fn field() -> impl Strategy<Value = (String, String, bool)> {
    let hop = select(
        &["Keep-Alive", "Proxy-Connection", "TE", "X-Hop", "Content_Length", "Proxy-Authorization"][..],
    );
    let value = "[!-~]([ -~\u{e9}]{0,20}[!-~])?";
    prop_oneof![
        ("E-[a-zA-Z0-9_]{0,8}", value).prop_map(|(name, value)| (name, value, true)),
        (hop, value).prop_map(|(name, value)| (name.to_owned(), value, false)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_break_nothing(bytes in vec(any::<u8>(), 0..200)) {
        fuzz::head_request(&bytes);
        fuzz::head_response(&bytes);
        fuzz::chunked(&bytes);
    }

    #[test]
    fn almost_requests_break_nothing(bytes in soup(REQUEST_PIECES)) {
        fuzz::head_request(&bytes);
    }

    #[test]
    fn almost_fields_break_nothing(bytes in soup(&REQUEST_PIECES[16..])) {
        fuzz::head_request(&[b"POST /a HTTP/1.1\r\nHost: a\r\n", &bytes[..], b"\r\n"].concat());
    }

    #[test]
    fn almost_responses_break_nothing(choice in 0..8u8, bytes in soup(RESPONSE_PIECES)) {
        fuzz::head_response(&[&[choice], &bytes[..]].concat());
        fuzz::head_response(&[&[choice], &b"HTTP/1.1 200 OK\r\n"[..], &bytes, b"\r\n"].concat());
    }

    #[test]
    fn almost_chunks_break_nothing(bytes in soup(CHUNK_PIECES)) {
        fuzz::chunked(&bytes);
        fuzz::chunked(&[b"5\r\nhello\r\n", &bytes[..]].concat());
    }

    #[test]
    fn end_to_end_fields_survive_in_order_and_others_do_not(fields in vec(field(), 0..20)) {
        let mut raw = String::from("GET /p HTTP/1.1\r\nHost: a\r\nConnection: X-Hop\r\n");
        for (name, value, _) in &fields {
            raw.push_str(&format!("{name}: {value}\r\n"));
        }
        raw.push_str("\r\n");
        let sent = rewrite(raw.as_bytes());
        let mut storage = FieldStorage::new();
        let sent = parse_request(&sent, &mut HeadScan::default(), &mut storage, &LIMITS).unwrap().unwrap();
        let passed: Vec<_> = sent.fields.iter()
            .filter(|field| field.kind == FieldKind::Other && field.name.starts_with(b"E-"))
            .map(|field| (field.name.to_vec(), field.value.to_vec()))
            .collect();
        let expected: Vec<_> = fields.iter()
            .filter(|(_, _, is_end_to_end)| *is_end_to_end)
            .map(|(name, value, _)| (name.clone().into_bytes(), value.clone().into_bytes()))
            .collect();
        prop_assert_eq!(passed, expected);
        // Beside them only Host and what the proxy says itself: nothing of the others came through.
        prop_assert_eq!(sent.fields.of_kind(FieldKind::Other).count(), fields.iter().filter(|field| field.2).count());
    }

    #[test]
    fn chunks_cut_anywhere_give_the_same_payload(
        payloads in vec(vec(any::<u8>(), 1..300), 0..6),
        cuts in vec(1..64usize, 1..40),
    ) {
        let mut coded = Vec::new();
        for payload in &payloads {
            coded.extend_from_slice(format!("{:x}\r\n", payload.len()).as_bytes());
            coded.extend_from_slice(payload);
            coded.extend_from_slice(b"\r\n");
        }
        coded.extend_from_slice(b"0\r\nX-Sum: 1\r\n\r\nGET /next");
        let (decoded, used) = decode_in_pieces(&coded, &cuts);
        prop_assert_eq!(decoded, payloads.concat());
        prop_assert_eq!(&coded[used..], b"GET /next");
        let mut scanner = BodyDecoder::for_request(BodyLength::Chunked);
        let scan = scanner.scan(&coded).unwrap();
        prop_assert_eq!((scan.consumed, scan.done), (used, true));
        prop_assert_eq!(scan.chunks_started as usize, payloads.len());
        prop_assert_eq!(scanner.trailers().unwrap().as_bytes(), b"X-Sum: 1\r\n");
    }
}

fn rewrite(raw: &[u8]) -> Vec<u8> {
    let mut storage = FieldStorage::new();
    let head = parse_request(raw, &mut HeadScan::default(), &mut storage, &LIMITS).unwrap().unwrap();
    let rules = HeaderEdits::default();
    let edits = RequestEdits {
        host: HostChoice::Keep { fallback: "b" },
        client: None,
        scheme: "http",
        trust_forwarded: false,
        request_id: b"id",
        via: "millrace",
        rules: &rules,
        body: head.length,
        expect_continue: false,
        upgrade: false,
        close: false,
    };
    let mut out = vec![0; raw.len() + 1024];
    let len = encode_request(&mut out, &head, &edits).unwrap();
    out.truncate(len);
    out
}

/// The payload and how much of the input was used, if the input comes in pieces of these lengths, over and over.
fn decode_in_pieces(coded: &[u8], cuts: &[usize]) -> (Vec<u8>, usize) {
    let (mut body, mut at, mut payload) = (BodyDecoder::for_request(BodyLength::Chunked), 0, Vec::new());
    for cut in cuts.iter().cycle() {
        let end = coded.len().min(at + cut);
        while at < end {
            let step = body.decode(&coded[at..end]).unwrap();
            payload.extend_from_slice(&coded[at + step.framing..at + step.consumed()]);
            at += step.consumed();
            if step.done {
                return (payload, at);
            }
        }
        assert!(at < coded.len(), "the body does not end");
    }
    unreachable!("cycle() does not end")
}
