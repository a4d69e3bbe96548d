//! What holds where the file says nothing: every default is a constant with its reason, gathered in `Default`s.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{HalfClose, Limits, Policy, Pool, Retries, SocketAccess, SocketOptions, TcpKeepalive, Timeouts};

/// Only from this host: the admin API has no login of its own.
pub const ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);
/// The admin API has no login: whoever may connect may do anything.
pub const ADMIN_SOCKET_MODE: u32 = 0o600;

/// What one node is named for.
pub const CONNECTIONS: u32 = 100_000;
/// Eight thousand exchanges in the middle of large bodies; those of small ones and of streams hold next to nothing.
pub const WORKER_MEMORY_BYTES: u64 = 512 << 20;
/// Room for long cookies and tokens; nginx takes 32 KiB too (4 buffers of 8 KiB).
pub const REQUEST_HEAD_BYTES: u32 = 32 * 1024;
/// More than browsers and SDKs send by far; a bound on the work for one head.
pub const REQUEST_HEADER_FIELDS: u32 = 128;
/// A head is one or two packets: who takes longer is slow on purpose.
pub const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A phone that loses its network in an upload comes back within this, or not at all.
pub const REQUEST_BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// nginx's, which clients have learnt to live with.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// As for request bodies, the other way round.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Most chat completions end within this; a stop that takes longer is killed by systemd (`TimeoutStopSec=90`).
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Two retransmitted SYNs fit at an edge's distances; beyond it another endpoint is the better try.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// What the SDKs of OpenAI and Anthropic wait by default: a completion that is not streamed has no byte before its end, and a
/// proxy that gives up earlier turns a slow answer into an error that the client then retries.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_mins(10);
/// A model that reasons may be silent between two events for a long time.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// One retry: it hides a dead endpoint, and cannot turn an overload into a storm.
pub const RETRY_ATTEMPTS: u32 = 2;
/// A chat request with its history fits; the memory that a retry may cost is small and known.
pub const RETRY_BODY_BYTES_MAX: u64 = 64 * 1024;

/// Streams differ in length by orders of magnitude, so turns say little about load.
pub const POLICY: Policy = Policy::LeastInFlight;
/// Endpoints get equal shares.
pub const WEIGHT: u32 = 1;
/// Far more than one worker needs between two bursts.
pub const POOL_IDLE_PER_ENDPOINT: u32 = 512;
/// Below the five seconds after which uvicorn and Node close an idle connection, without saying so: a request that meets the
/// close is lost. Under load connections wait for milliseconds, so reuse does not suffer.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// The usual time to live of names that fail over.
pub const DNS_REFRESH: Duration = Duration::from_secs(30);

/// With [`UNHEALTHY_AFTER`] a dead endpoint is out within 15 seconds.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// A health page that takes longer belongs to an endpoint in trouble.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// One good answer can be luck.
pub const HEALTHY_AFTER: u32 = 2;
/// One lost probe is no outage.
pub const UNHEALTHY_AFTER: u32 = 3;
/// What health pages answer.
pub const EXPECTED_STATUS: u16 = 200;

/// A shell's `nc -N` gets its answer, and a chat that was closed still frees its model at once.
pub const HALF_CLOSE: HalfClose = HalfClose::Auto;

/// Linux's own `somaxconn`, so that a burst of new clients is not turned away.
pub const BACKLOG: u32 = 4096;
/// Enough to keep a fast path busy; a slow reader's tokens wait here in the proxy, where they can be counted, and not
/// in megabytes of kernel memory.
pub const NOTSENT_LOWAT_BYTES: u32 = 128 * 1024;
/// As nginx has it: a proxy in front runs as another user, and the rights of the folder say who comes in.
pub const LISTENER_SOCKET_MODE: u32 = 0o666;
/// The queue that `fastopen = true` asks for on a listener.
pub const FASTOPEN_QUEUE: u32 = 256;
/// Well inside the timeouts of home routers.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// With [`KEEPALIVE_PROBES`] a dead peer is known a minute later.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// See [`KEEPALIVE_INTERVAL`].
pub const KEEPALIVE_PROBES: u32 = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            requests: None,
            worker_memory_bytes: WORKER_MEMORY_BYTES,
            request_head_bytes: REQUEST_HEAD_BYTES,
            request_header_fields: REQUEST_HEADER_FIELDS,
            request_head_timeout: REQUEST_HEAD_TIMEOUT,
            request_body_timeout: REQUEST_BODY_TIMEOUT,
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
            send_timeout: SEND_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: CONNECT_TIMEOUT, first_byte: FIRST_BYTE_TIMEOUT, idle: IDLE_TIMEOUT, total: None }
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: RETRY_ATTEMPTS, body_bytes_max: RETRY_BODY_BYTES_MAX, unsafe_methods: false }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { idle_per_endpoint: POOL_IDLE_PER_ENDPOINT, idle_timeout: POOL_IDLE_TIMEOUT }
    }
}

impl Default for TcpKeepalive {
    fn default() -> Self {
        Self { idle: KEEPALIVE_IDLE, interval: KEEPALIVE_INTERVAL, probes: KEEPALIVE_PROBES }
    }
}

impl SocketOptions {
    /// What a listener has where the file says nothing.
    pub fn listener() -> Self {
        Self { notsent_lowat: Some(NOTSENT_LOWAT_BYTES), ..Self::cluster() }
    }

    /// What a cluster has where the file says nothing; what is for listeners only means nothing there.
    pub fn cluster() -> Self {
        Self {
            congestion: None,
            nodelay: true,
            notsent_lowat: None,
            keepalive: None,
            send_buffer: None,
            receive_buffer: None,
            fastopen: 0,
            defer_accept: None,
            backlog: BACKLOG,
            shared: false,
            freebind: false,
            access: SocketAccess::listener(),
        }
    }
}

impl SocketAccess {
    /// A listener's where the file says nothing.
    pub fn listener() -> Self {
        Self { mode: LISTENER_SOCKET_MODE, owner: None, group: None }
    }

    /// The admin API's where the file says nothing.
    pub fn admin() -> Self {
        Self { mode: ADMIN_SOCKET_MODE, owner: None, group: None }
    }
}
