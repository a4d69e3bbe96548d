//! `millrace-agent`: the agent's command line. Exit codes: 0 good, 1 failed at run time, 2 unusable arguments or config.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use control_agent::{Failure, agent, config};

/// Millrace agent: stands beside a data plane, takes configs and commands from the master, and reports to it.
#[derive(Parser)]
#[command(name = "millrace-agent", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until a signal ends it: SIGTERM and SIGINT end, SIGHUP reads the config again.
    Run(ConfigFile),
    /// Check a config: errors as file:line:column, with what to write instead.
    Check(ConfigFile),
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
        Command::Run(config) => run(&config.path()),
        Command::Check(config) => check(&config.path()),
    };
    let code = match &result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(_)) => 1,
        Err(Failure::Unusable(_)) => 2,
    };
    if let Err(failure) = result {
        let _ = writeln!(io::stderr(), "{}", failure.message().trim_end());
    }
    ExitCode::from(code)
}

/// One thread does everything but waiting for the disk: an idle agent is to cost nothing.
fn run(config: &Path) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(|error| Failure::Failed(format!("the runtime: {error}\n")))?;
    runtime.block_on(agent::run(config))
}

fn check(path: &Path) -> Result<(), Failure> {
    config::read(path)?;
    // A reader that went away is no failure.
    let _ = writeln!(io::stdout(), "{}: good", path.display());
    Ok(())
}
