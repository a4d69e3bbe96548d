//! The person behind a credential. API keys and join tokens belong to the user who made them: each use is held against
//! that user as stored now, so that a credential ends with its person and shrinks with its person's role.
//!
//! What a program makes with an API key belongs to the key's own person. A credential without a person is void.

use serde::{Deserialize, Serialize};

use super::api_keys::API_KEYS;
use super::auth::unknown;
use super::call::{Actor, Call, Role};
use super::refusal::Refusal;
use super::users::{USERS, UserRecord};
use crate::store::Source;

/// A user, told from a later one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The user's name.
    pub(crate) user: String,
    /// When that user was made, in milliseconds since 1970.
    pub(crate) since_ms: u64,
}

impl Owner {
    /// The user of this name and record.
    pub(crate) fn new(user: &str, record: &UserRecord) -> Self {
        Self { user: user.to_owned(), since_ms: record.created_at_ms }
    }

    /// The person behind a call; none where there is no person, as behind the master's own.
    ///
    /// # Errors
    /// The person was deleted meanwhile, or the store fails.
    pub(crate) fn of(source: &impl Source, call: &Call) -> Result<Option<Self>, Refusal> {
        match &call.actor {
            Actor::User(name) => {
                let user = source.find(USERS, name)?.ok_or_else(unknown)?;
                Ok(Some(Self::new(name, &user)))
            }
            Actor::ApiKey(id) => Ok(source.find(API_KEYS, id)?.ok_or_else(unknown)?.owner),
            Actor::Anonymous | Actor::System | Actor::Node(_) | Actor::Host(_) => Ok(None),
        }
    }

    /// What the person may do now; none: the person is no user any more.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn role(&self, source: &impl Source) -> Result<Option<Role>, Refusal> {
        let user = source.find(USERS, &self.user)?;
        Ok(user.filter(|user| user.created_at_ms == self.since_ms).map(|user| user.role))
    }
}
