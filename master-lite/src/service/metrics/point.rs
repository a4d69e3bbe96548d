//! What a node, or many, did in one stretch of time: sums only, so that points add up over time into coarser ones and
//! over nodes into regions. Means, rates and percentiles are read from a sum at the end and never stored.
//!
//! A point in history is kept as a Protocol Buffers message: a number that is zero takes no room, and a histogram only
//! its buckets that are not empty.

use std::sync::Arc;

use prost::Message;

use super::histogram::{Bounds, Histogram};

/// The distributions of which history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Times {
    /// `millrace_first_byte_seconds`: what a client waits for.
    FirstByte,
    /// `millrace_chunk_gap_seconds`: silences inside a stream.
    ChunkGap,
    /// `millrace_upstream_seconds`: what the upstream took.
    Upstream,
    /// `millrace_proxy_seconds`: what the proxy added.
    Proxy,
}

impl Times {
    /// All of them, in the order of a point's array.
    pub(crate) const ALL: [Times; 4] = [Times::FirstByte, Times::ChunkGap, Times::Upstream, Times::Proxy];

    /// The data plane's name of the metric.
    pub(crate) fn metric(self) -> &'static str {
        match self {
            Times::FirstByte => "millrace_first_byte_seconds",
            Times::ChunkGap => "millrace_chunk_gap_seconds",
            Times::Upstream => "millrace_upstream_seconds",
            Times::Proxy => "millrace_proxy_seconds",
        }
    }
}

/// The sums of a point that are plain numbers.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Figures {
    /// Heartbeats in it.
    #[prost(uint32, tag = "1")]
    pub(crate) host_samples: u32,
    /// Busy shares of all processors, added up.
    #[prost(float, tag = "2")]
    pub(crate) cpu_busy: f32,
    /// Used shares of memory, added up.
    #[prost(float, tag = "3")]
    pub(crate) memory_used: f32,
    /// Load averages over a minute, added up.
    #[prost(float, tag = "4")]
    pub(crate) load: f32,
    /// The time that the host's counters cover.
    #[prost(uint64, tag = "5")]
    pub(crate) host_covered_ms: u64,
    /// Bytes the host's devices received.
    #[prost(uint64, tag = "6")]
    pub(crate) received_bytes: u64,
    /// Bytes the host's devices sent.
    #[prost(uint64, tag = "7")]
    pub(crate) sent_bytes: u64,
    /// Reports of the data plane in it.
    #[prost(uint32, tag = "8")]
    pub(crate) samples: u32,
    /// Open client connections, added up.
    #[prost(uint64, tag = "9")]
    pub(crate) connections: u64,
    /// Requests in flight, added up.
    #[prost(uint64, tag = "10")]
    pub(crate) in_flight: u64,
    /// The time that the data plane's counters cover.
    #[prost(uint64, tag = "11")]
    pub(crate) covered_ms: u64,
    /// Requests that ended.
    #[prost(uint64, tag = "12")]
    pub(crate) requests: u64,
    /// Requests that ended badly through an upstream or the proxy.
    #[prost(uint64, tag = "13")]
    pub(crate) failed: u64,
    /// WebSocket connections opened; none where the node does not count them.
    #[prost(uint64, optional, tag = "14")]
    pub(crate) websocket_opened: Option<u64>,
    /// WebSocket connections of clients that came back; none where the node does not count them.
    #[prost(uint64, optional, tag = "15")]
    pub(crate) websocket_reconnects: Option<u64>,
    /// BGP sessions that went down; none where the node does not count them.
    #[prost(uint64, optional, tag = "16")]
    pub(crate) bgp_flaps: Option<u64>,
}

/// One stretch of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Point {
    /// The plain numbers.
    pub(crate) figures: Figures,
    /// As [`Times::ALL`]; none where nothing was counted.
    pub(crate) times: [Option<Histogram>; Times::ALL.len()],
}

impl Point {
    /// Adds another stretch, or another node.
    pub(crate) fn add(&mut self, other: &Point) {
        self.figures.add(&other.figures);
        for (mine, more) in self.times.iter_mut().zip(&other.times) {
            match (mine.as_mut(), more) {
                (Some(mine), Some(more)) => mine.merge(more),
                (None, Some(more)) => *mine = Some(more.clone()),
                (_, None) => {}
            }
        }
    }

    /// One of the distributions.
    pub(crate) fn times(&self, times: Times) -> Option<&Histogram> {
        self.times[times as usize].as_ref()
    }
}

/// Readings: each is none where nothing was reported to read it from.
impl Figures {
    /// Mean busy share of all processors.
    pub(crate) fn cpu_percent(&self) -> Option<f64> {
        mean(f64::from(self.cpu_busy) * 100.0, self.host_samples)
    }

    /// Mean used share of memory.
    pub(crate) fn memory_percent(&self) -> Option<f64> {
        mean(f64::from(self.memory_used) * 100.0, self.host_samples)
    }

    /// Mean load average.
    pub(crate) fn load_average(&self) -> Option<f64> {
        mean(f64::from(self.load), self.host_samples)
    }

    /// Mean of the open client connections.
    pub(crate) fn mean_connections(&self) -> Option<f64> {
        mean(self.connections as f64, self.samples)
    }

    /// Mean of the requests in flight.
    pub(crate) fn mean_in_flight(&self) -> Option<f64> {
        mean(self.in_flight as f64, self.samples)
    }

    /// Ended requests per second.
    pub(crate) fn requests_per_s(&self) -> Option<f64> {
        per_s(self.requests, self.covered_ms)
    }

    /// Requests that ended badly through an upstream or the proxy, of all that ended.
    pub(crate) fn error_percent(&self) -> Option<f64> {
        percent(self.failed, self.requests)
    }

    /// Bytes per second that the host's devices received.
    pub(crate) fn received_bytes_per_s(&self) -> Option<f64> {
        per_s(self.received_bytes, self.host_covered_ms)
    }

    /// Bytes per second that the host's devices sent.
    pub(crate) fn sent_bytes_per_s(&self) -> Option<f64> {
        per_s(self.sent_bytes, self.host_covered_ms)
    }

    /// WebSocket connections of clients that came back, of all that were opened.
    pub(crate) fn websocket_reconnect_percent(&self) -> Option<f64> {
        percent(self.websocket_reconnects?, self.websocket_opened?)
    }

    /// BGP sessions that went down.
    pub(crate) fn bgp_flaps_per_minute(&self) -> Option<f64> {
        per_s(self.bgp_flaps?, self.covered_ms).map(|per_s| per_s * 60.0)
    }

    fn add(&mut self, other: &Figures) {
        self.host_samples = self.host_samples.saturating_add(other.host_samples);
        self.cpu_busy += other.cpu_busy;
        self.memory_used += other.memory_used;
        self.load += other.load;
        self.samples = self.samples.saturating_add(other.samples);
        let sums = [
            (&mut self.host_covered_ms, other.host_covered_ms),
            (&mut self.received_bytes, other.received_bytes),
            (&mut self.sent_bytes, other.sent_bytes),
            (&mut self.connections, other.connections),
            (&mut self.in_flight, other.in_flight),
            (&mut self.covered_ms, other.covered_ms),
            (&mut self.requests, other.requests),
            (&mut self.failed, other.failed),
        ];
        for (sum, more) in sums {
            *sum = sum.saturating_add(more);
        }
        let optional = [
            (&mut self.websocket_opened, other.websocket_opened),
            (&mut self.websocket_reconnects, other.websocket_reconnects),
            (&mut self.bgp_flaps, other.bgp_flaps),
        ];
        for (sum, more) in optional {
            *sum = sum.map_or(more, |sum| Some(sum.saturating_add(more.unwrap_or(0))));
        }
    }
}

fn mean(sum: f64, samples: u32) -> Option<f64> {
    (samples > 0).then(|| sum / f64::from(samples))
}

fn per_s(count: u64, covered_ms: u64) -> Option<f64> {
    (covered_ms > 0).then(|| count as f64 * 1_000.0 / covered_ms as f64)
}

fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

/// Sets of bounds that nodes use. A fleet has one or two; each is kept once, and points name it by number.
#[derive(Debug, Default)]
pub(crate) struct BoundSets {
    sets: Vec<Bounds>,
}

impl BoundSets {
    /// Most sets: data planes have two, and a dozen versions of them may be on their way at once.
    pub(crate) const SETS_MAX: usize = 24;

    /// The kept copy of some bounds; none when there are too many sets already.
    pub(crate) fn shared(&mut self, bounds: &[f64]) -> Option<Bounds> {
        if let Some(known) = self.sets.iter().find(|known| known[..] == *bounds) {
            return Some(Arc::clone(known));
        }
        if self.sets.len() == Self::SETS_MAX {
            return None;
        }
        self.sets.push(bounds.into());
        self.sets.last().cloned()
    }

    fn number_of(&self, bounds: &[f64]) -> Option<u32> {
        (0..).zip(&self.sets).find(|(_, known)| known[..] == *bounds).map(|(number, _)| number)
    }

    /// The bounds of a number.
    pub(super) fn numbered(&self, number: u32) -> Option<&Bounds> {
        self.sets.get(usize::try_from(number).ok()?)
    }
}

/// A point as history keeps it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    /// Which stretch: the time divided by its length.
    #[prost(uint64, tag = "1")]
    pub(super) slot: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) figures: Option<Figures>,
    #[prost(message, repeated, tag = "3")]
    pub(super) times: Vec<PackedTimes>,
}

/// A distribution in a [`Record`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct PackedTimes {
    /// Index in [`Times::ALL`].
    #[prost(uint32, tag = "1")]
    pub(super) times: u32,
    /// Number of the bounds.
    #[prost(uint32, tag = "2")]
    pub(super) bounds: u32,
    /// How many empty buckets stand before one, and its count, by turns.
    #[prost(uint64, repeated, tag = "3")]
    pub(super) buckets: Vec<u64>,
    #[prost(float, tag = "4")]
    pub(super) sum: f32,
}

impl Record {
    /// Packs a point. A histogram whose bounds are not of the sets is left out: that happens only where two sets were
    /// merged in one point, while a node's program is replaced.
    pub(super) fn pack(slot: u64, point: &Point, sets: &BoundSets) -> Record {
        let packed = (0..).zip(&point.times).filter_map(|(times, histogram)| {
            let histogram = histogram.as_ref().filter(|histogram| histogram.count() > 0)?;
            let bounds = sets.number_of(histogram.bounds())?;
            let sum = histogram.sum() as f32;
            Some(PackedTimes { times, bounds, buckets: sparse(histogram.counts()), sum })
        });
        Record { slot, figures: Some(point.figures), times: packed.collect() }
    }

    /// The point again.
    pub(super) fn unpack(&self, sets: &BoundSets) -> Point {
        let mut point = Point { figures: self.figures.unwrap_or_default(), ..Point::default() };
        for packed in &self.times {
            let Some(bounds) = sets.numbered(packed.bounds) else { continue };
            let counts = dense(&packed.buckets, bounds.len() + 1);
            let histogram = Histogram::new(Arc::clone(bounds), counts, f64::from(packed.sum)).ok();
            if let Some(place) = point.times.get_mut(packed.times as usize) {
                *place = histogram;
            }
        }
        point
    }
}

/// How many empty buckets stand before one, and its count, by turns.
fn sparse(counts: &[u64]) -> Vec<u64> {
    let (mut packed, mut empty) = (Vec::new(), 0);
    for count in counts {
        if *count == 0 {
            empty += 1;
        } else {
            packed.extend([empty, *count]);
            empty = 0;
        }
    }
    packed
}

/// The buckets again.
pub(super) fn dense(packed: &[u64], buckets: usize) -> Vec<u64> {
    let (mut counts, mut at) = (vec![0; buckets], 0_usize);
    for pair in packed.chunks_exact(2) {
        at += usize::try_from(pair[0]).unwrap_or(buckets);
        if let Some(count) = counts.get_mut(at) {
            *count = pair[1];
        }
        at += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unpacking_gives_the_point_again(
            requests in any::<u64>(),
            bgp_flaps in any::<Option<u64>>(),
            counts in vec(prop_oneof![3 => Just(0_u64), 1 => any::<u32>().prop_map(u64::from)], 25),
            times in 0_usize..4,
        ) {
            let mut sets = BoundSets::default();
            let bounds = sets.shared(&(1..25).map(f64::from).collect::<Vec<_>>()).unwrap();
            let figures = Figures { requests, bgp_flaps, cpu_busy: 0.25, ..Figures::default() };
            let mut point = Point { figures, ..Point::default() };
            if counts.iter().any(|count| *count > 0) {
                point.times[times] = Some(Histogram::new(bounds, counts, 1.5).unwrap());
            }
            let bytes = Record::pack(7, &point, &sets).encode_to_vec();
            let record = Record::decode(&bytes[..]).unwrap();
            prop_assert_eq!(record.slot, 7);
            prop_assert_eq!(record.unpack(&sets), point);
        }
    }

    #[test]
    fn a_count_that_no_node_makes_stays_missing_and_one_that_some_make_adds_up() {
        let mut sum = Point::default();
        sum.add(&Point::default());
        assert_eq!(sum.figures.bgp_flaps, None);
        let counting = Figures { bgp_flaps: Some(2), ..Figures::default() };
        sum.add(&Point { figures: counting, ..Point::default() });
        sum.add(&Point::default());
        assert_eq!(sum.figures.bgp_flaps, Some(2));
    }

    #[test]
    fn sets_of_bounds_are_kept_once_and_not_without_end() {
        let mut sets = BoundSets::default();
        for first in 0..BoundSets::SETS_MAX {
            assert!(sets.shared(&[first as f64]).is_some());
        }
        assert!(sets.shared(&[0.0]).is_some(), "a known set is found when all places are taken");
        assert!(sets.shared(&[0.5]).is_none());
    }
}
