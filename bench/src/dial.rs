//! Opens many TCP connections without waiting for any: from several local addresses, within the limit of open files.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// Open files that a process needs beside its connections: standard streams, epoll, `/proc`, libraries.
const FILES_ASIDE: u64 = 64;

/// Local addresses to connect from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    /// How many: 127.0.0.1 and up. With one, the kernel chooses.
    pub(crate) count: u8,
}

impl Sources {
    /// The address of connection `index`.
    pub(crate) fn of(self, index: usize) -> Option<Ipv4Addr> {
        let last = 1 + (index % usize::from(self.count.max(1))) as u8;
        (self.count > 1).then(|| Ipv4Addr::new(127, 0, 0, last))
    }

    /// Whether a target can be reached from them.
    pub(crate) fn reach(self, target: SocketAddr) -> bool {
        self.count <= 1 || matches!(target.ip(), IpAddr::V4(address) if address.is_loopback())
    }
}

/// A connection that is established, or on its way: then the socket turns writable.
pub(crate) fn dial(target: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        // A port whose last connection is in TIME_WAIT may be taken again.
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// A connection that is established, after waiting for it: one after the other, so that no burst of them overflows the
/// listener's queue.
pub(crate) fn dial_and_wait(
    target: SocketAddr,
    source: Option<Ipv4Addr>,
    patience: Duration,
) -> io::Result<OwnedFd> {
    let socket = dial(target, source)?;
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
    fn sources_take_turns_and_one_is_the_kernels_choice() {
        let of = |count: u8, index: usize| Sources { count }.of(index).map(|address| address.octets()[3]);
        assert_eq!([of(3, 0), of(3, 1), of(3, 2), of(3, 3)], [Some(1), Some(2), Some(3), Some(1)]);
        assert_eq!(of(1, 7), None);
        assert!(!Sources { count: 2 }.reach(SocketAddr::from(([10, 0, 0, 1], 80))));
    }

    #[test]
    fn a_connection_comes_from_its_source() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = dial(listener.local_addr().unwrap(), Some(Ipv4Addr::new(127, 0, 0, 9))).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), IpAddr::from([127, 0, 0, 9]));
        drop(socket);
    }
}
