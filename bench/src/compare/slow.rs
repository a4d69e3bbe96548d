//! Slow readers: clients that ask for a large body and take it at a trickle, while the origin sends as fast as it may.
//! What the proxy takes in meanwhile is its memory, or the kernel's, at its most.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::unmeasured;
use crate::contest::{Fault, Process};
use crate::host::memory_available;
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

/// Peak memory for each reader: of the process (if there is one), and of the whole machine.
pub(super) fn read_slowly(target: SocketAddr, process: Option<&Process>) -> Result<Sample, Fault> {
    let available = || memory_available().ok_or_else(|| unmeasured("the kernel tells no MemAvailable"));
    let resident = || process.map_or(0, Process::memory);
    let (available_before, resident_before) = (available()?, resident());
    let (mut available_min, mut resident_max) = (available_before, resident_before);
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
        available_min = available_min.min(available()?);
        resident_max = resident_max.max(resident());
    }
    if let Some(silent) = readers.iter().position(|reader| reader.body_bytes == 0) {
        return Err(Fault::Wrong(format!("reader {silent} has got nothing in {} s", DURATION.as_secs())));
    }
    let per_reader_kib = |bytes: u64| bytes as f64 / KIB / READERS as f64;
    Ok(Sample::from([
        (Figure::PeakResidentKib, per_reader_kib(resident_max - resident_before)),
        (Figure::PeakMachineKib, per_reader_kib(available_before - available_min)),
    ]))
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
