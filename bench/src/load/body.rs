//! Large bodies. Down: every byte is compared with the pattern. Up: the origin compares, and its answer must say so.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::pattern;
use crate::record::Failure;

use super::check::{Check, Exact};
use super::exchange::Reading;
use super::tally::Wrong;

/// Which way, how much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) size: u64,
    pub(crate) upload: bool,
    pub(crate) chunked: bool,
    /// What the origin says of a good upload.
    pub(crate) receipt: Arc<[u8]>,
}

/// A body that is the pattern, on its way here.
#[derive(Debug)]
pub(crate) struct Download {
    size: u64,
    at: u64,
}

impl Body {
    pub(crate) fn new(size: u64, upload: bool, chunked: bool) -> Self {
        let receipt = format!("{{\"bytes\":{size},\"pattern\":true}}");
        Self { size, upload, chunked, receipt: receipt.into_bytes().into() }
    }

    pub(crate) fn path(&self) -> String {
        match (self.upload, self.chunked) {
            (true, _) => "/upload?pattern".to_owned(),
            (false, true) => format!("/bytes/{}?chunked", self.size),
            (false, false) => format!("/bytes/{}", self.size),
        }
    }

    pub(crate) fn check(&self) -> Check {
        if self.upload {
            Check::Exact(Exact::new(Arc::clone(&self.receipt)))
        } else {
            Check::Download(Download { size: self.size, at: 0 })
        }
    }
}

impl Download {
    pub(crate) fn piece(&mut self, bytes: &[u8], reading: &mut Reading<'_>) -> Result<(), Wrong> {
        if !pattern::matches(self.at, bytes) {
            let text = format!("wrong bytes between {} and {}", self.at, self.at + bytes.len() as u64);
            return Err(Wrong::new(Failure::Content, text));
        }
        self.at += bytes.len() as u64;
        reading.tally.bytes.checked += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn end(&self) -> Result<(), Wrong> {
        if self.at == self.size {
            return Ok(());
        }
        let text = format!("the body has {} bytes instead of {}", self.at, self.size);
        Err(Wrong::new(Failure::Content, text))
    }
}
