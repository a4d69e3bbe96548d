//! Decodes a request body out of the input, piece by piece (RFC 9112, sections 6 and 7.1). It holds no
//! bytes of its own and reads no socket: the exchange feeds it.

use bytes::{Buf, Bytes, BytesMut};

use super::request::{BodyLength, Malformed};

/// Longest chunk-size line, with its extensions.
const SIZE_LINE_MAX: usize = 4 << 10;

/// Longest trailer section.
const TRAILERS_MAX: usize = 16 << 10;

/// Most trailer fields.
const TRAILER_FIELDS_MAX: usize = 64;

/// Where the decoder stands:
///
/// ```text
/// Sized(n) ─────────────────────────────────► Done
/// ChunkSize ─► ChunkData(n) ─► ChunkEnd ─► ChunkSize
///     └─ size 0 ─► Trailers ────────────────► Done
/// ```
#[derive(Debug, PartialEq, Eq)]
enum State {
    Sized(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Done,
}

/// What the input holds next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Some of the body.
    Data(Bytes),
    /// The body goes on, but not in this input.
    NeedMore,
    /// The body has been read to its end.
    End,
}

/// The decoder of one request body.
#[derive(Debug)]
pub(crate) struct BodyDecoder {
    state: State,
    /// Bytes of the body, without its framing.
    pub(crate) received: u64,
    pub(crate) trailers: Vec<(String, String)>,
}

impl BodyDecoder {
    pub(crate) fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::Empty | BodyLength::Sized(0) => State::Done,
            BodyLength::Sized(length) => State::Sized(length),
            BodyLength::Chunked => State::ChunkSize,
        };
        Self { state, received: 0, trailers: Vec::new() }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The next piece, of at most `limit` bytes.
    pub(crate) fn poll_piece(&mut self, input: &mut BytesMut, limit: usize) -> Result<Piece, Malformed> {
        loop {
            match self.state {
                State::Done => return Ok(Piece::End),
                _ if input.is_empty() => return Ok(Piece::NeedMore),
                State::Sized(left) | State::ChunkData(left) => return Ok(self.take_data(input, left, limit)),
                State::ChunkSize => {
                    if !self.read_size(input)? {
                        return Ok(Piece::NeedMore);
                    }
                }
                State::ChunkEnd => {
                    if input.len() < 2 {
                        return Ok(Piece::NeedMore);
                    }
                    if !input.starts_with(b"\r\n") {
                        return Err(Malformed::bad("a chunk does not end where its size says"));
                    }
                    input.advance(2);
                    self.state = State::ChunkSize;
                }
                State::Trailers => {
                    if !self.read_trailers(input)? {
                        return Ok(Piece::NeedMore);
                    }
                }
            }
        }
    }

    fn take_data(&mut self, input: &mut BytesMut, left: u64, limit: usize) -> Piece {
        let available = input.len().min(limit.max(1));
        let length = usize::try_from(left).map_or(available, |left| left.min(available));
        let rest = left - length as u64;
        self.received += length as u64;
        self.state = match (&self.state, rest) {
            (State::ChunkData(_), 0) => State::ChunkEnd,
            (State::ChunkData(_), _) => State::ChunkData(rest),
            (_, 0) => State::Done,
            (_, _) => State::Sized(rest),
        };
        Piece::Data(input.split_to(length).freeze())
    }

    fn read_size(&mut self, input: &mut BytesMut) -> Result<bool, Malformed> {
        match httparse::parse_chunk_size(input) {
            Ok(httparse::Status::Complete((line, size))) => {
                input.advance(line);
                self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                Ok(true)
            }
            Ok(httparse::Status::Partial) if input.len() < SIZE_LINE_MAX => Ok(false),
            Ok(httparse::Status::Partial) => Err(Malformed::bad("a chunk-size line is longer than 4 KiB")),
            Err(_) => Err(Malformed::bad("a chunk size is not hexadecimal")),
        }
    }

    fn read_trailers(&mut self, input: &mut BytesMut) -> Result<bool, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
        let length =
            match httparse::parse_headers(input, &mut fields) {
                Ok(httparse::Status::Complete((length, found))) => {
                    self.trailers.extend(found.iter().map(|field| {
                        (field.name.to_owned(), String::from_utf8_lossy(field.value).into_owned())
                    }));
                    length
                }
                Ok(httparse::Status::Partial) if input.len() < TRAILERS_MAX => return Ok(false),
                Ok(httparse::Status::Partial) => {
                    return Err(Malformed::bad("the trailers are larger than 16 KiB"));
                }
                Err(_) => return Err(Malformed::bad("the trailers are not header fields")),
            };
        input.advance(length);
        self.state = State::Done;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in pieces of `step` bytes; the body, and what was left behind it.
    fn decode(
        length: BodyLength,
        wire: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, BytesMut, BodyDecoder), Malformed> {
        let mut decoder = BodyDecoder::new(length);
        let (mut input, mut body) = (BytesMut::new(), Vec::new());
        for part in wire.chunks(step) {
            input.extend_from_slice(part);
            while let Piece::Data(data) = decoder.poll_piece(&mut input, usize::MAX)? {
                body.extend_from_slice(&data);
            }
        }
        Ok((body, input, decoder))
    }

    proptest! {
        #[test]
        fn chunked_bodies_decode_however_they_are_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
            step in 1usize..40,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x};ext=1\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\nX-Sum: 7\r\n\r\nGET");
            let (body, rest, decoder) = decode(BodyLength::Chunked, &wire, step).unwrap();
            prop_assert_eq!(&body, &chunks.concat());
            prop_assert_eq!(decoder.received, body.len() as u64);
            prop_assert!(decoder.is_done());
            prop_assert_eq!(&decoder.trailers, &vec![("X-Sum".to_owned(), "7".to_owned())]);
            prop_assert_eq!(&rest[..], b"GET");
        }
    }

    #[test]
    fn a_sized_body_ends_at_its_size() {
        let (body, rest, decoder) = decode(BodyLength::Sized(5), b"helloGET", 3).unwrap();
        assert_eq!((body.as_slice(), &rest[..], decoder.is_done()), (&b"hello"[..], &b"GET"[..], true));
    }

    #[test]
    fn wrong_chunks_are_refused() {
        for wire in ["zz\r\nhello", "5\r\nhello!!\r\n", "-1\r\n", "10000000000000000\r\nx"] {
            assert!(decode(BodyLength::Chunked, wire.as_bytes(), 100).is_err(), "{wire}");
        }
        let endless = format!("5;{}", "e".repeat(SIZE_LINE_MAX));
        assert!(decode(BodyLength::Chunked, endless.as_bytes(), 100).is_err());
        let trailers = format!("0\r\nX: {}", "e".repeat(TRAILERS_MAX));
        assert!(decode(BodyLength::Chunked, trailers.as_bytes(), 100).is_err());
    }

    #[test]
    fn a_piece_is_never_larger_than_asked() {
        let mut decoder = BodyDecoder::new(BodyLength::Sized(10));
        let piece = decoder.poll_piece(&mut BytesMut::from("0123456789"), 4);
        assert_eq!(piece, Ok(Piece::Data(Bytes::from_static(b"0123"))));
        assert!(!decoder.is_done());
    }
}
