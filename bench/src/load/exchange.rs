//! One request and its response, or one message and its echo, as the generator sees it: bytes come in, and it is done
//! or wrong. Which protocol reads them is the choice here; a new one is a variant and a file. No sockets.

use crate::pattern;

use super::h1;
use super::tally::{Tally, Wrong};
use super::tcp;

/// What every exchange of a run sends: some bytes, and behind them so many of the pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) start: Vec<u8>,
    pub(crate) pattern_bytes: u64,
}

impl Message {
    pub(crate) fn length(&self) -> u64 {
        self.start.len() as u64 + self.pattern_bytes
    }

    /// What comes at `offset`: empty behind the end.
    pub(crate) fn piece(&self, offset: u64) -> &[u8] {
        match usize::try_from(offset).ok().and_then(|offset| self.start.get(offset..)) {
            Some(rest) if !rest.is_empty() => rest,
            _ => pattern::piece(offset - self.start.len() as u64, self.pattern_bytes, pattern::PIECE_MAX),
        }
    }
}

/// The reader of one exchange.
#[derive(Debug)]
pub(crate) enum Exchange {
    Http1(h1::Response),
    Tcp(tcp::Echo),
}

/// One read from a socket, and where to count what is seen in it.
pub(crate) struct Reading<'a> {
    /// When it was read.
    pub(crate) now_ns: u64,
    /// What was read cannot have arrived before: an earlier look would have found it.
    pub(crate) arrived_ns: u64,
    /// When the exchange was to begin.
    pub(crate) intended_ns: u64,
    pub(crate) tally: &'a mut Tally,
}

/// How far an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    Done(Answer),
}

/// A complete answer, its content checked if the status was 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `None` where the protocol has none.
    pub(crate) status: Option<u16>,
    pub(crate) has_retry_after: bool,
    pub(crate) keeps_connection: bool,
}

impl Exchange {
    pub(crate) fn take(&mut self, bytes: &[u8], reading: &mut Reading<'_>) -> Result<Progress, Wrong> {
        match self {
            Self::Http1(response) => response.take(bytes, reading),
            Self::Tcp(echo) => echo.take(bytes, reading),
        }
    }

    /// The peer has closed the connection.
    pub(crate) fn closed(&mut self, reading: &mut Reading<'_>) -> Result<Progress, Wrong> {
        match self {
            Self::Http1(response) => response.closed(reading),
            Self::Tcp(_) => Err(tcp::Echo::closed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_start_and_then_the_pattern() {
        let message = Message { start: b"head".to_vec(), pattern_bytes: 300 };
        let (mut sent, mut whole) = (0, Vec::new());
        while sent < message.length() {
            whole.extend_from_slice(message.piece(sent));
            sent = whole.len() as u64;
        }
        assert_eq!(whole.len(), 304);
        assert!(whole.starts_with(b"head\x00\x01") && whole.ends_with(&[47, 48]));
        assert!(message.piece(304).is_empty());
    }
}
