//! Records side by side, as a block keeps them: a row of plain numbers each, all of a block equally long, made so that one
//! row's numbers are near those of the row before.

use std::sync::Arc;

use proto::fleet::limits::BUCKETS_MAX;

use super::histogram::Histogram;
use super::point::{BoundSets, Figures, Point, Record, Times, dense};

/// The first numbers of a row: the slot and [`Figures`].
const FIGURES: usize = 17;

impl Record {
    /// One for each of [`Times::ALL`].
    pub(super) const WIDTHS: usize = Times::ALL.len();

    /// Numbers in a row beside those of the buckets: for each distribution bounds and sum.
    const PLAIN: usize = FIGURES + 2 * Self::WIDTHS;

    /// How many buckets a row needs for each distribution, so that those of all records fit.
    pub(super) fn widths(records: &[Self]) -> [usize; Self::WIDTHS] {
        let mut widths = [0; Self::WIDTHS];
        for packed in records.iter().flat_map(|record| &record.times) {
            let pairs = packed.buckets.chunks_exact(2);
            let needed: u64 = pairs.map(|pair| pair[0].saturating_add(1)).sum();
            if let Some(width) = widths.get_mut(packed.times as usize) {
                *width = (*width).max(usize::try_from(needed).unwrap_or(0).min(BUCKETS_MAX));
            }
        }
        widths
    }

    /// How long a row is.
    pub(super) fn columns(widths: &[usize; Self::WIDTHS]) -> usize {
        Self::PLAIN + widths.iter().sum::<usize>()
    }

    /// The record as a row.
    pub(super) fn row(&self, widths: &[usize; Self::WIDTHS]) -> Vec<u64> {
        let figures = self.figures.unwrap_or_default();
        // None is 0, and no count is as large as the number that is missing for it.
        let optional = |count: Option<u64>| count.map_or(0, |count| count.saturating_add(1));
        let mut row = Vec::with_capacity(Self::columns(widths));
        row.extend([
            self.slot,
            u64::from(figures.host_samples),
            rounded(figures.cpu_busy),
            rounded(figures.memory_used),
            rounded(figures.load),
            figures.host_covered_ms,
            rounded(figures.received_bytes as f32),
            rounded(figures.sent_bytes as f32),
            u64::from(figures.samples),
            figures.connections,
            figures.in_flight,
            figures.covered_ms,
            figures.requests,
            figures.failed,
            optional(figures.websocket_opened),
            optional(figures.websocket_reconnects),
            optional(figures.bgp_flaps),
        ]);
        for (times, width) in (0..).zip(widths) {
            let packed = self.times.iter().find(|packed| packed.times == times);
            row.push(packed.map_or(0, |packed| u64::from(packed.bounds) + 1));
            row.push(packed.map_or(0, |packed| rounded(packed.sum)));
            let counts = dense(packed.map_or(&[][..], |packed| &packed.buckets), *width);
            row.extend(counts.into_iter().map(level));
        }
        row
    }

    /// A row's point, and the stretch that it is of.
    pub(super) fn point_of_row(
        row: &[u64],
        widths: &[usize; Self::WIDTHS],
        sets: &BoundSets,
    ) -> (u64, Point) {
        let (plain, mut rest) = row.split_at(FIGURES.min(row.len()));
        let mut plain = plain.iter().copied();
        let mut next = || plain.next().unwrap_or(0);
        let slot = next();
        let figures = Figures {
            host_samples: small(next()),
            cpu_busy: unrounded(next()),
            memory_used: unrounded(next()),
            load: unrounded(next()),
            host_covered_ms: next(),
            received_bytes: unrounded(next()) as u64,
            sent_bytes: unrounded(next()) as u64,
            samples: small(next()),
            connections: next(),
            in_flight: next(),
            covered_ms: next(),
            requests: next(),
            failed: next(),
            websocket_opened: next().checked_sub(1),
            websocket_reconnects: next().checked_sub(1),
            bgp_flaps: next().checked_sub(1),
        };
        let mut point = Point { figures, ..Point::default() };
        for (times, width) in point.times.iter_mut().zip(widths) {
            let Some(([bounds, sum], more)) = rest.split_first_chunk() else { break };
            let (levels, more) = more.split_at((*width).min(more.len()));
            rest = more;
            let bounds = bounds.checked_sub(1).and_then(|bounds| sets.numbered(small(bounds)));
            *times = bounds.map(|bounds| {
                let counts = levels.iter().map(|level| count(*level));
                Histogram::of_counts(Arc::clone(bounds), counts, f64::from(unrounded(*sum)))
            });
        }
        (slot, point)
    }
}

/// Bits of a fraction that a row leaves out: what is left is its exponent and twelve bits of precision.
const LEFT_OUT_BITS: u32 = 12;

/// A sum of fractions as a number of which neighbours are near each other.
fn rounded(sum: f32) -> u64 {
    u64::from(sum.to_bits().saturating_add(1 << (LEFT_OUT_BITS - 1)) >> LEFT_OUT_BITS)
}

fn unrounded(number: u64) -> f32 {
    f32::from_bits(small(number) << LEFT_OUT_BITS)
}

/// A count as a number that grows with its logarithm: up to 255 it is the count, then each power of two has 128 of them.
/// So the count of a busy bucket is much the same number from one minute to the next.
fn level(count: u64) -> u64 {
    if count < 256 {
        return count;
    }
    let shift = count.ilog2() - 7;
    let leading = count.saturating_add(1 << (shift - 1)) >> shift;
    // Rounded up to 256 it is the first of the next power of two.
    u64::from(shift) * 128 + leading
}

/// The count in the middle of those of a level.
fn count(level: u64) -> u64 {
    if level < 256 {
        return level;
    }
    let shift = small(level / 128 - 1);
    (128 + level % 128).checked_shl(shift).filter(|count| count >> shift >= 128).unwrap_or(u64::MAX)
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counts_level_is_near_it_and_grows_with_it() {
        assert!((0..256).all(|number| level(number) == number && count(number) == number));
        let mut before = 0;
        for number in
            (0..64).flat_map(|power| [0, 1, 2].map(|more| (1_u64 << power) + (1 << power) / 3 * more))
        {
            assert!(
                count(level(number)).abs_diff(number) <= number / 256,
                "{number}: {}",
                count(level(number))
            );
            assert!(level(number) >= before, "{number}");
            before = level(number);
        }
        assert!(count(level(u64::MAX)) >= u64::MAX - u64::MAX / 256);
    }
}
