//! The driver: one loop that hands events to the machine and carries out what it wants, each thing in a task of its own
//! that answers with an event. It decides nothing.

mod store_work;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::config::agent::AgentConfig;
use proto::config::{Config, Role};
use proto::fleet::{CommandId, ConfigDigest, NodeCredential, NodeId};
use proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::command::{self, Systemd};
use crate::dataplane::Dataplane;
use crate::log::LogSwitch;
use crate::master::{self, OUTBOX_MAX};
use crate::report::host::Host;
use crate::report::{metrics, unix_ms};
use crate::signals::{Signals, Wish};
use crate::state::{
    Action, Agent, Event, Identity, LinkFailure, LinkFailureKind, Published, Refusal, Relink, Start,
};
use crate::store::Store;
use crate::{Failure, config, systemd};

use store_work::StoreWork;

/// Events that may wait for the loop; who has more to say waits.
const EVENTS_MAX: usize = 64;
/// Room in the outbox below which no command's output is taken: reports must still find a place.
const OUTBOX_RESERVE: usize = 16;
/// How long what was said last may take to be sent when a session is closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Runs the agent until a signal ends it.
///
/// # Errors
/// The config cannot be used, or the state folder cannot.
pub async fn run(path: &Path) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| failed("signals cannot be heard", &error))?;
    let config = config::read(path)?;
    let log = LogSwitch::start(config.log_level);
    let mut driver = Driver::begin(path, config, log)?;
    systemd::ready();
    driver.serve(&mut signals).await;
    systemd::stopping();
    driver.stop().await;
    Ok(())
}

/// Everything that the machine's wishes are carried out with.
struct Driver {
    path: PathBuf,
    config: AgentConfig,
    log: LogSwitch,
    began: Instant,
    agent: Agent,
    instance_id: [u8; 16],
    credential: NodeCredential,
    /// What is shown where the master does not know the credential: see [`Driver::connect_anew`].
    previous: Option<NodeCredential>,
    /// What the node enrols with.
    enrolling: Option<NodeCredential>,
    store: Store,
    dataplane: Dataplane,
    systemd: Systemd,
    host: Host,
    events: mpsc::Receiver<Event>,
    event_to: mpsc::Sender<Event>,
    /// What commands write: apart, so that it can be left waiting while the master is slow.
    output: mpsc::Receiver<Event>,
    output_to: mpsc::Sender<Event>,
    session: Option<Session>,
    commands: HashMap<CommandId, JoinHandle<()>>,
    /// The store does one thing after another.
    store_work: mpsc::Sender<StoreWork>,
}

struct Session {
    number: u64,
    /// What it was opened with.
    credential: NodeCredential,
    /// Of the certificates and the key that it was opened with.
    files: ConfigDigest,
    outbox: mpsc::Sender<v1::AgentMessage>,
    task: JoinHandle<()>,
}

impl Driver {
    fn begin(path: &Path, config: AgentConfig, log: LogSwitch) -> Result<Self, Failure> {
        let store = Store::open(&config.state_dir)
            .map_err(|error| failed(&format!("state.dir {}", config.state_dir.display()), &error))?;
        let (credential, is_enrolled) = credential(&store, &config)?;
        let found = store.load();
        for problem in &found.problems {
            error!("{problem}");
        }
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| failed("randomness", &io::Error::other(error)))?;
        let (instance_id, seed) = random.split_at(16);
        let instance_id = <[u8; 16]>::try_from(instance_id).unwrap_or_default();
        let seed = u64::from_le_bytes(<[u8; 8]>::try_from(seed).unwrap_or_default());
        let systemd = Systemd::new(&config.dataplane.unit);
        let host = Host::new();
        let start = Start {
            identity: identity(&config, instance_id, &systemd, &host),
            is_enrolled,
            can_enroll: can_enroll(&config),
            applied: found.applied,
            candidate: found.candidate,
            problems: found.problems,
            seed,
        };
        tell_start(&start, &config);
        let (event_to, events) = mpsc::channel(EVENTS_MAX);
        // One piece only: what is written waits in the pipe of its program.
        let (output_to, output) = mpsc::channel(1);
        Ok(Self {
            path: path.to_owned(),
            dataplane: Dataplane::at(&config.dataplane.socket),
            config,
            log,
            began: Instant::now(),
            agent: Agent::new(start, Box::new(check_text)),
            instance_id,
            previous: previous(&store, &credential),
            credential,
            enrolling: None,
            store_work: store_work::spawn(store.clone(), event_to.clone()),
            store,
            systemd,
            host,
            events,
            event_to,
            output,
            output_to,
            session: None,
            commands: HashMap::new(),
        })
    }

    /// Until a signal ends it.
    async fn serve(&mut self, signals: &mut Signals) {
        let mut watchdog = systemd::Watchdog::start();
        loop {
            self.carry_out_all();
            let timeout = self.agent.poll_timeout().map(|at| self.began + at);
            tokio::select! {
                wish = signals.next() => match wish {
                    Wish::Reload => self.reload(),
                    Wish::Stop => return,
                },
                Some(event) = self.events.recv() => self.handle(event),
                Some(event) = self.output.recv(), if self.has_room_for_output() => self.handle(event),
                () = sleep_until(timeout) => self.agent.handle_timeout(self.began.elapsed()),
                () = watchdog.tick() => {}
            }
        }
    }

    /// Says goodbye, if the master listens.
    async fn stop(&mut self) {
        self.handle_quietly(Event::Stop);
        let session = self.session.take();
        self.carry_out_all();
        if let Some(Session { outbox, task, .. }) = session {
            drop(outbox);
            if tokio::time::timeout(CLOSE_WITHIN, task).await.is_err() {
                debug!("the master did not end the session in time");
            }
        }
        info!("stopped");
    }

    /// As `handle`, and sends what comes of it at once: the session is about to be taken away.
    fn handle_quietly(&mut self, event: Event) {
        self.agent.handle(self.began.elapsed(), event);
        while let Some(action) = self.agent.poll_action() {
            if !matches!(action, Action::Close { .. }) {
                self.carry_out(action);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        self.note(&event);
        if let Event::Ended { command, .. } = &event {
            self.commands.remove(command);
        }
        if matches!(event, Event::Enrolled(Ok(())))
            && let Some(enrolled) = self.enrolling.take()
        {
            (self.credential, self.previous) = (enrolled, None);
        }
        if matches!(event, Event::CredentialKept(Ok(()))) {
            self.read_credential();
        }
        if let Event::Disconnected { session, failure } = &event
            && failure.kind == LinkFailureKind::Unauthenticated
            && self.connect_anew(*session)
        {
            return;
        }
        self.agent.handle(self.began.elapsed(), event);
    }

    fn carry_out_all(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        let dataplane = self.dataplane.clone();
        match action {
            Action::Enroll => self.enroll(),
            Action::Connect { session } => self.connect(session),
            Action::Send { session, message } => self.send(session, *message),
            Action::Close { session, why } => self.close(session, &why),
            Action::Observe => self.answer(async move { Event::Observed(dataplane.observe().await) }),
            Action::ReadConfig => {
                self.answer(async move { Event::ConfigRead(dataplane.read("/config").await) })
            }
            Action::SaveCandidate(config) => self.store(StoreWork::Save(config)),
            Action::Promote(config) => self.store(StoreWork::Promote(config)),
            Action::DropCandidate => self.store(StoreWork::Drop),
            Action::MakeCredential => {
                self.store(StoreWork::MakeCredential(self.credential.node().clone()));
            }
            Action::KeepCredential => self.store(StoreWork::KeepCredential),
            Action::Put(config) => {
                self.answer(async move { Event::Put(dataplane.put_config(config.text()).await) });
            }
            Action::Sample => {
                let event = Event::Sampled { at_unix_ms: unix_ms(), host: self.host.sample() };
                self.agent.handle(self.began.elapsed(), event);
            }
            Action::Scrape => self.answer(async move {
                let text = dataplane.read("/metrics").await;
                Event::Scraped(text.map(|text| metrics::parse(&text, unix_ms())))
            }),
            Action::Run { command, task } => {
                let events = self.event_to.clone();
                let (id, systemd, output) = (command.clone(), self.systemd.clone(), self.output_to.clone());
                info!(%command, ?task, "a command is run");
                let running = tokio::spawn(async move {
                    let end = command::run(id.clone(), task, dataplane, systemd, output.clone()).await;
                    // Behind its output, which takes the same way.
                    drop(output.reserve().await);
                    let _ = events.send(Event::Ended { command: id, end }).await;
                });
                self.commands.insert(command, running);
            }
            Action::Abort { command } => {
                if let Some(running) = self.commands.remove(&command) {
                    running.abort();
                }
            }
        }
    }

    /// Does something beside the loop, which answers with an event.
    fn answer(&self, work: impl Future<Output = Event> + Send + 'static) {
        let events = self.event_to.clone();
        tokio::spawn(async move {
            // Fails only where the agent ends.
            let _ = events.send(work.await).await;
        });
    }

    fn store(&self, work: StoreWork) {
        if self.store_work.try_send(work).is_err() {
            error!("the store does not keep up");
        }
    }

    /// Each time with the same new credential, until the master has enrolled it.
    fn enroll(&mut self) {
        let credential = match self.store.enrolling_credential(self.credential.node()) {
            Ok(credential) => credential,
            Err(error) => {
                let failure = transient(format!("a new credential cannot be kept: {error}"));
                return self.answer(async move { Event::Enrolled(Err(failure)) });
            }
        };
        self.enrolling = Some(credential.clone());
        let node = &self.config.node;
        let request = v1::EnrollRequest {
            join_token: String::new(),
            node_id: node.id.clone(),
            credential_sha256: credential.verifier().as_bytes().to_vec().into(),
            role: role(node.role).into(),
            region: node.region.clone(),
            hostname: self.host.hostname(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (master, store) = (self.config.master.clone(), self.store.clone());
        self.answer(async move {
            let mut result = master::enroll(&master, request).await;
            if result.as_ref().is_err_and(|failure| failure.kind == LinkFailureKind::UsedCredential)
                && let Err(error) = store.drop_enrolling_credential()
            {
                warn!(%error, "a credential that is not taken cannot be removed");
            }
            if result.is_ok() {
                let kept = store.keep_credential(&credential);
                result = kept.map_err(|error| transient(format!("the credential cannot be kept: {error}")));
            }
            Event::Enrolled(result)
        });
    }

    fn connect(&mut self, number: u64) {
        self.connect_with(number, self.credential.clone());
    }

    /// The master does not know the credential: one that was restored from a backup may know the one before, and one that
    /// has lost nothing takes neither. Whether that is tried.
    fn connect_anew(&mut self, number: u64) -> bool {
        let is_first_try =
            |session: &Session| session.number == number && session.credential == self.credential;
        let Some(previous) =
            self.previous.clone().filter(|_| self.session.as_ref().is_some_and(is_first_try))
        else {
            return false;
        };
        self.connect_with(number, previous);
        true
    }

    fn connect_with(&mut self, number: u64, credential: NodeCredential) {
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let (master, shown) = (self.config.master.clone(), credential.clone());
        let (register, files) = (self.agent.registration(), master::files_digest(&master));
        let events = self.event_to.clone();
        let task = tokio::spawn(master::session(number, master, shown, register, messages, events));
        if let Some(before) = self.session.replace(Session { number, credential, files, outbox, task }) {
            before.end();
        }
    }

    fn send(&mut self, number: u64, message: v1::AgentMessage) {
        let Some(session) = self.session.as_ref().filter(|session| session.number == number) else { return };
        if session.outbox.try_send(message).is_err() {
            let failure = transient("the master takes no messages".to_owned());
            if let Some(session) = self.session.take() {
                session.task.abort();
            }
            self.handle(Event::Disconnected { session: number, failure });
        }
    }

    /// The credential on the disk is another one now.
    fn read_credential(&mut self) {
        match credential(&self.store, &self.config) {
            Ok((credential, _)) => {
                self.previous = previous(&self.store, &credential);
                self.credential = credential;
                info!("the credential was replaced");
            }
            Err(failure) => error!("{}", failure.message().trim_end()),
        }
    }

    fn close(&mut self, number: u64, why: &str) {
        if let Some(session) = self.session.take_if(|session| session.number == number) {
            info!(why, "the session is closed");
            session.end();
        }
    }

    fn has_room_for_output(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.outbox.capacity() > OUTBOX_RESERVE)
    }

    /// SIGHUP: the agent's own config again. A session whose terms are the same goes on.
    fn reload(&mut self) {
        systemd::reloading();
        match config::read(&self.path) {
            Ok(config) => self.reconfigure(config),
            Err(failure) => {
                warn!("the config is refused, nothing has changed:\n{}", failure.message().trim_end())
            }
        }
        systemd::ready();
    }

    fn reconfigure(&mut self, config: AgentConfig) {
        if config.state_dir != self.config.state_dir {
            warn!("state.dir is taken at the next start: until then it stays where it is");
        }
        // Renewed certificates are shown at once, so that nobody is warned of those before.
        let has_same_files = |session: &Session| session.files == master::files_digest(&config.master);
        // Where there is no session, a reload asks for another try: what was in the way may have been put right in a file.
        let is_same_link = config.node == self.config.node
            && config.master == self.config.master
            && self.session.as_ref().is_some_and(has_same_files);
        self.log.set(config.log_level);
        self.dataplane = Dataplane::at(&config.dataplane.socket);
        self.systemd = Systemd::new(&config.dataplane.unit);
        self.config = config;
        info!(session_goes_on = is_same_link, "the config was read again");
        let link = if is_same_link { None } else { self.relink() };
        self.agent.handle(self.began.elapsed(), Event::Reconfigured { link });
    }

    /// None: there is no credential for the new identity, and the old one goes on.
    fn relink(&mut self) -> Option<Relink> {
        match credential(&self.store, &self.config) {
            Ok((credential, is_enrolled)) => {
                self.previous = previous(&self.store, &credential);
                self.credential = credential;
                let identity = identity(&self.config, self.instance_id, &self.systemd, &self.host);
                Some(Relink { identity, is_enrolled, can_enroll: can_enroll(&self.config) })
            }
            Err(failure) => {
                error!("{}", failure.message().trim_end());
                None
            }
        }
    }

    /// What an operator wants to read in the log.
    fn note(&self, event: &Event) {
        match event {
            Event::Enrolled(Ok(())) => info!("enrolled"),
            Event::Enrolled(Err(failure)) => {
                warn!(reason = failure.message, "the node could not be enrolled")
            }
            Event::Disconnected { failure, .. } => warn!(reason = failure.message, "no master"),
            Event::Received { message, .. } => note_message(message),
            Event::Put(outcome) => info!(?outcome, "a config was given to the data plane"),
            Event::Saved(Err(error)) | Event::Promoted(Err(error)) => {
                error!(error, "a config cannot be kept")
            }
            Event::CredentialMade(Err(error)) | Event::CredentialKept(Err(error)) => {
                error!(error, "a new credential cannot be kept: the one that is used stays")
            }
            Event::Ended { command, end } => info!(%command, outcome = ?end.outcome, "a command has ended"),
            Event::Observed(_)
            | Event::ConfigRead(_)
            | Event::Saved(Ok(()))
            | Event::Promoted(Ok(()))
            | Event::Sampled { .. }
            | Event::Scraped(_)
            | Event::Wrote { .. }
            | Event::CredentialMade(Ok(_))
            | Event::CredentialKept(Ok(()))
            | Event::Reconfigured { .. }
            | Event::Stop => {}
        }
    }
}

impl Session {
    /// What was said last is still sent, but not for ever.
    fn end(self) {
        let Self { outbox, mut task, .. } = self;
        drop(outbox);
        tokio::spawn(async move {
            if tokio::time::timeout(CLOSE_WITHIN, &mut task).await.is_err() {
                task.abort();
            }
        });
    }
}

fn note_message(message: &v1::MasterMessage) {
    use v1::master_message::Kind;
    match &message.kind {
        Some(Kind::Welcome(welcome)) => {
            info!(session = welcome.session_id, master = welcome.master_version, "registered");
        }
        Some(Kind::ConfigOffer(offer)) => {
            let config = offer.config.clone().unwrap_or_default();
            info!(revision = config.revision, version = config.version, "a config is offered");
        }
        Some(Kind::Goodbye(goodbye)) => info!(reason = ?goodbye.reason(), "the master ends the session"),
        Some(Kind::CredentialWanted(_)) => {
            info!("the master wants another credential in the place of this one")
        }
        Some(
            Kind::HeartbeatAck(_)
            | Kind::Command(_)
            | Kind::CommandCancel(_)
            | Kind::Intervals(_)
            | Kind::CredentialTaken(_),
        ) => {}
        None => warn!("the master said something that this agent does not know"),
    }
}

fn tell_start(start: &Start, config: &AgentConfig) {
    let last_good = start.applied.as_ref().map_or(0, Published::revision);
    info!(node = config.node.id, master = config.master.url, last_good, "started");
    if config.master.tls.is_none() {
        warn!("master.insecure: the credential and the configs go over the network in the clear");
    }
    if !start.is_enrolled && !start.can_enroll {
        warn!("the node is not enrolled, and there is neither a join token nor a client certificate");
    }
}

/// Whether a text is a valid config, by the same code as the data plane's `check`. Values from the environment are the
/// data plane's own: a text that names one which is not known here is left to the data plane.
fn check_text(text: &str) -> Result<(), Refusal> {
    let is_unknown = std::cell::Cell::new(false);
    let env = |name: &str| {
        let value = std::env::var(name).ok();
        is_unknown.set(is_unknown.get() || value.is_none());
        value
    };
    match Config::parse(text, &env, "localhost") {
        Ok(_) => Ok(()),
        Err(_) if is_unknown.get() => Ok(()),
        Err(errors) => {
            let problems: Vec<v1::ConfigProblem> = errors.as_slice().iter().map(problem).collect();
            let message = errors.as_slice().first().map(ToString::to_string).unwrap_or_default();
            Err(Refusal { reason: v1::ConfigRefusal::Invalid, message, problems })
        }
    }
}

fn problem(error: &proto::config::ConfigError) -> v1::ConfigProblem {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    v1::ConfigProblem {
        path: error.path.clone(),
        line: number(error.line),
        column: number(error.column),
        message: error.message.clone(),
        help: error.help.clone().unwrap_or_default(),
    }
}

fn identity(config: &AgentConfig, instance_id: [u8; 16], systemd: &Systemd, host: &Host) -> Identity {
    Identity {
        node_id: config.node.id.clone(),
        instance_id,
        role: role(config.node.role),
        region: config.node.region.clone(),
        capabilities: systemd.capabilities(),
        host: host.info(),
    }
}

fn role(role: Role) -> v1::Role {
    match role {
        Role::Edge => v1::Role::Edge,
        Role::Core => v1::Role::Core,
    }
}

/// A join token, or a client certificate that stands for one.
fn can_enroll(config: &AgentConfig) -> bool {
    let has_certificate = config.master.tls.as_ref().is_some_and(|tls| tls.identity.is_some());
    config.master.join_token.is_some() || has_certificate
}

fn credential(store: &Store, config: &AgentConfig) -> Result<(NodeCredential, bool), Failure> {
    let node: NodeId =
        config.node.id.parse().map_err(|error| Failure::Unusable(format!("node.id: {error}\n")))?;
    store.credential(&node).map_err(|error| failed("the node's credential", &error))
}

/// None, too, where it cannot be read: it is of use only where the other is of none.
fn previous(store: &Store, credential: &NodeCredential) -> Option<NodeCredential> {
    store.previous_credential(credential.node()).ok().flatten()
}

fn transient(message: String) -> LinkFailure {
    LinkFailure { kind: LinkFailureKind::Transient, message }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!("{what}: {error}\n"))
}
