//! One run of one workload against one contestant, or against the origin itself: starts it, has it loaded, and reads
//! the figures off. Nothing here repeats or compares.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::case::Workload;
use super::load::Job;
use super::neighbors::Neighbors;
use super::{Tool, slow, unmeasured};
use crate::contest::{Contestant, Fault, Process, Program, Running};
use crate::record::{IdleRecord, LoadRecord, Percentiles};
use crate::report::{Figure, Sample};

/// Connections of a run that needs no other number.
const CONNECTIONS: u32 = 64;
/// Connections of a run in an open loop: enough that a request rarely waits for a free one.
const OPEN_LOOP_CONNECTIONS: u32 = 256;
/// Connections that an overload comes on.
const OVERLOAD_CONNECTIONS: u32 = 2000;
/// How much more than the knee an overload is.
const OVERLOAD: f64 = 1.5;
/// How late the generator may turn to the requests of an overload. Answers come in bursts of hundreds, whenever the proxy
/// gets its turn among its neighbours; the figure is a rate over the whole run, which so short a delay hardly changes.
const OVERLOAD_LAG_MAX: Duration = Duration::from_millis(100);
/// Time within which streams begin.
const STREAM_RAMP: Duration = Duration::from_secs(1);
const PERCENT: f64 = 100.0;
const BYTES_PER_GB: f64 = 1e9;
const US_PER_S: f64 = 1e6;

/// The surroundings of a run.
pub(super) struct Bench {
    /// This program.
    pub(super) program: PathBuf,
    pub(super) origin: SocketAddr,
    /// For records and logs.
    pub(super) dir: PathBuf,
    pub(super) proxy_cpu: u32,
    pub(super) load_cpu: u32,
    pub(super) duration: Duration,
    pub(super) tool: Tool,
}

/// What a run gave.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) sample: Sample,
    /// Whether the load generator was the bottleneck. Costs stay true then; times and rates are refused.
    pub(super) is_saturated: bool,
}

impl Bench {
    /// Runs a workload against a contestant, or without one. `rate` is that of an open loop; without it a workload that
    /// has one is run in a closed loop, to see how far it goes.
    pub(super) fn run(
        &self,
        workload: Workload,
        contestant: Option<(Contestant, &Program)>,
        rate: Option<f64>,
    ) -> Result<Measured, Fault> {
        let mut running = match contestant {
            Some((contestant, program)) => {
                Some(Running::start(contestant, program, self.origin, self.proxy_cpu)?)
            }
            None => None,
        };
        let target = running.as_ref().map_or(self.origin, |running| running.seat.listen);
        let process = running.as_ref().map(|running| &running.process);
        let measured = self.load(workload, target, process, rate);
        // Who has died in the middle has died, whatever the generator says of it.
        if let Some(running) = &mut running {
            running.process.check()?;
        }
        measured
    }

    fn load(
        &self,
        workload: Workload,
        target: SocketAddr,
        process: Option<&Process>,
        rate: Option<f64>,
    ) -> Result<Measured, Fault> {
        let job = |scenario: &'static str| Job::new(self, scenario, target, process);
        match workload {
            Workload::Get { connections } if self.tool != Tool::Load => {
                self.tool.run(self, connections, target, process)
            }
            Workload::Get { connections } => costs(&job("get").closed(connections).run()?),
            Workload::Post => costs(&job("post").paced(CONNECTIONS, rate).run()?),
            Workload::Churn => churn(&job("churn").closed(CONNECTIONS).run()?),
            Workload::Body { size, connections } => {
                bodies(&job("body").closed(connections).flag("--size", size).run()?)
            }
            Workload::Latency { .. } => match rate {
                None => costs(&job("get").closed(CONNECTIONS).run()?),
                Some(_) => {
                    let job = job("get").paced(OPEN_LOOP_CONNECTIONS, rate);
                    latency(&job.flag("--arrivals", "poisson").run()?)
                }
            },
            Workload::Sse { streams, events_per_second } => {
                let job = job("sse").flag("--streams", streams).flag("--ramp", millis(STREAM_RAMP));
                streams_of(&job.flag("--events-per-second", events_per_second).run()?)
            }
            Workload::Idle { connections } => {
                let process = process.ok_or_else(|| unmeasured("no process holds the connections"))?;
                idle(&Job::idle(self, connections, target, process).run_idle()?)
            }
            Workload::SlowReaders => {
                let process = process.ok_or_else(|| unmeasured("no process stands between"))?;
                Ok(calm(slow::read_slowly(target, self.origin, process)?))
            }
            Workload::Overload => {
                let _neighbors = Neighbors::start(self.proxy_cpu).map_err(unmeasured)?;
                let knee = job("get").closed(CONNECTIONS).flag("--lag-max", millis(OVERLOAD_LAG_MAX));
                let knee = usable(&knee.run()?)?.rate_completed;
                let job = job("get").paced(OVERLOAD_CONNECTIONS, Some(knee * OVERLOAD));
                let job = job.switch("--overload").flag("--lag-max", millis(OVERLOAD_LAG_MAX));
                overload(&job.run()?, knee)
            }
        }
    }
}

/// How `load` wants a duration.
pub(super) fn millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn calm(sample: Sample) -> Measured {
    Measured { sample, is_saturated: false }
}

/// The CPU figures, which stand whoever was the bottleneck.
fn costs(record: &LoadRecord) -> Result<Measured, Fault> {
    let mut sample = rates(record);
    if let Some(us) = record.watched_us_per_request() {
        sample.insert(Figure::CpuPerRequestUs, us);
    }
    Ok(Measured { sample, is_saturated: !record.valid })
}

fn churn(record: &LoadRecord) -> Result<Measured, Fault> {
    let mut measured = costs(record)?;
    if let Some(us) = measured.sample.remove(&Figure::CpuPerRequestUs) {
        measured.sample.insert(Figure::ConnectionsPerCpuS, US_PER_S / us);
    }
    Ok(measured)
}

fn bodies(record: &LoadRecord) -> Result<Measured, Fault> {
    let mut measured = costs(record)?;
    measured.sample.remove(&Figure::CpuPerRequestUs);
    let cpu_s = watched_s(record);
    if cpu_s > 0.0 {
        measured.sample.insert(Figure::BodyGbPerCpuS, record.bytes.checked as f64 / BYTES_PER_GB / cpu_s);
    }
    Ok(measured)
}

fn latency(record: &LoadRecord) -> Result<Measured, Fault> {
    let mut sample = rates(usable(record)?);
    let figures = [Figure::AddedP50Us, Figure::AddedP99Us, Figure::AddedP999Us];
    insert(&mut sample, figures, record.latency_us)?;
    Ok(calm(sample))
}

fn streams_of(record: &LoadRecord) -> Result<Measured, Fault> {
    let mut sample = Sample::new();
    let Some(sse) = &usable(record)?.sse else { return Err(unmeasured("the record has no events")) };
    if let Some(us) = record.watched_us_per_event() {
        sample.insert(Figure::CpuPerEventUs, us);
    }
    sample.insert(Figure::MergedEvents, sse.merged as f64);
    let figures = [Figure::AddedEventP50Us, Figure::AddedEventP99Us, Figure::AddedEventP999Us];
    insert(&mut sample, figures, sse.delay_us)?;
    let Some(ttft) = sse.ttft_us else {
        return Err(unmeasured("the record has no times to the first event"));
    };
    sample.insert(Figure::AddedTtftP50Us, ttft.p50);
    sample.insert(Figure::AddedTtftP99Us, ttft.p99);
    Ok(calm(sample))
}

fn idle(record: &IdleRecord) -> Result<Measured, Fault> {
    if !record.valid {
        return Err(Fault::Saturated(record.invalid_because.join("; ")));
    }
    let wake = record.wake_us.ok_or_else(|| unmeasured("the record has no times"))?;
    Ok(calm(Sample::from([
        (Figure::UserBytesPerIdle, record.user_bytes_per_idle_connection),
        (Figure::IdleCpuPercent, record.idle_cpu_percent),
        (Figure::WakeP50Us, wake.p50),
    ])))
}

fn overload(record: &LoadRecord, knee: f64) -> Result<Measured, Fault> {
    let mut sample = rates(usable(record)?);
    sample.insert(Figure::GoodputPercent, record.rate_completed / knee * PERCENT);
    sample.insert(Figure::BareRejections, record.requests.rejected_without_retry_after as f64);
    Ok(calm(sample))
}

fn rates(record: &LoadRecord) -> Sample {
    let busy = watched_s(record) / record.duration_s * PERCENT;
    Sample::from([(Figure::RequestsPerS, record.rate_completed), (Figure::BusyPercent, busy)])
}

fn watched_s(record: &LoadRecord) -> f64 {
    record.watched.iter().map(|process| process.cpu_s).sum()
}

/// A record whose times and rates may be used. Errors: the generator was the bottleneck.
fn usable(record: &LoadRecord) -> Result<&LoadRecord, Fault> {
    if record.valid { Ok(record) } else { Err(Fault::Saturated(record.invalid_because.join("; "))) }
}

fn insert(sample: &mut Sample, figures: [Figure; 3], times: Option<Percentiles>) -> Result<(), Fault> {
    let Some(times) = times else { return Err(unmeasured("the record has no times")) };
    sample.extend(figures.into_iter().zip([times.p50, times.p99, times.p999]));
    Ok(())
}
