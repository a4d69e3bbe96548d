//! What can be commanded, and to whom: closed lists, parsed once. There is no shell anywhere behind them.

use proto::fleet::limits::{COMMAND_DEADLINE_MAX, COMMAND_DEADLINE_MIN, LOG_LINES, LOG_LINES_MAX};
use proto::v1::CommandKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::service::name::check_names;
use crate::service::nodes::{Node, NodeRole};
use crate::service::refusal::Refusal;

/// The closed list of what agents do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Command {
    /// The data plane reads its config again.
    Reload,
    /// The data plane's service is restarted.
    Restart,
    /// The data plane's status document.
    Status,
    /// The last lines of the data plane's log.
    Logs,
    /// The data plane takes no new connections.
    Drain,
    /// It takes them again.
    Undrain,
}

impl Command {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Command::Reload => "reload",
            Command::Restart => "restart",
            Command::Status => "status",
            Command::Logs => "logs",
            Command::Drain => "drain",
            Command::Undrain => "undrain",
        }
    }

    /// How long it may take unless told otherwise.
    fn timeout_ms(self) -> u64 {
        match self {
            // The service's own end may wait for its streams, which systemd ends after 90 s.
            Command::Restart => 150_000,
            Command::Reload | Command::Status | Command::Logs | Command::Drain | Command::Undrain => 30_000,
        }
    }

    /// As agents know it.
    pub(super) fn kind(self) -> CommandKind {
        match self {
            Command::Reload => CommandKind::Reload,
            Command::Restart => CommandKind::Restart,
            Command::Status => CommandKind::Status,
            Command::Logs => CommandKind::Logs,
            Command::Drain => CommandKind::Drain,
            Command::Undrain => CommandKind::Undrain,
        }
    }
}

/// What the ids of a target name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TargetType {
    /// Nodes.
    Node,
    /// All nodes of regions.
    Region,
    /// All nodes of roles, `edge` or `core`.
    Role,
    /// All nodes; there are no ids.
    All,
}

/// Ids of one target: with them every node of a small fleet can be named.
pub(crate) const TARGET_IDS_MAX: usize = 1_000;

/// A command that somebody wants to be run.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// What.
    pub(crate) command: Command,
    /// Where.
    pub(crate) target_type: TargetType,
    /// Where, by name.
    pub(crate) target_ids: Vec<String>,
    /// How long it may take; none: as the command needs.
    pub(crate) timeout_ms: Option<u64>,
    /// For [`Command::Logs`]: how many lines.
    pub(crate) lines: Option<u32>,
}

impl Wish {
    /// A command for one node.
    pub(crate) fn for_node(command: Command, node: &str) -> Self {
        let target_ids = vec![node.to_owned()];
        Wish { command, target_type: TargetType::Node, target_ids, timeout_ms: None, lines: None }
    }

    /// Holds the wish against its rules.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let has_ids = !self.target_ids.is_empty();
        match self.target_type {
            TargetType::All if has_ids => {
                let message = "`target_ids` is to be left out where all nodes are meant";
                return Err(Refusal::invalid("target_ids", "not_wanted", message));
            }
            TargetType::Node | TargetType::Role if has_ids => {
                check_names("target_ids", &self.target_ids, TARGET_IDS_MAX)?;
            }
            TargetType::Region if has_ids && self.target_ids.len() <= TARGET_IDS_MAX => {}
            TargetType::Region if has_ids => {
                let message = format!("`target_ids` may have at most {TARGET_IDS_MAX} entries");
                return Err(Refusal::invalid("target_ids", "too_many", message));
            }
            TargetType::All => {}
            TargetType::Node | TargetType::Region | TargetType::Role => {
                return Err(Refusal::invalid("target_ids", "missing", "`target_ids` is to name somebody"));
            }
        }
        self.check_timeout()?;
        self.check_lines()
    }

    /// How long it may take.
    pub(super) fn timeout_ms(&self) -> u64 {
        self.timeout_ms.unwrap_or(self.command.timeout_ms())
    }

    /// How many lines of the log; 0 for other commands.
    pub(super) fn lines(&self) -> u32 {
        match self.command {
            Command::Logs => self.lines.unwrap_or(LOG_LINES),
            Command::Reload | Command::Restart | Command::Status | Command::Drain | Command::Undrain => 0,
        }
    }

    /// Which of all nodes are meant.
    ///
    /// # Errors
    /// An id names nobody.
    pub(super) fn targets(&self, nodes: &[Node]) -> Result<Vec<String>, Refusal> {
        for (index, id) in self.target_ids.iter().enumerate() {
            if !nodes.iter().any(|node| self.is_named(id, node)) {
                let field = format!("target_ids[{index}]");
                return Err(Refusal::not_found(&field, self.what(), id));
            }
        }
        let is_meant = |node: &&Node| {
            self.target_type == TargetType::All || self.target_ids.iter().any(|id| self.is_named(id, node))
        };
        let targets: Vec<String> = nodes.iter().filter(is_meant).map(|node| node.id.clone()).collect();
        if targets.is_empty() {
            return Err(Refusal::conflict("target_type", "no_nodes", "there are no nodes yet"));
        }
        Ok(targets)
    }

    fn is_named(&self, id: &str, node: &Node) -> bool {
        match self.target_type {
            TargetType::Node => node.id == id,
            TargetType::Region => node.record.region == id,
            TargetType::Role => role_name(node.record.role) == id,
            TargetType::All => true,
        }
    }

    fn what(&self) -> &'static str {
        match self.target_type {
            TargetType::Node | TargetType::All => "node",
            TargetType::Region => "node in the region",
            TargetType::Role => "node of the role",
        }
    }

    fn check_timeout(&self) -> Result<(), Refusal> {
        let [least_ms, most_ms] =
            [COMMAND_DEADLINE_MIN, COMMAND_DEADLINE_MAX].map(|limit| limit.as_millis() as u64);
        if self.timeout_ms.is_none_or(|timeout_ms| (least_ms..=most_ms).contains(&timeout_ms)) {
            return Ok(());
        }
        Err(Refusal::invalid("timeout", "out_of_range", "`timeout` is to be between 100ms and 10m"))
    }

    fn check_lines(&self) -> Result<(), Refusal> {
        let Some(lines) = self.lines else { return Ok(()) };
        if self.command != Command::Logs {
            return Err(Refusal::invalid("lines", "not_wanted", "`lines` is for the command `logs`"));
        }
        if (1..=LOG_LINES_MAX).contains(&lines) {
            return Ok(());
        }
        let message = format!("`lines` is to be between 1 and {LOG_LINES_MAX}");
        Err(Refusal::invalid("lines", "out_of_range", message))
    }
}

/// A role as targets and labels have it.
pub(crate) fn role_name(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Edge => "edge",
        NodeRole::Core => "core",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(target_type: TargetType, ids: &[&str]) -> Wish {
        let target_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        Wish { command: Command::Status, target_type, target_ids, timeout_ms: None, lines: None }
    }

    fn field(wish: Wish) -> String {
        wish.check().unwrap_err().details[0].field.clone()
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_field() {
        assert_eq!(field(wish(TargetType::All, &["a"])), "target_ids");
        assert_eq!(field(wish(TargetType::Node, &[])), "target_ids");
        assert_eq!(field(wish(TargetType::Node, &["../x"])), "target_ids[0]");
        assert_eq!(field(wish(TargetType::Region, &["x"; TARGET_IDS_MAX + 1])), "target_ids");
        let good = wish(TargetType::Node, &["a"]);
        assert_eq!(field(Wish { timeout_ms: Some(99), ..good.clone() }), "timeout");
        assert_eq!(field(Wish { timeout_ms: Some(600_001), ..good.clone() }), "timeout");
        assert_eq!(field(Wish { lines: Some(5), ..good.clone() }), "lines");
        let logs = Wish { command: Command::Logs, lines: Some(LOG_LINES_MAX + 1), ..good.clone() };
        assert_eq!(field(logs), "lines");
        assert!(good.check().is_ok());
    }
}
