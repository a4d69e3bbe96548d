//! Where a body ends: a machine that is shown each piece of input and says which bytes are framing and which are body. It never holds,
//! copies or looks at body bytes; the driver moves them.

use std::error::Error;
use std::fmt;

use super::chunk::{ChunkDecoder, Trailers};
use super::response_head::ResponseLength;
use crate::error::{Fault, FaultKind};
use crate::request::BodyLength;

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BodyError {
    /// A chunk size that is empty, not hexadecimal, over 16 digits or out of range, or is followed by neither `;` nor CRLF.
    InvalidChunkSize,
    /// A chunk extension that is too long or has bytes other than visible ASCII.
    InvalidChunkExtension,
    /// Chunk data that is not followed by CRLF.
    MissingChunkEnd,
    /// Chunk framing without end: extensions out of all proportion to the data.
    TooMuchFraming,
    /// A trailer field that is malformed.
    InvalidTrailer,
    /// A trailer field that may not be one (RFC 9110, section 6.5.1).
    ForbiddenTrailer,
    /// More trailer bytes or fields than the limit.
    TrailersTooLarge,
    /// The input ended before the body did.
    Truncated,
}

impl BodyError {
    /// Every fault, in order: `error as usize` is its place.
    pub const ALL: [Self; 8] = [
        Self::InvalidChunkSize,
        Self::InvalidChunkExtension,
        Self::MissingChunkEnd,
        Self::TooMuchFraming,
        Self::InvalidTrailer,
        Self::ForbiddenTrailer,
        Self::TrailersTooLarge,
        Self::Truncated,
    ];

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidChunkSize => "invalid_chunk_size",
            Self::InvalidChunkExtension => "invalid_chunk_extension",
            Self::MissingChunkEnd => "missing_chunk_end",
            Self::TooMuchFraming => "too_much_framing",
            Self::InvalidTrailer => "invalid_trailer",
            Self::ForbiddenTrailer => "forbidden_trailer",
            Self::TrailersTooLarge => "trailers_too_large",
            Self::Truncated => "truncated",
        }
    }

    /// The fault of an origin whose response body is not what it should be.
    pub fn of_response(self) -> Fault {
        let kind = match self {
            Self::Truncated => FaultKind::UpstreamTruncated,
            Self::InvalidChunkSize
            | Self::InvalidChunkExtension
            | Self::MissingChunkEnd
            | Self::TooMuchFraming
            | Self::InvalidTrailer
            | Self::ForbiddenTrailer
            | Self::TrailersTooLarge => FaultKind::UpstreamMalformed,
        };
        Fault::because(kind, self.as_str())
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "body refused: {}", self.as_str())
    }
}

impl Error for BodyError {}

/// What the next bytes of the input are: first framing, to be skipped, then body. What lies behind them was not looked at yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes to skip.
    pub framing: usize,
    /// Body bytes behind those.
    pub data: usize,
    /// Whether the body ends there: what follows belongs to the next message.
    pub done: bool,
}

impl Decoded {
    /// How much of the input this accounts for.
    pub fn consumed(&self) -> usize {
        self.framing + self.data
    }
}

/// What a piece of input holds, taken as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Bytes that belong to this body, framing included; less than the input only when the body ends.
    pub consumed: usize,
    /// Whether the body ends there.
    pub done: bool,
    /// Body bytes among them.
    pub data: u64,
    /// Chunks that begin among them, the last (empty) one not counted.
    pub chunks_started: u32,
}

/// Finds the end of one body.
///
/// ```text
/// Sized(n) ── n bytes ──► done      Chunked ── last chunk, trailers ──► done      UntilClose ── finish() ──► done
/// ```
#[derive(Debug)]
pub enum BodyDecoder {
    /// This many bytes are still to come; at 0 the body is done.
    Sized {
        /// Bytes still to come.
        left: u64,
    },
    /// Chunks.
    Chunked(ChunkDecoder),
    /// Everything until the peer closes.
    UntilClose,
}

impl BodyDecoder {
    /// For a request body.
    pub fn for_request(length: BodyLength) -> Self {
        match length {
            BodyLength::None => Self::Sized { left: 0 },
            BodyLength::Sized(left) => Self::Sized { left },
            BodyLength::Chunked => Self::Chunked(ChunkDecoder::default()),
        }
    }

    /// For a response body.
    pub fn for_response(length: ResponseLength) -> Self {
        match length {
            ResponseLength::None => Self::Sized { left: 0 },
            ResponseLength::Sized(left) => Self::Sized { left },
            ResponseLength::Chunked => Self::Chunked(ChunkDecoder::default()),
            ResponseLength::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body has ended. True from the start for a body of no bytes.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Sized { left } => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::UntilClose => false,
        }
    }

    /// Body bytes that are known to come: of the whole body, or of the chunk at hand. For sizing a read.
    pub fn expected(&self) -> Option<u64> {
        match self {
            Self::Sized { left } => Some(*left),
            Self::Chunked(chunks) => chunks.expected(),
            Self::UntilClose => None,
        }
    }

    /// Says what the next bytes of `input` are. Call it with what is left until everything is consumed or the body is done: one call
    /// names at most one run of body bytes.
    ///
    /// # Errors
    /// The framing is malformed. Nobody knows where the next message would begin, so the connection is closed.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, BodyError> {
        match self {
            Self::Sized { left } => {
                let data = at_most(*left, input.len());
                *left -= data as u64;
                Ok(Decoded { framing: 0, data, done: *left == 0 })
            }
            Self::Chunked(chunks) => chunks.decode(input),
            Self::UntilClose => Ok(Decoded { framing: 0, data: input.len(), done: false }),
        }
    }

    /// Goes through `input` as a whole, for a relay that forwards it unchanged, chunk framing included (both sides are framed alike).
    /// The cost is that of the framing bytes; data is skipped by arithmetic. Everything that is let pass here reads the same to every
    /// parser: chunk extensions are visible ASCII only, sizes are plain hexadecimal, forbidden trailers are refused.
    ///
    /// # Errors
    /// As [`Self::decode`]. Nothing of `input` may then be forwarded.
    pub fn scan(&mut self, input: &[u8]) -> Result<Scan, BodyError> {
        let before = self.chunks();
        let mut scan = Scan { done: self.is_done(), ..Scan::default() };
        while !scan.done && scan.consumed < input.len() {
            let step = self.decode(&input[scan.consumed..])?;
            scan.consumed += step.consumed();
            scan.data += step.data as u64;
            scan.done = step.done;
        }
        scan.chunks_started = self.chunks().wrapping_sub(before);
        Ok(scan)
    }

    /// The input has ended.
    ///
    /// # Errors
    /// The body has not: only one that runs until the close may end so. The other side must see an abnormal end too.
    pub fn finish(&self) -> Result<(), BodyError> {
        match self {
            Self::UntilClose => Ok(()),
            Self::Sized { .. } | Self::Chunked(_) if self.is_done() => Ok(()),
            Self::Sized { .. } | Self::Chunked(_) => Err(BodyError::Truncated),
        }
    }

    /// The trailers of a chunked body that is done; none if it had none.
    pub fn trailers(&self) -> Option<&Trailers> {
        match self {
            Self::Chunked(chunks) => chunks.trailers(),
            Self::Sized { .. } | Self::UntilClose => None,
        }
    }

    fn chunks(&self) -> u32 {
        match self {
            Self::Chunked(chunks) => chunks.chunks(),
            Self::Sized { .. } | Self::UntilClose => 0,
        }
    }
}

/// The smaller one of a 64-bit count and a length.
pub(super) fn at_most(left: u64, len: usize) -> usize {
    usize::try_from(left).map_or(len, |left| left.min(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sized_body_ends_after_its_bytes() {
        let mut body = BodyDecoder::for_request(BodyLength::Sized(5));
        assert_eq!(body.decode(b"abc"), Ok(Decoded { framing: 0, data: 3, done: false }));
        assert_eq!(body.finish(), Err(BodyError::Truncated));
        assert_eq!(body.expected(), Some(2));
        assert_eq!(body.scan(b"deGET /"), Ok(Scan { consumed: 2, done: true, data: 2, chunks_started: 0 }));
        assert_eq!(body.finish(), Ok(()));
        assert_eq!(body.scan(b"GET /"), Ok(Scan { done: true, ..Scan::default() }));
    }

    #[test]
    fn no_body_is_done_at_once() {
        let body = BodyDecoder::for_request(BodyLength::None);
        assert!(body.is_done());
        assert_eq!(body.finish(), Ok(()));
    }

    #[test]
    fn only_a_body_until_close_may_end_with_the_input() {
        let mut body = BodyDecoder::for_response(ResponseLength::UntilClose);
        assert_eq!(body.scan(b"abc"), Ok(Scan { consumed: 3, done: false, data: 3, chunks_started: 0 }));
        assert_eq!(body.finish(), Ok(()));
        assert_eq!(BodyDecoder::for_response(ResponseLength::Chunked).finish(), Err(BodyError::Truncated));
    }
}
