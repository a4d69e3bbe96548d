//! Who a client is, in as few bytes as every idle connection can afford.

use std::net::{IpAddr, SocketAddr};

/// The address of a client: a `SocketAddr` without the parts that IPv6 adds for the host's own use (flow, scope).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    ip: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self { ip: address.ip(), port: address.port() }
    }
}

impl From<Peer> for SocketAddr {
    fn from(peer: Peer) -> Self {
        Self::new(peer.ip, peer.port)
    }
}
