//! What the master makes of an agent's messages: what the agent is told, what is noted of its configs, and who else has
//! to hear it. Pure: the stream is in `api/grpc/session.rs`, and the simulation has none.

use proto::fleet::{PROTOCOL_REVISION, Pieces, capability, limits};
use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{ConfigOffer, ConfigState, CredentialWanted, HeartbeatAck, Intervals, Register, Welcome};

use super::admission::Admitted;
use super::convergence::NodeConfigRecord;
use super::node_credentials::ASK_AGAIN_AFTER_MS;
use super::offer::Offer;

/// Of the verifier of a credential.
const SHA256_BYTES: usize = 32;

/// One session's dialogue, from its `Register` on.
#[derive(Debug)]
pub(crate) struct Dialogue {
    /// What the node says of its configs, kept to piece acks and nacks into it.
    config: ConfigState,
    /// What has come of a report.
    pieces: Pieces,
    /// Whether a heartbeat has come: the agent has heard the welcome.
    is_confirmed: bool,
    /// When the agent is to be asked for another credential; none: it is not.
    change_at_ms: Option<u64>,
}

/// What a message comes to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Heard {
    /// The answer that it needs.
    pub(crate) answer: Option<Told>,
    /// What the node says of its configs, where it has said something of them.
    pub(crate) config: Option<NodeConfigRecord>,
    /// What it has said, whole, for the listeners.
    pub(crate) said: Option<Said>,
    /// It is the first heartbeat: whoever registered lives.
    pub(crate) is_first: bool,
}

/// Why a dialogue does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The agent said goodbye.
    Left,
    /// It said something that no agent says: the field, and what is wrong.
    Rubbish(String),
}

impl Dialogue {
    /// As an agent begins it.
    pub(crate) fn begin(register: &Register, admitted: Admitted) -> Self {
        let config = register.config.clone().unwrap_or_default();
        let Admitted { change_at_ms } = admitted;
        Self { config, pieces: Pieces::default(), is_confirmed: false, change_at_ms }
    }

    /// Somebody has a copy of the agent's credential: it is asked for another at once, if it can make one.
    pub(crate) fn hurry_credential(&mut self) {
        self.change_at_ms = self.change_at_ms.map(|_| 0);
    }

    /// The agent is not asked for another credential before that.
    pub(crate) fn delay_credential(&mut self, until_ms: u64) {
        self.change_at_ms = self.change_at_ms.map(|due_ms| due_ms.max(until_ms));
    }

    /// The agent has replaced its credential; when it is to do so again.
    pub(crate) fn set_credential_change(&mut self, at_ms: Option<u64>) {
        self.change_at_ms = at_ms;
    }

    /// What the agent is told of its credential by now.
    pub(crate) fn poll_credential(&mut self, at_ms: u64) -> Option<Told> {
        if !self.is_confirmed || self.change_at_ms.is_none_or(|due_ms| at_ms < due_ms) {
            return None;
        }
        self.change_at_ms = Some(at_ms + ASK_AGAIN_AFTER_MS);
        Some(Told::CredentialWanted(CredentialWanted {}))
    }

    /// What the node says of its configs.
    pub(crate) fn config(&self, at_ms: u64) -> NodeConfigRecord {
        NodeConfigRecord::of(&self.config, at_ms)
    }

    /// What is sent to a node that should have a config; none: it has it, or has refused it.
    pub(crate) fn offer(&self, wanted: &Offer) -> Option<ConfigOffer> {
        let applied = self.config.applied.as_ref();
        let has_it = applied
            .is_some_and(|config| config.revision == wanted.revision && config.sha256 == wanted.sha256[..]);
        let refused = self.config.refused.as_ref().and_then(|nack| nack.config.as_ref());
        let has_refused_it = refused.is_some_and(|config| config.revision == wanted.revision);
        (!has_it && !has_refused_it).then(|| wanted.message())
    }

    /// Takes what the agent says.
    ///
    /// # Errors
    /// It is the last that is heard of it.
    pub(crate) fn handle(&mut self, said: Said, at_ms: u64) -> Result<Heard, Over> {
        match &said {
            Said::Register(_) => Err(Over::Rubbish("register: it comes once, and first".to_owned())),
            Said::Leaving(_) => Err(Over::Left),
            Said::MetricsPiece(piece) => {
                let joined = self.pieces.add(piece);
                let report = joined.map_err(|error| Over::Rubbish(format!("metrics_piece.data: {error}")))?;
                Ok(Heard { said: report.map(Said::Metrics), ..Heard::default() })
            }
            Said::Heartbeat(heartbeat) => {
                let answer = Some(Told::HeartbeatAck(HeartbeatAck { sequence: heartbeat.sequence }));
                let config = heartbeat.config.as_ref().map(|config| {
                    self.config.clone_from(config);
                    self.config(at_ms)
                });
                let is_first = !std::mem::replace(&mut self.is_confirmed, true);
                Ok(Heard { answer, config, said: Some(said), is_first })
            }
            Said::ConfigAck(_) | Said::ConfigNack(_) | Said::ConfigDeferred(_) => {
                self.piece_together(&said);
                Ok(Heard { config: Some(self.config(at_ms)), said: Some(said), ..Heard::default() })
            }
            Said::CredentialChange(change) if change.sha256.len() != SHA256_BYTES => {
                let why = format!("credential_change.sha256: is to have {SHA256_BYTES} bytes");
                Err(Over::Rubbish(why))
            }
            Said::Metrics(_)
            | Said::CommandOutput(_)
            | Said::CommandResult(_)
            | Said::CredentialChange(_) => Ok(Heard { said: Some(said), ..Heard::default() }),
        }
    }

    fn piece_together(&mut self, said: &Said) {
        match said {
            Said::ConfigAck(ack) => {
                self.config.applied.clone_from(&ack.config);
                self.config.generation = ack.generation;
                self.config.pending = None;
                self.config.refused = None;
                self.config.drifted = false;
            }
            Said::ConfigNack(nack) => {
                self.config.refused = Some(nack.clone());
                self.config.pending = None;
            }
            Said::ConfigDeferred(deferred) => {
                self.config.pending.clone_from(&deferred.config);
                self.config.pending_reason.clone_from(&deferred.reason);
            }
            Said::Register(_)
            | Said::Heartbeat(_)
            | Said::Metrics(_)
            | Said::MetricsPiece(_)
            | Said::CommandOutput(_)
            | Said::CommandResult(_)
            | Said::CredentialChange(_)
            | Said::Leaving(_) => {}
        }
    }
}

/// What an agent is told first.
pub(crate) fn welcome(session_id: String, heartbeat: std::time::Duration, at_ms: u64) -> Welcome {
    let interval_ms = u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX);
    Welcome {
        protocol_revision: PROTOCOL_REVISION,
        session_id,
        master_version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: vec![capability::METRICS_PIECES.to_owned()],
        intervals: Some(Intervals { heartbeat_interval_ms: interval_ms, metrics_interval_ms: interval_ms }),
        server_time_unix_ms: at_ms,
    }
}

/// Whether a registration can be answered.
///
/// # Errors
/// The field, and why not.
pub(crate) fn check(register: &Register) -> Result<(), String> {
    if register.protocol_revision < 1 {
        return Err("protocol_revision: there is no common one".to_owned());
    }
    if register.capabilities.len() > limits::CAPABILITIES_MAX {
        return Err("capabilities: there are too many".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::v1::{ConfigAck, ConfigNack, ConfigRef, Heartbeat, Leaving, Metrics};

    use super::*;

    fn config(revision: u64) -> Option<ConfigRef> {
        Some(ConfigRef { revision, version: format!("v{revision}"), sha256: vec![0; 32].into() })
    }

    fn registered(applied: Option<ConfigRef>) -> Dialogue {
        let config = Some(ConfigState { applied, ..ConfigState::default() });
        Dialogue::begin(&Register { config, ..Register::default() }, Admitted { change_at_ms: Some(100) })
    }

    fn is_offered(dialogue: &Dialogue, revision: u64) -> bool {
        dialogue.offer(&Offer::sample(revision)).is_some()
    }

    #[test]
    fn a_config_is_offered_until_it_is_applied_or_refused() {
        let mut dialogue = registered(config(1));
        assert!(!is_offered(&dialogue, 1) && is_offered(&dialogue, 2));
        let nack = ConfigNack { config: config(2), ..ConfigNack::default() };
        let heard = dialogue.handle(Said::ConfigNack(nack), 7).unwrap();
        let record = heard.config.unwrap();
        assert_eq!((record.applied, record.refused, record.at_ms), (1, 2, 7));
        assert!(!is_offered(&dialogue, 2) && is_offered(&dialogue, 3));
        let ack = ConfigAck { config: config(3), generation: 9, ..ConfigAck::default() };
        let record = dialogue.handle(Said::ConfigAck(ack), 8).unwrap().config.unwrap();
        assert_eq!((record.applied, record.refused, record.generation), (3, 0, 9));
        // A revision that was refused once and is published anew has another number; going back to 2 may be tried.
        assert!(!is_offered(&dialogue, 3) && is_offered(&dialogue, 2));
    }

    #[test]
    fn the_same_revision_with_another_text_is_not_what_is_wanted() {
        let other = ConfigRef { sha256: vec![1; 32].into(), ..config(1).unwrap() };
        assert!(is_offered(&registered(Some(other)), 1));
    }

    #[test]
    fn a_heartbeat_is_answered_and_says_all_of_the_configs() {
        let mut dialogue = registered(config(1));
        let state = ConfigState { applied: config(4), drifted: true, ..ConfigState::default() };
        let heartbeat = Heartbeat { sequence: 5, config: Some(state), ..Heartbeat::default() };
        let heard = dialogue.handle(Said::Heartbeat(heartbeat), 1).unwrap();
        assert_eq!(heard.answer, Some(Told::HeartbeatAck(HeartbeatAck { sequence: 5 })));
        assert!(heard.config.is_some_and(|record| record.applied == 4 && record.drifted));
        let silent = dialogue.handle(Said::Heartbeat(Heartbeat::default()), 2).unwrap();
        assert_eq!(silent.config, None, "an agent that says nothing of them has nothing new");
        assert_eq!(dialogue.config(3).applied, 4);
    }

    #[test]
    fn what_no_agent_says_ends_it_and_names_the_field() {
        let mut dialogue = registered(None);
        let rubbish = |over: Result<Heard, Over>| match over {
            Err(Over::Rubbish(why)) => why,
            other => panic!("{other:?}"),
        };
        let again = rubbish(dialogue.handle(Said::Register(Register::default()), 1));
        assert_eq!(again, "register: it comes once, and first");
        let piece = proto::v1::MetricsPiece { data: vec![0xff; 10].into(), is_last: true };
        let piece = rubbish(dialogue.handle(Said::MetricsPiece(piece), 1));
        assert!(piece.starts_with("metrics_piece.data: "), "{piece}");
        assert_eq!(dialogue.handle(Said::Leaving(Leaving::default()), 1), Err(Over::Left));
    }

    #[test]
    fn another_credential_is_asked_for_when_it_is_due_and_the_agent_lives() {
        let mut dialogue = registered(None);
        assert_eq!(dialogue.poll_credential(100), None, "it has not heard the welcome yet");
        assert!(dialogue.handle(Said::Heartbeat(Heartbeat::default()), 1).unwrap().is_first);
        assert!(!dialogue.handle(Said::Heartbeat(Heartbeat::default()), 2).unwrap().is_first);
        assert_eq!(dialogue.poll_credential(99), None);
        let wanted = Some(Told::CredentialWanted(CredentialWanted {}));
        assert_eq!(dialogue.poll_credential(100), wanted);
        assert_eq!(dialogue.poll_credential(99 + ASK_AGAIN_AFTER_MS), None);
        assert_eq!(dialogue.poll_credential(100 + ASK_AGAIN_AFTER_MS), wanted);
        dialogue.set_credential_change(Some(u64::MAX));
        assert_eq!(dialogue.poll_credential(u64::MAX - 1), None);
        dialogue.hurry_credential();
        assert_eq!(dialogue.poll_credential(200 + ASK_AGAIN_AFTER_MS), wanted);
        dialogue.delay_credential(u64::MAX / 2);
        assert_eq!(dialogue.poll_credential(u64::MAX / 2 - 1), None);
        // One that has none, or cannot make another, is not asked.
        dialogue.set_credential_change(None);
        dialogue.hurry_credential();
        assert_eq!(dialogue.poll_credential(u64::MAX / 2), None);
        let short = proto::v1::CredentialChange { sha256: vec![0; 31].into(), step: 1 };
        assert!(matches!(dialogue.handle(Said::CredentialChange(short), 1), Err(Over::Rubbish(_))));
    }

    #[test]
    fn a_report_is_for_the_listeners() {
        let said = Said::Metrics(Metrics::default());
        let heard = registered(None).handle(said.clone(), 1).unwrap();
        assert_eq!(heard, Heard { said: Some(said), ..Heard::default() });
    }
}
