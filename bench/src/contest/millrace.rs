//! Our data plane, with one worker: this build, or an earlier one that is given.

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

/// Where it is said to be: an earlier build is nowhere by itself.
pub(super) fn find_before(given: Option<&Path>) -> Result<Program, Fault> {
    let help = "keep the program of an earlier build, and give it with --program millrace-before=PATH";
    let given = given.ok_or_else(|| Fault::Missing(help.to_owned()))?;
    Program::find(NAME, Some(given), "--version", help)
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
