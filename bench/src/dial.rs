//! Opens many TCP connections without waiting for any: from several local addresses, within the limit of open files.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// Open files that a process needs beside its connections: standard streams, epoll, `/proc`, libraries.
const FILES_ASIDE: u64 = 64;

/// Connections from one local address: it has some 28,000 ports, and others need them too.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;

/// 127.0.0.1 to 127.0.0.250.
const SOURCES_MAX: u32 = 250;

/// Ports in use that are passed over before the kernel is asked to search: its search takes longer the more are in
/// use, up to milliseconds, and it gives up with half of them free.
const PORTS_TRIED_MAX: u32 = 64;

/// Where the kernel tells from which ports connections come.
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Local addresses to connect from, each port of them in turn.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    count: u8,
    ports: Range<u16>,
    next: u32,
}

impl Sources {
    /// So many addresses, 127.0.0.1 and up. With one, the kernel chooses address and port.
    pub(crate) fn new(count: u8) -> Self {
        let text = fs::read_to_string(PORT_RANGE).unwrap_or_default();
        let mut bounds = text.split_ascii_whitespace().map(|bound| bound.parse::<u16>().ok());
        let ports = match (bounds.next().flatten(), bounds.next().flatten()) {
            (Some(low), Some(high)) if low < high => low..high,
            // The kernel's own default.
            _ => 32_768..60_999,
        };
        let count = count.max(1);
        // Processes that begin together begin at different ports.
        let first = std::process::id().wrapping_mul(7919) % u32::from(ports.end - ports.start);
        Self { count, next: first * u32::from(count), ports }
    }

    /// As many as so many connections need.
    pub(crate) fn needed(connections: u32, target: SocketAddr) -> u8 {
        let needed = connections.div_ceil(CONNECTIONS_PER_SOURCE).clamp(1, SOURCES_MAX) as u8;
        if Self::reach(needed, target) { needed } else { 1 }
    }

    /// Whether a target can be reached from so many.
    pub(crate) fn reach(count: u8, target: SocketAddr) -> bool {
        count <= 1 || matches!(target.ip(), IpAddr::V4(address) if address.is_loopback())
    }

    /// A connection that is established, or on its way: then the socket turns writable.
    pub(crate) fn dial(&mut self, target: SocketAddr) -> io::Result<OwnedFd> {
        if self.count <= 1 {
            return connect(new_socket(target)?, target);
        }
        for _ in 0..PORTS_TRIED_MAX {
            match dial_from(self.advance(), target) {
                // In use by a listener, or by another connection to this very target.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
                }
                done => return done,
            }
        }
        let socket = new_socket(target)?;
        socket.bind(&SocketAddrV4::new(*self.advance().ip(), 0).into())?;
        connect(socket, target)
    }

    fn advance(&mut self) -> SocketAddrV4 {
        let (count, span) = (u32::from(self.count), u32::from(self.ports.end - self.ports.start));
        let (address, port) = (self.next % count, self.next / count % span);
        self.next = (self.next + 1) % (count * span);
        SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 1 + address as u8), self.ports.start + port as u16)
    }
}

fn dial_from(local: SocketAddrV4, target: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new_socket(target)?;
    // A port whose last connection is in TIME_WAIT may be taken again.
    socket.set_reuse_address(true)?;
    socket.bind(&local.into())?;
    connect(socket, target)
}

fn new_socket(target: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

fn connect(socket: Socket, target: SocketAddr) -> io::Result<OwnedFd> {
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        Ok(()) | Err(_) => Ok(socket.into()),
    }
}

/// A connection that is established, after waiting for it: one after the other, so that no burst of them overflows the
/// listener's queue.
pub(crate) fn dial_and_wait(
    sources: &mut Sources,
    target: SocketAddr,
    patience: Duration,
) -> io::Result<OwnedFd> {
    let socket = sources.dial(target)?;
    let mut watched = [PollFd::new(&socket, PollFlags::OUT)];
    let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
    if poll(&mut watched, Some(&patience))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    outcome(&socket)?;
    Ok(socket)
}

/// What became of a connect, once the socket is writable.
pub(crate) fn outcome(socket: &OwnedFd) -> io::Result<()> {
    Ok(sockopt::socket_error(socket)??)
}

/// How many connections one process may hold, after raising its own limit as far as it goes.
pub(crate) fn connections_max() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || (limit.maximum.is_none() && limit.current.is_some()) {
        // If it cannot be raised, what there is counts.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(FILES_ASIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_turns_and_ports_come_round() {
        let mut sources = Sources { count: 2, ports: 40_000..40_002, next: 0 };
        let taken: Vec<String> = (0..5).map(|_| sources.advance().to_string()).collect();
        let ports = ["127.0.0.1:40000", "127.0.0.2:40000", "127.0.0.1:40001", "127.0.0.2:40001"];
        assert_eq!((&taken[..4], &taken[4]), (&ports.map(str::to_owned)[..], &taken[0]));
        assert!(!Sources::reach(2, SocketAddr::from(([10, 0, 0, 1], 80))));
        assert!(Sources::reach(1, SocketAddr::from(([10, 0, 0, 1], 80))));
    }

    #[test]
    fn connections_come_from_their_sources_also_where_every_port_tried_is_taken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        // One port for two addresses, and the listener has it at the first: the kernel must search.
        let mut sources = Sources { count: 2, ports: target.port()..target.port() + 1, next: 0 };
        let dialled = (0..4).map(|_| dial_and_wait(&mut sources, target, Duration::from_secs(5)).unwrap());
        let held: Vec<OwnedFd> = dialled.collect();
        let mut peers = (0..4).map(|_| listener.accept().unwrap().1.ip());
        let ours = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2])];
        assert!(peers.all(|peer| ours.contains(&peer)));
        drop(held);
    }
}
