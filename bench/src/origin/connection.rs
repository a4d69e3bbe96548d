//! One accepted connection: its input, its watched waits, its output. Whatever it waits for, it also
//! watches the read side, so that a client that goes away is noticed at once. Requests and responses are
//! in `exchange`; this file knows only bytes.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, sleep_until, timeout};

use super::exchange::{self, Next};
use super::request::{Malformed, Request};
use super::server::Worker;
use super::socket::Stream;
use super::stats::ConnectionRecord;

/// One read while a head is expected.
const READ_HEAD_SIZE: usize = 4 << 10;

/// One read of a body.
pub(crate) const READ_BODY_SIZE: usize = 64 << 10;

/// Input that is taken in while a response is on its way. Behind it the client is no longer read, and so
/// no longer seen going away: it has pipelined more than any client does.
const AHEAD_MAX: usize = 256 << 10;

/// Writes that succeed in a row before other connections, and the reactor, get their turn.
const WRITES_IN_A_ROW_MAX: u32 = 32;

/// How long a closed connection is still read, so that the close does not turn into a reset that
/// overtakes the response (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// The client closed or reset its connection. A half-close counts: the origin cannot tell the two apart,
/// and a model server stops generating for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientGone;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    pub(crate) input: BytesMut,
    pub(crate) worker: Arc<Worker>,
    pub(crate) record: Arc<ConnectionRecord>,
    writes_in_a_row: u32,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(stream: Stream, peer: String, worker: Arc<Worker>) {
    let record = worker.ledger.connection_opened(peer);
    let mut connection = Connection {
        stream,
        input: BytesMut::new(),
        worker,
        record: Arc::clone(&record),
        writes_in_a_row: 0,
    };
    let worker = Arc::clone(&connection.worker);
    loop {
        let next = match connection.next_request().await {
            Ok(Some(request)) => exchange::answer(&mut connection, &request).await,
            Ok(None) => Next::Drop,
            Err(malformed) => exchange::refuse(&mut connection, malformed).await,
        };
        match next {
            Next::KeepAlive => {}
            Next::Close => break connection.close().await,
            Next::Drop => break drop(connection),
            Next::Reset => break connection.reset(),
        }
    }
    worker.ledger.connection_closed(&record);
}

impl Connection {
    /// The next request head; `None` when the client has closed.
    async fn next_request(&mut self) -> Result<Option<Request>, Malformed> {
        loop {
            if !self.input.is_empty()
                && let Some(request) = Request::take(&mut self.input)?
            {
                return Ok(Some(request));
            }
            if self.fill(READ_HEAD_SIZE).await.is_err() {
                if !self.input.is_empty() {
                    self.worker.ledger.head_truncated();
                }
                return Ok(None);
            }
        }
    }

    /// Waits for input and appends one read of at most `limit` bytes.
    pub(crate) async fn fill(&mut self, limit: usize) -> Result<(), ClientGone> {
        while self.try_fill(limit)? == 0 {
            self.stream.readable().await.map_err(|_| ClientGone)?;
        }
        Ok(())
    }

    /// Waits, and sees the client go meanwhile. What it sends meanwhile is kept.
    pub(crate) async fn wait_until(&mut self, deadline: Instant) -> Result<(), ClientGone> {
        if Instant::now() >= deadline {
            return Ok(());
        }
        let mut timer = pin!(sleep_until(deadline));
        loop {
            tokio::select! {
                biased;
                () = &mut timer => return Ok(()),
                taken = self.take_ahead() => taken?,
            }
        }
    }

    /// Writes everything, and sees the client go meanwhile.
    pub(crate) async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), ClientGone> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(written) => {
                    self.worker.ledger.bytes_written(&self.record, written);
                    bytes = &bytes[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(ClientGone),
            }
        }
        self.writes_in_a_row += 1;
        if self.writes_in_a_row >= WRITES_IN_A_ROW_MAX { self.let_others_run().await } else { Ok(()) }
    }

    /// A peer that is read slowly must feel it.
    pub(crate) fn shrink_receive_buffer(&self) {
        self.stream.shrink_receive_buffer();
    }

    /// FIN, and then what the client still sends is read and thrown away for a while.
    async fn close(mut self) {
        self.stream.finish();
        let drained = async {
            while self.fill(READ_BODY_SIZE).await.is_ok() {
                self.input.clear();
            }
        };
        // Either end is fine: the client closed too, or it has had its time.
        let _ = timeout(LINGER, drained).await;
    }

    fn reset(self) {
        self.stream.reset_on_close();
    }

    /// One attempt to read. 0 means that there is nothing now.
    fn try_fill(&mut self, limit: usize) -> Result<usize, ClientGone> {
        self.input.reserve(limit);
        match self.stream.try_read(&mut self.input, limit) {
            Ok(0) => Err(ClientGone),
            Ok(count) => {
                self.worker.ledger.bytes_read(&self.record, count);
                Ok(count)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                if self.input.is_empty() {
                    // Many thousand connections wait at a time: none of them holds an empty buffer.
                    self.input = BytesMut::new();
                }
                Ok(0)
            }
            Err(_) => Err(ClientGone),
        }
    }

    /// Waits for input that nobody asked for yet, and keeps it.
    async fn take_ahead(&mut self) -> Result<(), ClientGone> {
        if self.input.len() >= AHEAD_MAX {
            return pending().await;
        }
        self.stream.readable().await.map_err(|_| ClientGone)?;
        self.try_fill(READ_HEAD_SIZE).map(drop)
    }

    async fn wait_writable(&mut self) -> Result<(), ClientGone> {
        self.writes_in_a_row = 0;
        loop {
            if self.input.len() >= AHEAD_MAX {
                return self.stream.writable().await.map_err(|_| ClientGone);
            }
            tokio::select! {
                biased;
                ready = self.stream.writable() => return ready.map_err(|_| ClientGone),
                ready = self.stream.readable() => ready.map_err(|_| ClientGone)?,
            }
            self.try_fill(READ_HEAD_SIZE)?;
        }
    }

    /// A stream without pace never waits by itself: here it gives way, and looks for its client.
    async fn let_others_run(&mut self) -> Result<(), ClientGone> {
        self.writes_in_a_row = 0;
        tokio::task::yield_now().await;
        if self.input.len() < AHEAD_MAX { self.try_fill(READ_HEAD_SIZE).map(drop) } else { Ok(()) }
    }
}
