//! One condition of a route on a request header. Values are compared byte for byte; there are no patterns.

use proto::config::HeaderMatch;

/// A header that must be there, with this value if one is given.
#[derive(Debug)]
pub(super) struct HeaderPattern {
    name: Box<str>,
    value: Option<Box<[u8]>>,
}

impl HeaderPattern {
    pub(super) fn new(condition: &HeaderMatch) -> Self {
        HeaderPattern {
            name: condition.name.to_ascii_lowercase().into(),
            value: condition.value.as_ref().map(|value| value.as_bytes().into()),
        }
    }

    pub(super) fn matches<'a>(&self, header: &dyn Fn(&str) -> Option<&'a [u8]>) -> bool {
        match (header(&self.name), &self.value) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(found), Some(wanted)) => *found == **wanted,
        }
    }
}
