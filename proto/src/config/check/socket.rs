//! The rules of `socket`, of listeners and of clusters. Who may connect to a Unix socket is in `access`.

use std::time::Duration;

use super::access;
use super::values::{Refusal, accept, integer, optional_whole_seconds, size, whole_seconds};
use crate::config::file;
use crate::config::file::value::{At, SizeText, Switch};
use crate::config::problem::Problems;
use crate::config::read::suggest::quote;
use crate::config::{Bind, SocketOptions, TcpKeepalive, defaults};

/// What the kernel takes for `TCP_KEEPIDLE` and `TCP_KEEPINTVL` (tcp.h).
const KEEPALIVE_MAX: Duration = Duration::from_secs(32_767);
/// What the kernel takes for `TCP_KEEPCNT` (tcp.h).
const PROBES_MAX: i64 = 127;
/// Below this a socket stalls on single segments.
const BUFFER_MIN: u64 = 4096;
/// Options of this kind are C ints; the kernel doubles what it is given.
const BUFFER_MAX: u64 = 1 << 30;
/// `TCP_CA_NAME_MAX` is 16, with the NUL at the end.
const CONGESTION_NAME_MAX: usize = 15;
/// The kernel keeps queue lengths in 16 bits in places.
const QUEUE_MAX: i64 = 65_535;
/// A client that sends nothing for longer is better accepted, and timed out with a log line.
const DEFER_ACCEPT_MAX: Duration = Duration::from_mins(5);

/// Checks the socket options of a listener with these addresses.
pub(super) fn of_listener(file: &file::Socket, binds: &[Bind], problems: &mut Problems) -> SocketOptions {
    check_kinds_of_address(file, binds, problems);
    let default = SocketOptions::listener();
    let seconds = Duration::from_secs(1)..=DEFER_ACCEPT_MAX;
    SocketOptions {
        fastopen: match file.fastopen.as_ref() {
            None | Some(At { value: Switch::Bool(false), .. }) => 0,
            Some(At { value: Switch::Bool(true), .. }) => defaults::FASTOPEN_QUEUE,
            Some(At { value: Switch::Number(queue), span }) => {
                let queue = Some(At { value: *queue, span: span.clone() });
                integer(&queue, 0..=QUEUE_MAX, default.fastopen, problems)
            }
        },
        defer_accept: optional_whole_seconds(&file.defer_accept, seconds, problems),
        backlog: integer(&file.backlog, 1..=QUEUE_MAX, default.backlog, problems),
        shared: file.shared.as_ref().map_or(default.shared, |field| field.value),
        freebind: file.freebind.as_ref().map_or(default.freebind, |field| field.value),
        access: access::check(&written_access(file), default.access.clone(), problems),
        ..of_both(file, default, problems)
    }
}

fn written_access(file: &file::Socket) -> access::Written<'_> {
    access::Written { mode: file.mode.as_ref(), owner: file.owner.as_ref(), group: file.group.as_ref() }
}

/// Options that would do nothing at these addresses are a misunderstanding. A listener whose addresses are all wrong has
/// its errors already.
fn check_kinds_of_address(file: &file::Socket, binds: &[Bind], problems: &mut Problems) {
    let has_unix = binds.iter().any(|bind| matches!(bind, Bind::Unix(_)));
    let has_tcp = binds.iter().any(|bind| matches!(bind, Bind::Tcp(_)));
    for (key, span) in written_access(file).keys().filter(|_| has_tcp && !has_unix) {
        let message = format!("`{key}` is for Unix sockets, and this listener has none");
        problems.wrong(span, message, "take it out, or bind `unix:` and a path");
    }
    if let Some(freebind) = file.freebind.as_ref().filter(|_| has_unix && !has_tcp) {
        let message = "`freebind` is for IP addresses, and this listener has none";
        problems.wrong(&freebind.span, message, "take it out, or bind an IP address");
    }
}

/// Checks the socket options of a cluster.
pub(super) fn of_cluster(file: &file::Socket, problems: &mut Problems) -> SocketOptions {
    let at_listeners = [
        ("defer_accept", file.defer_accept.as_ref().map(|field| &field.span)),
        ("backlog", file.backlog.as_ref().map(|field| &field.span)),
        ("shared", file.shared.as_ref().map(|field| &field.span)),
        ("freebind", file.freebind.as_ref().map(|field| &field.span)),
    ];
    let at_listeners = at_listeners.into_iter().filter_map(|(key, span)| Some((key, span?)));
    for (key, span) in at_listeners.chain(written_access(file).keys()) {
        let help = "take it out, or write it in the `socket` of a listener";
        problems.wrong(span, format!("`{key}` is for listeners: a cluster accepts no connections"), help);
    }
    let is_on = match file.fastopen.as_ref().map(|field| &field.value) {
        None => false,
        Some(Switch::Bool(on)) => *on,
        Some(Switch::Number(number)) => *number != 0,
    };
    SocketOptions { fastopen: u32::from(is_on), ..of_both(file, SocketOptions::cluster(), problems) }
}

fn of_both(file: &file::Socket, default: SocketOptions, problems: &mut Problems) -> SocketOptions {
    let mut buffer = |field: &Option<At<SizeText>>| {
        size(field, BUFFER_MIN..=BUFFER_MAX, problems).and_then(|bytes| u32::try_from(bytes).ok())
    };
    let send_buffer = buffer(&file.send_buffer);
    let receive_buffer = buffer(&file.receive_buffer);
    let notsent_lowat = match file.notsent_lowat.as_ref().map(|field| &field.value) {
        None => default.notsent_lowat,
        Some(SizeText::Text(text)) if text == "off" => None,
        Some(SizeText::Text(_) | SizeText::Bytes(_)) => buffer(&file.notsent_lowat),
    };
    let congestion =
        file.congestion.as_ref().and_then(|name| accept(congestion(&name.value), &name.span, problems));
    SocketOptions {
        congestion,
        nodelay: file.nodelay.as_ref().map_or(default.nodelay, |field| field.value),
        notsent_lowat,
        keepalive: file.keepalive.as_ref().map(|field| keepalive(&field.value, problems)),
        send_buffer,
        receive_buffer,
        ..default
    }
}

fn keepalive(file: &file::Keepalive, problems: &mut Problems) -> TcpKeepalive {
    let default = TcpKeepalive::default();
    let range = Duration::from_secs(1)..=KEEPALIVE_MAX;
    TcpKeepalive {
        idle: whole_seconds(&file.idle, range.clone(), default.idle, problems),
        interval: whole_seconds(&file.interval, range, default.interval, problems),
        probes: integer(&file.probes, 1..=PROBES_MAX, default.probes, problems),
    }
}

/// Whether the kernel has it is not known here: the data plane warns where it does not.
fn congestion(name: &str) -> Result<String, Refusal> {
    let is_name = !name.is_empty()
        && name.len() <= CONGESTION_NAME_MAX
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if is_name {
        return Ok(name.to_owned());
    }
    let message = format!("{} is no congestion control", quote(name));
    Err(Refusal::new(message, "write a name such as \"bbr\" or \"cubic\""))
}
