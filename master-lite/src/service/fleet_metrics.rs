//! What nodes do, put together: one node's past, a region's, the fleet's, and each node as alert rules see it.

use std::collections::BTreeMap;

use super::Services;
use super::alerts::reading::{MASTER_ROLE, Subject, WINDOW_MS};
use super::commands::command::role_name;
use super::convergence::NODE_CONFIGS;
use super::metrics::history::Resolution;
use super::metrics::totals::{Timeline, Totals};
use super::node_state::NodeState;
use super::nodes::{Node, NodeFilter, NodeRole};
use super::refusal::Refusal;
use crate::store::Source as _;

/// Which past is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// How fine.
    pub(crate) resolution: Resolution,
    /// From when on.
    pub(crate) from_ms: u64,
    /// The time now.
    pub(crate) now_ms: u64,
}

/// What some nodes do and did together.
#[derive(Debug, Default)]
pub(crate) struct Overview {
    /// How many are meant.
    pub(crate) nodes: u64,
    /// The last minute; none where nothing was reported.
    pub(crate) now: Option<Totals>,
    /// The same for each region, with how many nodes it has.
    pub(crate) regions: BTreeMap<String, (u64, Option<Totals>)>,
    /// Their past.
    pub(crate) history: Timeline,
}

impl Services {
    /// What these nodes do and did together.
    pub(crate) fn overview(&self, nodes: &[Node], window: Window) -> Overview {
        let mut overview = Overview { nodes: nodes.len() as u64, ..Overview::default() };
        for node in nodes {
            let now = self.metrics.recent(&node.id, WINDOW_MS, window.now_ms).map(Totals::of);
            let region = overview.regions.entry(node.record.region.clone()).or_default();
            region.0 += 1;
            add(&mut region.1, now.as_ref());
            add(&mut overview.now, now.as_ref());
            let Window { resolution, from_ms, .. } = window;
            self.metrics.add_past(&node.id, resolution, from_ms, &mut overview.history);
        }
        overview
    }

    /// The same for the nodes of a region and a role.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn aggregate(
        &self,
        region: Option<String>,
        role: Option<NodeRole>,
        window: Window,
    ) -> Result<Overview, Refusal> {
        let filter = NodeFilter { region, role, ..NodeFilter::default() };
        Ok(self.overview(&self.nodes.matching(&filter, window.now_ms)?, window))
    }

    /// Every node as alert rules see it, and the master with its own certificates and its store.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn subjects(&self, now_ms: u64) -> Result<Vec<Subject>, Refusal> {
        let refusing = self.refusing()?;
        let nodes = self.nodes.matching(&NodeFilter::default(), now_ms)?;
        let subject = |node: Node| Subject {
            certificate_not_after_s: self.certificate_not_after_s(&node),
            is_credential_copied: node.record.was_copied_lately(now_ms),
            role: role_name(node.record.role).to_owned(),
            region: node.record.region,
            tags: node.record.tags.into_iter().collect(),
            is_offline: Some(node.state == NodeState::Offline),
            is_config_refused: refusing.contains_key(&node.id),
            recent: self.metrics.recent(&node.id, WINDOW_MS, now_ms),
            is_store_failing: None,
            node: node.id,
        };
        let own = self.own_certificates.iter().map(|(listener, not_after_ms)| Subject {
            // No node's id has a colon.
            node: format!("{MASTER_ROLE}:{listener}"),
            role: MASTER_ROLE.to_owned(),
            certificate_not_after_s: Some(*not_after_ms as f64 / 1_000.0),
            ..Subject::default()
        });
        let store = Subject {
            node: format!("{MASTER_ROLE}:store"),
            role: MASTER_ROLE.to_owned(),
            is_store_failing: Some(self.store.health().trouble.is_some()),
            ..Subject::default()
        };
        Ok(nodes.into_iter().map(subject).chain(own).chain([store]).collect())
    }

    /// When the first of a node's certificates ends: what its agent has shown, or what its data plane tells of.
    pub(super) fn certificate_not_after_s(&self, node: &Node) -> Option<f64> {
        let shown = node.record.certificate.map(|certificate| certificate.not_after_ms as f64 / 1_000.0);
        let told = self.metrics.certificate_not_after_s(&node.id);
        shown.into_iter().chain(told).reduce(f64::min)
    }

    /// The nodes that refuse the config that they should have, each with the revision.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn refusing(&self) -> Result<BTreeMap<String, u64>, Refusal> {
        let said = self.store.read()?.all(NODE_CONFIGS)?.into_iter();
        // A refusal is forgotten by the agent itself once something newer is applied.
        Ok(said.map(|(node, config)| (node, config.refused)).filter(|(_, refused)| *refused > 0).collect())
    }
}

fn add(sum: &mut Option<Totals>, more: Option<&Totals>) {
    match (sum.as_mut(), more) {
        (Some(sum), Some(more)) => sum.add(more),
        (None, Some(more)) => *sum = Some(more.clone()),
        (_, None) => {}
    }
}
