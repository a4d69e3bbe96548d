//! A request head: found in the input, checked, and kept as one block of bytes with positions into it.
//! The body is not here, only how its length is told (RFC 9112, section 6.3); `body` reads it.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Buf, BytesMut};

/// Largest head. More than any proxy lets through, so that the proxy's own limit is what a test meets.
pub(crate) const HEAD_MAX: usize = 128 << 10;

/// Largest number of fields, by the same reasoning.
const FIELDS_MAX: usize = 256;

const KNOB_PREFIX: &str = "x-mock-";

/// A checked request head.
#[derive(Debug)]
pub(crate) struct Request {
    head: Box<[u8]>,
    method: Range<usize>,
    target: Range<usize>,
    path: Range<usize>,
    query: Range<usize>,
    fields: Vec<(Range<usize>, Range<usize>)>,
    pub(crate) minor_version: u8,
    pub(crate) body: BodyLength,
    pub(crate) expects_continue: bool,
    pub(crate) keep_alive: bool,
    has_knobs: bool,
}

/// How the length of the request body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLength {
    Empty,
    Sized(u64),
    Chunked,
}

/// A head that cannot be answered. The text goes to the client; the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) status: u16,
    pub(crate) reason: &'static str,
}

impl Malformed {
    pub(crate) const fn bad(reason: &'static str) -> Self {
        Self { status: 400, reason }
    }
}

impl Request {
    /// Takes one whole head off the front of `input`; `None` if it is not all there yet.
    pub(crate) fn take(input: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Request::new(&mut []);
        let length = match parsed.parse_with_uninit_headers(input, &mut headers) {
            Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
            Ok(httparse::Status::Partial) if input.len() < HEAD_MAX => return Ok(None),
            Ok(_) => return Err(Malformed { status: 431, reason: "the head is larger than 128 KiB" }),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Malformed { status: 431, reason: "more than 256 header fields" });
            }
            Err(_) => return Err(Malformed::bad("the head is not HTTP/1.1")),
        };
        let request = Self::check(&input[..length], &parsed)?;
        input.advance(length);
        Ok(Some(request))
    }

    fn check(head: &[u8], parsed: &httparse::Request<'_, '_>) -> Result<Self, Malformed> {
        let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version)
        else {
            return Err(Malformed::bad("the request line is not complete"));
        };
        let target = within(head, target.as_bytes());
        let (path, query) = split_target(head, &target);
        let mut request = Self {
            method: within(head, method.as_bytes()),
            target,
            path,
            query,
            fields: Vec::with_capacity(parsed.headers.len()),
            minor_version,
            body: BodyLength::Empty,
            expects_continue: false,
            keep_alive: minor_version == 1,
            has_knobs: false,
            head: head.into(),
        };
        for field in parsed.headers.iter() {
            request.note_field(field.name, field.value)?;
            request.fields.push((within(head, field.name.as_bytes()), within(head, field.value)));
        }
        if request.body != BodyLength::Chunked && request.fields_named("transfer-encoding").next().is_some() {
            // RFC 9112, section 6.3: a final coding other than chunked leaves the length unknown.
            return Err(Malformed::bad("the final transfer coding is not chunked"));
        }
        Ok(request)
    }

    /// Looks at the few fields that decide about framing and persistence.
    fn note_field(&mut self, name: &str, value: &[u8]) -> Result<(), Malformed> {
        if name.eq_ignore_ascii_case("content-length") {
            let length = parse_length(value).ok_or(Malformed::bad("Content-Length is not a number"))?;
            match self.body {
                BodyLength::Empty => self.body = BodyLength::Sized(length),
                // RFC 9112, section 6.3: both, or two, are how requests are smuggled.
                BodyLength::Sized(_) => return Err(Malformed::bad("several Content-Length fields")),
                BodyLength::Chunked => return Err(Malformed::bad("Content-Length beside Transfer-Encoding")),
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.minor_version == 0 || self.body != BodyLength::Empty {
                return Err(Malformed::bad("Transfer-Encoding where there may be none"));
            }
            if value.eq_ignore_ascii_case(b"chunked") {
                self.body = BodyLength::Chunked;
            }
        } else if name.eq_ignore_ascii_case("connection") {
            self.keep_alive = match self.minor_version {
                0 => has_token(value, "keep-alive"),
                _ => self.keep_alive && !has_token(value, "close"),
            };
        } else if name.eq_ignore_ascii_case("expect") {
            // RFC 9110, section 10.1.1: an expectation from HTTP/1.0 is ignored.
            self.expects_continue = self.minor_version == 1 && value.eq_ignore_ascii_case(b"100-continue");
        } else if is_knob(name) {
            self.has_knobs = true;
        }
        Ok(())
    }

    pub(crate) fn method(&self) -> &str {
        self.text(&self.method)
    }

    /// As the client wrote it.
    pub(crate) fn target(&self) -> &str {
        self.text(&self.target)
    }

    /// Without scheme, authority and query.
    pub(crate) fn path(&self) -> &str {
        self.text(&self.path)
    }

    /// Behind the `?`, or empty.
    pub(crate) fn query(&self) -> &str {
        self.text(&self.query)
    }

    pub(crate) fn is_head(&self) -> bool {
        self.method() == "HEAD"
    }

    /// Whether the request asks for nothing but the ordinary answer of its path.
    pub(crate) fn is_plain(&self) -> bool {
        !self.has_knobs && self.query.is_empty() && self.body == BodyLength::Empty
    }

    /// Names and values in their order.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.fields
            .iter()
            .map(|(name, value)| (self.text(name), String::from_utf8_lossy(&self.head[value.clone()])))
    }

    /// The first field of that name.
    pub(crate) fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        self.fields_named(name).next()
    }

    /// `X-Mock-Stall-Before: 2s` as `("stall_before", "2s")`.
    pub(crate) fn knob_fields(&self) -> impl Iterator<Item = (String, Cow<'_, str>)> {
        let all = if self.has_knobs { self.fields.as_slice() } else { &[] };
        all.iter().filter(|(name, _)| is_knob(self.text(name))).map(|(name, value)| {
            let name = self.text(name)[KNOB_PREFIX.len()..].to_ascii_lowercase().replace('-', "_");
            (name, String::from_utf8_lossy(&self.head[value.clone()]))
        })
    }

    fn fields_named(&self, wanted: &str) -> impl Iterator<Item = Cow<'_, str>> {
        let matching =
            self.fields.iter().filter(move |(name, _)| self.text(name).eq_ignore_ascii_case(wanted));
        matching.map(|(_, value)| String::from_utf8_lossy(&self.head[value.clone()]))
    }

    /// Names, method and target were text when httparse had checked them.
    fn text(&self, span: &Range<usize>) -> &str {
        std::str::from_utf8(&self.head[span.clone()]).unwrap_or_default()
    }
}

/// Where `part`, a slice of `whole`, lies in it.
fn within(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize).min(whole.len());
    start..(start + part.len()).min(whole.len())
}

/// Path and query of a target in origin-form or absolute-form (RFC 9112, section 3.2).
fn split_target(head: &[u8], target: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let text = &head[target.clone()];
    let path_at = match text.windows(3).position(|part| part == b"://") {
        Some(scheme) if text.first() != Some(&b'/') => {
            let authority = scheme + 3;
            text[authority..]
                .iter()
                .position(|b| matches!(b, b'/' | b'?'))
                .map_or(text.len(), |at| authority + at)
        }
        _ => 0,
    };
    let query_at = text.iter().position(|b| *b == b'?').unwrap_or(text.len()).max(path_at);
    let query_from = (query_at + 1).min(text.len());
    (target.start + path_at..target.start + query_at, target.start + query_from..target.end)
}

/// RFC 9110, section 8.6: digits and nothing else.
fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn is_knob(name: &str) -> bool {
    name.as_bytes()
        .get(..KNOB_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(KNOB_PREFIX.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Option<Request>, Malformed> {
        Request::take(&mut BytesMut::from(text))
    }

    #[test]
    fn a_head_is_taken_and_what_follows_stays() {
        let mut input =
            BytesMut::from("POST /a/b?x=1&y HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET");
        let request = Request::take(&mut input).unwrap().unwrap();
        assert_eq!((request.method(), request.path(), request.query()), ("POST", "/a/b", "x=1&y"));
        assert_eq!(request.body, BodyLength::Sized(3));
        assert_eq!(request.field("HOST").as_deref(), Some("h"));
        assert_eq!(&input[..], b"abcGET");
    }

    #[test]
    fn every_prefix_of_a_head_is_incomplete() {
        let whole = "GET / HTTP/1.1\r\nHost: h\r\nX-Mock-Ttft: 5\r\n\r\n";
        for end in 0..whole.len() {
            assert!(take(&whole[..end]).unwrap().is_none(), "{end}");
        }
        assert!(take(whole).unwrap().is_some());
    }

    #[test]
    fn ambiguous_lengths_are_refused() {
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: gzip, chunked",
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: +1",
            "Content-Length: ",
            "Content-Length: 99999999999999999999",
        ] {
            let refused = take(&format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n"));
            assert_eq!(refused.err().map(|error| error.status), Some(400), "{fields}");
        }
    }

    #[test]
    fn absolute_form_and_asterisk_have_a_path() {
        for (target, path, query) in [
            ("http://h:1/p?q=1", "/p", "q=1"),
            ("http://h", "", ""),
            ("http://h?q", "", "q"),
            ("/p?u=http://x/", "/p", "u=http://x/"),
            ("*", "*", ""),
        ] {
            let request = take(&format!("GET {target} HTTP/1.1\r\n\r\n")).unwrap().unwrap();
            assert_eq!((request.path(), request.query(), request.target()), (path, query, target));
        }
    }

    #[test]
    fn persistence_follows_version_and_connection() {
        for (version, connection, kept) in [
            ("1", "", true),
            ("1", "Close", false),
            ("1", "x, close", false),
            ("0", "", false),
            ("0", "Keep-Alive", true),
        ] {
            let request = take(&format!("GET / HTTP/1.{version}\r\nConnection: {connection}\r\n\r\n"));
            assert_eq!(request.unwrap().unwrap().keep_alive, kept, "{version} {connection}");
        }
    }

    #[test]
    fn knobs_are_named_alike_in_every_spelling() {
        let request =
            take("GET / HTTP/1.1\r\nX-Mock-Stall-Before: 2s\r\nx-mock-cut_at: 9\r\n\r\n").unwrap().unwrap();
        let knobs: Vec<_> = request.knob_fields().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(knobs, ["stall_before=2s", "cut_at=9"]);
        assert!(!request.is_plain());
    }

    #[test]
    fn a_head_that_never_ends_is_refused() {
        let mut endless = String::from("GET / HTTP/1.1\r\nX: ");
        endless.push_str(&"a".repeat(HEAD_MAX));
        assert_eq!(take(&endless).err().map(|error| error.status), Some(431));
    }
}
