//! A node's past, in two rings: ten-second points of the last hour, one-minute points of the last day. Bounded in points
//! and in bytes, in memory only: after a restart of the master history begins anew.
//!
//! ```text
//!   blocks, thirty points each, packed together        tail, packed one by one      open
//!   [ oldest ][ ... ][ ... ][ ... ]                    | . . . . . . . . |           { newest, still growing }
//! ```
//! The minute ring is fed with every report, not from the other ring, so that a minute is whole as soon as it is over.

use std::collections::VecDeque;

use prost::Message;

use super::block::Block;
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
}

/// Points of both rings.
const POINTS_MAX: usize = 360 + 1_440;

/// How many bytes the points of one node may take, however few nodes there are: a point of an idle node takes about 10
/// bytes, of a busy one about 70. Past this, or past the node's share of what all may take, the oldest go first.
pub(crate) const NODE_BYTES_MAX: usize = POINTS_MAX * 192;

/// Points that are packed together: more would pack little better, and be unpacked for a look at one of them.
const BLOCK_POINTS: usize = 30;

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
    /// Adds what was reported at a time, and forgets what is too old or does not fit into so many bytes any more. A
    /// clock that was set back adds to the newest point.
    pub(crate) fn add(&mut self, now_ms: u64, point: &Point, sets: &BoundSets, bytes_max: usize) {
        let has_closed = [&mut self.fine, &mut self.coarse].map(|ring| ring.add(now_ms, point, sets));
        if has_closed.contains(&true) {
            self.forget(bytes_max);
        }
    }

    /// The points from a time on, oldest first.
    pub(crate) fn visit(
        &self,
        resolution: Resolution,
        from_ms: u64,
        sets: &BoundSets,
        visit: impl FnMut(Dated),
    ) {
        let ring = match resolution {
            Resolution::TenSeconds => &self.fine,
            Resolution::Minute => &self.coarse,
        };
        ring.visit(from_ms, u64::MAX, sets, visit);
    }

    /// Everything of the last `window_ms` as one point, from the fine ring; none where there was nothing.
    pub(crate) fn recent(&self, window_ms: u64, now_ms: u64, sets: &BoundSets) -> Option<Point> {
        let from_ms = now_ms.saturating_sub(window_ms);
        let mut sum: Option<Point> = None;
        self.fine.visit(from_ms, now_ms, sets, |Dated { point, .. }| match &mut sum {
            Some(sum) => sum.add(&point),
            None => sum = Some(point),
        });
        sum
    }

    /// Forgets what is too old, and what does not fit into so many bytes: the oldest of the ring that takes more than its
    /// part. One may use what the other leaves.
    pub(crate) fn forget(&mut self, bytes_max: usize) {
        self.fine.forget_old();
        self.coarse.forget_old();
        while self.bytes() > bytes_max {
            let fine_part = self.bytes() / POINTS_MAX * Resolution::TenSeconds.points_max();
            let (larger, other) = if self.fine.bytes() > fine_part {
                (&mut self.fine, &mut self.coarse)
            } else {
                (&mut self.coarse, &mut self.fine)
            };
            if larger.blocks.pop_front().or_else(|| other.blocks.pop_front()).is_none() {
                return;
            }
        }
    }

    /// Memory that the points take.
    pub(crate) fn bytes(&self) -> usize {
        self.fine.bytes() + self.coarse.bytes()
    }
}

/// Points of one resolution.
#[derive(Debug)]
struct Ring {
    resolution: Resolution,
    open: Option<(u64, Point)>,
    /// Less than [`BLOCK_POINTS`] records, each behind its length.
    tail: Vec<u8>,
    tail_points: usize,
    blocks: VecDeque<Block>,
}

impl Ring {
    fn new(resolution: Resolution) -> Self {
        Ring { resolution, open: None, tail: Vec::new(), tail_points: 0, blocks: VecDeque::new() }
    }

    /// True: a point is whole, and has been closed.
    fn add(&mut self, now_ms: u64, point: &Point, sets: &BoundSets) -> bool {
        let slot = now_ms / self.resolution.step_ms();
        match &mut self.open {
            Some((open, sum)) if *open >= slot => {
                sum.add(point);
                false
            }
            open => {
                let full = open.replace((slot, point.clone()));
                full.map(|(slot, point)| self.close(&Record::pack(slot, &point, sets))).is_some()
            }
        }
    }

    fn close(&mut self, record: &Record) {
        let length = record.encoded_len() + LENGTH_BYTES_MAX;
        if self.tail.capacity() - self.tail.len() < length {
            // In small steps: doubling would take twice the room.
            self.tail.reserve_exact(length.max(GROWTH_BYTES));
        }
        let encoded = record.encode_length_delimited(&mut self.tail);
        // A vector has always room.
        self.tail_points += usize::from(encoded.is_ok());
        if self.tail_points == BLOCK_POINTS {
            self.blocks.push_back(Block::pack(&self.tail().collect::<Vec<_>>()));
            self.tail.clear();
            self.tail_points = 0;
        }
    }

    /// Forgets the oldest blocks, those of which no point is wanted any more.
    fn forget_old(&mut self) {
        while let Some(oldest) = self.blocks.front()
            && self.points() - oldest.points >= self.resolution.points_max()
        {
            self.blocks.pop_front();
        }
    }

    fn points(&self) -> usize {
        let packed: usize = self.blocks.iter().map(|block| block.points).sum();
        packed + self.tail_points + usize::from(self.open.is_some())
    }

    fn bytes(&self) -> usize {
        self.tail.capacity() + self.blocks.iter().map(Block::bytes).sum::<usize>()
    }

    fn visit(&self, from_ms: u64, to_ms: u64, sets: &BoundSets, mut visit: impl FnMut(Dated)) {
        let step_ms = self.resolution.step_ms();
        let is_inside = |slot: u64| (from_ms..to_ms).contains(&(slot * step_ms));
        // The oldest block may have more than is promised.
        let mut too_many = self.points().saturating_sub(self.resolution.points_max());
        let mut tell = |slot: u64, point: Point| {
            let is_promised = too_many == 0;
            too_many = too_many.saturating_sub(1);
            if is_promised && is_inside(slot) {
                visit(Dated { begin_ms: slot * step_ms, point });
            }
        };
        for block in &self.blocks {
            if block.last_slot * step_ms >= from_ms && block.first_slot * step_ms < to_ms {
                block.visit(sets, &mut tell);
            }
        }
        self.tail().for_each(|record| tell(record.slot, record.unpack(sets)));
        if let Some((slot, point)) = self.open.as_ref().filter(|(slot, _)| is_inside(*slot)) {
            tell(*slot, point.clone());
        }
    }

    fn tail(&self) -> impl Iterator<Item = Record> {
        let mut bytes = &self.tail[..];
        (0..self.tail_points).map_while(move |_| Record::decode_length_delimited(&mut bytes).ok())
    }
}

/// The length before each record: of a record of any size that a report can have.
const LENGTH_BYTES_MAX: usize = 5;

/// How much a tail grows at once: ten points of a busy node.
const GROWTH_BYTES: usize = 2 << 10;

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
        all_of(history, resolution, &BoundSets::default())
    }

    fn all_of(history: &History, resolution: Resolution, sets: &BoundSets) -> Vec<Dated> {
        let mut points = Vec::new();
        history.visit(resolution, 0, sets, |dated| points.push(dated));
        points
    }

    #[test]
    fn keeps_an_hour_of_ten_seconds_and_a_day_of_minutes() {
        let (mut history, sets) = (History::default(), BoundSets::default());
        for tick in 0..20_000 {
            history.add(tick * 10_000, &requests(1), &sets, NODE_BYTES_MAX);
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
        let mut point = Point { times: [0; 4].map(|_| Some(large.clone())), ..requests(u64::MAX) };
        for tick in 0..2_000 {
            history.add(tick * 60_000, &point, &sets, NODE_BYTES_MAX);
            point.figures.requests ^= tick;
        }
        // What has not become a block yet is not forgotten.
        let tails = 2 * BLOCK_POINTS * (4 * 128 * 12);
        assert!(history.bytes() <= NODE_BYTES_MAX + tails, "{} bytes", history.bytes());
        let newest = all_of(&history, Resolution::Minute, &sets).pop().unwrap();
        assert_eq!(newest.begin_ms, 1_999 * 60_000);
    }

    #[test]
    fn a_ring_may_use_what_the_other_leaves() {
        let fill = |bytes_max: usize| {
            let (mut history, sets) = (History::default(), BoundSets::default());
            // An hour: the fine ring is full, and the other one has a twentieth of its points.
            for tick in 0..360_u64 {
                history.add(tick * 10_000, &requests(tick * tick * 7_919), &sets, bytes_max);
            }
            history
        };
        let needed = fill(NODE_BYTES_MAX).bytes();
        assert_eq!(all(&fill(needed), Resolution::TenSeconds).len(), 360);
        // And where it does not fit, the ring goes first that has more than its part.
        let cut = fill(needed - 1);
        assert!(all(&cut, Resolution::TenSeconds).len() < 360 && cut.bytes() < needed);
        assert_eq!(all(&cut, Resolution::Minute).len(), 60);
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
            history.add(tick * 10_000, &Point { figures, ..Point::default() }, &sets, NODE_BYTES_MAX);
        }
        assert!(history.bytes() < 16 << 10, "{} bytes", history.bytes());
    }

    #[test]
    fn a_clock_set_back_adds_to_the_newest_point() {
        let (mut history, sets) = (History::default(), BoundSets::default());
        history.add(100_000, &requests(1), &sets, NODE_BYTES_MAX);
        history.add(50_000, &requests(2), &sets, NODE_BYTES_MAX);
        let points = all(&history, Resolution::TenSeconds);
        assert_eq!(points, [Dated { begin_ms: 100_000, point: requests(3) }]);
    }

    #[test]
    fn recent_is_the_sum_of_the_window_alone() {
        let (mut history, sets) = (History::default(), BoundSets::default());
        for tick in 0..60 {
            history.add(tick * 10_000, &requests(tick), &sets, NODE_BYTES_MAX);
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
                history.add(now_ms, &requests(count), &sets, NODE_BYTES_MAX);
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
