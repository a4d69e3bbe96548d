//! Addresses where nobody answers: one that takes no connection and refuses none, and one that refuses them all. Both are
//! held by this process, so that nobody else can get them meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// How long a connection may take on this host before it counts as not taken.
const TAKEN_WITHIN: Duration = Duration::from_millis(200);

/// A listener with a full queue: the kernel drops what else knocks.
#[derive(Debug)]
pub(crate) struct Hole {
    listener: Socket,
    _queued: Vec<Socket>,
}

impl Hole {
    pub(crate) fn new() -> Self {
        let listener = bound();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let connected = socket.connect_timeout(&addr, TAKEN_WITHIN);
            queued.push(socket);
            if connected.is_err() {
                return Self { listener, _queued: queued };
            }
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        addr_of(&self.listener)
    }
}

/// A port that is taken and does not listen.
#[derive(Debug)]
pub(crate) struct Refusing(Socket);

impl Refusing {
    pub(crate) fn new() -> Self {
        Self(bound())
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        addr_of(&self.0)
    }

    /// Begins to listen.
    pub(crate) fn listen(self) -> std::net::TcpListener {
        self.0.listen(128).unwrap();
        self.0.into()
    }
}

fn bound() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket
}

fn addr_of(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}
