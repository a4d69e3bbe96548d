//! The agent's own config: who it is, which master it speaks to, and which data plane it stands beside.
//!
//! It is read with the same machinery as the data plane's: unknown keys are refused, `${NAME}` is taken from the
//! environment, and every mistake is told with its place. No file that it names is opened here.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::check::address::unix_path;
use super::check::free_text;
use super::check::values::{Refusal, accept, word};
use super::file::value::{At, Section};
use super::problem::Problems;
use super::read::suggest::quote;
use super::{ConfigErrors, LogLevel, Node, Role, file, read, words};
use crate::fleet::{IdError, NodeId};

/// Where the data plane's unit puts its admin socket.
const DATAPLANE_SOCKET: &str = "/run/millrace/dataplane.sock";
/// The data plane's unit.
const DATAPLANE_UNIT: &str = "millrace-dataplane.service";
/// What systemd creates for the agent's unit.
const STATE_DIR: &str = "/var/lib/millrace-agent";
/// Longest name of a unit (systemd.unit(5)).
const UNIT_BYTES_MAX: usize = 255;

/// What the agent is told by its file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentConfig {
    /// Who the node is in the fleet.
    pub node: Node,
    /// The master.
    pub master: Master,
    /// The data plane.
    pub dataplane: Dataplane,
    /// Where the credential and the configs are kept.
    pub state_dir: PathBuf,
    /// Lowest level that is written.
    pub log_level: LogLevel,
}

/// `[master]`: whom the agent dials, and how it knows that it is the one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Master {
    /// `https://host:port`, or `http://host:port` where that was asked for.
    pub url: String,
    /// How the connection is secured; none: not at all, which the file says with `insecure = true`.
    pub tls: Option<MasterTls>,
    /// What the agent enrols with while it has no credential.
    pub join_token: Option<JoinTokenSource>,
}

/// How the connection to the master is secured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MasterTls {
    /// PEM file of the authorities that may vouch for the master.
    pub ca: PathBuf,
    /// The name in the master's certificate; none: the URL's host.
    pub server_name: Option<String>,
    /// What the agent shows of itself: PEM files of its certificate chain and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Where the join token is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum JoinTokenSource {
    /// In the config, as a rule from the environment.
    Text(String),
    /// In a file of its own.
    File(PathBuf),
}

/// Keeps the token out of logs.
impl std::fmt::Debug for JoinTokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// `[dataplane]`: the data plane beside the agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dataplane {
    /// Its admin socket.
    pub socket: PathBuf,
    /// Its systemd unit.
    pub unit: String,
}

impl AgentConfig {
    /// Reads and checks a config. `env` gives the values of `${NAME}`; `hostname` is the node's id where the text has none.
    ///
    /// # Errors
    /// Every mistake that one pass can find, by position.
    pub fn parse(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
        hostname: &str,
    ) -> Result<Self, ConfigErrors> {
        let mut problems = Problems::default();
        let file: AgentFile = read::read(text, env, &[], &mut problems)?;
        let config = check(&file, hostname, &mut problems);
        problems.into_result(config, text)
    }
}

/// What the user wrote.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AgentFile {
    node: Section<file::Node>,
    master: Option<Section<FileMaster>>,
    dataplane: Section<FileDataplane>,
    state: Section<FileState>,
    log: Section<FileLog>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileMaster {
    url: Option<At<String>>,
    insecure: Option<At<bool>>,
    ca: Option<At<String>>,
    server_name: Option<At<String>>,
    certificate: Option<At<String>>,
    key: Option<At<String>>,
    join_token: Option<At<String>>,
    join_token_file: Option<At<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileDataplane {
    socket: Option<At<String>>,
    unit: Option<At<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileState {
    dir: Option<At<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLog {
    level: Option<At<String>>,
}

fn check(file: &AgentFile, hostname: &str, problems: &mut Problems) -> AgentConfig {
    let master = match &file.master {
        Some(section) => master(section, problems),
        None => {
            let help = "write at least:\n[master]\nurl = \"https://master.example.com:50051\"\nca = \"/etc/millrace/master-ca.pem\"";
            problems.missing(&(0..0), "master", "there is no master", help);
            Master { url: String::new(), tls: None, join_token: None }
        }
    };
    AgentConfig {
        node: node(&file.node.value, hostname, problems),
        master,
        dataplane: dataplane(&file.dataplane.value, problems),
        state_dir: path(&file.state.value.dir, problems).unwrap_or_else(|| STATE_DIR.into()),
        log_level: word(&file.log.value.level, "log level", &words::LOG_LEVELS, LogLevel::Info, problems),
    }
}

fn node(file: &file::Node, hostname: &str, problems: &mut Problems) -> Node {
    let id = match &file.id {
        Some(id) => accept(node_id(&id.value), &id.span, problems).unwrap_or_default(),
        None => match node_id(hostname) {
            Ok(id) => id,
            Err(_) => {
                let message = format!("the host's name {} cannot be the node's id", quote(hostname));
                problems.missing(&(0..0), "node.id", message, "write:\n[node]\nid = \"…\"");
                String::new()
            }
        },
    };
    let region = file.region.as_ref().and_then(|text| accept(free_text(&text.value), &text.span, problems));
    let role = word(&file.role, "role", &words::ROLES, Role::Edge, problems);
    Node { id, role, region: region.unwrap_or_default() }
}

fn node_id(text: &str) -> Result<String, Refusal> {
    let refusal = |error: IdError| {
        let help = "write letters, digits, `.`, `_` and `-`, beginning with a letter or a digit";
        Refusal::new(format!("{} is no id of a node: {error}", quote(text)), help)
    };
    text.parse::<NodeId>().map(|id| id.to_string()).map_err(refusal)
}

fn master(section: &Section<FileMaster>, problems: &mut Problems) -> Master {
    let file = &section.value;
    let insecure = file.insecure.as_ref().is_some_and(|insecure| insecure.value);
    let Some(url) = &file.url else {
        let help = "write `url = \"https://…:50051\"`";
        problems.missing(&section.span, "url", "the master has no address", help);
        return Master { url: String::new(), tls: None, join_token: None };
    };
    accept(master_url(&url.value, insecure), &url.span, problems);
    let is_plain = url.value.starts_with("http://");
    let tls = if is_plain { refuse_tls_keys(file, problems) } else { tls(section, problems) };
    Master { url: url.value.clone(), tls, join_token: join_token(file, problems) }
}

fn master_url(text: &str, insecure: bool) -> Result<(), Refusal> {
    let help = "write one such as \"https://master.example.com:50051\"";
    let Some((scheme, authority)) = text.split_once("://") else {
        return Err(Refusal::new(format!("{} is no URL", quote(text)), help));
    };
    match scheme {
        "https" => {}
        "http" if insecure => {}
        "http" => {
            let message = "without TLS anyone on the way can read the credential and send configs";
            let help = "write https://; only on a network that is trusted `insecure = true` below it";
            return Err(Refusal::new(message, help));
        }
        other => return Err(Refusal::new(format!("{} is no scheme for a master", quote(other)), help)),
    }
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let port = authority.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '\\']);
    match port {
        Some((host, Ok(1..))) if is_host(host) => Ok(()),
        _ => Err(Refusal::new(format!("{} is no host with a port", quote(authority)), help)),
    }
}

/// Keys that do nothing without TLS are not passed over in silence.
fn refuse_tls_keys(file: &FileMaster, problems: &mut Problems) -> Option<MasterTls> {
    for key in [&file.ca, &file.server_name, &file.certificate, &file.key].into_iter().flatten() {
        problems.wrong(
            &key.span,
            "this means nothing for http://",
            "write https:// in `url`, or take this out",
        );
    }
    None
}

fn tls(section: &Section<FileMaster>, problems: &mut Problems) -> Option<MasterTls> {
    let file = &section.value;
    let ca = path(&file.ca, problems);
    if file.ca.is_none() {
        let help = "write `ca = \"/etc/millrace/master-ca.pem\"`, the file that the master has made; for a public \
                    authority \"/etc/ssl/certs/ca-certificates.crt\"";
        problems.missing(&section.span, "ca", "nothing says whose certificates the master may show", help);
    }
    let server_name =
        file.server_name.as_ref().and_then(|name| accept(free_text(&name.value), &name.span, problems));
    let half = |key: &'static str, span: &Range<usize>, problems: &mut Problems| {
        let message = format!("a client certificate needs `{key}`, too");
        problems.wrong(span, message, format!("write `{key} = \"…pem\"`"));
    };
    match (&file.certificate, &file.key) {
        (Some(certificate), None) => half("key", &certificate.span, problems),
        (None, Some(key)) => half("certificate", &key.span, problems),
        (Some(_), Some(_)) | (None, None) => {}
    }
    let identity = path(&file.certificate, problems).zip(path(&file.key, problems));
    ca.map(|ca| MasterTls { ca, server_name, identity })
}

fn join_token(file: &FileMaster, problems: &mut Problems) -> Option<JoinTokenSource> {
    if let (Some(_), Some(second)) = (&file.join_token, &file.join_token_file) {
        let message = "there are two join tokens";
        problems.wrong(&second.span, message, "write `join_token` or `join_token_file`, not both");
    }
    match &file.join_token {
        // An empty one is what an environment without a token gives.
        Some(token) if !token.value.is_empty() => Some(JoinTokenSource::Text(token.value.clone())),
        Some(_) | None => path(&file.join_token_file, problems).map(JoinTokenSource::File),
    }
}

fn dataplane(file: &FileDataplane, problems: &mut Problems) -> Dataplane {
    let socket = file.socket.as_ref().and_then(|text| accept(unix_path(&text.value), &text.span, problems));
    let unit = file.unit.as_ref().and_then(|text| accept(unit(&text.value), &text.span, problems));
    Dataplane {
        socket: socket.unwrap_or_else(|| DATAPLANE_SOCKET.into()),
        unit: unit.unwrap_or_else(|| DATAPLANE_UNIT.to_owned()),
    }
}

/// A service's name, which becomes an argument of `systemctl`: no pattern, no option, no other type of unit.
fn unit(text: &str) -> Result<String, Refusal> {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let name =
        text.strip_suffix(".service").filter(|name| name.starts_with(|c: char| c.is_ascii_alphanumeric()));
    match name {
        Some(_) if text.len() <= UNIT_BYTES_MAX && text.bytes().all(is_known) => Ok(text.to_owned()),
        Some(_) | None => Err(Refusal::new(
            format!("{} is no name of a service", quote(text)),
            "write one such as \"millrace-dataplane.service\"",
        )),
    }
}

fn path(field: &Option<At<String>>, problems: &mut Problems) -> Option<PathBuf> {
    let At { value: text, span } = field.as_ref()?;
    if text.starts_with('/') && !text.contains('\0') {
        return Some(Path::new(text).to_owned());
    }
    problems.wrong(span, format!("{} is no absolute path", quote(text)), "write one that begins with `/`");
    None
}
