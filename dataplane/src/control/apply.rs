//! How a config becomes live: one path, whoever asks.
//!
//! ```text
//! text → Config → names asked → access log opened → new addresses bound         any failure: refused, nothing changed
//!      → Snapshot → to every worker → sockets lent and closed → probes follow   nothing fails any more
//! ```
//! A name that is not answered refuses nothing: its endpoint has no address until it is.
//!
//! It decides nothing about when: the control loop calls it, one config at a time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataplane_core::files::{Files, Standing};
use dataplane_core::snapshot::{Snapshot, diff};
use dataplane_core::stats::Gauge;
use proto::config::{Admin, Config};
use tracing::{info, warn};

use super::access_log::{self, Destination, Writer};
use super::node::{Applied, Node};
use super::probe::Prober;
use super::refusal::Refusal;
use super::resolve::{Answered, Host, NamedEndpoint, Resolver};
use super::sockets::{Change, Inherited, Open, Sockets};
use super::surroundings;
use crate::protocol::Live;
use crate::sys::{files, unix};
use crate::upstream::Shelves;
use crate::worker::Order;

/// What applies configs, and what it has to remember to apply the next one.
#[derive(Debug)]
pub(crate) struct Applier {
    node: Arc<Node>,
    sockets: Sockets,
    /// Sockets of the process that this one took over from, until the first config has taken what it can use.
    inherited: Vec<Inherited>,
    resolver: Resolver,
    prober: Prober,
    access: Option<Writer>,
    /// The config's own file, which nothing may be written to.
    config_file: PathBuf,
    /// The first config: what cannot be changed at run time is as it says.
    first: Option<Arc<Config>>,
}

/// A config that was applied.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Outcome {
    /// Its generation.
    pub(crate) generation: u64,
    /// What the operator should know, one sentence each.
    pub(crate) warnings: Vec<String>,
}

/// A config for which everything that can fail has been done.
struct Prepared {
    config: Arc<Config>,
    files: Files,
    change: Change,
    /// Where the access log goes from now on; none: nowhere, or on as before.
    destination: Option<Destination>,
}

/// Reads and checks a text as [`Applier::apply`] does.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(text: &str) -> Result<Config, Refusal> {
    Ok(Config::parse_with_process_env(text, &hostname())?)
}

impl Applier {
    /// For a node that has no config yet.
    pub(crate) fn new(node: Arc<Node>, inherited: Vec<Inherited>) -> Self {
        let sockets = Sockets::new(node.workers.count());
        Applier {
            node,
            sockets,
            inherited,
            resolver: Resolver::new(Vec::new()),
            prober: Prober::default(),
            access: None,
            config_file: PathBuf::new(),
            first: None,
        }
    }

    /// With the last good answers of the process that this one takes over from.
    pub(crate) fn knowing(self, names: Vec<(Host, Vec<SocketAddr>)>) -> Self {
        Applier { resolver: Resolver::new(names), ..self }
    }

    /// Of a config that stands in this file.
    pub(crate) fn of_file(self, config_file: PathBuf) -> Self {
        Applier { config_file, ..self }
    }

    /// Applies a config, or changes nothing. Dropped before it is done, it has changed nothing: what is waited for comes
    /// first.
    ///
    /// # Errors
    /// Why it was refused.
    pub(crate) async fn apply(&mut self, text: &str) -> Result<Outcome, Refusal> {
        let result = self.try_apply(text).await;
        match &result {
            Ok(outcome) => {
                self.node.count_apply();
                info!(generation = outcome.generation, "config applied");
                outcome.warnings.iter().for_each(|warning| warn!("{warning}"));
            }
            Err(refusal) => {
                self.node.count_refusal();
                // At a start there is nothing that could have changed, and the end of the process says why.
                if self.node.applied().is_some() {
                    warn!(reason = refusal.summary(), "config refused, nothing has changed");
                }
            }
        }
        result
    }

    async fn try_apply(&mut self, text: &str) -> Result<Outcome, Refusal> {
        let config = Arc::new(read(text)?);
        self.resolver.learn(&config).await;
        let before = self.node.applied();
        let before = before.as_ref().map(|applied| applied.live.snapshot.as_ref());
        let before_config = before.map(|snapshot| snapshot.config.as_ref());
        try_admin_access(&config.admin)
            .map_err(|(path, error)| surroundings::unusable_admin_access(text, path, &error))?;
        let destination = open_log(text, &config, before_config, &self.config_file).await?;
        let mut warnings = surroundings::warnings_in_time(&config).await;
        let prepared = self.prepare(text, config, destination, before_config)?;
        let standing = Standing::of(&prepared.config, self.node.workers.count());
        warnings.extend(too_few_files(&prepared.files, &standing, prepared.config.limits.connections));
        warnings.extend(self.resolver.named_endpoints(&prepared.config).iter().filter_map(without_address));
        warnings.extend(
            self.first.as_deref().map(|first| until_next_start(first, &prepared.config)).unwrap_or_default(),
        );
        let generation = before.map_or(1, |snapshot| snapshot.generation + 1);
        self.commit(text, prepared, generation, before)?;
        Ok(Outcome { generation, warnings })
    }

    /// Everything that can fail, but for the names and the access log.
    fn prepare(
        &mut self,
        text: &str,
        config: Arc<Config>,
        destination: Option<Destination>,
        before: Option<&Config>,
    ) -> Result<Prepared, Refusal> {
        // A node that drains has no sockets: all of its listeners are bound anew.
        let bound = before.filter(|_| !self.sockets.open().is_empty());
        let plan = diff(bound, &config);
        let change = self
            .sockets
            .prepare(&plan.listeners, &config, &mut self.inherited)
            .map_err(|failure| surroundings::unbound(text, &config, &failure))?;
        let standing = Standing::of(&config, self.node.workers.count());
        let files = Files::fit(files::raise_limit(), &standing, config.limits.connections);
        Ok(Prepared { config, files, change, destination })
    }

    fn commit(
        &mut self,
        text: &str,
        prepared: Prepared,
        generation: u64,
        before: Option<&Snapshot>,
    ) -> Result<(), Refusal> {
        let Prepared { config, files: divided, change, destination } = prepared;
        self.follow_log(&config, destination)
            .map_err(|error| surroundings::unusable_log(text, &config, &error))?;
        if before.is_none_or(|before| before.config.log.level != config.log.level) {
            self.node.log.set(config.log.level);
        }
        // An origin for each client, as far as the limit allows so many.
        files::make_room(2 * u64::from(divided.connections) + divided.process + divided.control);
        self.node.admission.reconfigure(&config.limits, &divided);
        self.resolver.follow(&config);
        self.first.get_or_insert_with(|| Arc::clone(&config));
        let live = self.build(config, generation, before);
        self.node.workers.post_all(|| Order::Apply(Arc::clone(&live)));
        self.sockets.commit(change, &self.node.workers);
        // What the first config had no use for is closed; the process it came from still has it.
        self.inherited.clear();
        self.prober.follow(&live.snapshot);
        self.node.serve(Applied { live, text: text.into(), bound: self.sockets.bound(), files: divided });
        self.tell_names();
        Ok(())
    }

    fn follow_log(&mut self, config: &Config, destination: Option<Destination>) -> std::io::Result<()> {
        match (destination, &self.access) {
            (Some(destination), Some(writer)) => writer.write_to(destination),
            (Some(destination), None) => self.access = Some(Writer::start(destination)?),
            (None, _) if config.log.access == proto::config::AccessLog::Off => self.access = None,
            (None, _) => {}
        }
        Ok(())
    }

    fn build(&self, config: Arc<Config>, generation: u64, before: Option<&Snapshot>) -> Arc<Live> {
        let workers = self.node.workers.count();
        let known = before.map(Snapshot::health).unwrap_or_default();
        let resolved = self.resolver.endpoints(&config, &known);
        let snapshot = Arc::new(Snapshot::build(config, generation, resolved, before, workers));
        let applied = self.node.applied();
        let endpoints = snapshot.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        let shelves: HashMap<_, _> = endpoints
            .map(|endpoint| {
                let id = endpoint.resolved.id;
                let kept = applied.as_ref().and_then(|applied| applied.live.shelves.get(&id));
                (id, kept.map_or_else(|| Arc::new(Shelves::new(workers)), Arc::clone))
            })
            .collect();
        let access = self.access.as_ref().map(|writer| Arc::clone(writer.queue()));
        let exchanges = (0..workers).map(|_| Gauge::default()).collect();
        Arc::new(Live { snapshot, shelves, access, exchanges })
    }

    /// Begins to look up the names that are due.
    pub(crate) fn look_up_due_names(&mut self) {
        self.resolver.look_up_due();
        self.tell_names();
    }

    /// Waits for the next look-up to end.
    pub(crate) async fn next_answer(&mut self) -> Answered {
        self.resolver.next_answer().await
    }

    /// What came of a look-up. Other addresses than before are served at once, as the same generation.
    pub(crate) fn handle_answer(&mut self, host: &Host, answer: std::io::Result<Vec<SocketAddr>>) {
        let is_changed = self.resolver.handle_answer(host, answer);
        self.tell_names();
        let Some(applied) = self.node.applied().filter(|_| is_changed) else { return };
        let before = &applied.live.snapshot;
        let live = self.build(Arc::clone(&before.config), before.generation, Some(before));
        self.node.workers.post_all(|| Order::Apply(Arc::clone(&live)));
        self.prober.follow(&live.snapshot);
        let (text, bound) = (Arc::clone(&applied.text), applied.bound.clone());
        self.node.serve(Applied { live, text, bound, files: applied.files });
    }

    /// What is known of the names of the live config goes where `/status` and the metrics read it.
    fn tell_names(&self) {
        if let Some(applied) = self.node.applied() {
            let names = self.resolver.named_endpoints(&applied.live.snapshot.config);
            self.node.set_names(names, self.resolver.failures());
        }
    }

    /// The last good answers, for a process that takes over.
    pub(crate) fn known_names(&self) -> Vec<(Host, Vec<SocketAddr>)> {
        self.resolver.known()
    }

    /// Gives a worker that was started again all that it has lost.
    pub(crate) fn equip(&self, worker: usize) {
        let Some(applied) = self.node.applied() else { return };
        self.node.workers.post(worker, Order::Apply(Arc::clone(&applied.live)));
        if self.node.is_draining() {
            self.node.workers.post(worker, Order::Drain);
        } else {
            self.sockets.lend_to(&self.node.workers, worker);
        }
    }

    /// Opens the access log's file again.
    pub(crate) fn reopen_log(&self) {
        if let Some(writer) = &self.access {
            writer.reopen();
        }
    }

    /// Writes the access log's last records, within a deadline.
    pub(crate) fn finish_log(&mut self) {
        if let Some(writer) = self.access.take() {
            writer.finish();
        }
    }

    /// The listening sockets, for a process that takes over.
    pub(crate) fn sockets(&self) -> &[Open] {
        self.sockets.open()
    }

    /// Takes no new connections from now on. `hand_over`: another process has the sockets, and their paths stay.
    pub(crate) fn drain(&mut self, hand_over: bool) {
        self.node.begin_drain();
        self.node.workers.post_all(|| Order::Drain);
        self.sockets.close(!hand_over);
    }

    /// Takes connections again, by the config that was served when the drain began; where that fails the drain goes on.
    /// A node that does not drain is left as it is.
    ///
    /// # Errors
    /// An address was taken meanwhile.
    pub(crate) async fn undrain(&mut self) -> Result<Outcome, Refusal> {
        let Some(applied) = self.node.applied() else {
            return Err(Refusal::busy("no config is applied yet"));
        };
        if !self.node.is_draining() {
            return Ok(Outcome { generation: applied.live.snapshot.generation, warnings: Vec::new() });
        }
        let outcome = self.apply(&applied.text).await?;
        self.node.end_drain();
        self.node.workers.post_all(|| Order::Undrain);
        info!("the drain is over: connections are taken again");
        Ok(outcome)
    }
}

/// The host's name, which is the node's id unless the config has one.
pub(crate) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// The access log of `config` where it is another one than before; it is not to be in `config_file`.
async fn open_log(
    text: &str,
    config: &Config,
    before: Option<&Config>,
    config_file: &Path,
) -> Result<Option<Destination>, Refusal> {
    let log = &config.log.access;
    let unusable = |error| surroundings::unusable_log(text, config, &error);
    let is_in_config = access_log::is_at_in_time(log, config_file).await;
    if matches!(is_in_config, Ok(true)) {
        return Err(surroundings::log_into_config(text, config));
    }
    if before.is_some_and(|before| before.log.access == *log) {
        // It is open, and stays so even where its file system hangs.
        return Ok(None);
    }
    is_in_config.map_err(unusable)?;
    access_log::open(log).await.map_err(unusable)
}

fn without_address(named: &NamedEndpoint) -> Option<String> {
    let NamedEndpoint { cluster, endpoint, unresolved, .. } = named;
    let error = &unresolved.as_ref()?.error;
    Some(format!(
        "the cluster \"{cluster}\" has no address for {endpoint}: {error}. It goes without until the name is there \
         (`getent ahosts` asks for it, too)"
    ))
}

/// The admin socket's rights follow the config, unless its path is another one: then it does at the next start.
fn try_admin_access(admin: &Admin) -> Result<(), (&Path, std::io::Error)> {
    admin
        .socket
        .as_deref()
        .map_or(Ok(()), |path| unix::try_access(&admin.access).map_err(|error| (path, error)))
}

/// What the limit of open files leaves of `limits.connections`, where it leaves less.
fn too_few_files(files: &Files, standing: &Standing, wanted: u32) -> Option<String> {
    let (limit, connections) = (files.limit, files.connections);
    let needed = Files::needed(standing, wanted);
    (connections < wanted).then(|| {
        format!(
            "limits.connections = {wanted} does not fit into {limit} open files: {connections} clients are served at \
             once ({files}). Give the process {needed} files (LimitNOFILE={needed} in the unit, `ulimit -Hn {needed}` in \
             the shell, `--ulimit nofile={needed}` for a container), or write limits.connections = {connections}"
        )
    })
}

/// What a running process does not change.
fn until_next_start(first: &Config, now: &Config) -> Vec<String> {
    let addresses = |admin: &Admin| (admin.listen, admin.socket.clone());
    let is_admin_moved = addresses(&first.admin) != addresses(&now.admin);
    let sections = [("runtime", first.runtime != now.runtime), ("admin", is_admin_moved)];
    let changed = sections.into_iter().filter(|(_, is_changed)| *is_changed);
    changed.map(|(section, _)| format!("[{section}] takes effect at the next start or upgrade")).collect()
}

#[cfg(test)]
mod tests;
