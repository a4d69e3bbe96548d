//! Histograms as nodes report them: counts between bounds, which add up over nodes, regions and time, so that a
//! percentile is read from the sum. Percentiles are never averaged: the mean of two P95 is the P95 of nothing.
//!
//! Nodes of different versions may report different bounds. Two such histograms add up over the bounds they share,
//! which loses resolution and no count. What a bucket holds inside is unknown; a percentile there is drawn on a line.

use std::sync::Arc;

use proto::fleet::limits::BUCKETS_MAX;
use thiserror::Error;

/// Most bounds one histogram may have; above the last there is one more bucket.
pub(crate) const BOUNDS_MAX: usize = BUCKETS_MAX - 1;

/// Upper bounds in the metric's unit, the bound included, rising strictly. Shared: a fleet has a handful of them.
pub(crate) type Bounds = Arc<[f64]>;

/// Why a reported histogram is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum HistogramError {
    /// A histogram without bounds tells nothing.
    #[error("has no bounds")]
    NoBounds,
    /// More than [`BOUNDS_MAX`].
    #[error("has more than {BOUNDS_MAX} bounds")]
    TooManyBounds,
    /// A bound is not above the one before, or is no number.
    #[error("has bounds that do not rise")]
    Unordered,
    /// One count per bound and one above the last.
    #[error("has {counts} counts for {bounds} bounds; one more than bounds is right")]
    CountsMismatch {
        /// Bounds given.
        bounds: usize,
        /// Counts given.
        counts: usize,
    },
}

/// Durations, or what else was measured, counted by size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    bounds: Bounds,
    /// One per bound, not cumulative, and one for what lies above the last.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty histogram. The bounds were checked by [`Histogram::new`] or came from one.
    pub(crate) fn empty(bounds: Bounds) -> Self {
        let counts = vec![0; bounds.len() + 1];
        Histogram { bounds, counts, sum: 0.0 }
    }

    /// A histogram with these counts, of which those that are missing are 0. The bounds as in [`Histogram::empty`].
    pub(crate) fn of_counts(bounds: Bounds, counts: impl Iterator<Item = u64>, sum: f64) -> Self {
        let mut kept = Vec::with_capacity(bounds.len() + 1);
        kept.extend(counts.take(bounds.len() + 1));
        kept.resize(bounds.len() + 1, 0);
        Histogram { bounds, counts: kept, sum }
    }

    /// What a node reported, checked.
    pub(crate) fn new(bounds: Bounds, counts: Vec<u64>, sum: f64) -> Result<Self, HistogramError> {
        if bounds.is_empty() {
            return Err(HistogramError::NoBounds);
        }
        if bounds.len() > BOUNDS_MAX {
            return Err(HistogramError::TooManyBounds);
        }
        if !bounds.iter().all(|bound| bound.is_finite()) || !bounds.is_sorted_by(|a, b| a < b) {
            return Err(HistogramError::Unordered);
        }
        if counts.len() != bounds.len() + 1 {
            return Err(HistogramError::CountsMismatch { bounds: bounds.len(), counts: counts.len() });
        }
        Ok(Histogram { bounds, counts, sum })
    }

    /// Upper bounds in the metric's unit.
    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Counts per bucket, not cumulative; the last is above all bounds.
    pub(crate) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The sum of all durations.
    pub(crate) fn sum(&self) -> f64 {
        self.sum
    }

    /// How many durations were counted.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Adds `other`; where the bounds differ, over those that both have.
    pub(crate) fn merge(&mut self, other: &Self) {
        if Arc::ptr_eq(&self.bounds, &other.bounds) || self.bounds == other.bounds {
            return self.add(other);
        }
        let shared: Bounds =
            self.bounds.iter().filter(|bound| other.bounds.contains(bound)).copied().collect();
        *self = self.coarsened(&shared);
        self.add(&other.coarsened(&shared));
    }

    /// What was counted since `earlier`, a reading of the same histogram. A process that began anew counts from zero:
    /// where a bucket shrank, or the bounds are others, all that is counted now is new.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let grew = self.bounds == earlier.bounds
            && self.sum >= earlier.sum
            && self.counts.iter().zip(&earlier.counts).all(|(now, then)| now >= then);
        if !grew {
            return self.clone();
        }
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, then)| now - then).collect();
        Histogram { bounds: Arc::clone(&self.bounds), counts, sum: self.sum - earlier.sum }
    }

    /// The value below which `percent` of all lie; none where nothing was counted. Inside a bucket values are taken as
    /// spread evenly from 0 or the bound below; above the last bound nothing is known, so the answer is that bound.
    pub(crate) fn percentile(&self, percent: f64) -> Option<f64> {
        let total = self.count();
        let last = *self.bounds.last()?;
        if total == 0 {
            return None;
        }
        let rank = (percent.clamp(0.0, 100.0) / 100.0 * total as f64).max(f64::MIN_POSITIVE);
        let (mut below, mut lower) = (0_u64, 0.0_f64);
        for (upper, count) in self.bounds.iter().zip(&self.counts) {
            let through = below.saturating_add(*count);
            if *count > 0 && through as f64 >= rank {
                let share = ((rank - below as f64) / *count as f64).clamp(0.0, 1.0);
                return Some(lower + share * (upper - lower));
            }
            (below, lower) = (through, *upper);
        }
        Some(last)
    }

    fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.sum += other.sum;
    }

    /// The same durations over some of the bounds: exact, as each bucket is a sum of whole ones.
    fn coarsened(&self, bounds: &Bounds) -> Self {
        let mut coarse = Histogram::empty(Arc::clone(bounds));
        for (bucket, count) in self.counts.iter().enumerate() {
            let at = match self.bounds.get(bucket) {
                Some(bound) => bounds.partition_point(|shared| shared < bound),
                None => bounds.len(),
            };
            coarse.counts[at] = coarse.counts[at].saturating_add(*count);
        }
        coarse.sum = self.sum;
        coarse
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn of(bounds: &[u64], values: &[u64]) -> Histogram {
        let mut histogram = Histogram::empty(bounds.iter().map(|bound| *bound as f64).collect());
        for value in values {
            histogram.counts[bounds.partition_point(|bound| bound < value)] += 1;
            histogram.sum += *value as f64;
        }
        histogram
    }

    #[test]
    fn refuses_what_cannot_be_a_histogram() {
        let refusal =
            |bounds: &[f64], counts| Histogram::new(bounds.into(), vec![0; counts], 0.0).unwrap_err();
        assert_eq!(refusal(&[], 1), HistogramError::NoBounds);
        assert_eq!(refusal(&[2.0, 2.0], 3), HistogramError::Unordered);
        assert_eq!(refusal(&[1.0, f64::NAN], 3), HistogramError::Unordered);
        assert_eq!(refusal(&[1.0, 2.0], 2), HistogramError::CountsMismatch { bounds: 2, counts: 2 });
        let many: Vec<f64> = (0..=BOUNDS_MAX).map(|bound| bound as f64).collect();
        assert_eq!(refusal(&many, BOUNDS_MAX + 2), HistogramError::TooManyBounds);
        assert!(Histogram::new(many[1..].into(), vec![0; BOUNDS_MAX + 1], 0.0).is_ok());
    }

    #[test]
    fn merged_percentile_is_not_the_average_of_percentiles() {
        // A node with a thousand fast answers and one with ten slow ones: nearly all answers are fast.
        let fast = of(&[10, 100, 1_000], &vec![5; 1_000]);
        let slow = of(&[10, 100, 1_000], &[900; 10]);
        let mut merged = fast.clone();
        merged.merge(&slow);
        let p95 = |histogram: &Histogram| histogram.percentile(95.0).unwrap();
        assert_eq!((p95(&fast), p95(&slow)), (9.5, 955.0));
        assert!(p95(&merged) < 10.0);
    }

    #[test]
    fn percentile_of_nothing_is_none_and_above_the_last_bound_it_is_that_bound() {
        assert_eq!(Histogram::empty([10.0].into()).percentile(50.0), None);
        assert_eq!(of(&[10, 20], &[500]).percentile(50.0), Some(20.0));
    }

    #[test]
    fn a_restarted_process_counts_from_zero() {
        let before = of(&[10, 20], &[5, 15, 15]);
        let more = of(&[10, 20], &[5, 15, 15, 15]);
        assert_eq!(more.since(&before), of(&[10, 20], &[15]));
        let restarted = of(&[10, 20], &[5]);
        assert_eq!(restarted.since(&before), restarted);
    }

    proptest! {
        #[test]
        fn merging_equals_counting_everything_at_once(
            bounds in btree_set(1_u64..1_000, 1..20),
            left in vec(0_u64..2_000, 0..50),
            right in vec(0_u64..2_000, 0..50),
        ) {
            let bounds: Vec<u64> = bounds.into_iter().collect();
            let mut merged = of(&bounds, &left);
            merged.merge(&of(&bounds, &right));
            prop_assert_eq!(merged, of(&bounds, &[left, right].concat()));
        }

        #[test]
        fn different_bounds_lose_no_count_and_merge_the_same_both_ways(
            bounds_left in btree_set(1_u64..40, 1..20),
            bounds_right in btree_set(1_u64..40, 1..20),
            left in vec(0_u64..60, 0..50),
            right in vec(0_u64..60, 0..50),
        ) {
            let shared: Vec<u64> = bounds_left.intersection(&bounds_right).copied().collect();
            let (bounds_left, bounds_right) = (Vec::from_iter(bounds_left), Vec::from_iter(bounds_right));
            let (left_alone, right_alone) = (of(&bounds_left, &left), of(&bounds_right, &right));
            let (mut one, mut other) = (left_alone.clone(), right_alone.clone());
            one.merge(&right_alone);
            other.merge(&left_alone);
            prop_assert_eq!(&one, &other);
            prop_assert_eq!(one.count(), (left.len() + right.len()) as u64);
            if bounds_left != bounds_right {
                prop_assert_eq!(one, of(&shared, &[left, right].concat()));
            }
        }

        #[test]
        fn percentile_lies_in_the_bucket_of_the_exact_one(
            bounds in btree_set(1_u64..1_000, 1..20),
            mut durations in vec(1_u64..1_000, 1..80),
            percent in 0.0..=100.0_f64,
        ) {
            let bounds: Vec<u64> = bounds.into_iter().collect();
            let found = of(&bounds, &durations).percentile(percent).unwrap();
            durations.sort_unstable();
            let rank = (percent / 100.0 * durations.len() as f64).ceil().max(1.0) as usize;
            let exact = durations[rank - 1];
            let bucket = bounds.partition_point(|bound| *bound < exact);
            let lower = if bucket == 0 { 0 } else { bounds[bucket - 1] } as f64;
            let upper = bounds.get(bucket).copied().unwrap_or(*bounds.last().unwrap()) as f64;
            prop_assert!((lower..=upper).contains(&found), "{found} is not in {lower}..={upper}, exact {exact}");
        }
    }
}
