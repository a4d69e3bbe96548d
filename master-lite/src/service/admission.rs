//! Letting an agent open a session: its credential or its certificate, the place that it says its node has, and whether it is
//! the one agent of that node. And the exchange by which it replaces its credential.
//!
//! What is decided here goes by the node's record alone. An agent's word on role and region is compared with what was
//! granted, and never taken.

use proto::fleet::NodeCredential;
use proto::v1::master_message::Kind as Told;
use proto::v1::{CredentialChange, CredentialStep, CredentialTaken};

use super::call::Call;
use super::client_certificates::{ClientCertificate, Kept};
use super::former_nodes::used_before;
use super::instances::Arrival;
use super::node_credentials::{Sha256, Standing};
use super::nodes::{About, NODES, NodeRecord, NodeRole, Nodes, check_region, find};
use super::refusal::{Kind, Refusal};
use super::{Claim, Services};
use crate::store::Source;

/// A node that comes back unchanged within that is not written again.
const SEEN_AGAIN_AFTER_MS: u64 = 60_000;

/// How long an alert says that somebody uses a copy of a node's credential. A copy that is shut out tries again twice a
/// minute; one that was tried once at night is to be seen in the morning, and is in the audit log for good.
pub(crate) const COPY_SHOWN_MS: u64 = 12 * 3_600_000;

/// An agent that has come in the place of another is not asked for another credential before that: if there are two, the
/// other one is back within half a minute, and a copy is not to be the first to replace what both have.
pub(crate) const NEWCOMER_WAITS_MS: u64 = 90_000;

/// What an agent is that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confirmed {
    /// The one that had the last session, or the first one ever.
    Known,
    /// One that has come in the place of another.
    Newcomer,
    /// The one that was there first of two with one credential.
    Copied,
}

/// What an agent says first.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    /// Its node.
    pub(crate) node: String,
    /// Tells one start of the agent from another.
    pub(crate) instance_id: Vec<u8>,
    /// What it says that its node is for; none: nothing.
    pub(crate) role: Option<NodeRole>,
    /// Where it says that its node is; empty: nothing.
    pub(crate) region: String,
    /// Whether it can make another credential.
    pub(crate) can_change: bool,
    /// What it says of its host.
    pub(crate) about: About,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
}

/// What comes of an agent's word on its new credential.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Changed {
    /// It is known; the answer.
    Taken(Told),
    /// It is used; when it is to be replaced in its turn, in milliseconds since 1970.
    Kept(Option<u64>),
    /// Nothing that this master knows.
    Nothing,
}

/// A session that may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// When the agent is to be asked for another credential, in milliseconds since 1970; none: it has none, or cannot.
    pub(crate) change_at_ms: Option<u64>,
}

impl Services {
    /// Lets an agent begin its session. A refusal is noted in the audit log.
    ///
    /// # Errors
    /// It may not: see the module.
    pub(crate) fn register(
        &self,
        call: &Call,
        claim: &Claim,
        registration: &Registration,
    ) -> Result<Admitted, Refusal> {
        self.admit(call, Ok(claim), Some(&registration.node))?;
        let verifier = claim.credential.as_ref().map(|credential| *credential.verifier().as_bytes());
        let certificate = claim.certificate.as_ref().map(|certificate| certificate.kept());
        let registered = self.nodes.register(call, registration, verifier, certificate);
        if let Err(refusal) = &registered {
            self.audit.note_refused(call, "nodes.connect", &registration.node, &refusal.message);
        }
        registered
    }

    /// Takes what an agent says of its new credential.
    ///
    /// # Errors
    /// It is none that may be used, or the store fails.
    pub(crate) fn change_credential(
        &self,
        node: &str,
        change: &CredentialChange,
        at_ms: u64,
    ) -> Result<Changed, Refusal> {
        let Ok(verifier) = Sha256::try_from(change.sha256.as_ref()) else { return Ok(Changed::Nothing) };
        match change.step() {
            CredentialStep::Made => {
                self.nodes.offer_credential(node, verifier)?;
                // Once the agent has heard of it, it is used: it has to outlive a crash.
                self.store.flush()?;
                let taken = CredentialTaken { sha256: change.sha256.clone() };
                Ok(Changed::Taken(Told::CredentialTaken(taken)))
            }
            CredentialStep::Kept => Ok(Changed::Kept(self.nodes.promote_credential(node, &verifier, at_ms)?)),
            CredentialStep::Unspecified => Ok(Changed::Nothing),
        }
    }
}

impl Nodes {
    /// Whose credential this is.
    ///
    /// # Errors
    /// Nobody's, or it is one that was replaced, which only a copy is: that is noted with the node.
    pub(super) fn identify(&self, credential: &NodeCredential, at_ms: u64) -> Result<(), Refusal> {
        let id = credential.node().as_str().to_owned();
        let unauthenticated =
            |code: &str, message: &str| Refusal::of(Kind::Unauthenticated, "authorization", code, message);
        let unknown = || unauthenticated("bad_credential", "the node credential is unknown or revoked");
        let record: NodeRecord = self.store().read()?.find(NODES, &id)?.ok_or_else(unknown)?;
        let standing = record.credentials.standing(credential.verifier().as_bytes());
        if standing != Standing::Unknown && record.credentials.has_expired(self.lifetimes, at_ms) {
            let message = "the node credential has expired: enrol the node again, with a new join token";
            return Err(unauthenticated("expired", message));
        }
        match standing {
            Standing::Used | Standing::Next => Ok(()),
            Standing::Unknown => Err(unknown()),
            Standing::Void => {
                self.note_copy(&id, at_ms)?;
                let message = "this credential was replaced by a newer one, and is void: it is a copy, or its state \
                               folder is an old one";
                Err(Refusal::of(Kind::Forbidden, "authorization", "replaced", message))
            }
        }
    }

    /// Whether the node that a client certificate speaks for is one of the fleet.
    ///
    /// # Errors
    /// It is not enrolled, or was deleted since the certificate was issued.
    pub(super) fn identify_by_certificate(
        &self,
        certificate: &ClientCertificate,
        id: &str,
    ) -> Result<(), Refusal> {
        let reader = self.store().read()?;
        certificate.check_revoked(&reader, id)?;
        if reader.find(NODES, &id.to_owned())?.is_some() {
            return Ok(());
        }
        Err(Refusal::of(Kind::Unauthenticated, "node_id", "unknown", "the node is not enrolled"))
    }

    fn register(
        &self,
        call: &Call,
        registration: &Registration,
        verifier: Option<Sha256>,
        certificate: Option<Kept>,
    ) -> Result<Admitted, Refusal> {
        check_region(&registration.region)?;
        let id = &registration.node;
        let known = find(&self.store().read()?, id)?;
        if known.instances.is_shut_out(&registration.instance_id) {
            self.note_copy(id, call.at_ms)?;
            let message = "another agent has this node's credential, and was there first: this one is shut out; each \
                           node needs a state folder of its own";
            return Err(Refusal::of(Kind::Forbidden, "instance_id", "shut_out", message));
        }
        let record = known.entered_by(registration, verifier, certificate)?;
        let is_recent = call.at_ms < known.seen_at_ms + SEEN_AGAIN_AFTER_MS;
        // Most agents that come back are as they were, and five hundred may come at once.
        if record != known || !is_recent {
            self.store().observe(|writer| {
                let record = find(writer, id)?.entered_by(registration, verifier, certificate)?;
                writer.put(NODES, id, &NodeRecord { seen_at_ms: call.at_ms, ..record })?;
                Ok::<_, Refusal>(())
            })?;
        }
        let has_credential = verifier.is_some() && registration.can_change;
        let change_at_ms = has_credential.then(|| record.credentials.due_at_ms(self.lifetimes)).flatten();
        Ok(Admitted { change_at_ms })
    }

    /// The agent of a session has answered, so that it lives: what it sent first may have lain in a network for long. Whether
    /// there are two agents with this credential.
    ///
    /// # Errors
    /// The node has been removed, or the store fails.
    pub(crate) fn confirm(&self, call: &Call, id: &str, instance_id: &[u8]) -> Result<Confirmed, Refusal> {
        let key = id.to_owned();
        let mut known = find(&self.store().read()?, id)?;
        if known.instances.arrive(instance_id) == Arrival::Same {
            return Ok(Confirmed::Known);
        }
        let arrival = self.store().observe(|writer| {
            let mut record: NodeRecord = find(writer, id)?;
            let arrival = record.instances.arrive(instance_id);
            if matches!(arrival, Arrival::Back(_)) {
                record.copied_at_ms = call.at_ms;
                // The copy has the same secret: it is void as soon as there is another.
                record.credentials.is_copied = true;
            }
            writer.put(NODES, &key, &record)?;
            Ok::<_, Refusal>(arrival)
        })?;
        let other = match arrival {
            Arrival::Back(other) => other,
            Arrival::New => return Ok(Confirmed::Newcomer),
            Arrival::Same | Arrival::First | Arrival::ShutOut => return Ok(Confirmed::Known),
        };
        let detail = format!(
            "two agents use the credential of this node: the one that was there first stays, the other one ({other}…) is \
             shut out"
        );
        tracing::warn!(node = id, address = ?call.address, detail);
        // On the disk together with what was observed.
        self.store().change(|_| {
            Ok::<_, Refusal>(((), call.refused("nodes.copied_credential", id, detail.as_str())))
        })?;
        Ok(Confirmed::Copied)
    }

    /// Notes that somebody uses a copy of a node's credential. That it was refused is noted by whoever refused it.
    fn note_copy(&self, id: &str, at_ms: u64) -> Result<(), Refusal> {
        tracing::warn!(node = id, "a copy of the node's credential is used, and refused");
        self.edit_observed(id, |record| record.copied_at_ms = at_ms)
    }

    fn offer_credential(&self, id: &str, verifier: Sha256) -> Result<(), Refusal> {
        self.store().observe(|writer| {
            let mut record: NodeRecord = find(writer, id)?;
            match record.credentials.standing(&verifier) {
                Standing::Unknown => record.credentials.offer(verifier),
                Standing::Next => {}
                Standing::Used | Standing::Void => return Err(used_before()),
            }
            Ok(writer.put(NODES, &id.to_owned(), &record)?)
        })
    }

    /// The agent uses its next secret. A crash may lose that: then both are good until its next session.
    /// Gives when it is to be replaced in its turn.
    fn promote_credential(&self, id: &str, verifier: &Sha256, at_ms: u64) -> Result<Option<u64>, Refusal> {
        tracing::info!(node = id, "the credential was replaced");
        let lifetimes = self.lifetimes;
        self.edit_observed(id, |record| {
            if record.credentials.standing(verifier) == Standing::Next {
                record.credentials.promote(at_ms);
            }
            record.credentials.due_at_ms(lifetimes)
        })
    }

    fn edit_observed<T>(&self, id: &str, edit: impl FnOnce(&mut NodeRecord) -> T) -> Result<T, Refusal> {
        self.store().observe(|writer| {
            let mut record: NodeRecord = find(writer, id)?;
            let edited = edit(&mut record);
            writer.put(NODES, &id.to_owned(), &record)?;
            Ok(edited)
        })
    }
}

impl NodeRecord {
    /// Whether somebody has used a copy of the node's credential lately.
    pub(super) fn was_copied_lately(&self, now_ms: u64) -> bool {
        self.copied_at_ms > 0 && now_ms < self.copied_at_ms + COPY_SHOWN_MS
    }

    /// Holds what an agent says of its node's place against what was granted. What it does not say is not wrong, and after
    /// a move neither place is.
    ///
    /// # Errors
    /// It says another.
    pub(super) fn check_place(&self, role: Option<NodeRole>, region: &str) -> Result<(), Refusal> {
        let before = self.moved_from.as_ref();
        let is_role = |role| role == self.role || before.is_some_and(|before| before.role == role);
        if !role.is_none_or(is_role) {
            return Err(self.other_place("role", "the agent says another role"));
        }
        let is_region = region.is_empty()
            || region == self.region
            || before.is_some_and(|before| before.region == region);
        if is_region { Ok(()) } else { Err(self.other_place("region", &format!("the agent says {region}"))) }
    }

    fn other_place(&self, field: &str, what: &str) -> Refusal {
        let place = self.place();
        let message = format!(
            "this node is {place}, as was granted, and {what}: change its agent.toml, or move the node by \
             PUT /api/v1/nodes/…/place"
        );
        Refusal::of(Kind::Forbidden, field, "not_granted", message)
    }

    /// The record with what an agent brings that begins a session.
    ///
    /// # Errors
    /// It says another place than was granted.
    fn entered_by(
        &self,
        registration: &Registration,
        verifier: Option<Sha256>,
        certificate: Option<Kept>,
    ) -> Result<Self, Refusal> {
        self.check_place(registration.role, &registration.region)?;
        let mut record = self.clone();
        record.about.clone_from(&registration.about);
        record.certificate = certificate;
        record.credentials.can_change |= registration.can_change;
        if verifier.is_some_and(|verifier| record.credentials.standing(&verifier) == Standing::Next) {
            record.credentials.promote(registration.at_ms);
        }
        // The agent knows where its node is now.
        let says_all = registration.role == Some(record.role) && registration.region == record.region;
        if says_all {
            record.moved_from = None;
        }
        Ok(record)
    }
}
