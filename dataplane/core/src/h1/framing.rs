//! What `Content-Length` and `Transfer-Encoding` say together about where a body ends (RFC 9112, section 6.3), and how clearly.
//! Not where it does end: that is `body`.
//!
//! | class | such as | in a request | in a response |
//! |---|---|---|---|
//! | plain | one `Content-Length`; `Transfer-Encoding: chunked`; neither | taken | passed on as it is |
//! | redundant: one reading, in more words than it takes | `Content-Length: 5, 5`; `Content-Length: 2` on a 204 | refused | passed on without the superfluous fields; its connection is not used again |
//! | ambiguous: two readings | `Content-Length: 5` and `6`; `Transfer-Encoding: gzip`, or `identity` beside a length | refused | refused: 502 |
//!
//! A request is the attacker's own text, and costs its sender nothing to write properly. A response comes from an origin that
//! somebody relies on; whatever its sloppy framing may have meant, the client gets one framing of ours, and nothing that follows
//! on that connection is ever taken for another answer.
//!
//! `Transfer-Encoding: chunked` beside a `Content-Length` is redundant in a response, although it is the root of request
//! smuggling: RFC 9112, section 6.3, gives it exactly one reading (the chunks count, an intermediary drops the length). What makes
//! two readings dangerous is a connection on which two parties look for the next message in different places: ours has no next
//! message. And if the body is not in chunks after all, it fails as such, visibly.

use super::error::HeadErrorKind;
use super::field::trim;
use crate::request::{BodyLength, Method, Version};

/// Largest `Content-Length`: other parsers keep it in a signed 64-bit number.
const CONTENT_LENGTH_MAX: u64 = i64::MAX as u64;

/// The framing fields of one head, gathered one by one. What is ambiguous is refused at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing<'b> {
    length: Option<Length<'b>>,
    coding: Coding,
    /// The first thing that is said twice or without need, by the name under which a request is refused for it.
    superfluous: Option<HeadErrorKind>,
}

/// A length, and its digits as they were written.
#[derive(Clone, Copy, Debug)]
struct Length<'b> {
    digits: &'b [u8],
    value: u64,
}

/// What `Transfer-Encoding` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Coding {
    /// The field is not there.
    #[default]
    Absent,
    /// `identity`: the word of RFC 2616 for "none".
    Identity,
    /// `chunked`
    Chunked,
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

/// How a response is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseFraming {
    pub(super) length: ResponseLength,
    /// The length that GET would have had (RFC 9110, section 8.6), where no body follows but its length may be told: HEAD, 304.
    pub(super) declared: Option<u64>,
    /// What was said twice or without need.
    pub(super) superfluous: Option<HeadErrorKind>,
}

impl<'b> Framing<'b> {
    /// Takes a `Content-Length` into account: `1*DIGIT` (RFC 9110, section 8.6), or a list of always the same digits.
    pub(super) fn add_length(&mut self, value: &'b [u8]) -> Result<(), HeadErrorKind> {
        let mut parts = value.split(|byte| *byte == b',').map(trim);
        let digits = parts.next().unwrap_or_default();
        let length = Length { digits, value: parse_length(digits)? };
        for again in parts {
            if again != digits {
                return Err(HeadErrorKind::InvalidLength);
            }
            self.note(HeadErrorKind::InvalidLength);
        }
        if let Some(before) = self.length.replace(length) {
            if before.digits != digits {
                return Err(HeadErrorKind::DuplicateLength);
            }
            self.note(HeadErrorKind::DuplicateLength);
        }
        Ok(())
    }

    /// Takes a `Transfer-Encoding` into account. Only `chunked` is spoken here; codings that are known but not spoken get another
    /// kind, for their 501. A second field makes a list, of which every member changes the body.
    pub(super) fn add_coding(&mut self, value: &[u8]) -> Result<(), HeadErrorKind> {
        match self.coding {
            Coding::Absent => {}
            Coding::Identity => return Err(HeadErrorKind::InvalidEncoding),
            Coding::Chunked => return Err(HeadErrorKind::DuplicateEncoding),
        }
        if value.eq_ignore_ascii_case(b"chunked") {
            self.coding = Coding::Chunked;
        } else if value.eq_ignore_ascii_case(b"identity") {
            self.coding = Coding::Identity;
            self.note(HeadErrorKind::InvalidEncoding);
        } else {
            return Err(unknown_coding(value));
        }
        Ok(())
    }

    fn note(&mut self, superfluous: HeadErrorKind) {
        self.superfluous.get_or_insert(superfluous);
    }

    /// How a request is framed. Both framings at once are the root of request smuggling: refused whatever RFC 9112, section 6.3,
    /// would let pass, and so is everything else that is not plain.
    pub(super) fn of_request(&self, version: Version, method: Method) -> Result<BodyLength, HeadErrorKind> {
        if let Some(superfluous) = self.superfluous {
            return Err(superfluous);
        }
        let length = match (self.coding, self.length) {
            (Coding::Chunked, Some(_)) => return Err(HeadErrorKind::LengthAndEncoding),
            // RFC 9112, section 6.1: an HTTP/1.0 message with a transfer coding has faulty framing.
            (Coding::Chunked, None) if version == Version::Http10 => {
                return Err(HeadErrorKind::EncodingNotAllowed);
            }
            (Coding::Chunked, None) => BodyLength::Chunked,
            (Coding::Absent | Coding::Identity, Some(length)) => BodyLength::Sized(length.value),
            (Coding::Absent | Coding::Identity, None) => BodyLength::None,
        };
        // RFC 9110, section 9.3.8.
        if method == Method::Trace && length.has_body() {
            return Err(HeadErrorKind::BodyNotAllowed);
        }
        Ok(length)
    }

    /// How the response of this status to a request with this method is framed.
    pub(super) fn of_response(
        &self,
        version: Version,
        status: u16,
        method: Method,
    ) -> Result<ResponseFraming, HeadErrorKind> {
        let is_empty_by_status = status < 200 || status == 204;
        let is_connected = method == Method::Connect && (200..300).contains(&status);
        if is_empty_by_status || is_connected || status == 304 || method == Method::Head {
            return Ok(self.without_body(is_empty_by_status));
        }
        let length = match (self.coding, self.length) {
            // To HTTP/1.0 the chunks are the body; for everybody else they are around it.
            (Coding::Chunked, _) if version == Version::Http10 => {
                return Err(HeadErrorKind::EncodingNotAllowed);
            }
            (Coding::Chunked, _) => ResponseLength::Chunked,
            (Coding::Absent, Some(length)) => ResponseLength::Sized(length.value),
            // To RFC 2616 the length counts; to RFC 9112, section 6.3, what is not in chunks goes on to the close.
            (Coding::Identity, Some(_)) => return Err(HeadErrorKind::InvalidEncoding),
            (Coding::Absent | Coding::Identity, None) => ResponseLength::UntilClose,
        };
        let is_said_twice = self.coding == Coding::Chunked && self.length.is_some();
        let superfluous = self.superfluous.or(is_said_twice.then_some(HeadErrorKind::LengthAndEncoding));
        Ok(ResponseFraming { length, declared: None, superfluous })
    }

    /// A response that ends with its empty line whatever its fields say (RFC 9112, section 6.3). To HEAD, and in a 304, the length
    /// of the body that is left out may stand there; in a 1xx or 204 nothing may, and a length of 0 does no harm.
    ///
    /// A coding promises a body, also where RFC 9112, section 6.1, allows it: origins that send its last chunk all the same are
    /// not rare, and those bytes must not become the next answer.
    fn without_body(&self, is_empty_by_status: bool) -> ResponseFraming {
        let length = self.length.map(|length| length.value);
        let needless = match (self.coding, length) {
            (Coding::Chunked, _) => Some(HeadErrorKind::EncodingNotAllowed),
            (_, Some(1..)) if is_empty_by_status => Some(HeadErrorKind::BodyNotAllowed),
            (Coding::Absent | Coding::Identity, _) => None,
        };
        ResponseFraming {
            length: ResponseLength::None,
            declared: length.filter(|_| !is_empty_by_status && self.coding != Coding::Chunked),
            superfluous: self.superfluous.or(needless),
        }
    }
}

/// `1*DIGIT`: no sign, no space.
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

/// What to say of a coding that is not taken.
#[cold]
fn unknown_coding(value: &[u8]) -> HeadErrorKind {
    let Some(comma) = value.iter().rposition(|byte| *byte == b',') else {
        return HeadErrorKind::InvalidEncoding;
    };
    let ends_chunked = trim(&value[comma + 1..]).eq_ignore_ascii_case(b"chunked");
    let mut before = value[..comma].split(|byte| *byte == b',').map(trim);
    match ends_chunked && before.all(is_known_coding) {
        true => HeadErrorKind::UnsupportedEncoding,
        false => HeadErrorKind::InvalidEncoding,
    }
}

/// Registered transfer codings beside `chunked` (RFC 9112, section 7.2).
fn is_known_coding(coding: &[u8]) -> bool {
    [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
        .iter()
        .any(|known| coding.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// What a request may say is a part of what a response may say: whatever is redundant or refused there is refused here.
    #[test]
    fn nothing_redundant_is_taken_from_a_client() {
        let lengths: [&[&[u8]]; 4] = [&[], &[b"5"], &[b"5", b"5"], &[b"5, 5"]];
        let codings: [&[&[u8]]; 3] = [&[], &[b"chunked"], &[b"identity"]];
        for (lengths, codings) in lengths.iter().flat_map(|l| codings.iter().map(move |c| (l, c))) {
            let mut framing = Framing::default();
            lengths.iter().for_each(|value| framing.add_length(value).unwrap());
            codings.iter().for_each(|value| framing.add_coding(value).unwrap());
            let response = framing.of_response(Version::Http11, 200, Method::Get);
            let is_plain = response.is_ok_and(|response| response.superfluous.is_none());
            assert_eq!(is_plain, framing.of_request(Version::Http11, Method::Post).is_ok(), "{framing:?}");
        }
    }
}
