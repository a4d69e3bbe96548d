//! The load generator: sends requests at times that were fixed before the run (or, if asked, one after the other),
//! checks every byte of the answers, and says whether it could keep up itself. It is no HTTP client: it speaks just as
//! much of each protocol as its scenarios need.
//!
//! ```text
//! cli → plan → processes (threads, children) → engine (epoll) → slot (socket)
//!                    ↓                            ├ pace: when
//!                outcome → record                 └ scenario → exchange (h1, tcp) → check: right or wrong
//! ```
//!
//! To add a protocol: a variant in `exchange`, with a file that reads it. To add a scenario: a variant in `scenario`
//! and `cli`, with a file for its sizes and its check.

mod body;
mod check;
pub mod cli;
pub(crate) mod engine;
mod exchange;
pub(crate) mod get;
mod h1;
pub(crate) mod human;
pub(crate) mod outcome;
pub(crate) mod pace;
pub(crate) mod plan;
mod post;
pub(crate) mod processes;
pub(crate) mod scenario;
mod slot;
pub(crate) mod sse;
pub(crate) mod tally;
mod tcp;

use std::path::Path;

pub use plan::Unusable;
pub use processes::worker;

use crate::memory::{self, Memory};
use crate::output;
use crate::record::{LoadRecord, Watched};
use crate::sched::Threads;

use cli::{Common, LoadArgs};
use engine::Standing;
use plan::Plan;
use processes::{Crew, Watch};

/// Runs `load`: prints and writes what the arguments ask for, and gives the record back.
///
/// # Errors
/// [`Unusable`] (exit code 2) for arguments that cannot be used; anything else is a run that could not be made.
pub fn load(args: &LoadArgs) -> anyhow::Result<LoadRecord> {
    let plan = Plan::new(&args.scenario)?;
    let common = args.scenario.common();
    let mut watcher = Watcher::new(common, &plan);
    let tally = Crew::start(&plan)?.run(&plan.times, &mut watcher)?;
    let record = outcome::record(&plan, tally, watcher.watched, common.lag_max);
    if let Some(path) = &common.json {
        output::write_json(&record, path)?;
    }
    if !common.quiet && common.json.as_deref() != Some(Path::new("-")) {
        output::print(&human::text(&record))?;
    }
    Ok(record)
}

/// Looks at the watched processes, and shows how far the run is.
struct Watcher<'a> {
    pids: &'a [u32],
    before: Vec<Threads>,
    watched: Vec<Watched>,
    total_ns: u64,
    shows_progress: bool,
}

impl<'a> Watcher<'a> {
    fn new(common: &'a Common, plan: &Plan) -> Self {
        Self {
            pids: &common.watch_pid,
            before: Vec::new(),
            watched: Vec::new(),
            total_ns: plan.times.sending_ends_ns(),
            shows_progress: !common.quiet && output::has_terminal(),
        }
    }
}

impl Watch for Watcher<'_> {
    fn begins(&mut self) {
        self.before = self.pids.iter().map(|pid| Threads::of(*pid).unwrap_or_default()).collect();
    }

    fn stands(&mut self, sum: Standing, elapsed_ns: u64) {
        if self.shows_progress {
            output::overwrite_line(&human::progress(sum, elapsed_ns, self.total_ns));
        }
    }

    /// A process that died has no CPU to report: it is left out, and the missing entry says so.
    fn ends(&mut self) {
        if self.shows_progress {
            eprintln!();
        }
        for (pid, before) in self.pids.iter().zip(&self.before) {
            let (Ok(threads), Ok(name), Ok(memory)) =
                (Threads::of(*pid), memory::name(*pid), Memory::of(*pid))
            else {
                continue;
            };
            let cpu_s = threads.since(before).ran_ns as f64 / 1e9;
            self.watched.push(Watched { pid: *pid, name, cpu_s, rss_bytes: memory.rss });
        }
    }
}
