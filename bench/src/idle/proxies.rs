//! The processes under test: found by their numbers or started here, and looked at from outside.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::memory::Memory;
use crate::sched::Threads;

/// How long a proxy may take until it listens, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked at meanwhile.
const STEP: Duration = Duration::from_millis(10);

/// Listening, in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// The processes under test. Those that were started here end with it.
#[derive(Debug)]
pub(crate) struct Proxies {
    pub(crate) pids: Vec<u32>,
    started: Vec<Child>,
}

impl Proxies {
    pub(crate) fn running(pids: &[u32]) -> Self {
        Self { pids: pids.to_vec(), started: Vec::new() }
    }

    /// Starts `count` of them, and waits until as many sockets listen on the port.
    pub(crate) fn start(command: &str, count: u32, target: SocketAddr) -> anyhow::Result<Self> {
        if listeners(target.port())? > 0 {
            bail!("somebody listens on port {} already", target.port());
        }
        let mut proxies = Self { pids: Vec::new(), started: Vec::new() };
        for _ in 0..count {
            // The shell gives way to the command, so that its number is that of the proxy.
            let shell =
                Command::new("sh").arg("-c").arg(format!("exec {command}")).stdout(Stdio::null()).spawn();
            let child = shell.context("cannot start a shell")?;
            proxies.pids.push(child.id());
            proxies.started.push(child);
        }
        let deadline = Instant::now() + PATIENCE;
        while listeners(target.port())? < count as usize {
            if let Some(status) = proxies.ended()? {
                bail!("'{command}' ended before it listened on {target}: {status}");
            }
            if Instant::now() > deadline {
                bail!("'{command}' does not listen on {target}");
            }
            std::thread::sleep(STEP);
        }
        Ok(proxies)
    }

    /// User memory, one by one.
    pub(crate) fn memory(&self) -> anyhow::Result<Vec<Memory>> {
        self.pids.iter().map(|pid| Memory::of(*pid).with_context(|| format!("process {pid}"))).collect()
    }

    /// The account of all their threads.
    pub(crate) fn threads(&self) -> anyhow::Result<Vec<Threads>> {
        self.pids.iter().map(|pid| Threads::of(*pid).with_context(|| format!("process {pid}"))).collect()
    }

    fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        for child in &mut self.started {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        for child in &mut self.started {
            // A process that has ended and was waited for is not signalled: its number may be another's.
            if matches!(child.try_wait(), Ok(None))
                && let Some(pid) = Pid::from_raw(child.id() as i32)
            {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        for child in &mut self.started {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(STEP);
            }
            let _ = child.kill();
            match child.wait() {
                Ok(status) if status.success() || status.signal() == Some(15) => {}
                Ok(status) => eprintln!("idle: the proxy {} ended with {status}", child.id()),
                Err(error) => eprintln!("idle: the proxy {}: {error}", child.id()),
            }
        }
    }
}

/// Sockets that listen on this port, at any address.
fn listeners(port: u16) -> anyhow::Result<usize> {
    let mut count = 0;
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // Without IPv6 there is no such table.
        let Ok(text) = fs::read_to_string(table) else { continue };
        count += text.lines().skip(1).filter(|line| listens(line, port)).count();
    }
    Ok(count)
}

/// `0: 0100007F:1F90 00000000:0000 0A …`
fn listens(line: &str, port: u16) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
    let local_port = local.rsplit(':').next().and_then(|text| u16::from_str_radix(text, 16).ok());
    state == LISTEN && local_port == Some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_seen_and_a_connection_is_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listeners(address.port()).unwrap(), 1);
        let _client = std::net::TcpStream::connect(address).unwrap();
        let _server = listener.accept().unwrap();
        assert_eq!(listeners(address.port()).unwrap(), 1);
        drop(listener);
        assert_eq!(listeners(address.port()).unwrap(), 0);
    }

    #[test]
    fn a_command_that_ends_at_once_is_told() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Proxies::start("sh -c 'exit 7'", 2, free).unwrap_err().to_string();
        assert!(error.contains("exit status: 7"), "{error}");
    }
}
