//! A run of `millrace-bench load` or `idle` in a process of its own, on the CPU of the load, and its record.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::measure::{Bench, millis};
use super::{WARMUP, unmeasured};
use crate::contest::{Fault, Process};
use crate::record::{Failure, IdleRecord, LoadRecord};

/// Time beyond the measured one for starting, connecting, warming up and draining; a run that takes longer hangs.
const SPARE: Duration = Duration::from_secs(30);
/// Examples of what went wrong that a fault quotes.
const EXAMPLES: usize = 2;

/// A load to be run.
pub(super) struct Job<'a> {
    bench: &'a Bench,
    arguments: Vec<String>,
}

impl<'a> Job<'a> {
    /// A scenario against `target`, reading the CPU time of a process and its children meanwhile.
    pub(super) fn new(
        bench: &'a Bench,
        scenario: &str,
        target: SocketAddr,
        process: Option<&Process>,
    ) -> Self {
        let arguments = vec!["load".to_owned(), scenario.to_owned(), "--quiet".to_owned()];
        let job = Self { bench, arguments }
            .flag("--target", format!("http://{target}"))
            .flag("--duration", millis(bench.duration))
            .flag("--cpus", bench.load_cpu);
        let pids = process.map_or_else(Vec::new, Process::pids);
        pids.into_iter().fold(job, |job, pid| job.flag("--watch-pid", pid))
    }

    /// `connections` that are idle, but for a share of them that streams.
    pub(super) fn idle(bench: &'a Bench, connections: u32, target: SocketAddr, process: &Process) -> Self {
        let job = Self { bench, arguments: vec!["idle".to_owned(), "--quiet".to_owned()] }
            .flag("--target", format!("http://{target}"))
            .flag("--connections", connections)
            .flag("--hold", millis(bench.duration))
            .flag("--cpus", bench.load_cpu);
        process.pids().into_iter().fold(job, |job, pid| job.flag("--pid", pid))
    }

    pub(super) fn closed(self, connections: u32) -> Self {
        self.paced(connections, None)
    }

    /// An open loop at a rate, or a closed one without it.
    pub(super) fn paced(self, connections: u32, rate: Option<f64>) -> Self {
        let this = self.flag("--connections", connections).flag("--warmup", millis(WARMUP));
        match rate {
            Some(rate) => this.flag("--rate", rate.max(1.0)),
            None => this.switch("--closed"),
        }
    }

    pub(super) fn flag(self, name: &str, value: impl ToString) -> Self {
        let value = value.to_string();
        let mut this = self.switch(name);
        this.arguments.push(value);
        this
    }

    pub(super) fn switch(mut self, name: &str) -> Self {
        self.arguments.push(name.to_owned());
        self
    }

    /// Errors: [`Fault::Wrong`] if anything was answered wrongly, [`Fault::Unmeasured`] if there is no record.
    pub(super) fn run(self) -> Result<LoadRecord, Fault> {
        let record: LoadRecord = self.record()?;
        if record.failed {
            let of = record.requests.intended.max(record.requests.sent);
            let what = format!("{} of {of} requests", record.requests.failed);
            return Err(wrong(&what, &record.failures, &record.failure_examples));
        }
        Ok(record)
    }

    /// As [`Job::run`], of [`Job::idle`].
    pub(super) fn run_idle(self) -> Result<IdleRecord, Fault> {
        let record: IdleRecord = self.record()?;
        if record.failed {
            let what = format!("{} connections closed while idle", record.closed_while_idle);
            return Err(wrong(&what, &record.failures, &record.failure_examples));
        }
        Ok(record)
    }

    fn record<T: DeserializeOwned>(self) -> Result<T, Fault> {
        let (record_file, log) = (self.bench.dir.join("load.json"), self.bench.dir.join("load.log"));
        // An old record must not pass for this run's.
        if let Err(error) = fs::remove_file(&record_file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(unmeasured(error));
        }
        let mut command = Command::new(&self.bench.program);
        command.args(&self.arguments).arg("--json").arg(&record_file);
        let mut process = Process::start(&command, self.bench.load_cpu, &log).map_err(unmeasured)?;
        let ended = process.wait(self.bench.duration + SPARE);
        let said = process.log_tail();
        let status = ended.ok_or_else(|| unmeasured(format!("the load generator hangs{said}")))?;
        let text = fs::read_to_string(&record_file)
            .map_err(|_| unmeasured(format!("the load generator wrote no record ({status}){said}")))?;
        serde_json::from_str(&text)
            .map_err(|error| unmeasured(format!("the load generator's record: {error}")))
    }
}

fn wrong(what: &str, failures: &BTreeMap<Failure, u64>, examples: &[String]) -> Fault {
    let reasons = failures.iter().map(|(failure, count)| format!("{count} × {failure:?}").to_lowercase());
    let words: Vec<String> = reasons.chain(examples.iter().take(EXAMPLES).cloned()).collect();
    Fault::Wrong(format!("{what}: {}", words.join("; ")))
}
