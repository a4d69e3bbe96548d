//! Bodies on their way through: the same framing on both sides passes untouched, else it is changed in place.
//!
//! Nothing is collected: each call takes what one read brought and leaves in the same buffer what one send takes.

use dataplane_core::h1::{BodyDecoder, BodyError, CHUNK_END, LAST_CHUNK, chunk_head};

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

/// Moves the data of chunks together, over their framing.
fn unwrap(decoder: &mut BodyDecoder, buf: &mut Buf) -> Result<Passed, BodyError> {
    let bytes = buf.content_mut();
    let (mut read, mut written, mut done) = (0, 0, decoder.is_done());
    while !done && read < bytes.len() {
        let step = decoder.decode(&bytes[read..])?;
        let data = read + step.framing;
        bytes.copy_within(data..data + step.data, written);
        written += step.data;
        read += step.consumed();
        done = step.done;
    }
    let beyond = bytes.len() - read;
    buf.truncate(written);
    Ok(Passed { payload: written as u64, beyond, done })
}

/// Makes the content one chunk, in the room that every buffer has around it.
fn wrap(buf: &mut Buf) {
    if buf.is_empty() {
        // An empty chunk would be the last one.
        return;
    }
    let mut room = [0; 18];
    let head = chunk_head(buf.len(), &mut room);
    let fits = buf.prepend(head) && buf.append(CHUNK_END);
    debug_assert!(fits, "a buffer's rooms take the framing of a chunk");
}

#[cfg(test)]
mod tests {
    use dataplane_core::h1::ResponseLength;

    use super::*;

    fn passed(transit: &mut Transit, input: &[u8]) -> (Vec<u8>, Passed) {
        let mut buf = Buf::small();
        assert!(buf.append(input));
        let passed = transit.pass(&mut buf).unwrap();
        (buf.bytes().to_vec(), passed)
    }

    #[test]
    fn the_same_framing_passes_untouched_and_ends_where_the_body_ends() {
        let mut transit = Transit::Same(BodyDecoder::for_response(ResponseLength::Chunked));
        let (first, state) = passed(&mut transit, b"5\r\nhello\r\n3;x=y\r\nab");
        assert_eq!(first, b"5\r\nhello\r\n3;x=y\r\nab");
        assert_eq!(state, Passed { payload: 7, beyond: 0, done: false });
        assert!(transit.finish().is_err(), "cut within a chunk");
        let (rest, state) = passed(&mut transit, b"c\r\n0\r\n\r\nHTTP/1.1 200");
        assert_eq!(rest, b"c\r\n0\r\n\r\n");
        assert_eq!(state, Passed { payload: 1, beyond: 12, done: true });
        assert!(transit.finish().is_ok());
    }

    #[test]
    fn unwraps_chunks_for_a_client_that_does_not_know_them() {
        let mut transit = Transit::Unwrap(BodyDecoder::for_response(ResponseLength::Chunked));
        let (first, state) = passed(&mut transit, b"5\r\nhello\r\n6\r\n wor");
        assert_eq!((first.as_slice(), state.done), (&b"hello wor"[..], false));
        let (rest, state) = passed(&mut transit, b"ld\r\n0\r\n\r\n");
        assert_eq!((rest.as_slice(), state.done), (&b"ld"[..], true));
        assert_eq!(transit.finish(), Ok(&b""[..]));
    }

    #[test]
    fn wraps_what_ends_with_the_connection_into_chunks_of_one_read_each() {
        let mut transit = Transit::Wrap;
        let (first, state) = passed(&mut transit, b"data: token\n\n");
        assert_eq!(first, b"d\r\ndata: token\n\n\r\n");
        assert_eq!(state, Passed { payload: 13, beyond: 0, done: false });
        assert_eq!(passed(&mut transit, b"").0, b"", "an empty chunk would be the end");
        assert_eq!(transit.finish(), Ok(LAST_CHUNK));
    }

    #[test]
    fn a_full_buffer_still_takes_its_chunk_framing() {
        let mut buf = Buf::large();
        let size = buf.spare();
        buf.append(&vec![b'x'; size]);
        Transit::Wrap.pass(&mut buf).unwrap();
        assert!(buf.bytes().starts_with(b"8000\r\nx") && buf.bytes().ends_with(b"x\r\n"));
    }
}
