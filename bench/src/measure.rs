//! The commands that measure. The servers that they measure against are in `main.rs`, and are built without these too.

use std::process::ExitCode;

use anyhow::Context as _;
use bench::compare::{self, CompareArgs};
use bench::floor::{self, FloorArgs};
use bench::idle::cli::IdleArgs;
use bench::idle::idle;
use bench::load::cli::LoadArgs;
use bench::load::{Unusable, load};
use clap::Subcommand;

use crate::fail;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Relays bytes in one thread, as bare as can be: the limit that proxies are measured against.
    Floor(FloorArgs),
    /// Measures the data plane beside other proxies in interleaved rounds, and writes a report.
    Compare(CompareArgs),
    /// Sends requests to a server at fixed times, checks the answers and measures how long they take.
    Load(LoadArgs),
    /// Holds many connections open and measures what they cost the proxy.
    Idle(IdleArgs),
    /// One process of `load` or `idle`.
    #[command(hide = true)]
    LoadWorker,
}

pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Floor(args) => exit(floor::run(args).context("the relay failed")),
        Command::Load(args) => finish(load(args).map(|record| record.is_good())),
        Command::Idle(args) => finish(idle(args).map(|record| record.valid && !record.failed)),
        Command::Compare(args) => exit(compare::run(args)),
        Command::LoadWorker => exit(bench::load::worker()),
    }
}

/// A measurement that failed or is invalid must not pass for one that can be used.
fn finish(is_good: anyhow::Result<bool>) -> ExitCode {
    match is_good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => exit(Err(error)),
    }
}

fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Unusable>() => fail(&error, 2),
        Err(error) => fail(&error, 1),
    }
}
