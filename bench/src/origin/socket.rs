//! TCP and Unix sockets behind one face: addresses, listeners that can go away and come back on the same
//! port, and non-blocking streams. No protocol here.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Connections that the kernel may hold for us. A load generator opens thousands in one burst.
const BACKLOG: i32 = 4096;

/// Receive buffer of a connection whose body is read slowly on purpose: small, so that the slowness
/// is felt by the peer and not swallowed by the kernel.
const SLOW_RECEIVE_BUFFER: usize = 16 << 10;

/// Where an origin listens: `127.0.0.1:8000`, `[::1]:0` or `unix:/run/origin.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Port 0 asks the kernel for a free one.
    Tcp(SocketAddr),
    /// A socket file. One that is left over from a dead process is replaced.
    Unix(PathBuf),
}

/// An address that is neither `IP:PORT` nor `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address: write IP:PORT, such as 127.0.0.1:8000, or unix:/path/to/socket")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(AddressError(text.to_owned())),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text.parse().map(Self::Tcp).map_err(|_| AddressError(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address that stays ours while nobody listens on it: the fault `refuse` closes the listener and
/// opens it again, and no other process may slip onto the port in between.
#[derive(Debug)]
pub(crate) struct Port {
    /// With the real port.
    pub(crate) address: Address,
    /// Bound, never listening: connections are refused, and the kernel gives the port to nobody else.
    /// On Linux a second socket with SO_REUSEADDR may listen beside it.
    _guard: Option<Socket>,
    shared: bool,
}

impl Port {
    /// Takes the address. `shared` lets several workers listen on it (SO_REUSEPORT).
    pub(crate) fn reserve(address: &Address, shared: bool) -> io::Result<Self> {
        match address {
            Address::Tcp(wanted) => {
                let guard = bind(*wanted, shared)?;
                let real = guard.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
                Ok(Self { address: Address::Tcp(real), _guard: Some(guard), shared })
            }
            Address::Unix(path) => {
                remove_stale(path)?;
                Ok(Self { address: address.clone(), _guard: None, shared })
            }
        }
    }

    /// Opens a listening socket. It belongs to no runtime yet, so that this can be done before one exists.
    pub(crate) fn listen(&self) -> io::Result<Bound> {
        match &self.address {
            Address::Tcp(address) => {
                let socket = bind(*address, self.shared)?;
                socket.listen(BACKLOG)?;
                Ok(Bound::Tcp(socket.into()))
            }
            Address::Unix(path) => {
                remove_stale(path)?;
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Bound::Unix(listener))
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // Nothing can be done, and nothing is lost, if it is gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A listening socket outside a runtime.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    /// Registers it with the current runtime.
    pub(crate) fn register(self) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener) => TcpListener::from_std(listener).map(Listener::Tcp),
            Self::Unix(listener) => UnixListener::from_std(listener).map(Listener::Unix),
        }
    }
}

/// A listening socket of the current runtime.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The next connection and the name of its peer.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), "unix".to_owned()))
            }
        }
    }
}

/// A connected socket. Reads and writes are attempts: waiting for readiness is a step of its own,
/// because most waits here are for two things at once.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Reads at most `limit` bytes behind what `input` holds. 0 is the end of the stream.
    pub(crate) fn try_read(&self, input: &mut BytesMut, limit: usize) -> io::Result<usize> {
        let mut window = input.limit(limit);
        match self {
            Self::Tcp(stream) => stream.try_read_buf(&mut window),
            Self::Unix(stream) => stream.try_read_buf(&mut window),
        }
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    /// Sends FIN. An error means that the peer was faster.
    pub(crate) fn finish(&self) {
        let _ = self.options().shutdown(Shutdown::Write);
    }

    /// Makes the close that follows a reset (SO_LINGER 0). A Unix socket just closes: it has no reset.
    pub(crate) fn reset_on_close(&self) {
        let _ = self.options().set_linger(Some(Duration::ZERO));
    }

    /// Lets the peer feel that its bytes are not read. Best effort: the kernel may round.
    pub(crate) fn shrink_receive_buffer(&self) {
        let _ = self.options().set_recv_buffer_size(SLOW_RECEIVE_BUFFER);
    }

    fn options(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        }
    }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Removes a socket file that nobody listens on. A live one is left, and `bind` then says so.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_what_to_write_instead() {
        assert_eq!("127.0.0.1:0".parse(), Ok(Address::Tcp(([127, 0, 0, 1], 0).into())));
        assert_eq!("unix:/tmp/o".parse(), Ok(Address::Unix(PathBuf::from("/tmp/o"))));
        for wrong in ["localhost", "unix:", ":8000", ""] {
            assert!(wrong.parse::<Address>().unwrap_err().to_string().contains("IP:PORT"), "{wrong}");
        }
    }

    #[test]
    fn a_port_refuses_while_nobody_listens_and_comes_back() {
        let port = Port::reserve(&"127.0.0.1:0".parse().unwrap(), false).unwrap();
        let Address::Tcp(address) = port.address else { panic!("not TCP") };
        let connect = || std::net::TcpStream::connect(address).map_err(|error| error.kind());
        assert_eq!(connect().unwrap_err(), io::ErrorKind::ConnectionRefused);
        let first = port.listen().unwrap();
        connect().unwrap();
        drop(first);
        assert_eq!(connect().unwrap_err(), io::ErrorKind::ConnectionRefused);
        let _second = port.listen().unwrap();
        connect().unwrap();
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(taken.local_addr().unwrap());
        assert_eq!(Port::reserve(&address, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_dead_socket_file_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("origin"));
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("origin")).unwrap());
        let port = Port::reserve(&address, false).unwrap();
        let _live = port.listen().unwrap();
        assert_eq!(port.listen().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
