//! Whether the addresses that the config binds are free: tried, since only the kernel knows all that may stand in the way
//! (wildcards, `SO_REUSEPORT` of others, privileges). Nothing stays bound. Who holds a taken one is read from `/proc`.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use proto::config::{Bind, Config};

use super::Finding;
use crate::sys::unix::{self, Standing};

const HTTP_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);
const ADMIN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);
/// The program's name as `/proc/PID/comm` has it: the kernel keeps 15 bytes.
const OWN_COMM: &str = "millrace-datapl";

/// One finding for each address of the listeners and the admin API.
pub(super) fn free(config: Option<&Config>) -> Vec<Finding> {
    let Some(config) = config else {
        return vec![tcp("listener", HTTP_DEFAULT, false), tcp("admin", ADMIN_DEFAULT, false)];
    };
    let mut findings = Vec::new();
    for listener in &config.listeners {
        let name = format!("listener {}", listener.name);
        findings.extend(listener.binds.iter().map(|bind| match bind {
            Bind::Tcp(address) => tcp(&name, *address, listener.socket.freebind),
            Bind::Unix(path) => unix(&name, path),
        }));
    }
    findings.extend(config.admin.listen.map(|address| tcp("admin", address, false)));
    findings.extend(config.admin.socket.as_deref().map(|path| unix("admin socket", path)));
    findings
}

fn tcp(name: &str, address: SocketAddr, freebind: bool) -> Finding {
    let Err(error) = TcpListener::bind(address) else {
        return Finding::ok(name, format!("{address} is free"));
    };
    let (kind, port) = (error.kind(), address.port());
    if kind == io::ErrorKind::AddrNotAvailable && freebind {
        return Finding::ok(name, format!("{address} is not here, and is bound all the same (freebind)"));
    }
    if kind == io::ErrorKind::AddrInUse {
        return taken(name, &address.to_string(), tcp_inode(port), &format!("ss -ltnp 'sport = :{port}'"));
    }
    let mend = if kind == io::ErrorKind::PermissionDenied {
        format!(
            "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, \
             or sysctl -w net.ipv4.ip_unprivileged_port_start={port}"
        )
    } else if kind == io::ErrorKind::AddrNotAvailable {
        format!("ip address add {} dev INTERFACE", address.ip())
    } else {
        format!("bind another address than {address}")
    };
    Finding::fail(name, format!("{address} cannot be bound: {error}"), mend)
}

fn unix(name: &str, path: &Path) -> Finding {
    let shown = path.display();
    match unix::look(path) {
        Ok(Standing::Held) => {
            return taken(name, &shown.to_string(), unix_inode(path), &format!("ss -lxp src {shown}"));
        }
        Ok(Standing::Other(what)) => {
            let mend = "move it away, or write another path".to_owned();
            return Finding::fail(name, format!("{what} stands at {shown}"), mend);
        }
        Ok(Standing::Nothing | Standing::Stale) | Err(_) => {}
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() {
        return Finding::ok(name, format!("{shown} is free"));
    }
    Finding::fail(
        name,
        format!("{} does not exist", folder.display()),
        format!("mkdir -p {}, or RuntimeDirectory= in the unit", folder.display()),
    )
}

/// Doctor is often run beside a data plane that serves: then its ports are taken, and that is as it should be.
fn taken(name: &str, address: &str, inode: Option<u64>, find: &str) -> Finding {
    match inode.and_then(holder) {
        Some((pid, program)) if program == OWN_COMM => {
            Finding::ok(name, format!("{address} is served by the running data plane (pid {pid})"))
        }
        Some((pid, program)) => Finding::fail(
            name,
            format!("{address} is taken by {program} (pid {pid})"),
            format!("stop {program}, or bind another address"),
        ),
        None => Finding::fail(
            name,
            format!("{address} is taken"),
            format!("sudo {find} names the program: stop it, or bind another address"),
        ),
    }
}

/// The inode of a TCP socket that listens on `port` (proc_net_tcp.rst: fields are address, state, inode).
fn tcp_inode(port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| {
        fs::read_to_string(table).ok()?.lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTEN;
            listens.then(|| fields.get(9)?.parse().ok())?
        })
    })
}

/// The inode of the Unix socket that listens on `path` (its accepted connections show the same path).
fn unix_inode(path: &Path) -> Option<u64> {
    const ACCEPTS: &str = "00010000"; // __SO_ACCEPTCON
    let path = path.to_str()?;
    fs::read_to_string("/proc/net/unix").ok()?.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let listens = *fields.get(7)? == path && *fields.get(3)? == ACCEPTS;
        listens.then(|| fields.get(6)?.parse().ok())?
    })
}

/// Process and program that hold the socket; none where this process may not look into the other's descriptors.
fn holder(inode: u64) -> Option<(u32, String)> {
    let target = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        descriptors
            .find(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == target.as_str()))?;
        let program = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((pid, program.trim().to_owned()))
    })
}
