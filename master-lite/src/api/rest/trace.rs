//! The outermost layer: every request gets an id and belongs to a trace, every answer names them, and the log has a line
//! of it.

use std::net::IpAddr;
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use crate::keys;

/// Names one request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Names the trace it belongs to (W3C Trace Context).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest id that is taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The client's address; put into each request by the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// What a request is called.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    pub(super) request_id: String,
    pub(super) trace_id: String,
}

tokio::task_local! {
    static TRACE: Trace;
}

impl Trace {
    /// Of the request that is being answered; empty outside of one.
    pub(super) fn current() -> Self {
        let nothing = || Self { request_id: String::new(), trace_id: String::new() };
        TRACE.try_with(Clone::clone).unwrap_or_else(|_| nothing())
    }

    fn of(headers: &HeaderMap) -> Self {
        let request_id = headers.get(&REQUEST_ID).and_then(sane_id).unwrap_or_else(random_hex::<8>);
        let trace_id = headers.get(&TRACEPARENT).and_then(trace_id_of).unwrap_or_else(random_hex::<16>);
        Self { request_id, trace_id }
    }
}

/// Answers within a trace.
pub(super) async fn trace(request: Request, next: Next) -> Response {
    let trace = Trace::of(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let mut response = TRACE.scope(trace.clone(), next.run(request)).await;
    if let Ok(id) = HeaderValue::from_str(&trace.request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let (status, took_ms) = (response.status().as_u16(), began.elapsed().as_millis());
    tracing::debug!(%method, path, status, took_ms, request_id = trace.request_id, "answered");
    response
}

/// A client's id, if it is safe in a log line.
fn sane_id(value: &HeaderValue) -> Option<String> {
    let id = value.to_str().ok()?;
    let is_sane = (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte));
    is_sane.then(|| id.to_owned())
}

/// The trace id of `00-<trace id>-<parent id>-<flags>`.
fn trace_id_of(value: &HeaderValue) -> Option<String> {
    let [version, trace_id, parent_id, _flags]: [&str; 4] =
        value.to_str().ok()?.splitn(4, '-').collect::<Vec<_>>().try_into().ok()?;
    let is_hex = |text: &str, digits| {
        text.len() == digits
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_good = is_hex(version, 2)
        && version != "ff"
        && is_hex(trace_id, 32)
        && is_hex(parent_id, 16)
        && trace_id.bytes().any(|digit| digit != b'0');
    is_good.then(|| trace_id.to_owned())
}

fn random_hex<const N: usize>() -> String {
    keys::random::<N>().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_traceparent_is_followed_and_a_bad_one_is_not() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let of = |text: &str| trace_id_of(&HeaderValue::from_str(text).unwrap());
        assert_eq!(of(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        for bad in [
            "",
            "00",
            &format!("ff-{id}-00f067aa0ba902b7-01"),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_id_that_could_forge_a_log_line_is_not_taken_over() {
        assert!(sane_id(&HeaderValue::from_static("abc-1")).is_some());
        assert!(sane_id(&HeaderValue::from_static("a b=c")).is_none());
        assert!(sane_id(&HeaderValue::from_str(&"a".repeat(129)).unwrap()).is_none());
    }
}
