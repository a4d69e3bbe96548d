//! The nodes of the fleet: who is enrolled, with what tags, and how each is by its heartbeats.
//!
//! Role and region are granted when a node enrols, and are an operator's to change from then on, as tags and the description
//! are; what an agent says of its host is the agent's. Letting agents in is `admission`; the live side of a node is in
//! `sessions`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::fleet::NodeId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::call::{Actor, Call};
use super::client_certificates::{self, ClientCertificate, Kept};
use super::former_nodes;
use super::instances::Instances;
use super::join_tokens;
use super::name::{check_name, check_names, check_text};
use super::node_credentials::{Credentials, Lifetimes, Sha256, Standing};
use super::node_state::{NodeState, state_of};
use super::page::{Page, Paging};
use super::refusal::Refusal;
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
    /// What it is for, as granted.
    pub(crate) role: NodeRole,
    /// Where it is, as granted: free text; may be empty.
    pub(crate) region: String,
    /// Where it was before an operator moved it, until its agent knows: see `admission`.
    #[serde(default)]
    pub(crate) moved_from: Option<Place>,
    /// Set by operators; sorted.
    pub(crate) tags: BTreeSet<String>,
    /// Set by operators.
    pub(crate) description: String,
    /// Its secrets.
    #[serde(flatten)]
    pub(crate) credentials: Credentials,
    /// The agents that have opened its sessions.
    #[serde(default)]
    pub(crate) instances: Instances,
    /// When somebody used a copy of its credential last, in milliseconds since 1970; 0: never.
    #[serde(default)]
    pub(crate) copied_at_ms: u64,
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

/// What a node is for and where it is: which configs it gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Place {
    /// What it is for.
    pub(crate) role: NodeRole,
    /// Where it is: free text; may be empty.
    pub(crate) region: String,
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
    /// Where it is; empty: wherever the join token says.
    pub(crate) region: String,
    /// What it says of its host so far.
    pub(crate) about: About,
}

/// The nodes.
pub(crate) struct Nodes {
    store: Store,
    sessions: Arc<Sessions>,
    limit: u64,
    pub(super) lifetimes: Lifetimes,
}

impl Nodes {
    /// Over a store, with at most so many nodes, whose secrets are used for so long.
    pub(crate) fn new(store: Store, sessions: Arc<Sessions>, limit: u64, lifetimes: Lifetimes) -> Self {
        Self { store, sessions, limit, lifetimes }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
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

    /// Moves a node: it gets the configs of its new place from now on. Its agent may go on saying the old one until it has
    /// said the new one.
    ///
    /// # Errors
    /// There is no such node, or it is no region.
    pub(crate) fn move_to(
        &self,
        call: &Call,
        id: &str,
        role: Option<NodeRole>,
        region: Option<&str>,
    ) -> Result<Node, Refusal> {
        check_id(id)?;
        region.map(check_region).transpose()?;
        let record = self.store.change(|writer| {
            let mut record: NodeRecord = find(writer, id)?;
            let before = record.place();
            record.role = role.unwrap_or(before.role);
            record.region = region.map_or_else(|| before.region.clone(), str::to_owned);
            let (from, to) = (before.to_string(), record.place().to_string());
            if record.place() != before {
                record.moved_from = Some(before);
            }
            writer.put(NODES, &id.to_owned(), &record)?;
            Ok::<_, Refusal>((record, call.done("nodes.move", id, format!("{from} to {to}"))))
        })?;
        Ok(self.node(id.to_owned(), record, call.at_ms))
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

    /// Removes a node: its credential and its client certificates are void, its session ends, what is known of its config is
    /// forgotten, and its id is barred.
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
            let more = former_nodes::bar(writer, call, id, record.credentials.retire())?;
            Ok::<_, Refusal>(((), call.done("nodes.delete", id, format!("its id is barred{more}"))))
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
            Some(known) if known.is_of(wish) && self.has_expired(&known, call.at_ms) => {
                return Err(former_nodes::used_before());
            }
            Some(known) if known.is_of(wish) => return known.check_place(Some(wish.role), &wish.region),
            Some(known) if certificate.is_none() && !self.has_expired(&known, call.at_ms) => {
                return Err(enrolled_already());
            }
            Some(_) | None => {}
        }
        self.store.change(|writer| {
            let by = Call { actor: Actor::Node(id.clone()), ..call.clone() };
            let known: Option<NodeRecord> = writer.find(NODES, &id)?;
            let Some(certificate) = certificate else {
                let detail = self.enrol_by_token(writer, call, wish, known.as_ref())?;
                return Ok(((), by.done("nodes.enrol", &id, detail)));
            };
            // First: a certificate that is issued anew would not help.
            former_nodes::check_barred(writer, &id)?;
            certificate.check_revoked(writer, &id)?;
            let (record, detail) = match known {
                Some(known) => (
                    known.with_another(wish, call.at_ms)?,
                    "with its client certificate, for another credential",
                ),
                None => (self.make(writer, wish, "", call.at_ms)?, "with its client certificate"),
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
        if known.is_some_and(|known| known.is_of(wish)) {
            return Ok("again".to_owned());
        }
        if known.is_some_and(|known| !self.has_expired(known, call.at_ms)) {
            return Err(enrolled_already());
        }
        let used = join_tokens::use_once(writer, &wish.join_token, wish.role, &wish.region, call.at_ms)?;
        let wish = Enrolment { region: used.region, ..wish.clone() };
        let (record, how) = match known {
            Some(known) => (known.clone().with_another(&wish, call.at_ms)?, ", for one that had expired"),
            None => (self.make(writer, &wish, &used.id, call.at_ms)?, ""),
        };
        writer.put(NODES, &wish.id.as_str().to_owned(), &record)?;
        Ok(format!("with the join token {}{how}", used.id))
    }

    /// A new node, if there may be one of this id and with this secret.
    fn make(
        &self,
        writer: &Writer,
        wish: &Enrolment,
        token: &str,
        at_ms: u64,
    ) -> Result<NodeRecord, Refusal> {
        let void = former_nodes::let_in(writer, wish.id.as_str(), &wish.verifier)?;
        if writer.count(NODES)? >= self.limit {
            return Err(Refusal::limit("node_id", "nodes", self.limit));
        }
        Ok(NodeRecord::new(wish, token, void, at_ms))
    }

    fn has_expired(&self, record: &NodeRecord, at_ms: u64) -> bool {
        record.credentials.has_expired(self.lifetimes, at_ms)
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

impl NodeRecord {
    fn new(wish: &Enrolment, token: &str, void: Vec<Sha256>, at_ms: u64) -> Self {
        Self {
            role: wish.role,
            region: wish.region.clone(),
            tags: BTreeSet::new(),
            description: String::new(),
            moved_from: None,
            credentials: Credentials::new(wish.verifier, void, at_ms),
            instances: Instances::default(),
            copied_at_ms: 0,
            join_token: token.to_owned(),
            certificate: None,
            enrolled_at_ms: at_ms,
            seen_at_ms: at_ms,
            about: wish.about.clone(),
        }
    }

    /// What it is for and where it is, as granted.
    pub(super) fn place(&self) -> Place {
        Place { role: self.role, region: self.region.clone() }
    }

    /// Whether it is the node of this very wish.
    fn is_of(&self, wish: &Enrolment) -> bool {
        self.credentials.standing(&wish.verifier) == Standing::Used
    }

    /// The same node with another secret.
    fn with_another(mut self, wish: &Enrolment, at_ms: u64) -> Result<Self, Refusal> {
        self.check_place(Some(wish.role), &wish.region)?;
        if self.credentials.standing(&wish.verifier) == Standing::Void {
            return Err(former_nodes::used_before());
        }
        self.credentials.replace(wish.verifier, at_ms);
        Ok(self)
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

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let region = if self.region.is_empty() { "no region" } else { &self.region };
        match self.role {
            NodeRole::Edge => write!(f, "an edge in {region}"),
            NodeRole::Core => write!(f, "a core in {region}"),
        }
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

/// The record of a node.
pub(super) fn find(source: &impl Source, id: &str) -> Result<NodeRecord, Refusal> {
    source.find(NODES, &id.to_owned())?.ok_or_else(|| Refusal::not_found("id", "node", id))
}
