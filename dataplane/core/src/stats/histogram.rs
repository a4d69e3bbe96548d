//! Histograms of durations with fixed bounds: recording is a search in 24 numbers and two additions.
//!
//! Bounds are the same for all workers and for ever, so that histograms add up over workers and over time. For
//! percentiles finer than the bounds `bench` has HDR histograms; they are too large to have one per route and worker.

use super::Counter;

/// How many upper bounds a histogram has; one more bucket holds what lies above the last.
pub const BOUNDS: usize = 24;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// For what a client waits for: first bytes, gaps between chunks, an origin's work. Narrow between 1 and 150 ms, where
/// tokens come.
pub const WIDE_BOUNDS_NS: [u64; BOUNDS] = [
    100 * US,
    250 * US,
    500 * US,
    MS,
    2_500 * US,
    5 * MS,
    10 * MS,
    15 * MS,
    20 * MS,
    30 * MS,
    50 * MS,
    75 * MS,
    100 * MS,
    150 * MS,
    250 * MS,
    500 * MS,
    S,
    2_500 * MS,
    5 * S,
    10 * S,
    30 * S,
    60 * S,
    120 * S,
    300 * S,
];

/// For what the proxy adds, which is microseconds when all is well.
pub const FINE_BOUNDS_NS: [u64; BOUNDS] = [
    5 * US,
    10 * US,
    20 * US,
    30 * US,
    50 * US,
    75 * US,
    100 * US,
    150 * US,
    200 * US,
    300 * US,
    500 * US,
    750 * US,
    MS,
    2 * MS,
    3 * MS,
    5 * MS,
    10 * MS,
    20 * MS,
    45 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    S,
    10 * S,
];

/// Durations counted by size.
#[derive(Debug)]
pub struct Histogram {
    bounds_ns: &'static [u64; BOUNDS],
    buckets: [Counter; BOUNDS + 1],
    sum_ns: Counter,
}

impl Histogram {
    /// An empty histogram over [`WIDE_BOUNDS_NS`].
    pub fn wide() -> Self {
        Histogram::new(&WIDE_BOUNDS_NS)
    }

    /// An empty histogram over [`FINE_BOUNDS_NS`].
    pub fn fine() -> Self {
        Histogram::new(&FINE_BOUNDS_NS)
    }

    fn new(bounds_ns: &'static [u64; BOUNDS]) -> Self {
        Histogram { bounds_ns, buckets: Default::default(), sum_ns: Counter::default() }
    }

    /// Counts one duration; only the owner may.
    pub fn record(&self, duration_ns: u64) {
        // A search of fixed length over 24 bounds: five steps without a branch to guess.
        let bucket = self.bounds_ns.partition_point(|bound| *bound < duration_ns);
        self.buckets[bucket].increment();
        self.sum_ns.add(duration_ns);
    }

    /// Upper bounds in nanoseconds, the bound included; the bucket above the last has none.
    pub fn bounds_ns(&self) -> &'static [u64; BOUNDS] {
        self.bounds_ns
    }

    /// How many fell into each bucket alone (not cumulative); the last is above all bounds.
    pub fn counts(&self) -> [u64; BOUNDS + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].value())
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// The sum of all durations.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.value()
    }

    /// Adds what `other`, of the same bounds, has recorded.
    pub fn merge(&self, other: &Self) {
        debug_assert_eq!(self.bounds_ns, other.bounds_ns, "histograms of different bounds do not add up");
        for (bucket, count) in self.buckets.iter().zip(&other.buckets) {
            bucket.merge(count);
        }
        self.sum_ns.merge(&other.sum_ns);
    }
}
