//! The bare relays move every byte, both ends of a connection, and resets: a yardstick that loses bytes would be
//! cheap for nothing. What they cost is not asked here.

#![cfg(feature = "measure")]
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bench::floor::Kind;
use socket2::{Domain, SockRef, Socket, Type};

/// Longest time that anything here waits.
const PATIENCE: Duration = Duration::from_secs(20);
const MEBIBYTE: usize = 1 << 20;

/// A relay in a process of its own, and the upstream that it relays to.
struct Relay {
    process: Child,
    address: SocketAddr,
    upstream: TcpListener,
}

impl Relay {
    fn start(kind: Kind) -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_millrace-bench"))
            .args(["floor", "--listen", "127.0.0.1:0", "--kind", kind.name()])
            .args(["--to", &upstream.local_addr().unwrap().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("floor listening on ").unwrap().parse().unwrap();
        Self { process, address, upstream }
    }

    /// A connection through the relay: the client's end and the upstream's.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.address).unwrap();
        (patient(client), patient(self.upstream.accept().unwrap().0))
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// A client that takes in little before it reads.
    fn connect_narrow(&self) -> (TcpStream, TcpStream) {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(64 * 1024).unwrap();
        client.connect(&self.address.into()).unwrap();
        (patient(client.into()), patient(self.upstream.accept().unwrap().0))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Bytes that are different at every place and for every seed.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + at / 251 + seed * 7) % 256) as u8).collect()
}

fn send_in_background(stream: &TcpStream, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    let mut stream = stream.try_clone().unwrap();
    thread::spawn(move || {
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    })
}

fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn relays_a_mebibyte_both_ways_at_once() {
    for kind in Kind::ALL {
        let relay = Relay::start(kind);
        let pairs: Vec<_> = (0..8).map(|_| relay.connect()).collect();
        let mut writers = Vec::new();
        for (index, (client, upstream)) in pairs.iter().enumerate() {
            writers.push(send_in_background(client, pattern(index, MEBIBYTE)));
            writers.push(send_in_background(upstream, pattern(index + 100, MEBIBYTE)));
        }
        for (index, (client, upstream)) in pairs.iter().enumerate() {
            assert!(read_to_end(upstream) == pattern(index, MEBIBYTE), "{kind:?}: request {index}");
            assert!(read_to_end(client) == pattern(index + 100, MEBIBYTE), "{kind:?}: answer {index}");
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
}

#[test]
fn passes_a_half_close_on_and_keeps_the_other_way() {
    for kind in Kind::ALL {
        let relay = Relay::start(kind);
        let (mut client, mut upstream) = relay.connect();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&upstream), b"question", "{kind:?}");
        upstream.write_all(b"answer").unwrap();
        drop(upstream);
        assert_eq!(read_to_end(&client), b"answer", "{kind:?}");
    }
}

#[test]
fn passes_a_reset_on_as_a_reset() {
    for kind in Kind::ALL {
        let relay = Relay::start(kind);
        for client_resets in [true, false] {
            let (mut client, mut upstream) = relay.connect();
            client.write_all(b"x").unwrap();
            upstream.read_exact(&mut [0]).unwrap();
            let (leaving, mut staying) = if client_resets { (client, upstream) } else { (upstream, client) };
            SockRef::from(&leaving).set_linger(Some(Duration::ZERO)).unwrap();
            drop(leaving);
            let seen = staying.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(seen, Err(ErrorKind::ConnectionReset), "{kind:?}, client resets: {client_resets}");
        }
    }
}

#[test]
fn resets_the_client_when_nobody_listens_behind() {
    for kind in Kind::ALL {
        let relay = Relay::start(kind);
        // A listener that is shut down refuses, and keeps its port from others.
        SockRef::from(&relay.upstream).shutdown(Shutdown::Both).unwrap();
        let mut client = patient(TcpStream::connect(relay.address).unwrap());
        let seen = client.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(seen, Err(ErrorKind::ConnectionReset), "{kind:?}");
    }
}

/// 80 readers that do not read hold more than all buffers of the ring (1024, at most 16 and one each).
#[test]
fn survives_more_slow_readers_than_it_has_buffers_for() {
    let bytes = pattern(0, 2 * MEBIBYTE);
    for kind in Kind::ALL {
        let relay = Relay::start(kind);
        let readers = if kind == Kind::Ring { 80 } else { 4 };
        let pairs: Vec<_> = (0..readers).map(|_| relay.connect_narrow()).collect();
        let writers: Vec<_> =
            pairs.iter().map(|(_, upstream)| send_in_background(upstream, bytes.clone())).collect();
        for (index, (client, _)) in pairs.iter().enumerate() {
            assert!(read_to_end(client) == bytes, "{kind:?}: reader {index}");
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
}

#[test]
fn keeps_nothing_of_many_short_connections() {
    for kind in Kind::ALL {
        let relay = Relay::start(kind);
        let (mut held, mut held_upstream) = relay.connect();
        held.write_all(b"x").unwrap();
        // The relay is all set up when this has come through.
        held_upstream.read_exact(&mut [0]).unwrap();
        let before = relay.open_files();
        for round in 0..200_u8 {
            let (mut client, mut upstream) = relay.connect();
            client.write_all(&[round]).unwrap();
            let mut byte = [0];
            upstream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [round], "{kind:?}");
            if round % 2 == 0 {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while relay.open_files() > before {
            assert!(Instant::now() < deadline, "{kind:?}: {} files, {before} before", relay.open_files());
            thread::yield_now();
        }
    }
}
