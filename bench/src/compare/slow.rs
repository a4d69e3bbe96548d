//! Slow readers: clients that ask for a large body and take it at a trickle, while the origin sends as fast as it may.
//! What the proxy takes in meanwhile is in its memory, or in the kernel's for its sockets. What the origin could not send
//! waits in the origin's own sockets, and is no concern of the proxy.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::unmeasured;
use crate::contest::{Fault, Process};
use crate::pattern;
use crate::report::{Figure, Sample};

const READERS: usize = 100;
/// What each asks for: far more than any proxy should hold.
const BODY_BYTES: usize = 16 << 20;
/// Receive buffer of a client, so that what it does not read waits elsewhere.
const CLIENT_BUFFER: usize = 16 << 10;
/// What each reads at a time, and how often.
const READ_BYTES: usize = 8 << 10;
const READ_INTERVAL: Duration = Duration::from_millis(50);
/// Long enough for every buffer on the way to be full.
const DURATION: Duration = Duration::from_secs(2);
const KIB: f64 = 1024.0;

/// Most memory of the process for each reader, and what its sockets hold once every buffer on the way is full.
pub(super) fn read_slowly(
    target: SocketAddr,
    origin: SocketAddr,
    process: &Process,
) -> Result<Sample, Fault> {
    let resident_before = process.memory();
    let mut resident_max = resident_before;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(Reader::connect(target).map_err(wrong)?);
    }
    let begin = Instant::now();
    while begin.elapsed() < DURATION {
        std::thread::sleep(READ_INTERVAL);
        for reader in &mut readers {
            reader.read_some().map_err(wrong)?;
        }
        resident_max = resident_max.max(process.memory());
    }
    if let Some(silent) = readers.iter().position(|reader| reader.body_bytes == 0) {
        return Err(Fault::Wrong(format!("reader {silent} has got nothing in {} s", DURATION.as_secs())));
    }
    let per_reader_kib = |bytes: u64| bytes as f64 / KIB / READERS as f64;
    let resident = resident_max - resident_before;
    Ok(Sample::from([
        (Figure::PeakResidentKib, per_reader_kib(resident)),
        (Figure::PeakWithSocketsKib, per_reader_kib(resident + in_sockets(target, origin)?)),
    ]))
}

/// Bytes of kernel memory in the sockets of a proxy: those of its clients, and those to the origin.
fn in_sockets(listen: SocketAddr, origin: SocketAddr) -> Result<u64, Fault> {
    let listing = Command::new("ss").args(["-tmnHO"]).output();
    let listing = listing.map_err(|error| unmeasured(format!("ss: {error}; apt-get install iproute2")))?;
    let text = String::from_utf8_lossy(&listing.stdout);
    let of_proxy = text.lines().filter_map(|line| socket(line).filter(|socket| socket.is_of(listen, origin)));
    Ok(of_proxy.map(|socket| socket.bytes).sum())
}

/// One line of `ss -tmnHO`.
#[derive(Debug, PartialEq, Eq)]
struct ListedSocket {
    local: SocketAddr,
    peer: SocketAddr,
    bytes: u64,
}

impl ListedSocket {
    fn is_of(&self, listen: SocketAddr, origin: SocketAddr) -> bool {
        self.local == listen || self.peer == origin
    }
}

/// `ESTAB 0 0 127.0.0.1:80 127.0.0.1:4711 skmem:(r0,rb131072,t0,tb2626560,f4096,w0,o0,bl0,d0)`: received and not read
/// (r), set aside for more (f), to be sent (w), and not even looked at (bl), see ss(8).
fn socket(line: &str) -> Option<ListedSocket> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (local, peer) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let memory = fields.find_map(|field| field.strip_prefix("skmem:(")?.strip_suffix(')'))?;
    let held = memory.split(',').filter_map(|part| {
        let (name, number) = part.split_at(part.find(|digit: char| digit.is_ascii_digit())?);
        ["r", "f", "w", "bl"].contains(&name).then(|| number.parse::<u64>().ok())?
    });
    Some(ListedSocket { local, peer, bytes: held.sum() })
}

fn wrong(error: io::Error) -> Fault {
    Fault::Wrong(error.to_string())
}

struct Reader {
    stream: TcpStream,
    /// Until its end has come.
    head: Option<Vec<u8>>,
    body_bytes: u64,
}

impl Reader {
    fn connect(target: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        // Before connecting, or the window has been announced already.
        socket.set_recv_buffer_size(CLIENT_BUFFER)?;
        socket.connect(&target.into())?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(format!("GET /bytes/{BODY_BYTES} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes())?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, head: Some(Vec::new()), body_bytes: 0 })
    }

    /// Reads and checks what is there, up to a limit. Errors: it ends, or is not what the origin sends.
    fn read_some(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::Error::other("the body was cut short")),
            Ok(read) => self.take(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(mut head) = self.head.take() else { return self.check(bytes) };
        head.extend_from_slice(bytes);
        let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else {
            self.head = Some(head);
            return Ok(());
        };
        if !head.starts_with(b"HTTP/1.1 200 ") {
            let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default());
            return Err(io::Error::other(format!("it answers {line:?}")));
        }
        self.check(&head[end + 4..])
    }

    fn check(&mut self, body: &[u8]) -> io::Result<()> {
        let begin = self.body_bytes;
        self.body_bytes += body.len() as u64;
        if pattern::matches(begin, body) {
            Ok(())
        } else {
            Err(io::Error::other(format!("wrong bytes within {} of the body", self.body_bytes)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{Knobs, Origin, OriginOptions};

    #[test]
    fn what_a_socket_holds_is_read_from_a_listing() {
        let line = "ESTAB 0      2474   127.0.0.1:18080 127.0.0.1:40000 \
                    skmem:(r10,rb131072,t1,tb2626560,f200,w3000,o50000,bl40000,d7)";
        let read = socket(line).unwrap();
        assert_eq!(read.bytes, 43_210);
        let (listen, origin) = ("127.0.0.1:18080".parse().unwrap(), "127.0.0.1:8000".parse().unwrap());
        assert!(read.is_of(listen, origin), "a client's");
        let to_origin = ListedSocket { local: read.peer, peer: origin, ..read };
        assert!(to_origin.is_of(listen, origin), "to the origin");
        let of_origin = ListedSocket { local: origin, peer: to_origin.local, ..to_origin };
        assert!(!of_origin.is_of(listen, origin), "the origin's own");
        assert_eq!(socket("LISTEN 0 4096 0.0.0.0:22 0.0.0.0:*"), None);
    }

    #[test]
    fn bytes_that_nobody_reads_are_in_the_sockets_of_who_holds_them() {
        let origin = Origin::start(OriginOptions::default()).unwrap();
        let _reader = Reader::connect(origin.addr()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // Sixteen megabytes are asked for and nobody reads.
        while in_sockets(origin.addr(), "127.0.0.1:1".parse().unwrap()).unwrap() < 30_000 {
            assert!(Instant::now() < deadline, "the origin holds nothing to be sent");
            std::thread::sleep(READ_INTERVAL);
        }
    }

    #[test]
    fn the_trickle_is_checked_byte_by_byte() {
        let origin = Origin::start(OriginOptions::default()).unwrap();
        let mut reader = Reader::connect(origin.addr()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while reader.body_bytes < 100_000 {
            assert!(Instant::now() < deadline, "only {} bytes came", reader.body_bytes);
            reader.read_some().unwrap();
        }
        reader.body_bytes += 1;
        assert!(reader.check(&[7; 2]).is_err());
    }

    #[test]
    fn an_answer_that_ends_early_or_is_none_is_wrong() {
        for (knob, value) in [("cut_at", "1000"), ("status", "500")] {
            let mut defaults = Knobs::default();
            defaults.set(knob, value).unwrap();
            let origin = Origin::start(OriginOptions { defaults, ..OriginOptions::default() }).unwrap();
            let mut reader = Reader::connect(origin.addr()).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while reader.read_some().is_ok() {
                assert!(Instant::now() < deadline, "{knob}: nothing is found wrong");
            }
        }
    }
}
