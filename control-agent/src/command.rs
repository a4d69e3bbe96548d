//! Runs what a command asks for: a call of the data plane's API, or one of three programs with fixed arguments. Never a
//! shell, and nothing of a command but a number of lines becomes an argument.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use proto::fleet::limits::COMMAND_OUTPUT_CHUNK_BYTES_MAX;
use proto::fleet::{CommandId, capability};
use proto::v1::{CommandOutcome, OutputStream};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::dataplane::{Answer, Dataplane, NoAnswer};
use crate::state::{Event, Task, TaskEnd};

/// The programs that manage the data plane's service.
#[derive(Clone, Debug)]
pub struct Systemd {
    /// The data plane's unit.
    unit: String,
    systemctl: PathBuf,
    journalctl: PathBuf,
    /// There while systemd runs this host (sd_booted(3)).
    booted: PathBuf,
}

impl Systemd {
    /// This host's, for the unit of this name.
    pub fn new(unit: &str) -> Self {
        Self {
            unit: unit.to_owned(),
            systemctl: "/usr/bin/systemctl".into(),
            journalctl: "/usr/bin/journalctl".into(),
            booted: "/run/systemd/system".into(),
        }
    }

    /// What this host can do of what a master may ask for.
    pub fn capabilities(&self) -> Vec<String> {
        let systemd = self.is_here().then_some(capability::SYSTEMD);
        [Some(capability::UNDRAIN), systemd].into_iter().flatten().map(str::to_owned).collect()
    }

    fn is_here(&self) -> bool {
        self.booted.is_dir()
    }

    /// The program and all of its arguments.
    fn program(&self, task: Task) -> Option<(&Path, Vec<String>)> {
        let systemctl = |verb: &str| {
            let arguments = ["--no-ask-password", verb, "--", &self.unit].map(str::to_owned);
            Some((self.systemctl.as_path(), arguments.to_vec()))
        };
        match task {
            Task::ReloadUnit => systemctl("reload"),
            Task::Restart => systemctl("restart"),
            Task::Logs { lines } => {
                let arguments = [
                    "--no-pager".to_owned(),
                    "--quiet".to_owned(),
                    "--output=short-iso".to_owned(),
                    format!("--lines={lines}"),
                    format!("--unit={}", self.unit),
                ];
                Some((self.journalctl.as_path(), arguments.to_vec()))
            }
            Task::Status | Task::Drain | Task::Undrain => None,
        }
    }
}

/// Runs one task to its end; dropping the future ends its program.
pub async fn run(
    command: CommandId,
    task: Task,
    dataplane: Dataplane,
    systemd: Systemd,
    events: mpsc::Sender<Event>,
) -> TaskEnd {
    let output = Output { command, events };
    match (task, systemd.program(task)) {
        (_, Some(_)) if !systemd.is_here() => {
            TaskEnd::new(CommandOutcome::Unsupported, "systemd does not manage this host")
        }
        (_, Some((program, arguments))) => run_program(program, &arguments, &output).await,
        (Task::Drain, None) => end_of(dataplane.ask(Method::POST, "/drain").await, &output).await,
        (Task::Undrain, None) => end_of(dataplane.ask(Method::POST, "/undrain").await, &output).await,
        (_, None) => end_of(dataplane.ask(Method::GET, "/status").await, &output).await,
    }
}

/// Where a command's output goes.
struct Output {
    command: CommandId,
    events: mpsc::Sender<Event>,
}

impl Output {
    async fn write(&self, stream: OutputStream, data: Bytes) {
        let event = Event::Wrote { command: self.command.clone(), stream, data };
        // Fails only where the agent ends.
        let _ = self.events.send(event).await;
    }

    async fn write_all(&self, stream: OutputStream, mut data: Bytes) {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(COMMAND_OUTPUT_CHUNK_BYTES_MAX));
            self.write(stream, piece).await;
        }
    }

    async fn copy(&self, stream: OutputStream, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else { return };
        let mut piece = vec![0; COMMAND_OUTPUT_CHUNK_BYTES_MAX];
        while let Ok(length @ 1..) = pipe.read(&mut piece).await {
            self.write(stream, Bytes::copy_from_slice(&piece[..length])).await;
        }
    }
}

/// An answer of the data plane is the output.
async fn end_of(answer: Result<Answer, NoAnswer>, output: &Output) -> TaskEnd {
    match answer {
        Ok(Answer { status, body }) if status.is_success() => {
            output.write_all(OutputStream::Stdout, body).await;
            TaskEnd::new(CommandOutcome::Succeeded, "the data plane has done it")
        }
        Ok(Answer { status: StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, .. }) => {
            TaskEnd::new(CommandOutcome::Unsupported, "this version of the data plane cannot do it")
        }
        Ok(Answer { status, body }) => {
            output.write_all(OutputStream::Stderr, body).await;
            TaskEnd::new(CommandOutcome::Failed, format!("the data plane answers {status}"))
        }
        Err(error) => TaskEnd::new(CommandOutcome::Failed, error.message()),
    }
}

async fn run_program(program: &Path, arguments: &[String], output: &Output) -> TaskEnd {
    let failed = |error: std::io::Error| {
        TaskEnd::new(CommandOutcome::Failed, format!("{} cannot be run: {error}", program.display()))
    };
    let spawned = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return failed(error),
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    tokio::join!(output.copy(OutputStream::Stdout, stdout), output.copy(OutputStream::Stderr, stderr));
    match child.wait().await {
        Ok(status) => {
            let outcome = if status.success() { CommandOutcome::Succeeded } else { CommandOutcome::Failed };
            TaskEnd { outcome, message: status.to_string(), exit_code: status.code() }
        }
        Err(error) => failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    /// A host whose two programs are this script.
    fn host(script: &str) -> (tempfile::TempDir, Systemd) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let systemd = Systemd {
            unit: "edge.service".to_owned(),
            systemctl: program.clone(),
            journalctl: program,
            booted: dir.path().to_owned(),
        };
        (dir, systemd)
    }

    async fn end_and_output(task: Task, systemd: Systemd) -> (TaskEnd, String) {
        let (events, mut output) = mpsc::channel(4);
        let nowhere = Dataplane::at(Path::new("/nonexistent/socket"));
        let running = tokio::spawn(run("c1".parse().unwrap(), task, nowhere, systemd, events));
        let mut text = String::new();
        while let Some(event) = output.recv().await {
            let Event::Wrote { stream, data, .. } = event else { panic!("{event:?}") };
            assert!(data.len() <= COMMAND_OUTPUT_CHUNK_BYTES_MAX);
            let mark = if stream == OutputStream::Stderr { "!" } else { "" };
            text.push_str(&format!("{mark}{}", String::from_utf8_lossy(&data)));
        }
        (running.await.unwrap(), text)
    }

    #[tokio::test]
    async fn programs_get_fixed_arguments_and_an_empty_environment() {
        let (_dir, systemd) = host("echo \"$@\" \"HOME=$HOME\"");
        let (end, output) = end_and_output(Task::Restart, systemd.clone()).await;
        assert_eq!((end.outcome, end.exit_code), (CommandOutcome::Succeeded, Some(0)));
        assert_eq!(output, "--no-ask-password restart -- edge.service HOME=\n");
        let (_, output) = end_and_output(Task::Logs { lines: 7 }, systemd).await;
        assert_eq!(output, "--no-pager --quiet --output=short-iso --lines=7 --unit=edge.service HOME=\n");
    }

    #[tokio::test]
    async fn what_a_program_writes_comes_while_it_runs() {
        let (dir, systemd) =
            host("echo begun; while [ ! -e \"${0%/*}/go\" ]; do /bin/sleep 0.01; done; echo ended");
        let (events, mut output) = mpsc::channel(4);
        let nowhere = Dataplane::at(Path::new("/nonexistent/socket"));
        let running =
            tokio::spawn(run("c1".parse().unwrap(), Task::Logs { lines: 1 }, nowhere, systemd, events));
        let mut next = async || match tokio::time::timeout(Duration::from_secs(20), output.recv()).await {
            Ok(Some(Event::Wrote { data, .. })) => String::from_utf8(data.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        // Held back until its end, it would never come: the program waits for who has read it.
        assert_eq!(next().await, "begun\n");
        assert!(!running.is_finished());
        std::fs::write(dir.path().join("go"), "").unwrap();
        assert_eq!(next().await, "ended\n");
        assert_eq!(running.await.unwrap().outcome, CommandOutcome::Succeeded);
    }

    #[tokio::test]
    async fn a_program_that_fails_says_so_with_its_code() {
        let (_dir, systemd) = host("echo no >&2; exit 3");
        let (end, output) = end_and_output(Task::Restart, systemd).await;
        assert_eq!((end.outcome, end.exit_code, output.as_str()), (CommandOutcome::Failed, Some(3), "!no\n"));
    }

    #[tokio::test]
    async fn without_systemd_it_is_unsupported() {
        let (dir, mut systemd) = host("exit 0");
        systemd.booted = dir.path().join("nothing");
        assert_eq!(systemd.capabilities(), [capability::UNDRAIN]);
        let (end, _) = end_and_output(Task::Logs { lines: 1 }, systemd).await;
        assert_eq!((end.outcome, end.exit_code), (CommandOutcome::Unsupported, None));
    }

    #[tokio::test]
    async fn a_program_that_is_missing_or_a_data_plane_that_is_away_is_a_failure() {
        let (dir, mut systemd) = host("exit 0");
        systemd.systemctl = dir.path().join("nothing");
        let (end, _) = end_and_output(Task::Restart, systemd.clone()).await;
        assert_eq!(end.outcome, CommandOutcome::Failed);
        let (end, _) = end_and_output(Task::Status, systemd).await;
        assert!(
            end.outcome == CommandOutcome::Failed && end.message.contains("/nonexistent/socket"),
            "{end:?}"
        );
    }

    #[tokio::test]
    async fn dropping_a_run_ends_its_program() {
        let (dir, systemd) = host("echo $$ > pid; exec sleep 600");
        let pid_file = dir.path().join("pid");
        std::fs::write(
            &systemd.systemctl,
            format!("#!/bin/sh\necho $$ > {}; exec sleep 600\n", pid_file.display()),
        )
        .unwrap();
        let (events, _output) = mpsc::channel(4);
        let nowhere = Dataplane::at(Path::new("/nonexistent/socket"));
        let running = tokio::spawn(run("c1".parse().unwrap(), Task::Restart, nowhere, systemd, events));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let pid = loop {
            let pid = std::fs::read_to_string(&pid_file).unwrap_or_default();
            if pid.ends_with('\n') {
                break pid.trim().to_owned();
            }
            assert!(tokio::time::Instant::now() < deadline, "the program does not start");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        running.abort();
        let stat = format!("/proc/{pid}/stat");
        // Gone, or dead and not yet reaped.
        let is_alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
        while is_alive() {
            assert!(tokio::time::Instant::now() < deadline, "the program goes on");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
