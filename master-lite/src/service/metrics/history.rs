//! A node's past, in two rings: ten-second points of the last hour, one-minute points of the last day. Bounded in points
//! and in bytes, in memory only: after a restart of the master history begins anew.
//!
//! The minute ring is fed with every report, not from the other ring, so that a minute is whole as soon as it is over.

use std::collections::VecDeque;

use prost::Message;

use super::point::{BoundSets, Point, Record};

/// How fine a history is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Points of ten seconds, for an hour.
    TenSeconds,
    /// Points of a minute, for a day.
    Minute,
}

impl Resolution {
    /// The length of one point.
    pub(crate) fn step_ms(self) -> u64 {
        match self {
            Resolution::TenSeconds => 10_000,
            Resolution::Minute => 60_000,
        }
    }

    /// How many points are kept.
    pub(crate) fn points_max(self) -> usize {
        match self {
            Resolution::TenSeconds => 360,
            Resolution::Minute => 1_440,
        }
    }

    /// How many bytes the points may take. A point of an idle node takes about 50 bytes, of one with traffic of a few
    /// kinds 150: 192 each leaves a margin, and with both rings bounds a node at 338 KiB. Past this the oldest go first.
    pub(crate) fn bytes_max(self) -> usize {
        self.points_max() * 192
    }
}

/// A point and when it began.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dated {
    /// Since the Unix epoch.
    pub(crate) begin_ms: u64,
    /// What happened from then on, for one step.
    pub(crate) point: Point,
}

/// Both rings of one node.
#[derive(Debug)]
pub(crate) struct History {
    fine: Ring,
    coarse: Ring,
}

impl Default for History {
    fn default() -> Self {
        History { fine: Ring::new(Resolution::TenSeconds), coarse: Ring::new(Resolution::Minute) }
    }
}

impl History {
    /// Adds what was reported at a time. A clock that was set back adds to the newest point.
    pub(crate) fn add(&mut self, now_ms: u64, point: &Point, sets: &BoundSets) {
        self.fine.add(now_ms, point, sets);
        self.coarse.add(now_ms, point, sets);
    }

    /// The points that begin in a range of time, oldest first.
    pub(crate) fn range(
        &self,
        resolution: Resolution,
        from_ms: u64,
        to_ms: u64,
        sets: &BoundSets,
    ) -> Vec<Dated> {
        let ring = match resolution {
            Resolution::TenSeconds => &self.fine,
            Resolution::Minute => &self.coarse,
        };
        ring.range(from_ms, to_ms, sets)
    }

    /// Everything of the last `window_ms` as one point, from the fine ring; none where there was nothing.
    pub(crate) fn recent(&self, window_ms: u64, now_ms: u64, sets: &BoundSets) -> Option<Point> {
        let from_ms = now_ms.saturating_sub(window_ms);
        let mut points = self.fine.range(from_ms, now_ms, sets).into_iter();
        let mut sum = points.next()?.point;
        points.for_each(|dated| sum.add(&dated.point));
        Some(sum)
    }

    /// Memory that the points take.
    pub(crate) fn bytes(&self) -> usize {
        self.fine.packed.capacity() + self.coarse.packed.capacity()
    }
}

/// Points of one resolution. The newest is still growing and kept open; the others are packed, each behind its length.
#[derive(Debug)]
struct Ring {
    resolution: Resolution,
    open: Option<(u64, Point)>,
    packed: VecDeque<u8>,
    points: usize,
}

impl Ring {
    fn new(resolution: Resolution) -> Self {
        Ring { resolution, open: None, packed: VecDeque::new(), points: 0 }
    }

    fn add(&mut self, now_ms: u64, point: &Point, sets: &BoundSets) {
        let slot = now_ms / self.resolution.step_ms();
        match &mut self.open {
            Some((open, sum)) if *open >= slot => sum.add(point),
            open => {
                let full = open.replace((slot, point.clone()));
                if let Some((slot, point)) = full {
                    self.close(&Record::pack(slot, &point, sets));
                }
            }
        }
    }

    fn close(&mut self, record: &Record) {
        let bytes = record.encode_to_vec();
        // A record has at most four histograms of at most 128 buckets of at most 12 bytes: its length fits.
        let Ok(length) = u16::try_from(bytes.len()) else { return };
        // The open point counts as one.
        while self.points + 1 >= self.resolution.points_max()
            || self.packed.len() + bytes.len() + LENGTH_BYTES > self.resolution.bytes_max()
        {
            if !self.forget_oldest() {
                break;
            }
        }
        self.grow(LENGTH_BYTES + bytes.len());
        self.packed.extend(length.to_le_bytes());
        self.packed.extend(bytes);
        self.points += 1;
    }

    /// Makes room in small steps: doubling, as the deque does by itself, would take twice the bound.
    fn grow(&mut self, more: usize) {
        if self.packed.capacity() - self.packed.len() < more {
            self.packed.reserve_exact(more.max(GROWTH_BYTES));
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(length) = length_at(&self.packed, 0) else { return false };
        self.packed.drain(..LENGTH_BYTES + length);
        self.points -= 1;
        true
    }

    fn range(&self, from_ms: u64, to_ms: u64, sets: &BoundSets) -> Vec<Dated> {
        let step_ms = self.resolution.step_ms();
        let is_inside = |slot: u64| (from_ms..to_ms.max(from_ms)).contains(&(slot * step_ms));
        let open = self.open.iter().filter(|(slot, _)| is_inside(*slot));
        let closed = self.records().filter(|record| is_inside(record.slot));
        closed
            .map(|record| (record.slot, record.unpack(sets)))
            .chain(open.cloned())
            .map(|(slot, point)| Dated { begin_ms: slot * step_ms, point })
            .collect()
    }

    fn records(&self) -> impl Iterator<Item = Record> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let begin = at + LENGTH_BYTES;
            let end = begin + length_at(&self.packed, at)?;
            at = end;
            let bytes: Vec<u8> = self.packed.range(begin..end).copied().collect();
            Record::decode(&bytes[..]).ok()
        })
    }
}

/// The length before each record.
const LENGTH_BYTES: usize = 2;

/// How much a ring grows at once: about an hour of an idle node's minutes.
const GROWTH_BYTES: usize = 4 << 10;

fn length_at(packed: &VecDeque<u8>, at: usize) -> Option<usize> {
    let bytes = [*packed.get(at)?, *packed.get(at + 1)?];
    Some(usize::from(u16::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::histogram::Histogram;
    use super::super::point::Figures;
    use super::*;

    fn requests(requests: u64) -> Point {
        Point { figures: Figures { requests, ..Figures::default() }, ..Point::default() }
    }

    fn all(history: &History, resolution: Resolution) -> Vec<Dated> {
        history.range(resolution, 0, u64::MAX, &BoundSets::default())
    }

    #[test]
    fn keeps_an_hour_of_ten_seconds_and_a_day_of_minutes() {
        let (mut history, sets) = (History::default(), BoundSets::default());
        for tick in 0..20_000 {
            history.add(tick * 10_000, &requests(1), &sets);
        }
        for resolution in [Resolution::TenSeconds, Resolution::Minute] {
            let points = all(&history, resolution);
            assert_eq!(points.len(), resolution.points_max());
            let newest_ms = 19_999 * 10_000 / resolution.step_ms() * resolution.step_ms();
            assert_eq!(points.last().unwrap().begin_ms, newest_ms);
            assert!(
                points.windows(2).all(|pair| pair[0].begin_ms + resolution.step_ms() == pair[1].begin_ms)
            );
        }
        assert_eq!(all(&history, Resolution::Minute)[5].point.figures.requests, 6);
    }

    #[test]
    fn bytes_are_bounded_when_points_are_as_large_as_they_can_be() {
        let (mut history, mut sets) = (History::default(), BoundSets::default());
        let bounds = sets.shared(&(1..=127).map(f64::from).collect::<Vec<_>>()).unwrap();
        let large = Histogram::new(bounds, vec![u64::MAX; 128], f64::MAX).unwrap();
        let point = Point { times: [0; 4].map(|_| Some(large.clone())), ..requests(u64::MAX) };
        for tick in 0..2_000 {
            history.add(tick * 60_000, &point, &sets);
        }
        let bytes_max = Resolution::TenSeconds.bytes_max() + Resolution::Minute.bytes_max();
        assert!(history.bytes() <= bytes_max + 2 * (16 << 10), "{} bytes", history.bytes());
        let newest = history.range(Resolution::Minute, 0, u64::MAX, &sets).pop().unwrap();
        assert_eq!(newest.begin_ms, 1_999 * 60_000);
    }

    #[test]
    fn an_idle_node_takes_little() {
        let (mut history, sets) = (History::default(), BoundSets::default());
        let figures = Figures {
            host_samples: 1,
            cpu_busy: 0.03,
            memory_used: 0.4,
            load: 0.1,
            host_covered_ms: 10_000,
            received_bytes: 90_000,
            sent_bytes: 90_000,
            samples: 1,
            connections: 12,
            covered_ms: 10_000,
            ..Figures::default()
        };
        for tick in 0..9_000 {
            history.add(tick * 10_000, &Point { figures, ..Point::default() }, &sets);
        }
        assert!(history.bytes() < 110 << 10, "{} bytes", history.bytes());
    }

    #[test]
    fn a_clock_set_back_adds_to_the_newest_point() {
        let (mut history, sets) = (History::default(), BoundSets::default());
        history.add(100_000, &requests(1), &sets);
        history.add(50_000, &requests(2), &sets);
        let points = all(&history, Resolution::TenSeconds);
        assert_eq!(points, [Dated { begin_ms: 100_000, point: requests(3) }]);
    }

    #[test]
    fn recent_is_the_sum_of_the_window_alone() {
        let (mut history, sets) = (History::default(), BoundSets::default());
        for tick in 0..60 {
            history.add(tick * 10_000, &requests(tick), &sets);
        }
        assert_eq!(history.recent(60_000, 600_000, &sets), Some(requests(54 + 55 + 56 + 57 + 58 + 59)));
        assert_eq!(history.recent(60_000, 900_000, &sets), None);
    }

    proptest! {
        #[test]
        fn rings_agree_with_a_map_of_slots(steps in vec((0_u64..90_000, 0_u64..1_000), 1..200)) {
            let (mut history, sets) = (History::default(), BoundSets::default());
            let (mut now_ms, mut expected) = (0, BTreeMap::<u64, u64>::new());
            for (step_ms, count) in steps {
                now_ms += step_ms;
                history.add(now_ms, &requests(count), &sets);
                *expected.entry(now_ms / 10_000 * 10_000).or_default() += count;
            }
            let found: Vec<(u64, u64)> = all(&history, Resolution::TenSeconds)
                .into_iter()
                .map(|dated| (dated.begin_ms, dated.point.figures.requests))
                .collect();
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
