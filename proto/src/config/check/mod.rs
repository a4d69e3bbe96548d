//! From what was written to what it means: all rules of the config are in this folder, one file for each part.
//!
//! A value that is refused is noted and stands at its default while the rest is checked, so that one pass finds every
//! mistake; [`Problems`] then keeps the result from being used.

mod access;
pub(super) mod address;
mod cluster;
mod http;
mod limits;
mod listener;
mod route;
mod socket;
mod url;
pub(super) mod values;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use super::file::value::{At, Section};
use super::file::{self, File};
use super::problem::Problems;
use super::read::suggest::{nearest, quote};
use super::{
    AccessLog, Admin, Bind, Config, Driver, Log, LogLevel, Node, Role, Runtime, SocketAccess, defaults, words,
};
use address::Reach;
use listener::Binds;
use values::{Refusal, accept, integer, word};

/// Longest name of a node, listener, route or cluster: names are labels of metrics.
const NAME_MAX: usize = 128;
/// Threads beyond this are a typing error on any machine of today.
const WORKERS_MAX: i64 = 1024;

/// The least that serves something; what an empty file is answered with.
const MINIMAL: &str = r#"write at least:
[[listeners]]
name = "http"
bind = "0.0.0.0:8080"

[[routes]]
name = "all"
cluster = "llm"

[[clusters]]
name = "llm"
endpoints = [{ address = "127.0.0.1:8000" }]"#;

/// Checks everything.
pub(crate) fn config(file: &File, hostname: &str, problems: &mut Problems) -> Config {
    let file_listeners = file.listeners.as_deref().unwrap_or_default();
    let file_routes = file.routes.as_deref().unwrap_or_default();
    let file_clusters = file.clusters.as_deref().unwrap_or_default();
    let is_read_whole = problems.is_empty();
    check_presence(file_listeners.is_empty(), file_routes.is_empty(), file_clusters.is_empty(), problems);

    let mut binds = Binds::default();
    let admin = admin(&file.admin, &mut binds, problems);
    let listeners = listener::listeners(file_listeners, &mut binds, problems);
    let clusters = cluster::clusters(file_clusters, problems);
    let routes = route::routes(file_routes, &listeners, &clusters, is_read_whole, problems);
    Config {
        node: node(&file.node.value, hostname, problems),
        runtime: runtime(&file.runtime.value, problems),
        admin,
        log: log(&file.log.value, problems),
        limits: limits::limits(&file.limits.value, problems),
        listeners,
        routes,
        clusters,
    }
}

/// A config that can serve nothing is a mistake, however it came about.
fn check_presence(no_listeners: bool, no_routes: bool, no_clusters: bool, problems: &mut Problems) {
    let top = 0..0;
    if no_listeners && no_routes {
        problems.missing(
            &top,
            "listeners",
            "nothing to serve: there are no listeners and no routes",
            MINIMAL,
        );
        return;
    }
    if no_listeners {
        let help = "write at least:\n[[listeners]]\nname = \"http\"\nbind = \"0.0.0.0:8080\"";
        problems.missing(&top, "listeners", "there are no listeners", help);
    }
    if no_routes {
        let help = "write at least:\n[[routes]]\nname = \"all\"\ncluster = \"…\"";
        problems.missing(&top, "routes", "there are no routes", help);
    }
    if no_clusters {
        let help =
            "write at least:\n[[clusters]]\nname = \"llm\"\nendpoints = [{ address = \"127.0.0.1:8000\" }]";
        problems.missing(&top, "clusters", "there are no clusters", help);
    }
}

fn node(file: &file::Node, hostname: &str, problems: &mut Problems) -> Node {
    let id = match &file.id {
        Some(id) => accept(label(&id.value), &id.span, problems).unwrap_or_default(),
        // A container may run without a name of its own.
        None if hostname.is_empty() => "localhost".to_owned(),
        None => hostname.to_owned(),
    };
    let region = match &file.region {
        Some(region) => accept(free_text(&region.value), &region.span, problems).unwrap_or_default(),
        None => String::new(),
    };
    Node { id, role: word(&file.role, "role", &words::ROLES, Role::Edge, problems), region }
}

fn runtime(file: &file::Runtime, problems: &mut Problems) -> Runtime {
    Runtime {
        workers: integer(&file.workers, 0..=WORKERS_MAX, 0, problems),
        driver: word(&file.driver, "driver", &words::DRIVERS, Driver::Auto, problems),
    }
}

fn admin(file: &Section<file::Admin>, binds: &mut Binds, problems: &mut Problems) -> Admin {
    let listen = match &file.value.listen {
        None => Some(defaults::ADMIN_LISTEN),
        Some(text) if text.value == "off" => None,
        Some(text) => accept(address::socket_addr(&text.value, Reach::ThisHost), &text.span, problems),
    };
    let socket = match &file.value.socket {
        Some(text) if text.value != "off" => {
            let path = text.value.strip_prefix("unix:").unwrap_or(&text.value);
            accept(address::unix_path(path), &text.span, problems)
        }
        _ => None,
    };
    let at = |field: &Option<At<String>>| field.as_ref().map_or(file.span.clone(), |text| text.span.clone());
    if let Some(address) = listen {
        binds.claim(Bind::Tcp(address), "the admin API", &at(&file.value.listen), problems);
    }
    if let Some(path) = &socket {
        binds.claim(Bind::Unix(path.clone()), "the admin API", &at(&file.value.socket), problems);
    }
    Admin { listen, access: admin_access(&file.value, problems), socket }
}

fn admin_access(file: &file::Admin, problems: &mut Problems) -> SocketAccess {
    let written = access::Written {
        mode: file.socket_mode.as_ref(),
        owner: file.socket_owner.as_ref(),
        group: file.socket_group.as_ref(),
    };
    let is_off = file.socket.as_ref().is_none_or(|text| text.value == "off");
    for (key, span) in written.keys().filter(|_| is_off) {
        let message = format!("`socket_{key}` is for `admin.socket`, which is off");
        problems.wrong(span, message, "take it out, or write the path of a `socket`");
    }
    access::check(&written, SocketAccess::admin(), problems)
}

fn log(file: &file::Log, problems: &mut Problems) -> Log {
    let level = word(&file.level, "log level", &words::LOG_LEVELS, LogLevel::Info, problems);
    let access = match &file.access {
        None => AccessLog::Off,
        Some(text) => accept(access_log(&text.value), &text.span, problems).unwrap_or(AccessLog::Off),
    };
    Log { level, access }
}

fn access_log(text: &str) -> Result<AccessLog, Refusal> {
    match text {
        "off" => Ok(AccessLog::Off),
        "stdout" => Ok(AccessLog::Stdout),
        path if path.starts_with('/') && !path.ends_with('/') && !path.contains('\0') => {
            Ok(AccessLog::File(Path::new(path).to_owned()))
        }
        word => {
            let message = format!("{} is no place for the access log", quote(word));
            let help = nearest(word, ["off", "stdout"]).map(|meant| format!("did you mean \"{meant}\"?"));
            let general = "write \"off\", \"stdout\" or the absolute path of a file";
            Err(Refusal::new(message, help.unwrap_or_else(|| general.to_owned())))
        }
    }
}

/// The names that are taken.
struct Names {
    /// What has these names, such as `listener`.
    what: &'static str,
    used: HashSet<String>,
}

impl Names {
    fn new(what: &'static str) -> Self {
        Self { what, used: HashSet::new() }
    }

    /// The name of the table at `table`, which no other has.
    fn take(&mut self, name: &Option<At<String>>, table: &Range<usize>, problems: &mut Problems) -> String {
        let what = self.what;
        let Some(At { value: name, span }) = name else {
            problems.missing(table, "name", format!("this {what} has no name"), "write `name = \"…\"`");
            return String::new();
        };
        accept(label(name), span, problems);
        if !self.used.insert(name.clone()) {
            let message = format!("there are two {what}s with the name {}", quote(name));
            problems.wrong(span, message, "give each its own name");
        }
        name.clone()
    }
}

/// A name that can stand in a metric, a path of the API and a log line.
fn label(text: &str) -> Result<String, Refusal> {
    let help = "write letters, digits, `.`, `_` and `-`";
    if text.is_empty() {
        return Err(Refusal::new("a name cannot be empty", help));
    }
    if text.len() > NAME_MAX {
        return Err(Refusal::new(format!("a name has at most {NAME_MAX} characters"), help));
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(Refusal::new(format!("{} is no name", quote(text)), help));
    }
    Ok(text.to_owned())
}

/// Any text that fits on a line.
pub(super) fn free_text(text: &str) -> Result<String, Refusal> {
    if text.len() > NAME_MAX {
        return Err(Refusal::new(format!("this text has more than {NAME_MAX} bytes"), "write a shorter one"));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::new("this text has control characters", "write it on one line"));
    }
    Ok(text.to_owned())
}
