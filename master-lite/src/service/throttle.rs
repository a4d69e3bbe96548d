//! How often somebody may fail before they have to wait: counts per key in fixed windows. Time is an argument; nothing is
//! kept over a restart.

use std::collections::HashMap;
use std::hash::Hash;

/// Keys that are counted at once, some 100 bytes each. Above it the oldest windows go first, so that a flood of new keys
/// costs no memory.
pub(crate) const KEYS_MAX: usize = 10_000;

/// Counts per key.
pub(crate) struct Throttle<K> {
    allowed: u32,
    window_ms: u64,
    counts: HashMap<K, Count>,
}

struct Count {
    since_ms: u64,
    times: u32,
}

impl<K: Hash + Eq + Clone> Throttle<K> {
    /// Allows `allowed` times within `window_ms`.
    pub(crate) fn new(allowed: u32, window_ms: u64) -> Self {
        Self { allowed, window_ms, counts: HashMap::new() }
    }

    /// Whether the key may try now.
    ///
    /// # Errors
    /// The milliseconds until it may.
    pub(crate) fn check(&self, key: &K, now_ms: u64) -> Result<(), u64> {
        match self.counts.get(key) {
            Some(count) if count.times >= self.allowed && now_ms < count.since_ms + self.window_ms => {
                Err(count.since_ms + self.window_ms - now_ms)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Counts one time.
    pub(crate) fn count(&mut self, key: &K, now_ms: u64) {
        if self.counts.len() >= KEYS_MAX && !self.counts.contains_key(key) {
            self.make_room(now_ms);
        }
        let count = self.counts.entry(key.clone()).or_insert(Count { since_ms: now_ms, times: 0 });
        if now_ms >= count.since_ms + self.window_ms {
            *count = Count { since_ms: now_ms, times: 0 };
        }
        count.times = count.times.saturating_add(1);
    }

    /// Takes one time back, which was none after all.
    pub(crate) fn take_back(&mut self, key: &K) {
        if let Some(count) = self.counts.get_mut(key) {
            count.times = count.times.saturating_sub(1);
        }
    }

    /// Forgets a key, which has done well.
    pub(crate) fn forget(&mut self, key: &K) {
        self.counts.remove(key);
    }

    fn make_room(&mut self, now_ms: u64) {
        let window_ms = self.window_ms;
        self.counts.retain(|_, count| now_ms < count.since_ms + window_ms);
        while self.counts.len() >= KEYS_MAX {
            let oldest =
                self.counts.iter().min_by_key(|(_, count)| count.since_ms).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.counts.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_the_end_of_the_window() {
        let mut throttle = Throttle::new(2, 1000);
        for _ in 0..2 {
            assert_eq!(throttle.check(&"a", 100), Ok(()));
            throttle.count(&"a", 100);
        }
        assert_eq!(throttle.check(&"a", 600), Err(500));
        assert_eq!(throttle.check(&"b", 600), Ok(()));
        assert_eq!(throttle.check(&"a", 1100), Ok(()));
        throttle.count(&"a", 1100);
        assert_eq!(throttle.check(&"a", 1100), Ok(()), "the new window begins with the old one's count");
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_memory() {
        let mut throttle = Throttle::new(1, 1_000_000);
        for key in 0..KEYS_MAX as u64 + 10 {
            throttle.count(&key, key);
        }
        assert_eq!(throttle.counts.len(), KEYS_MAX);
        assert_eq!(throttle.check(&0, KEYS_MAX as u64), Ok(()), "the oldest stayed");
        assert!(throttle.check(&(KEYS_MAX as u64 + 9), KEYS_MAX as u64).is_err(), "the newest went");
    }
}
