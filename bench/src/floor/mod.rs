//! The floor: relays that know no HTTP, one thread each, one upstream connection for each client connection. What the
//! barest of them costs is what this machine takes for moving the bytes; no proxy can be cheaper by much. They differ
//! only in how they ask the kernel, so they also say what a runtime costs. They are yardsticks and no proxies: no pool,
//! no limits on connections, no deadlines.

mod epoll;
mod pipe;
mod ring;
mod sys;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use clap::{Args, ValueEnum};
use socket2::{Domain, Socket, Type};

/// Connections that may wait to be accepted: more than any row opens at once.
const BACKLOG: i32 = 4096;
/// Bytes that are moved at once. Large enough that a bulk transfer is not made of system calls, small enough that a
/// core's cache holds what is in flight.
const CHUNK_SIZE: usize = 32 * 1024;

/// How a relay asks the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Kind {
    /// A bare io_uring with multishot receive into provided buffers.
    Ring,
    /// Edge-triggered epoll.
    Epoll,
    /// monoio with the ring that it sets up by default.
    Monoio,
    /// monoio with `COOP_TASKRUN` and `SINGLE_ISSUER`, which is where its ring is cheapest.
    MonoioTuned,
    /// tokio-uring with the ring that it sets up by default.
    TokioUring,
}

impl Kind {
    /// All of them, the barest first.
    pub const ALL: [Self; 5] = [Self::Ring, Self::Epoll, Self::Monoio, Self::MonoioTuned, Self::TokioUring];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Epoll => "epoll",
            Self::Monoio => "monoio",
            Self::MonoioTuned => "monoio-tuned",
            Self::TokioUring => "tokio-uring",
        }
    }
}

/// Arguments of `millrace-bench floor`.
#[derive(Clone, Debug, Args)]
pub struct FloorArgs {
    /// IP:PORT to listen on; port 0 takes a free one, which is printed.
    #[arg(long)]
    pub listen: SocketAddr,
    /// IP:PORT that each connection is relayed to.
    #[arg(long)]
    pub to: SocketAddr,
    /// How the kernel is asked.
    #[arg(long, value_enum, default_value = "ring")]
    pub kind: Kind,
}

/// Relays until the process is ended. It prints `floor listening on IP:PORT` when connections are accepted.
///
/// # Errors
/// The address cannot be listened on, or the kernel refuses what this kind needs.
pub fn run(args: &FloorArgs) -> io::Result<()> {
    let listener = listen(args.listen)?;
    println!("floor listening on {}", listener.local_addr()?);
    match args.kind {
        Kind::Ring => ring::run(&listener, args.to),
        Kind::Epoll => epoll::run(&listener, args.to),
        Kind::Monoio => pipe::monoio(listener, args.to, false),
        Kind::MonoioTuned => pipe::monoio(listener, args.to, true),
        Kind::TokioUring => pipe::tokio_uring(listener, args.to),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Resets a connection now, which also ends what waits on it: a stream that broke on one side must not end well on the
/// other.
fn reset(socket: impl AsFd) {
    // One that is reset already needs no more.
    let _ = rustix::net::connect_unspec(socket);
}
