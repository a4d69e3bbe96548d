//! The checked command line: everything that a run needs, in a form that can be cut into the shares of several
//! processes and sent to them.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::dial::{Sources, connections_max};
use crate::record::{Asked, Mode};
use crate::sched::CPUS_MAX;

use super::body::Body;
use super::cli::{Common, GetArgs, Pacing, ScenarioArgs};
use super::get::Get;
use super::pace::Schedule;
use super::post::{self, Post};
use super::scenario::Scenario;
use super::sse::{self, Sse};

/// More than any machine sends; what is asked for beyond is a slip of the finger.
const RATE_MAX: f64 = 1e9;

/// As many as a large machine has cores.
const PROCESSES_MAX: u32 = 256;

/// Largest body that the mock origin gives.
const BODY_MAX: u64 = 1 << 30;

/// Largest echoed message: both sides' socket buffers may have to hold it.
const MESSAGE_MAX: u64 = 1 << 20;

/// A run of a day is a mistake.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// Arguments that cannot be used, and what could be written instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub(crate) String);

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) authority: String,
    pub(crate) path: String,
    /// As it was written, with the scenario's path.
    pub(crate) shown: String,
}

/// When requests are sent. The same connections can be put through several such time tables, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Times {
    /// `None` is a closed loop.
    pub(crate) schedule: Option<Schedule>,
    pub(crate) warmup_ns: u64,
    /// Of the time in which requests are sent, without the warm-up.
    pub(crate) duration_ns: u64,
}

/// A run, or one process' share of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) target: Target,
    pub(crate) headers: Vec<String>,
    pub(crate) times: Times,
    pub(crate) connections: u32,
    pub(crate) processes: u32,
    pub(crate) sources: u8,
    pub(crate) timeout_ns: u64,
    pub(crate) overload: bool,
    pub(crate) cpus: Vec<u32>,
}

impl Plan {
    /// Checks what was written.
    pub(crate) fn new(args: &ScenarioArgs) -> Result<Self, Unusable> {
        let common = args.common();
        let scenario = scenario(args)?;
        check_common(common)?;
        let target = Target::new(&common.target, &scenario)?;
        let mut plan = Self {
            target,
            headers: common.headers.clone(),
            times: Times { duration_ns: nanoseconds(common.duration), ..Times::default() },
            connections: 0,
            processes: common.processes,
            sources: 1,
            timeout_ns: nanoseconds(common.timeout),
            overload: false,
            cpus: common.cpus.clone(),
            scenario,
        };
        match (args.pacing(), args) {
            (Some(pacing), _) => plan.pace(pacing)?,
            (None, ScenarioArgs::Sse(sse)) => plan.pace_streams(sse.streams, sse.ramp)?,
            (None, _) => return Err(unusable("the scenario has no pace")),
        }
        let address = plan.target.address;
        plan.sources = common.sources.unwrap_or_else(|| Sources::needed(plan.connections, address));
        if !Sources::reach(plan.sources, address) {
            return Err(unusable("--sources: only a target on 127.0.0.0/8 is reached from 127.0.0.x"));
        }
        plan.check_connections()?;
        Ok(plan)
    }

    /// What goes into the record.
    pub(crate) fn asked(&self) -> Asked {
        let schedule = self.times.schedule.as_ref();
        Asked {
            scenario: self.scenario.name().to_owned(),
            target: self.target.shown.clone(),
            mode: if schedule.is_some() { Mode::Open } else { Mode::Closed },
            arrivals: schedule.map(|schedule| schedule.arrivals).unwrap_or_default(),
            seed: schedule.map_or(0, |schedule| schedule.seed),
            rate: schedule.map(|schedule| 1e9 / schedule.interval_ns),
            connections: self.connections,
            processes: self.processes,
            duration_s: self.times.duration_ns as f64 / 1e9,
            warmup_s: self.times.warmup_ns as f64 / 1e9,
        }
    }

    /// What process `index` has to do: its part of the connections.
    pub(crate) fn share(&self, index: u32) -> Self {
        let part = self.connections / self.processes + u32::from(index < self.connections % self.processes);
        let cpu = self.cpus.get(index as usize % self.cpus.len().max(1)).copied();
        let times = self.times.share(index, self.processes);
        Self { connections: part, cpus: cpu.into_iter().collect(), times, ..self.clone() }
    }

    fn pace(&mut self, pacing: &Pacing) -> Result<(), Unusable> {
        self.connections = pacing.connections;
        self.times.warmup_ns = nanoseconds(pacing.warmup);
        self.overload = pacing.overload;
        let Some(rate) = pacing.rate else { return Ok(()) };
        if !(rate.is_finite() && rate > 0.0 && rate <= RATE_MAX) {
            return Err(unusable(format!("--rate {rate}: write arrivals a second, up to {RATE_MAX:e}")));
        }
        self.times.schedule = Some(Schedule {
            arrivals: pacing.arrivals,
            interval_ns: 1e9 / rate,
            offset_ns: 0.0,
            seed: pacing.seed,
            until_ns: self.times.sending_ends_ns(),
            count_max: u64::MAX,
        });
        Ok(())
    }

    /// Streams begin one after the other over the ramp: all at once would be a burst that no user makes.
    fn pace_streams(&mut self, streams: u32, ramp: Duration) -> Result<(), Unusable> {
        if ramp > DURATION_MAX {
            return Err(unusable("--ramp: a day is more than enough"));
        }
        self.connections = streams;
        let ramp_ns = nanoseconds(ramp).max(1);
        let schedule = Schedule::spread(streams.into(), ramp_ns);
        self.times = Times { schedule: Some(schedule), warmup_ns: 0, duration_ns: ramp_ns };
        Ok(())
    }

    fn check_connections(&self) -> Result<(), Unusable> {
        if self.connections < self.processes {
            return Err(unusable(format!(
                "{} connections for {} processes: each process needs one",
                self.connections, self.processes
            )));
        }
        let (each, most) = (self.connections.div_ceil(self.processes), connections_max());
        if u64::from(each) > most {
            let enough = u64::from(self.connections).div_ceil(most.max(1));
            return Err(unusable(format!(
                "{each} connections in one process, and a process may open only {most} (ulimit -n): use --processes {enough}"
            )));
        }
        Ok(())
    }
}

impl Times {
    /// From the start to the time at which the last request is to be sent.
    pub(crate) fn sending_ends_ns(&self) -> u64 {
        self.warmup_ns + self.duration_ns
    }

    /// Every so many-th arrival.
    pub(crate) fn share(&self, index: u32, processes: u32) -> Self {
        let mut share = self.clone();
        if let Some(schedule) = &mut share.schedule {
            schedule.offset_ns = schedule.interval_ns * f64::from(index);
            schedule.interval_ns *= f64::from(processes);
            // Independent Poisson streams add up to one.
            schedule.seed = schedule.seed.wrapping_add(u64::from(index).wrapping_mul(0x2545_f491_4f6c_dd1d));
            let whole = schedule.count_max;
            if whole != u64::MAX {
                let (part, rest) = (whole / u64::from(processes), whole % u64::from(processes));
                schedule.count_max = part + u64::from(u64::from(index) < rest);
            }
        }
        share
    }
}

impl Target {
    /// Resolves what was written; without a path it gets the scenario's own.
    pub(crate) fn new(written: &str, scenario: &Scenario) -> Result<Self, Unusable> {
        let scheme = if matches!(scenario, Scenario::Tcp { .. }) { "tcp" } else { "http" };
        let wrong = |why: &str| unusable(format!("--target {written}: {why}"));
        let rest = written.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
        let rest = rest.ok_or_else(|| wrong(&format!("write {scheme}://HOST:PORT")))?;
        let (authority, given) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if given.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(wrong("the path holds a space or a control character"));
        }
        let with_port = match authority.rsplit_once(':') {
            Some((_, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => authority.to_owned(),
            _ if scheme == "http" => format!("{authority}:80"),
            _ => return Err(wrong("there is no port")),
        };
        let addresses = with_port.to_socket_addrs().map_err(|error| wrong(&error.to_string()))?;
        let address = addresses.into_iter().next().ok_or_else(|| wrong("the name has no address"))?;
        let path = if given.is_empty() { scenario.path() } else { with_knobs(given, &scenario.path()) };
        let shown = format!("{scheme}://{authority}{path}");
        Ok(Self { address, authority: authority.to_owned(), path, shown })
    }
}

/// The path that was given, with the query that the scenario needs.
fn with_knobs(given: &str, own: &str) -> String {
    match own.split_once('?') {
        Some((_, knobs)) => format!("{given}{}{knobs}", if given.contains('?') { '&' } else { '?' }),
        None => given.to_owned(),
    }
}

fn scenario(args: &ScenarioArgs) -> Result<Scenario, Unusable> {
    let within = |name: &str, value: u64, least: u64, most: u64| {
        let good = (least..=most).contains(&value);
        good.then_some(value)
            .ok_or_else(|| unusable(format!("{name} {value}: write {least} to {most} bytes")))
    };
    Ok(match args {
        ScenarioArgs::Get(args) => Scenario::Get(get(args)),
        ScenarioArgs::Churn(args) => Scenario::Churn(get(args)),
        ScenarioArgs::Post(args) => Scenario::Post(Post::new(
            within("--prompt", args.prompt, post::PROMPT_MIN, BODY_MAX)?,
            within("--answer", args.answer, 1, post::ANSWER_MAX)?,
        )),
        ScenarioArgs::Body(args) => {
            Scenario::Body(Body::new(within("--size", args.size, 0, BODY_MAX)?, args.upload, args.chunked))
        }
        ScenarioArgs::Tcp(args) => Scenario::Tcp { size: within("--size", args.size, 1, MESSAGE_MAX)? },
        ScenarioArgs::Sse(args) => {
            let pace = args.events_per_second;
            if !(pace.is_finite() && (0.0..=1e6).contains(&pace)) {
                return Err(unusable(format!("--events-per-second {pace}: write 0 to 1000000")));
            }
            let fill = (pace * args.common.duration.as_secs_f64()).round() as u64;
            let events = args.events.or((pace > 0.0).then_some(fill.max(1)));
            Scenario::Sse(Sse {
                events: events.ok_or_else(|| unusable("a stream without pace needs --events"))?,
                events_per_second: pace,
                event_size: within(
                    "--event-size",
                    args.event_size,
                    sse::EVENT_SIZE_MIN,
                    sse::EVENT_SIZE_MAX,
                )?,
                origin_holds: args.origin_holds,
            })
        }
    })
}

fn get(args: &GetArgs) -> Get {
    let body = || format!("{}\n", args.body).into_bytes().into();
    Get { body: (!args.any_body).then(body) }
}

fn check_common(common: &Common) -> Result<(), Unusable> {
    if !(1..=PROCESSES_MAX).contains(&common.processes) {
        return Err(unusable(format!("--processes {}: write 1 to {PROCESSES_MAX}", common.processes)));
    }
    if common.duration.is_zero() || common.duration > DURATION_MAX {
        return Err(unusable("--duration: write more than nothing and at most a day"));
    }
    if common.timeout.is_zero() || common.timeout > DURATION_MAX {
        return Err(unusable("--timeout: write more than nothing and at most a day"));
    }
    if let Some(cpu) = common.cpus.iter().find(|cpu| **cpu >= CPUS_MAX) {
        return Err(unusable(format!("--cpus {cpu}: there is no such CPU")));
    }
    if let Some(field) = common.headers.iter().find(|field| !is_field(field)) {
        return Err(unusable(format!("--header '{field}': write 'Name: value'")));
    }
    if let Some(pid) = common.watch_pid.iter().find(|pid| crate::sched::of_process(**pid).is_err()) {
        return Err(unusable(format!("--watch-pid {pid}: there is no such process")));
    }
    Ok(())
}

fn is_field(field: &str) -> bool {
    let (name, _) = field.split_once(':').unwrap_or_default();
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(token) && !field.bytes().any(|byte| byte < b' ' || byte == 0x7f)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn unusable(text: impl Into<String>) -> Unusable {
    Unusable(text.into())
}
