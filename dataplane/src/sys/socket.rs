//! Sockets: binding with every option in place, accepting in bursts, looking without reading.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use proto::config::SocketOptions;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, Shutdown, SocketFlags};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

/// What a look at a socket's receive queue showed, without taking anything from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    /// Open and silent.
    Quiet,
    /// The peer sent bytes.
    Data,
    /// The peer closed or the connection failed.
    Closed,
}

/// Opens a TCP listening socket with `SO_REUSEPORT`, so that each worker can have its own queue on one address.
pub(crate) fn listen_tcp(address: SocketAddr, options: &SocketOptions) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // `[::]` beside `0.0.0.0` must not clash: each address family is bound by its own line of the config.
        socket.set_only_v6(true)?;
    }
    set_freebind(&socket, address, options)?;
    set_listener_options(&socket, options)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog(options))?;
    Ok(socket.into())
}

/// Gives a socket that listens, or will, other options; what it accepts from now on has them. What `options` leaves open
/// goes back to the kernel's default, but for the buffer sizes: those cannot be given back.
pub(crate) fn set_listener_options(socket: impl AsFd, options: &SocketOptions) -> io::Result<()> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    set_options(&socket, options)?;
    if options.notsent_lowat.is_none() {
        // 0 stands for the kernel's own value (tcp(7)).
        socket.set_tcp_notsent_lowat(0)?;
    }
    if options.keepalive.is_none() {
        socket.set_keepalive(false)?;
    }
    if options.congestion.is_none()
        && let Ok(name) = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
    {
        // As in `set_options`: a name that is not taken leaves the socket as good as it was.
        let _ = socket.set_tcp_congestion(name.trim().as_bytes());
    }
    set_int(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, options.fastopen as i32)?;
    let defer_s = options.defer_accept.map_or(0, |wait| wait.as_secs().clamp(1, 3600) as i32);
    set_int(&socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, defer_s)
}

/// Sets other options and another backlog on a socket that listens; its queue stays.
pub(crate) fn retune_listener(socket: impl AsFd, options: &SocketOptions) -> io::Result<()> {
    set_listener_options(&socket, options)?;
    Ok(rustix::net::listen(socket, backlog(options))?)
}

/// Lets the socket be bound to an address that this host does not have (ip(7)), where the options say so.
pub(crate) fn set_freebind(socket: &Socket, address: SocketAddr, options: &SocketOptions) -> io::Result<()> {
    match address {
        _ if !options.freebind => Ok(()),
        SocketAddr::V4(_) => socket.set_freebind_v4(true),
        SocketAddr::V6(_) => socket.set_freebind_v6(true),
    }
}

/// The address a listening TCP socket got, with the port that the kernel chose where 0 was asked for.
pub(crate) fn local_address(socket: impl AsFd) -> io::Result<Option<SocketAddr>> {
    Ok(SockRef::from(&socket.as_fd()).local_addr()?.as_socket())
}

/// Takes one waiting connection and the peer's address (`None` for a Unix socket); `WouldBlock` when none waits.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    #[cfg(test)]
    super::simulated::take_descriptor()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (fd, address) = rustix::net::acceptfrom_with(listener, flags)?;
    Ok((fd, address.and_then(|any| SocketAddr::try_from(any).ok())))
}

/// Whether something failed since the process, or the host, has run out of descriptors or memory.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Whether something failed since the process, or the host, has run out of descriptors.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Starts to connect a new socket; the result is there when it becomes writable ([`connect_result`]).
/// True when it is connected already, as to an endpoint on this host.
///
/// Errors: also, as if the limit were reached, where the socket's number would be `ceiling` or more.
pub(crate) fn connect_tcp(
    address: SocketAddr,
    options: &SocketOptions,
    ceiling: u32,
) -> io::Result<(OwnedFd, bool)> {
    let kind = Type::STREAM.cloexec().nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    check_number(&socket, ceiling)?;
    set_options(&SockRef::from(&socket), options)?;
    if options.fastopen > 0 {
        set_int(&SockRef::from(&socket), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
    }
    begin_connect(socket, &address.into())
}

/// As [`connect_tcp`], to a Unix socket.
pub(crate) fn connect_unix(path: &Path, ceiling: u32) -> io::Result<(OwnedFd, bool)> {
    #[cfg(test)]
    super::simulated::take_descriptor()?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    check_number(&socket, ceiling)?;
    begin_connect(socket, &SockAddr::unix(path)?)
}

/// The kernel gives the lowest free number, so one of `ceiling` or more says that all below are taken.
fn check_number(socket: &Socket, ceiling: u32) -> io::Result<()> {
    let is_low = u32::try_from(socket.as_raw_fd()).is_ok_and(|number| number < ceiling);
    if is_low { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EMFILE)) }
}

fn begin_connect(socket: Socket, address: &SockAddr) -> io::Result<(OwnedFd, bool)> {
    // An answer from this host is there as soon as the first call returns; the second one tells what it was, which spares
    // the wait for readiness.
    for _ in 0..2 {
        match socket.connect(address).map_err(|error| (error.raw_os_error(), error)) {
            Ok(()) => return Ok((socket.into(), true)),
            Err((Some(libc::EINPROGRESS | libc::EALREADY), _)) => {}
            Err((_, error)) => return Err(error),
        }
    }
    Ok((socket.into(), false))
}

/// How the connect of a socket ended.
pub(crate) fn connect_result(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket.as_fd()).take_error()?.map_or(Ok(()), Err)
}

/// Looks whether anything waits to be read, without waiting and without taking it.
pub(crate) fn peek(socket: impl AsFd) -> Peek {
    let mut byte = [0u8; 1];
    match rustix::net::recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Peek::Closed,
        Ok(_) => Peek::Data,
        Err(rustix::io::Errno::WOULDBLOCK) => Peek::Quiet,
        Err(_) => Peek::Closed,
    }
}

/// Whether nobody is at the other end any more: the connection was reset or, of a Unix socket, closed. A TCP peer that has closed
/// looks like one that only sends no more, until something sent to it is answered with a reset.
pub(crate) fn is_abandoned(socket: impl AsFd) -> bool {
    // The hangup and errors are told unasked (poll(2)); the end of the peer's side alone is not among them.
    let mut looked_at = [PollFd::new(&socket, PollFlags::empty())];
    poll(&mut looked_at, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|told| told > 0)
}

/// Throws away what has been received, up to `bytes_max`, without waiting: a close with bytes unread would be a reset.
pub(crate) fn discard(socket: impl AsFd, bytes_max: usize) {
    let mut room = [0u8; 4096];
    let mut left = bytes_max;
    while left > 0 {
        match rustix::net::recv(&socket, &mut room, RecvFlags::DONTWAIT) {
            Ok((count @ 1.., _)) => left = left.saturating_sub(count),
            Ok(_) | Err(_) => return,
        }
    }
}

/// Ends one or both directions at once; whatever waits on the socket completes. Failures mean that it is over already.
pub(crate) fn shutdown(socket: impl AsFd, how: Shutdown) {
    let _ = rustix::net::shutdown(socket, how);
}

/// Makes the close of this socket a reset (RFC 9293, section 3.10.4: abort), so that the peer cannot take what it
/// has received so far for the whole.
pub(crate) fn reset_on_close(socket: impl AsFd) {
    let _ = SockRef::from(&socket.as_fd()).set_linger(Some(std::time::Duration::ZERO));
}

/// As [`shutdown`] of both directions, for a descriptor that is known by its number.
pub(crate) fn shutdown_raw(fd: RawFd) {
    // SAFETY: `shutdown` touches no memory of ours; on a number that is no socket it fails and does nothing.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// As [`shutdown`] of the receiving direction, for a descriptor that is known by its number.
pub(crate) fn shutdown_read_raw(fd: RawFd) {
    // SAFETY: as in `shutdown_raw`.
    unsafe { libc::shutdown(fd, libc::SHUT_RD) };
}

/// Applies what can be set on a listening socket (and is inherited by what it accepts) or before a connect.
fn set_options(socket: &SockRef<'_>, options: &SocketOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(options.nodelay)?;
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes as usize)?;
    }
    if let Some(bytes) = options.receive_buffer {
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    if let Some(bytes) = options.notsent_lowat {
        socket.set_tcp_notsent_lowat(bytes)?;
    }
    if let Some(probes) = options.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(probes.idle)
            .with_interval(probes.interval)
            .with_retries(probes.probes);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if let Some(name) = &options.congestion {
        // A kernel without this algorithm is a warning when the config is applied, never a failed connection.
        let _ = socket.set_tcp_congestion(name.as_bytes());
    }
    Ok(())
}

/// The length of the accept queue as listen(2) takes it.
pub(crate) fn backlog(options: &SocketOptions) -> i32 {
    i32::try_from(options.backlog).unwrap_or(i32::MAX)
}

fn set_int(socket: &SockRef<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option's value is an int that lives during the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_an_endpoint_on_this_host_answers_is_known_at_once() {
        let options = SocketOptions::cluster();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (_socket, is_connected) = connect_tcp(address, &options, u32::MAX).unwrap();
        assert!(is_connected);
        drop(listener);
        let refused = connect_tcp(address, &options, u32::MAX).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_peer_that_sends_no_more_is_there_until_it_closes_or_resets() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!is_abandoned(&near), "it still reads");
        drop(far);
        assert!(is_abandoned(&near));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        assert!(!is_abandoned(&near));
        far.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(io::Read::read(&mut &near, &mut [0]).unwrap(), 0, "its end is here");
        assert!(!is_abandoned(&near), "it still reads");
        reset_on_close(&far);
        drop(far);
        // A failed connection ends every wait, this one with an error.
        while !is_abandoned(&near) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn no_number_is_used_that_is_kept_for_others() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let error = connect_tcp(address, &SocketOptions::cluster(), 0).unwrap_err();
        assert!(is_out_of_files(&error) && is_exhausted(&error), "{error}");
        let error = connect_unix(Path::new("/nonexistent"), 0).unwrap_err();
        assert!(is_out_of_files(&error), "{error}");
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody was dialled");
    }

    #[test]
    fn an_endpoint_that_does_not_answer_is_waited_for() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = local_address(&listener).unwrap().unwrap();
        // The queue holds one; a second attempt is left without an answer.
        let _first = TcpStream::connect(address).unwrap();
        let (_socket, is_connected) = connect_tcp(address, &SocketOptions::cluster(), u32::MAX).unwrap();
        assert!(!is_connected);
    }
}
