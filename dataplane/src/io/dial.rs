//! Connecting to an endpoint.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use proto::config::SocketOptions;

use super::{Stream, sockets_nonblocking};
use crate::sys::socket;

/// Where to connect to: a resolved address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// Connects; `started` gets the descriptor, so that a deadline can shut it down while the connect is under way.
pub(crate) async fn dial(
    target: &Target,
    options: &SocketOptions,
    started: impl FnOnce(RawFd),
) -> io::Result<Stream> {
    let (fd, connected) = match target {
        Target::Tcp(address) => socket::connect_tcp(*address, options)?,
        Target::Unix(path) => socket::connect_unix(path)?,
    };
    if connected {
        socket::set_nonblocking(&fd, sockets_nonblocking())?;
        return Stream::adopt(fd);
    }
    started(fd.as_raw_fd());
    let stream = Stream::adopt(fd)?;
    stream.writable().await?;
    socket::connect_result(&stream)?;
    socket::set_nonblocking(&stream, sockets_nonblocking())?;
    Ok(stream)
}
