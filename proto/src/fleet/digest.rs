//! The checksum that names a config's text.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// Bytes of a SHA-256.
pub const DIGEST_BYTES: usize = 32;

/// SHA-256 of a config's text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConfigDigest([u8; DIGEST_BYTES]);

impl ConfigDigest {
    /// Of this text.
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// As sent; none where it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// As shown: 64 hexadecimal digits, of either case.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 2 * DIGEST_BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; DIGEST_BYTES];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// To be sent.
    pub fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }
}

impl fmt::Display for ConfigDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ConfigDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_shown_as_sha256sum_shows_it() {
        let digest = ConfigDigest::of(b"abc");
        let shown = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), shown);
        assert_eq!(ConfigDigest::from_hex(&shown.to_uppercase()), Some(digest));
        assert_eq!(ConfigDigest::from_bytes(digest.as_bytes()), Some(digest));
    }

    #[test]
    fn refuses_other_lengths_and_digits() {
        let shown = ConfigDigest::of(b"").to_string();
        for text in ["", &shown[1..], &format!("{shown}0"), &shown.replace('e', "g"), &"é".repeat(32)] {
            assert_eq!(ConfigDigest::from_hex(text), None, "{text}");
        }
        assert_eq!(ConfigDigest::from_bytes(&[0; 31]), None);
    }
}
