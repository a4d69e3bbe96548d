//! Every class of malformed or ambiguous HTTP/1 message that the design names, row by row: what is accepted, as what, and what is
//! refused, why. The rows are in `tests/data`.
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a test that fails")]

mod h1_table;

use dataplane_core::h1::{
    Asked, BodyDecoder, BodyError, FieldStorage, HeadErrorKind, HeadLimits, HeadScan, RequestHead,
    ResponseHead, ResponseLength, parse_request, parse_response,
};
use dataplane_core::request::{BodyLength, Method};
use h1_table::{Row, latin1};
use serde_json::{Value, json};

const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 128 };

#[test]
fn requests_are_taken_or_refused_as_the_table_says() {
    let failures: Vec<_> = h1_table::requests().iter().filter_map(|row| check_request(row).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn responses_are_taken_or_refused_as_the_table_says() {
    let failures: Vec<_> = h1_table::responses().iter().filter_map(|row| check_response(row).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_class_of_the_design_has_rows() {
    let rows = h1_table::requests();
    for class in [
        "length_and_encoding",
        "content_length",
        "transfer_encoding",
        "obs_fold",
        "field_names",
        "line_ends",
        "control_bytes",
        "chunked_body",
        "version",
        "target",
        "host",
        "connect",
        "body_on_get",
        "expect",
        "upgrade",
        "accept",
        "trailing_data",
        "limits",
    ] {
        assert!(rows.iter().filter(|row| row.text("class") == Some(class)).count() >= 3, "{class}");
    }
}

/// The three classes of answers, and what makes an answer of one of the other two.
#[test]
fn every_class_of_responses_has_rows() {
    let rows = h1_table::responses();
    for expect in ["ok", "redundant", "refused"] {
        assert!(rows.iter().filter(|row| row.expect() == expect).count() >= 20, "{expect}");
    }
    for class in ["plain", "no_body", "interim", "upgrade", "framing", "connection", "request_fields"] {
        assert!(rows.iter().filter(|row| row.text("class") == Some(class)).count() >= 3, "{class}");
    }
}

/// A refusal must not depend on how the bytes come in: nothing that is refused as a whole is taken when it drips.
#[test]
fn no_row_is_taken_in_pieces_that_is_not_taken_whole() {
    for row in h1_table::requests() {
        let (mut scan, mut taken) = (HeadScan::default(), false);
        for end in 0..=row.raw.len().min(2000) {
            match parse_request(&row.raw[..end], &mut scan, &mut FieldStorage::new(), &LIMITS) {
                Ok(None) => {}
                Ok(Some(_)) => {
                    taken = true;
                    break;
                }
                Err(_) => break,
            }
        }
        let is_whole = matches!(row.expect(), "ok" | "body_refused") && row.raw.len() <= 2000;
        assert_eq!(taken, is_whole, "{}", row.name());
    }
}

#[test]
fn a_refusal_has_the_same_status_wherever_the_first_piece_ends() {
    let (mut wrong, mut storage) = (String::new(), FieldStorage::new());
    for row in h1_table::requests().iter().filter(|row| row.expect() == "refused") {
        for end in 1..row.raw.len().min(200) {
            let mut scan = HeadScan::default();
            let outcome = match parse_request(&row.raw[..end], &mut scan, &mut storage, &LIMITS) {
                Ok(_) => parse_request(&row.raw, &mut scan, &mut storage, &LIMITS).map(|head| head.is_some()),
                Err(error) => Err(error),
            };
            // Without an empty line there may still be something to wait for.
            let is_ended = row.raw.windows(4).any(|four| four == b"\r\n\r\n");
            if !is_ended && matches!(outcome, Ok(false)) {
                continue;
            }
            let status = outcome.as_ref().map_err(|error| json!(error.status));
            if status.err().as_ref() != row.column("status") {
                wrong += &format!("{}, cut at {end}: {outcome:?}\n", row.name());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn check_request(row: &Row) -> Result<(), String> {
    let mut storage = FieldStorage::new();
    let head = parse_request(&row.raw, &mut HeadScan::default(), &mut storage, &LIMITS);
    match (row.expect(), head) {
        ("incomplete", Ok(None)) => Ok(()),
        ("refused", Err(error)) => {
            same(row, "kind", json!(error.kind.as_str()))?;
            same(row, "status", json!(error.status))
        }
        ("ok", Ok(Some(head))) => check_accepted_request(row, &head),
        ("body_refused", Ok(Some(head))) => match rest_after_body(&head, &row.raw) {
            Err(error) => same(row, "kind", json!(error.as_str())),
            Ok(rest) => {
                Err(format!("{}: the body was taken, rest {:?}", row.name(), rest.escape_ascii().to_string()))
            }
        },
        (expect, head) => Err(format!("{}: {expect} expected, but {head:?}", row.name())),
    }
}

fn check_accepted_request(row: &Row, head: &RequestHead<'_>) -> Result<(), String> {
    let length = match head.length {
        BodyLength::None => json!("none"),
        BodyLength::Sized(length) => json!(length),
        BodyLength::Chunked => json!("chunked"),
    };
    same(row, "length", length)?;
    same(row, "keep_alive", json!(head.keep_alive))?;
    same_if_named(row, "path", json!(head.target.path))?;
    same_if_named(row, "query", json!(head.target.query))?;
    same_if_named(row, "host", json!(head.host.map(|host| host.raw)))?;
    same_if_named(row, "upgrade", json!(head.upgrade))?;
    same_if_named(row, "expect_continue", json!(head.expect_continue))?;
    same_if_named(row, "wants_events", json!(head.wants_events))?;
    let rest = rest_after_body(head, &row.raw).map_err(|error| format!("{}: {error}", row.name()))?;
    match rest == latin1(row.text("rest").unwrap_or_default()) {
        true => Ok(()),
        false => Err(format!("{}: the rest is {}", row.name(), rest.escape_ascii())),
    }
}

/// What stands behind the body of an accepted request.
fn rest_after_body<'r>(head: &RequestHead<'_>, raw: &'r [u8]) -> Result<&'r [u8], BodyError> {
    let mut body = BodyDecoder::for_request(head.length);
    let scan = body.scan(&raw[head.bytes..])?;
    body.finish()?;
    Ok(&raw[head.bytes + scan.consumed..])
}

fn check_response(row: &Row) -> Result<(), String> {
    let asked = Asked {
        method: Method::from_token(row.text("method").unwrap_or("GET")),
        upgrade: row.column("asked_upgrade").is_some_and(|asked| asked == &json!(true)),
    };
    let mut storage = FieldStorage::new();
    let head = parse_response(&row.raw, &mut HeadScan::default(), &mut storage, asked, &LIMITS);
    match (row.expect(), head) {
        ("incomplete", Ok(None)) => Ok(()),
        ("refused", Err(error)) => same(row, "kind", json!(error.kind.as_str())),
        ("ok", Ok(Some(head))) if head.superfluous.is_none() => {
            same(row, "keep_alive", json!(head.keep_alive))?;
            check_accepted_response(row, &head)
        }
        ("redundant", Ok(Some(head))) if !head.keep_alive => {
            same(row, "superfluous", json!(head.superfluous.map(HeadErrorKind::as_str)))?;
            check_accepted_response(row, &head)
        }
        (expect, head) => Err(format!("{}: {expect} expected, but {head:?}", row.name())),
    }
}

fn check_accepted_response(row: &Row, head: &ResponseHead<'_>) -> Result<(), String> {
    let length = match head.length {
        ResponseLength::None => json!("none"),
        ResponseLength::Sized(length) => json!(length),
        ResponseLength::Chunked => json!("chunked"),
        ResponseLength::UntilClose => json!("until_close"),
    };
    same(row, "length", length)?;
    same_if_named(row, "interim", json!(head.is_interim()))?;
    same_if_named(row, "event_stream", json!(head.is_event_stream()))
}

fn same(row: &Row, column: &str, actual: Value) -> Result<(), String> {
    match row.column(column) {
        Some(expected) if *expected == actual => Ok(()),
        expected => Err(format!("{}: {column} is {actual}, not {expected:?}", row.name())),
    }
}

fn same_if_named(row: &Row, column: &str, actual: Value) -> Result<(), String> {
    if row.column(column).is_some() { same(row, column, actual) } else { Ok(()) }
}
