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

#[derive(Debug)]
struct Family {
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

    /// Adds a node's metric. One that another node reports as another kind is left out: a metric has one kind.
    pub(crate) fn reported(&mut self, reported: &MetricFamily, node: &[Label<'_>]) {
        let Some(family) = self.family(&reported.name, reported.kind(), &reported.help) else { return };
        for series in &reported.series {
            family.series(&reported.name, series, node);
        }
    }

    /// The text, a piece for each metric, by name.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = String> {
        self.families.into_values().map(|family| family.text)
    }

    fn family(&mut self, name: &str, kind: MetricKind, help: &str) -> Option<&mut Family> {
        if !self.families.contains_key(name) {
            let help = help.replace('\\', "\\\\").replace('\n', "\\n");
            let text = format!("# HELP {name} {help}\n# TYPE {name} {}\n", word(kind));
            self.families.insert(name.to_owned(), Family { kind, text });
        }
        self.families.get_mut(name).filter(|family| family.kind == kind)
    }
}

impl Family {
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

    fn text(exposition: Exposition) -> String {
        exposition.into_pieces().collect()
    }

    #[test]
    fn series_of_all_nodes_stand_together_with_their_labels() {
        let mut exposition = Exposition::default();
        let reported = |number| {
            family(
                "m_total",
                MetricKind::Counter,
                vec![series(&[("route", "a\"b\\c\n")], Value::Number(number))],
            )
        };
        exposition.reported(&reported(1.0), &[("node", "n1")]);
        exposition.number(("a", MetricKind::Gauge, "x"), &[], 0.5);
        exposition.reported(&reported(2.0), &[("node", "n2")]);
        let expected = "# HELP a x\n# TYPE a gauge\na 0.5\n# HELP m_total help\n# TYPE m_total counter\n\
            m_total{node=\"n1\",route=\"a\\\"b\\\\c\\n\"} 1\nm_total{node=\"n2\",route=\"a\\\"b\\\\c\\n\"} 2\n";
        assert_eq!(text(exposition), expected);
    }

    #[test]
    fn buckets_are_cumulative_and_end_in_the_count() {
        let mut exposition = Exposition::default();
        let reported = family("t", MetricKind::Histogram, vec![series(&[], counts(&[1, 0, 2]))]);
        exposition.reported(&reported, &[("node", "n")]);
        let lines: Vec<String> = text(exposition).lines().skip(2).map(str::to_owned).collect();
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
        let mut exposition = Exposition::default();
        let reported = family("m", MetricKind::Gauge, vec![series(&[("node", "liar")], Value::Number(1.0))]);
        exposition.reported(&reported, &[("node", "n")]);
        assert!(text(exposition).ends_with("m{node=\"n\",exported_node=\"liar\"} 1\n"));
    }

    #[test]
    fn a_metric_has_one_kind() {
        let mut exposition = Exposition::default();
        for (kind, node) in [(MetricKind::Gauge, "a"), (MetricKind::Counter, "b")] {
            exposition.reported(&family("m", kind, vec![series(&[], Value::Number(1.0))]), &[("node", node)]);
        }
        let text = text(exposition);
        assert!(text.contains("gauge") && !text.contains("counter") && !text.contains("\"b\""), "{text}");
    }
}
