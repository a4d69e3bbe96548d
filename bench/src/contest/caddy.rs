//! Caddy, with one processor for its Go runtime.

use std::path::Path;
use std::process::Command;

use super::{Fault, ORIGIN_CONNECTIONS_KEPT, Program, Seat};

pub(super) fn find(given: Option<&Path>) -> Result<Program, Fault> {
    Program::find("caddy", given, "version", "apt-get install caddy")
}

pub(super) fn config(seat: &Seat) -> String {
    let Seat { listen, origin, .. } = seat;
    let (host, port) = (listen.ip(), listen.port());
    format!(
        "{{
	admin off
	auto_https off
	log {{
		output discard
	}}
}}

http://:{port} {{
	bind {host}
	reverse_proxy {origin} {{
		flush_interval -1
		transport http {{
			compression off
			keepalive 1h
			keepalive_idle_conns {ORIGIN_CONNECTIONS_KEPT}
			keepalive_idle_conns_per_host {ORIGIN_CONNECTIONS_KEPT}
		}}
	}}
}}
"
    )
}

pub(super) fn arguments(command: &mut Command, file: &Path, seat: &Seat) {
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    // Certificates and state of the user's own Caddy are none of this one's business.
    command
        .env("GOMAXPROCS", "1")
        .env("HOME", &seat.dir)
        .env("XDG_DATA_HOME", &seat.dir)
        .env("XDG_CONFIG_HOME", &seat.dir);
}
