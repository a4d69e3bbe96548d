//! API keys: what programs log in with. Random, shown once, kept as a hash; with a role, scopes and an end.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Identity, unknown};
use super::call::{Actor, Call, Role};
use super::name::check_name;
use super::owner::Owner;
use super::page::{Page, Paging};
use super::refusal::{Kind, Refusal};
use super::secret;
use crate::store::{Records, Source, Store, Writer};

/// By id.
pub(crate) const API_KEYS: Records<String, ApiKeyRecord> = Records::new("api_keys");

/// What a key begins with, so that it is known for one where it does not belong.
pub(crate) const KEY_PREFIX: &str = "mrk1";

/// Longest life: a year, after which somebody should look at it again.
pub(crate) const LIFETIME_S_MAX: u64 = 366 * 24 * 3600;

/// Scopes of one key: each resource with both actions is fewer.
pub(crate) const SCOPES_MAX: usize = 64;

/// A key as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ApiKeyRecord {
    /// For people.
    pub(crate) name: String,
    /// At most this.
    pub(crate) role: Role,
    /// And of it only this; empty: all of it.
    pub(crate) scopes: Vec<String>,
    /// SHA-256 of the whole key.
    pub(crate) sha256: String,
    /// Who made it, as the audit log has it.
    pub(crate) created_by: String,
    /// The person it belongs to; none, in a store of a version before that kept no owners: see `migration`.
    #[serde(default)]
    pub(crate) owner: Option<Owner>,
    /// When, in milliseconds since 1970.
    pub(crate) created_at_ms: u64,
    /// Until when, likewise.
    pub(crate) expires_at_ms: u64,
}

/// A key to be made.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewApiKey {
    /// For people.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub(crate) name: String,
    /// The key may at most what this role may.
    pub(crate) role: Role,
    /// `RESOURCE:read` or `RESOURCE:write`, such as `configs:write`, with the resources as in the API's paths, or `*` for
    /// all of them. Empty: everything that the role may.
    #[serde(default)]
    #[schema(max_items = 64)]
    pub(crate) scopes: Vec<String>,
    /// How long the key is good.
    #[schema(minimum = 1, maximum = 31_622_400)]
    pub(crate) expires_in_s: u64,
}

/// The keys.
pub(crate) struct ApiKeys {
    store: Store,
    limit: u64,
}

/// What a scope allows to do with its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// Look.
    Read,
    /// Change; looking is a scope of its own.
    Write,
}

/// A resource and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scope {
    /// As in the API's paths, or [`EVERY_RESOURCE`].
    pub(crate) resource: String,
    /// What may be done with it.
    pub(crate) access: Access,
}

/// Stands in a scope for all resources.
const EVERY_RESOURCE: &str = "*";

/// A key as it is now.
#[derive(Clone, Debug)]
pub(crate) struct ApiKey {
    /// Its id.
    pub(crate) id: String,
    /// As stored.
    pub(crate) record: ApiKeyRecord,
    /// What it may at most do now; none: its person is no user any more, and it is void.
    pub(crate) role_now: Option<Role>,
}

impl ApiKeys {
    /// Over a store, with at most so many keys.
    pub(crate) fn new(store: Store, limit: u64) -> Self {
        Self { store, limit }
    }

    /// All keys, by their ids.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn list(&self, paging: Paging) -> Result<Page<ApiKey>, Refusal> {
        let reader = self.store.read()?;
        let keys = reader.all(API_KEYS)?.into_iter().map(|(id, record)| ApiKey::read(&reader, id, record));
        Ok(paging.cut(keys.collect::<Result<Vec<_>, _>>()?))
    }

    /// One key.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn find(&self, id: &str) -> Result<ApiKey, Refusal> {
        check_name("id", id)?;
        let reader = self.store.read()?;
        let record = reader.find(API_KEYS, &id.to_owned())?;
        ApiKey::read(&reader, id.to_owned(), record.ok_or_else(|| Refusal::not_found("id", "API key", id))?)
    }

    /// Makes a key; gives what is stored, and the key itself, which is nowhere else. `known` are the scopes that lead
    /// anywhere.
    ///
    /// # Errors
    /// Something is against the rules, the key would reach further than the one that asks for it, or there are too many
    /// keys.
    pub(crate) fn create(
        &self,
        call: &Call,
        new: &NewApiKey,
        known: &[Scope],
    ) -> Result<(ApiKey, String), Refusal> {
        check_name("name", &new.name)?;
        check_scopes(&new.scopes, known)?;
        if !(1..=LIFETIME_S_MAX).contains(&new.expires_in_s) {
            let message = format!("`expires_in_s` is to be between 1 and {LIFETIME_S_MAX}");
            return Err(Refusal::invalid("expires_in_s", "out_of_range", message));
        }
        let id = secret::new_id();
        let key = format!("{KEY_PREFIX}.{id}.{}", secret::new_secret());
        let draft = ApiKeyRecord {
            name: new.name.clone(),
            role: new.role,
            scopes: new.scopes.clone(),
            sha256: secret::sha256(&key),
            created_by: call.actor.name().to_owned(),
            owner: None,
            created_at_ms: call.at_ms,
            expires_at_ms: call.at_ms + new.expires_in_s * 1000,
        };
        let made = self.store.change(|writer| {
            check_reach(writer, call, &draft)?;
            if writer.count(API_KEYS)? >= self.limit {
                return Err(Refusal::limit("name", "API keys", self.limit));
            }
            let record = ApiKeyRecord { owner: Owner::of(writer, call)?, ..draft };
            writer.put(API_KEYS, &id, &record)?;
            let detail = format!("{}, role {}, scopes {:?}", new.name, new.role.name(), new.scopes);
            Ok((ApiKey::read(writer, id.clone(), record)?, call.done("api_keys.create", &id, detail)))
        })?;
        Ok((made, key))
    }

    /// Removes a key, which is void from then on.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn remove(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        check_name("id", id)?;
        self.store.change(|writer| {
            if !writer.remove(API_KEYS, &id.to_owned())? {
                return Err(Refusal::not_found("id", "API key", id));
            }
            Ok(((), call.done("api_keys.delete", id, "")))
        })
    }

    /// Whose key this is, if it may do this with this resource.
    ///
    /// # Errors
    /// It is none, or no longer good, or its scopes do not reach so far.
    pub(crate) fn identify(
        &self,
        key: &str,
        resource: &str,
        access: Access,
        at_ms: u64,
    ) -> Result<Identity, Refusal> {
        let id = key.split('.').nth(1).unwrap_or_default().to_owned();
        let reader = self.store.read()?;
        let record = reader.find(API_KEYS, &id)?.ok_or_else(unknown)?;
        if !secret::is_secret_of(key, &record.sha256) || at_ms >= record.expires_at_ms {
            return Err(unknown());
        }
        let role = record.role_now(&reader)?.ok_or_else(unknown)?;
        if !record.reaches(resource, access) {
            let message = format!("the scopes of this key do not reach to {resource}:{}", access.name());
            return Err(Refusal::of(Kind::Forbidden, "authorization", "scope", message));
        }
        Ok(Identity { actor: Actor::ApiKey(id), role, login: None })
    }
}

impl ApiKey {
    fn read(source: &impl Source, id: String, record: ApiKeyRecord) -> Result<Self, Refusal> {
        Ok(Self { id, role_now: record.role_now(source)?, record })
    }
}

impl ApiKeyRecord {
    /// What the key may at most do now: no more than its person.
    fn role_now(&self, source: &impl Source) -> Result<Option<Role>, Refusal> {
        let Some(owner) = &self.owner else { return Ok(None) };
        Ok(owner.role(source)?.map(|role| role.min(self.role)))
    }

    fn reaches(&self, resource: &str, access: Access) -> bool {
        let allows =
            |scope: &String| scope.parse::<Scope>().is_ok_and(|scope| scope.allows(resource, access));
        self.scopes.is_empty() || self.scopes.iter().any(allows)
    }
}

/// Removes the keys of a person; gives their ids.
pub(super) fn remove_all_of(writer: &Writer, owner: &Owner) -> Result<Vec<String>, Refusal> {
    let mut removed = Vec::new();
    for (id, record) in writer.all(API_KEYS)? {
        if record.owner.as_ref() == Some(owner) {
            writer.remove(API_KEYS, &id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// Holds that a key which is made with a key reaches no further than that one.
fn check_reach(writer: &Writer, call: &Call, new: &ApiKeyRecord) -> Result<(), Refusal> {
    let Actor::ApiKey(id) = &call.actor else { return Ok(()) };
    let maker = writer.find(API_KEYS, id)?.ok_or_else(unknown)?;
    if maker.scopes.is_empty() {
        return Ok(());
    }
    let is_beyond = |scope: &&String| {
        let allowed = |scope: Scope| maker.reaches(&scope.resource, scope.access);
        !scope.parse().is_ok_and(allowed)
    };
    let beyond = new.scopes.iter().find(is_beyond);
    let what = match beyond {
        Some(scope) => format!("the scope {scope}"),
        None if new.scopes.is_empty() => "everything".to_owned(),
        None => return Ok(()),
    };
    let message = format!("a key gives no more than it has: this one does not reach to {what}");
    Err(Refusal::of(Kind::Forbidden, "scopes", "scope", message))
}

impl Access {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Read, Self::Write];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl Scope {
    fn allows(&self, resource: &str, access: Access) -> bool {
        self.access == access && (self.resource == EVERY_RESOURCE || self.resource == resource)
    }
}

impl FromStr for Scope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (resource, access) = text.split_once(':').ok_or(())?;
        let access = Access::ALL.into_iter().find(|one| one.name() == access).ok_or(())?;
        let is_resource = resource.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        if resource != EVERY_RESOURCE && (!is_resource || resource.is_empty()) {
            return Err(());
        }
        Ok(Self { resource: resource.to_owned(), access })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.resource, self.access.name())
    }
}

/// Holds scopes against those that lead anywhere: one with a slip of the pen would make a key that is good for nothing.
fn check_scopes(scopes: &[String], known: &[Scope]) -> Result<(), Refusal> {
    if scopes.len() > SCOPES_MAX {
        let message = format!("`scopes` may have at most {SCOPES_MAX} entries");
        return Err(Refusal::invalid("scopes", "too_many", message));
    }
    for (index, scope) in scopes.iter().enumerate() {
        let leads_somewhere = |scope: Scope| scope.resource == EVERY_RESOURCE || known.contains(&scope);
        if !scope.parse().is_ok_and(leads_somewhere) {
            let field = format!("scopes[{index}]");
            let known: Vec<String> = known.iter().map(ToString::to_string).collect();
            let message = format!("`{field}` is no scope; there are *:read, *:write, {}", known.join(", "));
            return Err(Refusal::invalid(&field, "bad_scope", message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_reaches_its_own_resource_and_action_alone() {
        let scope: Scope = "configs:write".parse().unwrap();
        assert!(scope.allows("configs", Access::Write));
        assert!(!scope.allows("configs", Access::Read));
        assert!(!scope.allows("nodes", Access::Write));
        let all: Scope = "*:read".parse().unwrap();
        assert!(all.allows("nodes", Access::Read) && !all.allows("nodes", Access::Write));
    }

    #[test]
    fn what_is_no_scope_is_refused_by_its_place_with_those_that_are() {
        let known: [Scope; 2] = ["configs:read", "nodes:read"].map(|scope| scope.parse().unwrap());
        let bad = ["", "configs", "configs:", ":read", "configs:delete", "Configs:read", "a:b:read"];
        // Well formed, and leads nowhere.
        for bad in bad.into_iter().chain(["nodez:read", "nodes:write"]) {
            let refusal = check_scopes(&["nodes:read".into(), bad.into()], &known).unwrap_err();
            assert_eq!(refusal.details[0].field, "scopes[1]", "{bad}");
            assert!(refusal.message.ends_with("*:read, *:write, configs:read, nodes:read"), "{refusal:?}");
        }
        assert!(check_scopes(&["*:write".into(), "configs:read".into()], &known).is_ok());
        assert!(check_scopes(&vec!["nodes:read".to_owned(); SCOPES_MAX + 1], &known).is_err());
    }
}
