//! API keys: what programs log in with. Random, shown once, kept as a hash; with a role, scopes and an end.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Identity, unknown};
use super::call::{Actor, Call, Role};
use super::name::{check_name, check_text};
use super::page::{Page, Paging};
use super::refusal::{Kind, Refusal};
use super::secret;
use crate::store::{Records, Source, Store};

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
    /// Who made it.
    pub(crate) created_by: String,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Look.
    Read,
    /// Change; looking is a scope of its own.
    Write,
}

/// A resource and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    resource: String,
    access: Access,
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
    pub(crate) fn list(&self, paging: Paging) -> Result<Page<(String, ApiKeyRecord)>, Refusal> {
        Ok(paging.cut(self.store.read()?.all(API_KEYS)?))
    }

    /// One key.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn find(&self, id: &str) -> Result<ApiKeyRecord, Refusal> {
        check_name("id", id)?;
        self.store
            .read()?
            .find(API_KEYS, &id.to_owned())?
            .ok_or_else(|| Refusal::not_found("id", "API key", id))
    }

    /// Makes a key; gives its id, what is stored, and the key itself, which is nowhere else.
    ///
    /// # Errors
    /// Something is against the rules, or there are too many keys.
    pub(crate) fn create(
        &self,
        call: &Call,
        new: &NewApiKey,
    ) -> Result<(String, ApiKeyRecord, String), Refusal> {
        check_name("name", &new.name)?;
        check_scopes(&new.scopes)?;
        if !(1..=LIFETIME_S_MAX).contains(&new.expires_in_s) {
            let message = format!("`expires_in_s` is to be between 1 and {LIFETIME_S_MAX}");
            return Err(Refusal::invalid("expires_in_s", "out_of_range", message));
        }
        let id = secret::new_id();
        let key = format!("{KEY_PREFIX}.{id}.{}", secret::new_secret());
        let record = ApiKeyRecord {
            name: new.name.clone(),
            role: new.role,
            scopes: new.scopes.clone(),
            sha256: secret::sha256(&key),
            created_by: call.actor.name().to_owned(),
            created_at_ms: call.at_ms,
            expires_at_ms: call.at_ms + new.expires_in_s * 1000,
        };
        self.store.change(|writer| {
            if writer.count(API_KEYS)? >= self.limit {
                return Err(Refusal::limit("name", "API keys", self.limit));
            }
            writer.put(API_KEYS, &id, &record)?;
            let detail = format!("{}, role {}, scopes {:?}", new.name, new.role.name(), new.scopes);
            Ok(((), call.done("api_keys.create", &id, detail)))
        })?;
        Ok((id, record, key))
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
        let record = self.store.read()?.find(API_KEYS, &id)?.ok_or_else(unknown)?;
        if !secret::is_secret_of(key, &record.sha256) || at_ms >= record.expires_at_ms {
            return Err(unknown());
        }
        let reaches =
            |scope: &String| scope.parse::<Scope>().is_ok_and(|scope| scope.allows(resource, access));
        if !record.scopes.is_empty() && !record.scopes.iter().any(reaches) {
            let message = format!("the scopes of this key do not reach to {resource}:{}", access.name());
            return Err(Refusal::of(Kind::Forbidden, "authorization", "scope", message));
        }
        Ok(Identity { actor: Actor::ApiKey(id), role: record.role })
    }
}

impl Access {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl Scope {
    fn allows(&self, resource: &str, access: Access) -> bool {
        self.access == access && (self.resource == "*" || self.resource == resource)
    }
}

impl FromStr for Scope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (resource, access) = text.split_once(':').ok_or(())?;
        let access = [Access::Read, Access::Write].into_iter().find(|one| one.name() == access).ok_or(())?;
        let is_resource = resource.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        if resource != "*" && (!is_resource || resource.is_empty()) {
            return Err(());
        }
        Ok(Self { resource: resource.to_owned(), access })
    }
}

fn check_scopes(scopes: &[String]) -> Result<(), Refusal> {
    if scopes.len() > SCOPES_MAX {
        let message = format!("`scopes` may have at most {SCOPES_MAX} entries");
        return Err(Refusal::invalid("scopes", "too_many", message));
    }
    for (index, scope) in scopes.iter().enumerate() {
        let field = format!("scopes[{index}]");
        check_text(&field, scope)?;
        if scope.parse::<Scope>().is_err() {
            let message =
                format!("`{field}` is to be RESOURCE:read or RESOURCE:write, such as configs:write");
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
    fn what_is_no_scope_is_refused_by_its_place() {
        for bad in ["", "configs", "configs:", ":read", "configs:delete", "Configs:read", "a:b:read"] {
            let refusal = check_scopes(&["nodes:read".into(), bad.into()]).unwrap_err();
            assert_eq!(refusal.details[0].field, "scopes[1]", "{bad}");
        }
        assert!(check_scopes(&vec!["nodes:read".to_owned(); SCOPES_MAX + 1]).is_err());
    }
}
