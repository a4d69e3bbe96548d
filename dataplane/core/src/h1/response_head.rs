//! Response heads: bytes to [`ResponseHead`], or the reason why not. As strict as with requests: an origin (or what sits in front of it)
//! that frames a response in two ways could give one client the answer meant for another.

use std::mem::MaybeUninit;

use super::error::{HeadErrorKind, ResponseError};
use super::field::{FIELDS_MAX, FieldStorage, Fields, trim};
use super::head::{Digest, HeadLimits, HeadScan};
use super::request_head::{diagnose_fields, first_line};
use crate::request::{Method, Version};

/// What a response answers: its framing depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The method of the request.
    pub method: Method,
    /// Whether the request was sent with `Upgrade`; without it a 101 is refused.
    pub upgrade: bool,
}

/// How the end of a response body is known (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseLength {
    /// No body: an answer to HEAD, 1xx, 204, 304, or 2xx to CONNECT.
    None,
    /// `Content-Length`.
    Sized(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Neither: the body ends with the connection.
    UntilClose,
}

/// A response head, borrowed from the buffer it was read into.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'b> {
    /// 100 to 599.
    pub status: u16,
    /// The reason phrase; empty if there was none, or none in ASCII.
    pub reason: &'b str,
    /// The version of the origin.
    pub version: Version,
    /// The fields, in order.
    pub fields: Fields<'b>,
    /// How the end of the body is known.
    pub length: ResponseLength,
    /// What `Content-Length` says, also where no body follows (HEAD, 304).
    pub declared_length: Option<u64>,
    /// Whether the origin lets the connection stay open once the body has been read.
    pub keep_alive: bool,
    /// For how many milliseconds it may then be idle, by the origin's word less a margin; [`u32::MAX`] where it says nothing.
    pub idle_ms_max: u32,
    /// The first `Content-Type`.
    pub content_type: Option<&'b [u8]>,
    /// For a 101: the protocol that is spoken from here on.
    pub upgrade: Option<&'b str>,
    /// Length of the head with its empty line: the body begins here.
    pub bytes: usize,
    /// Whether `Connection` names fields beside the known options.
    pub(super) names_fields: bool,
}

impl ResponseHead<'_> {
    /// Whether another head follows for the same request: 1xx but not 101.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Whether the body is a stream of server-sent events, whatever parameters the media type carries.
    pub fn is_event_stream(&self) -> bool {
        let Some(value) = self.content_type else { return false };
        let media_type = value.split(|byte| *byte == b';').next().unwrap_or_default();
        trim(media_type).eq_ignore_ascii_case(b"text/event-stream")
    }
}

/// Reads the response head that `buf` begins with. `Ok(None)`: more bytes are needed; call again with the same bytes and more behind
/// them and the same `scan`. A new head (also the one behind an interim response) needs a new `scan`.
///
/// # Errors
/// The head is malformed, ambiguous or over a limit. The upstream connection cannot be used any further.
pub fn parse_response<'b>(
    buf: &'b [u8],
    scan: &mut HeadScan,
    storage: &'b mut FieldStorage,
    asked: Asked,
    limits: &HeadLimits,
) -> Result<Option<ResponseHead<'b>>, ResponseError> {
    // httparse skips empty lines before the status line; nothing may stand there.
    if buf.first().is_some_and(|byte| *byte != b'H') {
        return Err(HeadErrorKind::MalformedStatusLine.into());
    }
    if !scan.is_due(buf)? {
        return Ok(scan.wait(buf, limits).map(|()| None)?);
    }
    let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let headers = &mut headers[..limits.fields.min(FIELDS_MAX)];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, buf, headers) {
        Ok(httparse::Status::Complete(len)) if len <= limits.bytes => {
            Ok(Some(assemble(buf, len, &response, storage, asked)?))
        }
        Ok(httparse::Status::Complete(_)) => Err(HeadErrorKind::HeadTooLarge.into()),
        Ok(httparse::Status::Partial) => Ok(scan.wait(buf, limits).map(|()| None)?),
        Err(error) => Err(diagnose(buf, error).into()),
    }
}

fn assemble<'b>(
    buf: &'b [u8],
    bytes: usize,
    response: &httparse::Response<'_, 'b>,
    storage: &'b mut FieldStorage,
    asked: Asked,
) -> Result<ResponseHead<'b>, HeadErrorKind> {
    let version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let status = response.code.unwrap_or_default();
    if !(100..=599).contains(&status) {
        return Err(HeadErrorKind::MalformedStatusLine);
    }
    let mut digest = Digest::default();
    let fields = storage.index(buf, bytes, response.headers, |field| digest.add(field))?;
    let length = body_length(&digest, version, status, asked)?;
    let upgrade = if status == 101 { Some(switched(&digest, version, asked)?) } else { None };
    let persists = match version {
        Version::Http11 => true,
        Version::Http10 => digest.connection.keep_alive,
    };
    let idle_ms_max = digest.keep_alive.idle_ms_max();
    Ok(ResponseHead {
        status,
        reason: response.reason.unwrap_or_default(),
        version,
        fields,
        length,
        declared_length: digest.content_length,
        keep_alive: persists
            && !digest.connection.close
            && idle_ms_max > 0
            && length != ResponseLength::UntilClose
            && status != 101,
        idle_ms_max,
        content_type: digest.content_type,
        upgrade,
        bytes,
        names_fields: digest.connection.names > 0,
    })
}

/// RFC 9112, section 6.3, for responses, without its leniency.
fn body_length(
    digest: &Digest<'_>,
    version: Version,
    status: u16,
    asked: Asked,
) -> Result<ResponseLength, HeadErrorKind> {
    digest.check_framing()?;
    if digest.chunked && version == Version::Http10 {
        return Err(HeadErrorKind::EncodingNotAllowed);
    }
    let is_empty_by_status = status < 200 || status == 204;
    if is_empty_by_status && digest.chunked {
        // RFC 9112, section 6.1. Were it let pass, the chunks would be read as the next response.
        return Err(HeadErrorKind::EncodingNotAllowed);
    }
    if is_empty_by_status && digest.content_length.unwrap_or(0) > 0 {
        return Err(HeadErrorKind::BodyNotAllowed);
    }
    let is_connected = asked.method == Method::Connect && (200..300).contains(&status);
    if is_empty_by_status || status == 304 || asked.method == Method::Head || is_connected {
        return Ok(ResponseLength::None);
    }
    Ok(match (digest.chunked, digest.content_length) {
        (true, _) => ResponseLength::Chunked,
        (false, Some(length)) => ResponseLength::Sized(length),
        (false, None) => ResponseLength::UntilClose,
    })
}

/// RFC 9110, section 15.2.2: a 101 names the protocol, and answers only who asked for one.
fn switched<'b>(digest: &Digest<'b>, version: Version, asked: Asked) -> Result<&'b str, HeadErrorKind> {
    digest
        .switched_protocol()
        .filter(|_| asked.upgrade && version == Version::Http11)
        .ok_or(HeadErrorKind::UnexpectedSwitch)
}

#[cold]
fn diagnose(head: &[u8], error: httparse::Error) -> HeadErrorKind {
    match error {
        httparse::Error::TooManyHeaders => HeadErrorKind::TooManyFields,
        httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine => {
            diagnose_fields(head)
        }
        httparse::Error::Version => diagnose_version(first_line(head)),
        httparse::Error::Token | httparse::Error::Status if first_line(head).contains(&b'\r') => {
            HeadErrorKind::BareCr
        }
        httparse::Error::Token | httparse::Error::Status => HeadErrorKind::MalformedStatusLine,
    }
}

fn diagnose_version(line: &[u8]) -> HeadErrorKind {
    match line {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor, b' ', ..]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            HeadErrorKind::UnsupportedVersion
        }
        _ => HeadErrorKind::MalformedStatusLine,
    }
}
