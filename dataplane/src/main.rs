//! `millrace-dataplane`: the forwarder's command line. Exit codes: 0 good, 1 failed at run time, 2 unusable arguments or
//! config.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use dataplane::server::{self, Failure};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Millrace data plane: a forwarder for streaming AI traffic.
#[derive(Parser)]
#[command(name = "millrace-dataplane", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until a signal ends it: SIGTERM drains, SIGINT ends at once, SIGHUP reloads, SIGUSR2 upgrades.
    Run(ConfigFile),
    /// Check a config: errors as file:line:column, with what to write instead.
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Print nothing if the config is good.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Look at this host: what would slow the data plane down or keep it from starting, with the command that mends it.
    Doctor {
        /// The config file; without it the defaults are looked at.
        #[arg(short, long)]
        config: Option<PathBuf>,
    },
    /// Print the JSON Schema of the config file.
    Schema,
}

/// Where the config is.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct ConfigFile {
    /// The config file.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The config file, as with -c.
    file: Option<PathBuf>,
}

impl ConfigFile {
    /// clap sees to it that one of the two is there.
    fn path(self) -> PathBuf {
        self.config.or(self.file).unwrap_or_default()
    }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(config) => server::run(&config.path()).map(|()| ExitCode::SUCCESS),
        Command::Check { config, quiet } => check(&config.path(), quiet),
        Command::Doctor { config } => doctor(config.as_deref()),
        Command::Schema => Ok(print(&format!("{:#}\n", proto::config::schema()))),
    };
    match result {
        Ok(code) => code,
        Err(Failure::Failed(message)) => complain(&message, 1),
        Err(Failure::Unusable(message)) => complain(&message, 2),
    }
}

fn check(config: &Path, quiet: bool) -> Result<ExitCode, Failure> {
    let warnings = server::check(config)?;
    if quiet {
        return Ok(ExitCode::SUCCESS);
    }
    let shown = config.display();
    let warnings: String = warnings.iter().map(|warning| format!("{shown}: warning: {warning}\n")).collect();
    Ok(print(&format!("{warnings}{shown}: good\n")))
}

fn doctor(config: Option<&Path>) -> Result<ExitCode, Failure> {
    let report = server::examine(config)?;
    print(&report.render(io::stdout().is_terminal()));
    Ok(ExitCode::from(report.exit_code()))
}

/// A reader that went away (`schema | head`) is no failure.
fn print(text: &str) -> ExitCode {
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// A pipe that nobody reads keeps no process from ending.
fn complain(message: &str, code: u8) -> ExitCode {
    let line = format!("{}\n", message.trim_end());
    let (written, is_written) = mpsc::channel::<()>();
    let writing = move || {
        let _ = io::stderr().write_all(line.as_bytes());
        drop(written);
    };
    if std::thread::Builder::new().spawn(writing).is_ok() {
        let _ = is_written.recv_timeout(COMPLAINT_WITHIN);
    }
    ExitCode::from(code)
}

/// How long the reader of standard error may take: anybody who reads is far faster.
const COMPLAINT_WITHIN: Duration = Duration::from_secs(1);
