//! A data plane as its own process, for the stories in this folder: started on free ports, asked over its Unix admin
//! socket, ended with the test. No story is told here.
#![allow(dead_code, reason = "each story uses the part of this that it needs")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_millrace-dataplane");

/// What is waited for comes within this, or the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running data plane, in a folder of its own.
pub(crate) struct DataPlane {
    dir: TempDir,
    child: Child,
    /// The process that serves now: another one than the child after an upgrade.
    pid: i32,
}

/// An answer of HTTP: its status and its body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// Header fields as they came, line by line.
    pub(crate) head: String,
    /// The body, of whatever framing: as it came.
    pub(crate) body: String,
}

impl DataPlane {
    /// Starts it with this config, to which a listener `http` on a free port and the admin socket are added, and waits
    /// until it is ready.
    pub(crate) fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge.toml");
        fs::write(&path, Self::config_in(dir.path(), config)).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(PROGRAM)
            .arg("run")
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let mut data_plane = DataPlane { dir, child, pid };
        data_plane.wait_until("it is ready", |it| {
            assert!(it.child.try_wait().unwrap().is_none(), "it ended:\n{}", it.log());
            it.try_admin("GET", "/readyz", "").is_ok_and(|answer| answer.status == 200)
        });
        data_plane
    }

    /// The whole text for these parts of a config.
    pub(crate) fn config(&self, config: &str) -> String {
        Self::config_in(self.dir.path(), config)
    }

    fn config_in(dir: &Path, config: &str) -> String {
        let socket = dir.join("admin.sock");
        format!("admin = {{ listen = \"off\", socket = \"{}\" }}\n{config}", socket.display())
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the config's file; a signal makes it read it.
    pub(crate) fn write_config(&self, config: &str) {
        fs::write(self.path("edge.toml"), self.config(config)).unwrap();
    }

    /// Asks the admin API.
    pub(crate) fn admin(&self, method: &str, path: &str, body: &str) -> Answer {
        self.try_admin(method, path, body).unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()))
    }

    fn try_admin(&self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        exchange(UnixStream::connect(self.path("admin.sock"))?, method, path, body)
    }

    /// `/status`, read.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.admin("GET", "/status", "").body).unwrap()
    }

    /// Where this listener is bound.
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let status = self.status();
        let listeners = status["listeners"].as_array().unwrap();
        let found = listeners.iter().find(|one| one["name"] == listener).unwrap();
        found["addresses"][0].as_str().unwrap().parse().unwrap()
    }

    /// The process that serves, as far as this test knows.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal to the process that serves.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid).unwrap(), signal).unwrap();
    }

    /// Waits until another process serves than the one before, and returns its id.
    pub(crate) fn wait_for_takeover(&mut self) -> i32 {
        let before = self.pid;
        let mut now = before;
        self.wait_until("another process serves", |it| {
            let status = it.try_admin("GET", "/status", "").ok();
            let pid =
                status.and_then(|answer| serde_json::from_str::<Value>(&answer.body).ok()?["pid"].as_i64());
            now = pid.map_or(before, |pid| pid as i32);
            now != before
        });
        self.pid = now;
        now
    }

    /// Waits until the process that was started first has ended.
    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        let mut status = None;
        self.wait_until("the process has ended", |it| {
            status = it.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits until something holds.
    pub(crate) fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < PATIENCE, "in vain waited until {what}; the log:\n{}", self.log());
            // Not a wait for a guessed time: only so as not to take the processor from what is waited for.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has written to standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = Pid::from_raw(self.pid).map(|pid| kill_process(pid, Signal::KILL));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a new connection, and the whole answer to it.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    exchange(TcpStream::connect(address)?, "GET", path, "")
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no answer but {text:?}")))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// An origin in this process that answers every request with its body, on a thread of its own until the test ends.
pub(crate) fn origin(body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_all(stream, body));
        }
    });
    address
}

/// Answers the requests of one connection, which have no bodies.
fn answer_all(mut stream: TcpStream, body: &str) -> Option<()> {
    let mut received = Vec::new();
    loop {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).ok().filter(|length| *length > 0)?;
        received.extend_from_slice(&part[..length]);
        while let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            received.drain(..end + 4);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(head.as_bytes()).ok()?;
        }
    }
}

/// An origin that begins a chunked answer at once and ends it when told, one chunk each time it is told more.
pub(crate) struct SlowOrigin {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    streams: std::sync::mpsc::Receiver<TcpStream>,
}

impl SlowOrigin {
    /// Listens.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n";
                let is_asked = stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0);
                if is_asked && stream.write_all(begun).is_ok() && sender.send(stream).is_err() {
                    return;
                }
            }
        });
        SlowOrigin { address, streams }
    }

    /// The next connection on which an answer was begun.
    pub(crate) fn begun(&self) -> TcpStream {
        self.streams.recv_timeout(PATIENCE).expect("no request came")
    }
}

/// Sends one more chunk and the end.
pub(crate) fn end_stream(mut stream: TcpStream) {
    stream.write_all(b"5\r\nended\r\n0\r\n\r\n").unwrap();
}

/// The parts of a config: a listener on a free port, and a route for everything to one origin.
pub(crate) fn forward_to(origin: SocketAddr) -> String {
    format!(
        "[[listeners]]\nname = \"http\"\nbind = \"127.0.0.1:0\"\n[[routes]]\nname = \"all\"\ncluster = \"web\"\n\
         [[clusters]]\nname = \"web\"\nendpoints = [{{ address = \"{origin}\" }}]\n"
    )
}
