//! The agents' connections: accepted, with TLS where it is wanted, each with what is known of its other end. Handshakes
//! wait for nobody but their own client.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::service::client_certificates::ClientCertificate;
use crate::tls::Terms;

/// A handshake takes two round trips and some milliseconds of a processor.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes at once: a whole fleet that comes back, twice over. The others wait to be accepted.
const HANDSHAKES_MAX: usize = 1024;
/// After a failed accept, usually for want of file descriptors, before the next.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What is known of the other end of a connection; in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// From where it comes.
    pub(super) address: SocketAddr,
    /// What it showed in the handshake.
    pub(super) certificate: Option<Arc<ClientCertificate>>,
}

/// One connection.
pub(super) struct Connection {
    wire: Either<TcpStream, TlsStream<TcpStream>>,
    peer: Peer,
}

/// Accepts connections until nobody takes them any more.
pub(super) fn accept(listener: TcpListener, tls: Option<Terms>) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, incoming) = mpsc::channel(1);
    tokio::spawn(run(listener, tls, accepted));
    ReceiverStream::new(incoming)
}

async fn run(listener: TcpListener, tls: Option<Terms>, accepted: mpsc::Sender<io::Result<Connection>>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let next = tokio::select! {
            next = listener.accept() => next,
            () = accepted.closed() => return,
        };
        let (stream, address) = match next {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "an agent's connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        let (tls, accepted) = (tls.clone(), accepted.clone());
        tokio::spawn(async move {
            let _place = place;
            if let Some(connection) = shake_hands(stream, address, tls).await {
                // Fails only where the master ends.
                let _ = accepted.send(Ok(connection)).await;
            }
        });
    }
}

async fn shake_hands(stream: TcpStream, address: SocketAddr, tls: Option<Terms>) -> Option<Connection> {
    // Messages are written whole: waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        let peer = Peer { address, certificate: None };
        return Some(Connection { wire: Either::Left(stream), peer });
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificate = tls.judge(stream.get_ref().1.peer_certificates()).map(Arc::new);
            Some(Connection { wire: Either::Right(stream), peer: Peer { address, certificate } })
        }
        Ok(Err(error)) => {
            tracing::info!(%address, %error, "an agent's TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::info!(%address, "an agent's TLS handshake took too long");
            None
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
