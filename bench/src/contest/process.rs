//! A child process on a CPU of its own: started with its output in a file, watched for its end, read for its CPU time
//! and memory with those of its children, and stopped by its number.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::Fault;
use crate::memory::Memory;
use crate::sched::{self, Usage};

/// How long a process may take to end when it is asked to; then it is killed.
const STOP_TIME: Duration = Duration::from_secs(3);
const WAIT_STEP: Duration = Duration::from_millis(2);
/// Bytes of a log's end that a report quotes.
const LOG_TAIL: usize = 300;

/// A running process. It is stopped when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command pinned to `cpu`, with both outputs in `log`. It ends with the thread that called this, however
    /// that ends, where `setpriv` is installed.
    ///
    /// # Errors
    /// The program cannot be run, the log cannot be written, or there is no such CPU.
    pub fn start(command: &Command, cpu: u32, log: &Path) -> io::Result<Self> {
        let output = File::create(log)?;
        let mut command = dying_with_us(command);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        // A child begins on the CPUs of the thread that starts it.
        let before = sched_getaffinity(None)?;
        sched::pin_this_thread(cpu)?;
        let child = command.spawn();
        restore(&before)?;
        Ok(Self { child: child?, log: log.to_owned() })
    }

    /// Its number and those of all that descend from it.
    pub fn pids(&self) -> Vec<u32> {
        let parents = parents();
        let mut family = vec![self.child.id()];
        let mut next = 0;
        while let Some(&parent) = family.get(next) {
            family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        family
    }

    /// CPU time of all of them, by the scheduler's account.
    pub(crate) fn usage(&self) -> Usage {
        let usages = self.pids().into_iter().filter_map(|pid| sched::of_process(pid).ok());
        usages.fold(Usage::default(), |sum, usage| Usage {
            ran_ns: sum.ran_ns + usage.ran_ns,
            waited_ns: sum.waited_ns + usage.waited_ns,
        })
    }

    /// Resident memory of all of them, what they share counted once, in bytes.
    pub fn memory(&self) -> u64 {
        self.pids().into_iter().filter_map(|pid| Memory::of(pid).ok()).map(|memory| memory.pss).sum()
    }

    /// # Errors
    /// [`Fault::Died`] with how it ended and the end of its log.
    pub fn check(&mut self) -> Result<(), Fault> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Fault::Died(format!("{status}{}", self.log_tail()))),
            Err(error) => Err(Fault::Died(error.to_string())),
        }
    }

    /// Waits until it has ended by itself. `None` if it has not within that time.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(WAIT_STEP),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// What it wrote last, to be put behind a reason; empty if it wrote nothing.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).into_owned();
        let tail: Vec<&str> = tail.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if tail.is_empty() { String::new() } else { format!("; it said: {}", tail.join(" / ")) }
    }

    /// Asks it to end, ends it where it does not, and whatever it has left behind.
    pub fn stop(&mut self) {
        // The number is that of the process, and of the group of all that descend from it.
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        if let Ok(None) = self.child.try_wait() {
            // It may end at this moment, which is as good.
            let _ = kill_process(pid, Signal::TERM);
        }
        let has_ended = self.wait(STOP_TIME).is_some();
        // In the usual case nobody is left in the group, which is the error here.
        let _ = kill_process_group(pid, Signal::KILL);
        if !has_ended {
            // It is gone by the next line, whatever this says.
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The same command, ended by the kernel when this thread ends. The process keeps its number.
fn dying_with_us(command: &Command) -> Command {
    let Some(setpriv) = ["/usr/bin/setpriv", "/bin/setpriv"].iter().find(|path| Path::new(path).exists())
    else {
        return copy_of(command, Command::new(command.get_program()));
    };
    let mut wrapped = Command::new(setpriv);
    wrapped.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program());
    copy_of(command, wrapped)
}

fn copy_of(command: &Command, mut copy: Command) -> Command {
    copy.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => copy.env(name, value),
            None => copy.env_remove(name),
        };
    }
    copy
}

fn restore(cpus: &CpuSet) -> io::Result<()> {
    Ok(sched_setaffinity(None, cpus)?)
}

/// Every process with its parent.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may hold anything, brackets and spaces too.
        let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (tempfile::TempDir, Process) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let process = Process::start(&command, 0, &dir.path().join("log")).unwrap();
        (dir, process)
    }

    fn wait_until(mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "waited in vain");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_end_is_told_with_its_status_and_last_words() {
        let (_dir, mut process) = shell("echo out of luck >&2; exit 3");
        wait_until(|| process.check().is_err());
        let fault = process.check().unwrap_err().to_string();
        assert!(fault.contains("exit status: 3") && fault.contains("out of luck"), "{fault}");
    }

    #[test]
    fn children_count_for_pids_and_memory() {
        let (_dir, mut process) = shell("sleep 60 & sleep 60 & wait");
        wait_until(|| process.pids().len() == 3);
        let children = process.pids();
        assert!(process.memory() > 0);
        assert!(process.check().is_ok());
        process.stop();
        assert!(process.check().is_err());
        wait_until(|| children.iter().all(|pid| !is_alive(*pid)));
    }

    #[test]
    fn children_of_one_that_died_are_ended_too() {
        let (dir, mut process) = shell("sleep 60 & echo $!; exit 1");
        wait_until(|| process.check().is_err());
        let child: u32 = fs::read_to_string(dir.path().join("log")).unwrap().trim().parse().unwrap();
        assert!(is_alive(child));
        drop(process);
        wait_until(|| !is_alive(child));
    }

    /// Zombies are not alive: whoever inherited them has not looked yet.
    fn is_alive(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    #[test]
    fn a_process_that_does_not_want_to_end_is_ended() {
        let (_dir, mut process) = shell("trap '' TERM; echo ready; sleep 60; sleep 60");
        wait_until(|| process.log_tail().contains("ready"));
        process.stop();
        let fault = process.check().unwrap_err().to_string();
        assert!(fault.contains("signal: 9"), "{fault}");
    }

    #[test]
    fn only_the_cpu_of_the_child_is_narrowed() {
        let before = sched_getaffinity(None).unwrap();
        let (_dir, process) = shell("sleep 60");
        assert_eq!(sched_getaffinity(None).unwrap().count(), before.count());
        let status = fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    }
}
