//! Nodes that were deleted: their ids are barred until an operator lets them in again, and their secrets are void for good.
//! Otherwise an agent with a join token that has uses left would be back within a second, and with it whoever has copied
//! its state folder.

use serde::{Deserialize, Serialize};

use super::call::Call;
use super::node_credentials::Sha256;
use super::nodes::check_id;
use super::page::{Page, Paging};
use super::refusal::{Kind, Refusal};
use crate::store::{Records, Source, Store, Writer};

/// By id. A node that is enrolled again leaves the table, and takes its void secrets with it.
pub(crate) const FORMER_NODES: Records<String, FormerNode> = Records::new("former_nodes");

/// Former nodes that are kept: five times the nodes that one master is for, at some 500 bytes each. Where there are more,
/// those go first that are not barred, and then those that were deleted first.
pub(crate) const FORMER_NODES_MAX: u64 = 100_000;

/// A node that was deleted, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FormerNode {
    /// Whether the id is barred.
    pub(crate) is_barred: bool,
    /// Who deleted it.
    pub(crate) deleted_by: String,
    /// When, in milliseconds since 1970.
    pub(crate) deleted_at_ms: u64,
    /// Verifiers of its secrets.
    pub(crate) void: Vec<Sha256>,
}

/// The former nodes.
pub(crate) struct FormerNodes {
    store: Store,
}

impl FormerNodes {
    /// Over a store.
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Those whose ids are barred, by their ids.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn barred(&self, paging: Paging) -> Result<Page<(String, FormerNode)>, Refusal> {
        let all = self.store.read()?.all(FORMER_NODES)?;
        Ok(paging.cut(all.into_iter().filter(|(_, former)| former.is_barred).collect()))
    }

    /// Lets an id in again: a node of this id may enrol, with a new secret.
    ///
    /// # Errors
    /// It is not barred.
    pub(crate) fn unbar(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        check_id(id)?;
        self.store.change(|writer| {
            let former = writer.find(FORMER_NODES, &id.to_owned())?.filter(|former| former.is_barred);
            let former = former.ok_or_else(|| Refusal::not_found("id", "barred node", id))?;
            writer.put(FORMER_NODES, &id.to_owned(), &FormerNode { is_barred: false, ..former })?;
            Ok(((), call.done("nodes.unbar", id, "a node of this id may enrol again")))
        })
    }
}

/// Bars the id of a node that is deleted; gives what the audit log has to tell of it besides.
pub(super) fn bar(writer: &Writer, call: &Call, id: &str, void: Vec<Sha256>) -> Result<String, Refusal> {
    let forgotten = make_room(writer, FORMER_NODES_MAX)?;
    let (deleted_by, deleted_at_ms) = (call.actor.name().to_owned(), call.at_ms);
    let former = FormerNode { is_barred: true, deleted_by, deleted_at_ms, void };
    writer.put(FORMER_NODES, &id.to_owned(), &former)?;
    Ok(forgotten.map_or(String::new(), |id| format!("; {id}, deleted long ago, is not barred any more")))
}

/// Lets a node of this id in; gives the void secrets of its earlier lives.
///
/// # Errors
/// The id is barred, or the secret is one of those.
pub(super) fn let_in(writer: &Writer, id: &str, verifier: &Sha256) -> Result<Vec<Sha256>, Refusal> {
    check_barred(writer, id)?;
    let Some(former) = writer.find(FORMER_NODES, &id.to_owned())? else { return Ok(Vec::new()) };
    if former.void.contains(verifier) {
        return Err(used_before());
    }
    writer.remove(FORMER_NODES, &id.to_owned())?;
    Ok(former.void)
}

/// Holds that an id is not barred.
///
/// # Errors
/// It is.
pub(super) fn check_barred(writer: &Writer, id: &str) -> Result<(), Refusal> {
    if writer.find(FORMER_NODES, &id.to_owned())?.is_none_or(|former| !former.is_barred) {
        return Ok(());
    }
    let message = format!(
        "{id} was deleted, and its id is barred until an operator lets it in again: DELETE /api/v1/barred-nodes/{id}"
    );
    Err(Refusal::of(Kind::Forbidden, "node_id", "barred", message))
}

/// A secret that was the node's before.
pub(super) fn used_before() -> Refusal {
    let message = "this credential was used before, and somebody may have a copy: a node enrols with a new one each time; \
                   take a newer agent, or remove the files credential* from its state folder";
    Refusal::of(Kind::Forbidden, "credential_sha256", "used_before", message)
}

/// Forgets one where there are too many; gives its id if it was barred.
fn make_room(writer: &Writer, count_max: u64) -> Result<Option<String>, Refusal> {
    if writer.count(FORMER_NODES)? < count_max {
        return Ok(None);
    }
    let all = writer.all(FORMER_NODES)?;
    let first = all.into_iter().min_by_key(|(_, former)| (former.is_barred, former.deleted_at_ms));
    let Some((id, former)) = first else { return Ok(None) };
    writer.remove(FORMER_NODES, &id)?;
    Ok(former.is_barred.then_some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gone_make_room_and_those_first_that_are_not_barred() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &[FORMER_NODES.name()]).unwrap();
        let forgotten = store.observe(|writer| {
            for (id, is_barred, deleted_at_ms) in [("a", true, 2), ("b", true, 1), ("c", false, 3)] {
                let former =
                    FormerNode { is_barred, deleted_by: String::new(), deleted_at_ms, void: Vec::new() };
                writer.put(FORMER_NODES, &id.to_owned(), &former)?;
            }
            Ok::<_, Refusal>([4, 3, 2, 2].map(|count_max| make_room(writer, count_max).unwrap()))
        });
        // There is room; then there is none, and `c` goes, whose id was free; then `b`, which was deleted first.
        assert_eq!(forgotten.unwrap(), [None, None, Some("b".to_owned()), None]);
        let left = store.read().unwrap().all(FORMER_NODES).unwrap();
        assert_eq!(left.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), ["a"]);
    }
}
