//! The agent's policy: what happened goes in, what is to be done comes out. It opens no file and no socket, and time is
//! an argument, so that a simulation can run years of it beside the master's own decisions (`master-lite/src/simulation`),
//! and a seed can replay a failure.
//!
//! The machine is four that do not know each other: `link` to the master, `deploy` of configs, `commands`, and the
//! `credential` that is replaced now and then.
//! Here they meet: what one has to say is sent if the link lives. Nothing is kept for a master that is away but results
//! of commands, since everything else is told anew by the next registration and heartbeat.

mod commands;
mod config;
mod credential;
mod deploy;
mod link;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use proto::fleet::limits::PROBLEMS_MAX;
use proto::fleet::{CommandId, PROTOCOL_REVISION, capability};
use proto::v1::{self, agent_message, master_message};

pub use commands::{Task, TaskEnd};
pub use config::{Published, Refusal};
pub use credential::Sha256;
pub use link::{LinkFailure, LinkFailureKind};

use commands::{Commands, Verdict};
use credential::Rotation;
use deploy::{Deploy, Outputs, Report};
use link::Link;

/// Since the agent's process began.
pub type Time = Duration;

/// Who the agent is; what `Register` says that does not change by itself.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// As enrolled.
    pub node_id: String,
    /// Random, new with every start of the process.
    pub instance_id: [u8; 16],
    /// What the node is for.
    pub role: v1::Role,
    /// Free text.
    pub region: String,
    /// What this host can do.
    pub capabilities: Vec<String>,
    /// The host and its kernel.
    pub host: v1::HostInfo,
}

/// What the agent begins with.
#[derive(Debug, Default)]
pub struct Start {
    /// Who it is.
    pub identity: Identity,
    /// The credential has been enrolled before.
    pub is_enrolled: bool,
    /// There is a join token, or a client certificate that stands for one.
    pub can_enroll: bool,
    /// The last config that was verified.
    pub applied: Option<Published>,
    /// The config that was being applied when the agent ended.
    pub candidate: Option<Published>,
    /// What an operator should know of the store.
    pub problems: Vec<String>,
    /// For the jitter of retries.
    pub seed: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// `Enroll` was answered.
    Enrolled(Result<(), LinkFailure>),
    /// The master said something in this session.
    Received {
        /// Of the `Connect`.
        session: u64,
        /// What.
        message: v1::MasterMessage,
    },
    /// The session could not be opened, or has ended.
    Disconnected {
        /// Of the `Connect`.
        session: u64,
        /// Why.
        failure: LinkFailure,
    },
    /// The data plane as it is; none: it does not answer.
    Observed(Option<v1::DataplaneInfo>),
    /// What the data plane serves; none: it could not be read.
    ConfigRead(Option<String>),
    /// `SaveCandidate` is done.
    Saved(Result<(), String>),
    /// `Put` is done.
    Put(PutOutcome),
    /// `Promote` is done.
    Promoted(Result<(), String>),
    /// How the host does.
    Sampled {
        /// By the wall clock.
        at_unix_ms: u64,
        /// The figures.
        host: v1::HostMetrics,
    },
    /// The data plane's figures; none: it does not answer.
    Scraped(Option<v1::Metrics>),
    /// A command wrote something.
    Wrote {
        /// Which.
        command: CommandId,
        /// On which of its outputs.
        stream: v1::OutputStream,
        /// What.
        data: Bytes,
    },
    /// A command has ended.
    Ended {
        /// Which.
        command: CommandId,
        /// How.
        end: TaskEnd,
    },
    /// `MakeCredential` is done: the verifier of the new one.
    CredentialMade(Result<Sha256, String>),
    /// `KeepCredential` is done: sessions are opened with the new one from now on.
    CredentialKept(Result<(), String>),
    /// The agent's own config has changed.
    Reconfigured {
        /// As the new config has it; `None`: nothing that a master is told has changed, and the session goes on.
        link: Option<Relink>,
    },
    /// The process ends.
    Stop,
}

/// What a new config of the agent changes for its link.
#[derive(Debug)]
pub struct Relink {
    /// Who it is now.
    pub identity: Identity,
    /// See [`Start::is_enrolled`].
    pub is_enrolled: bool,
    /// See [`Start::can_enroll`].
    pub can_enroll: bool,
}

/// What came of a config that was given to the data plane.
#[derive(Debug)]
pub enum PutOutcome {
    /// It will be served as this generation.
    Applied {
        /// Counted by the data plane's process.
        generation: u64,
    },
    /// Nothing has changed, and trying again gives the same answer.
    Refused(Refusal),
    /// Nothing has changed, and it may work later.
    Later(String),
    /// The data plane took it and did not answer: it may have ended of it.
    Broken(String),
}

/// What is to be done. Those that are answered by an event are answered by exactly one.
#[derive(Debug)]
pub enum Action {
    /// Exchange the join token for the right to use a credential that the master has never seen before; answered by
    /// `Enrolled`.
    Enroll,
    /// Open a session, and register with [`Agent::registration`]; `Received` and at last `Disconnected` follow.
    Connect {
        /// Its number.
        session: u64,
    },
    /// Say this to the master.
    Send {
        /// In this session.
        session: u64,
        /// What.
        message: Box<v1::AgentMessage>,
    },
    /// End the session when everything was sent. No `Disconnected` needs to follow.
    Close {
        /// Its number.
        session: u64,
        /// For the log.
        why: String,
    },
    /// Make a new credential, and keep it beside the one that is used; answered by `CredentialMade`.
    MakeCredential,
    /// Keep what was made last in the place of the one that is used; answered by `CredentialKept`.
    KeepCredential,
    /// Look at the data plane's `/status`; answered by `Observed`.
    Observe,
    /// Read the data plane's `/config`; answered by `ConfigRead`.
    ReadConfig,
    /// Keep it, beside the last good one; answered by `Saved`.
    SaveCandidate(Published),
    /// Give it to the data plane; answered by `Put`.
    Put(Published),
    /// It serves: it is the last good one from now on; answered by `Promoted`.
    Promote(Published),
    /// What was kept beside the last good one is not wanted.
    DropCandidate,
    /// Read the host's figures; answered by `Sampled`.
    Sample,
    /// Read the data plane's figures; answered by `Scraped`.
    Scrape,
    /// Run this; `Wrote` and at last `Ended` follow.
    Run {
        /// The command's id.
        command: CommandId,
        /// What to run.
        task: Task,
    },
    /// End what `Run` began. `Ended` need not follow.
    Abort {
        /// The command's id.
        command: CommandId,
    },
}

/// Whether a text is a valid config, as far as can be said without the data plane.
pub type Check = Box<dyn Fn(&str) -> Result<(), Refusal>>;

/// See the module.
pub struct Agent {
    identity: Identity,
    check: Check,
    link: Link,
    deploy: Deploy,
    commands: Commands,
    rotation: Rotation,
    problems: Vec<String>,
    actions: VecDeque<Action>,
    /// The master takes reports in pieces.
    takes_pieces: bool,
}

impl Agent {
    /// An agent whose process has just begun.
    pub fn new(start: Start, check: Check) -> Self {
        Self {
            identity: start.identity,
            check,
            link: Link::new(start.is_enrolled, start.can_enroll, start.seed),
            deploy: Deploy::new(start.applied, start.candidate, start.seed.rotate_left(32)),
            commands: Commands::default(),
            rotation: Rotation::default(),
            problems: start.problems,
            actions: VecDeque::new(),
            takes_pieces: false,
        }
    }

    /// The next thing to do, if there is one.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Agent::handle_timeout`] is to be called, unless an event comes before.
    pub fn poll_timeout(&self) -> Option<Time> {
        let timeouts = [self.link.poll_timeout(), self.deploy.poll_timeout(), self.commands.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(action) = self.link.handle_timeout(now) {
            self.actions.push_back(action);
        }
        self.deploy(now, |deploy, out| deploy.handle_timeout(now, out));
        for command in self.commands.overdue(now) {
            let end = TaskEnd::new(v1::CommandOutcome::TimedOut, "the deadline has passed");
            self.abort(now, command, end);
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Enrolled(result) => self.link.handle_enrolled(now, &result),
            Event::Received { session, message } => {
                if self.link.is_current(session) {
                    self.handle_message(now, message);
                }
            }
            Event::Disconnected { session, failure } => {
                if self.link.is_current(session) {
                    self.link.handle_failure(now, &failure, None);
                }
            }
            Event::Observed(seen) => self.deploy(now, |deploy, out| deploy.handle_observed(now, seen, out)),
            Event::ConfigRead(text) => {
                self.deploy(now, |deploy, out| deploy.handle_config_read(now, text.as_deref(), out));
            }
            Event::Saved(result) => self.deploy(now, |deploy, out| deploy.handle_saved(now, result, out)),
            Event::Put(outcome) => self.deploy(now, |deploy, out| deploy.handle_put(now, outcome, out)),
            Event::Promoted(result) => {
                self.deploy(now, |deploy, out| deploy.handle_promoted(now, result, out));
            }
            Event::Sampled { at_unix_ms, host } => self.send_heartbeat(now, at_unix_ms, host),
            Event::Scraped(metrics) => self.send_if_some(metrics.map(|metrics| self.report(metrics))),
            Event::Wrote { command, stream, data } => {
                let output = self.commands.handle_output(&command, stream, data);
                self.send_if_some(output.map(agent_message::Kind::CommandOutput));
            }
            Event::Ended { command, end } => self.end_command(now, &command, end),
            Event::CredentialMade(made) => {
                let change = self.rotation.handle_made(made);
                self.send_if_some(change.map(agent_message::Kind::CredentialChange));
            }
            Event::CredentialKept(kept) => {
                let change = self.rotation.handle_kept(&kept);
                self.send_if_some(change.map(agent_message::Kind::CredentialChange));
            }
            Event::Reconfigured { link } => self.reconfigure(now, link),
            Event::Stop => self.stop(now),
        }
    }

    /// What the first message of a session says.
    pub fn registration(&self) -> v1::Register {
        let Identity { node_id, instance_id, role, region, mut capabilities, host } = self.identity.clone();
        capabilities.push(capability::CREDENTIAL_CHANGE.to_owned());
        v1::Register {
            protocol_revision: PROTOCOL_REVISION,
            node_id,
            instance_id: instance_id.to_vec().into(),
            role: role.into(),
            region,
            capabilities,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: Some(host),
            config: Some(self.deploy.state()),
            dataplane: Some(self.deploy.dataplane().clone()),
            command_ids: self.commands.unfinished(),
        }
    }

    /// How far the configs are.
    pub fn config_state(&self) -> v1::ConfigState {
        self.deploy.state()
    }

    /// Whether a session lives.
    pub fn is_live(&self) -> bool {
        self.link.is_live()
    }

    fn handle_message(&mut self, now: Time, message: v1::MasterMessage) {
        // Not set: a member of the oneof that is newer than this agent.
        let Some(kind) = message.kind else { return };
        if let master_message::Kind::Welcome(welcome) = kind {
            return self.handle_welcome(now, &welcome);
        }
        if let master_message::Kind::Goodbye(goodbye) = kind {
            return self.handle_goodbye(now, &goodbye);
        }
        if !self.link.is_live() {
            let failure = LinkFailure {
                kind: LinkFailureKind::Refused,
                message: "the master spoke before its welcome".to_owned(),
            };
            return self.close(now, failure);
        }
        match kind {
            master_message::Kind::HeartbeatAck(ack) => self.link.handle_heartbeat_ack(now, ack.sequence),
            master_message::Kind::Intervals(intervals) => self.link.handle_intervals(now, &intervals),
            master_message::Kind::ConfigOffer(offer) => self.handle_offer(now, &offer),
            master_message::Kind::Command(command) => self.handle_command(now, &command),
            master_message::Kind::CredentialWanted(_) => self.actions.extend(self.rotation.handle_wanted()),
            master_message::Kind::CredentialTaken(taken) => {
                self.actions.extend(self.rotation.handle_taken(&taken.sha256));
            }
            master_message::Kind::CommandCancel(cancel) => {
                if let Ok(command) = cancel.command_id.parse::<CommandId>()
                    && self.commands.is_running(&command)
                {
                    let end = TaskEnd::new(v1::CommandOutcome::Cancelled, "the master asked for its end");
                    self.abort(now, command, end);
                }
            }
            master_message::Kind::Welcome(_) | master_message::Kind::Goodbye(_) => {}
        }
    }

    /// As the master takes it; a piece is cut when it is sent.
    fn report(&self, metrics: v1::Metrics) -> agent_message::Kind {
        if self.takes_pieces {
            agent_message::Kind::MetricsPiece(v1::MetricsPiece::from(&metrics))
        } else {
            agent_message::Kind::Metrics(metrics)
        }
    }

    fn handle_welcome(&mut self, now: Time, welcome: &v1::Welcome) {
        self.takes_pieces = welcome.capabilities.iter().any(|known| known == capability::METRICS_PIECES);
        self.link.handle_welcome(now, welcome.intervals.as_ref());
        self.rotation.handle_welcome();
        for result in self.commands.take_unsent() {
            self.send(agent_message::Kind::CommandResult(result));
        }
    }

    fn handle_goodbye(&mut self, now: Time, goodbye: &v1::Goodbye) {
        let (kind, message) = match goodbye.reason() {
            v1::GoodbyeReason::Unspecified => {
                (LinkFailureKind::Transient, "the master has ended the session")
            }
            v1::GoodbyeReason::Stopping => (LinkFailureKind::Transient, "the master stops"),
            v1::GoodbyeReason::TooSlow => {
                (LinkFailureKind::Transient, "the master found this agent too slow")
            }
            // Two agents with one identity would throw each other out for ever, as fast as they can dial.
            v1::GoodbyeReason::Replaced => {
                (LinkFailureKind::Refused, "another agent has registered with this node's credential")
            }
            v1::GoodbyeReason::Removed => (LinkFailureKind::Unauthenticated, "the node was removed"),
        };
        let session = self.link.session();
        let failure = LinkFailure { kind, message: message.to_owned() };
        self.link.handle_failure(now, &failure, Some(Duration::from_millis(goodbye.retry_after_ms)));
        self.actions.push_back(Action::Close { session, why: failure.message });
    }

    fn close(&mut self, now: Time, failure: LinkFailure) {
        let session = self.link.session();
        self.link.handle_failure(now, &failure, None);
        self.actions.push_back(Action::Close { session, why: failure.message });
    }

    fn handle_offer(&mut self, now: Time, offer: &v1::ConfigOffer) {
        let mut out = Outputs::default();
        self.deploy.handle_offer(now, offer, &*self.check, &mut out);
        self.perform(now, out);
    }

    fn handle_command(&mut self, now: Time, command: &v1::Command) {
        match self.commands.handle_command(now, command) {
            Verdict::Ignore => {}
            Verdict::Answer(result) => self.send(agent_message::Kind::CommandResult(result)),
            Verdict::Run(command, task) => self.actions.push_back(Action::Run { command, task }),
            Verdict::Reload(command) => {
                let mut out = Outputs::default();
                let is_begun = self.deploy.reload(now, command.clone(), &mut out);
                self.perform(now, out);
                if !is_begun {
                    self.actions.push_back(Action::Run { command, task: Task::ReloadUnit });
                }
            }
        }
    }

    fn abort(&mut self, now: Time, command: CommandId, end: TaskEnd) {
        self.actions.push_back(Action::Abort { command: command.clone() });
        self.end_command(now, &command, end);
    }

    fn end_command(&mut self, now: Time, command: &CommandId, end: TaskEnd) {
        let Some(result) = self.commands.handle_end(now, command, end) else { return };
        if self.link.is_live() {
            self.send(agent_message::Kind::CommandResult(result));
        } else {
            self.commands.keep_for_later(&result);
        }
        // Most commands do something to the data plane.
        self.deploy(now, |deploy, out| deploy.observe(now, out));
    }

    fn deploy(&mut self, now: Time, step: impl FnOnce(&mut Deploy, &mut Outputs)) {
        let mut out = Outputs::default();
        step(&mut self.deploy, &mut out);
        self.perform(now, out);
    }

    fn perform(&mut self, now: Time, out: Outputs) {
        self.actions.extend(out.actions);
        for report in out.reports {
            match report {
                Report::Ack(ack) => self.send(agent_message::Kind::ConfigAck(ack)),
                Report::Nack(nack) => self.send(agent_message::Kind::ConfigNack(nack)),
                Report::Deferred(deferred) => self.send(agent_message::Kind::ConfigDeferred(deferred)),
                Report::Reloaded(commands, result) => {
                    let end = match result {
                        Ok(message) => TaskEnd::new(v1::CommandOutcome::Succeeded, message),
                        Err(message) => TaskEnd::new(v1::CommandOutcome::Failed, message),
                    };
                    for command in commands {
                        self.end_command(now, &command, end.clone());
                    }
                }
            }
        }
    }

    fn send_heartbeat(&mut self, now: Time, sent_at_unix_ms: u64, host: v1::HostMetrics) {
        let Some((sequence, round_trip)) = self.link.begin_heartbeat(now) else { return };
        let mut problems = self.problems.clone();
        problems.extend(self.deploy.problem());
        problems.truncate(PROBLEMS_MAX);
        let heartbeat = v1::Heartbeat {
            sequence,
            sent_at_unix_ms,
            host: Some(host),
            dataplane: Some(self.deploy.dataplane().clone()),
            config: Some(self.deploy.state()),
            problems,
            round_trip_us: u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX),
        };
        self.send(agent_message::Kind::Heartbeat(heartbeat));
    }

    fn send_if_some(&mut self, kind: Option<agent_message::Kind>) {
        if let Some(kind) = kind {
            self.send(kind);
        }
    }

    /// Said if a master listens. What is lost without one is told by the next registration.
    fn send(&mut self, kind: agent_message::Kind) {
        if self.link.is_live() {
            let message = Box::new(v1::AgentMessage { kind: Some(kind) });
            self.actions.push_back(Action::Send { session: self.link.session(), message });
        }
    }

    fn reconfigure(&mut self, now: Time, link: Option<Relink>) {
        if let Some(Relink { identity, is_enrolled, can_enroll }) = link {
            self.leave(v1::LeavingReason::Reconfigured);
            self.identity = identity;
            self.link.reconfigure(now, is_enrolled, can_enroll);
        }
        // The data plane's socket may be another one.
        self.deploy(now, |deploy, out| deploy.observe(now, out));
    }

    fn stop(&mut self, now: Time) {
        for command in self.commands.running() {
            let end = TaskEnd::new(v1::CommandOutcome::Cancelled, "the agent stops");
            self.abort(now, command, end);
        }
        self.leave(v1::LeavingReason::Stopping);
        self.link.stop();
    }

    fn leave(&mut self, reason: v1::LeavingReason) {
        let session = self.link.session();
        // Before the welcome, too: the master may know of the registration already.
        if self.link.is_current(session) {
            let kind = Some(agent_message::Kind::Leaving(v1::Leaving { reason: reason.into() }));
            self.actions.push_back(Action::Send { session, message: Box::new(v1::AgentMessage { kind }) });
            self.actions.push_back(Action::Close { session, why: "the agent leaves".to_owned() });
        }
    }
}
