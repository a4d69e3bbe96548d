//! How a node is, from what was heard of it: a pure function of its last heartbeat and the time.
//!
//! ```text
//!            heartbeats come, no problems
//!   offline ------------------------------> online
//!      ^                                   |     ^
//!      | three missed, or                  v     | all well again
//!      | the agent said goodbye           degraded
//!      +------------------------------------+   one missed, the stream broke, or the agent tells of problems
//! ```

use std::time::Duration;

use proto::fleet::limits::OFFLINE_AFTER_HEARTBEATS;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::sessions::Live;

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeState {
    /// Heard of lately, and all is well.
    Online,
    /// Heard of lately, but a heartbeat is late, the stream broke, or the agent tells of problems.
    Degraded,
    /// Not heard of for three heartbeats, or it said goodbye.
    Offline,
}

/// The state of a node that was last heard of at `seen_at_ms`.
pub(super) fn state_of(live: Option<&Live>, seen_at_ms: u64, now_ms: u64, heartbeat: Duration) -> NodeState {
    let heartbeat_ms = u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX);
    let silent_ms = now_ms.saturating_sub(seen_at_ms);
    let has_left = live.is_some_and(|live| live.has_left);
    if has_left || silent_ms >= heartbeat_ms.saturating_mul(u64::from(OFFLINE_AFTER_HEARTBEATS)) {
        return NodeState::Offline;
    }
    let is_well = live.is_some_and(|live| {
        let dataplane = live.dataplane.as_ref();
        live.is_connected
            && live.problems.is_empty()
            && dataplane
                .is_none_or(|dataplane| dataplane.answering && (dataplane.ready || dataplane.draining))
    });
    // Half an interval of grace: the network is allowed some jitter.
    if is_well && silent_ms < heartbeat_ms.saturating_add(heartbeat_ms / 2) {
        NodeState::Online
    } else {
        NodeState::Degraded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(10);

    fn connected() -> Live {
        Live { is_connected: true, ..Live::default() }
    }

    #[test]
    fn a_node_goes_offline_with_its_third_missed_heartbeat() {
        let at = |silent_ms: u64| state_of(Some(&connected()), 1_000_000, 1_000_000 + silent_ms, HEARTBEAT);
        assert_eq!(at(0), NodeState::Online);
        assert_eq!(at(14_999), NodeState::Online);
        assert_eq!(at(15_000), NodeState::Degraded);
        assert_eq!(at(29_999), NodeState::Degraded);
        assert_eq!(at(30_000), NodeState::Offline);
    }

    #[test]
    fn a_node_with_problems_is_degraded() {
        let problems = Live { problems: vec!["x".into()], ..connected() };
        assert_eq!(state_of(Some(&problems), 0, 0, HEARTBEAT), NodeState::Degraded);
        let silent = proto::v1::DataplaneInfo::default();
        let silent = Live { dataplane: Some(silent), ..connected() };
        assert_eq!(state_of(Some(&silent), 0, 0, HEARTBEAT), NodeState::Degraded);
        let broken = Live { is_connected: false, ..connected() };
        assert_eq!(state_of(Some(&broken), 0, 0, HEARTBEAT), NodeState::Degraded);
        assert_eq!(state_of(None, 0, 0, HEARTBEAT), NodeState::Degraded);
    }

    #[test]
    fn a_drained_node_is_no_broken_one() {
        let dataplane = proto::v1::DataplaneInfo { answering: true, draining: true, ..Default::default() };
        let drained = Live { dataplane: Some(dataplane), ..connected() };
        assert_eq!(state_of(Some(&drained), 0, 0, HEARTBEAT), NodeState::Online);
    }

    #[test]
    fn who_says_goodbye_is_offline_at_once() {
        let gone = Live { has_left: true, ..connected() };
        assert_eq!(state_of(Some(&gone), 0, 0, HEARTBEAT), NodeState::Offline);
    }
}
