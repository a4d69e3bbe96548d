//! Clients of the admin API that stop in the middle: of their request, or of reading their answer. Each of their
//! connections ends after a silence, and there are only so many connections.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// A connection on which nothing has come or gone for so long is closed. Longer than any answer takes, and than a scraper
/// pauses between two requests on one connection.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(75);
/// Connections to one address of the API; more wait in its queue. Operators, scrapers and an agent have a few.
pub(super) const CONNECTIONS_MAX: usize = 256;

/// A listener of such connections.
pub(super) struct Patient<L> {
    listener: L,
    places: Arc<Semaphore>,
}

impl<L> Patient<L> {
    pub(super) fn new(listener: L) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl<L: Listener> Listener for Patient<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { std::future::pending().await };
        let (io, address) = self.listener.accept().await;
        (Connection { io, silence: Box::pin(sleep(SILENCE_MAX)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that ends after a silence.
pub(super) struct Connection<S> {
    io: S,
    silence: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    /// What an operation comes to: an error where it waits, and the silence has been too long.
    fn unless_silent<T>(
        &mut self,
        context: &mut Context<'_>,
        operation: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if operation.is_ready() {
            self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
            return operation;
        }
        ready!(pin!(&mut self.silence).poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buf);
        self.unless_silent(context, read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.unless_silent(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // No progress of its own: a flush of nothing is always ready.
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    /// A server with more to say than a socket takes.
    fn serve(dir: &std::path::Path) -> std::path::PathBuf {
        let path = dir.join("admin.sock");
        let listener = Patient::new(UnixListener::bind(&path).unwrap());
        let router = Router::new().route("/", get(|| async { "x".repeat(4 * 1024 * 1024) }));
        tokio::spawn(axum::serve(listener, router).into_future());
        path
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: admin\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn half_a_request_and_an_answer_that_is_not_read_are_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = serve(dir.path());
        for sent in [&b""[..], &REQUEST[..20]] {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(sent).await.unwrap();
            let began = Instant::now();
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
            assert!((SILENCE_MAX..2 * SILENCE_MAX).contains(&began.elapsed()), "{:?}", began.elapsed());
        }
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        // The clock of this test goes on by itself when nothing else happens.
        sleep(2 * SILENCE_MAX).await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        assert!((1..4 * 1024 * 1024).contains(&answer.len()), "{} bytes", answer.len());
    }

    #[tokio::test(start_paused = true)]
    async fn those_beyond_the_limit_wait_until_others_have_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = serve(dir.path());
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(&REQUEST[..20]).await.unwrap();
            silent.push(client);
        }
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        let began = Instant::now();
        client.read_exact(&mut [0; 12]).await.unwrap();
        assert!(began.elapsed() >= SILENCE_MAX / 2, "{:?}", began.elapsed());
    }
}
