//! Between the agent and its master: what arrives on each side, and what each side may believe of it.

use std::time::Duration;

use control_agent::state::{Event, LinkFailure, LinkFailureKind};
use proto::fleet::NodeCredential;
use proto::v1::{self, agent_message};

use super::{Line, Out, Sha256, World, unreachable};
use crate::service::refusal::{Kind, Refusal};

impl World {
    pub(super) fn enrol(&mut self, credential: &NodeCredential) -> Result<(), LinkFailure> {
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

    pub(super) fn register(&mut self, session: u64, credential: &NodeCredential, register: v1::Register) {
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

    pub(super) fn hear(&mut self, stream: u64, message: v1::AgentMessage) {
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

    pub(super) fn poll_master(&mut self) {
        let out = self.master.poll(self.now_ms());
        self.carry(out);
    }

    /// Brings to the agent what the master says, as far as the network does.
    pub(super) fn carry(&mut self, out: Vec<Out>) {
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
