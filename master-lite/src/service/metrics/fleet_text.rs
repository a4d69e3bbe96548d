//! What all data planes report, as one text for Prometheus, made while it is sent: a large fleet's is a hundred megabytes,
//! and a piece of it at a time takes some kilobytes. All series of a metric stand together, whichever node they came from.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::exposition::{Exposition, Family, Label};
use super::kept::Kept;

/// About how long a piece is.
const PIECE_BYTES: usize = 64 << 10;

/// A node's report with the labels that tell whose it is.
#[derive(Debug)]
pub(crate) struct Reporter {
    /// The node's id.
    pub(crate) node: String,
    /// Where it is.
    pub(crate) region: String,
    /// What it is for.
    pub(crate) role: &'static str,
    /// What it reported last.
    pub(crate) report: Kept,
}

/// The text, piece by piece.
#[derive(Debug)]
pub(crate) struct FleetText {
    reporters: Vec<Reporter>,
    /// The metrics that are still to come.
    names: std::vec::IntoIter<Arc<str>>,
    current: Option<Current>,
}

/// The metric that is being written.
#[derive(Debug)]
struct Current {
    name: Arc<str>,
    family: Option<Family>,
    next_reporter: usize,
}

impl FleetText {
    /// Of these nodes. A metric that has the name of one of the master's own is left out: there it is another.
    pub(crate) fn new(reporters: Vec<Reporter>, own: &Exposition) -> Self {
        let names: BTreeSet<&Arc<str>> =
            reporters.iter().flat_map(|reporter| reporter.report.names()).collect();
        let names: Vec<Arc<str>> = names.into_iter().filter(|name| !own.has(name)).map(Arc::clone).collect();
        Self { reporters, names: names.into_iter(), current: None }
    }
}

impl Iterator for FleetText {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let current = match &mut self.current {
                Some(current) => current,
                current => {
                    let name = self.names.next()?;
                    current.insert(Current { name, family: None, next_reporter: 0 })
                }
            };
            let piece = current.piece(&self.reporters);
            if current.next_reporter == self.reporters.len() {
                self.current = None;
            }
            if !piece.is_empty() {
                return Some(piece);
            }
        }
    }
}

impl Current {
    /// The next of the metric's text; empty where no other node has it.
    fn piece(&mut self, reporters: &[Reporter]) -> String {
        while let Some(reporter) = reporters.get(self.next_reporter) {
            self.next_reporter += 1;
            let Some(reported) = reporter.report.family(&self.name) else { continue };
            let family =
                self.family.get_or_insert_with(|| Family::new(&self.name, reported.kind(), &reported.help));
            let Reporter { node, region, role, .. } = reporter;
            let labels: [Label<'_>; 3] = [("node", node), ("region", region), ("role", role)];
            family.reported(&reported, &labels);
            if family.length() >= PIECE_BYTES {
                break;
            }
        }
        self.family.as_mut().map(Family::take).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{MetricFamily, MetricKind, Metrics, series::Value};

    use super::super::kept::Names;
    use super::super::report::tests::{family, series};
    use super::*;

    fn reporter(node: &str, families: Vec<MetricFamily>) -> Reporter {
        let report = Kept::of(&Metrics { families, ..Metrics::default() }, &mut Names::default());
        Reporter { node: node.to_owned(), region: "hk".to_owned(), role: "edge", report }
    }

    fn number(name: &str, kind: MetricKind, number: f64) -> MetricFamily {
        family(name, kind, vec![series(&[("route", "r")], Value::Number(number))])
    }

    #[test]
    fn series_of_all_nodes_stand_together() {
        let (counter, gauge) = (MetricKind::Counter, MetricKind::Gauge);
        let reporters = vec![
            reporter(
                "a",
                vec![number("z_total", counter, 1.0), number("up", gauge, 1.0), number("b", gauge, 5.0)],
            ),
            reporter("b", vec![number("z_total", counter, 2.0)]),
            reporter("c", vec![number("z_total", gauge, 3.0)]),
        ];
        let mut own = Exposition::default();
        own.number(("up", gauge, "the master's own"), &[], 1.0);
        let text: String = FleetText::new(reporters, &own).collect();
        let labels = |node: &str| format!("{{node=\"{node}\",region=\"hk\",role=\"edge\",route=\"r\"}}");
        let expected = format!(
            "# HELP b help\n# TYPE b gauge\nb{a} 5\n# HELP z_total help\n# TYPE z_total counter\nz_total{a} 1\nz_total{b} 2\n",
            a = labels("a"),
            b = labels("b"),
        );
        assert_eq!(text, expected, "a metric has one kind, and the master's own names are its own");
    }

    #[test]
    fn a_large_fleets_text_comes_in_pieces() {
        let one =
            || vec![number("a_total", MetricKind::Counter, 1.0), number("b_total", MetricKind::Counter, 1.0)];
        let reporters = (0..5_000).map(|node| reporter(&format!("node-{node}"), one())).collect();
        let pieces: Vec<String> = FleetText::new(reporters, &Exposition::default()).collect();
        assert!(pieces.len() > 8, "{}", pieces.len());
        assert!(pieces.iter().all(|piece| (1..2 * PIECE_BYTES).contains(&piece.len())));
        let text = pieces.concat();
        assert_eq!(text.lines().count(), 2 * (2 + 5_000));
        assert_eq!(text.matches("# TYPE ").count(), 2);
    }
}
