//! Where the config that is served came from, for `/status` and the log: a config that came over the admin API is gone
//! with the next SIGHUP, and whoever looks at a node has to know which of the two it serves.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

/// What the agent calls itself in `User-Agent`, up to its version.
const AGENT: &str = "millrace-agent/";

/// Where a config came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Source {
    /// The file that the process was started with.
    File {
        /// Its path.
        path: PathBuf,
    },
    /// `PUT /config`.
    AdminApi,
    /// `PUT /config` of the node's agent: the master has published it.
    Agent,
    /// The process before this one, which had it from elsewhere than the file.
    Upgrade,
}

impl Source {
    /// Of a config that was put by a client with this `User-Agent`.
    pub(crate) fn of_put(user_agent: Option<&str>) -> Self {
        if user_agent.is_some_and(|name| name.starts_with(AGENT)) { Source::Agent } else { Source::AdminApi }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File { path } => write!(f, "the file {}", path.display()),
            Source::AdminApi => f.write_str("the admin API"),
            Source::Agent => f.write_str("the agent"),
            Source::Upgrade => f.write_str("the process before the upgrade"),
        }
    }
}

/// A source, and when its config was applied.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sourced {
    /// Where the config came from.
    #[serde(flatten)]
    pub(crate) source: Source,
    /// Since when it is served.
    #[serde(serialize_with = "rfc3339")]
    pub(crate) since: SystemTime,
}

impl Sourced {
    /// Served from now on.
    pub(crate) fn now(source: Source) -> Self {
        Sourced { source, since: SystemTime::now() }
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_known_by_its_name() {
        assert_eq!(Source::of_put(Some("millrace-agent/0.1.0")), Source::Agent);
        for name in [None, Some("curl/8.5.0"), Some("not-millrace-agent/1")] {
            assert_eq!(Source::of_put(name), Source::AdminApi, "{name:?}");
        }
    }

    #[test]
    fn is_one_object_with_its_kind_and_its_time() {
        let source = Source::File { path: "/etc/millrace/edge.toml".into() };
        let since = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
        let json = serde_json::to_value(Sourced { source, since }).unwrap();
        let expected = serde_json::json!({
            "kind": "file", "path": "/etc/millrace/edge.toml", "since": "2023-11-14T22:13:20Z",
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::to_value(Source::AdminApi).unwrap()["kind"], "admin_api");
    }
}
