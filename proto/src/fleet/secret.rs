//! Join tokens and node credentials: what they look like, and what of them is kept.
//!
//! ```text
//! mrj1.TOKEN_ID.SECRET     a join token: made by the master, shown once, exchanged for …
//! mrc1.NODE_ID.SECRET      … a node credential: made by the agent, sent with every session
//! ```
//! The secret is 32 random bytes in base64url without padding. So much randomness cannot be guessed, and a plain SHA-256
//! of the text ([`Verifier`]) is all that the other side has to keep: no salt, no slow hash. The id in front lets it be
//! found with one look-up, and is no secret. Its dots do no harm: the secret has none, and stands behind the last one.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::id::{IdError, NodeId, TokenId};

/// Random bytes of a secret: 256 bits.
pub const SECRET_BYTES: usize = 32;

/// What stands in front of a credential in the metadata field `authorization`.
pub const BEARER: &str = "Bearer ";

/// What an agent shows to enrol. It is not written into logs: `Debug` shows its id only.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: TokenId,
    secret: String,
}

/// What an agent shows to open a session. It is not written into logs: `Debug` shows its node only.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeCredential {
    node: NodeId,
    secret: String,
}

/// SHA-256 of a token's or credential's whole text: what may be stored, and compared.
#[derive(Clone, Copy, Debug)]
pub struct Verifier([u8; 32]);

/// Why a text is no token or no credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretError {
    /// Not of the form `PREFIX.ID.SECRET`.
    Form,
    /// The id is none.
    Id(IdError),
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str("not of the form PREFIX.ID.SECRET"),
            Self::Id(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SecretError {}

const JOIN_PREFIX: &str = "mrj1.";
const CREDENTIAL_PREFIX: &str = "mrc1.";

impl JoinToken {
    /// A token with this id; `secret` comes from a source of randomness that cannot be foreseen.
    pub fn new(id: TokenId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { id, secret: URL_SAFE_NO_PAD.encode(secret) }
    }

    /// What it is found by; no secret.
    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// The whole text, which is a secret.
    pub fn reveal(&self) -> String {
        format!("{JOIN_PREFIX}{}.{}", self.id, self.secret)
    }

    /// What the master keeps of it.
    pub fn verifier(&self) -> Verifier {
        Verifier::of(&self.reveal())
    }
}

impl NodeCredential {
    /// A credential of this node; `secret` comes from a source of randomness that cannot be foreseen.
    pub fn new(node: NodeId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { node, secret: URL_SAFE_NO_PAD.encode(secret) }
    }

    /// Whose it is.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The whole text, which is a secret.
    pub fn reveal(&self) -> String {
        format!("{CREDENTIAL_PREFIX}{}.{}", self.node, self.secret)
    }

    /// What the master keeps of it.
    pub fn verifier(&self) -> Verifier {
        Verifier::of(&self.reveal())
    }
}

impl FromStr for JoinToken {
    type Err = SecretError;
    fn from_str(text: &str) -> Result<Self, SecretError> {
        let (id, secret) = split(text, JOIN_PREFIX)?;
        Ok(Self { id: id.parse().map_err(SecretError::Id)?, secret })
    }
}

impl FromStr for NodeCredential {
    type Err = SecretError;
    fn from_str(text: &str) -> Result<Self, SecretError> {
        let (id, secret) = split(text, CREDENTIAL_PREFIX)?;
        Ok(Self { node: id.parse().map_err(SecretError::Id)?, secret })
    }
}

/// The id and the secret, which is looked at so closely that one text only stands for it.
fn split<'a>(text: &'a str, prefix: &str) -> Result<(&'a str, String), SecretError> {
    let (id, secret) =
        text.strip_prefix(prefix).and_then(|rest| rest.rsplit_once('.')).ok_or(SecretError::Form)?;
    let bytes = URL_SAFE_NO_PAD.decode(secret).map_err(|_| SecretError::Form)?;
    if bytes.len() != SECRET_BYTES {
        return Err(SecretError::Form);
    }
    Ok((id, secret.to_owned()))
}

impl Verifier {
    fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// As stored and sent; none where it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// To be stored or sent.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In constant time, although what is compared is a hash that an attacker cannot steer.
impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0, |sum, (one, two)| sum | (one ^ two));
        std::hint::black_box(differing) == 0
    }
}

impl Eq for Verifier {}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{JOIN_PREFIX}{}.…", self.id)
    }
}

impl fmt::Debug for NodeCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CREDENTIAL_PREFIX}{}.…", self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_as_it_was_written() {
        let credential = NodeCredential::new("edge.hk-1".parse().unwrap(), [7; SECRET_BYTES]);
        let read: NodeCredential = credential.reveal().parse().unwrap();
        assert_eq!((read.node().as_str(), &read), ("edge.hk-1", &credential));
        assert_eq!(read.verifier(), credential.verifier());
        let token = JoinToken::new("t1".parse().unwrap(), [9; SECRET_BYTES]);
        assert_eq!(token.reveal().parse(), Ok(token));
    }

    #[test]
    fn refuses_every_other_text() {
        let good = NodeCredential::new("n".parse().unwrap(), [7; SECRET_BYTES]).reveal();
        let short = &good[..good.len() - 1];
        for text in
            ["", "mrc1", "mrc1.n", "mrc1.n.", short, &format!("{good}A"), &good.replace("mrc1", "mrj1")]
        {
            assert_eq!(text.parse::<NodeCredential>(), Err(SecretError::Form), "{text}");
        }
        let tricky = good.replace("mrc1.n", "mrc1.../n");
        assert!(matches!(tricky.parse::<NodeCredential>(), Err(SecretError::Id(_))));
        assert!(good.parse::<JoinToken>().is_err(), "a credential is no token");
    }

    #[test]
    fn one_text_only_stands_for_a_secret() {
        // The last character of 43 carries four bits that mean nothing: other values of them are refused.
        let good = NodeCredential::new("n".parse().unwrap(), [0; SECRET_BYTES]).reveal();
        let twin = format!("{}B", &good[..good.len() - 1]);
        assert!(good.ends_with('A') && twin.parse::<NodeCredential>().is_err());
    }

    #[test]
    fn keeps_the_secret_out_of_logs() {
        let credential = NodeCredential::new("n".parse().unwrap(), [7; SECRET_BYTES]);
        assert_eq!(format!("{credential:?}"), "mrc1.n.…");
    }

    #[test]
    fn tells_verifiers_apart_in_every_byte() {
        let zeros = Verifier([0; 32]);
        for at in 0..32 {
            let mut other = [0; 32];
            other[at] = 1;
            assert_ne!(zeros, Verifier(other));
        }
        assert_eq!(Some(zeros), Verifier::from_bytes(&[0; 32]));
        assert_eq!(None, Verifier::from_bytes(&[0; 31]));
    }
}
