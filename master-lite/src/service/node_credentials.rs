//! The secrets of one node, by their verifiers: the one that is used, the one that is to take its place, and those that are
//! void. Pure.
//!
//! ```text
//!               agent has made it          agent has kept it, or opens a session with it
//!   used ─────▶ used, next (both good) ─────▶ used; the one before is void, and known for a copy when it comes again
//! ```

use std::time::Duration;

use proto::fleet::Verifier;
use serde::{Deserialize, Serialize};

/// What is kept of a secret: SHA-256 of its text.
pub(crate) type Sha256 = [u8; 32];

/// Void secrets that are remembered of a node: at one a week more than half a year of them. An older one is as unknown as
/// any other.
pub(crate) const VOID_MAX: usize = 32;

/// After an agent was asked for another secret, before it is asked again in the same session: its disk may be full.
pub(crate) const ASK_AGAIN_AFTER_MS: u64 = 3_600_000;

/// How long secrets are used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    /// After that the agent is asked for another.
    pub(crate) replace_after: Duration,
    /// After that it is void, of agents that can make another.
    pub(crate) expire_after: Duration,
}

/// A node's secrets, as stored. A store of a version before has the first field only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// Of the secret that is used.
    pub(crate) verifier: Sha256,
    /// Of the one that the agent has made to take its place.
    #[serde(default)]
    pub(crate) next: Option<Sha256>,
    /// Of those before, the oldest first.
    #[serde(default)]
    pub(crate) void: Vec<Sha256>,
    /// Since when the secret is used, in milliseconds since 1970.
    #[serde(default)]
    pub(crate) since_ms: u64,
    /// The agent has said once that it can make another.
    #[serde(default)]
    pub(crate) can_change: bool,
    /// Somebody has a copy: another is wanted at once.
    #[serde(default)]
    pub(crate) is_copied: bool,
}

/// What a secret is to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Used.
    Used,
    /// To be used.
    Next,
    /// It was used before.
    Void,
    /// None of its.
    Unknown,
}

impl Credentials {
    /// Of a node that enrols with this one; `void` are those of its earlier lives.
    pub(crate) fn new(verifier: Sha256, void: Vec<Sha256>, at_ms: u64) -> Self {
        Self { verifier, void, since_ms: at_ms, ..Self::default() }
    }

    /// What this one is.
    pub(crate) fn standing(&self, verifier: &Sha256) -> Standing {
        if is_same(&self.verifier, verifier) {
            Standing::Used
        } else if self.next.as_ref().is_some_and(|next| is_same(next, verifier)) {
            Standing::Next
        } else if self.void.iter().any(|void| is_same(void, verifier)) {
            Standing::Void
        } else {
            Standing::Unknown
        }
    }

    /// The agent has made this one.
    pub(crate) fn offer(&mut self, verifier: Sha256) {
        self.next = Some(verifier);
    }

    /// The agent uses the next one; whether there was one.
    pub(crate) fn promote(&mut self, at_ms: u64) -> bool {
        let Some(next) = self.next.take() else { return false };
        self.replace(next, at_ms);
        true
    }

    /// Another one is used from now on.
    pub(crate) fn replace(&mut self, verifier: Sha256, at_ms: u64) {
        let before = std::mem::replace(&mut self.verifier, verifier);
        self.void.push(before);
        self.void.drain(..self.void.len().saturating_sub(VOID_MAX));
        (self.next, self.since_ms, self.is_copied) = (None, at_ms, false);
    }

    /// All of them, void from now on.
    pub(crate) fn retire(mut self) -> Vec<Sha256> {
        self.void.extend([self.verifier].into_iter().chain(self.next));
        self.void.drain(..self.void.len().saturating_sub(VOID_MAX));
        self.void
    }

    /// When another is due, in milliseconds since 1970; none: the agent cannot make one. A fleet that was enrolled in one
    /// hour does not do it in one hour: the moment is up to an eighth later, by the secret.
    pub(crate) fn due_at_ms(&self, lifetimes: Lifetimes) -> Option<u64> {
        let after_ms = millis(lifetimes.replace_after);
        let spread_ms = after_ms / 8 * u64::from(self.verifier[0]) / 256;
        let due_ms = if self.is_copied { 0 } else { self.since_ms.saturating_add(after_ms + spread_ms) };
        self.can_change.then_some(due_ms)
    }

    /// Whether the secret has been used for too long, by an agent that could have made another.
    pub(crate) fn has_expired(&self, lifetimes: Lifetimes, at_ms: u64) -> bool {
        self.can_change && at_ms >= self.since_ms.saturating_add(millis(lifetimes.expire_after))
    }
}

/// In a time that tells nothing.
fn is_same(one: &Sha256, other: &Sha256) -> bool {
    Verifier::from_bytes(one) == Verifier::from_bytes(other)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIMES: Lifetimes =
        Lifetimes { replace_after: Duration::from_secs(8), expire_after: Duration::from_secs(20) };

    #[test]
    fn both_are_good_until_the_agent_uses_the_new_one() {
        let mut credentials = Credentials::new([1; 32], Vec::new(), 0);
        assert!(!credentials.promote(5));
        credentials.offer([2; 32]);
        // It was made anew after a crash: nobody uses the one that was made before.
        credentials.offer([3; 32]);
        let standing =
            |credentials: &Credentials| [1, 2, 3].map(|secret| credentials.standing(&[secret; 32]));
        assert_eq!(standing(&credentials), [Standing::Used, Standing::Unknown, Standing::Next]);
        assert!(credentials.promote(5));
        assert_eq!(standing(&credentials), [Standing::Void, Standing::Unknown, Standing::Used]);
        assert_eq!(credentials.since_ms, 5);
        assert_eq!(credentials.retire(), [[1; 32], [3; 32]]);
    }

    #[test]
    fn another_is_due_after_a_while_and_at_once_where_there_is_a_copy() {
        let old = Credentials::new([0; 32], Vec::new(), 1_000);
        assert_eq!((old.due_at_ms(LIFETIMES), old.has_expired(LIFETIMES, u64::MAX)), (None, false));
        let can = Credentials { can_change: true, ..old };
        assert_eq!(can.due_at_ms(LIFETIMES), Some(9_000));
        assert!(!can.has_expired(LIFETIMES, 20_999) && can.has_expired(LIFETIMES, 21_000));
        let latest = Credentials { verifier: [255; 32], ..can.clone() };
        assert!((9_900..10_000).contains(&latest.due_at_ms(LIFETIMES).unwrap()));
        assert_eq!(Credentials { is_copied: true, ..can }.due_at_ms(LIFETIMES), Some(0));
    }

    #[test]
    fn no_more_void_ones_are_remembered_than_the_limit_says() {
        let mut credentials = Credentials::new([0; 32], Vec::new(), 0);
        for secret in 1..=VOID_MAX + 1 {
            credentials.replace([u8::try_from(secret).unwrap(); 32], 0);
        }
        assert_eq!(credentials.void.len(), VOID_MAX);
        assert_eq!(credentials.standing(&[0; 32]), Standing::Unknown);
        assert_eq!(credentials.standing(&[1; 32]), Standing::Void);
        assert_eq!(credentials.retire().len(), VOID_MAX);
    }
}
