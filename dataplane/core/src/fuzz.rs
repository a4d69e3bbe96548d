//! What must hold for any bytes at all, as functions that panic where it does not. The fuzz targets in `fuzz/` and the tests over the
//! kept corpus call the same ones. Not part of the API.

use proto::config::{Config, ConfigErrors, HeaderEdits, HostHeader};

use crate::h1::field::is_token;
use crate::h1::{
    Asked, BodyDecoder, Client, FieldKind, FieldStorage, HeadLimits, HeadScan, Host, HostChoice, LAST_CHUNK,
    RequestEdits, RequestHead, ResponseEdits, ResponseHead, ResponseLength, SendLength, chunk_head,
    encode_request, encode_response, parse_request, parse_response, response_framing,
};
use crate::request::{BodyLength, Method, Version};

/// Small enough that fuzzing reaches them.
const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 32 };

/// Room for any encoded head under [`LIMITS`].
const OUT_BYTES: usize = 8192;

/// Any bytes as what a client sends: head, then body.
pub fn head_request(data: &[u8]) {
    let mut storage = FieldStorage::new();
    let whole = parse_request(data, &mut HeadScan::default(), &mut storage, &LIMITS);
    let taken_at = request_in_pieces(data);
    match whole {
        Ok(Some(head)) => {
            assert_eq!(taken_at, Some(head.bytes), "taken in pieces at another place");
            check_request_rewrite(&head);
            check_body(|| BodyDecoder::for_request(head.length), &data[head.bytes..]);
        }
        Ok(None) | Err(_) => assert_eq!(taken_at, None, "taken in pieces, not as a whole"),
    }
}

/// The length of the head, if it is taken when its bytes come one by one.
fn request_in_pieces(data: &[u8]) -> Option<usize> {
    let mut scan = HeadScan::default();
    for end in 1..=data.len() {
        let mut storage = FieldStorage::new();
        match parse_request(&data[..end], &mut scan, &mut storage, &LIMITS) {
            Ok(None) => {}
            Ok(Some(head)) => {
                assert_eq!(head.bytes, end, "a head that was complete before");
                return Some(end);
            }
            Err(_) => return None,
        }
    }
    None
}

/// What we send must mean to the next parser what the client meant to us.
fn check_request_rewrite(head: &RequestHead<'_>) {
    let rules = HeaderEdits::default();
    let edits = RequestEdits {
        host: HostChoice::Keep { fallback: "origin" },
        client: Some([192, 0, 2, 7].into()),
        scheme: "http",
        trust_forwarded: false,
        request_id: head.request_id().unwrap_or("made").as_bytes(),
        via: "millrace",
        rules: &rules,
        body: head.length,
        expect_continue: true,
        upgrade: true,
        close: false,
    };
    let mut out = [0; OUT_BYTES];
    let len = encode_request(&mut out, head, &edits).expect("a rewritten head fits");
    let mut storage = FieldStorage::new();
    let limits = HeadLimits { bytes: OUT_BYTES, fields: LIMITS.fields + 16 };
    let sent = parse_request(&out[..len], &mut HeadScan::default(), &mut storage, &limits)
        .expect("a rewritten head is well-formed")
        .expect("a rewritten head is complete");
    assert_eq!(sent.bytes, len, "another request behind the head");
    assert_eq!((sent.method_text, sent.version), (head.method_text, Version::Http11));
    assert_eq!((sent.target.path, sent.target.query), (head.target.path, head.target.query));
    assert_eq!((sent.length, sent.upgrade), (head.length, head.upgrade));
    assert_eq!(sent.expect_continue, head.expect_continue);
    assert_eq!(sent.host.map(|host| host.raw), head.host.map_or(Some("origin"), |host| Some(host.raw)));
    assert_eq!(sent.request_id().map(str::as_bytes), Some(edits.request_id));
    let last_address = sent.fields.of_kind(FieldKind::XForwardedFor).last().map(|field| field.value);
    assert!(last_address.is_some_and(|value| value.ends_with(b"192.0.2.7")), "the client's address is lost");
}

/// Any bytes as what an origin sends. The first byte chooses what was asked.
pub fn head_response(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let method = if choice & 1 == 0 { Method::Get } else { Method::Head };
    let asked = Asked { method, upgrade: choice & 2 != 0 };
    let version = if choice & 4 == 0 { Version::Http11 } else { Version::Http10 };
    let mut storage = FieldStorage::new();
    let whole = parse_response(data, &mut HeadScan::default(), &mut storage, asked, &LIMITS);
    let taken_at = response_in_pieces(data, asked);
    match whole {
        Ok(Some(head)) => {
            assert_eq!(taken_at, Some(head.bytes), "taken in pieces at another place");
            check_response_rewrite(&head, Client { version, keep_alive: true, method }, asked);
            check_body(|| BodyDecoder::for_response(head.length), &data[head.bytes..]);
        }
        Ok(None) | Err(_) => assert_eq!(taken_at, None, "taken in pieces, not as a whole"),
    }
}

fn response_in_pieces(data: &[u8], asked: Asked) -> Option<usize> {
    let mut scan = HeadScan::default();
    for end in 1..=data.len() {
        let mut storage = FieldStorage::new();
        match parse_response(&data[..end], &mut scan, &mut storage, asked, &LIMITS) {
            Ok(None) => {}
            Ok(Some(head)) => {
                assert_eq!(head.bytes, end, "a head that was complete before");
                return Some(end);
            }
            Err(_) => return None,
        }
    }
    None
}

fn check_response_rewrite(head: &ResponseHead<'_>, client: Client, asked: Asked) {
    let rules = HeaderEdits::default();
    let sending = response_framing(&client, head);
    let edits = ResponseEdits {
        client_version: client.version,
        sending,
        rules: &rules,
        via: Some("millrace"),
        request_id: Some(b"made"),
    };
    let mut out = [0; OUT_BYTES];
    let len = encode_response(&mut out, head, &edits).expect("a rewritten head fits");
    let mut storage = FieldStorage::new();
    let limits = HeadLimits { bytes: OUT_BYTES, fields: LIMITS.fields + 16 };
    let sent = parse_response(&out[..len], &mut HeadScan::default(), &mut storage, asked, &limits)
        .expect("a rewritten head is well-formed")
        .expect("a rewritten head is complete");
    assert_eq!((sent.bytes, sent.status, sent.upgrade), (len, head.status, head.upgrade));
    assert_eq!(sent.superfluous, None, "what we say ourselves is plain");
    let expected = match sending.length {
        SendLength::Sized(length) => ResponseLength::Sized(length),
        SendLength::Chunked => ResponseLength::Chunked,
        SendLength::UntilClose => ResponseLength::UntilClose,
        SendLength::None | SendLength::Declared(_) => ResponseLength::None,
    };
    assert_eq!(sent.length, expected);
    assert!(client.version == Version::Http11 || expected != ResponseLength::Chunked, "chunked to HTTP/1.0");
}

/// Any bytes as a chunked body.
pub fn chunked(data: &[u8]) {
    check_body(|| BodyDecoder::for_request(BodyLength::Chunked), data);
}

/// A body decoded in one piece, byte by byte, and scanned must come to the same, and what it held must survive being chunked anew.
fn check_body(decoder: impl Fn() -> BodyDecoder, data: &[u8]) {
    let whole = decode(&mut decoder(), data, data.len());
    let dripped = decode(&mut decoder(), data, 1);
    assert_eq!(whole, dripped, "decoding depends on the pieces");
    let mut scanned = decoder();
    match (&whole, scanned.scan(data)) {
        (Ok(body), Ok(scan)) => {
            assert_eq!((body.consumed, body.done), (scan.consumed, scan.done));
            assert_eq!(body.payload.len() as u64, scan.data);
            assert_eq!(scanned.is_done(), scan.done);
            check_rechunked(&body.payload);
        }
        (Err(error), scan) => assert_eq!(Err(*error), scan),
        (Ok(_), Err(error)) => panic!("scanning refuses what decoding takes: {error}"),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Body {
    payload: Vec<u8>,
    consumed: usize,
    done: bool,
}

fn decode(decoder: &mut BodyDecoder, data: &[u8], piece: usize) -> Result<Body, crate::h1::BodyError> {
    let mut body = Body { payload: Vec::new(), consumed: 0, done: decoder.is_done() };
    while !body.done && body.consumed < data.len() {
        let end = data.len().min(body.consumed + piece);
        let step = decoder.decode(&data[body.consumed..end])?;
        assert!(step.consumed() > 0, "no progress");
        let start = body.consumed + step.framing;
        body.payload.extend_from_slice(&data[start..start + step.data]);
        body.consumed += step.consumed();
        body.done = step.done;
    }
    Ok(body)
}

fn check_rechunked(payload: &[u8]) {
    let mut coded = Vec::new();
    for piece in payload.chunks(7) {
        coded.extend_from_slice(chunk_head(piece.len(), &mut [0; 18]));
        coded.extend_from_slice(piece);
        coded.extend_from_slice(crate::h1::CHUNK_END);
    }
    coded.extend_from_slice(LAST_CHUNK);
    let mut decoder = BodyDecoder::for_request(BodyLength::Chunked);
    let body = decode(&mut decoder, &coded, coded.len()).expect("our own chunks are well-formed");
    assert_eq!((&body.payload[..], body.consumed, body.done), (payload, coded.len(), true));
}

/// Any bytes as a config. What is taken must be safe to act on; what is refused must say where and be printable.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let env = |name: &str| name.len().is_multiple_of(2).then(|| format!("v-{name}"));
    match Config::parse(text, &env, "host") {
        Ok(config) => {
            assert_eq!(
                Config::parse(text, &env, "host").as_ref(),
                Ok(&config),
                "another config at the second reading"
            );
            config.warnings().iter().for_each(|warning| assert!(!warning.is_empty()));
            check_config(&config);
        }
        Err(errors) => check_config_errors(&errors, text),
    }
}

/// What the encoders write as it is must not be able to break a head.
fn check_config(config: &Config) {
    for route in &config.routes {
        assert!(config.clusters.iter().any(|cluster| cluster.name == route.cluster), "a route to nowhere");
        for edits in [&route.headers.request, &route.headers.response] {
            for (name, value) in edits.set.iter().chain(&edits.add) {
                assert!(is_token(name.as_bytes()), "{name:?} is no name");
                assert!(
                    !value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t'),
                    "{value:?} is no value"
                );
                assert!(!FieldKind::of(name.as_bytes()).is_managed(), "{name} is the proxy's own");
            }
        }
    }
    for cluster in &config.clusters {
        assert!(!cluster.endpoints.is_empty(), "a cluster of nothing");
        if let HostHeader::Fixed(host) = &cluster.host_header {
            assert!(Host::parse(host.as_bytes()).is_some(), "{host:?} is no host");
        }
    }
}

fn check_config_errors(errors: &ConfigErrors, text: &str) {
    assert!(!errors.as_slice().is_empty(), "refused without a reason");
    for error in errors.as_slice() {
        assert!(text.get(error.span.clone()).is_some(), "an error outside of the text");
        assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty());
    }
    assert!(!errors.render("edge.toml", text, false).is_empty());
    assert!(!errors.to_string().is_empty());
}
