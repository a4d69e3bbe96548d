//! Active health checks of one endpoint: when to probe it, and what the answers make of it.
//!
//! ```text
//!              unhealthy_after bad probes in a row
//!   Healthy ───────────────────────────────────────▶ Unhealthy
//!   (begins) ◀───────────────────────────────────────
//!              healthy_after good probes in a row
//! ```
//!
//! As with HAProxy an endpoint is up until it has failed often enough, so that a node serves from its first moment. It
//! runs no probe itself, and does not look at real exchanges. Time is what has passed since any fixed origin.

use std::time::Duration;

use proto::config::Health;

/// The rise/fall machine of one endpoint, with the schedule of its probes.
#[derive(Clone, Debug)]
pub struct HealthMachine {
    is_healthy: bool,
    /// Probes in a row that contradict `is_healthy`.
    streak: u32,
    healthy_after: u32,
    unhealthy_after: u32,
    interval: Duration,
    due: Duration,
    /// What the second probe is to be earlier than an interval, none once it was scheduled.
    spread: Option<Duration>,
    is_probing: bool,
}

/// What to do about an endpoint's probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeStep {
    /// Start one now, and say how it went with [`HealthMachine::handle_probe`].
    Start,
    /// Ask again then.
    WaitUntil(Duration),
    /// One is on its way: ask again when it is done.
    Probing,
}

/// A change of an endpoint's health: worth a line in the log, and a store in its `EndpointHealth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It answers again.
    BecameHealthy,
    /// It has failed often enough.
    BecameUnhealthy,
}

impl HealthMachine {
    /// A healthy endpoint, to be probed soon after `now`.
    ///
    /// The first probes of many endpoints are spread over a tenth of the interval, the ones after it over half of it;
    /// from then on each is an interval after the one before. `seed` (the endpoint's id) says where in the spread.
    pub fn new(config: &Health, seed: u64, now: Duration) -> Self {
        let interval = at_least_a_millisecond(config.interval);
        let mix = mixed(seed);
        HealthMachine {
            is_healthy: true,
            streak: 0,
            healthy_after: config.healthy_after,
            unhealthy_after: config.unhealthy_after,
            interval,
            due: now + fraction(interval / FIRST_PROBES_WITHIN, mix as u32),
            spread: Some(fraction(interval / 2, (mix >> 32) as u32)),
            is_probing: false,
        }
    }

    /// Goes by other rules from `now` on. What is known of the endpoint stays.
    pub fn reconfigure(&mut self, config: &Health, now: Duration) {
        self.healthy_after = config.healthy_after;
        self.unhealthy_after = config.unhealthy_after;
        self.interval = at_least_a_millisecond(config.interval);
        self.due = self.due.min(now + self.interval);
        self.spread = self.spread.map(|spread| spread.min(self.interval / 2));
    }

    /// Whether exchanges may be sent to it.
    pub fn is_healthy(&self) -> bool {
        self.is_healthy
    }

    /// How a probe went; the probe's own deadline is the prober's.
    pub fn handle_probe(&mut self, is_good: bool) -> Option<Transition> {
        self.is_probing = false;
        if is_good == self.is_healthy {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        let needed = if is_good { self.healthy_after } else { self.unhealthy_after };
        if self.streak < needed {
            return None;
        }
        self.is_healthy = is_good;
        self.streak = 0;
        Some(if is_good { Transition::BecameHealthy } else { Transition::BecameUnhealthy })
    }

    /// Whether to probe at `now`.
    pub fn poll_next(&mut self, now: Duration) -> ProbeStep {
        if self.is_probing {
            return ProbeStep::Probing;
        }
        if now < self.due {
            return ProbeStep::WaitUntil(self.due);
        }
        self.is_probing = true;
        self.due = self.due + self.interval - self.spread.take().unwrap_or(Duration::ZERO);
        if self.due <= now {
            // Probes were missed. They are not made up for, and the endpoint keeps its place among the others.
            let missed = (now - self.due).as_nanos() / self.interval.as_nanos() + 1;
            self.due += self.interval * u32::try_from(missed).unwrap_or(u32::MAX);
        }
        ProbeStep::Start
    }
}

/// The first probes are spread over the interval divided by this: soon, but not all at once.
const FIRST_PROBES_WITHIN: u32 = 10;

fn at_least_a_millisecond(interval: Duration) -> Duration {
    interval.max(Duration::from_millis(1))
}

/// `numerator` / 2^32 of the duration.
fn fraction(duration: Duration, numerator: u32) -> Duration {
    let nanos = (duration.as_nanos() * u128::from(numerator)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): near seeds give unrelated numbers.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
