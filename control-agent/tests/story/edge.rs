//! The two programs of an edge as child processes: the data plane with a config of its own, and the agent beside it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longest time that a story waits for anything; only a failure takes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that cannot be waited for otherwise.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(2);

const AGENT: &str = env!("CARGO_BIN_EXE_millrace-agent");

/// Another package's program: `make test` builds the workspace before its tests.
pub(crate) fn program_beside(name: &str) -> PathBuf {
    let program = Path::new(AGENT).with_file_name(name);
    assert!(program.is_file(), "{} is missing: cargo build --workspace", program.display());
    program
}

/// A child process whose output is kept.
pub(crate) struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Process {
    fn start(program: &Path, config: &Path) -> Self {
        Self::start_with(Command::new(program).arg("run").arg("-c").arg(config))
    }

    /// Both of its outputs are kept as one.
    pub(crate) fn start_with(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "RUST_LOG"] {
            command.env_remove(name);
        }
        let mut child = command.spawn().unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        keep(child.stdout.take().unwrap(), Arc::clone(&output));
        keep(child.stderr.take().unwrap(), Arc::clone(&output));
        Self { child, output }
    }

    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// As kill -9.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

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

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

fn keep(pipe: impl Read + Send + 'static, kept: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut kept = kept.lock().unwrap();
            kept.push_str(&line);
            kept.push('\n');
        }
    });
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- what the program wrote:\n{}---", self.output());
        }
    }
}

/// A folder with both programs in it.
pub(crate) struct Edge {
    // The programs end before their folder does.
    pub(crate) dataplane: Option<Process>,
    pub(crate) agent: Option<Process>,
    dir: TempDir,
    node: String,
    /// Of the data plane's environment; its folder is `MILLRACE_STORY_DIR` of it.
    variables: Vec<(String, String)>,
}

impl Edge {
    /// The data plane alone, with its own file.
    pub(crate) fn start() -> Self {
        Self::start_as("edge-1", &[])
    }

    /// The same under another name, where the data plane's environment has these variables.
    pub(crate) fn start_as(node: &str, variables: &[(&str, &str)]) -> Self {
        Self::start_before(node, variables, "127.0.0.1:9")
    }

    /// The same in front of this endpoint.
    fn start_before(node: &str, variables: &[(&str, &str)], endpoint: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("millrace-agent-").tempdir().unwrap();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let variables = variables.iter().map(owned).collect();
        let mut edge = Self { dataplane: None, agent: None, dir, node: node.to_owned(), variables };
        std::fs::write(edge.path("edge.toml"), edge.config_to("own", endpoint)).unwrap();
        edge.start_dataplane();
        edge
    }

    /// With an agent that enrols at this master.
    pub(crate) fn with_agent(url: &str) -> Self {
        Self::start().joined_to(url)
    }

    /// The same in front of this endpoint.
    pub(crate) fn with_agent_before(url: &str, endpoint: &str) -> Self {
        Self::start_before("edge-1", &[], endpoint).joined_to(url)
    }

    fn joined_to(self, url: &str) -> Self {
        let mut edge = self;
        edge.write_agent_config(&format!(
            "url = \"{url}\"\ninsecure = true\njoin_token = \"{}\"",
            crate::master::TOKEN
        ));
        edge.start_agent();
        edge
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Text of a data plane's config: everything to one endpoint, over a route of this name.
    pub(crate) fn config_to(&self, route: &str, endpoint: &str) -> String {
        config_in(&self.dir.path().display().to_string(), "127.0.0.1:0", route, endpoint)
    }

    /// The agent's config, with these lines in `[master]`.
    pub(crate) fn write_agent_config(&self, master: &str) {
        self.write_agent_config_in("hk", master);
    }

    pub(crate) fn write_agent_config_in(&self, region: &str, master: &str) {
        let (node, socket, state) = (&self.node, self.path("admin.sock"), self.path("state"));
        let text = format!(
            "[node]\nid = \"{node}\"\nrole = \"edge\"\nregion = \"{region}\"\n[master]\n{master}\n\
             [dataplane]\nsocket = \"{}\"\n[state]\ndir = \"{}\"\n[log]\nlevel = \"debug\"\n",
            socket.display(),
            state.display()
        );
        std::fs::write(self.path("agent.toml"), text).unwrap();
    }

    pub(crate) fn start_agent(&mut self) {
        self.agent = Some(Process::start(Path::new(AGENT), &self.path("agent.toml")));
    }

    pub(crate) fn kill_agent(&mut self) {
        self.agent.as_mut().unwrap().kill();
    }

    pub(crate) fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().unwrap()
    }

    pub(crate) fn start_dataplane(&mut self) {
        let mut command = Command::new(program_beside("millrace-dataplane"));
        command.arg("run").arg("-c").arg(self.path("edge.toml"));
        command.env("MILLRACE_STORY_DIR", self.dir.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        self.dataplane = Some(Process::start_with(&mut command));
        self.eventually("the data plane is ready", |edge| {
            edge.admin("/readyz").is_some_and(|(status, _)| status == 200)
        });
    }

    pub(crate) fn kill_dataplane(&mut self) {
        self.dataplane.as_mut().unwrap().kill();
    }

    /// What the data plane's admin API has under this path.
    pub(crate) fn admin(&self, path: &str) -> Option<(u16, String)> {
        ask(UnixStream::connect(self.path("admin.sock")).ok()?, path)
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.admin("/status").unwrap().1).unwrap()
    }

    /// The config that is served.
    pub(crate) fn serves(&self) -> String {
        self.admin("/config").map(|(_, text)| text).unwrap_or_default()
    }

    /// Where clients find the data plane.
    pub(crate) fn address(&self) -> SocketAddr {
        self.status()["listeners"][0]["addresses"][0].as_str().unwrap().parse().unwrap()
    }

    /// A request through the data plane.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        ask(TcpStream::connect(self.address()).ok()?, path)
    }

    /// The value of one of the data plane's metrics without labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.admin("/metrics").unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap().parse().unwrap()
    }

    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "not so: {what}");
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The text of a config whose admin socket is in this folder.
pub(crate) fn config_in(dir: &str, bind: &str, route: &str, endpoint: &str) -> String {
    format!(
        "[runtime]\nworkers = 1\n[admin]\nlisten = \"off\"\nsocket = \"{dir}/admin.sock\"\n\
         [[listeners]]\nname = \"http\"\nbind = \"{bind}\"\n\
         [[routes]]\nname = \"{route}\"\ncluster = \"origin\"\n\
         [[clusters]]\nname = \"origin\"\nendpoints = [{{ address = \"{endpoint}\" }}]\n"
    )
}

/// One GET, its status and its body.
fn ask(stream: impl Read + Write, path: &str) -> Option<(u16, String)> {
    exchange(stream, &format!("GET {path} HTTP/1.1\r\nHost: story\r\nConnection: close\r\n\r\n"))
}

/// One request, the status and the body of its answer.
pub(crate) fn exchange(mut stream: impl Read + Write, request: &str) -> Option<(u16, String)> {
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Runs the agent's program to its end.
pub(crate) fn agent_says(arguments: &[&str]) -> (Option<i32>, String) {
    let ended = Command::new(AGENT).args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    (ended.status.code(), String::from_utf8(said).unwrap())
}
