//! Bodies on their way through: the same framing on both sides passes untouched, else it is changed in place.
//!
//! Nothing is collected: each call takes what one read brought and leaves in the same buffer what one send takes.

use dataplane_core::h1::{BodyDecoder, BodyError, LAST_CHUNK, chunk_head};

use crate::io::Buf;

pub(crate) mod tunnel;

/// How the bytes of one body go from its sender's framing to its receiver's.
#[derive(Debug)]
pub(crate) enum Transit {
    /// There is no body.
    Nothing,
    /// Both sides frame it alike: bytes pass as they are, and are only counted to find the end.
    Same(BodyDecoder),
    /// Chunked comes, bare bytes go (to an HTTP/1.0 client).
    Unwrap(BodyDecoder),
    /// Bare bytes until the sender closes come, chunks go.
    Wrap,
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Body bytes, without framing.
    pub(crate) payload: u64,
    /// Bytes behind the end of the body, which do not belong to it; they are still in the buffer, behind the content's
    /// first `send` bytes.
    pub(crate) beyond: usize,
    /// The body is complete with this.
    pub(crate) done: bool,
}

impl Transit {
    /// Turns the content of `buf`, as received, into what is to be sent; bytes beyond the end of the body are cut off
    /// and counted.
    ///
    /// # Errors
    /// The sender's framing is broken.
    pub(crate) fn pass(&mut self, buf: &mut Buf) -> Result<Passed, BodyError> {
        match self {
            Self::Nothing => {
                let beyond = buf.len();
                buf.truncate(0);
                Ok(Passed { payload: 0, beyond, done: true })
            }
            Self::Same(decoder) => {
                let scan = decoder.scan(buf.bytes())?;
                let beyond = buf.len() - scan.consumed;
                buf.truncate(scan.consumed);
                Ok(Passed { payload: scan.data, beyond, done: scan.done })
            }
            Self::Unwrap(decoder) => unwrap(decoder, buf),
            Self::Wrap => {
                let payload = buf.len() as u64;
                wrap(buf);
                Ok(Passed { payload, beyond: 0, done: false })
            }
        }
    }

    /// The sender closed its side: what is still to be sent if that was the end of the body.
    ///
    /// # Errors
    /// The body was cut short.
    pub(crate) fn finish(&mut self) -> Result<&'static [u8], BodyError> {
        match self {
            Self::Nothing => Ok(b""),
            Self::Same(decoder) | Self::Unwrap(decoder) => decoder.finish().map(|()| &b""[..]),
            Self::Wrap => Ok(LAST_CHUNK),
        }
    }
}
