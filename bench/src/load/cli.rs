//! The command line of `millrace-bench load`: `load <scenario> --target URL [flags]`. It only holds and checks what was
//! written; `Plan` is what the generator runs by.
//!
//! ```text
//! load get   --target http://127.0.0.1:8080 --rate 20000 [--connections 64] [--body hello]
//! load post  --target …                     --closed     [--prompt 4KiB] [--answer 1KiB]
//! load sse   --target …                     --streams 1000 --events-per-second 20
//! load body  --target …                     --closed --size 1MiB [--upload]
//! load churn --target …                     --rate 2000            one request per connection
//! load tcp   --target tcp://127.0.0.1:9000  --closed --size 64     echo
//! ```
//!
//! Every scenario takes the flags of [`Pacing`] and [`Common`]. Overload is `get --rate R --overload --connections 2000`
//! with a rate beyond the knee. `--watch-pid` adds the CPU of the proxy over exactly the measured time.
//! Exit codes: 0 good; 1 the run failed or is invalid (the record says which); 2 unusable arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::origin::{parse_duration, parse_size};
use crate::record::Arrivals;

/// `millrace-bench load`.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// What is sent.
    #[command(subcommand)]
    pub scenario: ScenarioArgs,
}

/// The scenarios.
#[derive(Clone, Debug, Subcommand)]
pub enum ScenarioArgs {
    /// Small GET requests with a known answer.
    Get(GetArgs),
    /// POST of a prompt to a chat completion, answered whole.
    Post(PostArgs),
    /// Streams of server-sent events: time to the first one, gaps, merged events, order and content.
    Sse(SseArgs),
    /// Large bodies, down or up, every byte checked.
    Body(BodyArgs),
    /// One GET request per connection.
    Churn(GetArgs),
    /// Messages on TCP connections that are sent back unchanged.
    Tcp(TcpArgs),
}

/// Flags of `get` and `churn`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Flags that every scenario has.
    #[command(flatten)]
    pub common: Common,
    /// When requests are sent.
    #[command(flatten)]
    pub pacing: Pacing,
    /// The body that every answer must have, without its last newline.
    #[arg(long, default_value = "hello", conflicts_with = "any_body")]
    pub body: String,
    /// Take any body (its length is still checked against the framing).
    #[arg(long)]
    pub any_body: bool,
}

/// Flags of `post`.
#[derive(Clone, Debug, Args)]
pub struct PostArgs {
    /// Flags that every scenario has.
    #[command(flatten)]
    pub common: Common,
    /// When requests are sent.
    #[command(flatten)]
    pub pacing: Pacing,
    /// Size of the request's body.
    #[arg(long, default_value = "4KiB", value_parser = size)]
    pub prompt: u64,
    /// Size of the text in the answer; the answer's body has some 300 bytes more.
    #[arg(long, default_value = "700", value_parser = size)]
    pub answer: u64,
}

/// Flags of `sse`.
#[derive(Clone, Debug, Args)]
pub struct SseArgs {
    /// Flags that every scenario has.
    #[command(flatten)]
    pub common: Common,
    /// Streams, one connection each. They begin at equal distances within --ramp.
    #[arg(long, default_value_t = 100)]
    pub streams: u32,
    /// Pace of each stream; 0 is as fast as they come.
    #[arg(long, default_value_t = 20.0)]
    pub events_per_second: f64,
    /// Events of each stream [default: as many as fill --duration].
    #[arg(long)]
    pub events: Option<u64>,
    /// Bytes of each event.
    #[arg(long, default_value = "120", value_parser = size)]
    pub event_size: u64,
    /// Time within which the streams begin.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub ramp: Duration,
    /// Makes the origin hold back this many events and write them together: shows that merging is found.
    #[arg(long, hide = true)]
    pub origin_holds: Option<u64>,
}

/// Flags of `body`.
#[derive(Clone, Debug, Args)]
pub struct BodyArgs {
    /// Flags that every scenario has.
    #[command(flatten)]
    pub common: Common,
    /// When requests are sent.
    #[command(flatten)]
    pub pacing: Pacing,
    /// Size of each body, up to 1GiB.
    #[arg(long, default_value = "1MiB", value_parser = size)]
    pub size: u64,
    /// Send the bodies instead of fetching them.
    #[arg(long)]
    pub upload: bool,
    /// Fetch them in chunked coding.
    #[arg(long, conflicts_with = "upload")]
    pub chunked: bool,
}

/// Flags of `tcp`.
#[derive(Clone, Debug, Args)]
pub struct TcpArgs {
    /// Flags that every scenario has.
    #[command(flatten)]
    pub common: Common,
    /// When messages are sent.
    #[command(flatten)]
    pub pacing: Pacing,
    /// Bytes of each message.
    #[arg(long, default_value = "64", value_parser = size)]
    pub size: u64,
}

/// When requests are sent.
#[derive(Clone, Debug, Args)]
pub struct Pacing {
    /// Open loop: arrivals a second over all processes, fixed before the run.
    #[arg(long, conflicts_with = "closed", required_unless_present = "closed")]
    pub rate: Option<f64>,
    /// Closed loop: each connection sends its next request when it has its answer.
    #[arg(long)]
    pub closed: bool,
    /// How the arrivals of an open loop are spread.
    #[arg(long, value_enum, default_value = "constant")]
    pub arrivals: Arrivals,
    /// Of Poisson arrivals: the same seed gives the same times.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Connections over all processes: as many requests can be under way.
    #[arg(long, default_value_t = 64)]
    pub connections: u32,
    /// Time before the measured one, of which nothing is counted.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub warmup: Duration,
    /// 503 and 429 answers, and requests that found no free connection, are counted apart and do not fail the run.
    #[arg(long)]
    pub overload: bool,
}

/// Flags that every scenario has.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// http://HOST:PORT[/PATH] or tcp://HOST:PORT; without a path the scenario's own on the mock origin.
    #[arg(long)]
    pub target: String,
    /// Time in which requests are sent, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Time after which an exchange (of a stream: without an event) has failed.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// Generator processes, one thread each.
    #[arg(long, default_value_t = 1)]
    pub processes: u32,
    /// CPUs that the processes are pinned to in turn, such as 1 or 2,3.
    #[arg(long, value_delimiter = ',')]
    pub cpus: Vec<u32>,
    /// Connect from that many addresses, 127.0.0.1 and up [default: one for each 10,000 connections].
    #[arg(long)]
    pub sources: Option<u8>,
    /// A header field of every request, such as 'Authorization: Bearer x'; may be given several times.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// Report the CPU that this process used during the measured time; may be given several times.
    #[arg(long, value_name = "PID")]
    pub watch_pid: Vec<u32>,
    /// The run is invalid if the generator's own lag is greater than this at the 99th percentile.
    #[arg(long, default_value = "5ms", value_parser = duration)]
    pub lag_max: Duration,
    /// Write the record as JSON to this file, or to stdout with -.
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// No text for people, only errors.
    #[arg(long)]
    pub quiet: bool,
}

impl ScenarioArgs {
    /// The flags that every scenario has.
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::Get(args) | Self::Churn(args) => &args.common,
            Self::Post(args) => &args.common,
            Self::Sse(args) => &args.common,
            Self::Body(args) => &args.common,
            Self::Tcp(args) => &args.common,
        }
    }

    /// Streams have none: they begin over their ramp, and the origin paces them.
    pub(crate) fn pacing(&self) -> Option<&Pacing> {
        match self {
            Self::Get(args) | Self::Churn(args) => Some(&args.pacing),
            Self::Post(args) => Some(&args.pacing),
            Self::Sse(_) => None,
            Self::Body(args) => Some(&args.pacing),
            Self::Tcp(args) => Some(&args.pacing),
        }
    }
}

/// Reads a duration of the command line.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a duration such as 250ms, 2s or 1m".to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write a size such as 100, 64KiB or 1GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn parse(line: &str) -> Result<ScenarioArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once("load").chain(line.split(' '))).map(|cli| cli.load.scenario)
    }

    #[test]
    fn a_loop_is_chosen_and_only_one() {
        assert!(parse("get --target http://o --rate 10").is_ok());
        assert!(parse("get --target http://o --closed").is_ok());
        assert!(parse("get --target http://o").is_err());
        assert!(parse("get --target http://o --connections 7").is_err());
        assert!(parse("get --target http://o --closed --rate 10").is_err());
    }

    #[test]
    fn units_are_understood() {
        let ScenarioArgs::Body(body) =
            parse("body --target http://o --closed --size 64KiB --timeout 250ms").unwrap()
        else {
            panic!("another scenario")
        };
        assert_eq!((body.size, body.common.timeout), (65_536, Duration::from_millis(250)));
        assert!(parse("body --target http://o --closed --size 1.5MiB").is_err());
    }
}
