//! `[[listeners]]` as written, and the socket options that clusters have too.

use schemars::JsonSchema;
use serde::Deserialize;

use super::value::{At, DurationText, Section, SizeText, Strings, Switch};
use crate::config::words;

/// Where connections come in.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "bind"]))]
pub(crate) struct Listener {
    /// Unique among listeners.
    pub(crate) name: Option<At<String>>,
    /// An address such as `0.0.0.0:8080`, `[::]:8080` or `unix:/run/millrace/http.sock`, or a list of them.
    pub(crate) bind: Option<At<Strings>>,
    /// What is spoken on it. Default: `http`.
    #[schemars(extend("enum" = words::LISTENER_PROTOCOLS.names()))]
    pub(crate) protocol: Option<At<String>>,
    /// What the end of a client's input means before it has its answer: `cancel` (the client is gone), `serve` (it is answered all
    /// the same) or `auto` (serve what only reads, cancel what generates). Default: `auto`.
    #[schemars(extend("enum" = words::HALF_CLOSES.names()))]
    pub(crate) half_close: Option<At<String>>,
    /// Options of the accepted sockets.
    pub(crate) socket: Section<Socket>,
}

/// Socket options.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Socket {
    /// TCP congestion control, such as `bbr`. Default: the kernel's.
    pub(crate) congestion: Option<At<String>>,
    /// Send small packets at once (`TCP_NODELAY`). Default: true.
    pub(crate) nodelay: Option<At<bool>>,
    /// Unsent data that the kernel may hold for a slow reader (`TCP_NOTSENT_LOWAT`), or `off`.
    /// Default: 128KiB on listeners, off on clusters.
    pub(crate) notsent_lowat: Option<At<SizeText>>,
    /// TCP keepalive probes. Default: none.
    pub(crate) keepalive: Option<Section<Keepalive>>,
    /// `SO_SNDBUF`. Default: the kernel's, which tunes itself.
    pub(crate) send_buffer: Option<At<SizeText>>,
    /// `SO_RCVBUF`. Default: the kernel's, which tunes itself.
    pub(crate) receive_buffer: Option<At<SizeText>>,
    /// TCP Fast Open. Listeners: the length of its queue, or true for 256; clusters: true or false. Default: off.
    pub(crate) fastopen: Option<At<Switch>>,
    /// Listeners only: a connection is accepted when its first bytes are there, or after this long. Default: `off`.
    pub(crate) defer_accept: Option<At<DurationText>>,
    /// Listeners only: length of the accept queue. Default: 4096.
    pub(crate) backlog: Option<At<i64>>,
    /// Listeners only: other processes may listen at the same address, and get a share of its connections. Default: false.
    pub(crate) shared: Option<At<bool>>,
    /// Listeners only: bind addresses too that this host does not have yet (`IP_FREEBIND`). Default: false.
    pub(crate) freebind: Option<At<bool>>,
    /// Listeners with a Unix socket only: the permissions of its file, in octal. Default: `0666`.
    pub(crate) mode: Option<At<String>>,
    /// Listeners with a Unix socket only: the user that its file belongs to, by name or number. Default: this process's.
    pub(crate) owner: Option<At<String>>,
    /// Listeners with a Unix socket only: the group that its file belongs to, by name or number. Default: this process's.
    pub(crate) group: Option<At<String>>,
}

/// TCP keepalive probes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Keepalive {
    /// Silence before the first probe, in whole seconds. Default: 60s.
    pub(crate) idle: Option<At<DurationText>>,
    /// Time between probes, in whole seconds. Default: 15s.
    pub(crate) interval: Option<At<DurationText>>,
    /// Unanswered probes after which the connection is dropped. Default: 4.
    #[schemars(range(min = 1, max = 127))]
    pub(crate) probes: Option<At<i64>>,
}
