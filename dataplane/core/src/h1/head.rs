//! What request heads and response heads have in common: limits, the search for the end of a head that comes in pieces, and the
//! strict reading of the fields that decide framing and persistence. Not the first line: that is where the two differ.

use memchr::memchr_iter;
use proto::config::Limits;

use super::error::HeadErrorKind;
use super::field::{FIELDS_MAX, Field, FieldKind, is_token, list, trim};
use super::framing::Framing;
use super::keep_alive::KeepAlive;

/// Longest head, whatever the limits say, so that offsets fit in 32 bits and names in 16 with room to spare.
pub const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// Most names in `Connection` beside the known options. Each is compared with each field when the head is forwarded, so without
/// a bound a head of 32 KiB could cost millions of comparisons.
const CONNECTION_NAMES_MAX: u32 = 16;

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
    pub(super) framing: Framing<'b>,
    pub(super) connection: Connection,
    pub(super) upgrade: Option<&'b [u8]>,
    pub(super) te_trailers: bool,
    pub(super) expect_continue: bool,
    pub(super) wants_events: bool,
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
            FieldKind::ContentLength => self.framing.add_length(value)?,
            FieldKind::TransferEncoding => self.framing.add_coding(value)?,
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
            FieldKind::Accept => self.wants_events |= list(value).any(is_event_stream),
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

/// Whether a media type or media range (RFC 9110, section 12.5.1), whatever parameters it carries, is that of server-sent events.
pub(super) fn is_event_stream(media_type: &[u8]) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    media_type.len() >= EVENT_STREAM.len()
        && media_type[..EVENT_STREAM.len()].eq_ignore_ascii_case(EVENT_STREAM)
        && matches!(trim(&media_type[EVENT_STREAM.len()..]), [] | [b';', ..])
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
    fn another_http_is_no_tunnel_protocol() {
        assert!(is_tunnel_protocol(b"websocket"));
        assert!(is_tunnel_protocol(b"SPDY/3.1"));
        for value in [&b"h2c"[..], b"H2C", b"TLS/1.2", b"HTTP/2.0", b"", b"websocket, h2c", b"a b", b"a/"] {
            assert!(!is_tunnel_protocol(value), "{}", value.escape_ascii());
        }
    }
}
