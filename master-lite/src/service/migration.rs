//! What a store of a version before is given when it is opened: what was not kept then, as far as it can be told from what
//! was. Once for each store; what it has done stands in the audit log.
//!
//! A record that gains a field with a default needs none of this. It is for fields whose right value is not the same for
//! all records.

use std::collections::BTreeMap;

use super::api_keys::{API_KEYS, ApiKeyRecord};
use super::call::Call;
use super::join_tokens::JOIN_TOKENS;
use super::nodes::NODES;
use super::owner::Owner;
use super::refusal::Refusal;
use super::users::USERS;
use crate::store::{Records, Source, Store, Writer};

/// When each step was taken, in milliseconds since 1970; by its name.
pub(crate) const MIGRATIONS: Records<String, u64> = Records::new("migrations");

/// API keys and join tokens belong to people; nodes have the place that was granted to them, and credentials an age.
const OWNERS: &str = "owners";

/// Takes the steps that this store has not seen.
///
/// # Errors
/// The store fails.
pub(super) fn migrate(store: &Store, call: &Call) -> Result<(), Refusal> {
    if store.read()?.find(MIGRATIONS, &OWNERS.to_owned())?.is_some() {
        return Ok(());
    }
    if store.read()?.count(USERS)? == 0 {
        // A new store, which lacks nothing.
        return store.observe(|writer| Ok(writer.put(MIGRATIONS, &OWNERS.to_owned(), &call.at_ms)?));
    }
    store.change(|writer| {
        let told = [find_owners(writer)?, find_grants(writer, call.at_ms)?];
        let detail = told.into_iter().filter(|told| !told.is_empty()).collect::<Vec<_>>().join("; ");
        writer.put(MIGRATIONS, &OWNERS.to_owned(), &call.at_ms)?;
        Ok(((), call.done("store.migrate", OWNERS, detail)))
    })
}

/// Gives each API key and join token to whoever made it. What was made by somebody who is no user any more has no owner: it
/// is void from now on, and stays in the lists until it is removed or ends.
fn find_owners(writer: &Writer) -> Result<String, Refusal> {
    let keys: BTreeMap<String, ApiKeyRecord> = writer.all(API_KEYS)?.into_iter().collect();
    let mut void = Vec::new();
    for (id, key) in &keys {
        let owner = owner_of(writer, &keys, &key.created_by, key.created_at_ms)?;
        if owner.is_none() {
            void.push(format!("API key {id} ({})", key.name));
        }
        writer.put(API_KEYS, id, &ApiKeyRecord { owner, ..key.clone() })?;
    }
    for (id, mut token) in writer.all(JOIN_TOKENS)? {
        token.owner = owner_of(writer, &keys, &token.created_by, token.created_at_ms)?;
        if token.owner.is_none() {
            void.push(format!("join token {id}"));
        }
        writer.put(JOIN_TOKENS, &id, &token)?;
    }
    Ok(if void.is_empty() {
        String::new()
    } else {
        format!("void, for want of an owner: {}", void.join(", "))
    })
}

/// Gives each node the place that its join token was for. What a version before has kept is what the agent said last, which
/// was never compared; where the token was for any place, or is not there any more, that is all there is to go by. The
/// credentials' age counts from now on.
fn find_grants(writer: &Writer, at_ms: u64) -> Result<String, Refusal> {
    let mut moved = Vec::new();
    for (id, mut node) in writer.all(NODES)? {
        if let Some(token) = writer.find(JOIN_TOKENS, &node.join_token)? {
            let said = node.place();
            node.role = token.role.unwrap_or(said.role);
            node.region = token.region.unwrap_or_else(|| said.region.clone());
            if node.place() != said {
                moved.push(format!("{id} (it says that it is {said})"));
            }
        }
        node.credentials.since_ms = at_ms;
        writer.put(NODES, &id, &node)?;
    }
    Ok(if moved.is_empty() {
        String::new()
    } else {
        format!("back in the place that was granted: {}", moved.join(", "))
    })
}

/// The user behind what somebody made at that time: by name, if that user was there already, or through the key that it was
/// made with, and the one that that was made with.
fn owner_of(
    writer: &Writer,
    keys: &BTreeMap<String, ApiKeyRecord>,
    maker: &str,
    at_ms: u64,
) -> Result<Option<Owner>, Refusal> {
    let (mut maker, mut at_ms) = (maker.to_owned(), at_ms);
    // A key is older than what was made with it, so that there is no way round; the count is for a store that lies.
    for _ in 0..=keys.len() {
        if let Some(user) = writer.find(USERS, &maker)?.filter(|user| user.created_at_ms <= at_ms) {
            return Ok(Some(Owner::new(&maker, &user)));
        }
        let Some(key) = keys.get(&maker) else { return Ok(None) };
        (maker, at_ms) = (key.created_by.clone(), key.created_at_ms);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::service::call::Role;

    /// Records of a table as the version before wrote them.
    fn old(table: &'static str, records: &[(&str, Value)], store: &Store) {
        let written = store.observe(|writer| {
            let table: Records<String, Value> = Records::new(table);
            records.iter().try_for_each(|(id, record)| writer.put(table, &(*id).to_owned(), record))
        });
        written.map_err(|error: crate::store::StoreError| error.to_string()).unwrap();
    }

    fn user(created_at_ms: u64) -> Value {
        json!({ "role": "admin", "password_hash": "x", "epoch": 7, "created_at_ms": created_at_ms, "changed_at_ms": 9 })
    }

    fn key(created_by: &str, created_at_ms: u64) -> Value {
        json!({ "name": "ci", "role": "operator", "scopes": [], "sha256": "x", "created_by": created_by,
                "created_at_ms": created_at_ms, "expires_at_ms": 1_000 })
    }

    #[test]
    fn what_a_version_before_has_made_belongs_to_its_maker_or_is_void() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::open(dir.path(), &["users", "api_keys", "join_tokens", "nodes", "migrations"]).unwrap();
        old("users", &[("ada", user(10)), ("bob", user(50))], &store);
        let keys = [
            ("hers", key("ada", 20)),
            ("its", key("hers", 30)),
            // Of a user who is gone; of another one of the same name; with a key that is gone.
            ("gone", key("eve", 20)),
            ("earlier", key("bob", 20)),
            ("lost", key("deleted", 20)),
        ];
        old("api_keys", &keys, &store);
        let token = json!({ "description": "", "verifier": vec![0; 32], "role": null, "region": null, "uses_max": 1,
                            "uses": 0, "created_by": "its", "created_at_ms": 40, "expires_at_ms": 1_000 });
        old("join_tokens", &[("t", token)], &store);

        migrate(&store, &Call::system(100)).unwrap();
        let reader = store.read().unwrap();
        let owner = |id: &str| reader.find(API_KEYS, &id.to_owned()).unwrap().unwrap().owner;
        let owned = Owner { user: "ada".to_owned(), since_ms: 10 };
        let ada = Some(owned.clone());
        assert_eq!((owner("hers"), owner("its")), (ada.clone(), ada.clone()));
        assert_eq!(["gone", "earlier", "lost"].map(owner), [None, None, None]);
        assert_eq!(reader.find(JOIN_TOKENS, &"t".to_owned()).unwrap().unwrap().owner, ada);
        assert_eq!(owned.role(&reader).unwrap(), Some(Role::Admin));
        let told = reader.all(crate::store::AUDIT).unwrap();
        let detail = "void, for want of an owner: API key earlier (ci), API key gone (ci), API key lost (ci)";
        assert_eq!((told.len(), told[0].1.detail.as_str()), (1, detail));

        // Once only: what is void stays so, whoever comes by that name.
        old("users", &[("eve", user(15))], &store);
        migrate(&store, &Call::system(200)).unwrap();
        assert_eq!(store.read().unwrap().find(API_KEYS, &"gone".to_owned()).unwrap().unwrap().owner, None);
    }

    #[test]
    fn a_node_is_in_the_place_that_its_token_was_for_whatever_its_agent_said_since() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::open(dir.path(), &["users", "api_keys", "join_tokens", "nodes", "migrations"]).unwrap();
        old("users", &[("ada", user(10))], &store);
        let token = |region: Value| {
            json!({ "description": "", "verifier": vec![0; 32], "role": null, "region": region, "uses_max": 1, "uses": 1,
                    "created_by": "ada", "created_at_ms": 40, "expires_at_ms": 50 })
        };
        old("join_tokens", &[("hk", token(json!("hk"))), ("any", token(json!(null)))], &store);
        let node = |token: &str| {
            json!({ "role": "edge", "region": "sg", "tags": ["canary"], "description": "d", "verifier": vec![3; 32],
                    "join_token": token, "enrolled_at_ms": 45, "seen_at_ms": 60,
                    "about": { "hostname": "", "kernel_version": "", "architecture": "", "cpus": 1, "memory_bytes": 1,
                               "agent_version": "0.1.0", "dataplane_version": "", "capabilities": [] } })
        };
        old("nodes", &[("a", node("hk")), ("b", node("any")), ("c", node("forgotten"))], &store);
        migrate(&store, &Call::system(100)).unwrap();
        let reader = store.read().unwrap();
        let nodes = reader.all(NODES).unwrap();
        let regions: Vec<_> = nodes.iter().map(|(_, node)| node.region.as_str()).collect();
        assert_eq!(regions, ["hk", "sg", "sg"]);
        let credentials = &nodes[0].1.credentials;
        assert_eq!(
            (credentials.verifier, credentials.since_ms, credentials.can_change),
            ([3; 32], 100, false)
        );
        assert_eq!(nodes[0].1.tags.len(), 1);
        let told = reader.all(crate::store::AUDIT).unwrap();
        let detail = "back in the place that was granted: a (it says that it is an edge in sg)";
        assert_eq!(told[0].1.detail, detail);
    }
}
