//! Our data plane, with one worker.

use std::path::Path;
use std::process::Command;

use super::{Fault, ORIGIN_CONNECTIONS_KEPT, Program, Seat};

const NAME: &str = "millrace-dataplane";

/// Built beside this program, or in `PATH`.
pub(super) fn find(given: Option<&Path>) -> Result<Program, Fault> {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.join(NAME))).filter(|file| file.is_file());
    Program::find(NAME, given.or(beside.as_deref()), "--version", "build it with `make build`")
}

pub(super) fn config(seat: &Seat) -> String {
    let Seat { listen, origin, .. } = seat;
    format!(
        r#"[node]
id = "bench"

[runtime]
workers = 1

[admin]
listen = "off"

[log]
level = "warn"
access = "off"

[[listeners]]
name = "http"
bind = "{listen}"
protocol = "http"

[[routes]]
name = "all"
path = "/"
cluster = "origin"

[[clusters]]
name = "origin"
endpoints = [{{ address = "{origin}" }}]
pool = {{ idle_per_endpoint = {ORIGIN_CONNECTIONS_KEPT} }}
"#
    )
}

pub(super) fn arguments(command: &mut Command, file: &Path) {
    command.args(["run", "-c"]).arg(file);
}
