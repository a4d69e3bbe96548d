//! The data plane's figures: from the Prometheus text exposition (format 0.0.4) to messages with mergeable histograms.
//!
//! The text is the data plane's own, but it is not trusted: a line that is none is passed over, and there is a bound on
//! everything that grows.

use std::collections::{BTreeMap, HashMap};

use proto::fleet::limits::{BUCKETS_MAX, LABELS_MAX, SERIES_MAX};
use proto::v1::{Histogram, Label, MetricFamily, MetricKind, Metrics, Series, series};

/// When the data plane's process began, among its own metrics.
const STARTED: &str = "process_start_time_seconds";

/// Reads the text. Families stand in the text's order; series beyond the limit are counted.
pub fn parse(text: &str, taken_at_unix_ms: u64) -> Metrics {
    let mut reader = Reader::default();
    text.lines().for_each(|line| reader.line(line));
    let series_left_out = reader.left_out;
    let families = reader.into_families();
    let started = families.iter().find(|family| family.name == STARTED).and_then(first_number);
    // A float has room for milliseconds for a few hundred thousand years.
    let dataplane_started_at_unix_ms = started.map_or(0, |seconds| (seconds * 1000.0) as u64);
    Metrics { taken_at_unix_ms, dataplane_started_at_unix_ms, families, series_left_out }
}

fn first_number(family: &MetricFamily) -> Option<f64> {
    match family.series.first()?.value.as_ref()? {
        series::Value::Number(number) => Some(*number),
        series::Value::Histogram(_) => None,
    }
}

#[derive(Default)]
struct Reader {
    families: Vec<Family>,
    by_name: HashMap<String, usize>,
    series: usize,
    left_out: u64,
}

#[derive(Default)]
struct Family {
    message: MetricFamily,
    /// Histograms by their labels without `le`, while they are put together.
    histograms: BTreeMap<Vec<(String, String)>, Buckets>,
}

#[derive(Default)]
struct Buckets {
    /// Cumulative, as in the text.
    bounds: Vec<(f64, f64)>,
    total: f64,
    sum: f64,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            if let Some((name, help)) = help.split_once(' ') {
                self.family(name).message.help = help.to_owned();
            }
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            if let Some((name, kind)) = kind.split_once(' ') {
                self.family(name).message.kind = kind_of(kind).into();
            }
        } else if !line.starts_with('#')
            && let Some((name, labels, value)) = sample(line)
        {
            self.sample(name, labels, value);
        }
    }

    fn family(&mut self, name: &str) -> &mut Family {
        let place = *self.by_name.entry(name.to_owned()).or_insert_with(|| {
            let message = MetricFamily { name: name.to_owned(), ..MetricFamily::default() };
            self.families.push(Family { message, ..Family::default() });
            self.families.len() - 1
        });
        &mut self.families[place]
    }

    fn sample(&mut self, name: &str, labels: Vec<(String, String)>, value: f64) {
        for suffix in ["_bucket", "_sum", "_count"] {
            let of = name.strip_suffix(suffix).and_then(|base| self.by_name.get(base).copied());
            if let Some(place) =
                of.filter(|place| self.families[*place].message.kind() == MetricKind::Histogram)
            {
                return self.histogram_sample(place, suffix, labels, value);
            }
        }
        if self.take_room() {
            let labels = labels.into_iter().map(|(name, value)| Label { name, value }).collect();
            let value = Some(series::Value::Number(value));
            self.family(name).message.series.push(Series { labels, value });
        }
    }

    fn histogram_sample(
        &mut self,
        place: usize,
        suffix: &str,
        mut labels: Vec<(String, String)>,
        value: f64,
    ) {
        let bound = labels.iter().position(|(name, _)| name == "le").map(|at| labels.remove(at).1);
        if !self.families[place].histograms.contains_key(&labels) && !self.take_room() {
            return;
        }
        let buckets = self.families[place].histograms.entry(labels).or_default();
        match (suffix, bound.map(|bound| bound.parse::<f64>())) {
            ("_bucket", Some(Ok(bound))) if bound.is_finite() && buckets.bounds.len() < BUCKETS_MAX => {
                buckets.bounds.push((bound, value));
            }
            ("_sum", None) => buckets.sum = value,
            ("_count", None) => buckets.total = value,
            // The last bucket says what `_count` says.
            _ => {}
        }
    }

    /// False: there are as many series as there may be.
    fn take_room(&mut self) -> bool {
        let has_room = self.series < SERIES_MAX;
        self.series += usize::from(has_room);
        self.left_out += u64::from(!has_room);
        has_room
    }

    fn into_families(self) -> Vec<MetricFamily> {
        let families = self.families.into_iter().map(|family| {
            let mut message = family.message;
            message.series.extend(family.histograms.into_iter().map(|(labels, buckets)| Series {
                labels: labels.into_iter().map(|(name, value)| Label { name, value }).collect(),
                value: Some(series::Value::Histogram(buckets.into_histogram())),
            }));
            message
        });
        families.filter(|family| !family.series.is_empty()).collect()
    }
}

impl Buckets {
    /// From cumulative counts to one count for each bucket, the last for all above.
    fn into_histogram(mut self) -> Histogram {
        self.bounds.sort_by(|one, two| one.0.total_cmp(&two.0));
        let mut below = 0.0;
        let mut counts: Vec<u64> = Vec::with_capacity(self.bounds.len() + 1);
        for (_, cumulative) in &self.bounds {
            counts.push((cumulative - below).max(0.0) as u64);
            below = cumulative.max(below);
        }
        counts.push((self.total - below).max(0.0) as u64);
        Histogram { bounds: self.bounds.into_iter().map(|(bound, _)| bound).collect(), counts, sum: self.sum }
    }
}

fn kind_of(name: &str) -> MetricKind {
    match name {
        "counter" => MetricKind::Counter,
        "gauge" => MetricKind::Gauge,
        "histogram" => MetricKind::Histogram,
        _ => MetricKind::Unspecified,
    }
}

/// A name, its labels and its value.
type Sample<'a> = (&'a str, Vec<(String, String)>, f64);

/// `name{label="value",…} 1.5`, with an optional time behind it; none: the line is no sample.
fn sample(line: &str) -> Option<Sample<'_>> {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then_some((name, labels, value))
}

/// Up to the closing brace, and what stands behind it.
fn labels(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let (value, rest) = quoted(rest)?;
        if labels.len() >= LABELS_MAX {
            return None;
        }
        labels.push((name.trim().to_owned(), value));
        text = rest;
    }
}

/// Up to the closing quote, and what stands behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = r#"# HELP millrace_requests_total Ended requests by route.
# TYPE millrace_requests_total counter
millrace_requests_total{route="chat",code="200"} 7
millrace_requests_total{route="a\"b\\c\nd",code="500"} 1
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1700000000.25
# TYPE t_seconds histogram
t_seconds_bucket{route="x",le="0.1"} 2
t_seconds_bucket{route="x",le="0.5"} 5
t_seconds_bucket{route="x",le="+Inf"} 6
t_seconds_sum{route="x"} 1.75
t_seconds_count{route="x"} 6
# a comment
rubbish
rubbish{
"#;

    #[test]
    fn reads_counters_gauges_and_histograms() {
        let metrics = parse(TEXT, 5);
        assert_eq!((metrics.taken_at_unix_ms, metrics.dataplane_started_at_unix_ms), (5, 1_700_000_000_250));
        let names: Vec<&str> = metrics.families.iter().map(|family| family.name.as_str()).collect();
        assert_eq!(names, ["millrace_requests_total", "process_start_time_seconds", "t_seconds"]);
        let requests = &metrics.families[0];
        assert_eq!(
            (requests.kind(), requests.help.as_str()),
            (MetricKind::Counter, "Ended requests by route.")
        );
        assert_eq!(requests.series[0].value, Some(series::Value::Number(7.0)));
        assert_eq!(requests.series[1].labels[0].value, "a\"b\\c\nd");
        let Some(series::Value::Histogram(times)) = &metrics.families[2].series[0].value else { panic!() };
        assert_eq!((times.bounds.as_slice(), times.counts.as_slice()), (&[0.1, 0.5][..], &[2, 3, 1][..]));
        assert_eq!(times.sum, 1.75);
        assert_eq!(metrics.families[2].series[0].labels.len(), 1, "le is no label of the series");
    }

    #[test]
    fn counts_what_it_leaves_out() {
        let line = |number: usize| format!("m{{n=\"{number}\"}} 1\n");
        let text: String = (0..SERIES_MAX + 3).map(line).collect();
        let metrics = parse(&text, 0);
        assert_eq!((metrics.families[0].series.len(), metrics.series_left_out), (SERIES_MAX, 3));
        let many: String = (0..=LABELS_MAX).map(|number| format!("l{number}=\"\",")).collect();
        assert!(parse(&format!("m{{{many}}} 1\n"), 0).families.is_empty());
    }

    #[test]
    fn a_histogram_has_a_bound_on_its_buckets() {
        let bucket = |number: usize| format!("h_bucket{{le=\"{number}\"}} {number}\n");
        let text: String = (0..BUCKETS_MAX + 9).map(bucket).collect();
        let metrics = parse(&format!("# TYPE h histogram\n{text}h_count 500\n"), 0);
        let Some(series::Value::Histogram(times)) = &metrics.families[0].series[0].value else { panic!() };
        assert_eq!((times.bounds.len(), times.counts.len()), (BUCKETS_MAX, BUCKETS_MAX + 1));
        assert_eq!(times.counts.iter().sum::<u64>(), 500);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([a-z_]{0,5}(\\{[a-z=\",\\\\]{0,12}\\}?)? ?[0-9.+a-zA-Z]{0,6}\n|# TYPE [a-z]{1,3} histogram\n|\\PC{0,20}\n){0,12}") {
            let _ = parse(&text, 0);
        }
    }
}
