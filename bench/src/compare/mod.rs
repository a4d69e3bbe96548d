//! `millrace-bench compare`: ours and others on the same origin, side by side in interleaved rounds. This file is the
//! command line; `rounds` is the order of runs, `measure` one run, `case` the list of workloads. Judging and showing is
//! the report's business.

mod case;
mod load;
mod measure;
mod neighbors;
mod rounds;
mod slow;
mod tool;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::contest::{Contestant, Fault};
use crate::host::{self, Host};
use crate::load::Unusable;
use crate::origin::parse_duration;
use crate::report::{Entrant, FORMAT, ROUNDS_MIN, Report, Settings};

pub use case::{CASES, Case, STREAM_BYTES_MAX, Workload};
pub use tool::Tool;

use rounds::Comparison;

/// Rounds of `--quick`.
const QUICK_ROUNDS: u32 = 3;
/// Measured time of a run, and that of `--quick`. A second of a small row is some 50,000 requests.
const DURATION: Duration = Duration::from_millis(1500);
const QUICK_DURATION: Duration = Duration::from_secs(1);
const NEEDS_TWO_CPUS: &str =
    "a comparison needs two CPUs: one for the proxies, one for the load and the origin";
/// Enough for pools and caches to fill.
const WARMUP: Duration = Duration::from_millis(300);

/// Arguments of `millrace-bench compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Interleaved rounds of each row; fewer than 5 are too few for a verdict [default: 5, with --quick 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// Numbers or names of rows, such as 1,2,sse-1k [default: all].
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    pub rows: Vec<String>,
    /// Who takes part in every row, such as millrace,nginx,haproxy,ring [default: by row].
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub contestants: Vec<Contestant>,
    /// Rows, rounds and times of the two-minute set.
    #[arg(long)]
    pub quick: bool,
    /// Measured time of each run [default: 1500ms, with --quick 1s].
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Load generator of row 1.
    #[arg(long, value_enum, default_value = "load")]
    pub tool: Tool,
    /// A contestant's program that is not found by itself, such as nginx=/opt/nginx/sbin/nginx.
    #[arg(long = "program", value_name = "NAME=PATH", value_parser = program)]
    pub programs: Vec<(Contestant, PathBuf)>,
    /// CPU of the contestants [default: the first one].
    #[arg(long, value_name = "CPU")]
    pub proxy_cpu: Option<u32>,
    /// CPU of the load generator and the origin [default: the second one].
    #[arg(long, value_name = "CPU")]
    pub load_cpu: Option<u32>,
    /// Folder for report.md, report.json and the plots.
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs the comparison and writes the report. Progress goes to stderr, the summary to stdout. A contestant that is
/// missing or fails is the report's matter and no error.
///
/// # Errors
/// [`Unusable`] (exit code 2) for arguments that cannot be used; the origin has failed, or the report cannot be written.
pub fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let host = Host::read();
    let settings = settings(args, &host)?;
    let cases = cases(args)?;
    host::raise_open_files().context("cannot raise the limit of open files")?;
    let entrants = entrants(args, &cases);
    let who = (args.contestants.as_slice(), args.quick);
    let comparison = Comparison::start(settings, who, &entrants, args.tool, args.duration())?;
    let rows = comparison.run(&cases)?;
    let report = Report {
        format: FORMAT,
        date: httpdate::fmt_http_date(std::time::SystemTime::now()),
        host,
        settings: comparison.settings().clone(),
        entrants,
        rows,
    };
    report.write(&args.out)?;
    println!("{}\nThe whole report is {}.", report.summary(), args.out.join("report.md").display());
    Ok(())
}

impl CompareArgs {
    fn duration(&self) -> Duration {
        self.duration.unwrap_or(if self.quick { QUICK_DURATION } else { DURATION })
    }
}

fn settings(args: &CompareArgs, host: &Host) -> Result<Settings, Unusable> {
    let cpu = |asked: Option<u32>, index: usize| match asked {
        Some(cpu) if host.cpus.contains(&cpu) => Ok(cpu),
        Some(cpu) => Err(Unusable(format!("this process may not use CPU {cpu}, only {:?}", host.cpus))),
        None => host.cpus.get(index).copied().ok_or_else(|| Unusable(NEEDS_TWO_CPUS.to_owned())),
    };
    let rounds = args.rounds.unwrap_or(if args.quick { QUICK_ROUNDS } else { ROUNDS_MIN });
    Ok(Settings {
        rounds,
        duration_s: args.duration().as_secs_f64(),
        warmup_s: WARMUP.as_secs_f64(),
        tool: args.tool.name().to_owned(),
        proxy_cpu: cpu(args.proxy_cpu, 0)?,
        load_cpu: cpu(args.load_cpu, 1)?,
    })
}

/// The cases that were asked for, in the order of the table.
fn cases(args: &CompareArgs) -> Result<Vec<&'static Case>, Unusable> {
    let is_named = |case: &Case, row: &String| *row == case.name || *row == case.number.to_string();
    if let Some(unknown) = args.rows.iter().find(|row| !CASES.iter().any(|case| is_named(case, row))) {
        let known: Vec<String> =
            CASES.iter().map(|case| format!("{} ({})", case.number, case.name)).collect();
        return Err(Unusable(format!("there is no row {unknown:?}; the rows are {}", known.join(", "))));
    }
    let is_asked_for = |case: &&Case| {
        if args.rows.is_empty() {
            case.is_quick || !args.quick
        } else {
            args.rows.iter().any(|row| is_named(case, row))
        }
    };
    Ok(CASES.iter().filter(is_asked_for).collect())
}

/// Everybody who takes part in any case, with their programs.
fn entrants(args: &CompareArgs, cases: &[&Case]) -> Vec<Entrant> {
    let takes_part = |contestant: &Contestant| {
        cases.iter().any(|case| case.contestants(&args.contestants, args.quick).contains(contestant))
    };
    let entrant = |contestant: Contestant| {
        let given = args.programs.iter().find(|(name, _)| *name == contestant);
        let found = contestant.find(given.map(|(_, path)| path.as_path()));
        let (program, fault) = match found {
            Ok(program) => (Some(program), None),
            Err(fault) => (None, Some(fault)),
        };
        Entrant { contestant, role: contestant.role(), program, fault }
    };
    Contestant::ALL.into_iter().filter(takes_part).map(entrant).collect()
}

fn duration(text: &str) -> Result<Duration, String> {
    let least = Duration::from_millis(100);
    let parsed = parse_duration(text).filter(|duration| *duration >= least);
    parsed.ok_or_else(|| "write a duration of at least 100ms, such as 500ms or 2s".to_owned())
}

fn program(text: &str) -> Result<(Contestant, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("write NAME=PATH, such as nginx=/opt/nginx/sbin/nginx")?;
    Ok((name.parse()?, PathBuf::from(path)))
}

/// In place of an error that is none of the contestant's doing.
fn unmeasured(error: impl std::fmt::Display) -> Fault {
    Fault::Unmeasured(error.to_string())
}
