//! The link to the master: enrolment, the session, its heartbeats, and when to try again.
//!
//! ```text
//!             no credential                      Welcome
//! Resting ───▶ Enrolling ───enrolled──▶ Opening ─────────▶ Live
//!    ▲  └──────credential──────────────────▲ │               │
//!    └──────────────refused, unreachable, silent, ended──────┘
//! ```
//! Where the master does not know the credential, and there is a join token, another one is enrolled. If that is refused,
//! the credential is tried again, in turns: the master may have been restored from a backup meanwhile.

use std::time::Duration;

use proto::fleet::limits::{self, HEARTBEAT_INTERVAL, OFFLINE_AFTER_HEARTBEATS, REGISTER_TIMEOUT};
use proto::v1;

use super::{Action, Time};
use crate::backoff::Backoff;

/// The first retry comes within this: an agent whose master was restarted is back well before it counts as offline.
const RETRY_BASE: Duration = Duration::from_secs(1);
/// Long enough that a dead master costs nothing, short enough that a fleet is back within a minute of its return.
const RETRY_CAP: Duration = Duration::from_secs(30);
/// A session that lived as long as this was a good one: the next retry is a quick one again.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// A master that asks for patience gets no more than this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What went wrong between the agent and its master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFailure {
    /// What follows from it.
    pub kind: LinkFailureKind,
    /// For the log.
    pub message: String,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFailureKind {
    /// It may work the next time.
    Transient,
    /// The master does not know the credential, or does not take the join token.
    Unauthenticated,
    /// The master knows the agent, and does not want it like this: somebody has to change something.
    Refused,
    /// The node is to enrol with another credential: this one was used before. The driver makes one.
    UsedCredential,
}

#[derive(Debug)]
enum Phase {
    Resting { until: Time },
    Enrolling,
    Opening { deadline: Time },
    Live(Live),
    Stopped,
}

#[derive(Debug)]
struct Live {
    since: Time,
    heartbeat_interval: Duration,
    metrics_interval: Duration,
    next_heartbeat: Time,
    next_metrics: Time,
    sequence: u64,
    /// The heartbeats that wait for an answer, as sequence and time; at most [`OFFLINE_AFTER_HEARTBEATS`] + 1.
    unanswered: Vec<(u64, Time)>,
    round_trip: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    phase: Phase,
    backoff: Backoff,
    /// Counts `Connect`s: what comes from an earlier one is not heard any more.
    session: u64,
    is_enrolled: bool,
    /// There is a credential that was good once.
    has_credential: bool,
    can_enroll: bool,
    /// The master did not take the token: it is not shown again before somebody changes it.
    is_token_refused: bool,
}

impl Link {
    /// Dials at once.
    pub(super) fn new(is_enrolled: bool, can_enroll: bool, seed: u64) -> Self {
        Self {
            phase: Phase::Resting { until: Time::ZERO },
            backoff: Backoff::new(RETRY_BASE, RETRY_CAP, seed),
            session: 0,
            is_enrolled,
            has_credential: is_enrolled,
            can_enroll,
            is_token_refused: false,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live(_))
    }

    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// Whether this message belongs to the session that is open.
    pub(super) fn is_current(&self, session: u64) -> bool {
        session == self.session && matches!(self.phase, Phase::Opening { .. } | Phase::Live(_))
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        match &self.phase {
            Phase::Resting { until } => Some(*until),
            Phase::Opening { deadline } => Some(*deadline),
            Phase::Live(live) => Some(live.next_heartbeat.min(live.next_metrics)),
            Phase::Enrolling | Phase::Stopped => None,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Time) -> Option<Action> {
        match &mut self.phase {
            Phase::Resting { until } if *until <= now => Some(self.dial(now)),
            Phase::Opening { deadline } if *deadline <= now => {
                Some(self.fail(now, "the master did not answer the registration in time"))
            }
            Phase::Live(live) if live.is_silent(now) => {
                Some(self.fail(now, "the master does not answer heartbeats"))
            }
            Phase::Live(live) if live.next_heartbeat <= now => {
                live.next_heartbeat = now + live.heartbeat_interval;
                Some(Action::Sample)
            }
            Phase::Live(live) if live.next_metrics <= now => {
                live.next_metrics = now + live.metrics_interval;
                Some(Action::Scrape)
            }
            Phase::Resting { .. }
            | Phase::Enrolling
            | Phase::Opening { .. }
            | Phase::Live(_)
            | Phase::Stopped => None,
        }
    }

    fn dial(&mut self, now: Time) -> Action {
        if !self.is_enrolled && self.can_enroll && !self.is_token_refused {
            self.phase = Phase::Enrolling;
            return Action::Enroll;
        }
        self.session += 1;
        self.phase = Phase::Opening { deadline: now + REGISTER_TIMEOUT };
        Action::Connect { session: self.session }
    }

    /// Closes the session, and rests.
    fn fail(&mut self, now: Time, message: &str) -> Action {
        let failure = LinkFailure { kind: LinkFailureKind::Transient, message: message.to_owned() };
        let session = self.session;
        self.handle_failure(now, &failure, None);
        Action::Close { session, why: failure.message }
    }

    pub(super) fn handle_enrolled(&mut self, now: Time, result: &Result<(), LinkFailure>) {
        if !matches!(self.phase, Phase::Enrolling) {
            return;
        }
        match result {
            Ok(()) => {
                self.is_enrolled = true;
                self.has_credential = true;
                self.phase = Phase::Resting { until: now };
            }
            Err(failure) => {
                // What else is refused, a certificate or an id that is taken, may be put right at the other end.
                self.is_token_refused |= failure.kind == LinkFailureKind::Unauthenticated;
                self.is_enrolled = self.has_credential;
                self.handle_failure(now, failure, None);
            }
        }
    }

    /// The session could not be opened, or has ended. `retry_after`: how long the master asked to be left alone.
    pub(super) fn handle_failure(&mut self, now: Time, failure: &LinkFailure, retry_after: Option<Duration>) {
        let was_good = matches!(&self.phase, Phase::Live(live) if now >= live.since + GOOD_AFTER);
        if was_good {
            self.backoff.reset();
        }
        let delay = match failure.kind {
            LinkFailureKind::Transient | LinkFailureKind::UsedCredential => self.backoff.next_delay(),
            LinkFailureKind::Unauthenticated
                if self.is_enrolled && self.can_enroll && !self.is_token_refused =>
            {
                self.is_enrolled = false;
                self.backoff.next_delay()
            }
            LinkFailureKind::Unauthenticated | LinkFailureKind::Refused => self.backoff.long_delay(),
        };
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        if !matches!(self.phase, Phase::Stopped) {
            // The jitter stays on top of what was asked for: everybody was asked the same.
            self.phase = Phase::Resting { until: now + asked + delay };
        }
    }

    pub(super) fn handle_welcome(&mut self, now: Time, intervals: Option<&v1::Intervals>) {
        if !matches!(self.phase, Phase::Opening { .. }) {
            return;
        }
        let mut live = Live {
            since: now,
            heartbeat_interval: HEARTBEAT_INTERVAL,
            metrics_interval: HEARTBEAT_INTERVAL,
            next_heartbeat: now,
            next_metrics: now,
            sequence: 0,
            unanswered: Vec::new(),
            round_trip: Duration::ZERO,
        };
        live.set_intervals(intervals);
        self.is_enrolled = true;
        self.has_credential = true;
        self.phase = Phase::Live(live);
    }

    pub(super) fn handle_intervals(&mut self, now: Time, intervals: &v1::Intervals) {
        if let Phase::Live(live) = &mut self.phase {
            live.set_intervals(Some(intervals));
            live.next_heartbeat = live.next_heartbeat.min(now + live.heartbeat_interval);
            live.next_metrics = live.next_metrics.min(now + live.metrics_interval);
        }
    }

    pub(super) fn handle_heartbeat_ack(&mut self, now: Time, sequence: u64) {
        if let Phase::Live(live) = &mut self.phase
            && let Some((_, sent)) = live.unanswered.iter().find(|(sent, _)| *sent == sequence)
        {
            live.round_trip = now.saturating_sub(*sent);
            live.unanswered.retain(|(sent, _)| *sent > sequence);
        }
    }

    /// The number of a heartbeat that is sent now, and the last round trip; none where no session lives.
    pub(super) fn begin_heartbeat(&mut self, now: Time) -> Option<(u64, Duration)> {
        let Phase::Live(live) = &mut self.phase else { return None };
        live.sequence += 1;
        live.unanswered.push((live.sequence, now));
        Some((live.sequence, live.round_trip))
    }

    /// The agent's own config has changed: what was refused may be taken now.
    pub(super) fn reconfigure(&mut self, now: Time, is_enrolled: bool, can_enroll: bool) {
        self.is_enrolled = is_enrolled;
        self.has_credential = is_enrolled;
        self.can_enroll = can_enroll;
        self.is_token_refused = false;
        self.backoff.reset();
        self.phase = Phase::Resting { until: now };
    }

    pub(super) fn stop(&mut self) {
        self.phase = Phase::Stopped;
    }
}

impl Live {
    fn set_intervals(&mut self, intervals: Option<&v1::Intervals>) {
        let asked = intervals.copied().unwrap_or_default();
        self.heartbeat_interval = limits::interval(asked.heartbeat_interval_ms, HEARTBEAT_INTERVAL);
        self.metrics_interval = limits::interval(asked.metrics_interval_ms, self.heartbeat_interval);
    }

    /// As many heartbeats have gone unanswered as make a node offline in the master's eyes.
    fn is_silent(&self, now: Time) -> bool {
        let patience = self.heartbeat_interval * OFFLINE_AFTER_HEARTBEATS;
        self.unanswered.first().is_some_and(|(_, sent)| now >= *sent + patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: LinkFailureKind) -> Result<(), LinkFailure> {
        Err(LinkFailure { kind, message: String::new() })
    }

    /// What the link does next, and when.
    fn next(link: &mut Link) -> (Time, Action) {
        let at = link.poll_timeout().unwrap();
        (at, link.handle_timeout(at).unwrap())
    }

    #[test]
    fn what_may_be_put_right_elsewhere_is_tried_again_and_a_refused_token_is_not() {
        for (kind, is_tried) in [
            (LinkFailureKind::Transient, true),
            // A certificate that has expired is renewed; a node of the same name is deleted at the master.
            (LinkFailureKind::Refused, true),
            (LinkFailureKind::Unauthenticated, false),
        ] {
            let mut link = Link::new(false, true, 7);
            assert!(matches!(next(&mut link), (Time::ZERO, Action::Enroll)));
            link.handle_enrolled(Time::ZERO, &refused(kind));
            let (at, action) = next(&mut link);
            assert_eq!(matches!(action, Action::Enroll), is_tried, "{kind:?}: {action:?}");
            let is_patient = at >= RETRY_CAP / 2;
            assert_eq!(is_patient, kind != LinkFailureKind::Transient, "{kind:?}: after {at:?}");
            assert!(at <= RETRY_CAP, "{kind:?}: after {at:?}");
        }
    }

    #[test]
    fn a_credential_that_is_not_known_and_a_wish_that_is_refused_are_tried_in_turns() {
        let mut link = Link::new(true, true, 7);
        let failure = |kind| LinkFailure { kind, message: String::new() };
        let mut at = Time::ZERO;
        for turn in 0..3 {
            let (dialed_at, action) = next(&mut link);
            assert!(matches!(action, Action::Connect { .. }), "turn {turn}: {action:?}");
            link.handle_failure(dialed_at, &failure(LinkFailureKind::Unauthenticated), None);
            let (enrolled_at, action) = next(&mut link);
            assert!(matches!(action, Action::Enroll), "turn {turn}: {action:?}");
            // The node is barred, or enrolled with the other credential.
            link.handle_enrolled(enrolled_at, &refused(LinkFailureKind::Refused));
            assert!(link.poll_timeout().unwrap() >= enrolled_at + RETRY_CAP / 2 && dialed_at >= at);
            at = enrolled_at;
        }
    }

    #[test]
    fn a_changed_config_shows_the_token_again() {
        let mut link = Link::new(false, true, 7);
        next(&mut link);
        link.handle_enrolled(Time::ZERO, &refused(LinkFailureKind::Unauthenticated));
        link.reconfigure(Time::ZERO, false, true);
        assert!(matches!(next(&mut link), (Time::ZERO, Action::Enroll)));
    }
}
