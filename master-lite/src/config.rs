//! `master.toml`: where the master listens, keeps its data and where its limits are. Everything has a default, so that
//! it starts without a file. The config of the edges is not this: it is `proto::config`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use proto::fleet::limits::{HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL_MAX, HEARTBEAT_INTERVAL_MIN};
use serde::{Deserialize, Deserializer};

/// The whole config, checked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder of the store and the keys.
    pub data_dir: PathBuf,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    #[serde(deserialize_with = "log_level")]
    pub log_level: String,
    /// The REST API.
    pub rest: Listen,
    /// The agents' API.
    pub grpc: Listen,
    /// What agents are told, and how they are judged.
    pub agents: Agents,
    /// How alerts are judged.
    pub alerts: Alerts,
    /// Where webhooks may go.
    pub webhooks: Webhooks,
    /// How much of what there may be.
    pub limits: Limits,
}

/// REST and, later, the console.
const REST_PORT: u16 = 8081;
/// gRPC for agents.
const GRPC_PORT: u16 = 50051;

/// One listening socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// The address; this host's own unless given, for without TLS nothing else would be safe.
    listen: Option<SocketAddr>,
    /// TLS, if any.
    #[serde(default)]
    pub tls: Option<Tls>,
}

/// PEM files, and who is asked for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "FileTls")]
pub struct Tls {
    /// The certificate with its chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whose certificates clients show; none: they are not asked. Agents are known by theirs: it names their node.
    pub clients: Option<Clients>,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    /// PEM file of the authorities that may sign them.
    pub ca: PathBuf,
    /// Whether each client has to show one.
    pub certificates: ClientCertificates,
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTls {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_certificates: Option<ClientCertificates>,
}

impl TryFrom<FileTls> for Tls {
    type Error = &'static str;

    fn try_from(file: FileTls) -> Result<Self, Self::Error> {
        let FileTls { cert, key, client_ca, client_certificates } = file;
        if client_ca.is_none() && client_certificates.is_some() {
            return Err(
                "`client_certificates` needs a `client_ca`: without one nobody is asked for a certificate",
            );
        }
        let certificates = client_certificates.unwrap_or_default();
        let clients = client_ca.map(|ca| Clients { ca, certificates });
        Ok(Self { cert, key, clients })
    }
}

/// Whether clients have to show a certificate. One that is shown has to be good in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They have to.
    #[default]
    Required,
    /// They may: who has none logs in, or enrols, as without TLS.
    Optional,
}

/// `[agents]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agents {
    /// How often an agent reports; it is told so when it registers. After three missed it counts as offline.
    #[serde(deserialize_with = "duration")]
    pub heartbeat: Duration,
    /// How long an agent uses its credential before it is asked for another.
    #[serde(deserialize_with = "lifetime")]
    pub replace_credentials_after: Duration,
    /// How long a credential is good that was not replaced: for as long a node may be away.
    #[serde(deserialize_with = "lifetime")]
    pub credentials_expire_after: Duration,
}

/// A stolen credential is of use for no longer than that, if nobody notices.
const REPLACE_CREDENTIALS_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longer than a host waits for a spare part, shorter than a disk lies about in a drawer.
const CREDENTIALS_EXPIRE_AFTER: Duration = Duration::from_secs(90 * 24 * 3600);
/// Below it a fleet does nothing else.
const LIFETIME_MIN: Duration = Duration::from_secs(1);
/// What is good for longer does not end.
const LIFETIME_MAX: Duration = Duration::from_secs(3660 * 24 * 3600);

/// `[alerts]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// How often the rules are held against the nodes.
    #[serde(deserialize_with = "duration")]
    pub judge_every: Duration,
}

/// `[webhooks]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    /// Networks, such as `10.1.0.0/16`, that webhooks may lead to although they are not of the public internet.
    pub allow: Vec<IpNet>,
}

/// `[limits]`: each is there so that no client and no mistake fills the disk or the memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Versions that are kept; they are never deleted, so that a rollback finds what it asks for.
    pub config_versions: u64,
    /// Nodes that may be enrolled: what one master of this kind is meant for, twice over.
    pub nodes: u64,
    /// Users.
    pub users: u64,
    /// API keys.
    pub api_keys: u64,
    /// Join tokens that are there at once.
    pub join_tokens: u64,
    /// Open connections to the REST API.
    pub connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "millrace-master-data".into(),
            log_level: "info".to_owned(),
            rest: Listen::default(),
            grpc: Listen::default(),
            agents: Agents::default(),
            alerts: Alerts::default(),
            webhooks: Webhooks::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            heartbeat: HEARTBEAT_INTERVAL,
            replace_credentials_after: REPLACE_CREDENTIALS_AFTER,
            credentials_expire_after: CREDENTIALS_EXPIRE_AFTER,
        }
    }
}

impl Default for Alerts {
    fn default() -> Self {
        // Half a heartbeat: what a node says is judged before it says it again.
        Self { judge_every: Duration::from_secs(5) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            config_versions: 10_000,
            nodes: 20_000,
            users: 1000,
            api_keys: 1000,
            join_tokens: 1000,
            connections: 1024,
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// `file:line:column: what is wrong`.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let bytes = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
        let text =
            proto::config::decode(bytes).map_err(|errors| errors.render(&shown.to_string(), "", false))?;
        Self::parse(&text).map_err(|message| format!("{shown}:{message}"))
    }

    /// The config of a text.
    ///
    /// # Errors
    /// `line:column: what is wrong`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = &text[..error.span().map_or(0, |span| span.start)];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            format!("{line}:{column}: {}", error.message())
        })?;
        let Agents { replace_credentials_after, credentials_expire_after, .. } = config.agents;
        // Twice: an eighth later than the wish, and a weekend without a master.
        if credentials_expire_after < 2 * replace_credentials_after {
            return Err("1:1: agents.credentials_expire_after is to be at least twice \
                        agents.replace_credentials_after"
                .to_owned());
        }
        Ok(config)
    }

    /// Where the REST API listens.
    pub fn rest_address(&self) -> SocketAddr {
        self.rest.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], REST_PORT)))
    }

    /// Where the agents' API listens.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], GRPC_PORT)))
    }

    /// The same with another folder, if one is given.
    #[must_use]
    pub fn with_data_dir(mut self, dir: Option<PathBuf>) -> Self {
        if let Some(dir) = dir {
            self.data_dir = dir;
        }
        self
    }
}

fn lifetime<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let duration = humantime::parse_duration(&text).map_err(serde::de::Error::custom)?;
    if (LIFETIME_MIN..=LIFETIME_MAX).contains(&duration) {
        return Ok(duration);
    }
    Err(serde::de::Error::custom("is to be between 1s and 3660d"))
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let duration = humantime::parse_duration(&text).map_err(serde::de::Error::custom)?;
    if (HEARTBEAT_INTERVAL_MIN..=HEARTBEAT_INTERVAL_MAX).contains(&duration) {
        return Ok(duration);
    }
    Err(serde::de::Error::custom("is to be between 100ms and 1m"))
}

fn log_level<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    match text.as_str() {
        "error" | "warn" | "info" | "debug" | "trace" => Ok(text),
        _ => Err(serde::de::Error::custom("is to be error, warn, info, debug or trace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        let config = Config::parse("").unwrap();
        assert_eq!(config, Config::default());
        // Nobody else on the network is let in before somebody says so.
        let addresses = [config.rest_address(), config.grpc_address()].map(|address| address.to_string());
        assert_eq!(addresses, ["127.0.0.1:8081", "127.0.0.1:50051"]);
        assert_eq!(config.agents.heartbeat, Duration::from_secs(10));
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let Agents { replace_credentials_after, credentials_expire_after, .. } = config.agents;
        assert_eq!((replace_credentials_after, credentials_expire_after), (days(7), days(90)));
    }

    #[test]
    fn an_error_says_where_and_what() {
        let error = Config::parse("[rest]\nlisten = \"nowhere\"\n").unwrap_err();
        assert!(error.starts_with("2:10: "), "{error}");
        let error = Config::parse("data_dri = \"x\"").unwrap_err();
        assert!(error.starts_with("1:1: ") && error.contains("data_dir"), "{error}");
        let error = Config::parse("[grpc.tls]\ncert = \"a\"\nkey = \"b\"\nclient_certificates = \"some\"")
            .unwrap_err();
        assert!(error.contains("optional"), "{error}");
        let alone = "[grpc.tls]\ncert = \"a\"\nkey = \"b\"\nclient_certificates = \"required\"";
        let error = Config::parse(alone).unwrap_err();
        assert!(error.contains("needs a `client_ca`"), "{error}");
        let error = Config::parse("[agents]\nheartbeat = \"1ms\"").unwrap_err();
        assert!(error.contains("between"), "{error}");
        for lifetime in ["999ms", "3661d"] {
            let error = Config::parse(&format!("[agents]\nreplace_credentials_after = \"{lifetime}\""));
            assert_eq!(error.unwrap_err(), "2:29: is to be between 1s and 3660d");
        }
        let error = Config::parse("[agents]\ncredentials_expire_after = \"13d\"").unwrap_err();
        assert!(error.contains("at least twice"), "{error}");
        assert!(Config::parse("[agents]\ncredentials_expire_after = \"14d\"").is_ok());
    }
}
