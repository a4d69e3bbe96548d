//! `millrace-bench`: the programs that load the data plane and stand in for a model server.

#[cfg(feature = "measure")]
mod measure;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use bench::echo::Echo;
use bench::origin::{Address, Knobs, Origin, OriginOptions};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Tools around the Millrace data plane.
#[derive(Debug, Parser)]
#[command(name = "millrace-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the mock LLM origin until SIGTERM or SIGINT.
    Origin(OriginArgs),
    /// Runs a TCP server that sends back whatever comes, until SIGTERM or SIGINT.
    Echo(EchoArgs),
    /// What measures, where it is built in.
    #[cfg(feature = "measure")]
    #[command(flatten)]
    Measure(measure::Command),
}

#[derive(Debug, Args)]
struct OriginArgs {
    /// IP:PORT (port 0 takes a free one) or unix:PATH; may be given several times.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: Vec<Address>,
    /// Threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Knob of requests that bring none, such as tokens_per_second=50; may be given several times.
    #[arg(long = "knob", value_name = "NAME=VALUE")]
    knobs: Vec<String>,
    /// Different X-Request-IDs that are counted, per worker; 0 counts none.
    #[arg(long, default_value_t = 100_000)]
    request_ids_max: usize,
    /// Writes the port of the first TCP address to this file when it is ready.
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct EchoArgs {
    /// Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// Writes the port to this file when it is ready.
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

/// Exit codes are those of all our programs: 0 good, 1 failed at run time, 2 unusable arguments.
fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Origin(args) => run_origin(args),
        Command::Echo(args) => exit(echo(&args)),
        #[cfg(feature = "measure")]
        Command::Measure(command) => measure::run(&command),
    }
}

fn run_origin(args: OriginArgs) -> ExitCode {
    let defaults = match knobs(&args.knobs) {
        Ok(defaults) => defaults,
        Err(error) => return fail(&error, 2),
    };
    exit(origin(args, defaults))
}

fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn origin(args: OriginArgs, defaults: Knobs) -> anyhow::Result<()> {
    let options = OriginOptions {
        listen: args.listen,
        workers: args.workers.into(),
        defaults,
        request_ids_max: args.request_ids_max,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let stopped = stop_signal()?;
        let origin = Origin::start(options)?;
        if let Some(file) = &args.port_file {
            write_port(&origin, file)?;
        }
        for address in origin.addresses() {
            println!("origin listening on {address}");
        }
        stopped.await;
        origin.stop().context("the origin failed")
    })
}

fn echo(args: &EchoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stopped = stop_signal()?;
        let echo = Echo::bind(args.listen).await;
        let echo = echo.with_context(|| format!("cannot listen on {}", args.listen))?;
        let address = echo.address()?;
        if let Some(file) = &args.port_file {
            write_number(address.port(), file)?;
        }
        println!("echo listening on {address}");
        tokio::select! {
            () = echo.serve() => {}
            () = stopped => {}
        }
        Ok(())
    })
}

/// Resolves on SIGTERM or SIGINT. Made before anything listens, so that no signal finds its default action.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn write_port(origin: &Origin, file: &Path) -> anyhow::Result<()> {
    let port = origin.addresses().iter().find_map(|address| match address {
        Address::Tcp(address) => Some(address.port()),
        Address::Unix(_) => None,
    });
    let port = port.context("--port-file needs a TCP address")?;
    write_number(port, file)
}

/// Written under another name and moved, so that a reader never sees an empty file.
fn write_number(port: u16, file: &Path) -> anyhow::Result<()> {
    let draft = file.with_extension("tmp");
    std::fs::write(&draft, format!("{port}\n"))
        .and_then(|()| std::fs::rename(&draft, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn knobs(written: &[String]) -> anyhow::Result<Knobs> {
    let mut knobs = Knobs::default();
    for pair in written {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        knobs.set(name, value)?;
    }
    Ok(knobs)
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("millrace-bench: {error:#}");
    ExitCode::from(code)
}
