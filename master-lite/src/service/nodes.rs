//! The nodes of the fleet: who is enrolled, with what tags, and how each is by its heartbeats.
//!
//! What an agent says of its node (role, region, versions) is the agent's to change; tags and the description are the
//! operators'. The live side of a node is in `sessions`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::fleet::{NodeCredential, NodeId, Verifier};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::call::{Actor, Call};
use super::client_certificates::{self, ClientCertificate, Kept};
use super::join_tokens;
use super::name::{check_name, check_names, check_text};
use super::node_state::{NodeState, state_of};
use super::page::{Page, Paging};
use super::refusal::{Kind, Refusal};
use super::sessions::{Live, Sessions};
use crate::store::{Records, Source, Store, Writer};

/// By id.
pub(crate) const NODES: Records<String, NodeRecord> = Records::new("nodes");

/// Tags of one node.
pub(crate) const TAGS_MAX: usize = 32;

/// What a node is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeRole {
    /// Near the users.
    #[default]
    Edge,
    /// Near the model servers.
    Core,
}

/// A node as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    /// What it is for.
    pub(crate) role: NodeRole,
    /// Free text; may be empty.
    pub(crate) region: String,
    /// Set by operators; sorted.
    pub(crate) tags: BTreeSet<String>,
    /// Set by operators.
    pub(crate) description: String,
    /// SHA-256 of its credential.
    pub(crate) verifier: [u8; 32],
    /// The join token that let it in; empty where a client certificate did.
    pub(crate) join_token: String,
    /// The client certificate of its last session; none where that had none.
    #[serde(default)]
    pub(crate) certificate: Option<Kept>,
    /// When it was enrolled, in milliseconds since 1970.
    pub(crate) enrolled_at_ms: u64,
    /// When it was heard of last, as far as it is on the disk.
    pub(crate) seen_at_ms: u64,
    /// What the agent says of its host.
    pub(crate) about: About,
}

/// What an agent says of itself and its host when it registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct About {
    /// The host's own name.
    pub(crate) hostname: String,
    /// Of the host.
    pub(crate) kernel_version: String,
    /// Such as `x86_64`.
    pub(crate) architecture: String,
    /// Processors.
    pub(crate) cpus: u32,
    /// Memory of the host.
    pub(crate) memory_bytes: u64,
    /// Version of the agent.
    pub(crate) agent_version: String,
    /// Version of the data plane.
    pub(crate) dataplane_version: String,
    /// What the agent knows beyond the first protocol.
    pub(crate) capabilities: Vec<String>,
}

/// A node as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its id.
    pub(crate) id: String,
    /// What is stored of it.
    pub(crate) record: NodeRecord,
    /// What is known of it since the master was started, if anything.
    pub(crate) live: Option<Live>,
    /// How it is.
    pub(crate) state: NodeState,
    /// When it was heard of last.
    pub(crate) seen_at_ms: u64,
}

/// Which nodes are wanted; an empty filter wants all.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeFilter {
    /// Of this role.
    pub(crate) role: Option<NodeRole>,
    /// In this region.
    pub(crate) region: Option<String>,
    /// With this tag.
    pub(crate) tag: Option<String>,
    /// In this state.
    pub(crate) state: Option<NodeState>,
}

/// What operators may change of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeChange {
    /// Other tags, all of them.
    pub(crate) tags: Option<Vec<String>>,
    /// Another description.
    pub(crate) description: Option<String>,
}

/// An agent's wish to be a node.
#[derive(Clone, Debug)]
pub(crate) struct Enrolment {
    /// The id that it wants.
    pub(crate) id: NodeId,
    /// What lets it in.
    pub(crate) join_token: String,
    /// SHA-256 of the credential that it has made.
    pub(crate) verifier: [u8; 32],
    /// What it is for.
    pub(crate) role: NodeRole,
    /// Where it is.
    pub(crate) region: String,
    /// What it says of its host so far.
    pub(crate) about: About,
}

/// The nodes.
pub(crate) struct Nodes {
    store: Store,
    sessions: Arc<Sessions>,
    limit: u64,
}

impl Nodes {
    /// Over a store, with at most so many nodes.
    pub(crate) fn new(store: Store, sessions: Arc<Sessions>, limit: u64) -> Self {
        Self { store, sessions, limit }
    }

    /// The nodes that meet the filter, by their ids.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn list(
        &self,
        filter: &NodeFilter,
        paging: Paging,
        now_ms: u64,
    ) -> Result<Page<Node>, Refusal> {
        Ok(paging.cut(self.matching(filter, now_ms)?))
    }

    /// All nodes that meet the filter, by their ids.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn matching(&self, filter: &NodeFilter, now_ms: u64) -> Result<Vec<Node>, Refusal> {
        let records = self.store.read()?.all(NODES)?;
        let nodes = records.into_iter().map(|(id, record)| self.node(id, record, now_ms));
        Ok(nodes.filter(|node| filter.is_met_by(node)).collect())
    }

    /// One node.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn find(&self, id: &str, now_ms: u64) -> Result<Node, Refusal> {
        check_id(id)?;
        let record = find(&self.store.read()?, id)?;
        Ok(self.node(id.to_owned(), record, now_ms))
    }

    /// Changes what operators may change.
    ///
    /// # Errors
    /// There is no such node, or something is against the rules.
    pub(crate) fn change(&self, call: &Call, id: &str, change: &NodeChange) -> Result<Node, Refusal> {
        check_id(id)?;
        change.tags.as_deref().map(|tags| check_names("tags", tags, TAGS_MAX)).transpose()?;
        change.description.as_deref().map(|text| check_text("description", text)).transpose()?;
        self.edit(call, id, |record| {
            if let Some(tags) = &change.tags {
                record.tags = tags.iter().cloned().collect();
            }
            if let Some(description) = &change.description {
                record.description.clone_from(description);
            }
            Ok(())
        })
    }

    /// Sets one tag, or takes it away.
    ///
    /// # Errors
    /// There is no such node, the tag is against the rules, or there are too many.
    pub(crate) fn tag(&self, call: &Call, id: &str, tag: &str, is_set: bool) -> Result<Node, Refusal> {
        check_id(id)?;
        check_name("tag", tag)?;
        self.edit(call, id, |record| {
            if !is_set {
                let was_set = record.tags.remove(tag);
                return if was_set { Ok(()) } else { Err(Refusal::not_found("tag", "tag", tag)) };
            }
            record.tags.insert(tag.to_owned());
            if record.tags.len() > TAGS_MAX {
                return Err(Refusal::limit("tag", "tags on a node", TAGS_MAX as u64));
            }
            Ok(())
        })
    }

    fn edit(
        &self,
        call: &Call,
        id: &str,
        edit: impl FnOnce(&mut NodeRecord) -> Result<(), Refusal>,
    ) -> Result<Node, Refusal> {
        let record = self.store.change(|writer| {
            let mut record: NodeRecord = find(writer, id)?;
            edit(&mut record)?;
            writer.put(NODES, &id.to_owned(), &record)?;
            let detail = format!("tags {:?}", record.tags);
            Ok::<_, Refusal>((record, call.done("nodes.change", id, detail)))
        })?;
        Ok(self.node(id.to_owned(), record, call.at_ms))
    }

    /// All tags, with the number of nodes that have each.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn tags(&self) -> Result<BTreeMap<String, u64>, Refusal> {
        let mut tags = BTreeMap::new();
        for (_, record) in self.store.read()?.all(NODES)? {
            for tag in record.tags {
                *tags.entry(tag).or_default() += 1;
            }
        }
        Ok(tags)
    }

    /// Removes a node: its credential and its client certificates are void, its session ends, and what is known of its config is forgotten.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn remove(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        check_id(id)?;
        self.store.change(|writer| {
            let record: NodeRecord = find(writer, id)?;
            writer.remove(NODES, &id.to_owned())?;
            if let Some(certificate) = record.certificate {
                client_certificates::revoke(writer, id, certificate, call.at_ms)?;
            }
            writer.remove(super::convergence::NODE_CONFIGS, &id.to_owned())?;
            Ok::<_, Refusal>(((), call.done("nodes.delete", id, "")))
        })?;
        self.sessions.remove(id);
        Ok(())
    }

    /// Enrols a node, once for each use of the token, or by its client certificate, which uses no token. The same wish
    /// again is granted again and costs no use: the answer to the first may have been lost. A certificate also replaces a
    /// credential that the node has lost.
    ///
    /// # Errors
    /// The token is no good, another node has the id, or there are too many nodes.
    pub(crate) fn enrol(
        &self,
        call: &Call,
        wish: &Enrolment,
        certificate: Option<&ClientCertificate>,
    ) -> Result<(), Refusal> {
        check_region(&wish.region)?;
        let id = wish.id.as_str().to_owned();
        match self.store.read()?.find(NODES, &id)? {
            Some(known) if known.is_of(wish) => return Ok(()),
            Some(_) if certificate.is_none() => return Err(enrolled_already()),
            Some(_) | None => {}
        }
        self.store.change(|writer| {
            let by = Call { actor: Actor::Node(id.clone()), ..call.clone() };
            let known: Option<NodeRecord> = writer.find(NODES, &id)?;
            let Some(certificate) = certificate else {
                let detail = self.enrol_by_token(writer, call, wish, known.as_ref())?;
                return Ok(((), by.done("nodes.enrol", &id, detail)));
            };
            certificate.check_revoked(writer, &id)?;
            let (record, detail) = match known {
                Some(known) => {
                    let record = NodeRecord { verifier: wish.verifier, ..known };
                    (record, "with its client certificate, for another credential")
                }
                None => {
                    self.check_limit(writer)?;
                    (NodeRecord::new(wish, "", call.at_ms), "with its client certificate")
                }
            };
            writer.put(NODES, &id, &NodeRecord { certificate: Some(certificate.kept()), ..record })?;
            Ok(((), by.done("nodes.enrol", &id, detail)))
        })
    }

    fn enrol_by_token(
        &self,
        writer: &Writer,
        call: &Call,
        wish: &Enrolment,
        known: Option<&NodeRecord>,
    ) -> Result<String, Refusal> {
        match known {
            Some(known) if known.is_of(wish) => return Ok("again".to_owned()),
            Some(_) => return Err(enrolled_already()),
            None => {}
        }
        let token = join_tokens::use_once(writer, &wish.join_token, wish.role, &wish.region, call.at_ms)?;
        self.check_limit(writer)?;
        let record = NodeRecord::new(wish, &token, call.at_ms);
        writer.put(NODES, &wish.id.as_str().to_owned(), &record)?;
        Ok(format!("with the join token {token}"))
    }

    fn check_limit(&self, writer: &Writer) -> Result<(), Refusal> {
        if writer.count(NODES)? >= self.limit {
            return Err(Refusal::limit("node_id", "nodes", self.limit));
        }
        Ok(())
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
        let reader = self.store.read()?;
        certificate.check_revoked(&reader, id)?;
        if reader.find(NODES, &id.to_owned())?.is_some() {
            return Ok(());
        }
        Err(Refusal::of(Kind::Unauthenticated, "node_id", "unknown", "the node is not enrolled"))
    }

    /// Whose credential this is.
    ///
    /// # Errors
    /// Nobody's.
    pub(crate) fn identify(&self, credential: &NodeCredential) -> Result<(), Refusal> {
        let record = self.store.read()?.find(NODES, &credential.node().as_str().to_owned())?;
        let kept = record.and_then(|record| Verifier::from_bytes(&record.verifier));
        if kept.is_some_and(|kept| kept == credential.verifier()) {
            return Ok(());
        }
        let message = "the node credential is unknown or revoked";
        Err(Refusal::of(Kind::Unauthenticated, "authorization", "bad_credential", message))
    }

    /// Notes what an agent says of its node.
    ///
    /// # Errors
    /// The node has been removed.
    pub(crate) fn note(
        &self,
        id: &str,
        role: NodeRole,
        region: &str,
        about: &About,
        certificate: Option<Kept>,
        at_ms: u64,
    ) -> Result<NodeRecord, Refusal> {
        check_region(region)?;
        let known = find(&self.store.read()?, id)?;
        let is_told = |record: &NodeRecord| {
            record.role == role
                && record.region == region
                && record.about == *about
                && record.certificate == certificate
        };
        // Most agents that come back are as they were, and five hundred may come at once.
        if is_told(&known) && at_ms < known.seen_at_ms + SEEN_AGAIN_AFTER_MS {
            return Ok(known);
        }
        self.store.observe(|writer| {
            let record = NodeRecord {
                role,
                region: region.to_owned(),
                about: about.clone(),
                certificate,
                seen_at_ms: at_ms,
                ..find(writer, id)?
            };
            writer.put(NODES, &id.to_owned(), &record)?;
            Ok(record)
        })
    }

    /// Notes when a node was heard of last.
    ///
    /// # Errors
    /// The store fails. A node that is gone is none.
    pub(crate) fn note_seen(&self, id: &str, at_ms: u64) -> Result<(), Refusal> {
        self.store.observe(|writer: &Writer| {
            if let Some(record) = writer.find(NODES, &id.to_owned())? {
                writer.put(NODES, &id.to_owned(), &NodeRecord { seen_at_ms: at_ms, ..record })?;
            }
            Ok(())
        })
    }

    fn node(&self, id: String, record: NodeRecord, now_ms: u64) -> Node {
        let live = self.sessions.live(&id);
        let seen_at_ms = live.as_ref().map_or(record.seen_at_ms, |live| live.heard_at_ms);
        let state = state_of(live.as_ref(), seen_at_ms, now_ms, self.sessions.heartbeat());
        Node { id, record, live, state, seen_at_ms }
    }
}

/// A node that comes back unchanged within that is not written again.
const SEEN_AGAIN_AFTER_MS: u64 = 60_000;

impl NodeRecord {
    fn new(wish: &Enrolment, token: &str, at_ms: u64) -> Self {
        Self {
            role: wish.role,
            region: wish.region.clone(),
            tags: BTreeSet::new(),
            description: String::new(),
            verifier: wish.verifier,
            join_token: token.to_owned(),
            certificate: None,
            enrolled_at_ms: at_ms,
            seen_at_ms: at_ms,
            about: wish.about.clone(),
        }
    }

    /// Whether it is the node of this very wish.
    fn is_of(&self, wish: &Enrolment) -> bool {
        let [kept, told] = [self.verifier, wish.verifier].map(|bytes| Verifier::from_bytes(&bytes));
        kept == told
    }
}

impl NodeFilter {
    fn is_met_by(&self, node: &Node) -> bool {
        self.role.is_none_or(|role| role == node.record.role)
            && self.region.as_ref().is_none_or(|region| *region == node.record.region)
            && self.tag.as_ref().is_none_or(|tag| node.record.tags.contains(tag))
            && self.state.is_none_or(|state| state == node.state)
    }
}

impl From<proto::v1::Role> for NodeRole {
    fn from(role: proto::v1::Role) -> Self {
        match role {
            proto::v1::Role::Unspecified | proto::v1::Role::Edge => Self::Edge,
            proto::v1::Role::Core => Self::Core,
        }
    }
}

/// Checks an id that came over REST.
pub(super) fn check_id(id: &str) -> Result<(), Refusal> {
    let parsed: Result<NodeId, _> = id.parse();
    parsed.map(drop).map_err(|error| Refusal::invalid("id", "bad_name", format!("`id`: {error}")))
}

/// Checks a region: free text on one line, as the data plane's config has it.
pub(super) fn check_region(region: &str) -> Result<(), Refusal> {
    let max = proto::fleet::limits::LABEL_BYTES_MAX;
    if region.len() > max || region.chars().any(char::is_control) {
        let message = format!("`region` is to be one line of at most {max} bytes");
        return Err(Refusal::invalid("region", "bad_text", message));
    }
    Ok(())
}

fn enrolled_already() -> Refusal {
    let message = "the node is enrolled with another credential: delete the node first";
    Refusal::conflict("node_id", "enrolled", message)
}

fn find(source: &impl Source, id: &str) -> Result<NodeRecord, Refusal> {
    source.find(NODES, &id.to_owned())?.ok_or_else(|| Refusal::not_found("id", "node", id))
}
