//! What of this host stands in the way of a config: told by `check` beforehand, and by a refusal when it is applied. Here it
//! is only looked at: nothing is bound, opened or changed.

use std::io;
use std::path::Path;
use std::sync::Arc;

use proto::config::{AccessLog, Bind, Config, SocketAccess};

use super::blocking::{FILE_WITHIN, within};
use super::refusal::{Cause, Refusal};
use super::sockets::BindFailure;
use crate::sys::unix::{self, Obstacle, Standing};

/// What is allowed but probably not meant, on this host too.
pub(crate) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = config.warnings();
    warnings.extend(unavailable_congestion(config));
    warnings.extend(obstacles_of_unix_sockets(config));
    warnings.extend(obstacle_of_log(&config.log.access));
    warnings
}

/// [`warnings`], looked for off this thread: a file system that hangs is a warning, too.
pub(crate) async fn warnings_in_time(config: &Arc<Config>) -> Vec<String> {
    let of_thread = Arc::clone(config);
    match within(FILE_WITHIN, move || Ok(warnings(&of_thread))).await {
        Ok(warnings) => warnings,
        Err(error) => {
            let mut warnings = config.warnings();
            warnings.push(format!("the files that the config names cannot be looked at: {error}"));
            warnings
        }
    }
}

/// An address of a listener that could not be bound.
pub(crate) fn unbound(text: &str, config: &Config, failure: &BindFailure) -> Refusal {
    let BindFailure { at, error } = failure;
    let place = config.listeners.iter().position(|listener| listener.name == at.listener);
    let path = place.map_or_else(String::new, |place| format!("listeners[{place}].bind"));
    let message = format!("the listener \"{}\" cannot be bound to {}: {error}", at.listener, at.bind);
    Refusal::at(Cause::Address, text, path, &at.bind.to_string(), message, &bind_help(&at.bind, error))
}

/// Rights that the admin socket could not be given.
pub(crate) fn unusable_admin_access(text: &str, path: &Path, error: &io::Error) -> Refusal {
    let value = path.display().to_string();
    let message = format!("the admin socket {value} cannot have its permissions: {error}");
    let help = bind_help(&Bind::Unix(path.to_owned()), error);
    Refusal::at(Cause::Address, text, "admin.socket".to_owned(), &value, message, &help)
}

/// The access log could not be opened.
pub(crate) fn unusable_log(text: &str, config: &Config, error: &io::Error) -> Refusal {
    let value = written_log(&config.log.access);
    let message = format!("the access log {value} cannot be opened: {error}");
    let help = "write a file in a folder that this user may write to, \"stdout\" or \"off\"";
    Refusal::at(Cause::AccessLog, text, "log.access".to_owned(), &value, message, help)
}

/// The access log would be written into the config's own file, which no later try makes good.
pub(crate) fn log_into_config(text: &str, config: &Config) -> Refusal {
    let value = written_log(&config.log.access);
    let message = format!("{value} is the file of this config, no place for the access log");
    Refusal::at(Cause::Invalid, text, "log.access".to_owned(), &value, message, "write another file")
}

fn written_log(log: &AccessLog) -> String {
    match log {
        AccessLog::File(path) => path.display().to_string(),
        AccessLog::Stdout => "stdout".to_owned(),
        AccessLog::Off => "off".to_owned(),
    }
}

/// What to do about an address that cannot be bound.
pub(crate) fn bind_help(bind: &Bind, error: &io::Error) -> String {
    if let Some(obstacle) = Obstacle::of(error) {
        return obstacle.help();
    }
    match (error.kind(), error.raw_os_error(), bind) {
        (_, Some(libc::EAFNOSUPPORT), _) => {
            "this kernel has no IPv6: take the address out, or turn IPv6 on".to_owned()
        }
        (io::ErrorKind::AddrInUse, _, Bind::Tcp(address)) => {
            format!("`ss -ltnp 'sport = :{}'` shows who has it", address.port())
        }
        (io::ErrorKind::AddrInUse, _, Bind::Unix(path)) => {
            format!("`ss -lxp src {}` shows who has it", path.display())
        }
        (io::ErrorKind::PermissionDenied, _, _) => {
            "ports below 1024 need CAP_NET_BIND_SERVICE, a path needs a folder that this user may write to"
                .to_owned()
        }
        (io::ErrorKind::AddrNotAvailable, _, _) => {
            "the host does not have this address: see `ip address`. For one that comes and goes write \
             `socket = { freebind = true }`"
                .to_owned()
        }
        (io::ErrorKind::NotFound, _, Bind::Unix(path)) => {
            format!(
                "make its folder: `mkdir -p {}`, or RuntimeDirectory= in the unit",
                folder(path).display()
            )
        }
        _ => "write another address".to_owned(),
    }
}

/// Congestion control algorithms that the kernel does not have loaded: sockets keep its default then.
fn unavailable_congestion(config: &Config) -> Vec<String> {
    let Ok(available) = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control") else {
        return Vec::new();
    };
    let of_listeners = config.listeners.iter().map(|listener| ("listener", &listener.name, &listener.socket));
    let of_clusters = config.clusters.iter().map(|cluster| ("cluster", &cluster.name, &cluster.socket));
    of_listeners
        .chain(of_clusters)
        .filter_map(|(kind, name, socket)| {
            let wanted = socket.congestion.as_deref()?;
            let is_there = available.split_whitespace().any(|one| one == wanted);
            (!is_there).then(|| {
                format!(
                    "the {kind} \"{name}\" wants the congestion control {wanted}, which this kernel does not have \
                     loaded (`modprobe tcp_{wanted}`): its default is used"
                )
            })
        })
        .collect()
}

fn obstacles_of_unix_sockets(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for listener in &config.listeners {
        for bind in &listener.binds {
            if let Bind::Unix(path) = bind
                && let Err(error) = may_bind(path, &listener.socket.access)
            {
                found.push(cannot_bind(&format!("the listener \"{}\"", listener.name), bind, &error));
            }
        }
    }
    if let Some(path) = &config.admin.socket
        && let Err(error) = may_bind(path, &config.admin.access)
    {
        found.push(cannot_bind("the admin API", &Bind::Unix(path.clone()), &error));
    }
    found
}

fn cannot_bind(what: &str, bind: &Bind, error: &io::Error) -> String {
    format!("{what} cannot be bound to {bind}: {error} ({})", bind_help(bind, error))
}

/// A socket that is held is no obstacle here: `check` is mostly run beside the data plane that has it.
fn may_bind(path: &Path, access: &SocketAccess) -> io::Result<()> {
    unix::find_owners(access)?;
    match unix::look(path)? {
        Standing::Nothing => std::fs::metadata(folder(path)).map(|_| ()),
        Standing::Stale | Standing::Held => Ok(()),
        Standing::Other(what) => Err(Obstacle::Occupied(what).into_error()),
    }
}

fn obstacle_of_log(log: &AccessLog) -> Option<String> {
    let AccessLog::File(path) = log else { return None };
    let shown = path.display();
    if path.is_dir() {
        return Some(format!("the access log {shown} cannot be opened: it is a folder"));
    }
    let error = std::fs::metadata(folder(path)).err()?;
    Some(format!("the access log {shown} cannot be opened: its folder is not there ({error})"))
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
