//! Who asks, from where and when: what every service is told beside the wish itself, and what the audit log keeps of it.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::logins::LoginToken;
use crate::store::AuditRecord;

/// What a user, or an API key, may do; each may what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Look at everything that is no secret.
    Viewer,
    /// Change the fleet: nodes, configs, commands.
    Operator,
    /// Change who may do what.
    Admin,
}

impl Role {
    /// All, the least first.
    pub(crate) const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    /// Nobody has said who they are.
    Anonymous,
    /// The master itself.
    System,
    /// A user with a password.
    User(String),
    /// A program with a key, by the key's id.
    ApiKey(String),
    /// An agent.
    Node(String),
    /// Somebody with the right to the master's files, by their id as a user of the host.
    Host(String),
}

impl Actor {
    fn kind(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::System => "system",
            Self::User(_) => "user",
            Self::ApiKey(_) => "api_key",
            Self::Node(_) => "node",
            Self::Host(_) => "host",
        }
    }

    /// The name, such as a user's; empty for somebody without one.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Anonymous => "",
            Self::System => "system",
            Self::User(name) | Self::ApiKey(name) | Self::Node(name) | Self::Host(name) => name,
        }
    }
}

/// One wish's circumstances.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Who.
    pub(crate) actor: Actor,
    /// What they may do; none for those who have not said who they are.
    pub(crate) role: Option<Role>,
    /// The login that the call came with; none where it came with something else.
    pub(crate) login: Option<LoginToken>,
    /// From where; none for the master itself.
    pub(crate) address: Option<IpAddr>,
    /// To find the request in logs.
    pub(crate) request_id: String,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
}

impl Call {
    /// The master's own.
    pub(crate) fn system(at_ms: u64) -> Self {
        let (role, login, address) = (None, None, None);
        Self { actor: Actor::System, role, login, address, request_id: String::new(), at_ms }
    }

    /// Of whoever runs the program on the master's own host.
    pub(crate) fn host(uid: u32, at_ms: u64) -> Self {
        Self { actor: Actor::Host(format!("uid {uid}")), ..Self::system(at_ms) }
    }

    /// The audit entry of a change that is made.
    pub(crate) fn done(&self, action: &str, target: &str, detail: impl Into<String>) -> AuditRecord {
        self.entry("done", action, target, detail.into())
    }

    /// The audit entry of a change that was refused.
    pub(crate) fn refused(&self, action: &str, target: &str, detail: impl Into<String>) -> AuditRecord {
        self.entry("refused", action, target, detail.into())
    }

    fn entry(&self, outcome: &str, action: &str, target: &str, detail: String) -> AuditRecord {
        AuditRecord {
            at_ms: self.at_ms,
            actor: self.actor.name().to_owned(),
            actor_kind: self.actor.kind().to_owned(),
            address: self.address.map(|address| address.to_string()),
            action: action.to_owned(),
            target: target.to_owned(),
            outcome: outcome.to_owned(),
            detail,
            request_id: self.request_id.clone(),
        }
    }
}

/// The time of day, in milliseconds since 1970. Services take it as an argument; this is for their callers.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339 in UTC with milliseconds, as the API shows times.
pub(crate) fn rfc3339(at_ms: u64) -> String {
    // Later than the year 9999 the format has no digits for it.
    let at_ms = at_ms.min(253_402_300_799_999);
    humantime::format_rfc3339_millis(UNIX_EPOCH + std::time::Duration::from_millis(at_ms)).to_string()
}
