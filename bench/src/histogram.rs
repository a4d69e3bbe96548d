//! Histograms of nanoseconds with three significant digits, that can be sent from one process to another and merged.
//! Everything that is measured as a time goes through here; nothing is averaged before.

use hdrhistogram::Histogram as Hdr;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::record::Percentiles;

/// Values below are told apart only from zero: less than a clock reading costs.
const LEAST_NS: u64 = 16;

/// One hour; longer values count as this.
const GREATEST_NS: u64 = 3_600_000_000_000;

/// Nanoseconds, by how often they came.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Hdr<u64>);

impl Default for Histogram {
    fn default() -> Self {
        let hdr = Hdr::new_with_bounds(LEAST_NS, GREATEST_NS, 3);
        Self(hdr.expect("the bounds are constants that fit each other"))
    }
}

impl Histogram {
    pub(crate) fn record_ns(&mut self, value: u64) {
        self.0.saturating_record(value);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    /// In microseconds; `None` if nothing was recorded.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile: f64| us(self.0.value_at_quantile(quantile).min(self.0.max()));
        (!self.0.is_empty()).then(|| Percentiles {
            count: self.0.len(),
            min: us(self.0.min()),
            mean: self.0.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(self.0.max()),
        })
    }
}

/// As pairs of value and count: few of the many thousand slots are ever used.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let recorded = self.0.iter_recorded();
        serializer
            .collect_seq(recorded.map(|slot| (slot.value_iterated_to(), slot.count_since_last_iteration())))
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut histogram = Self::default();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            histogram.0.record_n(value.min(GREATEST_NS), count).map_err(D::Error::custom)?;
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_what_another_process_sent_is_as_recording_it_here() {
        let (mut all, mut here, mut there) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for value in 0..10_000_u64 {
            let ns = value * value;
            all.record_ns(ns);
            if value % 3 == 0 { here.record_ns(ns) } else { there.record_ns(ns) }
        }
        let sent = serde_json::to_string(&there).unwrap();
        here.merge(&serde_json::from_str(&sent).unwrap());
        let (all, merged) = (all.percentiles().unwrap(), here.percentiles().unwrap());
        assert_eq!((all.count, all.p50, all.p999), (merged.count, merged.p50, merged.p999));
        assert!((all.p50 - 25_000.0).abs() < 50.0, "{all:?}");
    }

    #[test]
    fn nothing_recorded_has_no_percentiles_and_too_much_counts_as_an_hour() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentiles(), None);
        histogram.record_ns(u64::MAX);
        assert_eq!(histogram.percentiles().unwrap().count, 1);
    }
}
