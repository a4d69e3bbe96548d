//! The Prometheus text format, 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>), of many nodes at
//! once: all series of a metric stand together, whichever node they came from, with the node's own labels added. It
//! knows no metric by name.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use proto::v1::{self, MetricFamily, MetricKind, Series, series::Value};

/// A label that is added to every series of a node.
pub(crate) type Label<'a> = (&'static str, &'a str);

/// Metrics by name, each with its samples so far.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    families: BTreeMap<String, Family>,
}

/// One metric, as far as it is written.
#[derive(Debug)]
pub(super) struct Family {
    kind: MetricKind,
    text: String,
}

impl Exposition {
    /// Adds a number of the master's own.
    pub(crate) fn number(
        &mut self,
        (name, kind, help): (&str, MetricKind, &str),
        labels: &[Label<'_>],
        number: f64,
    ) {
        if let Some(family) = self.family(name, kind, help) {
            family.sample(name, "", labels, &[], None, number);
        }
    }

    /// Whether there is a metric of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.families.contains_key(name)
    }

    /// The text, a piece for each metric, by name.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = String> {
        self.families.into_values().map(|family| family.text)
    }

    fn family(&mut self, name: &str, kind: MetricKind, help: &str) -> Option<&mut Family> {
        if !self.families.contains_key(name) {
            self.families.insert(name.to_owned(), Family::new(name, kind, help));
        }
        self.families.get_mut(name).filter(|family| family.kind == kind)
    }
}

impl Family {
    /// Its head.
    pub(super) fn new(name: &str, kind: MetricKind, help: &str) -> Self {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        Self { kind, text: format!("# HELP {name} {help}\n# TYPE {name} {}\n", word(kind)) }
    }

    /// Adds what a node reports. What is of another kind is left out: a metric has one.
    pub(super) fn reported(&mut self, reported: &MetricFamily, node: &[Label<'_>]) {
        if reported.kind() == self.kind {
            reported.series.iter().for_each(|series| self.series(&reported.name, series, node));
        }
    }

    /// How long its text is by now.
    pub(super) fn length(&self) -> usize {
        self.text.len()
    }

    /// Its text so far; what comes is behind it.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    fn series(&mut self, name: &str, series: &Series, node: &[Label<'_>]) {
        match &series.value {
            Some(Value::Number(number)) => self.sample(name, "", node, &series.labels, None, *number),
            Some(Value::Histogram(histogram)) => self.histogram(name, series, histogram, node),
            None => {}
        }
    }

    fn histogram(&mut self, name: &str, series: &Series, histogram: &v1::Histogram, node: &[Label<'_>]) {
        let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
        let mut below = 0_u64;
        for (bound, count) in bounds.zip(&histogram.counts) {
            below = below.saturating_add(*count);
            self.sample(name, "_bucket", node, &series.labels, Some(bound), below as f64);
        }
        self.sample(name, "_sum", node, &series.labels, None, histogram.sum);
        self.sample(name, "_count", node, &series.labels, None, below as f64);
    }

    fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        node: &[Label<'_>],
        labels: &[v1::Label],
        below: Option<f64>,
        number: f64,
    ) {
        let text = &mut self.text;
        text.push_str(name);
        text.push_str(suffix);
        let mut before = '{';
        for (name, value) in node {
            put_label(text, &mut before, "", name, value);
        }
        for label in labels {
            // As Prometheus does it where a scraped label meets one that is added.
            let is_taken = node.iter().any(|(name, _)| *name == label.name);
            put_label(text, &mut before, if is_taken { "exported_" } else { "" }, &label.name, &label.value);
        }
        if let Some(bound) = below {
            put_label(text, &mut before, "", "le", &Number(bound).to_string());
        }
        let end = if before == ',' { "} " } else { " " };
        put(text, format_args!("{end}{}\n", Number(number)));
    }
}

fn put_label(text: &mut String, before: &mut char, prefix: &str, name: &str, value: &str) {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    put(text, format_args!("{before}{prefix}{name}=\"{value}\""));
    *before = ',';
}

fn put(text: &mut String, arguments: fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = text.write_fmt(arguments);
}

fn word(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Unspecified => "untyped",
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

/// A number with Prometheus' names for what has no digits.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            number if number == f64::INFINITY => f.write_str("+Inf"),
            number if number == f64::NEG_INFINITY => f.write_str("-Inf"),
            number => write!(f, "{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{counts, family, series};
    use super::*;

    fn text(reported: &[(&str, MetricFamily)]) -> String {
        let (_, first) = &reported[0];
        let mut family = Family::new(&first.name, first.kind(), &first.help);
        reported.iter().for_each(|(node, reported)| family.reported(reported, &[("node", node)]));
        family.take()
    }

    #[test]
    fn labels_are_quoted_and_the_masters_own_metrics_stand_by_name() {
        let series = vec![series(&[("route", "a\"b\\c\n")], Value::Number(1.0))];
        let reported = family("m_total", MetricKind::Counter, series);
        let expected =
            "# HELP m_total help\n# TYPE m_total counter\nm_total{node=\"n1\",route=\"a\\\"b\\\\c\\n\"} 1\n";
        assert_eq!(text(&[("n1", reported)]), expected);
        let mut exposition = Exposition::default();
        exposition.number(("b", MetricKind::Gauge, "x"), &[("node", "n")], 2.0);
        exposition.number(("a", MetricKind::Gauge, "y"), &[], 0.5);
        let text: String = exposition.into_pieces().collect();
        assert_eq!(text, "# HELP a y\n# TYPE a gauge\na 0.5\n# HELP b x\n# TYPE b gauge\nb{node=\"n\"} 2\n");
    }

    #[test]
    fn buckets_are_cumulative_and_end_in_the_count() {
        let reported = family("t", MetricKind::Histogram, vec![series(&[], counts(&[1, 0, 2]))]);
        let text = text(&[("n", reported)]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let expected = [
            "t_bucket{node=\"n\",le=\"1\"} 1",
            "t_bucket{node=\"n\",le=\"2\"} 1",
            "t_bucket{node=\"n\",le=\"+Inf\"} 3",
            "t_sum{node=\"n\"} 1",
            "t_count{node=\"n\"} 3",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_nodes_own_label_does_not_hide_the_masters() {
        let reported = family("m", MetricKind::Gauge, vec![series(&[("node", "liar")], Value::Number(1.0))]);
        assert!(text(&[("n", reported)]).ends_with("m{node=\"n\",exported_node=\"liar\"} 1\n"));
    }

    #[test]
    fn a_metric_has_one_kind() {
        let of = |kind| family("m", kind, vec![series(&[], Value::Number(1.0))]);
        let text = text(&[("a", of(MetricKind::Gauge)), ("b", of(MetricKind::Counter))]);
        assert!(text.contains("gauge") && !text.contains("counter") && !text.contains("\"b\""), "{text}");
    }
}
