//! Reads HTTP/1.1 responses (RFC 9112) as they come, in any pieces, and hands the body to the scenario's check.
//! It keeps no body. It is strict where a proxy could be wrong: what it cannot read fails the run.

use crate::record::Failure;

use super::check::Check;
use super::exchange::{Answer, Progress, Reading};
use super::tally::Wrong;

/// Largest response head.
const HEAD_MAX: usize = 64 << 10;

/// Most fields of a response head.
const FIELDS_MAX: usize = 100;

/// Longest chunk-size or trailer line.
const LINE_MAX: usize = 4 << 10;

/// Most hexadecimal digits of a chunk size: a gigabyte needs eight.
const SIZE_DIGITS_MAX: u8 = 12;

/// Where the reader stands:
///
/// ```text
/// Head ─► Sized(n) ────────────────────────────────────────────► Done
///   ├───► SizeLine ─► Data(n) ─► DataEnd ─► SizeLine …
///   │         └─ size 0 ─► Trailers ───────────────────────────► Done
///   └───► UntilClose ─── the connection is closed ─────────────► Done
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Sized(u64),
    SizeLine { size: u64, digits: u8, length: usize },
    Data(u64),
    DataEnd { with_cr: bool },
    Trailers { line: usize, length: usize },
    UntilClose,
    Done,
}

const SIZE_LINE: State = State::SizeLine { size: 0, digits: 0, length: 0 };

/// One response.
#[derive(Debug)]
pub(crate) struct Response {
    state: State,
    check: Check,
    status: u16,
    has_retry_after: bool,
    keeps_connection: bool,
    /// The beginning of a head that did not come in one read.
    head: Vec<u8>,
}

impl Response {
    pub(crate) fn new(check: Check) -> Self {
        Self {
            state: State::Head,
            check,
            status: 0,
            has_retry_after: false,
            keeps_connection: true,
            head: Vec::new(),
        }
    }

    /// Takes everything that one read brought.
    pub(crate) fn take(&mut self, mut bytes: &[u8], reading: &mut Reading<'_>) -> Result<Progress, Wrong> {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Head => self.take_head(bytes)?,
                State::Sized(left) => {
                    let taken = self.take_body(bytes, left, reading)?;
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::Done } else { State::Sized(left) };
                    taken
                }
                State::Data(left) => {
                    let taken = self.take_body(bytes, left, reading)?;
                    let left = left - taken as u64;
                    self.state =
                        if left == 0 { State::DataEnd { with_cr: false } } else { State::Data(left) };
                    taken
                }
                State::UntilClose => self.take_body(bytes, u64::MAX, reading)?,
                State::SizeLine { .. } | State::DataEnd { .. } | State::Trailers { .. } => {
                    self.take_framing(bytes[0])?;
                    1
                }
                State::Done => {
                    return Err(Wrong::new(Failure::Malformed, "there are bytes behind the response"));
                }
            };
            bytes = &bytes[taken..];
        }
        if self.state == State::Done { self.finish(reading) } else { Ok(Progress::More) }
    }

    /// The connection was closed by the peer.
    pub(crate) fn closed(&mut self, reading: &mut Reading<'_>) -> Result<Progress, Wrong> {
        if self.state == State::UntilClose {
            self.keeps_connection = false;
            return self.finish(reading);
        }
        let begun = self.state != State::Head || !self.head.is_empty();
        let place = if begun { "in the middle of a response" } else { "before the response" };
        Err(Wrong::new(Failure::Closed, format!("the connection was closed {place}")))
    }

    fn take_head(&mut self, bytes: &[u8]) -> Result<usize, Wrong> {
        if self.head.is_empty() {
            if let Some(length) = self.parse_head(bytes)? {
                return Ok(length);
            }
            self.head.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let mut head = std::mem::take(&mut self.head);
        let before = head.len();
        head.extend_from_slice(bytes);
        if let Some(length) = self.parse_head(&head)? {
            return Ok(length - before);
        }
        self.head = head;
        Ok(bytes.len())
    }

    /// The length of the head; `None` if it is not all there.
    fn parse_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Wrong> {
        let mut fields = [const { std::mem::MaybeUninit::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let length = match parser.parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
            Ok(httparse::Status::Partial) => {
                return Err(malformed("the response's head is larger than 64 KiB"));
            }
            Err(error) => return Err(malformed(format!("the response's head cannot be read: {error}"))),
        };
        self.status = parsed.code.unwrap_or_default();
        self.note_fields(parsed.version, parsed.headers)?;
        Ok(Some(length))
    }

    /// RFC 9112, section 6.3, in its order.
    fn note_fields(&mut self, version: Option<u8>, fields: &[httparse::Header<'_>]) -> Result<(), Wrong> {
        if (100..200).contains(&self.status) {
            // Interim: the answer itself comes behind it.
            return if self.status == 101 { Err(malformed("a 101 that nobody asked for")) } else { Ok(()) };
        }
        self.keeps_connection = version == Some(1);
        let (mut length, mut chunked) = (None, false);
        for field in fields {
            // By length first: most fields are none of these.
            match field.name.len() {
                10 if field.name.eq_ignore_ascii_case("connection") => {
                    self.keeps_connection &= !field.value.eq_ignore_ascii_case(b"close");
                    self.keeps_connection |= field.value.eq_ignore_ascii_case(b"keep-alive");
                }
                11 if field.name.eq_ignore_ascii_case("retry-after") => self.has_retry_after = true,
                14 if field.name.eq_ignore_ascii_case("content-length") => {
                    let value =
                        number(field.value).ok_or_else(|| malformed("the Content-Length is no number"))?;
                    if length.is_some_and(|length| length != value) {
                        return Err(malformed("two Content-Lengths that differ"));
                    }
                    length = Some(value);
                }
                17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(malformed("a Transfer-Encoding other than chunked"));
                    }
                    chunked = true;
                }
                _ => {}
            }
        }
        self.state = match (self.status, chunked, length) {
            (204 | 304, _, _) => State::Done,
            (_, true, Some(_)) => return Err(malformed("both Transfer-Encoding and Content-Length")),
            (_, true, None) => SIZE_LINE,
            (_, false, Some(0)) => State::Done,
            (_, false, Some(length)) => State::Sized(length),
            (_, false, None) => State::UntilClose,
        };
        Ok(())
    }

    fn take_body(&mut self, bytes: &[u8], left: u64, reading: &mut Reading<'_>) -> Result<usize, Wrong> {
        let length = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        // The body of an error is none of the scenario's.
        if self.status == 200 {
            self.check.piece(&bytes[..length], reading)?;
        }
        Ok(length)
    }

    /// One byte of what stands between chunks (RFC 9112, section 7.1).
    fn take_framing(&mut self, byte: u8) -> Result<(), Wrong> {
        self.state = match (self.state, byte) {
            (State::SizeLine { digits: 0, .. }, b'\n') => return Err(malformed("a chunk without a size")),
            (State::SizeLine { size: 0, .. }, b'\n') => State::Trailers { line: 0, length: 0 },
            (State::SizeLine { size, .. }, b'\n') => State::Data(size),
            (State::SizeLine { length: LINE_MAX.., .. } | State::Trailers { length: LINE_MAX.., .. }, _) => {
                return Err(malformed("a chunk-size line or the trailers are longer than 4 KiB"));
            }
            (State::SizeLine { size, digits, length }, byte) => {
                match (byte as char).to_digit(16) {
                    // Digits behind anything else belong to an extension.
                    Some(digit) if length == usize::from(digits) && digits < SIZE_DIGITS_MAX => {
                        let size = size << 4 | u64::from(digit);
                        State::SizeLine { size, digits: digits + 1, length: length + 1 }
                    }
                    _ if length == usize::from(digits) && !matches!(byte, b'\r' | b';' | b' ' | b'\t') => {
                        return Err(malformed("a chunk size is not hexadecimal"));
                    }
                    _ => State::SizeLine { size, digits, length: length + 1 },
                }
            }
            (State::DataEnd { with_cr: false }, b'\r') => State::DataEnd { with_cr: true },
            (State::DataEnd { with_cr: true }, b'\n') => SIZE_LINE,
            (State::DataEnd { .. }, _) => return Err(malformed("a chunk does not end where its size says")),
            (State::Trailers { line: 0, .. }, b'\n') => State::Done,
            (State::Trailers { length, .. }, b'\n') => State::Trailers { line: 0, length: length + 1 },
            (State::Trailers { line, length }, b'\r') => State::Trailers { line, length: length + 1 },
            (State::Trailers { line, length }, _) => State::Trailers { line: line + 1, length: length + 1 },
            (
                state @ (State::Head | State::Sized(_) | State::Data(_) | State::UntilClose | State::Done),
                _,
            ) => state,
        };
        Ok(())
    }

    fn finish(&mut self, reading: &mut Reading<'_>) -> Result<Progress, Wrong> {
        self.state = State::Done;
        if self.status == 200 {
            self.check.end(reading)?;
        }
        Ok(Progress::Done(Answer {
            status: Some(self.status),
            has_retry_after: self.has_retry_after,
            keeps_connection: self.keeps_connection,
        }))
    }
}

/// Digits only: no sign, no space (RFC 9110, section 8.6).
fn number(value: &[u8]) -> Option<u64> {
    let text =
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

fn malformed(text: impl Into<String>) -> Wrong {
    Wrong::new(Failure::Malformed, text)
}

#[cfg(test)]
mod tests {
    use super::super::check::Exact;
    use super::super::tally::Tally;
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in pieces of `step` bytes, then closes.
    fn read(expected: &str, wire: &[u8], step: usize) -> Result<Option<Answer>, Wrong> {
        let mut tally = Tally::default();
        let mut reading = Reading { now_ns: 0, arrived_ns: 0, intended_ns: 0, tally: &mut tally };
        let mut response = Response::new(Check::Exact(Exact::new(expected.as_bytes().into())));
        let mut done = None;
        for piece in wire.chunks(step) {
            if let Progress::Done(answer) = response.take(piece, &mut reading)? {
                done = Some(answer);
            }
        }
        if done.is_none()
            && let Progress::Done(answer) = response.closed(&mut reading)?
        {
            done = Some(answer);
        }
        Ok(done)
    }

    proptest! {
        #[test]
        fn every_framing_reads_the_same_however_it_is_cut(step in 1_usize..80) {
            let wires: [&[u8]; 4] = [
                b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
                b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=f\r\nhello\r\n006\r\n world\r\n0\r\nX-A: 1\r\n\r\n",
                b"HTTP/1.1 200 OK\r\n\r\nhello world",
            ];
            for wire in wires {
                let answer = read("hello world", wire, step).unwrap().unwrap();
                prop_assert_eq!(answer.status, Some(200));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(wire in proptest::collection::vec(any::<u8>(), 0..300), step in 1_usize..50) {
            let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            // Whatever it says of noise, it must come back.
            let _ = (read("x", &wire, step), read("x", &[&chunked[..], &wire].concat(), step));
        }
    }

    #[test]
    fn what_two_parsers_may_read_differently_fails() {
        let wrongs: [&[u8]; 7] = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\nx\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1",
        ];
        for wire in wrongs {
            let wrong = read("x", wire, 1000).unwrap_err();
            assert_eq!(
                (wrong.kind, String::from_utf8_lossy(wire)),
                (Failure::Malformed, String::from_utf8_lossy(wire))
            );
        }
    }

    #[test]
    fn an_end_before_the_end_is_no_end() {
        for wire in ["HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", ""] {
            assert_eq!(read("x", wire.as_bytes(), 7).unwrap_err().kind, Failure::Closed, "{wire}");
        }
        let cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
        assert_eq!(read("x", cut, 7).unwrap_err().kind, Failure::Closed);
    }

    #[test]
    fn limits_hold() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MAX));
        assert!(read("x", long.as_bytes(), 1000).unwrap_err().text.contains("64 KiB"));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for line in [format!("1;{}", "e".repeat(LINE_MAX)), format!("0\r\n{}", "e".repeat(LINE_MAX))] {
            assert!(
                read("x", format!("{chunked}{line}e").as_bytes(), 1000).unwrap_err().text.contains("4 KiB")
            );
        }
        assert!(read("x", format!("{chunked}{}1\r\n", "0".repeat(12)).as_bytes(), 1000).is_err());
    }
}
