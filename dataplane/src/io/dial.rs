//! Connecting to an endpoint.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use dataplane_core::endpoint::EndpointAddress;
use proto::config::SocketOptions;

use super::Stream;
use crate::sys::socket;

/// Connects; `started` gets the descriptor, so that a deadline can shut it down while the connect is under way. Numbers from
/// `ceiling` on are not used, as if that were the limit of open files.
pub(crate) async fn dial(
    address: &EndpointAddress,
    options: &SocketOptions,
    ceiling: u32,
    started: impl FnOnce(RawFd),
) -> io::Result<Stream> {
    let (fd, connected) = match address {
        EndpointAddress::Ip(address) => socket::connect_tcp(*address, options, ceiling)?,
        EndpointAddress::Unix(path) => socket::connect_unix(path, ceiling)?,
    };
    if connected {
        return Stream::adopt(fd);
    }
    started(fd.as_raw_fd());
    let stream = Stream::adopt(fd)?;
    stream.writable().await?;
    socket::connect_result(&stream)?;
    Ok(stream)
}
