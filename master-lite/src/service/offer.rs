//! A published config as it is offered to nodes: shared by all sessions, not copied.

use bytes::Bytes;
use proto::v1::{ConfigOffer, ConfigRef};

/// What a node should have.
#[derive(Debug)]
pub(crate) struct Offer {
    /// Of the publish.
    pub(crate) revision: u64,
    /// The config's name.
    pub(crate) version: String,
    /// SHA-256 of the text.
    pub(crate) sha256: [u8; 32],
    /// TOML.
    pub(crate) text: Bytes,
}

impl Offer {
    /// As sent.
    pub(crate) fn message(&self) -> ConfigOffer {
        let config = ConfigRef {
            revision: self.revision,
            version: self.version.clone(),
            sha256: Bytes::copy_from_slice(&self.sha256),
        };
        ConfigOffer { config: Some(config), text: self.text.clone() }
    }

    /// Something to offer.
    #[cfg(test)]
    pub(crate) fn sample(revision: u64) -> Self {
        Self { revision, version: format!("v{revision}"), sha256: [0; 32], text: Bytes::new() }
    }
}
