//! The agent and the master as they are, and models of what is around them: a disk that keeps what was written, a data
//! plane that refuses, dies and drains, and a network that loses what is on its way. All of it in one thread, in simulated
//! time, from one seed.

mod intrusion;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use control_agent::state::{
    Action, Agent, Event, Identity, LinkFailure, LinkFailureKind, Published, PutOutcome, Start, Task,
    TaskEnd, Time,
};
use proto::fleet::NodeCredential;
use proto::v1;

use super::credentials::{Keyring, Sha256, Thief, Void};
use super::dataplane::{Dataplane, OWN_FILE};
use super::master::{Master, NODE, Out};
use super::random::Random;
use crate::service::commands::command::Command;
use crate::service::commands::task::{Run, RunState};

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

    pub(crate) fn is_agent_live(&self) -> bool {
        self.agent.is_live()
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

fn unreachable() -> LinkFailure {
    LinkFailure { kind: LinkFailureKind::Transient, message: "nobody is there".to_owned() }
}
