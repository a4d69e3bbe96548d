//! A data plane's report: checked once when it arrives, and compared with the one before it, as its counters and
//! histograms only grow. A report that was lost loses resolution, not counts.
//!
//! What a node writes ends up in other people's scrapes: names and labels that Prometheus would not take are left out.

use prost::Message as _;
use proto::fleet::limits::{BUCKETS_MAX, LABELS_MAX, SERIES_MAX};
use proto::v1::{self, MetricFamily, Metrics, Series, series::Value};

use super::histogram::Histogram;
use super::point::{BoundSets, Figures, Point, Times};

/// Longest name of a metric or a label, and longest value of a label: the data plane's names are bounded the same way.
pub(crate) const NAME_BYTES_MAX: usize = 256;

/// Longest help text.
pub(crate) const HELP_BYTES_MAX: usize = 512;

/// Families of which history is kept, beside the distributions of [`Times`].
mod family {
    pub(super) const CONNECTIONS: &str = "millrace_connections";
    pub(super) const IN_FLIGHT: &str = "millrace_requests_in_flight";
    pub(super) const REQUESTS: &str = "millrace_requests_total";
    pub(super) const FAULTS: &str = "millrace_faults_total";
    /// From here on: of data planes that have the feature. Without it there is no reading, and no alert.
    pub(super) const WEBSOCKETS: &str = "millrace_websocket_connections_total";
    pub(super) const WEBSOCKET_RECONNECTS: &str = "millrace_websocket_reconnects_total";
    pub(super) const BGP_FLAPS: &str = "millrace_bgp_flaps_total";
    pub(super) const CERTIFICATE_EXPIRY: &str = "millrace_certificate_not_after_seconds";

    /// All of them.
    pub(super) const ALL: [&str; 8] = [
        CONNECTIONS,
        IN_FLIGHT,
        REQUESTS,
        FAULTS,
        WEBSOCKETS,
        WEBSOCKET_RECONNECTS,
        BGP_FLAPS,
        CERTIFICATE_EXPIRY,
    ];
}

/// Whether history and alerts are made of it; the rest is only shown.
pub(super) fn is_watched(name: &str) -> bool {
    family::ALL.contains(&name) || Times::ALL.iter().any(|times| times.metric() == name)
}

/// What cannot be shown is left out, and what finds no room in so many bytes; both are counted in `series_left_out`.
pub(crate) fn checked(mut report: Metrics, bytes_max: usize) -> Metrics {
    let (mut room, mut bytes) = (SERIES_MAX, bytes_max);
    let mut left_out = 0;
    // Where not all can be kept, that goes first which only people look at.
    report.families.sort_by_key(|family| !is_watched(&family.name));
    for family in &mut report.families {
        let is_named = is_name(&family.name, true);
        family.series.retain(|series| {
            let length = series.encoded_len();
            let is_kept = is_named && room > 0 && length <= bytes && is_showable(series);
            if is_kept {
                (room, bytes) = (room - 1, bytes - length);
            }
            left_out += u64::from(!is_kept);
            is_kept
        });
        family.help.truncate(family.help.floor_char_boundary(HELP_BYTES_MAX));
    }
    report.families.retain(|family| !family.series.is_empty());
    report.series_left_out = report.series_left_out.saturating_add(left_out);
    report
}

/// What happened between two reports of one node, and how it is now. Without an earlier report there is nothing to
/// compare with, and the counters are no news.
pub(crate) fn difference(
    earlier: Option<&Metrics>,
    report: &Metrics,
    covered_ms: u64,
    sets: &mut BoundSets,
) -> Point {
    let mut figures = Figures {
        samples: 1,
        connections: rounded(level(report, family::CONNECTIONS).unwrap_or(0.0)),
        in_flight: rounded(level(report, family::IN_FLIGHT).unwrap_or(0.0)),
        ..Figures::default()
    };
    let Some(earlier) = earlier else { return Point { figures, ..Point::default() } };
    let growth = Growth { earlier, report };
    figures.covered_ms = covered_ms;
    figures.requests = growth.of(family::REQUESTS, |_| true).unwrap_or(0);
    figures.failed =
        growth.of(family::FAULTS, |series| label(series, "blame") != Some("client")).unwrap_or(0);
    figures.websocket_opened = growth.of(family::WEBSOCKETS, |_| true);
    figures.websocket_reconnects = growth.of(family::WEBSOCKET_RECONNECTS, |_| true);
    figures.bgp_flaps = growth.of(family::BGP_FLAPS, |_| true);
    Point { figures, times: Times::ALL.map(|times| growth.of_times(times.metric(), sets)) }
}

/// When the node's first certificate ends, in seconds since the Unix epoch.
pub(crate) fn certificate_not_after_s(report: &Metrics) -> Option<f64> {
    let family = find(report, family::CERTIFICATE_EXPIRY)?;
    family.series.iter().filter_map(number).reduce(f64::min)
}

/// Two reports of one node.
struct Growth<'a> {
    earlier: &'a Metrics,
    report: &'a Metrics,
}

impl<'a> Growth<'a> {
    /// How much the series of a counter grew together; none where the node has no such counter.
    fn of(&self, name: &str, is_meant: impl Fn(&Series) -> bool) -> Option<u64> {
        let pairs = self.pairs(name)?.filter(|(series, _)| is_meant(series));
        let grown = pairs.map(|(series, before)| {
            let now = number(series).unwrap_or(0.0);
            let before = before.and_then(number).filter(|before| *before <= now);
            now - before.unwrap_or(0.0)
        });
        Some(rounded(grown.sum()))
    }

    /// How much the series of a histogram grew together; none where the node has none of known bounds.
    fn of_times(&self, name: &str, sets: &mut BoundSets) -> Option<Histogram> {
        let mut sum: Option<Histogram> = None;
        for (series, before) in self.pairs(name)? {
            let Some(now) = histogram(series, sets) else { continue };
            let grown = match before.and_then(|before| histogram(before, sets)) {
                Some(before) => now.since(&before),
                None => now,
            };
            match &mut sum {
                Some(sum) => sum.merge(&grown),
                None => sum = Some(grown),
            }
        }
        sum
    }

    /// Each series with the same one of before. A data plane that was started anew counts from zero: it has no before.
    fn pairs(&self, name: &str) -> Option<impl Iterator<Item = (&'a Series, Option<&'a Series>)>> {
        let family = find(self.report, name)?;
        let is_same_process =
            self.earlier.dataplane_started_at_unix_ms == self.report.dataplane_started_at_unix_ms;
        let before: &[Series] = match find(self.earlier, name) {
            Some(before) if is_same_process => &before.series,
            Some(_) | None => &[],
        };
        Some(
            family
                .series
                .iter()
                .enumerate()
                .map(move |(place, series)| (series, same(before, place, series))),
        )
    }
}

/// The series with the same labels: nearly always at the same place.
fn same<'a>(before: &'a [Series], place: usize, series: &Series) -> Option<&'a Series> {
    let is_same = |other: &&Series| other.labels == series.labels;
    before.get(place).filter(is_same).or_else(|| before.iter().find(is_same))
}

fn find<'a>(report: &'a Metrics, name: &str) -> Option<&'a MetricFamily> {
    report.families.iter().find(|family| family.name == name)
}

/// The sum of a gauge's series.
fn level(report: &Metrics, name: &str) -> Option<f64> {
    Some(find(report, name)?.series.iter().filter_map(number).sum())
}

fn number(series: &Series) -> Option<f64> {
    match series.value.as_ref()? {
        Value::Number(number) => Some(*number).filter(|number| number.is_finite()),
        Value::Histogram(_) => None,
    }
}

fn histogram(series: &Series, sets: &mut BoundSets) -> Option<Histogram> {
    let Value::Histogram(sent) = series.value.as_ref()? else { return None };
    let bounds = sets.shared(&sent.bounds)?;
    Histogram::new(bounds, sent.counts.clone(), sent.sum).ok()
}

fn label<'a>(series: &'a Series, name: &str) -> Option<&'a str> {
    series.labels.iter().find(|label| label.name == name).map(|label| label.value.as_str())
}

fn rounded(number: f64) -> u64 {
    // A cast saturates, and takes what is no number as 0.
    number.round() as u64
}

fn is_showable(series: &Series) -> bool {
    let are_labels = series.labels.len() <= LABELS_MAX
        && series.labels.iter().all(|label| {
            is_name(&label.name, false) && label.name != "le" && label.value.len() <= NAME_BYTES_MAX
        });
    are_labels && series.value.as_ref().is_some_and(is_value)
}

fn is_value(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::Histogram(v1::Histogram { bounds, counts, sum }) => {
            counts.len() <= BUCKETS_MAX
                && sum.is_finite()
                && Histogram::new(bounds[..].into(), counts.clone(), *sum).is_ok()
        }
    }
}

/// As Prometheus has it: letters, digits and underscores, the first no digit; colons in metrics only.
fn is_name(name: &str, may_have_colons: bool) -> bool {
    let is_part =
        |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (may_have_colons && byte == b':');
    name.len() <= NAME_BYTES_MAX
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
        && name.bytes().all(is_part)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn series(labels: &[(&str, &str)], value: Value) -> Series {
        let label = |(name, value): &(&str, &str)| v1::Label { name: (*name).into(), value: (*value).into() };
        Series { labels: labels.iter().map(label).collect(), value: Some(value) }
    }

    pub(crate) fn family(name: &str, kind: v1::MetricKind, series: Vec<Series>) -> MetricFamily {
        MetricFamily { name: name.into(), help: "help".into(), kind: kind.into(), series }
    }

    pub(crate) fn counts(counts: &[u64]) -> Value {
        let bounds = (1..counts.len()).map(|bound| bound as f64).collect();
        Value::Histogram(v1::Histogram { bounds, counts: counts.into(), sum: 1.0 })
    }

    fn report(started_ms: u64, requests: &[(&str, f64)], upstream: &[(&str, &[u64])]) -> Metrics {
        let requests = requests
            .iter()
            .map(|(route, number)| series(&[("route", route)], Value::Number(*number)))
            .collect();
        let upstream =
            upstream.iter().map(|(route, times)| series(&[("route", route)], counts(times))).collect();
        Metrics {
            dataplane_started_at_unix_ms: started_ms,
            families: vec![
                family(family::REQUESTS, v1::MetricKind::Counter, requests),
                family(Times::Upstream.metric(), v1::MetricKind::Histogram, upstream),
            ],
            ..Metrics::default()
        }
    }

    fn growth(earlier: &Metrics, later: &Metrics) -> (u64, Vec<u64>) {
        let point = difference(Some(earlier), later, 10_000, &mut BoundSets::default());
        let upstream = point.times(Times::Upstream).map(|histogram| histogram.counts().to_vec());
        (point.figures.requests, upstream.unwrap_or_default())
    }

    #[test]
    fn growth_is_found_by_labels_and_new_series_count_whole() {
        let earlier = report(1, &[("a", 10.0), ("b", 5.0)], &[("a", &[1, 1]), ("b", &[0, 4])]);
        let later = report(1, &[("new", 3.0), ("b", 6.0), ("a", 10.0)], &[("b", &[0, 6]), ("a", &[2, 1])]);
        assert_eq!(growth(&earlier, &later), (4, vec![1, 2]));
    }

    #[test]
    fn a_process_that_began_anew_counts_from_zero() {
        let earlier = report(1, &[("a", 10.0)], &[("a", &[5, 5])]);
        let later = report(2, &[("a", 12.0)], &[("a", &[6, 6])]);
        assert_eq!(growth(&earlier, &later), (12, vec![6, 6]));
    }

    #[test]
    fn the_first_report_is_no_news() {
        let first = report(1, &[("a", 1e9)], &[("a", &[5, 5])]);
        let point = difference(None, &first, 0, &mut BoundSets::default());
        assert_eq!((point.figures.requests, point.figures.samples), (0, 1));
        assert_eq!(point.times(Times::Upstream), None);
    }

    #[test]
    fn faults_of_clients_do_not_count_as_failures_of_the_fleet() {
        let faults = |client: f64, upstream: f64| Metrics {
            families: vec![family(
                family::FAULTS,
                v1::MetricKind::Counter,
                vec![
                    series(&[("blame", "client")], Value::Number(client)),
                    series(&[("blame", "upstream")], Value::Number(upstream)),
                ],
            )],
            ..Metrics::default()
        };
        let point = difference(Some(&faults(0.0, 0.0)), &faults(100.0, 2.0), 1, &mut BoundSets::default());
        assert_eq!(point.figures.failed, 2);
    }

    #[test]
    fn what_prometheus_would_not_take_is_left_out_and_counted() {
        let good = series(&[("route", "any\"thing\n")], Value::Number(1.0));
        let bad = [
            series(&[("le", "1")], Value::Number(1.0)),
            series(&[("a b", "1")], Value::Number(1.0)),
            series(&[("route", &"x".repeat(NAME_BYTES_MAX + 1))], Value::Number(1.0)),
            series(&[("a", "1"); LABELS_MAX + 1], Value::Number(1.0)),
            series(&[], Value::Histogram(v1::Histogram { bounds: vec![1.0], counts: vec![1], sum: 0.0 })),
            series(&[], counts(&[0; BUCKETS_MAX + 1])),
            Series::default(),
        ];
        let bad_count = bad.len() as u64;
        let sent = Metrics {
            families: vec![
                family("good", v1::MetricKind::Gauge, [vec![good.clone()], bad.into()].concat()),
                family("bad\nname 1", v1::MetricKind::Gauge, vec![good.clone()]),
            ],
            ..Metrics::default()
        };
        let kept = checked(sent, usize::MAX);
        assert_eq!(kept.families.len(), 1);
        assert_eq!(kept.families[0].series, [good]);
        assert_eq!(kept.series_left_out, bad_count + 1);
    }

    #[test]
    fn a_report_has_so_many_series_and_not_more() {
        let many = vec![series(&[], Value::Number(1.0)); SERIES_MAX + 5];
        let families = vec![family("m", v1::MetricKind::Gauge, many)];
        let kept = checked(Metrics { families, ..Metrics::default() }, usize::MAX);
        assert_eq!((kept.families[0].series.len(), kept.series_left_out), (SERIES_MAX, 5));
    }

    #[test]
    fn where_room_is_short_what_alerts_are_made_of_stays() {
        let series = |name: &str| vec![series(&[("route", name)], Value::Number(1.0)); 4];
        let sent = Metrics {
            families: vec![
                family("for_people", v1::MetricKind::Gauge, series("a")),
                family(family::REQUESTS, v1::MetricKind::Counter, series("b")),
            ],
            ..Metrics::default()
        };
        let each = sent.families[0].series[0].encoded_len();
        let kept = checked(sent, 5 * each + each / 2);
        let counts: Vec<(&str, usize)> =
            kept.families.iter().map(|family| (family.name.as_str(), family.series.len())).collect();
        assert_eq!(counts, [(family::REQUESTS, 4), ("for_people", 1)]);
        assert_eq!(kept.series_left_out, 3);
    }
}
