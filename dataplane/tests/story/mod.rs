//! The real program as a child process, for the stories beside this folder: started with a config of its own, asked over
//! its admin socket, ended with the test. No part of the program is linked in, and nothing here listens on a fixed port.
#![allow(dead_code, reason = "every test file uses another part of it")]

pub(crate) mod capture;
pub(crate) mod config;
pub(crate) mod hole;
pub(crate) mod load;
pub(crate) mod wire;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bench::origin::{Origin, OriginOptions};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use config::Config;
use wire::Wire;

/// Longest time that a test waits for anything; only a failure takes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at something that cannot be waited for otherwise.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Both drivers, for the stories that are told with each.
pub(crate) const DRIVERS: [&str; 2] = ["io_uring", "epoll"];

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_millrace-dataplane");

/// A running data plane.
pub(crate) struct Proxy {
    child: Child,
    /// Which of the processes serves: another one than the child after an upgrade.
    serving: u32,
    /// Those that served before; until they end they may answer on the admin socket still.
    former: Vec<u32>,
    output: Arc<Mutex<String>>,
    dir: TempDir,
}

impl Proxy {
    /// Starts the program and waits until it is ready.
    pub(crate) fn start(config: &Config) -> Self {
        Self::start_as(config, |program| Command::new(program))
    }

    /// As [`Proxy::start`], by a command that becomes the program.
    pub(crate) fn start_as(config: &Config, command: impl Fn(&Path) -> Command) -> Self {
        let dir = tempfile::Builder::new().prefix("millrace-story-").tempdir().unwrap();
        let path = dir.path().join("edge.toml");
        std::fs::write(&path, config.render(dir.path())).unwrap();
        let command = command(Path::new(PROGRAM));
        let mut child = with_arguments(command, &["run", "-c", path.to_str().unwrap()]).spawn().unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().unwrap(), &output);
        collect(child.stderr.take().unwrap(), &output);
        let mut proxy = Self { serving: child.id(), former: Vec::new(), child, output, dir };
        proxy.await_ready();
        proxy
    }

    /// As [`Proxy::start`], with so many open files at most: by the soft limit, and by the hard one.
    pub(crate) fn start_with_files(config: &Config, soft: u64, hard: u64) -> Self {
        // The soft one first: it may not be above the hard one at any time.
        let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
        Self::start_as(config, |program| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(&script).arg(program);
            command
        })
    }

    /// The default config in front of `origin`.
    pub(crate) fn before(origin: &Origin) -> Self {
        Self::start(&Config::to(origin.addr()))
    }

    fn await_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.try_admin("GET", "/readyz", "").is_none_or(|(status, _)| status != 200) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the program ended with {status}:\n{}", self.output());
            }
            assert!(Instant::now() < deadline, "the program is not ready:\n{}", self.output());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The address of the listener called `http`.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr_of("http")
    }

    /// The first address of a listener.
    pub(crate) fn addr_of(&self, listener: &str) -> SocketAddr {
        let status = self.status();
        let listeners = status["listeners"].as_array().unwrap();
        let found = listeners.iter().find(|entry| entry["name"] == listener);
        let found = found.unwrap_or_else(|| panic!("no listener {listener} in {status}"));
        found["addresses"][0].as_str().unwrap().parse().unwrap()
    }

    /// A URL at the listener called `http`.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr())
    }

    /// A connection to the listener called `http`.
    pub(crate) fn connect(&self) -> Wire {
        Wire::connect(self.addr())
    }

    /// The folder of this proxy's files, for sockets and logs.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the program wrote so far, on both of its outputs.
    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        self.serving
    }

    /// Writes the file that SIGHUP reads.
    pub(crate) fn write_config(&self, config: &Config) {
        std::fs::write(self.dir.path().join("edge.toml"), config.render(self.dir.path())).unwrap();
    }

    /// `PUT /config`.
    pub(crate) fn put_config(&self, config: &Config) -> (u16, Value) {
        self.admin("PUT", "/config", &config.render(self.dir.path()))
    }

    /// Asks the admin API; the body is null where it is not JSON.
    pub(crate) fn admin(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        // A process that hands over closes admin connections that have not asked yet: who only reads asks again.
        let again = || if method == "GET" { self.try_admin(method, path, body) } else { None };
        let (status, body) = self
            .try_admin(method, path, body)
            .or_else(again)
            .unwrap_or_else(|| panic!("the admin API does not answer:\n{}", self.output()));
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Asks the admin API, whose answer is still to be read from the connection.
    pub(crate) fn begin_admin(&self, method: &str, path: &str, body: &str) -> std::io::Result<Wire> {
        let mut wire = Wire::try_connect_unix(&self.admin_socket())?;
        let length = body.len();
        wire.try_send(format!(
            "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))?;
        Ok(wire)
    }

    fn try_admin(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut wire = self.begin_admin(method, path, body).ok()?;
        let head = wire.try_head().ok()?;
        let body = wire.try_body(&head).ok()?;
        Some((head.status(), String::from_utf8(body).ok()?))
    }

    /// Where the admin API listens.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// `GET /status`.
    pub(crate) fn status(&self) -> Value {
        let (status, body) = self.admin("GET", "/status", "");
        assert_eq!(status, 200, "{}", self.output());
        body
    }

    /// What the admin API has under this path, as text.
    pub(crate) fn text(&self, path: &str) -> String {
        let (status, text) = self.try_admin("GET", path, "").expect("the admin API answers");
        assert_eq!(status, 200);
        text
    }

    /// The sum of all samples of a metric whose labels contain each of `labels`, such as `kind="idle_timeout"`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.text("/metrics");
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    }

    /// How often a request ended with this fault.
    pub(crate) fn faults(&self, kind: &str) -> u64 {
        self.metric("millrace_faults_total", &[&format!("kind=\"{kind}\"")])
    }

    /// How often a connection, or a request without a route, ended with this fault.
    pub(crate) fn listener_faults(&self, kind: &str) -> u64 {
        self.metric("millrace_listener_faults_total", &[&format!("kind=\"{kind}\"")])
    }

    /// Waits until `done`.
    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "not so: {what}; {}\n{}", self.status(), self.output());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until no exchange is in flight and every buffer is given back, and holds that nothing has panicked.
    #[track_caller]
    pub(crate) fn assert_at_rest(&self) {
        self.eventually("no stream is in flight", |proxy| proxy.status()["streams"] == 0);
        self.eventually("no client is connected", |proxy| proxy.status()["connections"] == 0);
        self.eventually("no buffer is lent", |proxy| {
            let memory = &proxy.status()["memory"];
            memory["buffers"] == 0 && memory["buffer_bytes"] == 0
        });
        self.assert_sound();
    }

    /// Holds that nothing has panicked, and that a new request is served.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        assert_eq!(self.metric("millrace_worker_panics_total", &[]), 0, "{}", self.output());
        assert_eq!(self.metric("millrace_worker_restarts_total", &[]), 0, "{}", self.output());
        assert_eq!(self.metric("millrace_worker_lost_wakes_total", &[]), 0, "{}", self.output());
        assert!(!self.output().contains("panicked"), "{}", self.output());
    }

    /// Descriptors that it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(Path::new("/proc").join(self.serving.to_string()).join("fd")).unwrap().count()
    }

    /// Descriptors that the kernel has room for without making the table longer (proc_pid_status(5)).
    pub(crate) fn room_for_files(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.serving)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        line.trim().parse().unwrap()
    }

    /// Lets it open so many files more than it has open now; returns the limits from before.
    pub(crate) fn leave_files(&self, count: u64) -> Rlimit {
        let pid = Pid::from_raw(self.pid() as i32);
        let current = Some(self.open_files() as u64 + count);
        prlimit(pid, Resource::Nofile, Rlimit { current, ..getrlimit(Resource::Nofile) }).unwrap()
    }

    /// Memory in RAM.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.status()["memory"]["rss_bytes"].as_u64().unwrap()
    }

    /// Sends a signal to the process that serves.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid(self.serving), signal).unwrap();
    }

    /// Ends it by SIGINT and says how it went.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.wait()
    }

    /// Waits until the program that was started has ended.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end:\n{}", self.output());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the admin socket is answered by a process that is new there, and takes that for the one that serves.
    #[track_caller]
    pub(crate) fn await_successor(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.former.push(self.serving);
        loop {
            let status = self.try_admin("GET", "/status", "").map(|(_, body)| body).unwrap_or_default();
            let status: Value = serde_json::from_str(&status).unwrap_or_default();
            if let Some(pid) = status["pid"].as_u64().map(|pid| u32::try_from(pid).unwrap())
                && !self.former.contains(&pid)
            {
                self.serving = pid;
                return;
            }
            assert!(Instant::now() < deadline, "no new process took over:\n{}", self.output());
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.serving != self.child.id() {
            // A process that took over is no child of this one: it is known by its pid from the test's own socket.
            let _ = kill_process(pid(self.serving), Signal::KILL);
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- what the proxy wrote:\n{}---", self.output());
        }
    }
}

/// What a run of the program that ended by itself said.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The command with these arguments, in an environment that says nothing to the program.
fn with_arguments(mut command: Command, arguments: &[&str]) -> Command {
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

/// Runs the program to its end, which has to come soon.
pub(crate) fn run_to_end(arguments: &[&str]) -> Ended {
    let mut child = with_arguments(Command::new(PROGRAM), arguments).spawn().unwrap();
    // Beside the wait: what does not fit into a pipe would keep the program from ending.
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the program went on with {arguments:?}");
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    assert_eq!(status.signal(), None, "{stderr}");
    Ended { code: status.code(), stdout, stderr }
}

/// Reads a pipe to its end, on a thread of its own.
fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    })
}

/// The mock origin with its defaults.
pub(crate) fn origin() -> Origin {
    Origin::start(OriginOptions::default()).unwrap()
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// Keeps everything that comes from `pipe`.
fn collect(pipe: impl Read + Send + 'static, output: &Arc<Mutex<String>>) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let mut output = output.lock().unwrap();
            output.push_str(&String::from_utf8_lossy(&line));
            output.push('\n');
        }
    });
}
