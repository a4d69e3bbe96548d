//! The agent's credentials as its driver and its disk have them, and a thief with a copy.
//!
//! Secrets are counted, so that a seed replays them.

use std::collections::HashSet;

use proto::fleet::{NodeCredential, SECRET_BYTES};

use super::master::NODE;

/// SHA-256 of a credential's text.
pub(super) type Sha256 = [u8; 32];

/// What the agent's host has.
#[derive(Default)]
pub(super) struct Keyring {
    made: u64,
    /// On the disk: `credential`, `credential.new`, `credential.next` and `credential.previous`.
    used: Option<NodeCredential>,
    new: Option<NodeCredential>,
    next: Option<NodeCredential>,
    previous: Option<NodeCredential>,
    /// In memory: what sessions are opened with.
    shown: Option<NodeCredential>,
}

impl Keyring {
    /// The process begins; whether it has been enrolled.
    pub(super) fn start(&mut self) -> bool {
        if self.used.is_none() {
            self.enrolling();
        }
        self.shown = self.used.clone().or_else(|| self.new.clone());
        self.used.is_some()
    }

    /// What a session is opened with.
    pub(super) fn shown(&self) -> NodeCredential {
        self.shown.clone().expect("it has begun")
    }

    /// What the node enrols with.
    pub(super) fn enrolling(&mut self) -> NodeCredential {
        if self.new.is_none() {
            self.new = Some(self.fresh());
        }
        self.new.clone().expect("it was made")
    }

    /// The master has enrolled it.
    pub(super) fn keep_enrolled(&mut self) {
        if let Some(enrolled) = self.new.take() {
            (self.next, self.previous) = (None, None);
            (self.used, self.shown) = (Some(enrolled.clone()), Some(enrolled));
        }
    }

    /// What it was to enrol with is not taken.
    pub(super) fn drop_enrolling(&mut self) {
        self.new = None;
    }

    /// One to take the place of the one that is used.
    pub(super) fn make_next(&mut self) -> Sha256 {
        let next = self.fresh();
        let verifier = *next.verifier().as_bytes();
        self.next = Some(next);
        verifier
    }

    /// It takes the place.
    pub(super) fn keep_next(&mut self) {
        let next = self.next.take().expect("only what was made can be kept");
        self.previous = self.used.replace(next.clone());
        self.shown = Some(next);
    }

    /// What is tried where the master does not know this one.
    pub(super) fn otherwise(&self, shown: &NodeCredential) -> Option<NodeCredential> {
        self.previous.clone().filter(|_| self.shown.as_ref() == Some(shown))
    }

    /// What a copy of the state folder has in it.
    pub(super) fn copy(&self) -> Option<NodeCredential> {
        self.used.clone()
    }

    fn fresh(&mut self) -> NodeCredential {
        self.made += 1;
        secret_of(self.made)
    }
}

/// Somebody with a copy of the agent's state folder.
#[derive(Default)]
pub(super) struct Thief {
    pub(super) stolen: Option<NodeCredential>,
    /// Counts starts of the thief's agent.
    pub(super) starts: u8,
}

impl Thief {
    /// Of the thief's agent; the agent's own count from 0.
    pub(super) fn instance_id(&self) -> [u8; 16] {
        [255 - self.starts; 16]
    }

    /// One that the thief makes.
    pub(super) fn make_next(&mut self) -> NodeCredential {
        secret_of(u64::MAX - u64::from(self.starts))
    }
}

/// Secrets that may open no session any more.
#[derive(Default)]
pub(super) struct Void {
    /// Good once, in the order in which they came.
    good: Vec<Sha256>,
    /// Replaced; a crash of the master may have it forget that.
    replaced: HashSet<Sha256>,
    /// Of a node that was deleted.
    deleted: HashSet<Sha256>,
}

impl Void {
    /// One more is good.
    pub(super) fn add_good(&mut self, verifier: Sha256) {
        if !self.good.contains(&verifier) {
            self.good.push(verifier);
        }
    }

    /// This one has taken the place of all others.
    pub(super) fn replace_all_by(&mut self, verifier: Sha256) {
        self.add_good(verifier);
        self.replaced.extend(self.good.iter().filter(|good| **good != verifier));
    }

    /// The master was killed.
    pub(super) fn forget_replaced(&mut self) {
        self.replaced.clear();
    }

    /// The node was deleted.
    pub(super) fn delete_all(&mut self) {
        self.deleted.extend(self.good.drain(..));
    }

    /// Whether it may not open a session.
    pub(super) fn has(&self, verifier: &Sha256) -> bool {
        self.replaced.contains(verifier) || self.was_deleted(verifier)
    }

    /// Whether no node may enrol with it.
    pub(super) fn was_deleted(&self, verifier: &Sha256) -> bool {
        self.deleted.contains(verifier)
    }
}

fn secret_of(number: u64) -> NodeCredential {
    let mut secret = [0; SECRET_BYTES];
    secret[..8].copy_from_slice(&number.to_le_bytes());
    NodeCredential::new(NODE.parse().expect("it is an id"), secret)
}
