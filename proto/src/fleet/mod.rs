//! The pure types that agents and masters share beside their messages: ids, credentials, checksums and limits. Parsed
//! once, at the door, into values that cannot be wrong. Nothing here draws random numbers or stores anything.

#[cfg(feature = "grpc")]
mod digest;
mod id;
pub mod limits;
#[cfg(feature = "grpc")]
mod pieces;
#[cfg(feature = "grpc")]
mod secret;

#[cfg(feature = "grpc")]
pub use digest::{ConfigDigest, DIGEST_BYTES};
pub use id::{CommandId, IdError, NodeId, TokenId};
#[cfg(feature = "grpc")]
pub use pieces::{Pieces, PiecesError};
#[cfg(feature = "grpc")]
pub use secret::{BEARER, JoinToken, NodeCredential, SECRET_BYTES, SecretError, Verifier};

/// Highest revision of the meaning of `v1/agent.proto` that this code knows.
pub const PROTOCOL_REVISION: u32 = 1;

/// Names for what was added to the protocol after its first revision; a peer that does not list one is not sent it.
pub mod capability {
    /// The data plane's admin API has `POST /undrain`.
    pub const UNDRAIN: &str = "undrain";
    /// systemd manages the data plane's service on this host: `restart` and `logs` can be done.
    pub const SYSTEMD: &str = "systemd";
    /// An agent makes a new credential when its master wants one: see `CredentialWanted`.
    pub const CREDENTIAL_CHANGE: &str = "credential-change";
    /// A master takes reports in pieces: see `MetricsPiece`.
    pub const METRICS_PIECES: &str = "metrics-pieces";
}
