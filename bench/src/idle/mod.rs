//! What open connections cost a proxy: user memory, the kernel's memory, CPU while nothing happens, and how long a
//! request takes on a connection that has long been idle. The connections are those of the load generator (`load`),
//! put through three time tables: one request each, silence, and a few requests while others stream.
//!
//! ```text
//! before │ open, one request each │ silence (--hold) │ streams begin │ streams and wake-ups (--hold)
//!    ↑ memory                        ↑ CPU           ↑ memory           ↑ CPU, latency              ↑ memory
//! ```

pub mod cli;
mod human;
mod proxies;

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;

use crate::load::engine::Standing;
use crate::load::human::progress;
use crate::load::outcome::{invalid_because, sse_record};
use crate::load::plan::Plan;
use crate::load::processes::{Crew, Watch};
use crate::load::tally::Tally;
use crate::memory::{self, Memory};
use crate::output;
use crate::record::{FORMAT, Failure, IdleProxy, IdleRecord, Mode};

use cli::{IdleArgs, IdlePlan};
use proxies::Proxies;

/// Runs `idle`: prints and writes what the arguments ask for, and gives the record back.
///
/// # Errors
/// [`Unusable`](crate::load::Unusable) (exit code 2) for arguments that cannot be used; anything else is a run that
/// could not be made.
pub fn idle(args: &IdleArgs) -> anyhow::Result<IdleRecord> {
    let plan = IdlePlan::new(args)?;
    let proxies = match &args.proxy_command {
        Some(command) => Proxies::start(command, args.proxy_processes, plan.idle.target.address)?,
        None => Proxies::running(&args.pid),
    };
    let measured = measure(args, &plan, &proxies)?;
    let record = record(args, &plan, &proxies, measured)?;
    if let Some(path) = &args.json {
        output::write_json(&record, path)?;
    }
    if !args.quiet && args.json.as_deref() != Some(Path::new("-")) {
        output::print(&human::text(&record))?;
    }
    Ok(record)
}

/// Memory at one moment.
struct Sample {
    proxies: Vec<Memory>,
    open_files: Vec<u64>,
    available: u64,
    kernel_objects: u64,
    cgroup: Option<u64>,
    /// Of the holders, and of those that are set aside.
    others: u64,
}

/// Two moments and what the proxies ran between them.
struct Cpu {
    ran_ns: u64,
    percent: f64,
}

/// Everything that was seen.
struct Measured {
    before: Sample,
    idle: Sample,
    streaming: Sample,
    idle_cpu: Cpu,
    streaming_cpu: Cpu,
    first: Tally,
    wake: Tally,
    events: Option<Tally>,
}

fn measure(args: &IdleArgs, plan: &IdlePlan, proxies: &Proxies) -> anyhow::Result<Measured> {
    let show = |phase| Phase { phase, shows: !args.quiet && output::has_terminal() };
    let before = Sample::take(proxies, args, &[])?;

    let mut holders = Crew::start(&plan.idle)?;
    let first = holders.run(&plan.idle.times, &mut show("first requests"))?;
    let ((), idle_cpu) = Cpu::during(proxies, args.hold, || {
        std::thread::sleep(args.hold);
        Ok(())
    })?;
    let idle = Sample::take(proxies, args, &holders.pids())?;

    let (events, (wake, streaming_cpu, streaming)) =
        with_streams(plan.streams.as_ref(), show("streams"), || {
            let woken = Cpu::during(proxies, args.hold, || holders.run(&plan.wake, &mut show("wake-ups")));
            let (wake, cpu) = woken?;
            Ok((wake, cpu, Sample::take(proxies, args, &holders.pids())?))
        })?;
    Ok(Measured { before, idle, streaming, idle_cpu, streaming_cpu, first, wake, events })
}

fn record(
    args: &IdleArgs,
    plan: &IdlePlan,
    proxies: &Proxies,
    measured: Measured,
) -> anyhow::Result<IdleRecord> {
    let Measured { wake, events, .. } = &measured;
    let mut tally = measured.first.clone();
    let wake_us = wake.latency.percentiles();
    // Both crews: streams that are read late look like events that came late.
    let because = |tally: &Tally| {
        invalid_because(Mode::Open, tally.busy, tally.lag.percentiles(), args.lag_max).into_iter()
    };
    let of_streams = events.iter().flat_map(because).map(|reason| format!("the streams: {reason}"));
    let invalid_because: Vec<String> = because(wake).chain(of_streams).collect();
    tally.merge(wake.clone());
    tally.merge(events.clone().unwrap_or_default());
    if tally.requests.unsent > 0 {
        tally.failures.insert(Failure::Unsent, tally.requests.unsent);
    }
    let memory = Growth { measured: &measured, plan };
    let streams = plan.streams.as_ref().map_or(0, |streams| streams.connections);
    let paced = f64::from(streams) * args.events_per_second * args.hold.as_secs_f64();
    Ok(IdleRecord {
        format: FORMAT,
        target: plan.idle.target.shown.clone(),
        idle_connections: plan.idle.connections,
        streams,
        events_per_second: args.events_per_second,
        holders: plan.idle.processes + plan.streams.as_ref().map_or(0, |streams| streams.processes),
        hold_s: args.hold.as_secs_f64(),
        proxies: memory.proxies(proxies)?,
        user_bytes_per_idle_connection: memory.user_per_idle(),
        user_bytes_per_stream: (streams > 0).then(|| memory.user_per_stream(streams)),
        kernel_bytes_per_idle_connection: memory.kernel_per_idle(),
        slab_bytes_per_idle_connection: memory.slab_per_idle(),
        cgroup_bytes_per_idle_connection: memory.cgroup_per_idle(),
        idle_cpu_percent: measured.idle_cpu.percent,
        streaming_cpu_percent: measured.streaming_cpu.percent,
        streaming_us_per_event: (streams > 0).then(|| measured.streaming_cpu.ran_ns as f64 / 1000.0 / paced),
        wake_us,
        sse: events.as_ref().map(|tally| sse_record(&tally.events)),
        closed_while_idle: tally.closed_while_idle,
        failed: !tally.failures.is_empty() || tally.closed_while_idle > 0 || wake_us.is_none(),
        failures: tally.failures,
        failure_examples: tally.examples,
        valid: invalid_because.is_empty(),
        invalid_because,
    })
}

/// Runs `body` when the streams have begun, and waits for their end.
fn with_streams<T>(
    plan: Option<&Plan>,
    mut show: Phase,
    body: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(Option<Tally>, T)> {
    let Some(plan) = plan else { return Ok((None, body()?)) };
    let mut crew = Crew::start(plan)?;
    std::thread::scope(|scope| {
        let streams = scope.spawn(move || crew.run(&plan.times, &mut show));
        std::thread::sleep(Duration::from_nanos(plan.times.duration_ns + cli::SETTLE_NS));
        let measured = body();
        let tally = streams.join().unwrap_or_else(|_| Err(anyhow!("the streams panicked")));
        Ok((Some(tally?), measured?))
    })
}

impl Sample {
    fn take(proxies: &Proxies, args: &IdleArgs, holders: &[u32]) -> anyhow::Result<Self> {
        let this = std::process::id();
        let mut others: Vec<u32> = holders.iter().chain(&args.aside_pid).copied().chain([this]).collect();
        others.sort_unstable();
        others.dedup();
        // What is under test is not set aside, even where a test holds both ends.
        others.retain(|pid| !proxies.pids.contains(pid));
        Ok(Self {
            proxies: proxies.memory()?,
            open_files: proxies.pids.iter().map(|pid| memory::open_files(*pid)).collect::<Result<_, _>>()?,
            available: memory::available()?,
            kernel_objects: memory::of_kernel_objects()?,
            cgroup: proxies.pids.first().and_then(|pid| memory::of_cgroup(*pid)),
            others: others.iter().filter_map(|pid| Memory::of(*pid).ok()).map(|memory| memory.pss).sum(),
        })
    }

    fn user(&self) -> u64 {
        self.proxies.iter().map(|memory| memory.pss).sum()
    }
}

impl Cpu {
    fn during<T>(
        proxies: &Proxies,
        time: Duration,
        body: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Self)> {
        let before = proxies.threads()?;
        let result = body()?;
        let after = proxies.threads()?;
        let ran_ns = after.iter().zip(&before).map(|(after, before)| after.since(before).ran_ns).sum();
        Ok((result, Self { ran_ns, percent: ran_ns as f64 / time.as_nanos() as f64 * 100.0 }))
    }
}

/// What memory grew by.
struct Growth<'a> {
    measured: &'a Measured,
    plan: &'a IdlePlan,
}

impl Growth<'_> {
    fn user_per_idle(&self) -> f64 {
        grown(self.measured.before.user(), self.measured.idle.user()) / self.idle_count()
    }

    fn user_per_stream(&self, streams: u32) -> f64 {
        grown(self.measured.idle.user(), self.measured.streaming.user()) / f64::from(streams)
    }

    fn kernel_per_idle(&self) -> f64 {
        let gone = grown(self.measured.idle.available, self.measured.before.available);
        let ours = grown(self.measured.before.user(), self.measured.idle.user())
            + grown(self.measured.before.others, self.measured.idle.others);
        (gone - ours) / self.idle_count()
    }

    fn slab_per_idle(&self) -> f64 {
        grown(self.measured.before.kernel_objects, self.measured.idle.kernel_objects) / self.idle_count()
    }

    fn cgroup_per_idle(&self) -> Option<f64> {
        Some(grown(self.measured.before.cgroup?, self.measured.idle.cgroup?) / self.idle_count())
    }

    fn proxies(&self, proxies: &Proxies) -> anyhow::Result<Vec<IdleProxy>> {
        let one = |(at, pid): (usize, &u32)| {
            let of = |pick: fn(&Memory) -> u64| {
                [&self.measured.before, &self.measured.idle, &self.measured.streaming]
                    .map(|sample| pick(&sample.proxies[at]))
            };
            Ok(IdleProxy {
                pid: *pid,
                name: memory::name(*pid)?,
                open_files: self.measured.idle.open_files[at],
                rss_bytes: of(|memory| memory.rss),
                pss_bytes: of(|memory| memory.pss),
            })
        };
        proxies.pids.iter().enumerate().map(one).collect()
    }

    fn idle_count(&self) -> f64 {
        f64::from(self.plan.idle.connections)
    }
}

/// Memory may also have become less.
fn grown(before: u64, after: u64) -> f64 {
    after as f64 - before as f64
}

/// The line that shows how far a phase is.
struct Phase {
    phase: &'static str,
    shows: bool,
}

impl Watch for Phase {
    fn begins(&mut self) {}

    fn stands(&mut self, sum: Standing, elapsed_ns: u64) {
        if self.shows {
            output::overwrite_line(&format!("{}: {}", self.phase, progress(sum, elapsed_ns, elapsed_ns)));
        }
    }

    fn ends(&mut self) {
        if self.shows {
            eprintln!();
        }
    }
}
