//! The id by which a request is found again in the logs of the client, of this node and of the origin.

/// Longest id taken over from a client.
const BYTES_MAX: usize = 128;

/// A request id, kept in place: the client's own if it sent a fit one, else one of ours.
#[derive(Clone, Copy)]
pub(crate) struct RequestId {
    bytes: [u8; BYTES_MAX],
    len: u8,
}

impl RequestId {
    /// The id with this text; what is too long is cut.
    pub(crate) fn new(text: &[u8]) -> Self {
        let len = text.len().min(BYTES_MAX);
        let mut bytes = [0; BYTES_MAX];
        bytes[..len].copy_from_slice(&text[..len]);
        Self { bytes, len: len as u8 }
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}
