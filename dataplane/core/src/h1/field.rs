//! Header fields of one head: where each lies in the buffer, and which of them the proxy itself acts on. An index, not a map:
//! no bytes are copied, order and duplicates are kept.

use std::fmt;

use proto::config::limits;

use super::error::HeadErrorKind;

/// Most fields that one head can have, whatever the config says.
pub const FIELDS_MAX: usize = limits::FIELDS_MAX as usize;

/// A field that the proxy acts on, known by its name; everything else is [`FieldKind::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldKind {
    /// An end-to-end field that passes through.
    Other,
    /// A name that is one of those below once `_` is read as `-`. Origins that turn names into variables (CGI, WSGI) cannot tell
    /// the two apart, so a client could write `X_Forwarded_For`: such a field is dropped.
    Alias,
    /// `Accept`
    Accept,
    /// `Host`
    Host,
    /// `Content-Length`
    ContentLength,
    /// `Content-Type`
    ContentType,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `Connection`
    Connection,
    /// `Keep-Alive`
    KeepAlive,
    /// `Proxy-Connection`
    ProxyConnection,
    /// `Proxy-Authorization`
    ProxyAuthorization,
    /// `Proxy-Authenticate`
    ProxyAuthenticate,
    /// `TE`
    Te,
    /// `Trailer`
    Trailer,
    /// `Upgrade`
    Upgrade,
    /// `HTTP2-Settings`, which only an upgrade to h2c has use for
    Http2Settings,
    /// `Expect`
    Expect,
    /// `Forwarded`
    Forwarded,
    /// `X-Forwarded-For`
    XForwardedFor,
    /// `X-Forwarded-Proto`
    XForwardedProto,
    /// `X-Forwarded-Host`
    XForwardedHost,
    /// `X-Request-ID`
    XRequestId,
    /// `Via`
    Via,
}

impl FieldKind {
    /// The kind that a name, which is a token, has. Names are compared without case.
    pub fn of(name: &[u8]) -> Self {
        match (name.len(), name.first().map_or(0, |byte| byte | 0x20)) {
            (2, b't') => compare(name, b"te", Self::Te),
            (3, b'v') => compare(name, b"via", Self::Via),
            (4, b'h') => compare(name, b"host", Self::Host),
            (6, b'a') => compare(name, b"accept", Self::Accept),
            (6, b'e') => compare(name, b"expect", Self::Expect),
            (7, b't') => compare(name, b"trailer", Self::Trailer),
            (7, b'u') => compare(name, b"upgrade", Self::Upgrade),
            (9, b'f') => compare(name, b"forwarded", Self::Forwarded),
            (10, b'c') => compare(name, b"connection", Self::Connection),
            (10, b'k') => compare(name, b"keep-alive", Self::KeepAlive),
            (12, b'c') => compare(name, b"content-type", Self::ContentType),
            (12, b'x') => compare(name, b"x-request-id", Self::XRequestId),
            (14, b'c') => compare(name, b"content-length", Self::ContentLength),
            (14, b'h') => compare(name, b"http2-settings", Self::Http2Settings),
            (15, b'x') => compare(name, b"x-forwarded-for", Self::XForwardedFor),
            (16, b'p') => compare(name, b"proxy-connection", Self::ProxyConnection),
            (16, b'x') => compare(name, b"x-forwarded-host", Self::XForwardedHost),
            (17, b't') => compare(name, b"transfer-encoding", Self::TransferEncoding),
            (17, b'x') => compare(name, b"x-forwarded-proto", Self::XForwardedProto),
            (18, b'p') => compare(name, b"proxy-authenticate", Self::ProxyAuthenticate),
            (19, b'p') => compare(name, b"proxy-authorization", Self::ProxyAuthorization),
            _ => Self::Other,
        }
    }

    /// Whether the proxy writes (or leaves out) this field itself on every connection, so that neither a peer nor a header rule
    /// has a say in it: framing and hop-by-hop fields (RFC 9110, section 7.6.1).
    pub fn is_managed(self) -> bool {
        match self {
            Self::ContentLength
            | Self::TransferEncoding
            | Self::Connection
            | Self::KeepAlive
            | Self::ProxyConnection
            | Self::ProxyAuthorization
            | Self::ProxyAuthenticate
            | Self::Te
            | Self::Trailer
            | Self::Upgrade
            | Self::Http2Settings
            | Self::Expect => true,
            Self::Other
            | Self::Alias
            | Self::Accept
            | Self::Host
            | Self::ContentType
            | Self::Forwarded
            | Self::XForwardedFor
            | Self::XForwardedProto
            | Self::XForwardedHost
            | Self::XRequestId
            | Self::Via => false,
        }
    }
}

/// `kind` if the name is the known one, [`FieldKind::Alias`] if it is with `_` in place of `-`.
///
/// Of the bytes that a token can have, only the two cases of a letter become a letter with `0x20` set, and only `-` becomes `-`.
/// So all bytes are compared at once, without a branch for each.
fn compare<const LEN: usize>(name: &[u8], known: &[u8; LEN], kind: FieldKind) -> FieldKind {
    let Ok(name) = <&[u8; LEN]>::try_from(name) else { return FieldKind::Other };
    let difference =
        name.iter().zip(known).fold(0, |seen, (byte, expected)| seen | ((byte | 0x20) ^ expected));
    if difference == 0 { kind } else { alias(name, known) }
}

#[cold]
fn alias(name: &[u8], known: &[u8]) -> FieldKind {
    let reads_as = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    if name.iter().map(reads_as).eq(known.iter().copied()) { FieldKind::Alias } else { FieldKind::Other }
}

/// One field line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'b> {
    /// As it was written; a token.
    pub name: &'b [u8],
    /// Without the white space around it; may hold bytes above 0x7F, no control byte but HTAB.
    pub value: &'b [u8],
    /// Whether the proxy acts on it.
    pub kind: FieldKind,
}

impl fmt::Debug for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name.escape_ascii(), self.value.escape_ascii())
    }
}

/// Where a field lies in the buffer. The field's line ends where the next one starts.
#[derive(Clone, Copy, Debug)]
struct Slot {
    start: u32,
    value: u32,
    value_len: u32,
    name_len: u16,
    kind: FieldKind,
}

/// Room for the index of one head, 4 KiB: keep one per worker (or per parse) and use it again and again. It holds offsets only,
/// so it borrows nothing between two parses.
#[derive(Clone, Debug)]
pub struct FieldStorage {
    slots: [Slot; FIELDS_MAX],
}

impl FieldStorage {
    /// Empty room.
    pub fn new() -> Self {
        let empty = Slot { start: 0, value: 0, value_len: 0, name_len: 0, kind: FieldKind::Other };
        Self { slots: [empty; FIELDS_MAX] }
    }

    /// Fills the index from what httparse found in `buf`, whose head is `head_len` bytes long, and shows each field to `visit`.
    ///
    /// httparse takes a bare LF for a line end. LF can be nowhere else in what it accepts, so it is enough to look at the two
    /// bytes before each field and at the last four of the head.
    pub(super) fn index<'b>(
        &'b mut self,
        buf: &'b [u8],
        head_len: usize,
        headers: &[httparse::Header<'b>],
        mut visit: impl FnMut(Field<'b>) -> Result<(), HeadErrorKind>,
    ) -> Result<Fields<'b>, HeadErrorKind> {
        for (slot, header) in self.slots.iter_mut().zip(headers) {
            let name = header.name.as_bytes();
            let start = offset_in(buf, name);
            if start < 2 || buf[start - 2] != b'\r' {
                return Err(HeadErrorKind::BareLf);
            }
            let kind = FieldKind::of(name);
            *slot = Slot {
                start: start as u32,
                value: offset_in(buf, header.value) as u32,
                value_len: header.value.len() as u32,
                name_len: u16::try_from(name.len()).map_err(|_| HeadErrorKind::InvalidFieldName)?,
                kind,
            };
            visit(Field { name, value: header.value, kind })?;
        }
        if !buf[..head_len].ends_with(b"\r\n\r\n") {
            return Err(HeadErrorKind::BareLf);
        }
        Ok(Fields { buf: &buf[..head_len], slots: &self.slots[..headers.len()] })
    }
}

impl Default for FieldStorage {
    fn default() -> Self {
        Self::new()
    }
}

/// Where `part`, a slice of `buf`, begins in it. Heads are at most [`super::head::HEAD_BYTES_MAX`] long, so it fits in 32 bits.
fn offset_in(buf: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).wrapping_sub(buf.as_ptr() as usize)
}

/// The fields of one head, in order.
#[derive(Clone, Copy)]
pub struct Fields<'b> {
    /// The head, with its empty line.
    buf: &'b [u8],
    slots: &'b [Slot],
}

impl<'b> Fields<'b> {
    /// Each field line, in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'b>> + use<'b> {
        let fields = *self;
        self.slots.iter().map(move |slot| fields.field(slot))
    }

    /// How many field lines there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The value of the first field with this name, compared without case.
    pub fn value_of(&self, name: &str) -> Option<&'b [u8]> {
        self.iter().find(|field| field.name.eq_ignore_ascii_case(name.as_bytes())).map(|field| field.value)
    }

    /// The fields of one kind, in order.
    pub fn of_kind(&self, kind: FieldKind) -> impl Iterator<Item = Field<'b>> + use<'b> {
        let fields = *self;
        self.slots.iter().filter(move |slot| slot.kind == kind).map(move |slot| fields.field(slot))
    }

    /// Whether a `Connection` field names `name`.
    pub(super) fn connection_names(&self, name: &[u8]) -> bool {
        self.of_kind(FieldKind::Connection)
            .any(|field| list(field.value).any(|option| option.eq_ignore_ascii_case(name)))
    }

    /// Hands the lines of all fields that `keep` wants to `write`: as few and as long pieces as there are runs of kept lines, since
    /// most of a head goes through as it came.
    pub(super) fn write_runs<E>(
        &self,
        mut keep: impl FnMut(&Field<'b>) -> bool,
        mut write: impl FnMut(&'b [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut run: Option<usize> = None;
        for slot in self.slots {
            match (keep(&self.field(slot)), run) {
                (true, None) => run = Some(slot.start as usize),
                (false, Some(start)) => {
                    write(&self.buf[start..slot.start as usize])?;
                    run = None;
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
        match run {
            Some(start) => write(&self.buf[start..self.buf.len() - 2]),
            None => Ok(()),
        }
    }

    fn field(&self, slot: &Slot) -> Field<'b> {
        let start = slot.start as usize;
        let value = slot.value as usize;
        Field {
            name: &self.buf[start..start + slot.name_len as usize],
            value: &self.buf[value..value + slot.value_len as usize],
            kind: slot.kind,
        }
    }
}

impl fmt::Debug for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The elements of a comma-separated list, without the white space around them (RFC 9110, section 5.6.1); empty ones are left out.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|element| !element.is_empty())
}

/// Without the SP and HTAB around it.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether it is a token (RFC 9110, section 5.6.2).
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| TOKEN[*byte as usize])
}

/// Bytes of a token (RFC 9110, section 5.6.2).
pub(super) const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut mark = 0;
    while mark < marks.len() {
        table[marks[mark] as usize] = true;
        mark += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_without_case() {
        assert_eq!(FieldKind::of(b"TRANSFER-encoding"), FieldKind::TransferEncoding);
        assert_eq!(FieldKind::of(b"te"), FieldKind::Te);
        assert_eq!(FieldKind::of(b"Transfer-Encodin\x67x"), FieldKind::Other);
        assert_eq!(FieldKind::of(b"X-Forwarded-Port"), FieldKind::Other);
        assert_eq!(FieldKind::of(b""), FieldKind::Other);
    }

    #[test]
    fn underscores_in_a_known_name_make_it_an_alias() {
        assert_eq!(FieldKind::of(b"Content_Length"), FieldKind::Alias);
        assert_eq!(FieldKind::of(b"x_forwarded-For"), FieldKind::Alias);
        assert_eq!(FieldKind::of(b"x_custom"), FieldKind::Other);
        assert_eq!(FieldKind::of(b"h_st"), FieldKind::Other);
    }

    #[test]
    fn lists_skip_empty_elements_and_white_space() {
        let elements: Vec<_> = list(b" a ,,\tb\t, ").collect();
        assert_eq!(elements, [&b"a"[..], b"b"]);
    }
}
