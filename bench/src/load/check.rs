//! What a response's body must be: the choice between the scenarios' checks. A check sees the body in any pieces and
//! says at once what is wrong with it.

use std::sync::Arc;

use crate::record::Failure;

use super::body::Download;
use super::exchange::Reading;
use super::post::Completion;
use super::sse::Stream;
use super::tally::Wrong;

/// The check of one body.
#[derive(Debug)]
pub(crate) enum Check {
    /// Any body will do.
    Any,
    Exact(Exact),
    Completion(Completion),
    Download(Download),
    Stream(Box<Stream>),
}

/// A body that is known byte by byte.
#[derive(Debug)]
pub(crate) struct Exact {
    expected: Arc<[u8]>,
    at: usize,
}

impl Check {
    pub(crate) fn piece(&mut self, bytes: &[u8], reading: &mut Reading<'_>) -> Result<(), Wrong> {
        match self {
            Self::Any => Ok(()),
            Self::Exact(exact) => exact.piece(bytes, reading),
            Self::Completion(completion) => completion.piece(bytes),
            Self::Download(download) => download.piece(bytes, reading),
            Self::Stream(stream) => stream.piece(bytes, reading),
        }
    }

    pub(crate) fn end(&self, reading: &mut Reading<'_>) -> Result<(), Wrong> {
        match self {
            Self::Any => Ok(()),
            Self::Exact(exact) => exact.end(),
            Self::Completion(completion) => completion.end(reading),
            Self::Download(download) => download.end(),
            Self::Stream(stream) => stream.end(),
        }
    }
}

impl Exact {
    pub(crate) fn new(expected: Arc<[u8]>) -> Self {
        Self { expected, at: 0 }
    }

    fn piece(&mut self, bytes: &[u8], reading: &mut Reading<'_>) -> Result<(), Wrong> {
        if !self.expected[self.at..].starts_with(bytes) {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
            return Err(Wrong::new(
                Failure::Content,
                format!("the body is another one from byte {} on: {shown:?}", self.at),
            ));
        }
        self.at += bytes.len();
        reading.tally.bytes.checked += bytes.len() as u64;
        Ok(())
    }

    fn end(&self) -> Result<(), Wrong> {
        if self.at == self.expected.len() {
            return Ok(());
        }
        let text = format!("the body has {} bytes instead of {}", self.at, self.expected.len());
        Err(Wrong::new(Failure::Content, text))
    }
}
