//! One stretch of time as it is shown, of one node or of many together. What adds up (connections, requests) is summed
//! over nodes, what does not (processor, memory) is the mean of all their reports, and percentiles are read from the sum
//! of all histograms.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::history::Dated;
use super::point::{Point, Times};

/// Figures of one stretch, of so many nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    /// Nodes that reported.
    pub(crate) nodes: u64,
    /// Open client connections.
    pub(crate) connections: Option<f64>,
    /// Requests in flight.
    pub(crate) requests_in_flight: Option<f64>,
    /// Ended requests.
    pub(crate) requests_per_s: Option<f64>,
    /// Bytes that the hosts' devices received.
    pub(crate) received_bytes_per_s: Option<f64>,
    /// Bytes that the hosts' devices sent.
    pub(crate) sent_bytes_per_s: Option<f64>,
    /// Everything else is read from the sum.
    sum: Point,
}

/// Durations of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Durations {
    /// How many there were.
    pub(crate) count: u64,
    /// Their mean.
    pub(crate) mean_ms: f64,
    /// Half of them were shorter.
    pub(crate) p50_ms: f64,
    /// 95 of 100 were shorter.
    pub(crate) p95_ms: f64,
    /// 99 of 100 were shorter.
    pub(crate) p99_ms: f64,
}

impl Totals {
    /// Of one node.
    pub(crate) fn of(point: Point) -> Self {
        let figures = &point.figures;
        Totals {
            nodes: 1,
            connections: figures.mean_connections(),
            requests_in_flight: figures.mean_in_flight(),
            requests_per_s: figures.requests_per_s(),
            received_bytes_per_s: figures.received_bytes_per_s(),
            sent_bytes_per_s: figures.sent_bytes_per_s(),
            sum: point,
        }
    }

    /// Together with other nodes, of the same stretch.
    pub(crate) fn add(&mut self, other: &Totals) {
        self.nodes += other.nodes;
        let sums = [
            (&mut self.connections, other.connections),
            (&mut self.requests_in_flight, other.requests_in_flight),
            (&mut self.requests_per_s, other.requests_per_s),
            (&mut self.received_bytes_per_s, other.received_bytes_per_s),
            (&mut self.sent_bytes_per_s, other.sent_bytes_per_s),
        ];
        for (sum, more) in sums {
            *sum = sum.map_or(more, |sum| Some(sum + more.unwrap_or(0.0)));
        }
        self.sum.add(&other.sum);
    }

    /// Means, shares and distributions are read from here.
    pub(crate) fn sum(&self) -> &Point {
        &self.sum
    }

    /// One of the distributions; none where nothing was counted.
    pub(crate) fn durations(&self, times: Times) -> Option<Durations> {
        const MS_PER_S: f64 = 1_000.0;
        let histogram = self.sum.times(times)?;
        let percentile_ms = |percent| histogram.percentile(percent).map(|seconds| seconds * MS_PER_S);
        let count = histogram.count();
        Some(Durations {
            count,
            mean_ms: histogram.sum() / count as f64 * MS_PER_S,
            p50_ms: percentile_ms(50.0)?,
            p95_ms: percentile_ms(95.0)?,
            p99_ms: percentile_ms(99.0)?,
        })
    }
}

/// Several nodes' pasts as one, by when each stretch began.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    points: BTreeMap<u64, Totals>,
}

impl Timeline {
    /// Adds a stretch of a node's past.
    pub(crate) fn add(&mut self, Dated { begin_ms, point }: Dated) {
        let totals = Totals::of(point);
        match self.points.entry(begin_ms) {
            Entry::Occupied(mut sum) => sum.get_mut().add(&totals),
            Entry::Vacant(place) => _ = place.insert(totals),
        }
    }

    /// The stretches, oldest first, each with when it began.
    pub(crate) fn into_points(self) -> impl Iterator<Item = (u64, Totals)> {
        self.points.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Histogram;
    use super::super::point::Figures;
    use super::*;

    fn node(connections: u64, samples: u32, upstream: &[u64]) -> Totals {
        let histogram = Histogram::new([0.1, 1.0].into(), upstream.into(), 0.0).ok();
        let figures =
            Figures { connections, samples, host_samples: samples, cpu_busy: 0.5, ..Figures::default() };
        Totals::of(Point { figures, times: [None, None, histogram, None] })
    }

    #[test]
    fn what_adds_up_is_summed_and_what_does_not_is_averaged_over_reports() {
        // One node reported six times, the other once.
        let mut region = node(60, 6, &[0, 0, 0]);
        region.add(&node(5, 1, &[0, 0, 0]));
        assert_eq!((region.nodes, region.connections), (2, Some(15.0)));
        assert_eq!(region.sum().figures.cpu_percent(), Some(100.0 / 7.0));
        assert_eq!(region.requests_per_s, None, "nobody reported any");
    }

    #[test]
    fn percentiles_of_a_region_come_from_its_merged_histogram() {
        let mut region = node(0, 1, &[990, 0, 0]);
        region.add(&node(0, 1, &[0, 10, 0]));
        let durations = region.durations(Times::Upstream).unwrap();
        assert_eq!(durations.count, 1_000);
        assert!(durations.p95_ms < 100.0, "{durations:?}");
        assert_eq!(region.durations(Times::Proxy), None);
    }

    #[test]
    fn pasts_are_laid_over_each_other_by_time() {
        let mut timeline = Timeline::default();
        for begin_ms in [0, 10, 10, 20] {
            timeline.add(Dated { begin_ms, point: Point::default() });
        }
        let found: Vec<(u64, u64)> =
            timeline.into_points().map(|(begin, totals)| (begin, totals.nodes)).collect();
        assert_eq!(found, [(0, 1), (10, 2), (20, 1)]);
    }
}
