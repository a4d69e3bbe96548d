//! The chunked transfer coding (RFC 9112, section 7.1), both ways: finding the data in it, trailers, and writing it. Not a relay: data is
//! skipped by arithmetic and never held.

use super::body::{BodyError, Decoded, at_most};
use super::field::{FieldKind, TOKEN, trim};
use super::writer::{Full, Writer};

/// Digits of a chunk size. 16 hold every 64-bit size, and bound leading zeros.
const SIZE_DIGITS_MAX: u8 = 16;

/// Largest chunk: other parsers keep the size in a signed 64-bit number.
const CHUNK_BYTES_MAX: u64 = i64::MAX as u64;

/// Longest extension of one chunk. The ones in use (chunk signatures) are under 100 bytes.
const EXTENSION_BYTES_MAX: u16 = 256;

/// How far framing may run ahead of data. Each chunk may have 16 bytes of framing and as many more as it has data, for free; the
/// rest adds up, so that an endless run of extensions around single bytes ends here.
const FRAMING_EXCESS_MAX: u64 = 16 * 1024;

/// Bytes of all trailers together.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Trailer fields.
const TRAILER_FIELDS_MAX: u32 = 64;

/// Ends a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The last chunk of a body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Where in the coding the next byte belongs.
///
/// ```text
///        ┌───────────────────── LF ────────────── CR ─────────────────────┐
///        ▼                                                                │
///  Size ─┬─ ; ─► Extension ─ CR ─┬─► SizeLf ─ LF ─┬─ size > 0 ─► Data ─► DataCr ─► DataLf
///        └────────── CR ─────────┘                └─ size = 0 ─► Trailer ─ CR at line start ─► EndLf ─ LF ─► Done
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { digits: u8 },
    Extension { len: u16 },
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// Finds data, trailers and the end in a chunked body.
#[derive(Debug)]
pub struct ChunkDecoder {
    state: State,
    /// The size while it is read, then the data bytes still to come.
    left: u64,
    /// Framing bytes of the chunk at hand.
    framing: u64,
    /// Framing bytes above what is free, over all chunks.
    excess: u64,
    chunks: u32,
    trailers: Option<Box<Trailers>>,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self { state: State::Size { digits: 0 }, left: 0, framing: 0, excess: 0, chunks: 0, trailers: None }
    }
}

impl ChunkDecoder {
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(super) fn expected(&self) -> Option<u64> {
        (self.state == State::Data).then_some(self.left)
    }

    pub(super) fn chunks(&self) -> u32 {
        self.chunks
    }

    pub(super) fn trailers(&self) -> Option<&Trailers> {
        self.trailers.as_deref().filter(|_| self.is_done())
    }

    /// Goes through framing up to and including one run of data.
    pub(super) fn decode(&mut self, input: &[u8]) -> Result<Decoded, BodyError> {
        let mut framing = 0;
        while self.state != State::Done {
            if self.state == State::Data {
                let data = at_most(self.left, input.len() - framing);
                self.left -= data as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Decoded { framing, data, done: false });
            }
            let Some(byte) = input.get(framing) else { break };
            self.state = self.next(*byte)?;
            framing += 1;
        }
        Ok(Decoded { framing, data: 0, done: self.is_done() })
    }

    fn next(&mut self, byte: u8) -> Result<State, BodyError> {
        self.framing += 1;
        match (self.state, byte) {
            (State::Size { digits }, _) => self.size(digits, byte),
            (State::Extension { .. }, b'\r') => Ok(State::SizeLf),
            (State::Extension { len }, b'!'..=b'~') if len < EXTENSION_BYTES_MAX => {
                Ok(State::Extension { len: len + 1 })
            }
            (State::Extension { .. }, _) => Err(BodyError::InvalidChunkExtension),
            (State::SizeLf, b'\n') => self.size_read(),
            (State::SizeLf, _) => Err(BodyError::InvalidChunkSize),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { digits: 0 }),
            (State::Data | State::DataCr | State::DataLf, _) => Err(BodyError::MissingChunkEnd),
            (State::Trailer, b'\r') if self.is_at_line_start() => Ok(State::EndLf),
            (State::Trailer, b'\r') => Ok(State::TrailerLf),
            (State::Trailer, b'\n') => Err(BodyError::InvalidTrailer),
            (State::Trailer, _) => self.trailers.get_or_insert_default().push(byte).map(|()| State::Trailer),
            (State::TrailerLf, b'\n') => {
                self.trailers.get_or_insert_default().end_line().map(|()| State::Trailer)
            }
            (State::EndLf, b'\n') => Ok(State::Done),
            (State::TrailerLf | State::EndLf | State::Done, _) => Err(BodyError::InvalidTrailer),
        }
    }

    fn size(&mut self, digits: u8, byte: u8) -> Result<State, BodyError> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if digits > 0 => return Ok(State::SizeLf),
            b';' if digits > 0 => return Ok(State::Extension { len: 0 }),
            _ => return Err(BodyError::InvalidChunkSize),
        };
        if digits == SIZE_DIGITS_MAX {
            return Err(BodyError::InvalidChunkSize);
        }
        self.left = self.left << 4 | u64::from(digit);
        Ok(State::Size { digits: digits + 1 })
    }

    /// The line with the size is over.
    fn size_read(&mut self) -> Result<State, BodyError> {
        if self.left > CHUNK_BYTES_MAX {
            return Err(BodyError::InvalidChunkSize);
        }
        self.excess = (self.excess + self.framing).saturating_sub(16 + self.left);
        if self.excess > FRAMING_EXCESS_MAX {
            return Err(BodyError::TooMuchFraming);
        }
        self.framing = 0;
        if self.left == 0 {
            return Ok(State::Trailer);
        }
        self.chunks = self.chunks.wrapping_add(1);
        Ok(State::Data)
    }

    fn is_at_line_start(&self) -> bool {
        self.trailers.as_ref().is_none_or(|trailers| trailers.line_start == trailers.bytes.len())
    }
}

/// The trailer fields of a chunked body (RFC 9110, section 6.5), checked, as they came. The one thing of a body that is held, and it is
/// bounded: 8 KiB and 64 fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trailers {
    /// Lines with their CRLF, and the beginning of one more while it is read.
    bytes: Vec<u8>,
    line_start: usize,
    fields: u32,
}

impl Trailers {
    /// The field lines, each with its CRLF, without the empty line behind them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.line_start]
    }

    /// Name and value of each field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.as_bytes().split(|byte| *byte == b'\n').filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let value = line[colon + 1..].strip_suffix(b"\r")?;
            Some((&line[..colon], trim(value)))
        })
    }

    fn push(&mut self, byte: u8) -> Result<(), BodyError> {
        if self.bytes.len() + 2 >= TRAILER_BYTES_MAX {
            return Err(BodyError::TrailersTooLarge);
        }
        self.bytes.push(byte);
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), BodyError> {
        if self.fields == TRAILER_FIELDS_MAX {
            return Err(BodyError::TrailersTooLarge);
        }
        check_trailer(&self.bytes[self.line_start..])?;
        self.bytes.extend_from_slice(CHUNK_END);
        self.line_start = self.bytes.len();
        self.fields += 1;
        Ok(())
    }
}

/// A trailer line is a field line under the rules of the head, and none whose meaning would come too late.
fn check_trailer(line: &[u8]) -> Result<(), BodyError> {
    let name_len = line.iter().position(|byte| !TOKEN[*byte as usize]).ok_or(BodyError::InvalidTrailer)?;
    let (name, rest) = line.split_at(name_len);
    let is_value = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    if name.is_empty() || rest[0] != b':' || !rest[1..].iter().all(is_value) {
        return Err(BodyError::InvalidTrailer);
    }
    if is_forbidden_trailer(name) { Err(BodyError::ForbiddenTrailer) } else { Ok(()) }
}

/// RFC 9110, section 6.5.1: fields for framing, routing, authentication, request modifiers and content format. A recipient that merges
/// trailers into the head would act on them after the proxy has decided, so they are refused, in both ways of forwarding.
fn is_forbidden_trailer(name: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 13] = [
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"cookie",
        b"location",
        b"max-forwards",
        b"range",
        b"set-cookie",
        b"www-authenticate",
        b"x-real-ip",
        b"x-forwarded-port",
        b"age",
    ];
    FieldKind::of(name) != FieldKind::Other
        || FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}

/// The line in front of `len` bytes of chunk data, written into `room`. `len` must not be 0: that is the last chunk.
pub fn chunk_head(len: usize, room: &mut [u8; 18]) -> &[u8] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    room[16..].copy_from_slice(CHUNK_END);
    let mut start = 16;
    let mut rest = len;
    loop {
        start -= 1;
        room[start] = HEX[rest & 15];
        rest >>= 4;
        if rest == 0 {
            return &room[start..];
        }
    }
}

/// Writes the last chunk, with trailers if there are any. Returns how many bytes of `out` were written.
///
/// # Errors
/// `out` is too small.
pub fn encode_last_chunk(out: &mut [u8], trailers: Option<&Trailers>) -> Result<usize, Full> {
    let mut writer = Writer::new(out);
    writer.put(b"0\r\n")?;
    writer.put(trailers.map_or(&[], Trailers::as_bytes))?;
    writer.put(CHUNK_END)?;
    Ok(writer.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(input: &[u8]) -> Result<Vec<u8>, BodyError> {
        let (mut chunks, mut at, mut data) = (ChunkDecoder::default(), 0, Vec::new());
        loop {
            let step = chunks.decode(&input[at..])?;
            data.extend_from_slice(&input[at + step.framing..at + step.consumed()]);
            at += step.consumed();
            if step.done || at == input.len() {
                return Ok(data);
            }
        }
    }

    #[test]
    fn data_is_found_between_framing() {
        assert_eq!(run(b"5\r\nhello\r\n06;a=b\r\n world\r\n0\r\n\r\n"), Ok(b"hello world".to_vec()));
    }

    #[test]
    fn trailers_are_kept_as_they_came() {
        let mut chunks = ChunkDecoder::default();
        let input = b"0\r\nX-Sum:  1 \r\nB:\r\n\r\nGET /";
        let step = chunks.decode(input).unwrap();
        assert_eq!(step, Decoded { framing: input.len() - 5, data: 0, done: true });
        let trailers = chunks.trailers().unwrap();
        assert_eq!(trailers.as_bytes(), b"X-Sum:  1 \r\nB:\r\n");
        assert_eq!(trailers.iter().collect::<Vec<_>>(), [(&b"X-Sum"[..], &b"1"[..]), (b"B", b"")]);
    }

    #[test]
    fn framing_without_data_ends() {
        let chunk = [b"1;".to_vec(), vec![b'x'; 255], b"\r\na\r\n".to_vec()].concat();
        let input = chunk.repeat(200);
        assert_eq!(run(&input), Err(BodyError::TooMuchFraming));
    }

    #[test]
    fn plain_chunks_of_one_byte_are_no_excess() {
        let input = b"1\r\na\r\n".repeat(100_000);
        assert_eq!(run(&input).map(|data| data.len()), Ok(100_000));
    }

    #[test]
    fn chunk_heads_are_hexadecimal() {
        assert_eq!(chunk_head(1, &mut [0; 18]), b"1\r\n");
        assert_eq!(chunk_head(0xabc0, &mut [0; 18]), b"abc0\r\n");
        assert_eq!(chunk_head(usize::MAX, &mut [0; 18]), b"ffffffffffffffff\r\n");
    }

    #[test]
    fn trailers_have_a_limit() {
        let long = [b"0\r\nA: ".to_vec(), vec![b'x'; TRAILER_BYTES_MAX]].concat();
        assert_eq!(run(&long), Err(BodyError::TrailersTooLarge));
        let many = [b"0\r\n".to_vec(), b"A: b\r\n".repeat(TRAILER_FIELDS_MAX as usize + 1)].concat();
        assert_eq!(run(&many), Err(BodyError::TrailersTooLarge));
    }
}
