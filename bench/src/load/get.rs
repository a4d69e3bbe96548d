//! Small GET requests with a known answer; `churn` is the same with a connection for each.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::check::{Check, Exact};

/// The path on the mock origin that costs it least.
pub(crate) const PATH: &str = "/";

/// What it answers there.
pub(crate) const BODY: &[u8] = b"hello\n";

/// What the answers must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Get {
    /// `None` takes any body.
    pub(crate) body: Option<Arc<[u8]>>,
}

impl Get {
    pub(crate) fn check(&self) -> Check {
        match &self.body {
            Some(body) => Check::Exact(Exact::new(Arc::clone(body))),
            None => Check::Any,
        }
    }
}
