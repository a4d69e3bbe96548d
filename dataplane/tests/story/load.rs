//! Mixed load from a thread of its own, each byte of it checked: event streams of a fixed length, keep-alive connections
//! that ask without a pause, and clients that connect anew for each request. Whatever goes wrong is kept as a sentence.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PATIENCE;

/// What the load is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    /// Event streams, all begun at once.
    pub(crate) streams: usize,
    /// Events of each.
    pub(crate) events: u64,
    /// Events a second of each.
    pub(crate) events_per_second: u64,
    /// Connections that ask again and again.
    pub(crate) keep_alive: usize,
    /// Clients that connect for each request.
    pub(crate) fresh: usize,
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) streams_whole: u64,
    pub(crate) events: u64,
    pub(crate) requests: u64,
    pub(crate) reconnects: u64,
    /// Everything that a client must not see, the first hundred of them.
    pub(crate) losses: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    streaming: AtomicU64,
    whole: AtomicU64,
    events: AtomicU64,
    requests: AtomicU64,
    reconnects: AtomicU64,
    is_over: AtomicBool,
    losses: Mutex<Vec<String>>,
}

/// Load that goes on until it is finished.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    streams: u64,
}

impl Load {
    /// Starts it; when it returns, every stream has had its first event.
    pub(crate) fn start(addr: SocketAddr, mix: Mix) -> Self {
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(addr, mix, ours));
        });
        let load = Self { shared, thread, streams: mix.streams as u64 };
        let deadline = Instant::now() + PATIENCE;
        while load.shared.streaming.load(Ordering::SeqCst) < load.streams {
            assert!(Instant::now() < deadline, "the streams do not begin: {:?}", load.shared);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        load
    }

    /// Streams that have ended, well or not.
    pub(crate) fn streams_ended(&self) -> u64 {
        self.streams - self.shared.streaming.load(Ordering::SeqCst)
    }

    /// Requests answered so far, apart from the streams.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Waits for the streams, then ends the rest.
    pub(crate) fn finish(self) -> Report {
        while self.streams_ended() < self.streams {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        Report {
            streams_whole: self.shared.whole.load(Ordering::SeqCst),
            events: self.shared.events.load(Ordering::SeqCst),
            requests: self.shared.requests.load(Ordering::SeqCst),
            reconnects: self.shared.reconnects.load(Ordering::SeqCst),
            losses: std::mem::take(&mut self.shared.losses.lock().unwrap()),
        }
    }
}

async fn run(addr: SocketAddr, mix: Mix, shared: Arc<Shared>) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..mix.streams {
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            if let Err(error) = stream(addr, mix, &shared).await {
                shared.lose(format!("a stream: {error}"));
            }
            shared.streaming.fetch_sub(1, Ordering::SeqCst);
        });
    }
    for client in 0..mix.keep_alive + mix.fresh {
        let shared = Arc::clone(&shared);
        tasks.spawn(async move { steady(addr, client < mix.keep_alive, &shared).await });
    }
    while tasks.join_next().await.is_some() {}
}

impl Shared {
    fn lose(&self, what: String) {
        let mut losses = self.losses.lock().unwrap();
        if losses.len() < 100 {
            losses.push(what);
        }
    }
}

/// One stream from its first event to its clean end.
async fn stream(addr: SocketAddr, mix: Mix, shared: &Shared) -> io::Result<()> {
    let connected = TcpStream::connect(addr).await;
    let asked = async {
        let mut socket = connected?;
        let Mix { events, events_per_second, .. } = mix;
        let path = format!("/sse?tokens={events}&tokens_per_second={events_per_second}");
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: story\r\n\r\n").as_bytes()).await?;
        let mut input = Input { socket, ahead: Vec::new() };
        let head = input.until(b"\r\n\r\n").await?;
        Ok::<_, io::Error>((input, head))
    };
    let asked = asked.await;
    // Counted in all cases, so that nobody waits for a stream that has failed.
    shared.streaming.fetch_add(1, Ordering::SeqCst);
    let (mut input, head) = asked?;
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    let mut text = Vec::new();
    let mut seen = 0;
    loop {
        let chunk = input.chunk().await?;
        if chunk.is_empty() {
            break;
        }
        text.extend_from_slice(&chunk);
        while let Some(end) = memchr::memmem::find(&text, b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            if !event.starts_with(format!("id: {seen}\ndata: {{\"seq\":{seen},").as_bytes()) {
                let event = String::from_utf8_lossy(&event);
                return Err(io::Error::other(format!("event {seen} is {event:?}")));
            }
            seen += 1;
            shared.events.fetch_add(1, Ordering::SeqCst);
        }
    }
    if seen != mix.events || !text.is_empty() {
        return Err(io::Error::other(format!("{seen} events, then a clean end behind {text:?}")));
    }
    shared.whole.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// Asks until it is over. A connection is left only where the answer said that it would be closed.
async fn steady(addr: SocketAddr, keeps: bool, shared: &Shared) {
    let mut kept = None;
    while !shared.is_over.load(Ordering::SeqCst) {
        let is_kept = kept.is_some();
        match ask(addr, kept.take()).await {
            Ok((input, may_go_on)) => {
                shared.requests.fetch_add(1, Ordering::SeqCst);
                if keeps && may_go_on {
                    kept = Some(input);
                } else {
                    shared.reconnects.fetch_add(1, Ordering::SeqCst);
                }
            }
            Err(error) => shared.lose(format!("a request on a connection (kept: {is_kept}): {error}")),
        }
        tokio::task::yield_now().await;
    }
}

async fn ask(addr: SocketAddr, kept: Option<Input>) -> io::Result<(Input, bool)> {
    const LENGTH: usize = 2000;
    let mut input = match kept {
        Some(input) => input,
        None => Input { socket: TcpStream::connect(addr).await?, ahead: Vec::new() },
    };
    input.socket.write_all(format!("GET /bytes/{LENGTH} HTTP/1.1\r\nHost: story\r\n\r\n").as_bytes()).await?;
    let head = input.until(b"\r\n\r\n").await?;
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    let body = input.exact(LENGTH).await?;
    if body.iter().enumerate().any(|(at, byte)| usize::from(*byte) != at % 251) {
        return Err(io::Error::other("wrong bytes"));
    }
    let closes = memchr::memmem::find(&head.to_ascii_lowercase(), b"connection: close").is_some();
    Ok((input, !closes))
}

struct Input {
    socket: TcpStream,
    ahead: Vec<u8>,
}

impl Input {
    async fn until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.ahead, mark) {
                return Ok(self.ahead.drain(..at + mark.len()).collect());
            }
            self.fill().await?;
        }
    }

    async fn exact(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < count {
            self.fill().await?;
        }
        Ok(self.ahead.drain(..count).collect())
    }

    /// The data of a chunk; none of it for the last one, whose end is read as well.
    async fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = self.until(b"\r\n").await?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let size =
            usize::from_str_radix(line.trim(), 16).map_err(|_| io::Error::other(format!("{line:?}")))?;
        let mut chunk = self.exact(size + 2).await?;
        if !chunk.ends_with(b"\r\n") {
            return Err(io::Error::other("a chunk without its end"));
        }
        chunk.truncate(size);
        Ok(chunk)
    }

    async fn fill(&mut self) -> io::Result<()> {
        let read = tokio::time::timeout(PATIENCE, self.socket.read_buf(&mut self.ahead)).await;
        match read.map_err(|_| io::Error::other("nothing comes"))?? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
