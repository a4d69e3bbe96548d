//! What befalls the agent's credential: copies, false claims, and an operator who deletes the node and lets it in again.

use std::time::Duration;

use proto::fleet::capability;
use proto::v1::{self, agent_message, master_message};

use super::{NODE, Out, World, text_of};

impl World {
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
        let mut is_asked = self.beat(stream);
        // A thief who stays: the owner has as long to come back.
        for _ in 0..if takes_over { 10 } else { 0 } {
            self.run_for(Duration::from_secs(10));
            is_asked |= !self.master.is_down() && self.beat(stream);
        }
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

    /// The thief's heartbeat; whether another credential is wanted.
    fn beat(&mut self, stream: u64) -> bool {
        let heartbeat = agent_message::Kind::Heartbeat(v1::Heartbeat::default());
        let told = self.master.hear(stream, message(heartbeat), self.now_ms());
        told.iter().any(|out| {
            let Out::Message(_, told) = out else { return false };
            matches!(told.kind, Some(master_message::Kind::CredentialWanted(_)))
        })
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
}

fn message(kind: agent_message::Kind) -> v1::AgentMessage {
    v1::AgentMessage { kind: Some(kind) }
}
