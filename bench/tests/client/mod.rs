//! A blocking client that shows what a proxy would see: raw bytes, single chunks, and how a response
//! ended. It shares no code with the origin, and it never retries.

#![allow(dead_code, reason = "every test file uses another part of it")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bench::origin::{Origin, OriginOptions};
use serde_json::Value;

/// Longest time that anything here waits for the origin.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How a response body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As its framing says.
    Clean,
    /// By FIN before its framing said so.
    Fin,
    /// By RST.
    Reset,
    /// With bytes that are no chunked coding.
    Garbage,
}

/// How a client goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// FIN; the kernel makes it RST if something was left unread.
    Close,
    Reset,
    /// FIN, whatever was left unread, and the socket stays open for reading.
    HalfClose,
}

impl Leave {
    pub(crate) const ALL: [Self; 3] = [Self::Close, Self::Reset, Self::HalfClose];
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The body by chunks, if it was chunked.
    pub(crate) chunks: Vec<Vec<u8>>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) end: End,
}

impl Response {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The data of each event, with its event name.
    pub(crate) fn events(&self) -> Vec<(Option<String>, String)> {
        let text = self.text();
        text.split_terminator("\n\n").map(event).collect()
    }
}

fn event(block: &str) -> (Option<String>, String) {
    let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    (line("event: "), line("data: ").unwrap_or_else(|| panic!("no data in {block:?}")))
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    input: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, input: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub(crate) fn get(&mut self, target: &str) -> Response {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: o\r\n\r\n"));
        self.response()
    }

    pub(crate) fn post(&mut self, target: &str, body: &str) -> Response {
        let length = body.len();
        self.send(format!("POST {target} HTTP/1.1\r\nHost: o\r\nContent-Length: {length}\r\n\r\n{body}"));
        self.response()
    }

    /// The next response to anything but HEAD.
    pub(crate) fn response(&mut self) -> Response {
        let mut response = self.head();
        self.body(&mut response);
        response
    }

    /// The next head, with nothing of its body.
    pub(crate) fn head(&mut self) -> Response {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut parsed = httparse::Response::new(&mut fields);
            let status =
                parsed.parse(&self.input).unwrap_or_else(|error| panic!("{error}: {:?}", self.shown()));
            if let httparse::Status::Complete(length) = status {
                let response = Response {
                    status: parsed.code.unwrap(),
                    fields: owned(parsed.headers),
                    body: Vec::new(),
                    chunks: Vec::new(),
                    trailers: Vec::new(),
                    end: End::Clean,
                };
                self.input.drain(..length);
                return response;
            }
            if let Err(end) = self.read() {
                panic!("{end:?} before a whole head: {:?}", self.shown());
            }
        }
    }

    /// The next chunk of a chunked body; `None` at its clean end.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        self.try_chunk().unwrap_or_else(|end| panic!("{end:?} in place of a chunk"))
    }

    /// Everything until the connection ends.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.read() {
                return (std::mem::take(&mut self.input), end);
            }
        }
    }

    /// One read, as it comes from the socket.
    pub(crate) fn read_once(&mut self) -> Vec<u8> {
        self.read().unwrap();
        std::mem::take(&mut self.input)
    }

    /// Whether the origin has closed or reset the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.input.is_empty() && self.read().is_err()
    }

    /// Goes away. What it gives back keeps a half-closed socket open.
    pub(crate) fn leave(self, how: Leave) -> Option<TcpStream> {
        match how {
            Leave::Close => None,
            Leave::Reset => {
                socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
                None
            }
            Leave::HalfClose => {
                self.stream.shutdown(std::net::Shutdown::Write).unwrap();
                Some(self.stream)
            }
        }
    }

    fn body(&mut self, response: &mut Response) {
        if response.status == 204 || response.status == 304 || response.status < 200 {
            return;
        }
        if response.field("transfer-encoding") == Some("chunked") {
            return self.chunked(response);
        }
        let length = response.field("content-length").map(|length| length.parse::<usize>().unwrap());
        while length.is_none_or(|length| self.input.len() < length) {
            if let Err(end) = self.read() {
                response.end = if length.is_none() && end == End::Fin { End::Clean } else { end };
                response.body = std::mem::take(&mut self.input);
                return;
            }
        }
        response.body = self.input.drain(..length.unwrap()).collect();
    }

    fn chunked(&mut self, response: &mut Response) {
        loop {
            match self.try_chunk() {
                Ok(Some(chunk)) => {
                    response.body.extend_from_slice(&chunk);
                    response.chunks.push(chunk);
                }
                Ok(None) => return response.trailers = self.trailers(),
                Err(end) => return response.end = end,
            }
        }
    }

    fn try_chunk(&mut self) -> Result<Option<Vec<u8>>, End> {
        loop {
            match httparse::parse_chunk_size(&self.input) {
                Ok(httparse::Status::Complete((line, 0))) => {
                    self.input.drain(..line);
                    return Ok(None);
                }
                Ok(httparse::Status::Complete((line, size))) => {
                    let end = line + usize::try_from(size).unwrap();
                    if self.input.len() >= end + 2 {
                        let chunk = self.input[line..end].to_vec();
                        let closed = &self.input[end..end + 2] == b"\r\n";
                        self.input.drain(..end + 2);
                        return if closed { Ok(Some(chunk)) } else { Err(End::Garbage) };
                    }
                }
                Ok(httparse::Status::Partial) => {}
                Err(_) => return Err(End::Garbage),
            }
            self.read()?;
        }
    }

    fn trailers(&mut self) -> Vec<(String, String)> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; 16];
            if let httparse::Status::Complete((length, found)) =
                httparse::parse_headers(&self.input, &mut fields).unwrap()
            {
                let trailers = owned(found);
                self.input.drain(..length);
                return trailers;
            }
            self.read().unwrap();
        }
    }

    fn read(&mut self) -> Result<(), End> {
        let mut piece = [0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(End::Fin),
            Ok(count) => {
                self.input.extend_from_slice(&piece[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(End::Reset),
            Err(error) => panic!("{error} while reading; so far {:?}", self.shown()),
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.input[..self.input.len().min(300)]).into_owned()
    }
}

fn owned(fields: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|field| (field.name.to_owned(), String::from_utf8_lossy(field.value).into_owned()))
        .collect()
}

/// An origin on a free port, and a client that is connected to it.
pub(crate) fn start() -> (Origin, Client) {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    let client = Client::connect(origin.addr());
    (origin, client)
}
