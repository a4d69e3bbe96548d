//! Writes a response: head, framing (RFC 9112, sections 6 and 7.1), body, and the faults that act on
//! bytes: cut, reset, split, freeze, malformed messages. It does not know what the bytes mean.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::clock::date;
use super::exchange::{Ended, Exchange};
use super::framing::BadFraming;
use super::route::Route;

/// A body up to this size goes out in one write with its head.
const TOGETHER_MAX: usize = 256 << 10;

/// How often a frozen exchange looks whether it may go on before its time.
const THAW_CHECK: Duration = Duration::from_millis(10);

/// How the end of a response body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// No body, and no field that speaks of one (204).
    Nothing,
    Sized(u64),
    Chunked,
    UntilClose,
}

/// A status and the fields that the endpoint wants.
#[derive(Debug)]
pub(crate) struct Head {
    status: u16,
    fields: String,
}

impl Head {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, fields: String::new() }
    }

    pub(crate) fn json(status: u16) -> Self {
        Self::new(status).field("Content-Type", "application/json")
    }

    /// The values are our own or were checked as field values: none of them carries a line end.
    pub(crate) fn field(mut self, name: &str, value: impl Display) -> Self {
        // Writing to a String cannot fail.
        let _ = write!(self.fields, "{name}: {value}\r\n");
        self
    }
}

/// What is done when the payload reaches a fault.
#[derive(Clone, Copy)]
struct Breakpoint {
    at: u64,
    ended: Ended,
}

impl Exchange<'_> {
    /// A whole response, in one write where no fault wants it otherwise.
    pub(crate) async fn respond(&mut self, head: Head, body: &[u8]) -> Result<(), Ended> {
        let framing = match head.status {
            204 | 304 => Framing::Nothing,
            _ => Framing::Sized(body.len() as u64),
        };
        let bare = self.request.is_head() || framing == Framing::Nothing;
        if bare || body.len() > TOGETHER_MAX || self.breakpoint().is_some() {
            self.start(head, framing).await?;
            self.write(body).await?;
            return self.finish().await;
        }
        let mut bytes = self.begin(&head, framing).await?;
        bytes.extend_from_slice(body);
        self.emit(&bytes).await?;
        self.payload_sent = body.len() as u64;
        Ok(())
    }

    /// An error body in the shape of the API that was asked.
    pub(crate) async fn respond_error(&mut self, status: u16, message: &str) -> Result<(), Ended> {
        let mut head = self.model_head(Head::json(status));
        let retry_after = self.knobs.retry_after.or(matches!(status, 429 | 503).then_some(1));
        if let Some(seconds) = retry_after {
            head = head.field("Retry-After", seconds);
        }
        if let Some(allow) = self.route.allow().filter(|_| status == 405) {
            head = head.field("Allow", allow);
        }
        let body = error_body(self.route, status, message);
        self.respond(head, &body).await
    }

    /// Sends the head of a response whose body follows in pieces.
    pub(crate) async fn start(&mut self, head: Head, framing: Framing) -> Result<(), Ended> {
        let bytes = self.begin(&head, framing).await?;
        self.emit(&bytes).await?;
        match self.breakpoint() {
            Some(Breakpoint { at: 0, ended }) => Err(ended),
            _ => Ok(()),
        }
    }

    /// Sends one piece of the body: one chunk, one write. Nothing in answer to HEAD.
    pub(crate) async fn write(&mut self, payload: &[u8]) -> Result<(), Ended> {
        if payload.is_empty() || self.request.is_head() || self.framing == Some(Framing::Nothing) {
            return Ok(());
        }
        self.hold_while_frozen().await?;
        if let Some(Breakpoint { at, ended }) = self.breakpoint()
            && self.payload_sent + payload.len() as u64 >= at
        {
            let kept = usize::try_from(at - self.payload_sent).unwrap_or(payload.len());
            return self.break_off(payload, kept, ended).await;
        }
        self.payload_sent += payload.len() as u64;
        if self.framing == Some(Framing::Chunked) {
            let mut chunk = Vec::with_capacity(payload.len() + 12);
            chunk.extend_from_slice(chunk_size(payload.len()).as_bytes());
            chunk.extend_from_slice(payload);
            chunk.extend_from_slice(b"\r\n");
            self.emit(&chunk).await
        } else {
            self.emit(payload).await
        }
    }

    /// One stream event: a piece of the body that is counted.
    pub(crate) async fn event(&mut self, event: &[u8]) -> Result<(), Ended> {
        self.events(event, 1).await
    }

    /// Stream events that go out together, in one piece.
    pub(crate) async fn events(&mut self, events: &[u8], count: u64) -> Result<(), Ended> {
        self.write(events).await?;
        self.connection.worker.ledger.events_sent(count);
        Ok(())
    }

    /// Ends the body.
    pub(crate) async fn finish(&mut self) -> Result<(), Ended> {
        self.finish_with_trailers("").await
    }

    /// Ends the body with trailers, written as field lines (RFC 9112, section 7.1.2).
    pub(crate) async fn finish_with_trailers(&mut self, trailers: &str) -> Result<(), Ended> {
        if self.framing != Some(Framing::Chunked) || self.request.is_head() {
            return Ok(());
        }
        self.hold_while_frozen().await?;
        self.emit(format!("0\r\n{trailers}\r\n").as_bytes()).await
    }

    /// An interim response (RFC 9110, section 15.2). HTTP/1.0 clients get none.
    pub(crate) async fn interim(&mut self, head: &str) -> Result<(), Ended> {
        if self.request.minor_version == 0 {
            return Ok(());
        }
        self.before_head().await?;
        self.emit(head.as_bytes()).await
    }

    /// Sends a malformed response as it stands.
    pub(crate) async fn respond_badly(&mut self, variant: BadFraming) -> Result<(), Ended> {
        self.before_head().await?;
        self.framing = Some(Framing::UntilClose);
        self.emit(&variant.bytes()).await?;
        if variant.keeps_connection() { Ok(()) } else { Err(Ended::Cut) }
    }

    /// Fields that the model APIs send with every answer.
    pub(crate) fn model_head(&self, head: Head) -> Head {
        match self.request.field("x-request-id") {
            Some(id) => head.field("X-Request-Id", id),
            None => head,
        }
    }

    /// What comes before the first byte of a response, and the bytes of its head.
    async fn begin(&mut self, head: &Head, wanted: Framing) -> Result<Vec<u8>, Ended> {
        self.before_head().await?;
        let framing = match wanted {
            // RFC 9112, section 6.1: no Transfer-Encoding to a client that may not know it.
            Framing::Chunked if self.request.minor_version == 0 => Framing::UntilClose,
            Framing::Nothing | Framing::Sized(_) | Framing::Chunked | Framing::UntilClose => wanted,
        };
        self.keep_alive &= framing != Framing::UntilClose;
        self.framing = Some(framing);
        self.connection.worker.ledger.status_sent(self.route, head.status);
        Ok(self.head_bytes(head, framing))
    }

    fn head_bytes(&self, head: &Head, framing: Framing) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256 + head.fields.len());
        bytes.extend_from_slice(
            format!("HTTP/1.1 {} {}\r\nDate: ", head.status, reason(head.status)).as_bytes(),
        );
        bytes.extend_from_slice(&date());
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(head.fields.as_bytes());
        match framing {
            Framing::Nothing | Framing::UntilClose => {}
            Framing::Sized(length) => {
                bytes.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes())
            }
            Framing::Chunked => bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
        if !self.keep_alive {
            bytes.extend_from_slice(b"Connection: close\r\n");
        } else if self.request.minor_version == 0 {
            bytes.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    async fn before_head(&mut self) -> Result<(), Ended> {
        let stall = std::mem::take(&mut self.knobs.stall_before);
        if !stall.is_zero() {
            self.pause(stall).await?;
        }
        self.hold_while_frozen().await
    }

    async fn hold_while_frozen(&mut self) -> Result<(), Ended> {
        while !self.route.is_control()
            && let Some(until) = self.connection.worker.shared.faults.frozen_until()
        {
            self.pause_until(until.min(Instant::now() + THAW_CHECK)).await?;
        }
        Ok(())
    }

    /// Sends the part of `payload` that comes before the fault, framed as if all of it came.
    async fn break_off(&mut self, payload: &[u8], kept: usize, ended: Ended) -> Result<(), Ended> {
        let mut bytes = Vec::with_capacity(kept + 12);
        if self.framing == Some(Framing::Chunked) {
            bytes.extend_from_slice(chunk_size(payload.len()).as_bytes());
        }
        bytes.extend_from_slice(&payload[..kept]);
        self.emit(&bytes).await?;
        self.payload_sent += kept as u64;
        Err(ended)
    }

    /// The fault that comes first in the body.
    fn breakpoint(&self) -> Option<Breakpoint> {
        let cut = self.knobs.cut_at.map(|at| Breakpoint { at, ended: Ended::Cut });
        let reset = self.knobs.rst_at.map(|at| Breakpoint { at, ended: Ended::Reset });
        match (cut, reset) {
            (Some(cut), Some(reset)) => Some(if cut.at <= reset.at { cut } else { reset }),
            (cut, reset) => cut.or(reset),
        }
    }

    /// Every byte of a response passes here.
    async fn emit(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let Some(size) = self.knobs.split else {
            return Ok(self.connection.write_all(bytes).await?);
        };
        for piece in bytes.chunks(size) {
            self.connection.write_all(piece).await?;
            if !self.knobs.split_gap.is_zero() {
                self.pause(self.knobs.split_gap).await?;
            }
        }
        Ok(())
    }
}

/// An error body as OpenAI's API writes it, or Anthropic's on `/v1/messages`.
pub(crate) fn error_body(route: Route, status: u16, message: &str) -> Vec<u8> {
    let value = if route == Route::Messages {
        json!({ "type": "error", "error": { "type": anthropic_error(status), "message": message } })
    } else {
        let (kind, code) = openai_error(status);
        json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
    };
    value.to_string().into_bytes()
}

/// `type` and `code` of OpenAI's errors.
pub(crate) fn openai_error(status: u16) -> (&'static str, Option<&'static str>) {
    match status {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        404 => ("invalid_request_error", Some("not_found")),
        429 => ("requests", Some("rate_limit_exceeded")),
        500.. => ("server_error", Some("server_error")),
        _ => ("invalid_request_error", None),
    }
}

/// `type` of Anthropic's errors.
pub(crate) fn anthropic_error(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 | 503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn chunk_size(length: usize) -> String {
    format!("{length:x}\r\n")
}

/// The phrases of RFC 9110, section 15; empty for others, which section 4 of RFC 9112 allows.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}
