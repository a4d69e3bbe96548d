//! The audit log's records: who changed what, or tried to. An entry is written in the transaction of its change, so that
//! there is never one without the other; entries are never changed, only the oldest leave when there are too many.

use serde::{Deserialize, Serialize};

use super::{Records, Source, StoreError, Writer};

/// By number, which only grows.
pub(crate) const AUDIT: Records<u64, AuditRecord> = Records::new("audit");

/// Entries that are kept: at about 300 bytes each some 30 MB of file, and years of an operator's work.
pub(crate) const AUDIT_ENTRIES_MAX: u64 = 100_000;

/// One change, or one that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AuditRecord {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Who: the name of a user, an API key, a node, or `system`.
    pub(crate) actor: String,
    /// What kind of name that is: `user`, `api_key`, `node`, `host`, `system` or `anonymous`.
    pub(crate) actor_kind: String,
    /// From where, if it came over the network.
    pub(crate) address: Option<String>,
    /// What was done, such as `users.create`.
    pub(crate) action: String,
    /// To what.
    pub(crate) target: String,
    /// `done` or `refused`.
    pub(crate) outcome: String,
    /// More for the reader: what changed, or why it was refused.
    pub(crate) detail: String,
    /// Of the request, to find it in logs.
    pub(crate) request_id: String,
}

/// Writes an entry and lets the oldest go where there are too many.
pub(super) fn append(writer: &Writer, record: &AuditRecord, entries_max: u64) -> Result<(), StoreError> {
    let number = writer.last_key(AUDIT)?.unwrap_or(0) + 1;
    writer.put(AUDIT, &number, record)?;
    while writer.count(AUDIT)? > entries_max {
        writer.remove_first(AUDIT)?;
    }
    Ok(())
}
