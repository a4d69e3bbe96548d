//! A TCP server that sends back whatever comes: the origin of the scenario `tcp`. One thread, no protocol; a client that
//! sends faster than it reads is held back by TCP and by nothing else.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One read. Large messages come in few.
const READ_SIZE: usize = 64 << 10;

/// What is read first: idle connections, of which there are many, hold no more.
const FIRST_READ_SIZE: usize = 512;

/// Pause after an accept that failed, most likely for want of file descriptors.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A listening server.
#[derive(Debug)]
pub struct Echo(TcpListener);

impl Echo {
    /// Binds the address; port 0 takes a free one. Needs a tokio runtime.
    ///
    /// # Errors
    /// What binding failed with.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self)
    }

    /// With its real port.
    ///
    /// # Errors
    /// If the socket cannot be asked.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until it is dropped.
    pub async fn serve(self) {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
                Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }
}

/// Ends with the client, however it goes.
async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; FIRST_READ_SIZE];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..count]).await?;
        if count == buffer.len() {
            buffer.resize(READ_SIZE, 0);
        }
    }
}
