//! HAProxy, with one thread.

use std::path::Path;
use std::process::Command;

use super::{Fault, Program, Seat};

/// Each connection takes two files, and the usual hard limit of a process is 20,000 or more.
const CONNECTIONS: u32 = 9000;

pub(super) fn find(given: Option<&Path>) -> Result<Program, Fault> {
    Program::find("haproxy", given, "-v", "apt-get install haproxy")
}

pub(super) fn config(seat: &Seat) -> String {
    let Seat { listen, origin, .. } = seat;
    format!(
        "global
    nbthread 1
    maxconn {CONNECTIONS}

defaults
    mode http
    option http-no-delay
    http-reuse always
    timeout connect 5s
    timeout client 1h
    timeout server 1h

frontend clients
    bind {listen} backlog 4096
    default_backend origin

backend origin
    server origin {origin}
"
    )
}

pub(super) fn arguments(command: &mut Command, file: &Path) {
    command.args(["-db", "-q", "-f"]).arg(file);
}
