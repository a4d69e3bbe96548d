//! `[[listeners]]`: where connections come in, and how their sockets are tuned.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One listener: a name, the addresses it binds and what is spoken there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Unique among listeners.
    pub name: String,
    /// At least one.
    pub binds: Vec<Bind>,
    /// What is spoken on it.
    pub protocol: ListenerProtocol,
    /// What the end of a client's input means.
    pub half_close: HalfClose,
    /// Options of the accepted sockets (and of the listening one, where they are inherited).
    pub socket: SocketOptions,
}

/// A local address: `0.0.0.0:8080`, `[::]:8080` or `unix:/run/millrace/http.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bind {
    /// An IP address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// As written in the config.
impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerProtocol {
    /// HTTP/1.0 and HTTP/1.1 in clear text.
    Http,
}

impl ListenerProtocol {
    /// As written in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
        }
    }
}

/// What it means that a client has sent the end of its side (FIN) and not yet got all of its answers: either it is gone, or it only
/// has nothing more to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HalfClose {
    /// Depends on the request and its answer: what generates text is cancelled, what only reads is served.
    Auto,
    /// The client is answered whatever it has sent in whole, then its connection is closed.
    Serve,
    /// The client is gone: its request is cancelled at the origin.
    Cancel,
}

impl HalfClose {
    /// As written in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Serve => "serve",
            Self::Cancel => "cancel",
        }
    }
}

/// Socket options, for accepted connections or for those dialled to a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketOptions {
    /// TCP congestion control such as `bbr`; the kernel's default unless given.
    pub congestion: Option<String>,
    /// `TCP_NODELAY`; on unless turned off.
    pub nodelay: bool,
    /// `TCP_NOTSENT_LOWAT` in bytes: how much unsent data the kernel may hold for a slow reader.
    pub notsent_lowat: Option<u32>,
    /// TCP keepalive probes; the kernel's default (none) unless given.
    pub keepalive: Option<TcpKeepalive>,
    /// `SO_SNDBUF` in bytes.
    pub send_buffer: Option<u32>,
    /// `SO_RCVBUF` in bytes.
    pub receive_buffer: Option<u32>,
    /// `TCP_FASTOPEN`: on a listener the length of the queue, 0 is off; on a cluster any value but 0 turns it on.
    pub fastopen: u32,
    /// `TCP_DEFER_ACCEPT`: a connection is accepted when its first bytes are there, or after this long.
    /// Listeners only.
    pub defer_accept: Option<Duration>,
    /// Length of the accept queue. Listeners only.
    pub backlog: u32,
    /// Whether other processes may listen at the same address (`SO_REUSEPORT`): then the kernel spreads connections over
    /// all of them. Without it an address that is taken is an error. Listeners only.
    pub shared: bool,
    /// Whether an address may be bound that this host does not have, or not yet (`IP_FREEBIND`). Listeners only.
    pub freebind: bool,
    /// Who may connect to the Unix sockets. Listeners only.
    pub access: SocketAccess,
}

/// Who may connect to a Unix socket: the permissions of its file, whatever the umask. To connect one needs the right to
/// write (unix(7)).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketAccess {
    /// Permission bits, at most 0o777.
    pub mode: u32,
    /// Its user; this process's unless given.
    pub owner: Option<Account>,
    /// Its group; unless given the one that a new file gets.
    pub group: Option<Account>,
}

/// A user or a group of the host. Whether it has one of this name is not known here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// By its number.
    Id(u32),
    /// By its name.
    Name(String),
}

/// As written in the config.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// TCP keepalive probes (RFC 9293, section 3.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpKeepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes after which the connection is dropped.
    pub probes: u32,
}
