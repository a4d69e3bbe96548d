//! From an offered config to one that serves, and back to the last good one whenever the data plane serves another.
//!
//! ```text
//!                 offer                 saved               applied              serving
//! Idle ──────────────▶ Saving ───────────────▶ Putting ───────────▶ Verifying ───────────▶ Promoting ──▶ Idle, ack
//!  │ ▲                   │ failed                │ busy, away          │ ended, exchanged       │ failed
//!  │ │                   ▼                       ▼                     ▼                        ▼
//!  │ │                Deferred ◀─────────────────┴─────────────────────┴────────────────────────┘
//!  │ └─ nack ◀──────────────────────────────── refused          not serving in time: nack, Repair
//!  │                                                               ▲
//!  │      Reading, after a start: the text that was being applied ─┘ (Adopt)
//!  ▼ another generation than the known one
//! Reading ── the wanted text ──▶ Idle
//!         └─ another text ────▶ Putting (Repair, without saving: it is the last good one)
//! ```
//! What is refused is remembered under its revision: the same offer is answered from memory. A repair is never refused
//! for good, since its config has served before: it is tried again, ever more rarely.
//!
//! Here is what is wanted, and what the master is told; the way of one config through its steps is in [`steps`].

mod steps;

use std::time::Duration;

use proto::fleet::CommandId;
use proto::v1;

use super::config::{Job, Published, Purpose, Refusal};
use super::{Action, Time};
use crate::backoff::Backoff;

/// How often the data plane is looked at: how long one that was started anew serves its own file at most.
const OBSERVE_EVERY: Duration = Duration::from_secs(2);
/// How often while a config is being verified: an operator waits.
const VERIFY_EVERY: Duration = Duration::from_millis(20);
/// The first retry of what cannot be done now.
const RETRY_BASE: Duration = Duration::from_millis(500);
/// Retries cost one call on a Unix socket: they can be frequent.
const RETRY_CAP: Duration = Duration::from_secs(30);

#[derive(Debug)]
enum Phase {
    /// The data plane has not been seen yet.
    Starting,
    Idle,
    /// The data plane's config is being read. `begins`: for the first time.
    Reading {
        begins: bool,
    },
    /// A config is on its way.
    Working(Job, Step),
}

/// Where on its way a config is.
#[derive(Debug)]
enum Step {
    Saving,
    Putting,
    Verifying { generation: u64, pid: u32, deadline: Time },
    Promoting { generation: u64 },
    Deferred { until: Time, reason: String },
}

/// What the master is to be told.
#[derive(Debug)]
pub(super) enum Report {
    Ack(v1::ConfigAck),
    Nack(v1::ConfigNack),
    Deferred(v1::ConfigDeferred),
    /// How a reload ended.
    Reloaded(Vec<CommandId>, Result<String, String>),
}

/// What comes of an event.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    pub(super) actions: Vec<Action>,
    pub(super) reports: Vec<Report>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Deploy {
    phase: Phase,
    /// The last config that was verified, as saved.
    applied: Option<Published>,
    /// What the data plane served before the first config came, to be put back if that one does not serve. Not kept
    /// over a restart: then its own file is what it begins with.
    own: Option<Published>,
    /// What was being applied when the agent ended.
    candidate: Option<Published>,
    /// Process and generation of the data plane that serve `applied`.
    known: Option<(u32, u64)>,
    /// An offer that came while another config was being applied.
    next: Option<Job>,
    /// Revision of the last offer: what was offered before it is not wanted any more.
    wanted: u64,
    refused: Option<v1::ConfigNack>,
    has_drifted: bool,
    /// The data plane was given a config that has not become the last good one: it may serve it, or half of it.
    is_tainted: bool,
    seen: v1::DataplaneInfo,
    is_observing: bool,
    next_observation: Time,
    backoff: Backoff,
}

impl Deploy {
    /// `applied` and `candidate` are as found in the store.
    pub(super) fn new(applied: Option<Published>, candidate: Option<Published>, seed: u64) -> Self {
        Self {
            phase: Phase::Starting,
            applied,
            own: None,
            candidate,
            known: None,
            next: None,
            wanted: 0,
            refused: None,
            has_drifted: false,
            is_tainted: false,
            seen: v1::DataplaneInfo::default(),
            is_observing: false,
            next_observation: Time::ZERO,
            backoff: Backoff::new(RETRY_BASE, RETRY_CAP, seed),
        }
    }

    pub(super) fn dataplane(&self) -> &v1::DataplaneInfo {
        &self.seen
    }

    pub(super) fn state(&self) -> v1::ConfigState {
        let (pending, pending_reason) = match &self.phase {
            Phase::Working(job, Step::Deferred { reason, .. }) => (Some(job), reason.as_str()),
            Phase::Working(job, _) => (Some(job), ""),
            Phase::Starting => (self.next.as_ref(), "the data plane has not answered yet"),
            Phase::Idle | Phase::Reading { .. } => (self.next.as_ref(), ""),
        };
        let pending = pending.filter(|job| job.is_offer());
        let is_trying = self.is_at(|step| matches!(step, Step::Verifying { .. } | Step::Promoting { .. }));
        v1::ConfigState {
            applied: self.applied.as_ref().map(Published::to_ref),
            generation: self.known.map_or(0, |(_, generation)| generation),
            pending: pending.map(|job| job.config.to_ref()),
            pending_reason: pending.map(|_| pending_reason.to_owned()).unwrap_or_default(),
            refused: self.refused.clone(),
            drifted: self.has_drifted || self.is_tainted && !is_trying,
        }
    }

    /// What an operator should know of the data plane and its config.
    pub(super) fn problem(&self) -> Option<String> {
        match &self.phase {
            Phase::Working(job, Step::Deferred { reason, .. }) => {
                let what =
                    if job.is_offer() { "a new config waits" } else { "the last good config is not served" };
                Some(format!("{what}: {reason}"))
            }
            Phase::Starting | Phase::Idle | Phase::Reading { .. } if !self.seen.answering => {
                Some("the data plane does not answer on its admin socket".to_owned())
            }
            Phase::Starting | Phase::Idle | Phase::Reading { .. } | Phase::Working(..) => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let observation = (!self.is_observing).then_some(self.next_observation);
        let own = match &self.phase {
            Phase::Working(_, Step::Verifying { deadline: at, .. } | Step::Deferred { until: at, .. }) => {
                Some(*at)
            }
            Phase::Starting | Phase::Idle | Phase::Reading { .. } | Phase::Working(..) => None,
        };
        observation.into_iter().chain(own).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Time, out: &mut Outputs) {
        if !self.is_observing && self.next_observation <= now {
            self.observe(now, out);
        }
        let verifies_too_long =
            |step: &Step| matches!(step, Step::Verifying { deadline, .. } if *deadline <= now);
        let has_waited = |step: &Step| matches!(step, Step::Deferred { until, .. } if *until <= now);
        if let Some((job, _)) = self.take_at(verifies_too_long) {
            self.handle_verify_timeout(now, job, out);
        } else if let Some((job, _)) = self.take_at(has_waited) {
            self.begin(job, out);
        }
    }

    fn is_at(&self, wanted: impl Fn(&Step) -> bool) -> bool {
        matches!(&self.phase, Phase::Working(_, step) if wanted(step))
    }

    /// The config that is on its way, if it is at a step that is wanted; until something else is said, the machine rests.
    fn take_at(&mut self, wanted: impl Fn(&Step) -> bool) -> Option<(Job, Step)> {
        if !self.is_at(wanted) {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Working(job, step) => Some((job, step)),
            Phase::Starting | Phase::Idle | Phase::Reading { .. } => None,
        }
    }

    fn is_deferred(&self) -> bool {
        self.is_at(|step| matches!(step, Step::Deferred { .. }))
    }

    /// Looks at the data plane now: something has been done to it.
    pub(super) fn observe(&mut self, now: Time, out: &mut Outputs) {
        if !self.is_observing {
            self.is_observing = true;
            out.actions.push(Action::Observe);
        }
        self.next_observation = now + self.observe_every();
    }

    fn observe_every(&self) -> Duration {
        let is_verifying = self.is_at(|step| matches!(step, Step::Verifying { .. }));
        if is_verifying { VERIFY_EVERY } else { OBSERVE_EVERY }
    }

    /// An offer. `check` says whether the text is a valid config, as far as can be said here.
    pub(super) fn handle_offer(
        &mut self,
        now: Time,
        offer: &v1::ConfigOffer,
        check: &dyn Fn(&str) -> Result<(), Refusal>,
        out: &mut Outputs,
    ) {
        self.wanted = offer.config.as_ref().map_or(0, |config| config.revision);
        let config = match self.accept(offer, check) {
            Ok(config) => config,
            Err(nack) => {
                // It replaces an offer that waited all the same: the master does not want that any more.
                if self.waiting().is_some_and(Job::is_offer) {
                    if self.is_deferred() {
                        out.actions.push(Action::DropCandidate);
                    }
                    self.forget_waiting(out);
                    self.begin_next(now, out);
                }
                self.refused = Some(nack.clone());
                out.reports.push(Report::Nack(nack));
                return;
            }
        };
        if self.is_under_way(&config) {
            return;
        }
        self.forget_waiting(out);
        self.next = Some(Job::new(config, Purpose::Offer(now)));
        self.begin_next(now, out);
    }

    fn accept(
        &self,
        offer: &v1::ConfigOffer,
        check: &dyn Fn(&str) -> Result<(), Refusal>,
    ) -> Result<Published, v1::ConfigNack> {
        if let Some(nack) = &self.refused
            && nack.config.is_some()
            && nack.config == offer.config
        {
            return Err(nack.clone());
        }
        let name = offer.config.clone().unwrap_or_default();
        let config = Published::offered(offer).map_err(|refusal| refusal.nack(name.clone()))?;
        // A data plane of another version may know keys that this agent does not: then it is the one to ask.
        if self.seen.version.is_empty() || self.seen.version == env!("CARGO_PKG_VERSION") {
            check(config.text()).map_err(|refusal| refusal.nack(name))?;
        }
        Ok(config)
    }

    fn is_under_way(&self, config: &Published) -> bool {
        let is_same = |job: &Job| job.is_offer() && job.config == *config;
        match &self.phase {
            Phase::Working(job, _) => is_same(job) && self.next.is_none(),
            Phase::Starting | Phase::Idle | Phase::Reading { .. } => false,
        }
    }

    fn waiting(&self) -> Option<&Job> {
        match &self.phase {
            Phase::Working(job, Step::Deferred { .. }) => Some(job),
            Phase::Starting | Phase::Idle | Phase::Reading { .. } | Phase::Working(..) => self.next.as_ref(),
        }
    }

    /// What has not begun yet is dropped; what has begun comes to its end first. A repair that is dropped is found to be
    /// needed again by the next observation.
    fn forget_waiting(&mut self, out: &mut Outputs) {
        if let Some(job) = self.next.take() {
            out.reload_failed(job.reloads, "another config was offered meanwhile");
        }
        if let Some((job, _)) = self.take_at(|step| matches!(step, Step::Deferred { .. })) {
            out.reload_failed(job.reloads, "another config was offered meanwhile");
        }
    }

    /// The published config is to be given to the data plane again. False: there is none.
    pub(super) fn reload(&mut self, now: Time, command: CommandId, out: &mut Outputs) -> bool {
        if let Phase::Working(job, Step::Saving | Step::Putting) = &mut self.phase {
            job.reloads.push(command);
            return true;
        }
        let deferred = self.take_at(|step| matches!(step, Step::Deferred { .. })).map(|(job, _)| job);
        let last_good = || self.applied.clone().map(|config| Job::new(config, Purpose::Repair));
        let Some(mut job) = self.next.take().or(deferred).or_else(last_good) else { return false };
        job.reloads.push(command);
        self.next = Some(job);
        self.begin_next(now, out);
        self.observe(now, out);
        true
    }

    fn begin_next(&mut self, now: Time, out: &mut Outputs) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        let Some(job) = self.next.take().or_else(|| self.put_back()) else { return };
        let is_served = self.applied.as_ref() == Some(&job.config) && !self.has_drifted && !self.is_tainted;
        match self.known {
            Some((_, generation)) if job.is_offer() && is_served && job.reloads.is_empty() => {
                self.finish(now, job, generation, out);
            }
            Some(_) | None => self.begin(job, out),
        }
    }

    /// What puts the config back that was before one that is not wanted.
    fn put_back(&mut self) -> Option<Job> {
        let before = self.applied.as_ref().or(self.own.as_ref()).filter(|_| self.is_tainted)?;
        Some(Job::new(before.clone(), Purpose::Repair))
    }

    fn begin(&mut self, mut job: Job, out: &mut Outputs) {
        if let (Purpose::Repair, Some(applied)) = (job.purpose, &self.applied) {
            // While it waited, another one may have become the last good one.
            job.config = applied.clone();
        }
        if job.is_offer() {
            out.actions.push(Action::SaveCandidate(job.config.clone()));
            self.phase = Phase::Working(job, Step::Saving);
        } else {
            out.actions.push(Action::Put(job.config.clone()));
            self.phase = Phase::Working(job, Step::Putting);
        }
    }
}

impl Outputs {
    fn reload_failed(&mut self, reloads: Vec<CommandId>, reason: &str) {
        if !reloads.is_empty() {
            self.reports.push(Report::Reloaded(reloads, Err(reason.to_owned())));
        }
    }
}
