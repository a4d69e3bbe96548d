//! Load tools that people know, for the row of small answers, so that they can repeat it by hand. They check less than
//! `load` does: statuses and broken connections, not bytes.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::measure::{Bench, Measured};
use super::{WARMUP, unmeasured};
use crate::contest::{Fault, Process};
use crate::load::outcome::BUSY_MAX;
use crate::report::{Figure, Sample};
use crate::sched::{self, Usage};

/// Time beyond the measured one; a run that takes longer hangs.
const SPARE: Duration = Duration::from_secs(30);

/// What makes the load of row 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// `millrace-bench load`, which checks every byte.
    Load,
    /// `wrk`, with one thread.
    Wrk,
    /// `hey`, with one CPU.
    Hey,
}

impl Tool {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Wrk => "wrk",
            Self::Hey => "hey",
        }
    }

    /// Keep-alive GET requests in a closed loop. The CPU time is that over the tool's whole run.
    pub(super) fn run(
        self,
        bench: &Bench,
        connections: u32,
        target: SocketAddr,
        process: Option<&Process>,
    ) -> Result<Measured, Fault> {
        // So that the first requests, which open connections, are not counted.
        self.once(bench, connections, target, WARMUP)?;
        let usage = || process.map_or_else(Usage::default, Process::usage);
        let idle = || sched::idle_of_cpu(bench.load_cpu).map_err(unmeasured);
        let (before, idle_before, began) = (usage(), idle()?, Instant::now());
        let requests = self.once(bench, connections, target, bench.duration)?;
        let used = usage().since(before);
        let idle_share = (idle()? - idle_before).as_secs_f64() / began.elapsed().as_secs_f64();
        let cpu_us = used.ran_ns as f64 / 1000.0;
        let seconds = self.seconds(bench.duration).as_secs_f64();
        let sample = Sample::from([
            (Figure::CpuPerRequestUs, cpu_us / requests as f64),
            (Figure::RequestsPerS, requests as f64 / seconds),
            (Figure::BusyPercent, cpu_us / seconds / 1e4),
        ]);
        // They do not say how busy they were: what they leave of their CPU, which the origin shares, does.
        Ok(Measured { sample, is_saturated: idle_share < 1.0 - BUSY_MAX })
    }

    /// How many requests were answered.
    fn once(
        self,
        bench: &Bench,
        connections: u32,
        target: SocketAddr,
        duration: Duration,
    ) -> Result<u64, Fault> {
        let log = bench.dir.join("tool.log");
        let command = self.command(connections, target, duration);
        let mut tool = Process::start(&command, bench.load_cpu, &log)
            .map_err(|error| unmeasured(format!("{}: {error}; apt-get install {0}", self.name())))?;
        let status = tool.wait(duration + SPARE);
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        if !status.is_some_and(|status| status.success()) {
            return Err(unmeasured(format!("{} failed{}", self.name(), tool.log_tail())));
        }
        match self {
            Self::Load => Err(unmeasured("this is no tool of others")),
            Self::Wrk => wrk_requests(&said),
            Self::Hey => hey_requests(&said),
        }
    }

    fn command(self, connections: u32, target: SocketAddr, duration: Duration) -> Command {
        let (url, connections) = (format!("http://{target}/"), connections.to_string());
        let seconds = format!("{}s", self.seconds(duration).as_secs());
        let mut command = Command::new(self.name());
        match self {
            Self::Load | Self::Wrk => command.args(["-t", "1", "-c", &connections, "-d", &seconds, &url]),
            Self::Hey => command.args(["-cpus", "1", "-c", &connections, "-z", &seconds, &url]),
        };
        command
    }

    /// These tools know whole seconds only.
    fn seconds(self, duration: Duration) -> Duration {
        Duration::from_secs(duration.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX))
    }
}

/// What `wrk` says. Errors: statuses or sockets that were not right.
fn wrk_requests(said: &str) -> Result<u64, Fault> {
    for line in said.lines().map(str::trim) {
        let is_broken =
            line.starts_with("Socket errors:") && line.chars().any(|digit| ('1'..='9').contains(&digit));
        if is_broken || line.starts_with("Non-2xx") {
            return Err(Fault::Wrong(line.to_owned()));
        }
    }
    let line = said.lines().find(|line| line.contains(" requests in "));
    number(line.and_then(|line| line.split_ascii_whitespace().next()), "wrk")
}

/// What `hey` says, likewise.
fn hey_requests(said: &str) -> Result<u64, Fault> {
    let mut answered = None;
    for line in said.lines().map(str::trim) {
        if line.starts_with("Error distribution") {
            return Err(Fault::Wrong(
                said.lines().rev().find(|line| !line.is_empty()).unwrap_or(line).to_owned(),
            ));
        }
        if line.starts_with('[') && line.ends_with("responses") {
            if !line.starts_with("[200]") {
                return Err(Fault::Wrong(line.to_owned()));
            }
            answered = line.split_ascii_whitespace().nth(1);
        }
    }
    number(answered, "hey")
}

fn number(word: Option<&str>, tool: &str) -> Result<u64, Fault> {
    let count = word.and_then(|word| word.parse().ok()).filter(|count| *count > 0);
    count.ok_or_else(|| unmeasured(format!("{tool} names no number of requests")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 2s test @ http://127.0.0.1:1/\n  1 threads and 64 connections\n\
        \x20 61011 requests in 2.00s, 6.23MB read\n";

    #[test]
    fn wrk_is_read() {
        assert_eq!(wrk_requests(WRK), Ok(61_011));
        let broken = format!("{WRK}  Socket errors: connect 0, read 3, write 0, timeout 0\n");
        assert!(matches!(wrk_requests(&broken), Err(Fault::Wrong(_))));
        let refused = format!("{WRK}  Non-2xx or 3xx responses: 5\n");
        assert!(matches!(wrk_requests(&refused), Err(Fault::Wrong(_))));
        assert!(matches!(wrk_requests(""), Err(Fault::Unmeasured(_))));
    }

    #[test]
    fn hey_is_read() {
        let good =
            "Summary:\n  Requests/sec:\t7000.1\n\nStatus code distribution:\n  [200]\t14011 responses\n\n";
        assert_eq!(hey_requests(good), Ok(14_011));
        let mixed = format!("{good}  [502]\t3 responses\n");
        assert!(matches!(hey_requests(&mixed), Err(Fault::Wrong(_))));
        let errors = format!("{good}Error distribution:\n  [64]\tGet \"http://x\": connection refused\n");
        assert!(matches!(hey_requests(&errors), Err(Fault::Wrong(_))));
    }
}
