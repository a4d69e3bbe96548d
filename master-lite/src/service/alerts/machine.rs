//! The life of one alert: a rule that is broken on one node. Pure: time and the reading are arguments, what changed is
//! the answer. It knows no rule by name, stores nothing and tells nobody.
//!
//! ```text
//!                 broken                    broken for long enough
//!   (none) ───────────────▶ Pending ───────────────────────────────▶ Firing
//!      ▲                       │                                        │
//!      └───────────────────────┘ sound, or no reading                   │ sound, or no reading for STALE_AFTER_MS
//!                                                                       ▼
//!   (none) ◀──────────────────────────────────────────────────────── Resolved ──▶ Pending when broken again
//!              forgotten after RESOLVED_KEPT_MS
//! ```

use serde::{Deserialize, Serialize};

/// A firing alert without readings is resolved after this: its node has been offline for long enough that the alert
/// about being offline says more. It is not resolved at once, as one lost heartbeat is no recovery.
pub(crate) const STALE_AFTER_MS: u64 = 5 * 60_000;

/// For how long a resolved alert is shown: over a night and a morning, so that who comes to work sees what happened.
pub(crate) const RESOLVED_KEPT_MS: u64 = 24 * 3_600_000;

/// Where an alert stands. Times are since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum State {
    /// Broken, but not yet for as long as the rule asks.
    Pending {
        /// Since when it is broken.
        since_ms: u64,
    },
    /// Broken for as long as the rule asks.
    Firing {
        /// Since when it is broken.
        since_ms: u64,
        /// Since when it fires.
        fired_ms: u64,
        /// When the last reading came.
        read_ms: u64,
    },
    /// No longer broken.
    Resolved {
        /// Since when it had fired.
        fired_ms: u64,
        /// When it ended.
        resolved_ms: u64,
        /// Why it ended.
        reason: Resolution,
    },
}

/// Why an alert ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Resolution {
    /// The reading is sound again.
    Recovered,
    /// There were no readings for [`STALE_AFTER_MS`].
    NoData,
    /// The rule was changed, disabled or deleted, or the node is gone.
    Withdrawn,
}

/// What somebody may want to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It began to fire.
    Fired,
    /// It ended.
    Resolved(Resolution),
}

/// What a rule says about a node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The threshold is passed.
    Broken,
    /// It is not.
    Sound,
    /// The node reports nothing of the kind.
    Missing,
}

/// The next state of an alert and what there is to tell. `for_ms` is how long a rule has to be broken.
pub(crate) fn step(
    state: Option<State>,
    reading: Reading,
    for_ms: u64,
    now_ms: u64,
) -> (Option<State>, Option<Event>) {
    match state {
        None => begin(None, reading, for_ms, now_ms),
        Some(State::Pending { since_ms }) => match reading {
            Reading::Broken => ripen(since_ms, for_ms, now_ms),
            Reading::Sound | Reading::Missing => (None, None),
        },
        Some(State::Firing { since_ms, fired_ms, read_ms }) => match reading {
            Reading::Broken => {
                (Some(State::Firing { since_ms, fired_ms, read_ms: now_ms.max(read_ms) }), None)
            }
            Reading::Sound => end(fired_ms, Resolution::Recovered, now_ms),
            Reading::Missing if now_ms.saturating_sub(read_ms) >= STALE_AFTER_MS => {
                end(fired_ms, Resolution::NoData, now_ms)
            }
            Reading::Missing => (state, None),
        },
        Some(State::Resolved { resolved_ms, .. }) => {
            let is_shown = now_ms.saturating_sub(resolved_ms) < RESOLVED_KEPT_MS;
            begin(state.filter(|_| is_shown), reading, for_ms, now_ms)
        }
    }
}

/// Ends an alert whose rule or node is gone.
pub(crate) fn withdraw(state: State, now_ms: u64) -> (Option<State>, Option<Event>) {
    match state {
        State::Pending { .. } => (None, None),
        State::Firing { fired_ms, .. } => end(fired_ms, Resolution::Withdrawn, now_ms),
        State::Resolved { .. } => (Some(state), None),
    }
}

/// From nothing, or from what is resolved and still shown.
fn begin(
    otherwise: Option<State>,
    reading: Reading,
    for_ms: u64,
    now_ms: u64,
) -> (Option<State>, Option<Event>) {
    match reading {
        Reading::Broken => ripen(now_ms, for_ms, now_ms),
        Reading::Sound | Reading::Missing => (otherwise, None),
    }
}

fn ripen(since_ms: u64, for_ms: u64, now_ms: u64) -> (Option<State>, Option<Event>) {
    if now_ms.saturating_sub(since_ms) >= for_ms {
        (Some(State::Firing { since_ms, fired_ms: now_ms, read_ms: now_ms }), Some(Event::Fired))
    } else {
        (Some(State::Pending { since_ms }), None)
    }
}

fn end(fired_ms: u64, reason: Resolution, now_ms: u64) -> (Option<State>, Option<Event>) {
    (Some(State::Resolved { fired_ms, resolved_ms: now_ms, reason }), Some(Event::Resolved(reason)))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::Reading::{Broken, Missing, Sound};
    use super::*;

    const MINUTE: u64 = 60_000;

    /// Readings ten seconds apart; the events, each with its time.
    fn run(readings: &[Reading], for_ms: u64) -> (Option<State>, Vec<(u64, Event)>) {
        let (mut state, mut events) = (None, Vec::new());
        for (tick, reading) in (0..).zip(readings) {
            let now_ms = tick * 10_000;
            let (next, event) = step(state, *reading, for_ms, now_ms);
            state = next;
            events.extend(event.map(|event| (now_ms, event)));
        }
        (state, events)
    }

    #[test]
    fn fires_when_broken_for_as_long_as_the_rule_asks_and_not_before() {
        let (state, events) = run(&[Broken; 30], 5 * MINUTE);
        assert_eq!((state, events), (Some(State::Pending { since_ms: 0 }), vec![]));
        let (_, events) = run(&[Broken; 31], 5 * MINUTE);
        assert_eq!(events, [(5 * MINUTE, Event::Fired)]);
    }

    #[test]
    fn one_sound_reading_starts_the_wait_again() {
        let mut readings = [Broken; 61];
        readings[29] = Sound;
        let (_, events) = run(&readings, 5 * MINUTE);
        assert_eq!(events, [(10 * MINUTE, Event::Fired)]);
    }

    #[test]
    fn fires_at_once_where_the_rule_does_not_wait() {
        let (state, events) = run(&[Broken, Sound], 0);
        assert_eq!(events, [(0, Event::Fired), (10_000, Event::Resolved(Resolution::Recovered))]);
        let reason = Resolution::Recovered;
        assert_eq!(state, Some(State::Resolved { fired_ms: 0, resolved_ms: 10_000, reason }));
    }

    #[test]
    fn a_lost_reading_resolves_nothing_but_a_silent_node_does() {
        let mut readings = vec![Broken];
        readings.extend([Missing; 30]);
        let (_, events) = run(&readings, 0);
        assert_eq!(events, [(0, Event::Fired), (STALE_AFTER_MS, Event::Resolved(Resolution::NoData))]);
    }

    #[test]
    fn a_resolved_alert_is_forgotten_after_a_day_and_may_fire_again() {
        let (state, _) = run(&[Broken, Sound], 0);
        let resolved_ms = 10_000;
        assert_eq!(step(state, Sound, 0, resolved_ms + RESOLVED_KEPT_MS - 1).0, state);
        assert_eq!(step(state, Sound, 0, resolved_ms + RESOLVED_KEPT_MS), (None, None));
        assert_eq!(step(state, Broken, 0, 20_000).1, Some(Event::Fired));
    }

    #[test]
    fn withdrawing_tells_only_of_what_fires() {
        assert_eq!(withdraw(State::Pending { since_ms: 0 }, 5), (None, None));
        let firing = State::Firing { since_ms: 0, fired_ms: 1, read_ms: 1 };
        assert_eq!(withdraw(firing, 5).1, Some(Event::Resolved(Resolution::Withdrawn)));
    }

    #[test]
    fn a_clock_that_steps_back_fires_nothing_early() {
        let (state, event) = step(Some(State::Pending { since_ms: 100_000 }), Broken, 1, 50_000);
        assert_eq!((state, event), (Some(State::Pending { since_ms: 100_000 }), None));
    }

    proptest! {
        #[test]
        fn fired_and_resolved_take_turns(
            readings in vec(prop_oneof![Just(Broken), Just(Sound), Just(Missing)], 0..400),
            for_ms in 0_u64..120_000,
        ) {
            let (state, events) = run(&readings, for_ms);
            for (turn, (_, event)) in events.iter().enumerate() {
                prop_assert_eq!(turn % 2 == 0, *event == Event::Fired);
            }
            let is_firing = matches!(state, Some(State::Firing { .. }));
            prop_assert_eq!(is_firing, events.len() % 2 == 1);
        }

        #[test]
        fn what_fires_was_broken_all_the_time_before(
            readings in vec(prop_oneof![4 => Just(Broken), 1 => Just(Sound), 1 => Just(Missing)], 0..200),
            for_ticks in 0_usize..12,
        ) {
            let (_, events) = run(&readings, for_ticks as u64 * 10_000);
            for (at_ms, _) in events.iter().filter(|(_, event)| *event == Event::Fired) {
                let tick = (*at_ms / 10_000) as usize;
                prop_assert!(readings[tick - for_ticks..=tick].iter().all(|reading| *reading == Broken));
            }
        }
    }
}
