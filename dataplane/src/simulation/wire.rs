//! HTTP/1.1 as the clients and origins of a simulation read it: strict, and written apart from the parser that it helps to
//! check.

/// What a message's head says.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    /// The request line or the status line.
    pub(super) line: String,
    length: Option<Length>,
    /// `Connection: close`.
    pub(super) is_last: bool,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Sized(usize),
    Chunked,
}

/// What has come.
#[derive(Debug)]
pub(super) enum Event {
    Head(Head),
    Body(Vec<u8>),
    /// The message is whole.
    End,
}

/// Where a reader is.
#[derive(Debug)]
enum Place {
    Head,
    /// So many bytes are still to come.
    Sized(usize),
    ChunkSize,
    /// Bytes of the chunk that are still to come, its line end not counted.
    Chunk(usize),
    ChunkEnd,
    /// Behind the last chunk.
    Trailer,
    /// The end of the connection is the end of the body.
    UntilClose,
}

/// Which side's messages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Requests,
    Answers,
}

/// Reads one message after the other.
pub(super) struct Reader {
    kind: Kind,
    place: Place,
    unread: Vec<u8>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:?}, {} bytes unread", self.kind, self.place, self.unread.len())
    }
}

impl Reader {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, place: Place::Head, unread: Vec::new() }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Whether a message has begun and is not whole.
    pub(super) fn is_within(&self) -> bool {
        !matches!(self.place, Place::Head) || !self.unread.is_empty()
    }

    /// Whether the end of the connection now would be the end of a message.
    pub(super) fn is_whole_at_close(&self) -> bool {
        matches!(self.place, Place::UntilClose)
    }

    /// The next of what has come; none until more has. Errors: it is no HTTP.
    pub(super) fn next(&mut self) -> Result<Option<Event>, String> {
        match self.place {
            Place::Head => self.head(),
            Place::Sized(0) => Ok(Some(self.end())),
            Place::Sized(left) => Ok(self.body(left, Place::Sized)),
            Place::ChunkSize => {
                let Some(line) = self.line() else { return Ok(None) };
                let size = usize::from_str_radix(&line, 16).map_err(|_| format!("a chunk size {line:?}"))?;
                self.place = if size == 0 { Place::Trailer } else { Place::Chunk(size) };
                self.next()
            }
            Place::Chunk(0) => {
                self.place = Place::ChunkEnd;
                self.next()
            }
            Place::Chunk(left) => Ok(self.body(left, Place::Chunk)),
            Place::ChunkEnd => match self.line() {
                Some(line) if line.is_empty() => {
                    self.place = Place::ChunkSize;
                    self.next()
                }
                Some(line) => Err(format!("{line:?} behind a chunk")),
                None => Ok(None),
            },
            Place::Trailer => match self.line() {
                Some(line) if line.is_empty() => Ok(Some(self.end())),
                Some(line) => Err(format!("a trailer {line:?}")),
                None => Ok(None),
            },
            Place::UntilClose => Ok(self.body(usize::MAX, |_| Place::UntilClose)),
        }
    }

    fn end(&mut self) -> Event {
        self.place = Place::Head;
        Event::End
    }

    fn body(&mut self, left: usize, place: impl Fn(usize) -> Place) -> Option<Event> {
        if self.unread.is_empty() {
            return None;
        }
        let count = left.min(self.unread.len());
        let bytes = self.unread.drain(..count).collect();
        self.place = place(left - count);
        Some(Event::Body(bytes))
    }

    fn line(&mut self) -> Option<String> {
        let end = self.unread.windows(2).position(|pair| pair == b"\r\n")?;
        let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        self.unread.drain(..end + 2);
        Some(line)
    }

    fn head(&mut self) -> Result<Option<Event>, String> {
        if !self.unread.windows(4).any(|four| four == b"\r\n\r\n") {
            return Ok(None);
        }
        let mut head = Head { line: self.line().unwrap_or_default(), ..Head::default() };
        while let Some(line) = self.line().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").ok_or_else(|| format!("a field {line:?}"))?;
            match (name.to_ascii_lowercase().as_str(), value) {
                ("content-length", size) => {
                    let size = size.parse().map_err(|_| format!("a length {size:?}"))?;
                    head.set_length(Length::Sized(size))?;
                }
                ("transfer-encoding", "chunked") => head.set_length(Length::Chunked)?,
                ("connection", "close") => head.is_last = true,
                _ => {}
            }
        }
        self.place = match (head.length, self.kind) {
            (Some(Length::Sized(size)), _) => Place::Sized(size),
            (Some(Length::Chunked), _) => Place::ChunkSize,
            (None, Kind::Requests) => Place::Sized(0),
            (None, Kind::Answers) => Place::UntilClose,
        };
        Ok(Some(Event::Head(head)))
    }
}

impl Head {
    fn set_length(&mut self, length: Length) -> Result<(), String> {
        match self.length.replace(length) {
            None => Ok(()),
            Some(before) => Err(format!("two lengths: {before:?} and {length:?}")),
        }
    }
}

/// A body in chunks of these sizes, the last of which may be shorter.
pub(super) fn chunked(body: &[u8], mut size: impl FnMut() -> usize) -> Vec<u8> {
    let mut encoded = Vec::new();
    let mut left = body;
    while !left.is_empty() {
        let (chunk, rest) = left.split_at(size().clamp(1, left.len()));
        encoded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        encoded.extend_from_slice(chunk);
        encoded.extend_from_slice(b"\r\n");
        left = rest;
    }
    encoded.extend_from_slice(b"0\r\n\r\n");
    encoded
}
