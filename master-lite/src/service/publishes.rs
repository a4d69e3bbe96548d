//! Bringing configs to nodes: publishing a version, going back to one, the history of both, what each node should have,
//! and how far it is with it.
//!
//! A rollback reaches the nodes that should have the version that it undoes, and no others: going back with one region
//! leaves alone what other regions have of their own.
//!
//! A publish has a revision, which only grows; going back is a publish of its own. What a node should have is the newest
//! publish that includes it. Nodes are told as soon as the publish is on the disk, and again when they come back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::call::Call;
use super::config_text;
use super::configs::{self, Targets};
use super::convergence::{NODE_CONFIGS, NodeConfigRecord, Progress};
use super::name::check_text;
use super::node_state::NodeState;
use super::nodes::{NODES, Node, NodeFilter, NodeRecord, Nodes};
use super::offer::Offer;
use super::page::{Page, Paging};
use super::refusal::Refusal;
use super::secret;
use super::sessions::Sessions;
use crate::store::{Order, Reader, Records, Source, Store, Writer};

/// By revision.
pub(crate) const PUBLISHES: Records<u64, PublishRecord> = Records::new("publishes");

/// The highest revision that a node has spoken of, under [`FLOOR_KEY`]: above the history's where a backup was restored.
const REVISION_FLOOR: Records<String, u64> = Records::new("revision_floor");
const FLOOR_KEY: &str = "revision";

/// The tables of this service.
pub(super) const TABLES: [&str; 3] = [PUBLISHES.name(), REVISION_FLOOR.name(), NODE_CONFIGS.name()];

/// Offers that are kept in memory, newest first: a rollback while nodes come back needs two. At most 4 MiB each.
const OFFERS_KEPT_MAX: usize = 4;

/// Versions that a refusal names: enough to choose from, and no page of them.
const NAMED_MAX: usize = 10;

/// Why something was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PublishKind {
    /// For the first time, or again.
    Publish,
    /// To go back to it.
    Rollback,
}

/// What is to be done with a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Bring it to all nodes that it is for.
    Publish,
    /// Go back to it.
    Rollback {
        /// From this version; unless given, from the only other one that its nodes should have.
        from: Option<String>,
    },
}

/// A publish as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PublishRecord {
    /// Of what.
    pub(crate) version: String,
    /// Its text's.
    pub(crate) sha256: String,
    /// Why.
    pub(crate) kind: PublishKind,
    /// To whom.
    pub(crate) targets: Targets,
    /// By whom.
    pub(crate) by: String,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// For people.
    pub(crate) comment: String,
    /// Of a rollback: the version that a node has to have been meant to have. None: any, as rollbacks once were.
    #[serde(default)]
    pub(crate) undoes: Option<String>,
}

/// What a publish did, or would do.
#[derive(Debug)]
pub(crate) struct Published {
    /// Of the publish; of a dry run, what it would be.
    pub(crate) revision: u64,
    /// As stored, or as it would be.
    pub(crate) record: PublishRecord,
    /// Each node that it is for.
    pub(crate) nodes: Vec<TargetNode>,
}

/// A node that a publish is for.
#[derive(Debug)]
pub(crate) struct TargetNode {
    /// Its id.
    pub(crate) id: String,
    /// How it is now.
    pub(crate) state: NodeState,
    /// The version that it says it serves; empty: none of this master's.
    pub(crate) serves: String,
    /// Whether its text would be another.
    pub(crate) is_change: bool,
}

/// How far one node is.
#[derive(Debug)]
pub(crate) struct NodeProgress {
    /// Its id.
    pub(crate) id: String,
    /// How it is now.
    pub(crate) state: NodeState,
    /// What it should have.
    pub(crate) wanted: Option<(u64, PublishRecord)>,
    /// How far it is with that.
    pub(crate) progress: Progress,
    /// Why it is no further.
    pub(crate) reason: String,
    /// What it has said last.
    pub(crate) said: NodeConfigRecord,
}

/// Publishing.
pub(crate) struct Publishes {
    store: Store,
    nodes: Arc<Nodes>,
    sessions: Arc<Sessions>,
    offers: Mutex<BTreeMap<u64, Arc<Offer>>>,
}

impl Publishes {
    /// Over a store, to these nodes.
    pub(crate) fn new(store: Store, nodes: Arc<Nodes>, sessions: Arc<Sessions>) -> Self {
        Self { store, nodes, sessions, offers: Mutex::default() }
    }

    /// Publishes a version, or says what that would do. The stored text is checked anew: its checksum, and with today's
    /// code.
    ///
    /// # Errors
    /// There is no such version, it is damaged or no longer valid, or (going back) it has never been published, or it is not
    /// clear from which of several.
    pub(crate) fn publish(
        &self,
        call: &Call,
        version: &str,
        intent: &Intent,
        comment: &str,
        is_dry_run: bool,
    ) -> Result<Published, Refusal> {
        check_text("comment", comment)?;
        let reader = self.store.read()?;
        let record = draft(&reader, call, version, intent, comment)?;
        let nodes = self.targets(&record, call.at_ms)?;
        if is_dry_run {
            return Ok(Published { revision: next_revision(&reader)?, record, nodes });
        }
        let revision = self.store.change(|writer: &Writer| {
            let revision = next_revision(writer)?;
            writer.put(PUBLISHES, &revision, &record)?;
            let action = match intent {
                Intent::Publish => "configs.publish",
                Intent::Rollback { .. } => "configs.rollback",
            };
            let detail = format!("revision {revision} for {} nodes", nodes.len());
            Ok::<_, Refusal>((revision, call.done(action, version, detail)))
        })?;
        self.tell_all()?;
        Ok(Published { revision, record, nodes })
    }

    /// The publishes, the newest first.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn history(&self, paging: Paging) -> Result<Page<(u64, PublishRecord)>, Refusal> {
        let reader = self.store.read()?;
        let mut page = Page { items: Vec::new(), total: reader.count(PUBLISHES)?, paging };
        let mut at = 0;
        reader.visit(PUBLISHES, Bound::Unbounded, Order::Descending, |revision, record| {
            if at >= paging.skipped() {
                page.items.push((revision, record));
            }
            at += 1;
            (page.items.len() as u64) < paging.page_size
        })?;
        Ok(page)
    }

    /// How far the nodes are that should have a version now, by their ids.
    ///
    /// # Errors
    /// There is no such version.
    pub(crate) fn convergence(&self, version: &str, now_ms: u64) -> Result<Vec<NodeProgress>, Refusal> {
        configs::find(&self.store.read()?, "version", version)?;
        let all = self.progress_of(self.nodes.matching(&NodeFilter::default(), now_ms)?)?;
        let has =
            |node: &NodeProgress| node.wanted.as_ref().is_some_and(|(_, record)| record.version == version);
        Ok(all.into_iter().filter(has).collect())
    }

    /// How far one node is.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn progress(&self, id: &str, now_ms: u64) -> Result<NodeProgress, Refusal> {
        let node = self.nodes.find(id, now_ms)?;
        let found = self.progress_of(vec![node])?.pop();
        found.ok_or_else(|| Refusal::not_found("id", "node", id))
    }

    /// Notes what a node says of its configs.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn note(&self, id: &str, said: &NodeConfigRecord) -> Result<(), Refusal> {
        let key = id.to_owned();
        let before = self.store.read()?.find(NODE_CONFIGS, &key)?;
        if before.is_some_and(|before| before.says_the_same(said)) {
            return Ok(());
        }
        self.store.observe(|writer| {
            // A node that has been removed meanwhile leaves nothing behind.
            if writer.find(NODES, &key)?.is_some() {
                writer.put(NODE_CONFIGS, &key, said)?;
            }
            let spoken_of = said.applied.max(said.refused).max(said.pending);
            if spoken_of >= next_revision(writer)? {
                writer.put(REVISION_FLOOR, &FLOOR_KEY.to_owned(), &spoken_of)?;
            }
            Ok(())
        })
    }

    /// What a node has said last.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn said(&self, id: &str) -> Result<NodeConfigRecord, Refusal> {
        Ok(self.store.read()?.find(NODE_CONFIGS, &id.to_owned())?.unwrap_or_default())
    }

    /// Tells a node that is connected what it should have.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn tell(&self, id: &str) -> Result<(), Refusal> {
        let reader = self.store.read()?;
        let Some(node) = reader.find(NODES, &id.to_owned())? else { return Ok(()) };
        if let Some((revision, record)) = wanted(&reader, id, &node)? {
            let offer = self.offer(&reader, revision, &record)?;
            self.sessions.want(id, &offer);
        }
        Ok(())
    }

    /// Tells a node that was moved what it should have in its new place, which may have been published earlier than what it
    /// has.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn tell_moved(&self, id: &str) -> Result<(), Refusal> {
        let reader = self.store.read()?;
        let Some(node) = reader.find(NODES, &id.to_owned())? else { return Ok(()) };
        if let Some((revision, record)) = wanted(&reader, id, &node)? {
            let offer = self.offer(&reader, revision, &record)?;
            self.sessions.want_instead(id, &offer);
        }
        Ok(())
    }

    fn tell_all(&self) -> Result<(), Refusal> {
        self.sessions.connected().iter().try_for_each(|id| self.tell(id))
    }

    /// The offer of a publish, from memory if it was made lately.
    fn offer(&self, reader: &Reader, revision: u64, record: &PublishRecord) -> Result<Arc<Offer>, Refusal> {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(offer) = offers.get(&revision) {
            return Ok(Arc::clone(offer));
        }
        let (_, text) = configs::find(reader, "version", &record.version)?;
        let digest = proto::fleet::ConfigDigest::of(text.as_bytes());
        let offer = Arc::new(Offer {
            revision,
            version: record.version.clone(),
            sha256: *digest.as_bytes(),
            text: Bytes::from(text),
        });
        offers.insert(revision, Arc::clone(&offer));
        while offers.len() > OFFERS_KEPT_MAX {
            offers.pop_first();
        }
        Ok(offer)
    }

    fn targets(&self, record: &PublishRecord, now_ms: u64) -> Result<Vec<TargetNode>, Refusal> {
        let nodes = self.nodes.matching(&NodeFilter::default(), now_ms)?;
        let reader = self.store.read()?;
        let mut targets = Vec::new();
        for node in nodes.into_iter().filter(|node| includes(record, &node.id, &node.record)) {
            let has = wanted(&reader, &node.id, &node.record)?;
            if !reaches(record, has.as_ref().map(|(_, publish)| publish)) {
                continue;
            }
            let said = self.said(&node.id)?;
            let is_change = said.applied_sha256 != record.sha256;
            targets.push(TargetNode {
                id: node.id,
                state: node.state,
                serves: said.applied_version,
                is_change,
            });
        }
        Ok(targets)
    }

    fn progress_of(&self, nodes: Vec<Node>) -> Result<Vec<NodeProgress>, Refusal> {
        let reader = self.store.read()?;
        let each = nodes.into_iter().map(|node| {
            let wanted = wanted(&reader, &node.id, &node.record)?;
            let said = reader.find(NODE_CONFIGS, &node.id)?.unwrap_or_default();
            let (progress, reason) = match &wanted {
                Some((revision, record)) => said.progress(*revision, &record.sha256),
                None => (Progress::Pending, "nothing is published for this node".to_owned()),
            };
            Ok(NodeProgress { id: node.id, state: node.state, wanted, progress, reason, said })
        });
        each.collect()
    }
}

/// The newest publish that includes the node, and of rollbacks only those that undo what the node had before them.
/// Nearly always it is among the first.
fn wanted(reader: &Reader, id: &str, node: &NodeRecord) -> Result<Option<(u64, PublishRecord)>, Refusal> {
    let mut rollbacks = Vec::new();
    let mut found = None;
    reader.visit(PUBLISHES, Bound::Unbounded, Order::Descending, |revision, record| {
        if includes(&record, id, node) {
            if record.undoes.is_some() {
                rollbacks.push((revision, record));
            } else {
                found = Some((revision, record));
            }
        }
        found.is_none()
    })?;
    // From the oldest on: each may undo what the one before has brought.
    for (revision, rollback) in rollbacks.into_iter().rev() {
        if reaches(&rollback, found.as_ref().map(|(_, publish)| publish)) {
            found = Some((revision, rollback));
        }
    }
    Ok(found)
}

/// Whether a publish that includes a node changes what it should have, which was `before`.
fn reaches(publish: &PublishRecord, before: Option<&PublishRecord>) -> bool {
    match &publish.undoes {
        None => true,
        Some(undone) => before.is_some_and(|before| before.version == *undone),
    }
}

fn includes(publish: &PublishRecord, id: &str, node: &NodeRecord) -> bool {
    publish.targets.include(id, node.role, &node.region)
}

/// Above every revision of this store, and above every one that a node has spoken of.
fn next_revision(source: &impl Source) -> Result<u64, Refusal> {
    let last = source.last_key(PUBLISHES)?.unwrap_or(0);
    let floor = source.find(REVISION_FLOOR, &FLOOR_KEY.to_owned())?.unwrap_or(0);
    Ok(last.max(floor) + 1)
}

fn draft(
    reader: &Reader,
    call: &Call,
    version: &str,
    intent: &Intent,
    comment: &str,
) -> Result<PublishRecord, Refusal> {
    let (config, text) = configs::find(reader, "version", version)?;
    if secret::sha256(&text) != config.sha256 {
        return Err(Refusal::internal(&format!("the text of the version {version} is damaged")));
    }
    config_text::check(&text, &config.variables)?;
    let (kind, undoes) = match intent {
        Intent::Publish => (PublishKind::Publish, None),
        Intent::Rollback { from } => {
            let undoes = undone(reader, version, &config.targets, from.as_deref())?;
            (PublishKind::Rollback, undoes)
        }
    };
    Ok(PublishRecord {
        version: version.to_owned(),
        sha256: config.sha256,
        kind,
        targets: config.targets,
        by: call.actor.name().to_owned(),
        at_ms: call.at_ms,
        comment: comment.to_owned(),
        undoes,
    })
}

/// The version that a rollback undoes. Where nodes should have several, it is not guessed.
fn undone(
    reader: &Reader,
    version: &str,
    targets: &Targets,
    from: Option<&str>,
) -> Result<Option<String>, Refusal> {
    let never = |field: &str, name: &str| {
        let message = format!("`{name}` has never been published: there is no going back to it, or from it");
        Refusal::conflict(field, "never_published", message)
    };
    if !was_published(reader, version)? {
        return Err(never("version", version));
    }
    if let Some(from) = from {
        if from == version {
            return Err(Refusal::invalid("from", "same_version", "`from` is to be another version"));
        }
        let is_known = was_published(reader, from)?;
        return if is_known { Ok(Some(from.to_owned())) } else { Err(never("from", from)) };
    }
    let mut others = BTreeSet::new();
    for (id, node) in reader.all(NODES)? {
        if targets.include(&id, node.role, &node.region)
            && let Some((_, publish)) = wanted(reader, &id, &node)?
            && publish.version != version
        {
            others.insert(publish.version);
        }
    }
    if others.len() > 1 {
        let names = others.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!(
            "the nodes that `{version}` is for should have {} other versions: say which one is undone: {names}",
            others.len()
        );
        return Err(Refusal::conflict("from", "ambiguous", message));
    }
    // Without a node that tells, it is what was published last.
    others.pop_first().map_or_else(|| newest_other(reader, version), |other| Ok(Some(other)))
}

fn newest_other(reader: &Reader, version: &str) -> Result<Option<String>, Refusal> {
    let mut found = None;
    reader.visit(PUBLISHES, Bound::Unbounded, Order::Descending, |_, record| {
        if record.version != version {
            found = Some(record.version);
        }
        found.is_none()
    })?;
    Ok(found)
}

fn was_published(reader: &Reader, version: &str) -> Result<bool, Refusal> {
    let mut was = false;
    reader.visit(PUBLISHES, Bound::Unbounded, Order::Descending, |_, record| {
        was = record.version == version;
        !was
    })?;
    Ok(was)
}
