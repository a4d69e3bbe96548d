//! The real master as a child process, for the stories beside this folder: started on free ports over a folder of its own,
//! asked over its API, ended with the test. No part of the program is linked in.
#![allow(dead_code, reason = "every test file uses another part of it")]

pub(crate) mod agent;
pub(crate) mod authority;
pub(crate) mod client;
pub(crate) mod fleet;
pub(crate) mod receiver;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client::Client;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longest time that a test waits for anything; only a failure takes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at something that cannot be waited for otherwise.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_millrace-master");

/// A running master.
pub(crate) struct Master {
    child: Child,
    output: Arc<Mutex<String>>,
    dir: TempDir,
    rest: SocketAddr,
    grpc: SocketAddr,
    password: String,
}

impl Master {
    /// Starts the program over a new folder and waits until it serves.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same with more in its config.
    pub(crate) fn start_with(config: &str) -> Self {
        Self::start_over("", "", config)
    }

    /// The same with more in the config of its two listeners.
    pub(crate) fn start_listening(rest: &str, grpc: &str) -> Self {
        Self::start_over(rest, grpc, "")
    }

    /// The same with both.
    pub(crate) fn start_over(rest: &str, grpc: &str, config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("millrace-master-").tempdir().unwrap();
        let listen = "listen = \"127.0.0.1:0\"";
        let config = format!("[rest]\n{listen}\n{rest}\n[grpc]\n{listen}\n{grpc}\n{config}");
        std::fs::write(dir.path().join("master.toml"), config).unwrap();
        let (child, output) = spawn(dir.path());
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut master = Self { child, output, dir, rest: nowhere, grpc: nowhere, password: String::new() };
        master.await_serving();
        let output = master.output();
        let (_, said) = output.split_once("with the password ").expect("the first start tells a password");
        master.password = said.split(' ').next().unwrap().to_owned();
        master
    }

    /// Ends it at once, as a power cut would, and starts it again over the same folder.
    pub(crate) fn restart_after_kill(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again over the same folder, once it has ended.
    pub(crate) fn start_again(&mut self) {
        (self.child, self.output) = spawn(self.dir.path());
        self.await_serving();
    }

    fn await_serving(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let (Some(rest), Some(grpc)) = (self.said("rest="), self.said("grpc=")) {
                (self.rest, self.grpc) = (rest, grpc);
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the program ended with {status}:\n{}", self.output());
            }
            assert!(Instant::now() < deadline, "the program does not serve:\n{}", self.output());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// An address of the line that says where it serves.
    fn said(&self, key: &str) -> Option<SocketAddr> {
        let output = self.output();
        let line = output.lines().find(|line| line.contains("the master serves"))?;
        line.split_once(key)?.1.split(' ').next()?.parse().ok()
    }

    /// Nobody in particular.
    pub(crate) fn anonymous(&self) -> Client {
        Client::new(self.rest)
    }

    /// The first user, logged in.
    pub(crate) fn admin(&self) -> Client {
        self.log_in("admin", &self.password)
    }

    /// A user, logged in.
    pub(crate) fn log_in(&self, username: &str, password: &str) -> Client {
        let body = serde_json::json!({ "username": username, "password": password });
        let answer = self.anonymous().post("/api/v1/auth/login", &body);
        assert_eq!(answer.status, 200, "{}", answer.json);
        self.anonymous().with_token(answer.json["data"]["token"].as_str().unwrap())
    }

    /// A new user of this role, logged in.
    pub(crate) fn user(&self, username: &str, role: &str) -> Client {
        let password = "correct horse battery";
        let body = serde_json::json!({ "username": username, "role": role, "password": password });
        let answer = self.admin().post("/api/v1/users", &body);
        assert_eq!(answer.status, 201, "{}", answer.json);
        self.log_in(username, password)
    }

    /// Of the user `admin`, as the first start told it.
    pub(crate) fn password(&self) -> &str {
        &self.password
    }

    /// Where REST is.
    pub(crate) fn rest(&self) -> SocketAddr {
        self.rest
    }

    /// Where agents go.
    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// A join token for so many nodes.
    pub(crate) fn join_token(&self, uses: u32) -> String {
        let answer = self.admin().post("/api/v1/join-tokens", &serde_json::json!({ "uses": uses }));
        answer.data()["token"].as_str().unwrap().to_owned()
    }

    /// Where the store and the keys are.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where it may write other files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the program wrote so far, on both of its outputs.
    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by a signal that it can hear, and says how that went.
    pub(crate) fn stop(&mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(), signal).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end:\n{}", self.output());
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- what the master wrote:\n{}---", self.output());
        }
    }
}

/// Waits until `done` gives something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, done: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "not so: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The routes in the document, with what it says of their role.
pub(crate) fn documented(master: &Master) -> BTreeMap<String, String> {
    let document = master.anonymous().get("/api/v1/openapi.json").json;
    let mut routes = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let role = operation["security"][0]["token"][0].as_str().unwrap_or("open");
            routes.insert(format!("{} {path}", method.to_uppercase()), role.to_owned());
        }
    }
    routes
}

/// The program with these arguments, in an environment that says nothing to it.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

fn spawn(dir: &Path) -> (Child, Arc<Mutex<String>>) {
    let (config, data) = (dir.join("master.toml"), dir.join("data"));
    let arguments = ["run", "-c", config.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let mut child = program(&arguments).spawn().unwrap();
    let output = Arc::new(Mutex::new(String::new()));
    collect(child.stdout.take().unwrap(), &output);
    collect(child.stderr.take().unwrap(), &output);
    (child, output)
}

/// Keeps everything that comes from `pipe`.
pub(crate) fn collect(pipe: impl Read + Send + 'static, output: &Arc<Mutex<String>>) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let mut output = output.lock().unwrap();
            output.push_str(&String::from_utf8_lossy(&line));
            output.push('\n');
        }
    });
}
