//! `/metrics` of the master: its own figures, each node's host, what fires, and what every data plane reports, with the
//! node's labels: one scrape for a whole fleet.

use std::collections::BTreeMap;

use proto::v1::{HostMetrics, MetricKind};

use super::Services;
use super::commands::command::role_name;
use super::metrics::Kept;
use super::metrics::exposition::{Exposition, Label};
use super::metrics::fleet_text::{FleetText, Reporter};
use super::node_state::NodeState;
use super::nodes::{Node, NodeFilter};
use super::refusal::Refusal;

/// A metric of the master's own.
type Metric = (&'static str, MetricKind, &'static str);

/// One figure of a host.
type HostFigure = (Metric, fn(&HostMetrics) -> f64);

// One line is one metric.
#[rustfmt::skip]
mod names {
    use super::{HostFigure, Metric, MetricKind::{Counter, Gauge}};

    pub(super) const BUILD_INFO: Metric = ("millrace_master_build_info", Gauge, "Always 1; the version is a label.");
    pub(super) const NODES: Metric = ("millrace_master_nodes", Gauge, "Nodes by state.");
    pub(super) const ALERTS: Metric = ("millrace_master_alerts", Gauge, "Alerts by severity and state.");
    pub(super) const ALERTS_LEFT_OUT: Metric = ("millrace_master_alerts_left_out", Gauge, "Alerts that were not kept because there are too many.");
    pub(super) const ALERT_FIRING: Metric = ("millrace_alert_firing", Gauge, "1 for each alert that fires, by rule and node.");
    pub(super) const TASKS_RUNNING: Metric = ("millrace_master_tasks_running", Gauge, "Commands that have not ended on all their nodes.");
    pub(super) const WEBHOOK_DELIVERED: Metric = ("millrace_master_webhook_delivered_total", Counter, "Messages delivered to webhooks.");
    pub(super) const WEBHOOK_FAILED: Metric = ("millrace_master_webhook_failed_total", Counter, "Messages to webhooks that were given up.");
    pub(super) const WEBHOOK_DROPPED: Metric = ("millrace_master_webhook_dropped_total", Counter, "Messages to webhooks that found too many waiting.");
    pub(super) const WEBHOOK_WAITING: Metric = ("millrace_master_webhook_waiting", Gauge, "Messages that wait for webhooks.");
    pub(super) const HISTORY_BYTES: Metric = ("millrace_master_history_bytes", Gauge, "Memory that the nodes' history and newest reports take.");
    pub(super) const STORE_FAILING: Metric = ("millrace_master_store_failing", Gauge, "1 while the store takes no changes because its disk fails or is full.");
    pub(super) const STORE_FAILURES: Metric = ("millrace_master_store_failures_total", Counter, "Times that the store was closed and opened again because its disk failed.");

    pub(super) const CERTIFICATE_NOT_AFTER: Metric = ("millrace_master_certificate_not_after_seconds", Gauge, "When the certificate of one of the master's listeners ends, since the Unix epoch.");
    pub(super) const RULE_REPORTING: Metric = ("millrace_alert_rule_nodes_reporting", Gauge, "Nodes that report what an alert rule looks at; of the others it says nothing.");

    pub(super) const NODE_UP: Metric = ("millrace_node_up", Gauge, "1 while a node is online or degraded.");
    pub(super) const NODE_DEGRADED: Metric = ("millrace_node_degraded", Gauge, "1 while a node is heard of, but not well.");
    pub(super) const NODE_CONFIG_REFUSED: Metric = ("millrace_node_config_refused", Gauge, "1 while a node refuses the config that it should have.");
    pub(super) const NODE_LAST_SEEN: Metric = ("millrace_node_last_seen_seconds", Gauge, "When a node was heard of last, since the Unix epoch.");
    pub(super) const NODE_CERTIFICATE_NOT_AFTER: Metric = ("millrace_node_certificate_not_after_seconds", Gauge, "When the first of a node's certificates ends, since the Unix epoch.");
    pub(super) const SERIES_LEFT_OUT: Metric = ("millrace_node_series_left_out", Gauge, "Series of a node's newest report that are not shown.");

    pub(super) const HOST: &[HostFigure] = &[
        (("millrace_node_cpu_busy_ratio", Gauge, "Busy share of the host's processors."), |host| host.cpu_busy_ratio),
        (("millrace_node_cpu_steal_ratio", Gauge, "Share of the host's processors that the hypervisor took for others."), |host| host.cpu_steal_ratio),
        (("millrace_node_memory_bytes", Gauge, "Memory of the host."), |host| host.memory_bytes as f64),
        (("millrace_node_memory_available_bytes", Gauge, "Memory of the host that a program could still have."), |host| host.memory_available_bytes as f64),
        (("millrace_node_load1", Gauge, "Load average of the host over a minute."), |host| host.load_1m),
        (("millrace_node_network_received_bytes_total", Counter, "Bytes that the host's devices received."), |host| host.network_received_bytes_total as f64),
        (("millrace_node_network_sent_bytes_total", Counter, "Bytes that the host's devices sent."), |host| host.network_sent_bytes_total as f64),
        (("millrace_node_network_dropped_packets_total", Counter, "Packets that the host's devices dropped."), |host| host.network_dropped_packets_total as f64),
        (("millrace_node_network_error_packets_total", Counter, "Packets with errors on the host's devices."), |host| host.network_error_packets_total as f64),
        (("millrace_node_agent_resident_bytes", Gauge, "Memory of the agent."), |host| host.agent_resident_bytes as f64),
        (("millrace_node_open_files", Gauge, "Open file descriptors of the host."), |host| host.open_files as f64),
        (("millrace_node_open_files_max", Gauge, "File descriptors that the host allows."), |host| host.open_files_max as f64),
    ];
}

impl Services {
    /// Everything, as Prometheus scrapes it, piece by piece.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn scrape(&self, now_ms: u64) -> Result<impl Iterator<Item = String> + use<>, Refusal> {
        let nodes = self.nodes.matching(&NodeFilter::default(), now_ms)?;
        let refusing = self.refusing()?;
        let mut text = Exposition::default();
        self.scrape_master(&mut text, &nodes)?;
        let reporters = nodes.into_iter().filter_map(|node| {
            let report = self.scrape_node(&mut text, &node, refusing.contains_key(&node.id))?;
            let role = role_name(node.record.role);
            Some(Reporter { node: node.id, region: node.record.region, role, report })
        });
        let reporters = reporters.collect();
        let reported = FleetText::new(reporters, &text);
        Ok(text.into_pieces().chain(reported))
    }

    fn scrape_master(&self, text: &mut Exposition, nodes: &[Node]) -> Result<(), Refusal> {
        text.number(names::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        for (state, count) in by_state(nodes) {
            text.number(names::NODES, &[("state", state)], count as f64);
        }
        for ((severity, state), count) in self.alerts.counts() {
            text.number(names::ALERTS, &[("severity", severity.name()), ("state", state)], count as f64);
        }
        for alert in self.alerts.firing() {
            let labels: [Label<'_>; 5] = [
                ("node", &alert.node),
                ("region", &alert.region),
                ("role", &alert.role),
                ("rule", &alert.rule),
                ("severity", alert.severity.name()),
            ];
            text.number(names::ALERT_FIRING, &labels, 1.0);
        }
        let (webhooks, store) = (self.notify.total(), self.store.health());
        let plain = [
            (names::ALERTS_LEFT_OUT, self.alerts.left_out()),
            (names::TASKS_RUNNING, self.commands.running() as u64),
            (names::WEBHOOK_DELIVERED, webhooks.delivered),
            (names::WEBHOOK_FAILED, webhooks.failed),
            (names::WEBHOOK_DROPPED, webhooks.dropped),
            (names::WEBHOOK_WAITING, webhooks.waiting as u64),
            (names::HISTORY_BYTES, self.metrics.bytes() as u64),
            (names::STORE_FAILING, u64::from(store.trouble.is_some())),
            (names::STORE_FAILURES, store.failures),
        ];
        for (metric, value) in plain {
            text.number(metric, &[], value as f64);
        }
        for (listener, not_after_ms) in &self.own_certificates {
            let labels: [Label<'_>; 1] = [("listener", listener)];
            text.number(names::CERTIFICATE_NOT_AFTER, &labels, *not_after_ms as f64 / 1_000.0);
        }
        for known in self.alerts.rules()?.into_iter().filter(|known| known.rule.enabled) {
            let (coverage, _) = self.alerts.standing(&known);
            text.number(names::RULE_REPORTING, &[("rule", &known.id)], coverage.reporting as f64);
        }
        Ok(())
    }

    /// The master's own figures of a node; gives what it reports itself.
    fn scrape_node(&self, text: &mut Exposition, node: &Node, is_refusing: bool) -> Option<Kept> {
        let labels: [Label<'_>; 3] =
            [("node", &node.id), ("region", &node.record.region), ("role", role_name(node.record.role))];
        let latest = self.metrics.latest(&node.id);
        let flag = |is_so| f64::from(u8::from(is_so));
        text.number(names::NODE_UP, &labels, flag(node.state != NodeState::Offline));
        text.number(names::NODE_DEGRADED, &labels, flag(node.state == NodeState::Degraded));
        text.number(names::NODE_CONFIG_REFUSED, &labels, flag(is_refusing));
        text.number(names::NODE_LAST_SEEN, &labels, node.seen_at_ms as f64 / 1_000.0);
        if let Some(not_after_s) = self.certificate_not_after_s(node) {
            text.number(names::NODE_CERTIFICATE_NOT_AFTER, &labels, not_after_s);
        }
        // What a node said before it went away is no figure of now.
        if node.state == NodeState::Offline {
            return None;
        }
        for (metric, value) in names::HOST {
            if let Some(host) = &latest.host {
                text.number(*metric, &labels, value(host));
            }
        }
        let report = latest.report?;
        text.number(names::SERIES_LEFT_OUT, &labels, report.series_left_out as f64);
        Some(report)
    }
}

/// Every state is there, those without a node too.
fn by_state(nodes: &[Node]) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::from([("online", 0), ("degraded", 0), ("offline", 0)]);
    for node in nodes {
        let state = match node.state {
            NodeState::Online => "online",
            NodeState::Degraded => "degraded",
            NodeState::Offline => "offline",
        };
        *counts.entry(state).or_default() += 1;
    }
    counts
}
