//! What request heads and response heads have in common: limits, the search for the end of a head that comes in pieces, and the
//! strict reading of the fields that decide framing and persistence. Not the first line: that is where the two differ.

use memchr::memchr_iter;
use proto::config::Limits;

use super::error::HeadErrorKind;
use super::field::{FIELDS_MAX, Field, FieldKind, is_token, list, trim};
use super::keep_alive::KeepAlive;

/// Longest head, whatever the limits say, so that offsets fit in 32 bits and names in 16 with room to spare.
pub const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// Most names in `Connection` beside the known options. Each is compared with each field when the head is forwarded, so without
/// a bound a head of 32 KiB could cost millions of comparisons.
const CONNECTION_NAMES_MAX: u32 = 16;

/// Largest `Content-Length`: other parsers keep it in a signed 64-bit number.
const CONTENT_LENGTH_MAX: u64 = i64::MAX as u64;

/// How much a head may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes, from the first of the head to the end of its empty line.
    pub bytes: usize,
    /// Field lines, at most [`FIELDS_MAX`].
    pub fields: usize,
}

impl HeadLimits {
    /// The limits, cut down to what the parser can hold.
    pub fn new(bytes: usize, fields: usize) -> Self {
        Self { bytes: bytes.min(HEAD_BYTES_MAX), fields: fields.min(FIELDS_MAX) }
    }
}

impl From<&Limits> for HeadLimits {
    fn from(limits: &Limits) -> Self {
        Self::new(limits.request_head_bytes as usize, limits.request_header_fields as usize)
    }
}

/// Remembers how far an unfinished head has been searched for its end, so that a head that drips in byte by byte costs as much as
/// its length, not the square of it. One per head: start the next head with a new one.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScan {
    scanned: usize,
}

impl HeadScan {
    /// Whether it is worth parsing: at the first try always (most heads come whole), later once the empty line is there.
    pub(super) fn is_due(&mut self, buf: &[u8]) -> Result<bool, HeadErrorKind> {
        if self.scanned == 0 { Ok(true) } else { self.advance(buf) }
    }

    /// The parser wants more bytes than `buf` has: remembers that, and tells whether there can be any within the limit.
    pub(super) fn wait(&mut self, buf: &[u8], limits: &HeadLimits) -> Result<(), HeadErrorKind> {
        while self.advance(buf)? {}
        if buf.len() < limits.bytes { Ok(()) } else { Err(HeadErrorKind::HeadTooLarge) }
    }

    /// Searches what is new; stops behind an empty line. Line ends are checked on the way, so that a head whose lines end in bare LF
    /// is refused at once and not when its deadline comes.
    fn advance(&mut self, buf: &[u8]) -> Result<bool, HeadErrorKind> {
        let from = self.scanned.min(buf.len());
        for lf in memchr_iter(b'\n', &buf[from..]) {
            let before = &buf[..from + lf];
            if !before.ends_with(b"\r") {
                return Err(HeadErrorKind::BareLf);
            }
            if before.ends_with(b"\r\n\r") {
                self.scanned = from + lf + 1;
                return Ok(true);
            }
        }
        self.scanned = buf.len();
        Ok(false)
    }
}

/// What the fields of a head say together, gathered while they are indexed. Every rule here refuses rather than repairs.
#[derive(Debug, Default)]
pub(super) struct Digest<'b> {
    pub(super) host: Option<&'b [u8]>,
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
    pub(super) connection: Connection,
    pub(super) upgrade: Option<&'b [u8]>,
    pub(super) te_trailers: bool,
    pub(super) expect_continue: bool,
    pub(super) content_type: Option<&'b [u8]>,
    pub(super) keep_alive: KeepAlive,
    pub(super) request_id: RequestId<'b>,
}

/// Options that `Connection` fields name (RFC 9110, section 7.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// How many others: names of fields that are meant for this connection only.
    pub(super) names: u32,
}

/// `X-Request-ID` as the peer sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RequestId<'b> {
    #[default]
    None,
    One(&'b [u8]),
    /// More than one: none of them counts.
    Many,
}

impl<'b> Digest<'b> {
    /// Takes one field into account.
    pub(super) fn add(&mut self, field: Field<'b>) -> Result<(), HeadErrorKind> {
        let value = field.value;
        match field.kind {
            FieldKind::Host => {
                if self.host.replace(value).is_some() {
                    return Err(HeadErrorKind::DuplicateHost);
                }
            }
            FieldKind::ContentLength => {
                if self.content_length.replace(parse_length(value)?).is_some() {
                    return Err(HeadErrorKind::DuplicateLength);
                }
            }
            FieldKind::TransferEncoding => {
                if self.chunked {
                    return Err(HeadErrorKind::DuplicateEncoding);
                }
                check_encoding(value)?;
                self.chunked = true;
            }
            FieldKind::Connection => self.connection.add(value)?,
            FieldKind::Upgrade => self.add_upgrade(value),
            FieldKind::Te => {
                self.te_trailers |= list(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
            }
            FieldKind::Expect => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadErrorKind::UnsupportedExpectation);
                }
                self.expect_continue = true;
            }
            FieldKind::ContentType => {
                self.content_type.get_or_insert(value);
            }
            FieldKind::KeepAlive => self.keep_alive.add(value),
            FieldKind::XRequestId => self.request_id = self.request_id.and(value),
            FieldKind::Other
            | FieldKind::Alias
            | FieldKind::ProxyConnection
            | FieldKind::ProxyAuthorization
            | FieldKind::ProxyAuthenticate
            | FieldKind::Trailer
            | FieldKind::Http2Settings
            | FieldKind::Forwarded
            | FieldKind::XForwardedFor
            | FieldKind::XForwardedProto
            | FieldKind::XForwardedHost
            | FieldKind::Via => {}
        }
        Ok(())
    }

    /// Both framings at once are the root of request smuggling: refused whatever RFC 9112, section 6.3, would let pass.
    pub(super) fn check_framing(&self) -> Result<(), HeadErrorKind> {
        if self.chunked && self.content_length.is_some() {
            return Err(HeadErrorKind::LengthAndEncoding);
        }
        Ok(())
    }

    /// The one protocol that `Upgrade` names, if `Connection` carries it.
    pub(super) fn switched_protocol(&self) -> Option<&'b str> {
        let protocol = self.upgrade.filter(|protocol| self.connection.upgrade && !protocol.is_empty())?;
        str::from_utf8(protocol).ok()
    }

    /// A second `Upgrade` field makes the choice unclear: an empty value is never a protocol.
    fn add_upgrade(&mut self, value: &'b [u8]) {
        let seen = self.upgrade.is_some();
        self.upgrade = Some(if !seen && is_tunnel_protocol(value) { value } else { b"" });
    }
}

impl Connection {
    fn add(&mut self, value: &[u8]) -> Result<(), HeadErrorKind> {
        for option in list(value) {
            match option.len() {
                5 if option.eq_ignore_ascii_case(b"close") => self.close = true,
                7 if option.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                10 if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                _ => self.names += 1,
            }
        }
        if self.names > CONNECTION_NAMES_MAX {
            return Err(HeadErrorKind::TooManyConnectionOptions);
        }
        Ok(())
    }
}

impl<'b> RequestId<'b> {
    fn and(self, value: &'b [u8]) -> Self {
        match self {
            Self::None => Self::One(value),
            Self::One(_) | Self::Many => Self::Many,
        }
    }
}

/// `1*DIGIT` (RFC 9110, section 8.6), no list, no sign, no space.
fn parse_length(value: &[u8]) -> Result<u64, HeadErrorKind> {
    if value.is_empty() || value.len() > 20 {
        return Err(HeadErrorKind::InvalidLength);
    }
    let mut length: u64 = 0;
    for byte in value {
        if !byte.is_ascii_digit() {
            return Err(HeadErrorKind::InvalidLength);
        }
        length = length
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(u64::from(byte - b'0')))
            .ok_or(HeadErrorKind::InvalidLength)?;
    }
    if length > CONTENT_LENGTH_MAX { Err(HeadErrorKind::InvalidLength) } else { Ok(length) }
}

/// Nothing but `chunked` is taken. Codings that are known but not spoken here get another kind, for their 501.
fn check_encoding(value: &[u8]) -> Result<(), HeadErrorKind> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let Some(comma) = value.iter().rposition(|byte| *byte == b',') else {
        return Err(HeadErrorKind::InvalidEncoding);
    };
    let ends_chunked = trim(&value[comma + 1..]).eq_ignore_ascii_case(b"chunked");
    let mut before = value[..comma].split(|byte| *byte == b',').map(trim);
    if ends_chunked && before.all(is_known_coding) {
        return Err(HeadErrorKind::UnsupportedEncoding);
    }
    Err(HeadErrorKind::InvalidEncoding)
}

/// Registered transfer codings beside `chunked` (RFC 9112, section 7.2).
fn is_known_coding(coding: &[u8]) -> bool {
    [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
        .iter()
        .any(|known| coding.eq_ignore_ascii_case(known))
}

/// Whether the connection may become a tunnel for this protocol: one `token[/token]`. Not for another HTTP and not for TLS: behind a
/// proxy those would carry requests that no rule here ever sees (the h2c smuggling attack).
fn is_tunnel_protocol(value: &[u8]) -> bool {
    let slash = value.iter().position(|byte| *byte == b'/');
    let (name, version) = value.split_at(slash.unwrap_or(value.len()));
    let is_refused =
        [&b"h2c"[..], b"h2", b"h3", b"http", b"tls"].iter().any(|refused| name.eq_ignore_ascii_case(refused));
    !is_refused && is_token(name) && (version.is_empty() || is_token(&version[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dripping_head_is_searched_once() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut scan = HeadScan::default();
        for end in 1..head.len() {
            assert_eq!(scan.advance(&head[..end]), Ok(false));
            assert_eq!(scan.scanned, end);
        }
        assert_eq!(scan.advance(head), Ok(true));
    }

    #[test]
    fn lengths_are_plain_decimal_numbers() {
        assert_eq!(parse_length(b"0"), Ok(0));
        assert_eq!(parse_length(b"0042"), Ok(42));
        assert_eq!(parse_length(b"9223372036854775807"), Ok(i64::MAX as u64));
        for text in ["", "+1", "-1", "1 ", "1,1", "0x1", "1.0", "9223372036854775808", "99999999999999999999"]
        {
            assert_eq!(parse_length(text.as_bytes()), Err(HeadErrorKind::InvalidLength), "{text:?}");
        }
    }

    #[test]
    fn another_http_is_no_tunnel_protocol() {
        assert!(is_tunnel_protocol(b"websocket"));
        assert!(is_tunnel_protocol(b"SPDY/3.1"));
        for value in [&b"h2c"[..], b"H2C", b"TLS/1.2", b"HTTP/2.0", b"", b"websocket, h2c", b"a b", b"a/"] {
            assert!(!is_tunnel_protocol(value), "{}", value.escape_ascii());
        }
    }
}
