//! The real master as a child process at fixed addresses, asked over its REST API.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::edge::{LOOK_EVERY, PATIENCE, Process, exchange, program_beside};

/// Agents wait for up to half a minute between two tries once their master has died several times, and a try may fail.
const CONVERGES_WITHIN: Duration = Duration::from_secs(90);

/// A running master with its first user logged in.
pub(crate) struct FleetMaster {
    // Ends before its folder does.
    process: Process,
    dir: TempDir,
    rest: SocketAddr,
    grpc: SocketAddr,
    token: String,
}

/// Who asks; it outlives the master that it asks.
#[derive(Clone)]
pub(crate) struct Operator {
    rest: SocketAddr,
    token: String,
}

impl FleetMaster {
    /// Over a new folder, on free ports that it keeps over its restarts.
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("millrace-fleet-").tempdir().unwrap();
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        write_config(&dir, anywhere, anywhere);
        let process = spawn(&dir);
        let (rest, grpc) = await_serving(&process);
        write_config(&dir, rest, grpc);
        let output = process.output();
        let password = output.split_once("with the password ").unwrap().1.split(' ').next().unwrap();
        let mut master = Self { process, dir, rest, grpc, token: String::new() };
        let login = json!({ "username": "admin", "password": password });
        let answer = master.operator().post("/api/v1/auth/login", &login);
        master.token = answer["token"].as_str().unwrap().to_owned();
        master
    }

    /// As kill -9.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// At the same addresses, over the same folder.
    pub(crate) fn start_again(&mut self) {
        self.process = spawn(&self.dir);
        await_serving(&self.process);
    }

    pub(crate) fn operator(&self) -> Operator {
        Operator { rest: self.rest, token: self.token.clone() }
    }

    /// `[master]` of an agent that may enrol once.
    pub(crate) fn agent_config(&self) -> String {
        let answer = self.operator().post("/api/v1/join-tokens", &json!({ "uses": 1 }));
        let token = answer["token"].as_str().unwrap();
        format!("url = \"http://{}\"\ninsecure = true\njoin_token = \"{token}\"", self.grpc)
    }
}

impl Operator {
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Value {
        self.send("GET", path, "").unwrap_or_else(|| panic!("GET {path}: no good answer"))
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        self.send("POST", path, &body.to_string()).unwrap_or_else(|| panic!("POST {path}: no good answer"))
    }

    /// `data` of an answer; none: there was no whole answer, because the master is gone.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> Option<Value> {
        let stream = TcpStream::connect(self.rest).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: story\r\nConnection: close\r\nAuthorization: Bearer {}\r\n{kind}\
             Content-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        let (status, body) = exchange(stream, &request)?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        Some(answer["data"].clone())
    }

    /// Makes a version of this text, and publishes it to all.
    pub(crate) fn publish(&self, version: &str, text: &str) -> u64 {
        self.try_publish(version, text).unwrap()
    }

    /// The same; its revision, or none where the master was gone before it had acknowledged the publish.
    pub(crate) fn try_publish(&self, version: &str, text: &str) -> Option<u64> {
        // For the master's check only: each edge has its own.
        let variables = json!({
            "MILLRACE_STORY_DIR": "/run", "MILLRACE_STORY_BIND": "127.0.0.1:1", "MILLRACE_STORY_MODEL": "127.0.0.1:1"
        });
        let made = json!({ "version": version, "config_data": text, "variables": variables }).to_string();
        self.send("POST", "/api/v1/configs", &made)?;
        let published = self.send("POST", &format!("/api/v1/configs/{version}/publish"), "{}")?;
        published["publish"]["revision"].as_u64()
    }

    /// Waits until as many nodes as this have applied the version, and as many have refused it.
    #[track_caller]
    pub(crate) fn await_convergence(&self, version: &str, applied: u64, refused: u64) {
        let wanted = json!({ "pending": 0, "applied": applied, "refused": refused });
        let deadline = Instant::now() + CONVERGES_WITHIN;
        loop {
            let now = self.get(&format!("/api/v1/configs/{version}"))["convergence"].clone();
            if now == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{version} does not converge: {now}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a node's state is with a version, and why.
    pub(crate) fn progress(&self, version: &str, node: &str) -> (String, String) {
        let nodes = self.get(&format!("/api/v1/configs/{version}/nodes"));
        let found = nodes.as_array().unwrap().iter().find(|entry| entry["node"] == node).unwrap();
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }
}

/// Heartbeats are far more frequent than an operator's, so that stories are short.
fn write_config(dir: &TempDir, rest: SocketAddr, grpc: SocketAddr) {
    let text =
        format!("[rest]\nlisten = \"{rest}\"\n[grpc]\nlisten = \"{grpc}\"\n[agents]\nheartbeat = \"1s\"\n");
    std::fs::write(dir.path().join("master.toml"), text).unwrap();
}

fn spawn(dir: &TempDir) -> Process {
    let mut command = Command::new(program_beside("millrace-master"));
    command.arg("run").arg("-c").arg(dir.path().join("master.toml"));
    command.arg("--data-dir").arg(dir.path().join("data"));
    Process::start_with(&mut command)
}

#[track_caller]
fn await_serving(process: &Process) -> (SocketAddr, SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = process.output();
        let address = |key: &str| {
            let line = output.lines().find(|line| line.contains("the master serves"))?;
            line.split_once(key)?.1.split(' ').next()?.parse().ok()
        };
        if let (Some(rest), Some(grpc)) = (address("rest="), address("grpc=")) {
            return (rest, grpc);
        }
        assert!(Instant::now() < deadline, "the master does not serve:\n{output}");
        std::thread::sleep(LOOK_EVERY);
    }
}
