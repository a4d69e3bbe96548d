//! The id by which a request is found again in the logs of the client, of this node and of the origin.

use std::rc::Rc;

/// A request id: the client's own if it sent a fit one, else one of ours, which is kept in place.
#[derive(Clone, Debug)]
pub(crate) enum RequestId {
    /// 32 hexadecimal digits.
    Ours([u8; 32]),
    /// What the client sent.
    Theirs(Rc<str>),
}

impl RequestId {
    /// The text, as it is written into heads.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Ours(digits) => digits,
            Self::Theirs(text) => text.as_bytes(),
        }
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Ours(digits) => std::str::from_utf8(digits).unwrap_or_default(),
            Self::Theirs(text) => text,
        }
    }
}
