//! The life of a data plane's process, from its config file to its end; and the commands that need no process.

use std::io::{self, ErrorKind, IsTerminal};
use std::path::Path;
use std::sync::Arc;

use dataplane_core::limit::Admission;
use dataplane_core::stats::WorkerStats;
use proto::config::{Config, Driver};
use tracing::warn;

pub use crate::control::Failure;
use crate::control::doctor::{self, Host, Report};
use crate::control::{self, Inheritance, Node, Origin, Start};
use crate::io::{Mode, probe_io_uring};
use crate::sys::{cpu, files, memory};
use crate::worker::{WorkerOptions, Workers};

/// Serves by the config at `path` until a signal ends it.
///
/// # Errors
/// The config cannot be used, or the process cannot begin its work.
pub fn run(path: &Path) -> Result<(), Failure> {
    // First of all: what was inherited is known by its number, and nothing else may get that number.
    memory::use_small_pages();
    let inheritance =
        Inheritance::take().map_err(|error| failed("the sockets of the old process", &error))?;
    let origin = Origin::of_this_process().map_err(|error| failed("this program's path", &error))?;
    // Before there are workers, and for every config again: an operator may change the limits of a process that runs.
    files::raise_limit();
    let text = match &inheritance.config {
        Some(text) => text.clone(),
        None => read(path)?,
    };
    let config = parse(path, &text)?;
    let log = control::start_log(config.log.level).map_err(|error| failed("the log's thread", &error))?;
    let lines = log.lines().clone();
    let ended = mode(config.runtime.driver)
        .and_then(|mode| start_workers(&config, mode, log))
        .map(Arc::new)
        .and_then(|node| serve(Start { path: path.to_owned(), text, config, node, origin, inheritance }));
    lines.flush_within(control::LAST_LINES_WITHIN);
    ended
}

/// Serves on this thread until the node is told to end. Threads that hang are left behind: a look-up that the resolver
/// does not answer does not keep the process from ending.
fn serve(start: Start) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("the control thread", &error))?;
    let ended = runtime.block_on(control::run(start));
    runtime.shutdown_background();
    ended
}

/// Checks the config at `path`; returns what is allowed in it but probably not meant, one sentence each.
///
/// # Errors
/// What is wrong, as `file:line:column`, for people.
pub fn check(path: &Path) -> Result<Vec<String>, Failure> {
    let text = read(path)?;
    let config = parse(path, &text)?;
    control::keep_log_out_of_config(path, &text, &config)?;
    Ok(control::warnings(&config))
}

/// Looks at the host, with the eyes of the config at `path` if one is given.
///
/// # Errors
/// The config cannot be used.
pub fn examine(path: Option<&Path>) -> Result<Report, Failure> {
    let config = path.map(|path| parse(path, &read(path)?)).transpose()?;
    let host = Host { root: Path::new("/"), probe_io_uring: &probe_io_uring };
    Ok(doctor::examine(&host, config.as_ref()))
}

fn read(path: &Path) -> Result<String, Failure> {
    let name = control::name(path);
    let bytes = control::read_config(path).map_err(|error| {
        let message = format!("{}: cannot be read: {error}\n", path.display());
        // A wrong path, a file that is not this user's, or none that a config could be.
        let is_for_good = matches!(
            error.kind(),
            ErrorKind::NotFound
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
                | ErrorKind::PermissionDenied
                | ErrorKind::InvalidInput
                | ErrorKind::FileTooLarge
        );
        if is_for_good { Failure::Unusable(message) } else { Failure::Failed(message) }
    })?;
    proto::config::decode(bytes)
        .map_err(|errors| Failure::Unusable(errors.render(&name, "", io::stderr().is_terminal())))
}

fn parse(path: &Path, text: &str) -> Result<Config, Failure> {
    Config::parse_with_process_env(text, &control::hostname()).map_err(|errors| {
        Failure::Unusable(errors.render(&control::name(path), text, io::stderr().is_terminal()))
    })
}

/// How workers talk to the kernel: as the config says, or the best that this host allows.
fn mode(driver: Driver) -> Result<Mode, Failure> {
    match (driver, probe_io_uring()) {
        (Driver::Epoll, _) => Ok(Mode::Epoll),
        (Driver::Auto | Driver::IoUring, Ok(())) => Ok(Mode::IoUring),
        (Driver::IoUring, Err(error)) => Err(Failure::Failed(format!(
            "runtime.driver is io_uring, which cannot be used here: {error}\n{MEND}\n"
        ))),
        (Driver::Auto, Err(error)) => {
            warn!(%error, "io_uring cannot be used here, epoll is used and costs more: {MEND}");
            Ok(Mode::Epoll)
        }
    }
}

const MEND: &str = "look at `sysctl kernel.io_uring_disabled` (0 allows it), at the seccomp filter of a container, and at \
                    `millrace-dataplane doctor`";

fn start_workers(config: &Config, mode: Mode, log: control::LogSwitch) -> Result<Node, Failure> {
    let count = match config.runtime.workers {
        0 => cpu::allowed().len(),
        count => count,
    };
    let stats: Vec<Arc<WorkerStats>> = (0..count).map(|_| Arc::default()).collect();
    let admission = Arc::new(Admission::new(&config.limits));
    let options = WorkerOptions { count, mode, stats: stats.clone(), admission: Arc::clone(&admission) };
    let workers = Workers::start(&options).map_err(|error| failed("the workers", &error))?;
    Ok(Node::new(workers, stats, admission, mode, log))
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!("{what}: {error}\n"))
}
