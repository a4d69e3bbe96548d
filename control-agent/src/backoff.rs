//! How long to wait before the next try: exponential, with full jitter. Pure: the randomness is a seed's.
//!
//! Full jitter (a uniform draw between nothing and the envelope) spreads a fleet that lost its master at one moment over
//! the whole envelope, where a fixed share would let it come back in a wave.

use std::time::Duration;

/// Delays of one thing that is tried again and again.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    tries: u32,
    random: Random,
}

/// Not even a lucky draw makes a tight loop.
pub const DELAY_MIN: Duration = Duration::from_millis(50);

impl Backoff {
    /// Envelopes of `base`, twice `base`, and so on up to `cap`.
    pub fn new(base: Duration, cap: Duration, seed: u64) -> Self {
        Self { base, cap, tries: 0, random: Random(seed) }
    }

    /// The delay before the next try; each is drawn from twice the envelope of the one before.
    pub fn next_delay(&mut self) -> Duration {
        let envelope = self.envelope();
        self.tries = self.tries.saturating_add(1);
        self.random.up_to(envelope).max(DELAY_MIN)
    }

    /// A delay near the longest, at once: for what will not mend itself.
    pub fn long_delay(&mut self) -> Duration {
        let half = self.cap / 2;
        half + self.random.up_to(half)
    }

    /// The thing has worked: the next delay is a short one again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// Longest that the next delay can be.
    pub fn envelope(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.tries).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): spreads delays, keeps no
/// secrets.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn up_to(&mut self, max: Duration) -> Duration {
        let max_us = u64::try_from(max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.next() % max_us.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(30);

    proptest! {
        #[test]
        fn every_delay_is_inside_its_envelope(seed: u64, tries in 0_usize..80) {
            let mut backoff = Backoff::new(BASE, CAP, seed);
            for _ in 0..tries {
                let envelope = backoff.envelope();
                let delay = backoff.next_delay();
                prop_assert!(delay >= DELAY_MIN && delay <= envelope && envelope <= CAP);
                prop_assert!(backoff.envelope() >= envelope);
            }
            let long = backoff.long_delay();
            prop_assert!(long >= CAP / 2 && long <= CAP);
            backoff.reset();
            prop_assert_eq!(backoff.envelope(), BASE);
        }

        #[test]
        fn a_seed_gives_the_same_delays_again(seed: u64) {
            let (mut one, mut two) = (Backoff::new(BASE, CAP, seed), Backoff::new(BASE, CAP, seed));
            for _ in 0..10 {
                prop_assert_eq!(one.next_delay(), two.next_delay());
            }
        }
    }

    #[test]
    fn a_fleet_is_spread_over_the_envelope() {
        // 500 agents that lose their master at one moment: no tenth of the first second sees a fifth of them.
        let mut tenths = [0_usize; 11];
        for seed in 0..500 {
            let delay = Backoff::new(BASE, CAP, seed).next_delay();
            tenths[usize::try_from(delay.as_millis() / 100).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|agents| *agents < 100), "{tenths:?}");
    }
}
