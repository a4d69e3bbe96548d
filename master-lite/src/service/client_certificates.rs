//! Client certificates of agents: whom one speaks for, and which are not taken although an authority has signed them.
//!
//! A certificate names its nodes, as its common name or as alternative DNS names. It stands for a join token when a node
//! enrols, and for the node's credential when it connects. Deleting a node makes the certificates void that were issued
//! before: otherwise it would be back within seconds.

use serde::{Deserialize, Serialize};

use super::refusal::{Kind, Refusal};
use crate::certificate::Certificate;
use crate::config::ClientCertificates;
use crate::store::{Records, Source, Writer};

/// Nodes that were deleted while they had a certificate, by id.
pub(crate) const REVOKED: Records<String, Revoked> = Records::new("revoked_certificates");

/// What a peer has shown in its handshake, and has the key of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// What stands in it.
    pub(crate) certificate: Certificate,
    /// Why it is not to be believed; none: it is.
    pub(crate) flaw: Option<String>,
}

/// What is kept of a node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Until when it is good, in milliseconds since 1970.
    pub(crate) not_after_ms: u64,
}

/// Certificates of a node that are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revoked {
    /// Those that were issued before that, in milliseconds since 1970.
    pub(crate) before_ms: u64,
    /// When the last of them has ended by itself, likewise.
    pub(crate) until_ms: u64,
}

/// Whether agents have to show a certificate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate {
    is_required: bool,
}

impl Gate {
    /// By the config; none: no certificate is asked for.
    pub(super) fn new(wanted: Option<ClientCertificates>) -> Self {
        Self { is_required: wanted == Some(ClientCertificates::Required) }
    }

    /// The certificate that was shown, if it is to be believed.
    ///
    /// # Errors
    /// It is not, or there is none where there has to be one.
    pub(super) fn pass(
        self,
        shown: Option<&ClientCertificate>,
    ) -> Result<Option<&ClientCertificate>, Refusal> {
        match shown {
            Some(ClientCertificate { flaw: Some(flaw), .. }) => {
                Err(refused("bad_certificate", format!("the client certificate is refused: {flaw}")))
            }
            None if self.is_required => {
                Err(refused("missing", "this master lets nobody in without a client certificate"))
            }
            Some(_) | None => Ok(shown),
        }
    }
}

impl ClientCertificate {
    /// Holds that it is this node's.
    ///
    /// # Errors
    /// It is another's.
    pub(super) fn speak_for(&self, node: &str) -> Result<(), Refusal> {
        let names = &self.certificate.names;
        if names.iter().any(|name| name == node) {
            return Ok(());
        }
        let names = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
        Err(refused("other_name", format!("the client certificate is for {names}, not for {node}")))
    }

    /// Holds that the node was not deleted since it was issued.
    ///
    /// # Errors
    /// It was, or the store fails.
    pub(super) fn check_revoked(&self, source: &impl Source, node: &str) -> Result<(), Refusal> {
        let revoked = source.find(REVOKED, &node.to_owned())?;
        if revoked.is_none_or(|revoked| self.certificate.not_before_ms > revoked.before_ms) {
            return Ok(());
        }
        let message = "the client certificate is from before the node was deleted: issue a new one";
        Err(refused("revoked", message))
    }

    /// What is kept of it.
    pub(crate) fn kept(&self) -> Kept {
        Kept { not_after_ms: self.certificate.not_after_ms }
    }
}

/// Makes void what a node has shown so far; what has ended by itself need not be remembered any more.
pub(super) fn revoke(writer: &Writer, node: &str, kept: Kept, at_ms: u64) -> Result<(), Refusal> {
    for (other, revoked) in writer.all(REVOKED)? {
        if revoked.until_ms < at_ms {
            writer.remove(REVOKED, &other)?;
        }
    }
    writer.put(REVOKED, &node.to_owned(), &Revoked { before_ms: at_ms, until_ms: kept.not_after_ms })?;
    Ok(())
}

fn refused(code: &str, message: impl Into<String>) -> Refusal {
    Refusal::of(Kind::Forbidden, "client_certificate", code, message)
}
