//! A node's newest report as it is kept: encoded, since decoded it takes several times the room, and each family by itself,
//! since nobody needs all of them at once.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message as _;
use proto::v1::{MetricFamily, Metrics};

use super::report;

/// The report; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// When the data plane's process began, which tells whether its counters began anew.
    started_ms: u64,
    /// Series that the node, or the master, has left out.
    pub(crate) series_left_out: u64,
    /// All families, one behind the other.
    bytes: Arc<[u8]>,
    /// What each is called, and where it ends.
    families: Arc<[(Arc<str>, usize)]>,
}

impl Kept {
    /// Of a report that was checked.
    pub(super) fn of(report: &Metrics, names: &mut Names) -> Self {
        let length = report.families.iter().map(prost::Message::encoded_len).sum();
        let (mut bytes, mut families) = (Vec::with_capacity(length), Vec::new());
        for family in &report.families {
            // A vector has always room.
            let _ = family.encode(&mut bytes);
            families.push((names.shared(&family.name), bytes.len()));
        }
        Self {
            started_ms: report.dataplane_started_at_unix_ms,
            series_left_out: report.series_left_out,
            bytes: bytes.into(),
            families: families.into(),
        }
    }

    /// What its families are called.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.families.iter().map(|(name, _)| name)
    }

    /// One family.
    pub(crate) fn family(&self, name: &str) -> Option<MetricFamily> {
        let at = self.names().position(|other| **other == *name)?;
        let begin = at.checked_sub(1).map_or(0, |before| self.families[before].1);
        MetricFamily::decode(&self.bytes[begin..self.families[at].1]).ok()
    }

    /// Those families that the next report is compared with.
    pub(super) fn watched(&self) -> Metrics {
        let names = self.names().filter(|name| report::is_watched(name));
        Metrics {
            dataplane_started_at_unix_ms: self.started_ms,
            families: names.filter_map(|name| self.family(name)).collect(),
            ..Metrics::default()
        }
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len() + size_of_val(&self.families[..])
    }
}

/// The names of all nodes' families, each once.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: HashSet<Arc<str>>,
}

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    /// Forgets what no report has any more.
    pub(super) fn tidy(&mut self) {
        self.names.retain(|name| Arc::strong_count(name) > 1);
    }
}
