//! How far each node is with the config that it should have: what nodes have said of it, and what that means for a
//! publish. The comparison is pure.

use proto::v1::{ConfigRefusal, ConfigState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::Records;

/// By node: what it has said last.
pub(crate) const NODE_CONFIGS: Records<String, NodeConfigRecord> = Records::new("node_configs");

/// What a node has said of its configs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeConfigRecord {
    /// The revision that it serves; 0: none of this master's.
    pub(crate) applied: u64,
    /// The version of that revision.
    pub(crate) applied_version: String,
    /// SHA-256 of its text, in hexadecimal digits.
    pub(crate) applied_sha256: String,
    /// The data plane's own count of what it serves.
    pub(crate) generation: u64,
    /// The revision that it refused last, and none newer was applied since; 0: none.
    pub(crate) refused: u64,
    /// Why.
    pub(crate) refused_reason: String,
    /// What it is applying or waits to apply; 0: nothing.
    pub(crate) pending: u64,
    /// Why it waits.
    pub(crate) pending_reason: String,
    /// The data plane serves something else, and the agent is putting that right.
    pub(crate) drifted: bool,
    /// When it was said, in milliseconds since 1970.
    pub(crate) at_ms: u64,
}

/// How far a node is with one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Progress {
    /// It has not said that it serves it.
    Pending,
    /// It serves it.
    Applied,
    /// It has refused it, and serves the one before.
    Refused,
}

impl NodeConfigRecord {
    /// What a node says of itself, in a register, a heartbeat, or pieced together from an ack or a nack.
    pub(crate) fn of(state: &ConfigState, at_ms: u64) -> Self {
        let applied = state.applied.clone().unwrap_or_default();
        let refused = state.refused.clone().unwrap_or_default();
        let pending = state.pending.as_ref().map_or(0, |pending| pending.revision);
        Self {
            applied: applied.revision,
            applied_version: applied.version,
            applied_sha256: applied.sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
            generation: state.generation,
            refused: refused.config.as_ref().map_or(0, |config| config.revision),
            refused_reason: refused_reason(&refused),
            pending,
            pending_reason: clipped(&state.pending_reason),
            drifted: state.drifted,
            at_ms,
        }
    }

    /// Whether it says the same, whenever it was said.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        Self { at_ms: 0, ..self.clone() } == Self { at_ms: 0, ..other.clone() }
    }

    /// How far the node is with a publish, and why it is no further.
    pub(crate) fn progress(&self, revision: u64, sha256: &str) -> (Progress, String) {
        if self.applied == revision && self.applied_sha256 == sha256 && !self.drifted {
            return (Progress::Applied, String::new());
        }
        if self.refused == revision {
            return (Progress::Refused, self.refused_reason.clone());
        }
        let why = match (self.pending == revision, self.pending_reason.as_str()) {
            (true, "") => "the node is applying it".to_owned(),
            (true, reason) => reason.to_owned(),
            (false, _) if self.drifted => {
                "the data plane serves something else; the agent puts that right".to_owned()
            }
            (false, _) => "the node has not said anything of it".to_owned(),
        };
        (Progress::Pending, why)
    }
}

/// `invalid: the sentence (line 3: another)`, cut to a length.
pub(super) fn refused_reason(nack: &proto::v1::ConfigNack) -> String {
    if nack.config.is_none() {
        return String::new();
    }
    let kind = match nack.reason() {
        ConfigRefusal::Unspecified => "refused",
        ConfigRefusal::Checksum => "checksum",
        ConfigRefusal::Malformed => "malformed",
        ConfigRefusal::Invalid => "invalid",
        ConfigRefusal::Unusable => "unusable",
        ConfigRefusal::NotServing => "not serving",
    };
    let mut reason = format!("{kind}: {}", nack.message);
    if let Some(problem) = nack.problems.first() {
        let place = format!("{}:{}: {}", problem.line, problem.column, problem.message);
        // Agents' sentence is often that of the first problem already.
        if !nack.message.contains(&place) {
            reason.push_str(&format!(" ({place})"));
        }
    }
    clipped(&reason)
}

fn clipped(text: &str) -> String {
    let text = proto::fleet::limits::clipped(text, proto::fleet::limits::MESSAGE_TEXT_BYTES_MAX);
    // It goes into logs and tables.
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use proto::v1::{ConfigNack, ConfigRef};

    use super::*;

    fn config(revision: u64) -> Option<ConfigRef> {
        Some(ConfigRef { revision, version: format!("v{revision}"), sha256: vec![0xab; 32].into() })
    }

    fn sha256() -> String {
        "ab".repeat(32)
    }

    #[test]
    fn applied_is_the_revision_with_the_very_text() {
        let record = NodeConfigRecord::of(&ConfigState { applied: config(3), ..Default::default() }, 1);
        assert_eq!(record.progress(3, &sha256()).0, Progress::Applied);
        assert_eq!(record.progress(3, "other").0, Progress::Pending);
        assert_eq!(record.progress(4, &sha256()).0, Progress::Pending);
        let drifted = NodeConfigRecord { drifted: true, ..record };
        assert_eq!(drifted.progress(3, &sha256()).0, Progress::Pending);
    }

    #[test]
    fn a_refusal_counts_for_its_own_revision_and_has_a_reason() {
        let nack = ConfigNack {
            config: config(4),
            reason: ConfigRefusal::Unusable.into(),
            message: "the port\nis taken".into(),
            problems: Vec::new(),
        };
        let state = ConfigState { applied: config(3), refused: Some(nack), ..Default::default() };
        let record = NodeConfigRecord::of(&state, 1);
        let refused = (Progress::Refused, "unusable: the port is taken".to_owned());
        assert_eq!(record.progress(4, &sha256()), refused);
        assert_eq!(record.progress(3, &sha256()).0, Progress::Applied);
        assert_eq!(record.progress(5, &sha256()).0, Progress::Pending);
    }

    #[test]
    fn a_place_is_told_once() {
        let told = |message: &str| {
            let problem = proto::v1::ConfigProblem {
                line: 3,
                column: 8,
                message: "no role".into(),
                ..Default::default()
            };
            let reason = ConfigRefusal::Invalid.into();
            refused_reason(&ConfigNack {
                config: config(4),
                reason,
                message: message.into(),
                problems: vec![problem],
            })
        };
        assert_eq!(told("3:8: no role"), "invalid: 3:8: no role");
        assert_eq!(told("it is wrong"), "invalid: it is wrong (3:8: no role)");
    }

    #[test]
    fn an_endless_reason_is_cut() {
        let state =
            ConfigState { pending: config(1), pending_reason: "x".repeat(100_000), ..Default::default() };
        let record = NodeConfigRecord::of(&state, 1);
        assert_eq!(record.pending_reason.len(), proto::fleet::limits::MESSAGE_TEXT_BYTES_MAX);
        assert_eq!(record.progress(1, "").1, record.pending_reason);
    }
}
