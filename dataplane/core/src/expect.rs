//! `Expect: 100-continue` (RFC 9110, section 10.1.1): whose `100 Continue` a client gets that waits for one before it sends its body.
//! The origin's, or where that says nothing for a while, ours; never two. Not here: the waiting.
//!
//! ```text
//!   NotAsked        Waiting ── the origin's 100, passed on ──► Told ── another 100: swallowed ─┐
//!                      │                                        ▲ ▲                            │
//!                      └── silence of the origin: ours ─────────┘ └────────────────────────────┘
//! ```

use std::time::Duration;

/// How long an origin may be silent before the client is told to go on in its place. curl gives up waiting after as long; clients that
/// do not give up (aiohttp, Java's `HttpClient`) would wait for ever for an origin that reads the body first.
pub const ORIGIN_SILENCE_MAX: Duration = Duration::from_secs(1);

/// Whether a client waits for permission to send its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Continue {
    /// It does not.
    NotAsked,
    /// It does, or did: nobody has told it yet.
    Waiting,
    /// It was told to go on.
    Told,
}

impl Continue {
    /// For a request that asks for it, or does not.
    pub fn of_request(expects: bool) -> Self {
        if expects { Self::Waiting } else { Self::NotAsked }
    }

    /// Whether the client is told by us if the origin stays silent. `body_bytes` have come from it: with the first of them it has
    /// stopped waiting, and a 100 may be left out.
    pub fn is_due(self, body_bytes: u64) -> bool {
        self == Self::Waiting && body_bytes == 0
    }

    /// Whether an interim response of the origin with this status is passed on. A proxy forwards them all (RFC 9110, section 15.2), but
    /// for a 100 in whose place the client has had one.
    pub fn passes(self, status: u16) -> bool {
        status != 100 || self != Self::Told
    }

    /// What it is once a `100 Continue` has gone to the client.
    pub fn told(self) -> Self {
        match self {
            Self::NotAsked => Self::NotAsked,
            Self::Waiting | Self::Told => Self::Told,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_client_is_told_once_and_by_us_only_while_it_waits() {
        let asked = Continue::of_request(true);
        assert!(asked.is_due(0) && !asked.is_due(1));
        assert!(asked.passes(100), "the origin's own comes first");
        let told = asked.told();
        assert!(!told.is_due(0) && !told.passes(100) && !told.told().passes(100));
    }

    #[test]
    fn what_nobody_asked_for_passes_as_it_comes() {
        let not_asked = Continue::of_request(false);
        assert!(!not_asked.is_due(0));
        assert!(not_asked.passes(100) && not_asked.told().passes(100));
        for status in [102, 103, 199] {
            assert!(Continue::of_request(true).told().passes(status), "{status}");
        }
    }
}
