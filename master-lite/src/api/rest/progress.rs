//! How far a node is with its config, as several resources show it.

use serde::Serialize;
use utoipa::ToSchema;

use crate::service::convergence::Progress;
use crate::service::node_state::NodeState;
use crate::service::publishes::NodeProgress;

/// How far a node is with the config that it should have.
#[derive(Serialize, ToSchema)]
pub(super) struct ConfigProgress {
    node: String,
    node_state: NodeState,
    /// The version that it should have; null: nothing is published for it.
    version: Option<String>,
    /// The publish that says so.
    revision: Option<u64>,
    state: Progress,
    /// Why it is no further; empty: it is.
    reason: String,
    /// The version that it says it serves; empty: none of this master's.
    applied_version: String,
    /// The publish that brought it; 0: none.
    applied_revision: u64,
    /// Of the text that it serves.
    applied_sha256: String,
    /// The data plane's own count of it.
    generation: u64,
}

/// As shown.
pub(super) fn render_progress(progress: NodeProgress) -> ConfigProgress {
    let (revision, version) = match progress.wanted {
        Some((revision, record)) => (Some(revision), Some(record.version)),
        None => (None, None),
    };
    ConfigProgress {
        node: progress.id,
        node_state: progress.state,
        version,
        revision,
        state: progress.progress,
        reason: progress.reason,
        applied_version: progress.said.applied_version,
        applied_revision: progress.said.applied,
        applied_sha256: progress.said.applied_sha256,
        generation: progress.said.generation,
    }
}
