//! Messages on a TCP connection that come back unchanged. There is no framing: a message ends with its last byte.

use crate::pattern;
use crate::record::Failure;

use super::exchange::{Answer, Progress, Reading};
use super::tally::Wrong;

/// One message on its way back.
#[derive(Debug)]
pub(crate) struct Echo {
    size: u64,
    at: u64,
}

impl Echo {
    /// The message is `size` bytes of the pattern.
    pub(crate) fn new(size: u64) -> Self {
        Self { size, at: 0 }
    }

    pub(crate) fn take(&mut self, bytes: &[u8], reading: &mut Reading<'_>) -> Result<Progress, Wrong> {
        if bytes.len() as u64 > self.size - self.at || !pattern::matches(self.at, bytes) {
            return Err(Wrong::new(Failure::Content, format!("the echo differs from byte {} on", self.at)));
        }
        self.at += bytes.len() as u64;
        reading.tally.bytes.checked += bytes.len() as u64;
        if self.at < self.size {
            return Ok(Progress::More);
        }
        Ok(Progress::Done(Answer { status: None, has_retry_after: false, keeps_connection: true }))
    }

    pub(crate) fn closed() -> Wrong {
        Wrong::new(Failure::Closed, "the connection was closed before the echo was complete")
    }
}
