//! The control thread: it applies configs, serves the admin API, hears signals, watches the workers and the origins.
//!
//! One ordinary tokio runtime on the main thread, and one loop that does one thing after another, so that no two of
//! them meet: a reload in the middle of an upgrade, a drain in the middle of a reload. It never touches a client's byte.
//!
//! Nothing blocks this thread for long: what may hang is done elsewhere and has a deadline (`blocking.rs`, `lines.rs`,
//! `access_log.rs`), and a signal that ends the process ends what the loop is waiting for as well.

mod access_log;
mod admin;
mod apply;
mod blocking;
pub mod doctor;
mod lines;
mod log;
mod node;
mod probe;
mod refusal;
mod resolve;
mod signals;
mod sockets;
mod source;
mod status;
mod surroundings;
mod systemd;
mod upgrade;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::config::Config;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use admin::{AdminSockets, Wish};
use apply::Applier;
use refusal::Refusal;
use signals::{Ending, Signals};
use source::Source;

pub(crate) use apply::hostname;
pub(crate) use blocking::read_config;
pub(crate) use log::{LAST_LINES_WITHIN, LogSwitch, start as start_log};
pub(crate) use node::Node;
pub(crate) use surroundings::warnings;
pub(crate) use upgrade::{Inheritance, Origin};

/// How often it is looked whether workers have ended and names are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a drain looks whether it is through.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(20);
/// A drain takes at least this long: the workers have to hear of it, and to empty the queues of their sockets.
const DRAIN_AT_LEAST: Duration = Duration::from_millis(250);
/// Connections without an exchange may stay this long into a drain. Those of silent clients are ended within a second or
/// two; this is for the others, above all for a client in the middle of a request's head.
const DRAIN_IDLE_FOR: Duration = Duration::from_secs(5);
/// How long workers may take to begin, and to end.
const WORKERS_WITHIN: Duration = Duration::from_secs(5);

/// Why the data plane did not run, or stopped running.
#[derive(Debug)]
pub enum Failure {
    /// Arguments or a config that cannot be used, whoever tries: exit code 2.
    Unusable(String),
    /// Something failed that may not fail the next time: exit code 1.
    Failed(String),
}

/// What the control thread begins with.
#[derive(Debug)]
pub(crate) struct Start {
    /// Where the config is.
    pub(crate) path: PathBuf,
    /// What was read from there, or left by the process that this one takes over from.
    pub(crate) text: String,
    /// The same, checked.
    pub(crate) config: Config,
    /// Workers that run, and wait for a config.
    pub(crate) node: Arc<Node>,
    /// How this process was started.
    pub(crate) origin: Origin,
    /// What the process before this one left.
    pub(crate) inheritance: Inheritance,
}

/// Runs the node until it is told to end.
///
/// # Errors
/// The first config cannot be applied, the control thread cannot begin its work, or no worker is left.
pub(crate) async fn run(start: Start) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| failed("signals cannot be heard", &error))?;
    match signals.or_end(Control::begin(start)).await {
        Ok(control) => control?.serve().await,
        Err(_) => {
            info!("told to end before it served");
            Ok(())
        }
    }
}

/// The control loop's state.
struct Control {
    node: Arc<Node>,
    path: PathBuf,
    origin: Origin,
    applier: Applier,
    admin: AdminSockets,
    /// Ends the admin API.
    admin_end: watch::Sender<bool>,
    signals: Signals,
    wishes: mpsc::Receiver<Wish>,
    /// A new process that is starting.
    upgrade: Option<JoinHandle<io::Result<()>>>,
    /// A drain that began now ends with the process.
    is_ending: bool,
    /// How often each worker had been started again when it was last given its sockets.
    restarts: Vec<u64>,
    /// Feeds systemd's watchdog.
    watchdog: JoinHandle<()>,
}

impl Control {
    /// From here on the node serves.
    async fn begin(start: Start) -> Result<Self, Failure> {
        let Start { path, text, config, node, origin, mut inheritance } = start;
        let signals = Signals::listen().map_err(|error| failed("signals cannot be heard", &error))?;
        let is_takeover = inheritance.is_some();
        let source = match &inheritance.config {
            Some(_) => Source::Upgrade,
            None => Source::File { path: path.clone() },
        };
        await_workers(&node).await?;
        let first = first_config(&node, &path, &config, &text, &mut inheritance).await;
        let (admin, applier) = first.map_err(|refusal| first_refused(&refusal, &path, &text))?;
        node.set_source(source);
        let (admin_end, ended) = watch::channel(false);
        let (wish_to, wishes) = mpsc::channel(admin::WISHES_MAX);
        admin
            .serve(&admin::router(Arc::clone(&node), wish_to), &ended)
            .map_err(|error| failed("the admin API cannot be served", &error))?;
        // One that was inherited has the permissions that the old process gave it.
        admin.follow(&config.admin);
        let watchdog = tokio::spawn(systemd::feed_watchdog(node.worker_stats.clone()));
        info!(
            pid = std::process::id(),
            driver = node.mode.as_str(),
            workers = node.workers.count(),
            is_takeover,
            "serving"
        );
        // systemd first: it has to know the new main process before the old one ends.
        systemd::ready().await;
        inheritance.tell_ready();
        let restarts = node.workers.restarts();
        Ok(Control {
            node,
            path,
            origin,
            applier,
            admin,
            admin_end,
            signals,
            wishes,
            upgrade: None,
            is_ending: false,
            restarts,
            watchdog,
        })
    }

    /// Does what is asked for, one thing after another, until one of them is to end.
    async fn serve(mut self) -> Result<(), Failure> {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut ending = Ok(());
            tokio::select! {
                signal = self.signals.next() => match signal {
                    signals::Wish::Reload => ending = self.reload().await,
                    signals::Wish::Upgrade => self.begin_upgrade(),
                    signals::Wish::End(how) => ending = Err(how),
                },
                Some(wish) = self.wishes.recv() => ending = self.grant(wish).await,
                (host, answer) = self.applier.next_answer() => self.applier.handle_answer(&host, answer),
                outcome = finished(&mut self.upgrade) => {
                    self.upgrade = None;
                    match outcome {
                        Ok(()) => return self.drain_and_stop(true).await,
                        Err(error) => error!(%error, "the upgrade failed, this process goes on"),
                    }
                }
                () = self.node.workers.restarted() => self.equip_restarted(),
                _ = look.tick() => {
                    if self.node.workers.have_ended() {
                        self.stop(true).await?;
                        return Err(Failure::Failed("no worker is left: the log above says why".to_owned()));
                    }
                    self.applier.look_up_due_names();
                }
            }
            match ending {
                Ok(()) => {}
                Err(Ending::Drained) => return self.drain_and_stop(false).await,
                Err(Ending::Now) => return self.stop(true).await,
            }
        }
    }

    /// SIGHUP: the file again, and the access log's file again. Also ends what systemd was told began. Errors: a signal
    /// ends the process meanwhile.
    async fn reload(&mut self) -> Result<(), Ending> {
        systemd::reloading().await;
        self.applier.reopen_log();
        let path = self.path.clone();
        let reading = blocking::within(blocking::FILE_WITHIN, move || read_config(&path));
        match self.signals.or_end(reading).await?.map(proto::config::decode) {
            Ok(Ok(text)) => {
                // A refusal is told of where it happens.
                if self.apply(&text).await?.is_ok() {
                    self.follow_file();
                }
            }
            Ok(Err(errors)) => {
                self.node.count_refusal();
                warn!(path = %self.path.display(), %errors, "the config cannot be read, nothing has changed");
            }
            Err(error) => {
                self.node.count_refusal();
                warn!(path = %self.path.display(), %error, "the config cannot be read, nothing has changed");
            }
        }
        systemd::ready().await;
        Ok(())
    }

    /// The file's config is served from now on, whatever was served before.
    fn follow_file(&self) {
        let file = Source::File { path: self.path.clone() };
        let Some(before) = self.node.set_source(file.clone()) else { return };
        if before.source != file {
            let since = humantime::format_rfc3339_seconds(before.since);
            warn!(%since, "config of {} replaced by {file}", before.source);
        }
    }

    /// Errors: a signal ends the process meanwhile.
    async fn grant(&mut self, wish: Wish) -> Result<(), Ending> {
        match wish {
            Wish::Apply { text, source, reply } => {
                let outcome = self.apply(&text).await?;
                if outcome.is_ok() {
                    self.node.set_source(source);
                }
                // Who asked may have gone away: the config is applied all the same.
                let _ = reply.send(outcome);
            }
            Wish::Drain { reply } => {
                if !self.node.is_draining() {
                    info!("draining: no new connections are taken");
                    self.applier.drain(false);
                }
                let _ = reply.send(());
            }
            Wish::Undrain { reply } => {
                let _ = reply.send(self.undrain().await?);
            }
        }
        Ok(())
    }

    async fn undrain(&mut self) -> Result<Result<apply::Outcome, Refusal>, Ending> {
        if self.is_ending {
            return Ok(Err(Refusal::busy("the process is ending")));
        }
        self.signals.or_end(self.applier.undrain()).await
    }

    async fn apply(&mut self, text: &str) -> Result<Result<apply::Outcome, Refusal>, Ending> {
        if self.upgrade.is_some() {
            return Ok(Err(Refusal::busy("an upgrade is under way: send the config to the new process")));
        }
        if self.node.is_draining() {
            return Ok(Err(Refusal::busy("the node is draining")));
        }
        let outcome = self.signals.or_end(self.applier.apply(text)).await?;
        if outcome.is_ok()
            && let Some(applied) = self.node.applied()
        {
            self.admin.follow(&applied.live.snapshot.config.admin);
        }
        Ok(outcome)
    }

    /// SIGUSR2.
    fn begin_upgrade(&mut self) {
        if self.upgrade.is_some() || self.node.is_draining() {
            warn!("an upgrade or a drain is under way, another upgrade is not begun");
            return;
        }
        let applied = self.node.applied();
        // The new process reads the file by itself.
        let source = self.node.source().map(|sourced| sourced.source);
        let is_of_file = matches!(source, Some(Source::File { .. }));
        let text = applied.as_ref().filter(|_| !is_of_file).map(|applied| applied.text.as_ref());
        let names = self.applier.known_names();
        match self.origin.upgrade(self.applier.sockets(), &self.admin, text, &names) {
            Ok(mut upgrade) => {
                info!(pid = upgrade.pid(), "a new process was started, and takes over when it serves");
                self.upgrade = Some(tokio::spawn(async move { upgrade.ready().await }));
            }
            Err(error) => error!(%error, "the upgrade failed, this process goes on"),
        }
    }

    /// Workers that were started again get their sockets back.
    fn equip_restarted(&mut self) {
        let restarts = self.node.workers.restarts();
        for (worker, (now, before)) in restarts.iter().zip(&self.restarts).enumerate() {
            if now != before {
                self.applier.equip(worker);
            }
        }
        self.restarts = restarts;
    }

    /// Lets exchanges finish, as long as the config says. `handed_over`: another process has the sockets.
    async fn drain_and_stop(mut self, handed_over: bool) -> Result<(), Failure> {
        let drain_timeout =
            self.node.applied().map(|applied| applied.live.snapshot.config.limits.drain_timeout);
        let began = Instant::now();
        self.is_ending = true;
        info!(
            streams = self.node.streams(),
            handed_over, "draining: the process ends when its exchanges have"
        );
        if handed_over {
            // From here on the new process speaks for the service.
            self.watchdog.abort();
            self.admin_end.send_replace(true);
        } else {
            systemd::stopping().await;
        }
        self.applier.drain(handed_over);
        let mut look = interval(DRAIN_LOOK_EVERY);
        while !self.is_drained(began.elapsed()) {
            if drain_timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
                warn!(streams = self.node.streams(), "the drain took too long, its exchanges are cut");
                break;
            }
            tokio::select! {
                signal = self.signals.next() => if signal == signals::Wish::End(Ending::Now) { break },
                Some(wish) = self.wishes.recv() => if self.grant(wish).await == Err(Ending::Now) { break },
                _ = look.tick() => {}
            }
        }
        self.stop(!handed_over).await
    }

    fn is_drained(&self, since: Duration) -> bool {
        let is_idle = self.node.streams() == 0;
        let is_empty = self.node.connections() == 0;
        since >= DRAIN_AT_LEAST && is_idle && (is_empty || since >= DRAIN_IDLE_FOR)
    }

    /// Ends the workers. `owns_paths`: nobody else listens on the paths of the Unix sockets.
    ///
    /// # Errors
    /// A worker does not end: the process ends without it.
    async fn stop(mut self, owns_paths: bool) -> Result<(), Failure> {
        if !self.node.is_draining() {
            self.applier.drain(!owns_paths);
        }
        self.admin_end.send_replace(true);
        if owns_paths {
            self.admin.unlink();
        }
        self.node.workers.post_all(|| crate::worker::Order::Stop);
        let ended = async {
            let mut look = interval(DRAIN_LOOK_EVERY);
            while !self.node.workers.have_ended() {
                look.tick().await;
            }
        };
        let have_ended = tokio::time::timeout(WORKERS_WITHIN, ended).await.is_ok();
        self.applier.finish_log();
        if !have_ended {
            return Err(Failure::Failed("a worker did not end in time".to_owned()));
        }
        info!("stopped");
        Ok(())
    }
}

/// Waits for a new process, if there is one that is starting.
async fn finished(upgrade: &mut Option<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    match upgrade {
        Some(task) => task.await.map_err(io::Error::other)?,
        None => std::future::pending().await,
    }
}

/// Workers have to turn before anything is bound: a ring that cannot be set up is a failed start, not a deaf node.
async fn await_workers(node: &Node) -> Result<(), Failure> {
    let running = async {
        let mut look = interval(Duration::from_millis(2));
        while !node.workers.are_running() && !node.workers.have_ended() {
            look.tick().await;
        }
    };
    let in_time = tokio::time::timeout(WORKERS_WITHIN, running).await.is_ok();
    if in_time && node.workers.are_running() {
        return Ok(());
    }
    Err(Failure::Failed("the workers cannot run: the log above says why".to_owned()))
}

/// Binds the admin API and applies the first config, or neither.
async fn first_config(
    node: &Arc<Node>,
    path: &Path,
    config: &Config,
    text: &str,
    inheritance: &mut Inheritance,
) -> Result<(AdminSockets, Applier), Refusal> {
    let inherited = std::mem::take(&mut inheritance.admin);
    let admin = AdminSockets::bind(&config.admin, inherited).map_err(|failure| failure.refusal(text))?;
    let mut applier = Applier::new(Arc::clone(node), std::mem::take(&mut inheritance.listeners))
        .knowing(std::mem::take(&mut inheritance.names))
        .of_file(path.to_owned());
    match applier.apply(text).await {
        Ok(_) => Ok((admin, applier)),
        Err(refusal) => {
            // The paths of a process that goes on are still its own.
            admin.unlink_own();
            Err(refusal)
        }
    }
}

/// Refuses an access log that would be written into the config's own file at `path`.
pub(crate) fn keep_log_out_of_config(path: &Path, text: &str, config: &Config) -> Result<(), Failure> {
    if access_log::is_at(&config.log.access, path) {
        return Err(first_refused(&surroundings::log_into_config(text, config), path, text));
    }
    Ok(())
}

fn first_refused(refusal: &Refusal, path: &Path, text: &str) -> Failure {
    let rendered = refusal.render(&name(path), text, false);
    if refusal.cause().may_pass() { Failure::Failed(rendered) } else { Failure::Unusable(rendered) }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!("{what}: {error}"))
}

/// The file's name as messages have it.
pub(crate) fn name(path: &Path) -> String {
    path.display().to_string()
}
