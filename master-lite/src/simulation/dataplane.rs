//! A model of the data plane: it takes a config, refuses it, or dies of it, by what its text says.

use std::collections::HashSet;
use std::time::Duration;

use control_agent::state::{PutOutcome, Refusal, Time};
use proto::v1;

/// What the data plane serves when it was started without the agent.
pub(crate) const OWN_FILE: &str = "the data plane's own file";

pub(crate) struct Dataplane {
    pid: u32,
    generation: u64,
    pub(crate) text: String,
    pub(crate) draining: bool,
    ready: bool,
    /// It does not run before then.
    down_until: Time,
    /// It dies then.
    dies_at: Option<Time>,
    /// Every text that was ever served, for the invariants.
    pub(crate) served: HashSet<String>,
}

/// Whether a text can be served at all.
pub(crate) fn is_good(text: &str) -> bool {
    !["invalid", "refused", "deadly", "dark"].iter().any(|word| text.contains(word))
}

impl Dataplane {
    pub(crate) fn new() -> Self {
        Self {
            pid: 100,
            generation: 1,
            text: OWN_FILE.to_owned(),
            draining: false,
            ready: true,
            down_until: Time::ZERO,
            dies_at: None,
            served: HashSet::new(),
        }
    }

    pub(crate) fn is_up(&self, now: Time) -> bool {
        now >= self.down_until
    }

    pub(crate) fn info(&self) -> v1::DataplaneInfo {
        v1::DataplaneInfo {
            pid: self.pid,
            generation: self.generation,
            draining: self.draining,
            ready: self.ready && !self.draining,
            ..v1::DataplaneInfo::default()
        }
    }

    pub(crate) fn put(&mut self, now: Time, text: &str) -> PutOutcome {
        if !self.is_up(now) {
            return PutOutcome::Later("it does not answer".to_owned());
        }
        if self.draining {
            return PutOutcome::Later("it drains".to_owned());
        }
        if text.contains("refused") {
            return PutOutcome::Refused(Refusal::new(v1::ConfigRefusal::Unusable, "no"));
        }
        if text.contains("at once deadly") {
            self.die(now);
            return PutOutcome::Broken("it hung up".to_owned());
        }
        if text.contains("deadly") {
            // Right after its answer: later deaths nobody could tell from other causes.
            self.dies_at = Some(now);
        } else if is_good(text) {
            self.served.insert(text.to_owned());
        }
        self.ready = !text.contains("dark");
        self.generation += 1;
        self.text = text.to_owned();
        PutOutcome::Applied { generation: self.generation }
    }

    /// It is started anew by systemd, with its own file.
    pub(crate) fn die(&mut self, now: Time) {
        self.pid += 1;
        self.generation = 1;
        self.text = OWN_FILE.to_owned();
        self.draining = false;
        self.ready = true;
        self.dies_at = None;
        self.down_until = now + Duration::from_millis(200);
    }

    pub(crate) fn turn(&mut self, now: Time) {
        if self.dies_at.is_some_and(|at| at <= now) {
            self.die(now);
        }
    }
}
