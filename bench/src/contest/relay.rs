//! The bare relays, which are this program itself.

use std::path::Path;
use std::process::Command;

use super::{Fault, Program, Seat};
use crate::floor::Kind;

pub(super) fn find(given: Option<&Path>) -> Result<Program, Fault> {
    let path = match given {
        Some(given) => given.to_owned(),
        None => std::env::current_exe().map_err(|error| Fault::Missing(error.to_string()))?,
    };
    Ok(Program { path, version: env!("CARGO_PKG_VERSION").to_owned() })
}

pub(super) fn arguments(command: &mut Command, kind: Kind, seat: &Seat) {
    let (listen, origin) = (seat.listen.to_string(), seat.origin.to_string());
    command.args(["floor", "--kind", kind.name(), "--listen", &listen, "--to", &origin]);
}
