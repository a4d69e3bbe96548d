//! Response heads on their way to the client, how their bodies are framed for that client, and the proxy's own errors. Not the decision
//! which error: that is the exchange's.

use proto::config::HeaderEdits;

use super::encode::{content_length, is_modern, is_protected, is_ruled_out, own, rule_lines};
use super::field::{Field, FieldKind};
use super::response_head::{ResponseHead, ResponseLength};
use super::writer::{Full, Writer};
use crate::request::{Method, Version};

/// What a client is sent that waits for permission to send its body (RFC 9110, section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What matters of a request once its response is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client's version.
    pub version: Version,
    /// Whether the connection may stay open: the client wants it, the request body has been read to its end, nobody drains.
    pub keep_alive: bool,
    /// What was asked.
    pub method: Method,
}

/// How a response body is framed for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendLength {
    /// No body and no field that announces one: interim responses, 101, 204, and HEAD or 304 without a known length.
    None,
    /// No body, but `Content-Length` says what GET would have had: HEAD and 304.
    Declared(u64),
    /// `Content-Length`.
    Sized(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Ends with the connection: for HTTP/1.0 clients, where the length is not known.
    UntilClose,
}

/// How a response is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The framing of its body.
    pub length: SendLength,
    /// Whether the client's connection stays open behind it.
    pub keep_alive: bool,
}

/// How the response is framed for this client.
///
/// A chunked response stays chunked and one with a length keeps it, so that bytes can be relayed as they are. A response that ends with
/// the origin's connection becomes chunked for HTTP/1.1, and whatever has no length ends with the connection for HTTP/1.0.
pub fn response_framing(client: &Client, head: &ResponseHead<'_>) -> Sending {
    let length = match head.length {
        ResponseLength::None if client.method == Method::Head || head.status == 304 => {
            head.declared_length.map_or(SendLength::None, SendLength::Declared)
        }
        ResponseLength::None => SendLength::None,
        ResponseLength::Sized(length) => SendLength::Sized(length),
        ResponseLength::Chunked | ResponseLength::UntilClose if is_modern(client.version) => {
            SendLength::Chunked
        }
        ResponseLength::Chunked | ResponseLength::UntilClose => SendLength::UntilClose,
    };
    Sending { length, keep_alive: client.keep_alive && length != SendLength::UntilClose }
}

/// What changes between the response as it came and as it is sent.
#[derive(Clone, Copy, Debug)]
pub struct ResponseEdits<'a> {
    /// The client's version. Interim responses must not be sent to HTTP/1.0 (RFC 9110, section 15.2).
    pub client_version: Version,
    /// Framing and persistence, from [`response_framing`].
    pub sending: Sending,
    /// The route's rules. They do not touch interim responses.
    pub rules: &'a HeaderEdits,
    /// The name of this proxy, if the response is to carry `Via`.
    pub via: Option<&'a str>,
    /// The request's id, if the response is to carry `X-Request-ID`; it takes the place of the origin's.
    pub request_id: Option<&'a [u8]>,
}

/// Writes the head that is sent to the client: also an interim one, and a 101, which keeps its `Upgrade`. Returns how many bytes of
/// `out` were written.
///
/// # Errors
/// `out` is too small: it takes the head's own length and what is added, which is some 200 bytes and the rules.
pub fn encode_response(
    out: &mut [u8],
    head: &ResponseHead<'_>,
    edits: &ResponseEdits<'_>,
) -> Result<usize, Full> {
    let mut writer = Writer::new(out);
    status_line(&mut writer, head.status, head.reason)?;
    head.fields.write_runs(|field| keeps(field, head, edits), |lines| writer.put(lines))?;
    if !head.is_interim() {
        if let Some(via) = edits.via {
            own(&mut writer, edits.rules, b"Via", &[head.version.number().as_bytes(), b" ", via.as_bytes()])?;
        }
        if let Some(id) = edits.request_id {
            own(&mut writer, edits.rules, b"X-Request-ID", &[id])?;
        }
        connection(&mut writer, head, edits)?;
        framing(&mut writer, edits.sending.length)?;
        rule_lines(&mut writer, edits.rules)?;
    }
    writer.put(b"\r\n")?;
    Ok(writer.len())
}

fn status_line(writer: &mut Writer<'_>, status: u16, reason: &str) -> Result<(), Full> {
    writer.put(b"HTTP/1.1 ")?;
    writer.number(u64::from(status))?;
    writer.put(b" ")?;
    writer.put(reason.as_bytes())?;
    writer.put(b"\r\n")
}

fn keeps(field: &Field<'_>, head: &ResponseHead<'_>, edits: &ResponseEdits<'_>) -> bool {
    let by_kind = match field.kind {
        FieldKind::Other
        | FieldKind::Accept
        | FieldKind::ContentType
        | FieldKind::Via
        | FieldKind::Forwarded
        | FieldKind::XForwardedFor
        | FieldKind::XForwardedProto
        | FieldKind::XForwardedHost => true,
        FieldKind::XRequestId => edits.request_id.is_none(),
        FieldKind::Trailer => {
            head.length == ResponseLength::Chunked && edits.sending.length == SendLength::Chunked
        }
        // RFC 9110, section 15.5.22: 426 tells which protocol would be taken.
        FieldKind::Upgrade => head.status == 426,
        FieldKind::Alias
        | FieldKind::Host
        | FieldKind::ContentLength
        | FieldKind::TransferEncoding
        | FieldKind::Connection
        | FieldKind::KeepAlive
        | FieldKind::ProxyConnection
        | FieldKind::ProxyAuthorization
        | FieldKind::ProxyAuthenticate
        | FieldKind::Te
        | FieldKind::Http2Settings
        | FieldKind::Expect => false,
    };
    by_kind
        && (head.is_interim() || !is_ruled_out(edits.rules, field.name))
        && !(head.names_fields && !is_protected(field) && head.fields.connection_names(field.name))
}

/// `Connection`: close is always said, keep-alive only to HTTP/1.0, which does not have it by default.
fn connection(
    writer: &mut Writer<'_>,
    head: &ResponseHead<'_>,
    edits: &ResponseEdits<'_>,
) -> Result<(), Full> {
    if let Some(protocol) = head.upgrade {
        writer.put(b"Connection: Upgrade\r\n")?;
        return writer.field(b"Upgrade", protocol.as_bytes());
    }
    let offers_upgrade = head.status == 426;
    match (edits.sending.keep_alive, edits.client_version) {
        (false, _) if offers_upgrade => writer.put(b"Connection: close, Upgrade\r\n"),
        (false, _) => writer.put(b"Connection: close\r\n"),
        (true, Version::Http11) if offers_upgrade => writer.put(b"Connection: Upgrade\r\n"),
        (true, Version::Http11) => Ok(()),
        (true, Version::Http10) => writer.put(b"Connection: keep-alive\r\n"),
    }
}

fn framing(writer: &mut Writer<'_>, length: SendLength) -> Result<(), Full> {
    match length {
        SendLength::None | SendLength::UntilClose => Ok(()),
        SendLength::Declared(length) | SendLength::Sized(length) => content_length(writer, length),
        SendLength::Chunked => writer.put(b"Transfer-Encoding: chunked\r\n"),
    }
}

/// What an error tells the client, in the shape that clients of LLM APIs know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorBody<'a> {
    /// For people.
    pub message: &'a str,
    /// The class of error, such as `invalid_request_error`.
    pub kind: &'a str,
    /// The exact error, such as `no_route`.
    pub code: &'a str,
    /// The request's id; empty if the head could not be read.
    pub request_id: &'a str,
}

/// Writes a whole error response, head and JSON body. Returns how many bytes of `out` were written. `head_only` leaves the body out
/// but not its length: for HEAD. To HTTP/1.0 pass `keep_alive: false`.
///
/// # Errors
/// `out` is too small: 1 KiB is enough for texts of some 100 bytes.
pub fn encode_error(
    out: &mut [u8],
    status: u16,
    body: &ErrorBody<'_>,
    keep_alive: bool,
    retry_after_s: Option<u32>,
    head_only: bool,
) -> Result<usize, Full> {
    let mut writer = Writer::new(out);
    status_line(&mut writer, status, reason(status))?;
    writer.put(b"Content-Type: application/json\r\n")?;
    content_length(&mut writer, json_len(body))?;
    if !body.request_id.is_empty() {
        writer.put(b"X-Request-ID: ")?;
        writer.put(body.request_id.as_bytes())?;
        writer.put(b"\r\n")?;
    }
    if let Some(seconds) = retry_after_s {
        writer.put(b"Retry-After: ")?;
        writer.number(u64::from(seconds))?;
        writer.put(b"\r\n")?;
    }
    writer.put(if keep_alive { b"\r\n" } else { b"Connection: close\r\n\r\n" })?;
    if !head_only {
        json(body, &mut |bytes| writer.put(bytes))?;
    }
    Ok(writer.len())
}

fn json_len(body: &ErrorBody<'_>) -> u64 {
    let mut len = 0;
    let _: Result<(), Full> = json(body, &mut |bytes| {
        len += bytes.len() as u64;
        Ok(())
    });
    len
}

fn json(body: &ErrorBody<'_>, put: &mut dyn FnMut(&[u8]) -> Result<(), Full>) -> Result<(), Full> {
    put(b"{\"error\":{\"message\":\"")?;
    json_text(body.message, put)?;
    put(b"\",\"type\":\"")?;
    json_text(body.kind, put)?;
    put(b"\",\"code\":\"")?;
    json_text(body.code, put)?;
    put(b"\",\"request_id\":\"")?;
    json_text(body.request_id, put)?;
    put(b"\"}}\n")
}

/// RFC 8259, section 7.
fn json_text(text: &str, put: &mut dyn FnMut(&[u8]) -> Result<(), Full>) -> Result<(), Full> {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut start = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' {
            continue;
        }
        put(&text.as_bytes()[start..at])?;
        start = at + 1;
        match byte {
            b'"' | b'\\' => put(&[b'\\', byte])?,
            _ => put(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]])?,
        }
    }
    put(&text.as_bytes()[start..])
}

/// The reason phrase of the statuses that the proxy itself answers with.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        499 => "Client Closed Request",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: ErrorBody<'_> = ErrorBody {
        message: "no \"route\"\n",
        kind: "invalid_request_error",
        code: "no_route",
        request_id: "r\\1",
    };

    fn error(keep_alive: bool, retry_after_s: Option<u32>, head_only: bool) -> String {
        let mut out = [0; 1024];
        let len = encode_error(&mut out, 503, &BODY, keep_alive, retry_after_s, head_only).unwrap();
        String::from_utf8(out[..len].to_vec()).unwrap()
    }

    #[test]
    fn an_error_is_a_whole_response_with_escaped_json() {
        let json = r#"{"error":{"message":"no \"route\"\u000a","type":"invalid_request_error","code":"no_route","request_id":"r\\1"}}"#;
        let expected = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             X-Request-ID: r\\1\r\nRetry-After: 7\r\nConnection: close\r\n\r\n{json}\n",
            json.len() + 1
        );
        assert_eq!(error(false, Some(7), false), expected);
    }

    #[test]
    fn an_error_to_head_has_the_length_but_no_body() {
        let text = error(true, None, true);
        assert!(text.ends_with("\r\n\r\n") && text.contains("Content-Length: 1"), "{text}");
        assert!(!text.contains("Connection"), "{text}");
    }

    #[test]
    fn a_buffer_that_is_too_small_is_no_panic() {
        for size in 0..200 {
            assert_eq!(encode_error(&mut vec![0; size], 503, &BODY, true, None, false), Err(Full));
        }
    }
}
