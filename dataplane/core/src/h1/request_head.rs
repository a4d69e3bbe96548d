//! Request heads: bytes to [`RequestHead`], or the reason why not. Not a repair shop: whatever another parser could read
//! differently is refused.

use std::mem::MaybeUninit;

use super::error::{HeadErrorKind, RequestError};
use super::field::{FIELDS_MAX, FieldStorage, Fields, TOKEN, is_token};
use super::head::{Digest, HeadLimits, HeadScan, RequestId};
use super::target::{Host, Target};
use crate::request::{BodyLength, Method, Version};

/// Empty lines put up with in front of a request line (RFC 9112, section 2.2, asks for at least one).
const LEADING_LINES_MAX: usize = 4;

/// Longest method. The longest registered one has 17 bytes (`UPDATEREDIRECTREF`; RFC 9110, section 16.1.1): twice as much is no
/// method of anybody's, and origins keep methods in short buffers.
const METHOD_BYTES_MAX: usize = 32;

/// Longest `X-Request-ID` that is kept: it goes into every log line.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// A request head, borrowed from the buffer it was read into.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'b> {
    /// The method.
    pub method: Method,
    /// The method as it was written.
    pub method_text: &'b str,
    /// The version of the client.
    pub version: Version,
    /// What is asked for.
    pub target: Target<'b>,
    /// Whom it is asked of: the authority of an absolute target, else `Host`; none only in HTTP/1.0.
    pub host: Option<Host<'b>>,
    /// The fields, in order.
    pub fields: Fields<'b>,
    /// How the end of the body is known.
    pub length: BodyLength,
    /// Whether the client lets the connection stay open (RFC 9112, section 9.3).
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// Whether the client asks for a stream of server-sent events (`Accept: text/event-stream`), as browsers' `EventSource` does.
    pub wants_events: bool,
    /// The protocol that the client wants to switch to. Only for requests without a body: bytes behind the head then belong to
    /// nobody until the origin has answered 101.
    pub upgrade: Option<&'b str>,
    /// Whether the client takes trailers (`TE: trailers`).
    pub te_trailers: bool,
    /// Length of the head with its empty line and any empty lines before it: the body begins here.
    pub bytes: usize,
    /// Whether `Connection` names fields beside the known options.
    pub(super) names_fields: bool,
    request_id: RequestId<'b>,
}

impl<'b> RequestHead<'b> {
    /// The client's `X-Request-ID`, if it sent one that can be kept: visible ASCII, at most 128 bytes.
    pub fn request_id(&self) -> Option<&'b str> {
        let RequestId::One(value) = self.request_id else { return None };
        let is_fit =
            (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
        if is_fit { str::from_utf8(value).ok() } else { None }
    }
}

/// Reads the request head that `buf` begins with. `Ok(None)`: more bytes are needed; call again with the same bytes and more behind them,
/// the same `scan`, and the same limits. A new head needs a new `scan`.
///
/// # Errors
/// The head is malformed, ambiguous, over a limit or asks for something that is not done here.
pub fn parse_request<'b>(
    buf: &'b [u8],
    scan: &mut HeadScan,
    storage: &'b mut FieldStorage,
    limits: &HeadLimits,
) -> Result<Option<RequestHead<'b>>, RequestError> {
    if !scan.is_due(buf)? {
        return Ok(wait(buf, scan, limits).map(|()| None)?);
    }
    let skipped = leading_lines(buf)?;
    let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let headers = &mut headers[..limits.fields.min(FIELDS_MAX)];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(&buf[skipped..], headers) {
        Ok(httparse::Status::Complete(len)) if skipped + len <= limits.bytes => {
            let digest = Digest::default();
            Ok(Some(assemble(buf, skipped + len, &request, storage, digest)?))
        }
        Ok(httparse::Status::Complete(_)) => Err(too_large(buf, limits).into()),
        Ok(httparse::Status::Partial) => Ok(wait(buf, scan, limits).map(|()| None)?),
        Err(httparse::Error::Version) if is_version_cut(buf) => Ok(wait(buf, scan, limits).map(|()| None)?),
        Err(error) => Err(diagnose(&buf[skipped..], error).into()),
    }
}

/// Puts together what httparse took and our own rules let pass.
fn assemble<'b>(
    buf: &'b [u8],
    bytes: usize,
    request: &httparse::Request<'_, 'b>,
    storage: &'b mut FieldStorage,
    mut digest: Digest<'b>,
) -> Result<RequestHead<'b>, HeadErrorKind> {
    let method_text = request.method.unwrap_or_default();
    let method = Method::from_token(method_text);
    if method == Method::Connect {
        return Err(HeadErrorKind::ConnectRefused);
    }
    if method_text.len() > METHOD_BYTES_MAX {
        return Err(HeadErrorKind::MethodTooLong);
    }
    let version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let fields = storage.index(buf, bytes, request.headers, |field| digest.add(field))?;
    let length = digest.framing.of_request(version, method)?;
    let target = Target::parse(request.path.unwrap_or_default(), method)?;
    let host = effective_host(&digest, &target, version)?;
    let is_11 = version == Version::Http11;
    Ok(RequestHead {
        method,
        method_text,
        version,
        target,
        host,
        fields,
        length,
        keep_alive: !digest.connection.close && (is_11 || digest.connection.keep_alive),
        // RFC 9110, section 10.1.1: ignored in HTTP/1.0, and pointless without a body.
        expect_continue: digest.expect_continue && is_11 && length.has_body(),
        wants_events: digest.wants_events,
        upgrade: digest.switched_protocol().filter(|_| is_11 && !length.has_body()),
        te_trailers: digest.te_trailers && is_11,
        bytes,
        names_fields: digest.connection.names > 0,
        request_id: digest.request_id,
    })
}

/// RFC 9112, section 3.2. Where an absolute target and `Host` disagree the RFC lets the target win; the origin might not.
fn effective_host<'b>(
    digest: &Digest<'b>,
    target: &Target<'b>,
    version: Version,
) -> Result<Option<Host<'b>>, HeadErrorKind> {
    let host = match digest.host {
        Some(value) => Some(Host::parse(value).ok_or(HeadErrorKind::InvalidHost)?),
        None if version == Version::Http11 => return Err(HeadErrorKind::MissingHost),
        None => None,
    };
    match (target.authority, host) {
        (Some((scheme, authority)), Some(host)) if !authority.is_same(&host, scheme) => {
            Err(HeadErrorKind::HostMismatch)
        }
        (Some((_, authority)), _) => Ok(Some(authority)),
        (None, host) => Ok(host),
    }
}

/// Length of the empty lines that `buf` begins with.
fn leading_lines(buf: &[u8]) -> Result<usize, HeadErrorKind> {
    let mut skipped = 0;
    while let [b'\r' | b'\n', ..] = buf[skipped..] {
        match buf[skipped..] {
            [b'\r'] => return Ok(skipped),
            [b'\r', b'\n', ..] if skipped < 2 * LEADING_LINES_MAX => skipped += 2,
            [b'\r', b'\n', ..] => return Err(HeadErrorKind::LeadingLines),
            [b'\r', ..] => return Err(HeadErrorKind::BareCr),
            _ => return Err(HeadErrorKind::BareLf),
        }
    }
    Ok(skipped)
}

fn wait(buf: &[u8], scan: &mut HeadScan, limits: &HeadLimits) -> Result<(), HeadErrorKind> {
    scan.wait(buf, limits).map_err(|kind| match kind == HeadErrorKind::HeadTooLarge {
        true => too_large(buf, limits),
        false => kind,
    })
}

/// A head over the limit: if not even its first line fits, it is the method or the target that is too long (RFC 9110, section
/// 15.5.15; RFC 9112, section 3).
#[cold]
fn too_large(buf: &[u8], limits: &HeadLimits) -> HeadErrorKind {
    let within = &buf[..buf.len().min(limits.bytes)];
    let line = within.trim_ascii_start();
    let method_len = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    match line.contains(&b'\n') {
        true => HeadErrorKind::HeadTooLarge,
        false if method_len > METHOD_BYTES_MAX => HeadErrorKind::MethodTooLong,
        false => HeadErrorKind::TargetTooLong,
    }
}

/// Whether the input ends within a version other than ours, which httparse refuses before it is whole: only when it is can
/// it be told from what is no version at all.
#[cold]
fn is_version_cut(head: &[u8]) -> bool {
    match head.rsplit(|byte| byte.is_ascii_whitespace()).next() {
        Some([b'H', b'T', b'T', b'P', b'/', major] | [b'H', b'T', b'T', b'P', b'/', major, b'.']) => {
            major.is_ascii_digit()
        }
        Some(_) | None => false,
    }
}

/// Finds out what it was that httparse did not take: it says which part, but neither where nor why.
#[cold]
fn diagnose(head: &[u8], error: httparse::Error) -> HeadErrorKind {
    match error {
        httparse::Error::TooManyHeaders => HeadErrorKind::TooManyFields,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => diagnose_fields(head),
        // Something else than a line end behind the version, or a CR without LF where the empty line should be.
        httparse::Error::NewLine => match first_line(head) {
            [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1'] => diagnose_fields(head),
            line => diagnose_request_line(line),
        },
        httparse::Error::Token | httparse::Error::Version | httparse::Error::Status => {
            diagnose_request_line(first_line(head))
        }
    }
}

fn diagnose_request_line(line: &[u8]) -> HeadErrorKind {
    if line.contains(&b'\r') {
        return HeadErrorKind::BareCr;
    }
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(b"PRI"), Some(b"*"), Some(b"HTTP/2.0"), None) => HeadErrorKind::Http2Preface,
        (Some(method), Some(_), None, None) if is_token(method) => HeadErrorKind::Http09,
        (Some(method), Some(target), Some(version), None) if is_token(method) && !target.is_empty() => {
            diagnose_version(target, version)
        }
        _ => HeadErrorKind::MalformedRequestLine,
    }
}

fn diagnose_version(target: &[u8], version: &[u8]) -> HeadErrorKind {
    if !target.iter().all(u8::is_ascii_graphic) {
        return HeadErrorKind::InvalidTarget;
    }
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            HeadErrorKind::UnsupportedVersion
        }
        _ => HeadErrorKind::MalformedRequestLine,
    }
}

/// The first fault in the field lines of `head`, whose first line is in order.
#[cold]
pub(super) fn diagnose_fields(head: &[u8]) -> HeadErrorKind {
    let mut lines = head.split_inclusive(|byte| *byte == b'\n');
    if lines.next().is_some_and(|line| !line.ends_with(b"\r\n")) {
        return HeadErrorKind::BareLf;
    }
    for line in lines {
        let content = match line {
            b"\r\n" => break,
            [content @ .., b'\r', b'\n'] => content,
            [content @ .., b'\n'] => return field_fault(content).unwrap_or(HeadErrorKind::BareLf),
            cut => cut,
        };
        if let Some(fault) = field_fault(content) {
            return fault;
        }
    }
    HeadErrorKind::InvalidFieldValue
}

fn field_fault(line: &[u8]) -> Option<HeadErrorKind> {
    if let [b' ' | b'\t', ..] = line {
        return Some(HeadErrorKind::ObsFold);
    }
    let name_len = line.iter().position(|byte| !TOKEN[*byte as usize]).unwrap_or(line.len());
    match line[name_len..] {
        [b':', ref value @ ..] if name_len > 0 => value_fault(value),
        [b' ' | b'\t', ..] if name_len > 0 && is_colon_next(&line[name_len..]) => {
            Some(HeadErrorKind::SpaceBeforeColon)
        }
        [b'\r', ..] => Some(HeadErrorKind::BareCr),
        _ => Some(HeadErrorKind::InvalidFieldName),
    }
}

fn value_fault(value: &[u8]) -> Option<HeadErrorKind> {
    value.iter().find(|byte| byte.is_ascii_control() && **byte != b'\t').map(|byte| match byte {
        b'\r' => HeadErrorKind::BareCr,
        _ => HeadErrorKind::InvalidFieldValue,
    })
}

fn is_colon_next(rest: &[u8]) -> bool {
    rest.iter().find(|byte| **byte != b' ' && **byte != b'\t') == Some(&b':')
}

pub(super) fn first_line(head: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'\n', head).unwrap_or(head.len());
    head[..end].strip_suffix(b"\r").unwrap_or(&head[..end])
}
