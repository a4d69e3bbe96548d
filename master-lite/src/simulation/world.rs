//! Models of everything around the agent: a disk that keeps what was written, a data plane that refuses, dies and
//! drains, a network that loses what is on its way, and a master that wants something. All of it in one thread, in
//! simulated time, from one seed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use control_agent::state::{
    Action, Agent, Event, Identity, LinkFailure, LinkFailureKind, Published, PutOutcome, Refusal, Start,
    Task, TaskEnd, Time,
};
use proto::v1::{self, agent_message, master_message};

use crate::dataplane::{Dataplane, OWN_FILE};

/// No simulated moment has more events than this: more is a loop.
const EVENTS_AT_ONCE_MAX: u32 = 2_000;

/// SplitMix64, as good as any for choosing faults.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
    fn ms(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

/// What survives a crash of the agent.
#[derive(Default)]
struct Disk {
    current: Option<Published>,
    candidate: Option<Published>,
    is_full: bool,
}

#[derive(Default)]
pub(crate) struct Master {
    pub(crate) desired: Option<Published>,
    /// As told by acks and states.
    pub(crate) applied: u64,
    pub(crate) refused: u64,
    /// The agent's session, once it has registered.
    session: Option<u64>,
    is_down: bool,
    /// Commands that were sent: the instance they went to, and the result.
    pub(crate) commands: BTreeMap<String, (u8, Option<v1::CommandOutcome>)>,
    last_heartbeat: Time,
}

/// What is on its way, and what was begun.
enum Delivery {
    ToAgent(u32, Event),
    ToMaster(u64, Box<v1::AgentMessage>),
    Register(u64, Box<v1::Register>),
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
    queue: Vec<(Time, u64, Delivery)>,
    sequence: u64,
    network_is_cut: bool,
    next_revision: u64,
    next_command: u64,
    /// Revisions that this instance was told are refused: they may not be tried again.
    refused_here: BTreeSet<u64>,
    /// Commands that were run, by instance.
    run: HashSet<(u32, String)>,
    /// Programs that are run do not end by themselves.
    programs_hang: bool,
    /// Commands whose program was ended.
    pub(crate) aborted: HashSet<String>,
    at_once: u32,
    /// What went in and out of the agent, if somebody wants to know.
    pub(crate) record: Option<Vec<String>>,
    /// The agent was killed while the first config of all was being tried: nobody knows any more what was before it.
    pub(crate) has_forgotten_before: bool,
}

fn agent_of(disk: &Disk, instance: u32, seed: u64) -> Agent {
    let identity = Identity {
        node_id: "n".to_owned(),
        instance_id: [u8::try_from(instance % 256).unwrap(); 16],
        ..Identity::default()
    };
    let start = Start {
        identity,
        is_enrolled: instance > 0,
        can_enroll: true,
        applied: disk.current.clone(),
        candidate: disk.candidate.clone(),
        problems: Vec::new(),
        seed,
    };
    Agent::new(start, Box::new(check))
}

/// As the config's own check: "invalid" is found before anything is tried.
fn check(text: &str) -> Result<(), Refusal> {
    if text.contains("invalid") {
        return Err(Refusal::new(v1::ConfigRefusal::Invalid, "it says invalid"));
    }
    Ok(())
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let disk = Disk::default();
        Self {
            now: Time::ZERO,
            random: Random(seed),
            agent: agent_of(&disk, 0, seed),
            instance: 0,
            disk,
            dataplane: Dataplane::new(),
            master: Master::default(),
            queue: Vec::new(),
            sequence: 0,
            network_is_cut: false,
            next_revision: 1,
            next_command: 1,
            refused_here: BTreeSet::new(),
            run: HashSet::new(),
            programs_hang: false,
            aborted: HashSet::new(),
            at_once: 0,
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
            let queued = self.queue.iter().map(|(at, sequence, _)| (*at, *sequence)).min();
            let timeout = self.agent.poll_timeout();
            let next = queued.map(|(at, _)| at).into_iter().chain(timeout).min().unwrap_or(end).max(self.now);
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
        if self.agent.is_live() && self.master.session.is_some() && !self.network_is_cut {
            let silence = self.now.saturating_sub(self.master.last_heartbeat);
            assert!(silence <= Duration::from_secs(12), "no heartbeat for {silence:?}");
        }
    }

    /// What goes in and out of the agent, where a person replays a seed.
    fn trace(&mut self, what: &dyn std::fmt::Debug) {
        if let Some(record) = &mut self.record {
            record.push(format!("{:?} {what:?}", self.now));
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
        match action {
            Action::Enroll if self.is_reachable() => self.tell(after, Event::Enrolled(Ok(()))),
            Action::Enroll => self.tell(after, Event::Enrolled(Err(unreachable()))),
            Action::Connect { session } if self.is_reachable() => {
                let register = Box::new(self.agent.registration());
                self.push(after, Delivery::Register(session, register));
            }
            Action::Connect { session } => {
                self.tell(after, Event::Disconnected { session, failure: unreachable() });
            }
            Action::Send { session, message } if self.is_reachable() => {
                // A stream keeps its order: everything is as late as everything else.
                self.push(Duration::from_millis(10), Delivery::ToMaster(session, message));
            }
            Action::Send { .. } => {}
            Action::Close { session, .. } => {
                if self.master.session == Some(session) {
                    self.master.session = None;
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
            Action::SaveCandidate(_) | Action::Promote(_) | Action::DropCandidate => {
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
                if let Event::Put(PutOutcome::Refused(_)) = &event {
                    let pending = self.agent.config_state().pending;
                    self.refused_here.extend(pending.map(|config| config.revision));
                }
                self.agent.handle(self.now, event);
            }
            Delivery::ToAgent(..) => {}
            Delivery::Do(instance, action) if instance == self.instance => self.carry_out(action),
            Delivery::Do(..) => {}
            Delivery::Register(session, register) => self.register(session, &register),
            Delivery::ToMaster(session, message) => {
                if self.master.session == Some(session) {
                    self.hear(session, *message);
                }
            }
        }
    }

    /// The disk and the data plane.
    fn carry_out(&mut self, action: Action) {
        let after = self.random.ms(5);
        let full = || Err("no space left on device".to_owned());
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

    fn register(&mut self, session: u64, register: &v1::Register) {
        if !self.is_reachable() {
            return self.tell(Duration::ZERO, Event::Disconnected { session, failure: unreachable() });
        }
        self.master.session = Some(session);
        self.master.last_heartbeat = self.now;
        self.say(session, master_message::Kind::Welcome(v1::Welcome::default()));
        self.learn(register.config.as_ref().unwrap());
        self.offer(register.config.as_ref().unwrap());
        let instance = register.instance_id[0];
        let missing =
            self.master.commands.iter().filter(|(_, (to, result))| *to == instance && result.is_none());
        let missing: Vec<String> = missing.map(|(id, _)| id.clone()).collect();
        for command_id in missing {
            self.send_command(session, command_id);
        }
    }

    fn hear(&mut self, session: u64, message: v1::AgentMessage) {
        match message.kind.unwrap() {
            agent_message::Kind::Heartbeat(heartbeat) => {
                self.master.last_heartbeat = self.now;
                self.learn(heartbeat.config.as_ref().unwrap());
                let ack = v1::HeartbeatAck { sequence: heartbeat.sequence };
                self.say(session, master_message::Kind::HeartbeatAck(ack));
            }
            agent_message::Kind::ConfigAck(ack) => {
                let revision = ack.config.unwrap().revision;
                let is_kept = self.disk.current.as_ref().is_some_and(|config| config.revision() == revision);
                assert!(is_kept, "revision {revision} was acknowledged, and is not kept");
                self.master.applied = revision;
            }
            agent_message::Kind::ConfigNack(nack) => self.master.refused = nack.config.unwrap().revision,
            agent_message::Kind::CommandResult(result) => {
                let outcome = result.outcome();
                let known = self.master.commands.get_mut(&result.command_id).unwrap();
                assert!(known.1.is_none_or(|before| before == outcome), "two results for one command");
                known.1 = Some(outcome);
            }
            agent_message::Kind::Register(_) => panic!("only the first message registers"),
            agent_message::Kind::Metrics(_)
            | agent_message::Kind::MetricsPiece(_)
            | agent_message::Kind::ConfigDeferred(_)
            | agent_message::Kind::CommandOutput(_)
            | agent_message::Kind::Leaving(_) => {}
        }
    }

    fn learn(&mut self, state: &v1::ConfigState) {
        if let Some(applied) = &state.applied {
            self.master.applied = applied.revision;
        }
        if let Some(refused) = state.refused.as_ref().and_then(|nack| nack.config.as_ref()) {
            self.master.refused = refused.revision;
        }
    }

    /// As `agent.proto` wants it: after a registration whose state is not the one wanted.
    fn offer(&mut self, state: &v1::ConfigState) {
        let (Some(desired), Some(session)) = (&self.master.desired, self.master.session) else { return };
        if state.applied.as_ref() != Some(&desired.to_ref()) {
            let offer = v1::ConfigOffer {
                config: Some(desired.to_ref()),
                text: desired.text().as_bytes().to_vec().into(),
            };
            self.say(session, master_message::Kind::ConfigOffer(offer));
        }
    }

    fn say(&mut self, session: u64, kind: master_message::Kind) {
        let message = v1::MasterMessage { kind: Some(kind) };
        self.tell(Duration::from_millis(10), Event::Received { session, message });
    }

    /// A new config is published; what it does is in its text.
    pub(crate) fn publish(&mut self, kind: &str) {
        let revision = self.next_revision;
        self.next_revision += 1;
        let published = Published::new(revision, &format!("v{revision}"), &format!("{kind} {revision}"));
        self.master.desired = Some(published);
        self.offer(&v1::ConfigState::default());
    }

    pub(crate) fn command(&mut self, kind: v1::CommandKind) {
        let Some(session) = self.master.session else { return };
        let id = format!("{}-{}", self.next_command, kind as i32);
        self.next_command += 1;
        self.master.commands.insert(id.clone(), (u8::try_from(self.instance % 256).unwrap(), None));
        self.send_command(session, id);
    }

    /// The last command is not wanted any more.
    pub(crate) fn cancel_command(&mut self) {
        let last = self.master.commands.keys().max_by_key(|id| number_of(id)).cloned();
        if let (Some(session), Some(command_id)) = (self.master.session, last) {
            self.say(session, master_message::Kind::CommandCancel(v1::CommandCancel { command_id }));
        }
    }

    /// Commands of the agent that runs now whose result the master does not know.
    pub(crate) fn missing_results(&self) -> Vec<&String> {
        let instance = u8::try_from(self.instance % 256).unwrap();
        let missing = |(_, (to, result)): &(&String, &(u8, Option<v1::CommandOutcome>))| {
            *to == instance && result.is_none()
        };
        self.master.commands.iter().filter(missing).map(|(id, _)| id).collect()
    }

    pub(crate) fn hang_programs(&mut self, programs_hang: bool) {
        self.programs_hang = programs_hang;
    }

    fn send_command(&mut self, session: u64, command_id: String) {
        let kind = command_id.rsplit('-').next().unwrap().parse().unwrap();
        let command = v1::Command { command_id, kind, deadline_ms: 5_000, log_lines: 0 };
        self.say(session, master_message::Kind::Command(command));
    }

    fn is_reachable(&self) -> bool {
        !self.network_is_cut && !self.master.is_down
    }

    /// The stream ends; what is on its way in either direction is lost.
    pub(crate) fn drop_session(&mut self) {
        self.queue.retain(|(_, _, delivery)| {
            !matches!(
                delivery,
                Delivery::ToMaster(..)
                    | Delivery::Register(..)
                    | Delivery::ToAgent(_, Event::Received { .. })
            )
        });
        if let Some(session) = self.master.session.take() {
            self.tell(Duration::ZERO, Event::Disconnected { session, failure: unreachable() });
        }
    }

    /// Nothing arrives any more, and nobody is told; when it is whole again, a stream with a gap cannot go on.
    pub(crate) fn cut_network(&mut self, is_cut: bool) {
        if self.network_is_cut && !is_cut {
            self.drop_session();
        }
        self.network_is_cut = is_cut;
        self.queue.retain(|(_, _, delivery)| {
            !is_cut
                || !matches!(delivery, Delivery::ToMaster(..) | Delivery::ToAgent(_, Event::Received { .. }))
        });
    }

    pub(crate) fn set_master_down(&mut self, is_down: bool) {
        self.master.is_down = is_down;
        if is_down {
            self.drop_session();
        }
    }

    /// kill -9 of the agent, at whatever it was doing; it is started anew from its disk.
    pub(crate) fn crash_agent(&mut self) {
        self.drop_session();
        self.has_forgotten_before |= self.disk.current.is_none() && self.dataplane.text != OWN_FILE;
        self.instance += 1;
        self.refused_here.clear();
        self.agent = agent_of(&self.disk, self.instance, self.random.next());
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

/// Commands are numbered, and their kind stands behind.
fn number_of(id: &str) -> u64 {
    id.split('-').next().unwrap().parse().unwrap()
}

fn unreachable() -> LinkFailure {
    LinkFailure { kind: LinkFailureKind::Transient, message: "nobody is there".to_owned() }
}
