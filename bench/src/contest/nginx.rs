//! nginx: as an HTTP proxy with and without buffering, and as a TCP relay (`stream`).

use std::path::Path;
use std::process::Command;

use super::program::said_by;
use super::{Fault, ORIGIN_CONNECTIONS_KEPT, Program, Seat};

/// Both ends of the row with the most streams; below the usual hard limit of open files.
const CONNECTIONS: u32 = 16384;
const HELP: &str = "apt-get install nginx libnginx-mod-stream";
const STREAM_MODULE: &str = "ngx_stream_module.so";

/// What `proxy_buffering` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buffering {
    /// Every piece is passed on at once, in both directions.
    Off,
    /// Nothing is said about it.
    Default,
}

pub(super) fn find(given: Option<&Path>) -> Result<Program, Fault> {
    Program::find("nginx", given, "-v", HELP)
}

/// An nginx that has its module for TCP, built in or to be loaded.
pub(super) fn find_with_stream(given: Option<&Path>) -> Result<Program, Fault> {
    let program = find(given)?;
    match stream_module(&program.path)? {
        Module::BuiltIn => Ok(program),
        Module::File(file) if Path::new(&file).is_file() => Ok(program),
        Module::File(file) => Err(Fault::Missing(format!("there is no {file}; {HELP}"))),
        Module::None => Err(Fault::Missing(format!("this nginx has no stream module; {HELP}"))),
    }
}

pub(super) fn config(seat: &Seat, buffering: Buffering) -> String {
    let Seat { listen, origin, dir } = seat;
    let dir = dir.display();
    let temp_folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("    {name}_temp_path {dir}/{name};\n"))
        .collect();
    let buffering = match buffering {
        Buffering::Off => "            proxy_buffering off;\n            proxy_request_buffering off;\n",
        Buffering::Default => "",
    };
    format!(
        "{head}http {{
    access_log off;
    default_type application/octet-stream;
{temp_folders}    # Rivals close no connections either in the middle of a run.
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 0;
    upstream origin {{
        server {origin};
        keepalive {ORIGIN_CONNECTIONS_KEPT};
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen {listen} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
            proxy_read_timeout 1h;
{buffering}        }}
    }}
}}
",
        head = head(seat)
    )
}

pub(super) fn stream_config(seat: &Seat, program: &Program) -> String {
    let Seat { listen, origin, .. } = seat;
    let load = match stream_module(&program.path) {
        Ok(Module::File(file)) => format!("load_module {file};\n"),
        Ok(Module::BuiltIn | Module::None) | Err(_) => String::new(),
    };
    format!(
        "{load}{head}stream {{
    server {{
        listen {listen} backlog=4096;
        proxy_pass {origin};
        proxy_timeout 1h;
        tcp_nodelay on;
    }}
}}
",
        head = head(seat)
    )
}

pub(super) fn arguments(command: &mut Command, file: &Path, seat: &Seat) {
    // Without -e it would write to the log of the installed service before it has read its configuration.
    command.arg("-e").arg(seat.dir.join("error.log")).arg("-c").arg(file).arg("-p").arg(&seat.dir);
}

fn head(seat: &Seat) -> String {
    let dir = seat.dir.display();
    // As root it would change to a user that may not enter the seat's folder.
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    format!(
        "daemon off;\n{user}worker_processes 1;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log crit;\n\
         events {{\n    worker_connections {CONNECTIONS};\n}}\n"
    )
}

enum Module {
    BuiltIn,
    File(String),
    None,
}

fn stream_module(nginx: &Path) -> Result<Module, Fault> {
    let said = said_by(nginx, &["-V"])?;
    let mut words = said.split_ascii_whitespace();
    let modules = words.clone().find_map(|word| word.strip_prefix("--modules-path="));
    Ok(match words.find(|word| word.starts_with("--with-stream") && !word.contains('_')) {
        Some("--with-stream=dynamic") => {
            Module::File(format!("{}/{STREAM_MODULE}", modules.unwrap_or("/usr/lib/nginx/modules")))
        }
        Some(_) => Module::BuiltIn,
        None => Module::None,
    })
}
