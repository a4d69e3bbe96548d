//! What it means that a client has ended its side (FIN) while its request is carried: it is gone, or it only has nothing more to say.
//! TCP cannot tell the two apart. Not here: noticing that the side has ended, and looking whether the client is there; drivers do.
//!
//! ```text
//!                     rule: cancel ─────────────────────────────────────────► Cancel
//!                     rule: serve ──────────────────────────────────────────► Serve
//!   rule: auto ── safe method, no event stream asked for ── Awaited, Begun ─► ServeFor(one second)
//!          │                                             └─ EventStream ────► Cancel
//!          └───── any other request ────────────────────────────────────────► Cancel
//! ```
//!
//! What costs a model something (a POST, a stream of events) is cancelled at once, whenever its client may be gone. A plain GET
//! costs little, and tools that shut their side down after it (`nc -N`, health checks in shells) want its answer.

use std::time::Duration;

use proto::config::HalfClose;

use crate::request::Method;

/// How long the origin of a plain request may be silent when the client is half-closed, before its answer and in the middle of it:
/// what answers health checks and shells is quicker, and the request of a client that is really gone must not hold its origin for
/// longer. While bytes flow a client that is gone is noticed by its resets.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);

/// What follows when the client of a request ends its side; decided with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhenInputEnds {
    /// It is gone.
    Cancel,
    /// It is served, as long as what it gets is no event stream, and the origin is not silent for long.
    ServePlain,
    /// It is served.
    Serve,
}

/// How far the answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Its final head is not there yet.
    Awaited,
    /// It has begun, and is no event stream.
    Begun,
    /// It has begun, and is a stream of server-sent events.
    EventStream,
}

/// What to do for a client whose side has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Cancel its request at the origin.
    Cancel,
    /// Go on.
    Serve,
    /// Go on, but cancel after so much silence of the origin.
    ServeFor(Duration),
}

impl WhenInputEnds {
    /// For a request with this method on a listener with this rule. `wants_events`: it asks for an event stream.
    pub fn of_request(rule: HalfClose, method: Method, wants_events: bool) -> Self {
        match rule {
            HalfClose::Cancel => Self::Cancel,
            HalfClose::Serve => Self::Serve,
            HalfClose::Auto if method.is_safe() && !wants_events => Self::ServePlain,
            HalfClose::Auto => Self::Cancel,
        }
    }

    /// What to do, with the answer as far as it is.
    pub fn with(self, answer: Answer) -> Verdict {
        match (self, answer) {
            (Self::Cancel, _) | (Self::ServePlain, Answer::EventStream) => Verdict::Cancel,
            (Self::ServePlain, Answer::Awaited | Answer::Begun) => Verdict::ServeFor(SILENCE_MAX),
            (Self::Serve, _) => Verdict::Serve,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHODS: [Method; 10] = [
        Method::Get,
        Method::Head,
        Method::Options,
        Method::Trace,
        Method::Post,
        Method::Put,
        Method::Delete,
        Method::Patch,
        Method::Connect,
        Method::Other,
    ];
    const ANSWERS: [Answer; 3] = [Answer::Awaited, Answer::Begun, Answer::EventStream];

    fn verdicts(rule: HalfClose, method: Method, wants_events: bool) -> [Verdict; 3] {
        ANSWERS.map(|answer| WhenInputEnds::of_request(rule, method, wants_events).with(answer))
    }

    #[test]
    fn the_rule_alone_decides_where_it_is_not_auto() {
        for method in METHODS {
            for wants_events in [false, true] {
                assert_eq!(
                    verdicts(HalfClose::Cancel, method, wants_events),
                    [Verdict::Cancel; 3],
                    "{method:?}"
                );
                assert_eq!(
                    verdicts(HalfClose::Serve, method, wants_events),
                    [Verdict::Serve; 3],
                    "{method:?}"
                );
            }
        }
    }

    #[test]
    fn auto_serves_what_only_reads_and_cancels_what_generates() {
        let plain = [Verdict::ServeFor(SILENCE_MAX), Verdict::ServeFor(SILENCE_MAX), Verdict::Cancel];
        for (place, method) in METHODS.into_iter().enumerate() {
            let expected = if place < 4 { plain } else { [Verdict::Cancel; 3] };
            assert_eq!(verdicts(HalfClose::Auto, method, false), expected, "{method:?}");
            assert_eq!(verdicts(HalfClose::Auto, method, true), [Verdict::Cancel; 3], "{method:?}, events");
        }
    }
}
