//! Secrets that programs carry: random, shown once, kept as a hash. A plain SHA-256 will do, since nobody can guess 256
//! random bits; passwords are another matter (`password`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::keys;

/// Bytes of an id: none is met twice.
const ID_BYTES: usize = 8;

/// A new random id, 16 hexadecimal digits.
pub(crate) fn new_id() -> String {
    hex(&keys::random::<ID_BYTES>())
}

/// A new secret of 43 characters.
pub(crate) fn new_secret() -> String {
    URL_SAFE_NO_PAD.encode(keys::random::<{ keys::KEY_BYTES }>())
}

/// What is kept of a secret, and how contents are named: SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

/// Whether the hash is this secret's, in a time that tells nothing.
pub(crate) fn is_secret_of(secret: &str, hash: &str) -> bool {
    sha256(secret).as_bytes().ct_eq(hash.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
