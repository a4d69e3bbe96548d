//! One end of a connection, seen byte by byte: what a client or an origin of HTTP/1.1 sends and gets, and how it ended.
//! It shares no code with the proxy, never retries, and gives up after a while.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::PATIENCE;

/// A peer that takes nothing for so long takes nothing.
const STALL: Duration = Duration::from_millis(1000);

/// A connection and what was read from it ahead.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: Socket,
    ahead: Vec<u8>,
}

/// A message's head.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The first line.
    pub(crate) start: String,
    /// The fields as they came.
    pub(crate) fields: Vec<(String, String)>,
    /// As it came.
    pub(crate) raw: String,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

impl Head {
    /// A response's status.
    #[track_caller]
    pub(crate) fn status(&self) -> u16 {
        let status = self.start.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("no status line: {}", self.raw))
    }

    /// The only field with this name.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is there {} times:\n{}", all.len(), self.raw);
        all.first().copied()
    }

    /// The values of all fields with this name.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let same = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    fn parse(raw: &[u8]) -> Self {
        let raw: String = raw.iter().map(|byte| char::from(*byte)).collect();
        let mut lines = raw.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let fields = lines.filter_map(|line| line.split_once(':'));
        let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Self { start, fields, raw }
    }
}

impl Wire {
    /// Connects over TCP.
    #[track_caller]
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        Self::try_connect(addr).unwrap_or_else(|error| panic!("cannot connect to {addr}: {error}"))
    }

    /// Connects over TCP, if somebody listens.
    pub(crate) fn try_connect(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        socket.connect_timeout(&addr.into(), PATIENCE)?;
        socket.set_tcp_nodelay(true)?;
        Self::adopt(socket)
    }

    /// Connects over TCP with a receive buffer this small, so that the sender soon has to wait.
    pub(crate) fn connect_narrow(addr: SocketAddr, receive_bytes: usize) -> Self {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(receive_bytes).unwrap();
        socket.connect(&addr.into()).unwrap();
        Self::adopt(socket).unwrap()
    }

    /// Connects to a Unix socket, if somebody listens.
    pub(crate) fn try_connect_unix(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Self::adopt(socket)
    }

    /// Takes the next connection of a listener.
    #[track_caller]
    pub(crate) fn accept(listener: &TcpListener) -> Self {
        Self::accept_within(listener, PATIENCE).expect("no connection came")
    }

    /// Takes the next connection, if one comes in time.
    pub(crate) fn accept_within(listener: &TcpListener, patience: Duration) -> Option<Self> {
        listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + patience;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_nodelay(true).unwrap();
                    return Some(Self::adopt(stream.into()).unwrap());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("cannot accept: {error}"),
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// An accepted connection.
    pub(crate) fn over(stream: TcpStream) -> Self {
        Self::adopt(stream.into()).unwrap()
    }

    fn adopt(socket: Socket) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, ahead: Vec::new() })
    }

    /// Another handle of the same connection, for another thread; what was read ahead stays here.
    pub(crate) fn second(&self) -> Self {
        Self { socket: self.socket.try_clone().unwrap(), ahead: Vec::new() }
    }

    /// Our own address.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap().as_socket().unwrap()
    }

    /// Sends all of it.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes).expect("the peer takes the bytes");
        self
    }

    /// Sends all of it, if the peer takes it.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.socket.write_all(bytes.as_ref())
    }

    /// Sends until the peer takes no more for a while, at most so many bytes; says how many went.
    pub(crate) fn send_until_blocked(&mut self, count: usize) -> usize {
        self.socket.set_write_timeout(Some(STALL)).unwrap();
        let part = vec![b'x'; 64 * 1024];
        let mut sent = 0;
        while sent < count {
            match self.socket.write(&part[..part.len().min(count - sent)]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the peer went away after {sent} bytes: {error}"),
            }
        }
        self.socket.set_write_timeout(Some(PATIENCE)).unwrap();
        sent
    }

    /// Sends a GET for `path`.
    #[track_caller]
    pub(crate) fn get(&mut self, path: &str) -> &mut Self {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: story\r\n\r\n"))
    }

    /// Sends a GET with further lines in its head.
    #[track_caller]
    pub(crate) fn get_with(&mut self, path: &str, lines: &str) -> &mut Self {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: story\r\n{lines}\r\n"))
    }

    /// Sends a POST with its body.
    #[track_caller]
    pub(crate) fn post(&mut self, path: &str, body: &str) -> &mut Self {
        let length = body.len();
        self.send(format!("POST {path} HTTP/1.1\r\nHost: story\r\nContent-Length: {length}\r\n\r\n{body}"))
    }

    /// Waits for a head.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Head {
        match self.try_head() {
            Ok(head) => head,
            Err(error) => panic!("no head: {error}; {:?}", String::from_utf8_lossy(&self.ahead)),
        }
    }

    /// Waits for a head, or for the end.
    pub(crate) fn try_head(&mut self) -> io::Result<Head> {
        self.try_until(b"\r\n\r\n").map(|raw| Head::parse(&raw))
    }

    /// Waits for a response with its body.
    #[track_caller]
    pub(crate) fn response(&mut self) -> (Head, Vec<u8>) {
        let head = self.head();
        let body = self.body(&head);
        (head, body)
    }

    /// Waits for the body behind a head, of a request or of a response.
    #[track_caller]
    pub(crate) fn body(&mut self, head: &Head) -> Vec<u8> {
        match self.try_body(head) {
            Ok(body) => body,
            Err(error) => panic!("no whole body: {error}; behind {}", head.raw),
        }
    }

    /// Waits for the body behind a head; an error if it ends early.
    pub(crate) fn try_body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        if head.all("Transfer-Encoding").iter().any(|coding| coding.contains("chunked")) {
            return self.try_chunked().map(|(body, _)| body);
        }
        if let Some(length) = head.field("Content-Length") {
            return self.try_exact(length.parse().map_err(|_| io::Error::other("no length"))?);
        }
        let is_response = head.start.starts_with("HTTP/");
        if !is_response || matches!(head.status(), 100..200 | 204 | 304) {
            return Ok(Vec::new());
        }
        let mut body = std::mem::take(&mut self.ahead);
        self.socket.read_to_end(&mut body)?;
        Ok(body)
    }

    /// Waits for a chunked body; gives it with the lines of its trailers.
    pub(crate) fn try_chunked(&mut self) -> io::Result<(Vec<u8>, String)> {
        let mut body = Vec::new();
        while let Some(chunk) = self.try_chunk()? {
            body.extend_from_slice(&chunk);
        }
        let mut trailers = String::new();
        loop {
            let line = self.try_until(b"\r\n")?;
            if line == b"\r\n" {
                return Ok((body, trailers));
            }
            trailers.push_str(&String::from_utf8_lossy(&line));
        }
    }

    /// Waits for one chunk; none for the last one, whose trailers are then still to come.
    pub(crate) fn try_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.try_until(b"\r\n")?;
        let text = String::from_utf8_lossy(&line);
        let size = usize::from_str_radix(text.trim().split(';').next().unwrap_or_default(), 16)
            .map_err(|_| io::Error::new(ErrorKind::InvalidData, format!("no chunk size: {text:?}")))?;
        if size == 0 {
            return Ok(None);
        }
        let chunk = self.try_exact(size)?;
        match self.try_exact(2)?.as_slice() {
            b"\r\n" => Ok(Some(chunk)),
            other => Err(io::Error::new(ErrorKind::InvalidData, format!("no end of chunk: {other:?}"))),
        }
    }

    /// Waits for one chunk.
    #[track_caller]
    pub(crate) fn chunk(&mut self) -> String {
        let chunk = self.try_chunk().expect("a chunk comes").expect("it is not the last");
        String::from_utf8(chunk).unwrap()
    }

    /// Waits for `mark` and gives everything up to its end.
    #[track_caller]
    pub(crate) fn until(&mut self, mark: &str) -> String {
        match self.try_until(mark.as_bytes()) {
            Ok(bytes) => String::from_utf8(bytes).unwrap(),
            Err(error) => panic!("no {mark:?}: {error}; {:?}", String::from_utf8_lossy(&self.ahead)),
        }
    }

    fn try_until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        let mut from = 0;
        loop {
            if let Some(at) = memchr::memmem::find(&self.ahead[from..], mark) {
                let rest = self.ahead.split_off(from + at + mark.len());
                return Ok(std::mem::replace(&mut self.ahead, rest));
            }
            from = self.ahead.len().saturating_sub(mark.len());
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Waits for so many bytes.
    #[track_caller]
    pub(crate) fn exact(&mut self, count: usize) -> Vec<u8> {
        match self.try_exact(count) {
            Ok(bytes) => bytes,
            Err(error) => panic!("not {count} bytes: {error}; {:?}", String::from_utf8_lossy(&self.ahead)),
        }
    }

    /// Waits for so many bytes, or for the end.
    pub(crate) fn try_exact(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < count {
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.ahead.split_off(count);
        Ok(std::mem::replace(&mut self.ahead, rest))
    }

    /// One read: what is there.
    pub(crate) fn try_some(&mut self) -> io::Result<Vec<u8>> {
        if self.ahead.is_empty() {
            self.fill()?;
        }
        Ok(std::mem::take(&mut self.ahead))
    }

    /// Reads and throws away until so many bytes have come; says how many did.
    pub(crate) fn discard(&mut self, count: u64) -> u64 {
        let mut discarded = self.ahead.len() as u64;
        self.ahead.clear();
        let mut room = vec![0; 256 * 1024];
        while discarded < count {
            match self.socket.read(&mut room) {
                Ok(0) | Err(_) => break,
                Ok(received) => discarded += received as u64,
            }
        }
        discarded
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut room = [0; 16 * 1024];
        let received = self.socket.read(&mut room)?;
        self.ahead.extend_from_slice(&room[..received]);
        Ok(received)
    }

    /// Waits for the end of the connection; gives what came before it.
    #[track_caller]
    pub(crate) fn end(&mut self) -> (Vec<u8>, End) {
        loop {
            match self.fill() {
                Ok(0) => return (std::mem::take(&mut self.ahead), End::Fin),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return (std::mem::take(&mut self.ahead), End::Reset);
                }
                Err(error) => panic!("the connection does not end: {error}"),
            }
        }
    }

    /// Whether nothing is there to be read now.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let filled = self.fill();
        self.socket.set_nonblocking(false).unwrap();
        self.ahead.is_empty() && filled.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Sends no more (FIN) and goes on reading.
    pub(crate) fn half_close(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// As [`Wire::half_close`], of a connection that the peer may have ended.
    pub(crate) fn half_close_if_open(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Goes away with a reset.
    pub(crate) fn reset(self) {
        self.socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Longest wait for a read; a test that expects nothing takes less than the usual.
    pub(crate) fn patience(&self, patience: Duration) {
        self.socket.set_read_timeout(Some(patience)).unwrap();
    }
}
