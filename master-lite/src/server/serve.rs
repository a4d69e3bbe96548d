//! One listening socket and its connections: HTTP/1.1, with TLS if wanted, so many at once, none that takes forever to
//! say what it wants. No HTTP/2: operators and scrapers ask seldom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::api::rest::ClientAddress;

/// A head comes within that, or the connection is closed, also the next one of a connection that is kept: a browser needs
/// milliseconds, and opens another one later.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// So does a TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections that may wait to be accepted: after a restart a whole fleet comes at once, and who finds no room is reset or
/// tries again a second later. The kernel holds it to `net.core.somaxconn`, which is 4096 unless set.
const BACKLOG: u32 = 4096;
/// After a failed accept, usually for want of file descriptors, before the next.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A socket that is served until the process ends.
pub(super) struct Serving {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) router: Router,
    pub(super) connections_max: usize,
    pub(super) ended: watch::Receiver<bool>,
}

/// Binds an address.
///
/// # Errors
/// It is taken, or none of this host's.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // The connections of the process before this one may linger on the port.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("cannot listen on {address}"))
}

impl Serving {
    /// Serves; what is being answered at the end is answered to its end.
    pub(super) async fn run(mut self) {
        let places = Arc::new(Semaphore::new(self.connections_max));
        let graceful = GracefulShutdown::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = self.ended.wait_for(|ended| *ended) => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                    continue;
                }
            };
            let (tls, router, watcher) = (self.tls.clone(), self.router.clone(), graceful.watcher());
            tokio::spawn(async move {
                let _place = place;
                connection(stream, address, tls, router, watcher).await;
            });
        }
        drop(self.listener);
        graceful.shutdown().await;
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
) {
    // Answers are written whole: waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return exchange(stream, address, router, watcher).await };
    match tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await {
        Ok(Ok(stream)) => exchange(stream, address, router, watcher).await,
        Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS handshake"),
        Err(_) => tracing::debug!(%address, "the TLS handshake took too long"),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ClientAddress(address.ip()));
        request.map(axum::body::Body::new)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = watcher.watch(serving).await {
        tracing::debug!(%address, %error, "a connection ended badly");
    }
}
