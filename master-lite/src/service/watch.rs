//! What the master does by itself: hears what agents say of themselves and of commands, judges alerts, tells webhooks.
//! The hearing waits for nothing; the rest is called by the server where blocking is allowed.

use std::collections::HashSet;
use std::sync::Arc;

use proto::v1::agent_message;
use serde_json::json;

use super::Services;
use super::alerts::StateName;
use super::alerts::board::{Alert, Notice};
use super::alerts::machine::State;
use super::alerts::rule::Severity;
use super::call::{Call, rfc3339};
use super::commands::Commands;
use super::metrics::Metrics;
use super::nodes::NodeFilter;
use super::notify::Notify;
use super::refusal::Refusal;
use super::sessions::Listener;

/// Hears what agents say, for the services that keep it.
pub(crate) struct Ear {
    metrics: Arc<Metrics>,
    commands: Arc<Commands>,
}

impl Ear {
    /// For these services.
    pub(crate) fn new(metrics: Arc<Metrics>, commands: Arc<Commands>) -> Self {
        Self { metrics, commands }
    }
}

impl Listener for Ear {
    fn handle_connected(&self, node: &str, instance_id: &[u8], _command_ids: &[String], at_ms: u64) {
        self.commands.handle_connected(node, instance_id, at_ms);
    }

    fn handle_message(&self, node: &str, message: &agent_message::Kind, at_ms: u64) {
        match message {
            agent_message::Kind::Heartbeat(heartbeat) => {
                if let Some(host) = &heartbeat.host {
                    self.metrics.handle_heartbeat(node, host, at_ms);
                }
            }
            agent_message::Kind::Metrics(report) => self.metrics.handle_report(node, report.clone(), at_ms),
            agent_message::Kind::CommandOutput(_) | agent_message::Kind::CommandResult(_) => {
                self.commands.handle_message(node, message, at_ms);
            }
            // The session has put them together.
            agent_message::Kind::MetricsPiece(_)
            | agent_message::Kind::Register(_)
            | agent_message::Kind::ConfigAck(_)
            | agent_message::Kind::ConfigNack(_)
            | agent_message::Kind::ConfigDeferred(_)
            | agent_message::Kind::CredentialChange(_)
            | agent_message::Kind::Leaving(_) => {}
        }
    }

    fn handle_disconnected(&self, node: &str, _at_ms: u64) {
        self.commands.handle_disconnected(node);
    }
}

impl Services {
    /// Judges all alerts, and queues what there is to tell. Called every few seconds.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn judge(&self, now_ms: u64) -> Result<(), Refusal> {
        let subjects = self.subjects(now_ms)?;
        let known: HashSet<&str> = subjects.iter().map(|subject| subject.node.as_str()).collect();
        self.metrics.keep(|node| known.contains(node));
        for (notice, alert) in self.alerts.evaluate(&subjects, now_ms)? {
            let (node, rule) = (&alert.node, &alert.rule);
            match notice {
                Notice::Firing => tracing::warn!(%node, %rule, value = alert.value, "an alert fires"),
                Notice::Resolved => tracing::info!(%node, %rule, "an alert has ended"),
            }
            self.notify.tell(alert.severity, &message(notice, &alert, now_ms))?;
        }
        Ok(())
    }

    /// Lets time pass for commands, and stores what has ended.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn drive_commands(&self, now_ms: u64) -> Result<(), Refusal> {
        if self.commands.running() == 0 {
            return Ok(());
        }
        let nodes = self.nodes.matching(&NodeFilter::default(), now_ms)?;
        let known: HashSet<String> = nodes.into_iter().map(|node| node.id).collect();
        Ok(self.commands.drive(|node| known.contains(node), now_ms)?)
    }
}

impl Notify {
    /// Queues a message that says nothing, to see that it arrives.
    ///
    /// # Errors
    /// There is no such webhook, or too much waits for it already.
    pub(crate) fn test(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        let data = json!({ "webhook": id, "by": call.actor.name() });
        let body = json!({ "type": "webhook.test", "timestamp": rfc3339(call.at_ms), "data": data });
        self.tell_one(id, &body.to_string())
    }
}

/// What a webhook is sent.
fn message(notice: Notice, alert: &Alert, now_ms: u64) -> String {
    let kind = match notice {
        Notice::Firing => "alert.firing",
        Notice::Resolved => "alert.resolved",
    };
    let (State::Firing { fired_ms, .. }
    | State::Resolved { fired_ms, .. }
    | State::Pending { since_ms: fired_ms }) = alert.state;
    let data = json!({
        "id": alert.id,
        "rule": alert.rule,
        "state": StateName::from(alert.state).name(),
        "severity": Severity::name(alert.severity),
        "description": alert.description,
        "node": alert.node,
        "role": alert.role,
        "region": alert.region,
        "labels": alert.labels,
        "value": alert.value,
        "fired_at": rfc3339(fired_ms),
    });
    json!({ "type": kind, "timestamp": rfc3339(now_ms), "data": data }).to_string()
}
