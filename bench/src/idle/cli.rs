//! The command line of `millrace-bench idle`, and its check.
//!
//! ```text
//! idle --target http://127.0.0.1:8080 --pid 4711                                       100,000 connections, 5 % streaming
//! idle --target http://127.0.0.1:8080 --proxy-command 'millrace-dataplane run -c x.toml' --proxy-processes 6
//! ```
//!
//! Exit codes: 0 good; 1 the run failed or is invalid (the record says which); 2 unusable arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::dial::{Sources, connections_max};
use crate::load::Unusable;
use crate::load::cli::duration;
use crate::load::get::{self, Get};
use crate::load::pace::Schedule;
use crate::load::plan::{Plan, Target, Times};
use crate::load::scenario::Scenario;
use crate::load::sse::Sse;
use crate::record::Arrivals;
use crate::sched;

/// More than a machine has memory for.
const CONNECTIONS_MAX: u32 = 2_000_000;

/// First requests a second: below what any proxy takes.
const FIRST_RATE: f64 = 10_000.0;

/// Beginnings of streams a second: so few that none queues behind others, since the queue would be taken for the latency of
/// what is measured next.
const BEGIN_RATE: f64 = 1_000.0;

/// Least time in which either is made.
const FIRST_MIN_NS: u64 = 200_000_000;

/// Bytes of an event.
const EVENT_SIZE: u64 = 120;

/// Time from the beginning of the last stream to the measurement.
pub(super) const SETTLE_NS: u64 = 500_000_000;

/// Streams go on for so long behind the measurement, so that none ends in it.
const STREAMS_BEHIND_NS: u64 = 1_000_000_000;

/// `millrace-bench idle`.
#[derive(Clone, Debug, Args)]
pub struct IdleArgs {
    /// http://HOST:PORT of the proxy; it must forward / and /sse to the mock origin, and keep idle connections.
    #[arg(long)]
    pub target: String,
    /// Connections in all.
    #[arg(long, default_value_t = 100_000)]
    pub connections: u32,
    /// Share of them that streams, in percent.
    #[arg(long, default_value_t = 5.0)]
    pub streaming: f64,
    /// Pace of each stream.
    #[arg(long, default_value_t = 20.0)]
    pub events_per_second: f64,
    /// Length of each measurement: one with all connections idle, one with the streams.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub hold: Duration,
    /// Requests a second on idle connections during the second measurement.
    #[arg(long, default_value_t = 100.0)]
    pub wake_rate: f64,
    /// A process under test; may be given several times.
    #[arg(long, required_unless_present = "proxy_command", conflicts_with = "proxy_command")]
    pub pid: Vec<u32>,
    /// Starts the process under test with this shell command, and ends it afterwards.
    #[arg(long, value_name = "COMMAND")]
    pub proxy_command: Option<String>,
    /// How many of them, on one port (SO_REUSEPORT): each is bound by its limit of open files.
    #[arg(long, default_value_t = 1, requires = "proxy_command", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub proxy_processes: u32,
    /// A process whose memory is not to be counted as the kernel's, such as the origin; may be given several times.
    #[arg(long, value_name = "PID")]
    pub aside_pid: Vec<u32>,
    /// CPUs that the holding processes are pinned to in turn.
    #[arg(long, value_delimiter = ',')]
    pub cpus: Vec<u32>,
    /// Connect from that many addresses, 127.0.0.1 and up [default: one for each 10,000 connections].
    #[arg(long)]
    pub sources: Option<u8>,
    /// Time after which a request (of a stream: without an event) has failed.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// The run is invalid if the holders' own lag is greater than this at the 99th percentile.
    #[arg(long, default_value = "5ms", value_parser = duration)]
    pub lag_max: Duration,
    /// Write the record as JSON to this file, or to stdout with -.
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// No text for people, only errors.
    #[arg(long)]
    pub quiet: bool,
}

/// What is to be done with the connections.
#[derive(Debug)]
pub(crate) struct IdlePlan {
    /// The idle connections; its times are those of their first request.
    pub(crate) idle: Plan,
    /// Requests on idle connections.
    pub(crate) wake: Times,
    /// The streams; its times are those in which they begin.
    pub(crate) streams: Option<Plan>,
}

impl IdlePlan {
    /// Checks what was written.
    pub(crate) fn new(args: &IdleArgs) -> Result<Self, Unusable> {
        check(args)?;
        let streams = (f64::from(args.connections) * args.streaming / 100.0).round() as u32;
        let idle = args.connections - streams;
        if idle == 0 {
            return Err(Unusable(format!(
                "--streaming {}: no connection is left to be idle",
                args.streaming
            )));
        }
        let hold_ns = args.hold.as_nanos() as u64;
        let begin_ns = spread_ns(streams, BEGIN_RATE);
        let lasts_s = (begin_ns + SETTLE_NS + hold_ns + STREAMS_BEHIND_NS) as f64 / 1e9;
        let sse = Sse {
            events: (lasts_s * args.events_per_second).ceil() as u64,
            events_per_second: args.events_per_second,
            event_size: EVENT_SIZE,
            origin_holds: None,
        };
        let wake = Schedule {
            arrivals: Arrivals::Poisson,
            interval_ns: 1e9 / args.wake_rate,
            offset_ns: 0.0,
            seed: 1,
            until_ns: hold_ns,
            count_max: u64::MAX,
        };
        Ok(Self {
            idle: plan(args, Scenario::Get(Get { body: Some(get::BODY.into()) }), idle, FIRST_RATE)?,
            wake: Times { schedule: Some(wake), warmup_ns: 0, duration_ns: hold_ns },
            streams: (streams > 0)
                .then(|| plan(args, Scenario::Sse(sse), streams, BEGIN_RATE))
                .transpose()?,
        })
    }
}

fn check(args: &IdleArgs) -> Result<(), Unusable> {
    let unusable = |good: bool, text: String| if good { Ok(()) } else { Err(Unusable(text)) };
    let positive = |value: f64, most: f64| value.is_finite() && value > 0.0 && value <= most;
    let count = args.connections;
    unusable(
        (1..=CONNECTIONS_MAX).contains(&count),
        format!("--connections {count}: write 1 to {CONNECTIONS_MAX}"),
    )?;
    let share = args.streaming;
    unusable((0.0..=100.0).contains(&share), format!("--streaming {share}: write 0 to 100 percent"))?;
    let pace = args.events_per_second;
    unusable(positive(pace, 1e6), format!("--events-per-second {pace}: write more than 0, up to 1000000"))?;
    let rate = args.wake_rate;
    unusable(positive(rate, 1e6), format!("--wake-rate {rate}: write more than 0, up to 1000000"))?;
    let day = Duration::from_secs(24 * 3600);
    for (name, time) in [("--hold", args.hold), ("--timeout", args.timeout)] {
        unusable(
            !time.is_zero() && time <= day,
            format!("{name}: write more than nothing and at most a day"),
        )?;
    }
    for pid in args.pid.iter().chain(&args.aside_pid) {
        unusable(sched::of_process(*pid).is_ok(), format!("there is no process {pid}"))?;
    }
    Ok(())
}

/// `connections` that do the first of `scenario` at `rate` a second.
fn plan(args: &IdleArgs, scenario: Scenario, connections: u32, rate: f64) -> Result<Plan, Unusable> {
    let most = u32::try_from(connections_max()).unwrap_or(u32::MAX).max(1);
    let target = Target::new(&args.target, &scenario)?;
    let sources = args.sources.unwrap_or_else(|| Sources::needed(args.connections, target.address));
    if !Sources::reach(sources, target.address) {
        return Err(Unusable(
            "only a target on 127.0.0.0/8 is reached from several addresses: --sources 1".into(),
        ));
    }
    let duration_ns = spread_ns(connections, rate);
    let schedule = Schedule::spread(connections.into(), duration_ns);
    Ok(Plan {
        scenario,
        target,
        headers: Vec::new(),
        times: Times { schedule: Some(schedule), warmup_ns: 0, duration_ns },
        connections,
        processes: connections.div_ceil(most),
        sources,
        timeout_ns: args.timeout.as_nanos() as u64,
        overload: false,
        cpus: args.cpus.clone(),
    })
}

/// Time for so many at `rate` a second.
fn spread_ns(connections: u32, rate: f64) -> u64 {
    FIRST_MIN_NS.max((f64::from(connections) / rate * 1e9) as u64)
}
