//! The agent and the master as they are, and models of what is around them: a disk that keeps what was written, a data
//! plane that refuses, dies and drains, and a network that loses what is on its way. All of it in one thread, in simulated
//! time, from one seed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use control_agent::state::{
    Action, Agent, Event, Identity, LinkFailure, LinkFailureKind, Published, PutOutcome, Start, Task,
    TaskEnd, Time,
};
use proto::fleet::{NodeCredential, capability};
use proto::v1::{self, agent_message, master_message};

use super::credentials::{Keyring, Sha256, Thief, Void};
use super::dataplane::{Dataplane, OWN_FILE};
use super::master::{Master, NODE, Out};
use super::random::Random;
use crate::service::commands::command::Command;
use crate::service::commands::task::{Run, RunState};
use crate::service::refusal::{Kind, Refusal};

/// No simulated moment has more events than this: more is a loop.
const EVENTS_AT_ONCE_MAX: u32 = 2_000;

/// The time of day when it begins.
const BEGAN_MS: u64 = 1_800_000_000_000;

/// As the master looks at its commands.
const DRIVE_EVERY: Duration = Duration::from_millis(500);

/// How long commands may take.
const TIMEOUT_MS: u64 = 5_000;

/// A config that the master finds nothing wrong with; what the data plane will make of it stands below.
const CONFIG: &str = include_str!("../../../proto/tests/config/accepted/minimal.toml");

/// The text of one publish.
pub(super) fn text_of(kind: &str, number: u64) -> String {
    format!("{CONFIG}# {kind} {number}\n")
}

/// What survives a crash of the agent.
#[derive(Default)]
struct Disk {
    current: Option<Published>,
    candidate: Option<Published>,
    is_full: bool,
}

/// The stream of a session, as its two ends call it.
#[derive(Clone, Copy)]
struct Line {
    session: u64,
    stream: u64,
}

/// What is on its way, and what was begun.
enum Delivery {
    ToAgent(u32, Event),
    ToMaster(u64, Box<v1::AgentMessage>),
    Enrol(u32, NodeCredential),
    Register(u64, NodeCredential, Box<v1::Register>),
    /// The disk or the data plane does it at this moment: a crash before means it is not done.
    Do(u32, Action),
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) random: Random,
    agent: Agent,
    /// Counts the agent's processes: what was begun by an earlier one is answered to nobody.
    instance: u32,
    disk: Disk,
    dataplane: Dataplane,
    pub(crate) master: Master,
    line: Option<Line>,
    drives_at: Time,
    queue: Vec<(Time, u64, Delivery)>,
    sequence: u64,
    network_is_cut: bool,
    keyring: Keyring,
    thief: Thief,
    void: Void,
    /// When the agent began to replace its credential.
    pub(crate) changes_began: Vec<Time>,
    next_config: u64,
    /// What was published last: its revision and its text.
    pub(crate) desired: Option<(u64, String)>,
    /// The ids of all commands, in the order in which they were begun.
    pub(crate) commands: Vec<String>,
    /// How they ended, as agents told it.
    told: BTreeMap<String, v1::CommandOutcome>,
    /// Revisions that this instance was told are refused: they may not be tried again.
    refused_here: BTreeSet<u64>,
    /// Commands that were run, by instance.
    run: HashSet<(u32, String)>,
    /// Programs that are run do not end by themselves.
    programs_hang: bool,
    /// Commands whose program was ended.
    pub(crate) aborted: HashSet<String>,
    at_once: u32,
    last_heartbeat: Time,
    /// What went in and out of the agent, if somebody wants to know.
    pub(crate) record: Option<Vec<String>>,
    /// The agent was killed while the first config of all was being tried: nobody knows any more what was before it.
    pub(crate) has_forgotten_before: bool,
}

fn agent_of(disk: &Disk, instance: u32, is_enrolled: bool, seed: u64) -> Agent {
    let identity = Identity {
        node_id: NODE.to_owned(),
        instance_id: [u8::try_from(instance % 256).unwrap(); 16],
        ..Identity::default()
    };
    let start = Start {
        identity,
        is_enrolled,
        can_enroll: true,
        applied: disk.current.clone(),
        candidate: disk.candidate.clone(),
        problems: Vec::new(),
        seed,
    };
    Agent::new(start, Box::new(check))
}

/// As the config's own check: "invalid" is found before anything is tried.
fn check(text: &str) -> Result<(), control_agent::state::Refusal> {
    if text.contains("invalid") {
        return Err(control_agent::state::Refusal::new(v1::ConfigRefusal::Invalid, "it says invalid"));
    }
    Ok(())
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let (disk, mut keyring) = (Disk::default(), Keyring::default());
        keyring.start();
        Self {
            now: Time::ZERO,
            random: Random(seed),
            agent: agent_of(&disk, 0, false, seed),
            instance: 0,
            disk,
            dataplane: Dataplane::new(),
            master: Master::start(BEGAN_MS),
            line: None,
            drives_at: Time::ZERO,
            queue: Vec::new(),
            sequence: 0,
            network_is_cut: false,
            keyring,
            thief: Thief::default(),
            void: Void::default(),
            changes_began: Vec::new(),
            next_config: 1,
            desired: None,
            commands: Vec::new(),
            told: BTreeMap::new(),
            refused_here: BTreeSet::new(),
            run: HashSet::new(),
            programs_hang: false,
            aborted: HashSet::new(),
            at_once: 0,
            last_heartbeat: Time::ZERO,
            record: None,
            has_forgotten_before: false,
        }
    }

    /// Lets this much time pass.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while let Some(action) = self.agent.poll_action() {
                self.begin(action);
            }
            self.poll_master();
            let queued = self.queue.iter().map(|(at, sequence, _)| (*at, *sequence)).min();
            let timeout = self.agent.poll_timeout();
            let due = queued.map(|(at, _)| at).into_iter().chain(timeout).chain([self.drives_at]).min();
            let next = due.unwrap_or(end).max(self.now);
            if next > end {
                break;
            }
            self.at_once = if next > self.now { 0 } else { self.at_once + 1 };
            assert!(self.at_once < EVENTS_AT_ONCE_MAX, "time stands still at {:?}", self.now);
            self.now = next;
            self.dataplane.turn(next);
            match queued {
                Some((at, sequence)) if at <= next => {
                    let place = self.queue.iter().position(|entry| entry.1 == sequence).unwrap();
                    let (_, _, delivery) = self.queue.swap_remove(place);
                    self.deliver(delivery);
                }
                _ if self.drives_at <= next => {
                    self.master.drive(self.now_ms());
                    self.drives_at = next + DRIVE_EVERY;
                }
                _ => self.agent.handle_timeout(next),
            }
            self.assert_invariants();
        }
        self.now = end;
    }

    fn assert_invariants(&self) {
        if let Some(current) = &self.disk.current {
            assert!(
                self.dataplane.served.contains(&**current.text()),
                "kept without having been served: {current:?}"
            );
        }
        if self.agent.is_live() && self.line.is_some() && !self.network_is_cut {
            let silence = self.now.saturating_sub(self.last_heartbeat);
            assert!(silence <= Duration::from_secs(12), "no heartbeat for {silence:?}");
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        BEGAN_MS + u64::try_from(self.now.as_millis()).unwrap()
    }

    /// What goes in and out of the agent, where a person replays a seed.
    fn trace(&mut self, what: &dyn std::fmt::Debug) {
        if let Some(record) = &mut self.record {
            let mut line = format!("{:?} {what:?}", self.now);
            // Of all that happens only their ids come from no seed.
            for (number, id) in self.commands.iter().enumerate() {
                line = line.replace(id, &format!("command {number}"));
            }
            record.push(line);
        }
        if std::env::var_os("TRACE").is_some() {
            eprintln!("{:?} {what:?}", self.now);
        }
    }

    fn push(&mut self, after: Duration, delivery: Delivery) {
        self.sequence += 1;
        self.queue.push((self.now + after, self.sequence, delivery));
    }

    fn tell(&mut self, after: Duration, event: Event) {
        self.push(after, Delivery::ToAgent(self.instance, event));
    }

    fn begin(&mut self, action: Action) {
        self.trace(&action);
        let after = Duration::from_millis(2) + self.random.ms(20);
        if matches!(action, Action::MakeCredential) {
            self.changes_began.push(self.now);
        }
        match action {
            Action::Enroll if self.is_reachable() => {
                let credential = self.keyring.enrolling();
                self.push(after, Delivery::Enrol(self.instance, credential));
            }
            Action::Enroll => self.tell(after, Event::Enrolled(Err(unreachable()))),
            Action::Connect { session } if self.is_reachable() => {
                let (credential, register) = (self.keyring.shown(), Box::new(self.agent.registration()));
                self.push(after, Delivery::Register(session, credential, register));
            }
            Action::Connect { session } => {
                self.tell(after, Event::Disconnected { session, failure: unreachable() });
            }
            Action::Send { session, message } if self.is_reachable() => {
                // A stream keeps its order: everything is as late as everything else.
                if let Some(line) = self.line.filter(|line| line.session == session) {
                    self.push(Duration::from_millis(10), Delivery::ToMaster(line.stream, message));
                }
            }
            Action::Send { .. } => {}
            Action::Close { session, .. } => {
                if let Some(line) = self.line.take_if(|line| line.session == session) {
                    // A cut network keeps it from the master that the stream is closed.
                    if self.is_reachable() {
                        self.master.end(line.stream, self.now_ms());
                    }
                }
            }
            Action::Sample => {
                let host = v1::HostMetrics::default();
                self.agent.handle(self.now, Event::Sampled { at_unix_ms: 0, host });
            }
            Action::Scrape => self.tell(after, Event::Scraped(Some(v1::Metrics::default()))),
            Action::Abort { command } => {
                self.aborted.insert(command.to_string());
            }
            // The store does one thing after another.
            Action::SaveCandidate(_)
            | Action::Promote(_)
            | Action::DropCandidate
            | Action::MakeCredential
            | Action::KeepCredential => {
                self.push(Duration::from_millis(5), Delivery::Do(self.instance, action));
            }
            Action::Observe | Action::ReadConfig | Action::Put(_) | Action::Run { .. } => {
                self.push(after, Delivery::Do(self.instance, action));
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        if let Delivery::ToAgent(_, event) = &delivery {
            self.trace(event);
        }
        match delivery {
            Delivery::ToAgent(instance, event) if instance == self.instance => {
                if let Event::Enrolled(enrolled) = &event {
                    match enrolled {
                        Ok(()) => self.keyring.keep_enrolled(),
                        Err(failure) if failure.kind == LinkFailureKind::UsedCredential => {
                            self.keyring.drop_enrolling();
                        }
                        Err(_) => {}
                    }
                }
                if let Event::Put(PutOutcome::Refused(_)) = &event {
                    let pending = self.agent.config_state().pending;
                    self.refused_here.extend(pending.map(|config| config.revision));
                }
                self.agent.handle(self.now, event);
            }
            Delivery::ToAgent(..) => {}
            Delivery::Do(instance, action) if instance == self.instance => self.carry_out(action),
            Delivery::Do(..) => {}
            Delivery::Enrol(instance, credential) => {
                let enrolled = self.enrol(&credential);
                self.push(Duration::from_millis(10), Delivery::ToAgent(instance, Event::Enrolled(enrolled)));
            }
            Delivery::Register(session, credential, register) => {
                self.register(session, &credential, *register);
            }
            Delivery::ToMaster(stream, message) => self.hear(stream, *message),
        }
    }

    /// The disk and the data plane.
    fn carry_out(&mut self, action: Action) {
        let after = self.random.ms(5);
        let no_space = || "no space left on device".to_owned();
        let full = || Err(no_space());
        match action {
            Action::Observe => {
                let seen = self.dataplane.is_up(self.now).then(|| self.dataplane.info());
                self.tell(after, Event::Observed(seen));
            }
            Action::ReadConfig => {
                let read = self.dataplane.is_up(self.now).then(|| self.dataplane.text.clone());
                self.tell(after, Event::ConfigRead(read));
            }
            Action::SaveCandidate(_) if self.disk.is_full => self.tell(after, Event::Saved(full())),
            Action::SaveCandidate(config) => {
                self.disk.candidate = Some(config);
                self.tell(after, Event::Saved(Ok(())));
            }
            Action::Promote(_) if self.disk.is_full => self.tell(after, Event::Promoted(full())),
            Action::Promote(config) => {
                assert_eq!(self.disk.candidate.as_ref(), Some(&config), "only what was saved can be kept");
                self.disk.current = self.disk.candidate.take();
                self.tell(after, Event::Promoted(Ok(())));
            }
            Action::DropCandidate => self.disk.candidate = None,
            Action::MakeCredential if self.disk.is_full => {
                self.tell(after, Event::CredentialMade(Err(no_space())))
            }
            Action::MakeCredential => {
                let made = self.keyring.make_next();
                self.tell(after, Event::CredentialMade(Ok(made)));
            }
            Action::KeepCredential => {
                self.keyring.keep_next();
                self.tell(after, Event::CredentialKept(Ok(())));
            }
            Action::Put(config) => {
                let is_again = self.refused_here.contains(&config.revision());
                assert!(!is_again, "revision {} was refused, and is tried again", config.revision());
                let outcome = self.dataplane.put(self.now, config.text());
                self.tell(after, Event::Put(outcome));
            }
            Action::Run { command, task } => {
                let is_new = self.run.insert((self.instance, command.to_string()));
                assert!(is_new, "{command} was run twice");
                match task {
                    Task::Drain => self.dataplane.draining = true,
                    Task::Undrain => self.dataplane.draining = false,
                    Task::Restart => self.dataplane.die(self.now),
                    Task::ReloadUnit | Task::Status | Task::Logs { .. } => {}
                }
                if self.programs_hang && matches!(task, Task::ReloadUnit | Task::Restart | Task::Logs { .. })
                {
                    return;
                }
                let end = TaskEnd::new(v1::CommandOutcome::Succeeded, "done");
                self.tell(after, Event::Ended { command, end });
            }
            Action::Enroll
            | Action::Connect { .. }
            | Action::Send { .. }
            | Action::Close { .. }
            | Action::Sample
            | Action::Scrape
            | Action::Abort { .. } => unreachable!("begun where it is"),
        }
    }

    fn enrol(&mut self, credential: &NodeCredential) -> Result<(), LinkFailure> {
        if !self.is_reachable() {
            return Err(unreachable());
        }
        let (was_barred, verifier) = (self.master.is_barred(), *credential.verifier().as_bytes());
        self.master.enrol(credential, self.now_ms()).map_err(|refusal| failure(&refusal))?;
        assert!(!was_barred, "a node is let in whose id is barred");
        assert!(!self.void.was_deleted(&verifier), "a node enrols with a secret of a node that was deleted");
        self.void.add_good(verifier);
        Ok(())
    }

    fn register(&mut self, session: u64, credential: &NodeCredential, register: v1::Register) {
        if !self.is_reachable() {
            return self.tell(Duration::ZERO, Event::Disconnected { session, failure: unreachable() });
        }
        let verifier = *credential.verifier().as_bytes();
        let otherwise = self.keyring.otherwise(credential);
        match self.master.register(credential, register.clone(), self.now_ms()) {
            Err(Refusal { kind: Kind::Unauthenticated, .. }) if otherwise.is_some() => {
                otherwise.iter().for_each(|other| self.register(session, other, register.clone()));
            }
            Ok((stream, out)) => {
                assert!(!self.void.has(&verifier), "a void secret opens a session");
                // If it is the next one, the others are void now; if it is not, they are already.
                self.void.add_good(verifier);
                self.last_heartbeat = self.now;
                self.line = Some(Line { session, stream });
                self.carry(out);
            }
            Err(refusal) => {
                let failure = failure(&refusal);
                self.tell(Duration::ZERO, Event::Disconnected { session, failure });
            }
        }
    }

    fn hear(&mut self, stream: u64, message: v1::AgentMessage) {
        match message.kind.as_ref().unwrap() {
            agent_message::Kind::Heartbeat(_) => self.last_heartbeat = self.now,
            agent_message::Kind::ConfigAck(ack) => {
                let revision = ack.config.as_ref().unwrap().revision;
                let is_kept = self.disk.current.as_ref().is_some_and(|config| config.revision() == revision);
                assert!(is_kept, "revision {revision} was acknowledged, and is not kept");
            }
            agent_message::Kind::CommandResult(result) => {
                let before = self.told.insert(result.command_id.clone(), result.outcome());
                assert!(
                    before.is_none_or(|before| before == result.outcome()),
                    "two results for one command"
                );
            }
            agent_message::Kind::Register(_) => panic!("only the first message registers"),
            agent_message::Kind::Metrics(_)
            | agent_message::Kind::MetricsPiece(_)
            | agent_message::Kind::ConfigNack(_)
            | agent_message::Kind::ConfigDeferred(_)
            | agent_message::Kind::CommandOutput(_)
            | agent_message::Kind::CredentialChange(_)
            | agent_message::Kind::Leaving(_) => {}
        }
        let mut kept = None;
        if let agent_message::Kind::CredentialChange(change) = message.kind.as_ref().unwrap()
            && change.step() == v1::CredentialStep::Kept
            && self.master.has_session(stream)
        {
            kept = Sha256::try_from(change.sha256.as_ref()).ok();
        }
        let out = self.master.hear(stream, message, self.now_ms());
        if let Some(kept) = kept {
            self.void.replace_all_by(kept);
        }
        self.carry(out);
    }

    /// Somebody copies the agent's state folder.
    pub(crate) fn steal_credential(&mut self) {
        self.thief.stolen = self.keyring.copy();
    }

    /// Whoever has a copy opens a session with it, answers the welcome, and where it is asked for another credential gives
    /// one of its own, or says nothing; whether it is let in.
    pub(crate) fn intrude(&mut self, takes_over: bool) -> bool {
        if self.master.is_down() {
            return false;
        }
        let Some(stolen) = self.thief.stolen.clone() else { return false };
        let register = self.thiefs_registration("");
        let Ok((stream, _)) = self.master.register(&stolen, register, self.now_ms()) else { return false };
        assert!(!self.void.has(stolen.verifier().as_bytes()), "a void secret opens a session");
        let heartbeat = agent_message::Kind::Heartbeat(v1::Heartbeat::default());
        let told = self.master.hear(stream, message(heartbeat), self.now_ms());
        let is_asked = told.iter().any(|out| {
            matches!(out, Out::Message(_, told)
            if matches!(told.kind, Some(master_message::Kind::CredentialWanted(_))))
        });
        if takes_over && is_asked {
            let next = self.thief.make_next();
            let verifier = *next.verifier().as_bytes();
            for step in [v1::CredentialStep::Made, v1::CredentialStep::Kept] {
                let change = v1::CredentialChange { sha256: verifier.to_vec().into(), step: step.into() };
                let change = agent_message::Kind::CredentialChange(change);
                self.master.hear(stream, message(change), self.now_ms());
            }
            self.void.replace_all_by(verifier);
            self.thief.stolen = Some(next);
        }
        true
    }

    /// Whoever has the credential, its owner too, says that its node is elsewhere: nobody gets what is for there.
    pub(crate) fn claim_another_place(&mut self) {
        if self.master.is_down() {
            return;
        }
        self.master.publish_elsewhere(&text_of("elsewhere", self.next_config), "sg", self.now_ms());
        self.next_config += 1;
        for credential in [Some(self.keyring.shown()), self.thief.stolen.clone()].into_iter().flatten() {
            let register = self.thiefs_registration("sg");
            let claimed = self.master.register(&credential, register, self.now_ms());
            assert!(claimed.is_err(), "an agent calls itself what it likes");
        }
    }

    fn thiefs_registration(&mut self, region: &str) -> v1::Register {
        self.thief.starts += 1;
        v1::Register {
            protocol_revision: 1,
            node_id: NODE.to_owned(),
            instance_id: self.thief.instance_id().to_vec().into(),
            region: region.to_owned(),
            capabilities: vec![capability::CREDENTIAL_CHANGE.to_owned()],
            ..v1::Register::default()
        }
    }

    /// An operator deletes the node, or where it is deleted lets it in again.
    pub(crate) fn delete_or_let_in(&mut self) {
        if self.master.is_down() {
            return;
        }
        if self.master.is_enrolled() {
            self.master.delete(self.now_ms());
            self.void.delete_all();
        } else {
            self.let_in();
        }
    }

    /// An operator lets the node in where it is barred.
    pub(crate) fn let_in(&mut self) {
        if !self.master.is_down() && self.master.is_barred() {
            self.master.let_in(self.now_ms());
        }
    }

    /// What an operator does where a thief was there first: the node is deleted and let in, and its agent enrols anew.
    pub(crate) fn recover_credential(&mut self) {
        if !self.agent.is_live() && self.master.is_enrolled() {
            assert!(self.master.knows_of_copy(), "the agent is locked out, and nobody knows why");
            self.delete_or_let_in();
            self.let_in();
        }
    }

    pub(crate) fn is_agent_live(&self) -> bool {
        self.agent.is_live()
    }

    fn poll_master(&mut self) {
        let out = self.master.poll(self.now_ms());
        self.carry(out);
    }

    /// Brings to the agent what the master says, as far as the network does.
    fn carry(&mut self, out: Vec<Out>) {
        for out in out {
            let (Out::Message(stream, _) | Out::End(stream)) = &out;
            let line = self.line.filter(|line| line.stream == *stream && !self.network_is_cut);
            let Some(Line { session, .. }) = line else { continue };
            match out {
                Out::Message(_, message) => {
                    self.tell(Duration::from_millis(10), Event::Received { session, message });
                }
                Out::End(_) => {
                    self.line = None;
                    let ended = Event::Disconnected { session, failure: unreachable() };
                    self.tell(Duration::from_millis(10), ended);
                }
            }
        }
    }

    /// A new config is published; what it does is in its text.
    pub(crate) fn publish(&mut self, kind: &str) {
        if self.master.is_down() {
            return;
        }
        let text = text_of(kind, self.next_config);
        self.next_config += 1;
        let revision = self.master.publish(&text, self.now_ms());
        let before = self.desired.replace((revision, text));
        assert!(before.is_none_or(|(before, _)| before < revision), "revisions only grow");
    }

    pub(crate) fn command(&mut self, command: Command) {
        if self.master.is_down() || !self.master.is_enrolled() {
            return;
        }
        // Ids of one millisecond have no order.
        self.run_for(Duration::from_millis(1));
        let id = self.master.command(command, TIMEOUT_MS, self.now_ms());
        self.commands.push(id);
    }

    /// The last command is not wanted any more.
    pub(crate) fn cancel_command(&mut self) {
        if let Some(last) = self.commands.last().filter(|_| !self.master.is_down()) {
            self.master.cancel(last, self.now_ms());
        }
    }

    /// How each command ended, or where it is.
    pub(crate) fn runs(&self) -> Vec<Run> {
        self.commands.iter().map(|id| self.master.run(id)).collect()
    }

    /// Holds what the master says of commands against what was done.
    pub(crate) fn assert_told_rightly(&self) {
        for (id, run) in self.commands.iter().zip(self.runs()) {
            let was_run = self.run.iter().any(|(_, command)| command == id);
            let told = self.told.get(id).copied();
            match run.state {
                RunState::Sent | RunState::Running => panic!("{id} has not ended: {run:?}"),
                RunState::Offline => assert!(!was_run, "{id} was run, and is said not to have been sent"),
                RunState::Succeeded => assert_eq!(told, Some(v1::CommandOutcome::Succeeded), "{id}: {run:?}"),
                RunState::Failed => assert_eq!(told, Some(v1::CommandOutcome::Failed), "{id}: {run:?}"),
                RunState::Refused
                | RunState::Unsupported
                | RunState::TimedOut
                | RunState::Cancelled
                | RunState::Lost => {}
            }
        }
    }

    pub(crate) fn hang_programs(&mut self, programs_hang: bool) {
        self.programs_hang = programs_hang;
    }

    fn is_reachable(&self) -> bool {
        !self.network_is_cut && !self.master.is_down()
    }

    /// The stream ends, and both ends know it; what is on its way in either direction is lost.
    pub(crate) fn drop_session(&mut self) {
        if let Some(line) = self.lose_line() {
            self.master.end(line.stream, self.now_ms());
        }
    }

    /// The agent knows that its stream is over.
    fn lose_line(&mut self) -> Option<Line> {
        self.queue.retain(|(_, _, delivery)| !delivery.is_on_the_line());
        let line = self.line.take()?;
        let ended = Event::Disconnected { session: line.session, failure: unreachable() };
        self.tell(Duration::ZERO, ended);
        Some(line)
    }

    /// Nothing arrives any more, and nobody is told. When it is whole again, a stream with a gap cannot go on: the agent
    /// finds out, and the master when another comes in its place, or when nothing is heard of it.
    pub(crate) fn cut_network(&mut self, is_cut: bool) {
        if self.network_is_cut && !is_cut {
            self.lose_line();
        }
        self.network_is_cut = is_cut;
        if is_cut {
            self.queue.retain(|(_, _, delivery)| {
                !delivery.is_on_the_line() || matches!(delivery, Delivery::Register(..))
            });
        }
    }

    /// kill -9 of the master, or its start.
    pub(crate) fn set_master_down(&mut self, is_down: bool) {
        if is_down && !self.master.is_down() {
            self.lose_line();
            self.master.kill();
            self.void.forget_replaced();
        }
        if !is_down {
            self.master.restart();
        }
    }

    /// kill -9 of the agent, at whatever it was doing; it is started anew from its disk.
    pub(crate) fn crash_agent(&mut self) {
        self.drop_session();
        self.has_forgotten_before |= self.disk.current.is_none() && self.dataplane.text != OWN_FILE;
        self.instance += 1;
        self.refused_here.clear();
        let is_enrolled = self.keyring.start();
        self.agent = agent_of(&self.disk, self.instance, is_enrolled, self.random.next());
    }

    pub(crate) fn kill_dataplane(&mut self) {
        self.dataplane.die(self.now);
    }

    /// By hand, on the host.
    pub(crate) fn drain_by_hand(&mut self, draining: bool) {
        self.dataplane.draining = draining;
    }

    pub(crate) fn fill_disk(&mut self, is_full: bool) {
        self.disk.is_full = is_full;
    }

    pub(crate) fn serves(&self) -> &str {
        &self.dataplane.text
    }

    pub(crate) fn last_good(&self) -> &str {
        self.disk.current.as_ref().map_or(OWN_FILE, |config| config.text())
    }

    pub(crate) fn is_dataplane_up(&self) -> bool {
        self.dataplane.is_up(self.now)
    }
}

impl Delivery {
    /// Whether a stream carries it.
    fn is_on_the_line(&self) -> bool {
        match self {
            Delivery::ToMaster(..)
            | Delivery::Register(..)
            | Delivery::ToAgent(_, Event::Received { .. }) => true,
            Delivery::ToAgent(..) | Delivery::Enrol(..) | Delivery::Do(..) => false,
        }
    }
}

fn message(kind: agent_message::Kind) -> v1::AgentMessage {
    v1::AgentMessage { kind: Some(kind) }
}

/// As the agent's driver reads it out of the status.
fn failure(refusal: &Refusal) -> LinkFailure {
    let is_used = refusal.details.iter().any(|detail| detail.field == "credential_sha256");
    let kind = if is_used {
        LinkFailureKind::UsedCredential
    } else if refusal.kind == Kind::Unauthenticated {
        LinkFailureKind::Unauthenticated
    } else if [Kind::Forbidden, Kind::Conflict, Kind::Invalid].contains(&refusal.kind) {
        LinkFailureKind::Refused
    } else {
        LinkFailureKind::Transient
    };
    LinkFailure { kind, message: refusal.message.clone() }
}

fn unreachable() -> LinkFailure {
    LinkFailure { kind: LinkFailureKind::Transient, message: "nobody is there".to_owned() }
}
