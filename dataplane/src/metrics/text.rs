//! Writes the Prometheus text exposition, format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>). It knows no metric by name.

use std::fmt::{self, Write as _};

use dataplane_core::stats::Histogram;

use super::Label;
use super::names::{Kind, Metric};

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Text {
    out: String,
}

/// A metric whose samples are being written. All samples of a metric stand together.
#[derive(Debug)]
pub(super) struct Family<'a> {
    name: &'static str,
    out: &'a mut String,
}

impl Text {
    /// Begins a metric.
    pub(super) fn family(&mut self, metric: &Metric) -> Family<'_> {
        let Metric { name, kind, help } = *metric;
        debug_assert!(kind != Kind::Counter || name.ends_with("_total"), "{name} is a counter");
        push(&mut self.out, format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str()));
        Family { name, out: &mut self.out }
    }

    /// The whole text.
    pub(super) fn into_string(self) -> String {
        self.out
    }
}

impl Family<'_> {
    /// A whole number.
    pub(super) fn sample(&mut self, labels: &[Label<'_>], value: u64) {
        self.line("", labels, None, format_args!("{value}"));
    }

    /// A time, given in nanoseconds.
    pub(super) fn seconds(&mut self, labels: &[Label<'_>], value_ns: u64) {
        self.line("", labels, None, format_args!("{}", Seconds(value_ns)));
    }

    /// A histogram: cumulative buckets, then the sum and the count.
    pub(super) fn histogram(&mut self, labels: &[Label<'_>], histogram: &Histogram) {
        let counts = histogram.counts();
        let mut cumulative = 0;
        for (bound, count) in histogram.bounds_ns().iter().zip(counts) {
            cumulative += count;
            let bound = Seconds(*bound).to_string();
            self.line("_bucket", labels, Some(&bound), format_args!("{cumulative}"));
        }
        // The total of the same look at the counts, so that buckets and count agree while workers go on counting.
        let total: u64 = counts.iter().sum();
        self.line("_bucket", labels, Some("+Inf"), format_args!("{total}"));
        self.line("_sum", labels, None, format_args!("{}", Seconds(histogram.sum_ns())));
        self.line("_count", labels, None, format_args!("{total}"));
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], le: Option<&str>, value: fmt::Arguments<'_>) {
        self.out.push_str(self.name);
        self.out.push_str(suffix);
        let mut separator = '{';
        for (name, label) in labels.iter().copied().chain(le.map(|bound| ("le", bound))) {
            push(self.out, format_args!("{separator}{name}=\"{}\"", Escaped(label)));
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        push(self.out, format_args!(" {value}\n"));
    }
}

fn push(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = out.write_fmt(text);
}

/// Nanoseconds as seconds, exactly, without zeros at the end.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        f.write_str(format!("{whole}.{fraction:09}").trim_end_matches('0'))
    }
}

/// A label's value: backslash, quote and line feed are escaped, nothing else.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_exact_and_short() {
        let written: Vec<String> =
            [0, 1, 100_000, 1_000_000_000, 2_500_000_000].map(|ns| Seconds(ns).to_string()).into();
        assert_eq!(written, ["0", "0.000000001", "0.0001", "1", "2.5"]);
    }

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        let metric = Metric { name: "m", kind: Kind::Gauge, help: "h" };
        text.family(&metric).sample(&[("a", "x\"y\\z\nw"), ("b", "")], 7);
        assert_eq!(text.into_string(), "# HELP m h\n# TYPE m gauge\nm{a=\"x\\\"y\\\\z\\nw\",b=\"\"} 7\n");
    }

    #[test]
    fn buckets_are_cumulative_and_the_last_is_the_count() {
        let histogram = Histogram::wide();
        let bounds = histogram.bounds_ns();
        histogram.record(bounds[0]);
        histogram.record(bounds[0] + 1);
        histogram.record(u64::from(u32::MAX) * 1_000_000_000);
        let mut text = Text::default();
        let metric = Metric { name: "m", kind: Kind::Histogram, help: "h" };
        text.family(&metric).histogram(&[], &histogram);
        let text = text.into_string();
        let buckets: Vec<u64> = text
            .lines()
            .filter(|line| line.starts_with("m_bucket"))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        assert_eq!(buckets.len(), bounds.len() + 1);
        assert_eq!((buckets[0], buckets[1], buckets[bounds.len() - 1]), (1, 2, 2));
        assert!(text.contains("m_bucket{le=\"+Inf\"} 3\n"), "{text}");
        assert!(text.ends_with("m_count 3\n"), "{text}");
    }
}
