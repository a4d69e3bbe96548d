//! The process: opens the data folder, listens, serves until a signal comes, ends in order. What is served is `api`'s.

mod operations;
mod serve;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing_subscriber::filter::LevelFilter;

use crate::api::{grpc, rest};
use crate::config::{Config, Tls};
use crate::keys;
pub use crate::service::Beginning;
use crate::service::Services;
use crate::service::call::{Call, now_ms};
use crate::store::{self, StoreError};
use crate::tls::{Judged, Terms};

/// Why the program ends with another exit code than 0.
#[derive(Debug)]
pub enum Failure {
    /// Something failed at run time: exit code 1.
    Failed(String),
    /// The arguments or the config cannot be used: exit code 2.
    Unusable(String),
}

/// Threads for what may block: the store's one writer, readers, password hashes.
const BLOCKING_THREADS_MAX: usize = 16;

/// How often what agents have reported is brought to the disk.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// How long requests that are being answered may take once the process has been told to end.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The data folder or a listening address cannot be used.
pub fn run(config: &Config, beginning: Beginning) -> Result<(), Failure> {
    start_log(&config.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime.block_on(serve(config, beginning)).map_err(|error| match error.downcast_ref() {
        // The same files will be no better at the next start.
        Some(StoreError::Missing { .. } | StoreError::Foreign(_)) => Failure::Unusable(format!("{error:#}")),
        _ => Failure::Failed(format!("{error:#}")),
    })
}

/// Copies the store of a master that does not run.
///
/// # Errors
/// The master runs, there is no store, or the file cannot be written.
pub fn back_up(config: &Config, to: &Path) -> Result<(), Failure> {
    has_store(config)?;
    let running = "while the master runs, take GET /api/v1/backup instead";
    let services = Services::open(config, Beginning::Usual)
        .map_err(|error| Failure::Failed(format!("{error} ({running})")))?;
    services.back_up(to).map_err(failed)
}

/// Puts a backup in the place of the store of a master that does not run; gives what to tell the user.
///
/// # Errors
/// The master runs, the file is no backup, or the data folder cannot be written.
pub fn restore(config: &Config, from: &Path) -> Result<String, Failure> {
    keys::make_dir(&config.data_dir).map_err(failed)?;
    Ok(match store::restore(from, &config.data_dir).map_err(failed)? {
        Some(kept) => format!("restored; the store that was there is {}", kept.display()),
        None => "restored".to_owned(),
    })
}

/// Gives a user a new random password in the store of a master that does not run; gives what to tell the caller.
///
/// # Errors
/// The master runs, there is no store, or no such user.
pub fn reset_password(config: &Config, user: Option<&str>) -> Result<String, Failure> {
    start_log(&config.log_level);
    has_store(config)?;
    let call = Call::host(rustix::process::getuid().as_raw(), now_ms());
    let (user, password) =
        Services::reset_password(&config.data_dir, &call, user).map_err(Failure::Failed)?;
    Ok(format!("The password of `{user}` is now {password} (it is not shown again)."))
}

fn has_store(config: &Config) -> Result<(), Failure> {
    if store::is_in(&config.data_dir) {
        return Ok(());
    }
    let message = format!("there is no store in {}: give --data-dir", config.data_dir.display());
    Err(Failure::Unusable(message))
}

async fn serve(config: &Config, beginning: Beginning) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A limit on the size of files is to be an error of the store like a full disk, and not the end of the process.
    let _file_too_large = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?;
    let tls =
        |tls: Option<&Tls>, alpn: &[u8], judged| tls.map(|tls| Terms::read(tls, alpn, judged)).transpose();
    let rest_tls = tls(config.rest.tls.as_ref(), b"http/1.1", Judged::AtOnce)
        .context("TLS of the REST API (rest.tls)")?;
    let grpc_tls =
        tls(config.grpc.tls.as_ref(), b"h2", Judged::Later).context("TLS of the agents' API (grpc.tls)")?;
    let own = [("rest", &rest_tls), ("grpc", &grpc_tls)];
    let own = own.map(|(listener, terms)| Some((listener, terms.as_ref()?.own.not_after_ms)));
    let services = Services::open(config, beginning)?;
    let services = Arc::new(services.with_certificates(own.into_iter().flatten().collect()));
    prepare(&services)?;
    let listener = serve::bind(config.rest_address()).context("the REST API (rest.listen)")?;
    let rest_address = listener.local_addr()?;
    let agents = serve::bind(config.grpc_address()).context("the agents' API (grpc.listen)")?;
    let grpc_address = agents.local_addr()?;
    let (end, ended) = watch::channel(false);
    let rest = serve::Serving {
        listener,
        tls: rest_tls.map(|terms| terms.config.into()),
        router: rest::router(Arc::clone(&services)),
        connections_max: config.limits.connections,
        ended: ended.clone(),
    };
    let rest = tokio::spawn(rest.run());
    let mut agents = spawn_grpc(&services, agents, grpc_tls, ended.clone());
    let judge_every = config.alerts.judge_every;
    let operations = tokio::spawn(operations::run(Arc::clone(&services), judge_every, ended.clone()));
    let flushing = tokio::spawn(flush(Arc::clone(&services), ended));
    tracing::info!(rest = %rest_address, grpc = %grpc_address, data_dir = %config.data_dir.display(), "the master serves");
    tell_systemd(sd_notify::NotifyState::Ready);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        failed = &mut agents => anyhow::bail!("the agents' API ended: {failed:?}"),
    }
    tracing::info!("ending");
    tell_systemd(sd_notify::NotifyState::Stopping);
    let _ = end.send(true);
    // What still runs after that is cut off with the process; the store is whole at any moment.
    let all = async { tokio::join!(rest, agents, operations, flushing) };
    if tokio::time::timeout(END_WITHIN, all).await.is_err() {
        tracing::warn!("some requests did not end in time");
    }
    Ok(())
}

fn spawn_grpc(
    services: &Arc<Services>,
    listener: TcpListener,
    tls: Option<Terms>,
    mut ended: watch::Receiver<bool>,
) -> JoinHandle<anyhow::Result<()>> {
    let services = Arc::clone(services);
    tokio::spawn(async move {
        let ended = async move {
            // An error means that the sender is gone, which is an end, too.
            let _ = ended.wait_for(|is_ended| *is_ended).await;
        };
        grpc::serve(services, listener, tls, ended).await
    })
}

fn prepare(services: &Services) -> anyhow::Result<()> {
    let tell = |first: &crate::service::FirstStart| {
        println!(
            "First start: log in as `admin` with the password {} (it is not shown again).",
            first.password
        );
    };
    services.prepare(now_ms(), tell).map_err(|refusal| anyhow::anyhow!(refusal.message))
}

/// Brings what was only observed to the disk, every now and then and at the end. It feeds systemd's watchdog, since each
/// round shows that the tasks, the threads for what blocks and the store's one writer turn. A disk that refuses to write
/// is no reason to start anew: a store that has failed is opened again here.
async fn flush(services: Arc<Services>, mut ended: watch::Receiver<bool>) {
    loop {
        let is_over = tokio::time::timeout(FLUSH_EVERY, ended.wait_for(|ended| *ended)).await.is_ok();
        let services = Arc::clone(&services);
        match tokio::task::spawn_blocking(move || services.flush()).await {
            // A failing disk was told of when it began to fail, and is tried again with every round.
            Ok(Ok(()) | Err(StoreError::Failing(_))) => {}
            Ok(Err(error)) => tracing::error!(%error, "reports of agents are not on the disk"),
            Err(error) => tracing::error!(%error, "flushing failed"),
        }
        if is_over {
            return;
        }
        if sd_notify::watchdog_enabled().is_some() {
            tell_systemd(sd_notify::NotifyState::Watchdog);
        }
    }
}

fn tell_systemd(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

fn start_log(level: &str) {
    let level = level.parse().unwrap_or(LevelFilter::INFO);
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    // Fails only where a log was started before.
    let _ = lines.with_ansi(is_terminal).with_target(false).try_init();
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}
