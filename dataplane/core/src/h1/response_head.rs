//! Response heads: bytes to [`ResponseHead`], or the reason why not. An origin (or what sits in front of it) that frames a response
//! in two ways could give one client the answer meant for another: that is refused. One that merely says too much is not: see
//! the classes in `framing`.

use std::mem::MaybeUninit;

use super::error::{HeadErrorKind, ResponseError};
use super::field::{FIELDS_MAX, Field, FieldKind, FieldStorage, Fields};
use super::framing::ResponseFraming;
pub use super::framing::ResponseLength;
use super::head::{Digest, HeadLimits, HeadScan, is_event_stream};
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
    /// What `Content-Length` says of a body that is left out (HEAD, 304).
    pub declared_length: Option<u64>,
    /// What the origin says twice or without need of the length of the body; see the classes in `framing`. The response is passed
    /// on without it, and its connection is not used again.
    pub superfluous: Option<HeadErrorKind>,
    /// Whether the connection can stay open once the body has been read: the origin lets it, and nothing about this response is
    /// doubtful.
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
        self.content_type.is_some_and(is_event_stream)
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
    let fields = storage.index(buf, bytes, response.headers, |field| add(&mut digest, field))?;
    let ResponseFraming { length, declared, superfluous } =
        digest.framing.of_response(version, status, asked.method)?;
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
        declared_length: declared,
        superfluous,
        keep_alive: persists
            && !digest.connection.close
            && idle_ms_max > 0
            && length != ResponseLength::UntilClose
            && superfluous.is_none()
            && status != 101,
        idle_ms_max,
        content_type: digest.content_type,
        upgrade,
        bytes,
        names_fields: digest.connection.names > 0,
    })
}

/// Takes one field of a response into account. `Host`, `Expect` and `TE` mean something in requests only: they are dropped, and
/// what they say is no reason to refuse an answer. `Upgrade` that says the same twice says it.
fn add<'b>(digest: &mut Digest<'b>, field: Field<'b>) -> Result<(), HeadErrorKind> {
    let is_of_requests = matches!(field.kind, FieldKind::Host | FieldKind::Expect | FieldKind::Te);
    let is_said = field.kind == FieldKind::Upgrade
        && digest.upgrade.is_some_and(|before| before.eq_ignore_ascii_case(field.value));
    if is_of_requests || is_said { Ok(()) } else { digest.add(field) }
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
