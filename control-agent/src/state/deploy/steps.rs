//! The way of one config through its steps: saved, put, verified, promoted; or deferred, refused, put back.

use std::time::Duration;

use proto::v1;

use super::super::config::{Job, Published, Purpose, Refusal};
use super::super::{Action, PutOutcome, Time};
use super::{Deploy, Outputs, Phase, Report, Step};

/// How long a config that was applied may take to serve. Applying is a matter of milliseconds.
const VERIFY_WITHIN: Duration = Duration::from_secs(10);
/// A config under which the data plane ends this often is the reason.
const CRASHES_MAX: u32 = 3;

impl Deploy {
    pub(in crate::state) fn handle_saved(
        &mut self,
        now: Time,
        result: Result<(), String>,
        out: &mut Outputs,
    ) {
        let Some((job, _)) = self.take_at(|step| matches!(step, Step::Saving)) else { return };
        match result {
            Ok(()) => {
                out.actions.push(Action::Put(job.config.clone()));
                self.phase = Phase::Working(job, Step::Putting);
            }
            Err(error) => self.defer(now, job, format!("the config cannot be saved: {error}"), out),
        }
    }

    pub(in crate::state) fn handle_put(&mut self, now: Time, outcome: PutOutcome, out: &mut Outputs) {
        let Some((job, _)) = self.take_at(|step| matches!(step, Step::Putting)) else { return };
        self.is_tainted |= matches!(outcome, PutOutcome::Applied { .. } | PutOutcome::Broken(_));
        match outcome {
            PutOutcome::Applied { generation } => self.begin_verify(now, job, generation, out),
            PutOutcome::Broken(_) => self.handle_crash(now, job, out),
            PutOutcome::Refused(refusal) if job.is_offer() => self.refuse(now, job, refusal, out),
            PutOutcome::Refused(refusal) => {
                self.defer(now, job, format!("it is refused now: {}", refusal.message), out);
            }
            PutOutcome::Later(reason) => self.defer(now, job, reason, out),
        }
    }

    /// Whether it is the last that was offered.
    fn is_wanted(&self, job: &Job) -> bool {
        job.is_offer() && job.config.revision() == self.wanted
    }

    fn begin_verify(&mut self, now: Time, job: Job, generation: u64, out: &mut Outputs) {
        let (pid, deadline) = (self.seen.pid, now + VERIFY_WITHIN);
        self.phase = Phase::Working(job, Step::Verifying { generation, pid, deadline });
        self.observe(now, out);
    }

    /// The config before is served on.
    fn refuse(&mut self, now: Time, mut job: Job, refusal: Refusal, out: &mut Outputs) {
        out.reload_failed(std::mem::take(&mut job.reloads), &refusal.message);
        let nack = refusal.nack(job.config.to_ref());
        if self.is_wanted(&job) {
            self.refused = Some(nack.clone());
        }
        out.reports.push(Report::Nack(nack));
        out.actions.push(Action::DropCandidate);
        self.begin_next(now, out);
    }

    fn defer(&mut self, now: Time, mut job: Job, reason: String, out: &mut Outputs) {
        out.reload_failed(std::mem::take(&mut job.reloads), &reason);
        let is_dropped = job.purpose != Purpose::Repair && !self.is_wanted(&job);
        if is_dropped {
            out.actions.push(Action::DropCandidate);
        }
        // What is not tried again here is found by the next observation, if it is still needed.
        if is_dropped || self.next.as_ref().is_some_and(Job::is_offer) {
            return self.begin_next(now, out);
        }
        // A reload that came meanwhile has met the same obstacle.
        if let Some(reload) = self.next.take() {
            out.reload_failed(reload.reloads, &reason);
        }
        let delay = self.backoff.next_delay();
        if job.is_offer() {
            let retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            let config = Some(job.config.to_ref());
            out.reports.push(Report::Deferred(v1::ConfigDeferred {
                config,
                reason: reason.clone(),
                retry_in_ms,
            }));
        }
        self.phase = Phase::Working(job, Step::Deferred { until: now + delay, reason });
    }

    /// The data plane as it was seen; none: it does not answer.
    pub(in crate::state) fn handle_observed(
        &mut self,
        now: Time,
        seen: Option<v1::DataplaneInfo>,
        out: &mut Outputs,
    ) {
        self.is_observing = false;
        self.next_observation = now + self.observe_every();
        let was = (self.seen.answering, self.seen.draining);
        match seen {
            Some(seen) => self.seen = v1::DataplaneInfo { answering: true, ..seen },
            None => self.seen.answering = false,
        }
        let has_changed = was != (self.seen.answering, self.seen.draining);
        let place = (self.seen.pid, self.seen.generation);
        if !self.seen.answering {
            return;
        }
        match self.phase {
            Phase::Starting => self.read(true, out),
            Phase::Idle if self.applied.is_some() && self.known != Some(place) => self.read(false, out),
            Phase::Idle | Phase::Reading { .. } => {}
            Phase::Working(..) => self.step_on(now, has_changed, out),
        }
    }

    /// The config on its way may have come further by what was seen.
    fn step_on(&mut self, now: Time, has_changed: bool, out: &mut Outputs) {
        if let Some((job, step)) = self.take_at(|step| matches!(step, Step::Verifying { .. })) {
            self.verify(now, job, step, out);
        } else if has_changed && !self.seen.draining && self.is_deferred() {
            // What it waited for may have come.
            let waited = self.take_at(|step| matches!(step, Step::Deferred { .. }));
            if let Some((job, _)) = waited {
                self.begin(job, out);
            }
        }
    }

    fn read(&mut self, begins: bool, out: &mut Outputs) {
        self.phase = Phase::Reading { begins };
        out.actions.push(Action::ReadConfig);
    }

    fn verify(&mut self, now: Time, job: Job, step: Step, out: &mut Outputs) {
        let Step::Verifying { generation, pid, .. } = step else { return };
        if self.seen.pid != pid {
            return self.handle_crash(now, job, out);
        }
        if self.seen.generation > generation {
            return self.defer(now, job, "somebody else applied another config meanwhile".to_owned(), out);
        }
        if self.seen.draining {
            // Whether it would be ready cannot be seen.
            return self.defer(now, job, "the data plane began to drain meanwhile".to_owned(), out);
        }
        let serves = self.seen.generation == generation && self.seen.ready;
        if !serves {
            self.phase = Phase::Working(job, step);
        } else if job.purpose == Purpose::Repair {
            self.finish(now, job, generation, out);
        } else {
            out.actions.push(Action::Promote(job.config.clone()));
            self.phase = Phase::Working(job, Step::Promoting { generation });
        }
    }

    /// The process that took the config is gone: by chance, or because of it.
    fn handle_crash(&mut self, now: Time, mut job: Job, out: &mut Outputs) {
        job.crashes += 1;
        if job.crashes >= CRASHES_MAX {
            return self.handle_not_serving(now, job, out);
        }
        self.defer(
            now,
            job,
            "the data plane's process was exchanged while it took the config".to_owned(),
            out,
        );
    }

    pub(in crate::state) fn handle_verify_timeout(&mut self, now: Time, job: Job, out: &mut Outputs) {
        if self.seen.answering {
            self.handle_not_serving(now, job, out)
        } else {
            self.handle_crash(now, job, out)
        }
    }

    fn handle_not_serving(&mut self, now: Time, mut job: Job, out: &mut Outputs) {
        let message = if job.crashes >= CRASHES_MAX {
            format!("the data plane's process ended {} times under it", job.crashes)
        } else {
            format!("it was applied, but was not served within {} s", VERIFY_WITHIN.as_secs())
        };
        job.crashes = 0;
        if !job.is_offer() {
            return self.defer(now, job, message, out);
        }
        self.refuse(now, job, Refusal::new(v1::ConfigRefusal::NotServing, message), out);
    }

    pub(in crate::state) fn handle_promoted(
        &mut self,
        now: Time,
        result: Result<(), String>,
        out: &mut Outputs,
    ) {
        let promoting = self.take_at(|step| matches!(step, Step::Promoting { .. }));
        let Some((job, Step::Promoting { generation })) = promoting else { return };
        match result {
            Ok(()) => {
                self.applied = Some(job.config.clone());
                self.candidate = None;
                self.finish(now, job, generation, out);
            }
            Err(error) => {
                self.defer(now, job, format!("the config serves, but cannot be saved: {error}"), out)
            }
        }
    }

    /// The job's config serves, and is the one that is kept.
    pub(super) fn finish(&mut self, now: Time, job: Job, generation: u64, out: &mut Outputs) {
        self.backoff.reset();
        self.known = Some((self.seen.pid, generation));
        self.has_drifted = false;
        self.is_tainted = false;
        if self.is_wanted(&job) {
            self.refused = None;
        }
        if let Purpose::Offer(came) = job.purpose {
            let took_ms = u64::try_from(now.saturating_sub(came).as_millis()).unwrap_or(u64::MAX);
            let ack = v1::ConfigAck { config: Some(job.config.to_ref()), generation, took_ms };
            out.reports.push(Report::Ack(ack));
        }
        if !job.reloads.is_empty() {
            out.reports.push(Report::Reloaded(job.reloads, Ok(format!("generation {generation} serves"))));
        }
        self.begin_next(now, out);
    }

    /// What the data plane serves; none: it could not be read.
    pub(in crate::state) fn handle_config_read(&mut self, now: Time, text: Option<&str>, out: &mut Outputs) {
        let Phase::Reading { begins } = self.phase else { return };
        let Some(text) = text else {
            // The next observation tries again.
            self.phase = if begins { Phase::Starting } else { Phase::Idle };
            return;
        };
        self.phase = Phase::Idle;
        let served = Published::new(0, "", text);
        let is_served = |config: &Published| config.digest() == served.digest();
        let candidate = self.candidate.take();
        if let Some(candidate) = candidate.filter(|_| begins) {
            if is_served(&candidate) {
                // The agent ended between applying it and keeping it.
                self.is_tainted = true;
                let job = Job::new(candidate, Purpose::Adopt);
                return self.begin_verify(now, job, self.seen.generation, out);
            }
            out.actions.push(Action::DropCandidate);
        }
        self.has_drifted = false;
        match self.applied.clone() {
            Some(config) if is_served(&config) => self.known = Some((self.seen.pid, self.seen.generation)),
            // An offer replaces it in a moment.
            Some(_) if self.next.is_some() => self.has_drifted = true,
            Some(config) => {
                self.has_drifted = true;
                self.next = Some(Job::new(config, Purpose::Repair));
            }
            None => self.own = Some(served),
        }
        self.begin_next(now, out);
    }
}
