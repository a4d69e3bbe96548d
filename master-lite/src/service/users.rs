//! People who may log in: their roles, and their passwords as hashes. Logging in itself is `auth`.

use serde::{Deserialize, Serialize};

use super::call::{Call, Role};
use super::logins::Logins;
use super::name::check_name;
use super::owner::Owner;
use super::page::{Page, Paging};
use super::password;
use super::refusal::Refusal;
use super::{api_keys, join_tokens};
use crate::store::{Records, Source, Store, Writer};

/// By name.
pub(crate) const USERS: Records<String, UserRecord> = Records::new("users");

/// The user that the first start makes.
pub(crate) const FIRST_USER: &str = "admin";

/// A user as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UserRecord {
    /// What they may do.
    pub(crate) role: Role,
    /// argon2id, in PHC form.
    pub(crate) password_hash: String,
    /// The logins that are open. A store of a version before that kept none has none: everybody logs in once more.
    #[serde(default)]
    pub(crate) logins: Logins,
    /// Milliseconds since 1970.
    pub(crate) created_at_ms: u64,
    /// Of the last change.
    pub(crate) changed_at_ms: u64,
}

/// What of a user is to be changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserChange {
    /// Another role.
    pub(crate) role: Option<Role>,
    /// Another password.
    pub(crate) password: Option<String>,
}

/// What went with a user who was removed, by ids.
#[derive(Debug)]
pub(crate) struct Belongings {
    /// API keys.
    pub(crate) api_keys: Vec<String>,
    /// Join tokens.
    pub(crate) join_tokens: Vec<String>,
}

/// The users.
pub(crate) struct Users {
    store: Store,
    limit: u64,
}

impl Users {
    /// Over a store, with at most so many users.
    pub(crate) fn new(store: Store, limit: u64) -> Self {
        Self { store, limit }
    }

    /// All users, by their names.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn list(&self, paging: Paging) -> Result<Page<(String, UserRecord)>, Refusal> {
        Ok(paging.cut(self.store.read()?.all(USERS)?))
    }

    /// One user.
    ///
    /// # Errors
    /// There is none of this name.
    pub(crate) fn find(&self, name: &str) -> Result<UserRecord, Refusal> {
        check_name("username", name)?;
        find(&self.store.read()?, name)
    }

    /// Makes a user.
    ///
    /// # Errors
    /// The name or the password is against the rules, the name is taken, or there are too many.
    pub(crate) fn create(
        &self,
        call: &Call,
        name: &str,
        role: Role,
        password: &str,
    ) -> Result<UserRecord, Refusal> {
        check_name("username", name)?;
        password::check("password", password)?;
        let record = new_record(call, role, password)?;
        self.store.change(|writer| {
            // Whatever the case: `Ada` in an audit log is not to be taken for `ada`.
            let users = writer.all(USERS)?;
            if let Some((taken, _)) = users.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)) {
                let message = format!("there is a user `{taken}` already");
                return Err(Refusal::conflict("username", "taken", message));
            }
            if writer.count(USERS)? >= self.limit {
                return Err(Refusal::limit("username", "users", self.limit));
            }
            writer.put(USERS, &name.to_owned(), &record)?;
            Ok((record, call.done("users.create", name, format!("role {}", role.name()))))
        })
    }

    /// Changes a user; whoever is logged in as that user has to log in again.
    ///
    /// # Errors
    /// There is none of this name, the password is against the rules, or the last admin would be none.
    pub(crate) fn change(&self, call: &Call, name: &str, change: &UserChange) -> Result<UserRecord, Refusal> {
        self.change_as("users.change", call, name, change)
    }

    /// Gives a user a new random password: the only admin, unless one is named. Gives the name and the password, which
    /// is nowhere else.
    ///
    /// # Errors
    /// There is none of this name, or nobody is named and there are several admins.
    pub(crate) fn reset_password(
        &self,
        call: &Call,
        name: Option<&str>,
    ) -> Result<(String, String), Refusal> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => only_one(admins(&self.store.read()?)?)?,
        };
        let password = password::random();
        let change = UserChange { password: Some(password.clone()), ..UserChange::default() };
        self.change_as("users.reset_password", call, &name, &change)?;
        Ok((name, password))
    }

    fn change_as(
        &self,
        action: &str,
        call: &Call,
        name: &str,
        change: &UserChange,
    ) -> Result<UserRecord, Refusal> {
        check_name("username", name)?;
        change.password.as_deref().map(|new| password::check("password", new)).transpose()?;
        // Hashed before the transaction: everybody else's changes need not wait for it.
        let hash = change.password.as_deref().map(password::hash).transpose()?;
        self.store.change(|writer| {
            let mut record: UserRecord = find(writer, name)?;
            let role = change.role.unwrap_or(record.role);
            if role != Role::Admin {
                keep_an_admin(writer, name, "role")?;
            }
            let mut changed = Vec::new();
            if role != record.role {
                changed.push(format!("role {} to {}", record.role.name(), role.name()));
                record.role = role;
            }
            if let Some(hash) = hash {
                changed.push("password".to_owned());
                record.password_hash = hash;
            }
            if !changed.is_empty() {
                record.logins.end_others(None);
                record.changed_at_ms = call.at_ms;
            }
            writer.put(USERS, &name.to_owned(), &record)?;
            Ok((record, call.done(action, name, changed.join(", "))))
        })
    }

    /// Removes a user with everything that belongs to that person: logins, API keys and join tokens.
    ///
    /// # Errors
    /// There is none of this name, or it is the last admin.
    pub(crate) fn remove(&self, call: &Call, name: &str) -> Result<Belongings, Refusal> {
        check_name("username", name)?;
        self.store.change(|writer| {
            let owner = Owner::new(name, &find(writer, name)?);
            keep_an_admin(writer, name, "username")?;
            writer.remove(USERS, &name.to_owned())?;
            let api_keys = api_keys::remove_all_of(writer, &owner)?;
            let join_tokens = join_tokens::remove_all_of(writer, &owner)?;
            let detail = format!("with the API keys {api_keys:?} and the join tokens {join_tokens:?}");
            Ok((Belongings { api_keys, join_tokens }, call.done("users.delete", name, detail)))
        })
    }

    /// Makes [`FIRST_USER`] where there is nobody, and tells its password before it is stored.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn make_first(&self, call: &Call, tell: impl FnOnce(&str)) -> Result<(), Refusal> {
        if self.store.read()?.count(USERS)? > 0 {
            return Ok(());
        }
        let password = password::random();
        tell(&password);
        self.create(call, FIRST_USER, Role::Admin, &password).map(drop)
    }
}

fn new_record(call: &Call, role: Role, password: &str) -> Result<UserRecord, Refusal> {
    let password_hash = password::hash(password)?;
    // A user of the same name as a removed one is somebody else: without the old one's logins, and made later.
    Ok(UserRecord {
        role,
        password_hash,
        logins: Logins::default(),
        created_at_ms: call.at_ms,
        changed_at_ms: call.at_ms,
    })
}

fn find(source: &impl Source, name: &str) -> Result<UserRecord, Refusal> {
    source.find(USERS, &name.to_owned())?.ok_or_else(|| Refusal::not_found("username", "user", name))
}

/// Holds that somebody other than `name` is an admin, or that `name` is none anyway.
fn keep_an_admin(writer: &Writer, name: &str, field: &str) -> Result<(), Refusal> {
    if admins(writer)? == [name] {
        let message = "this is the last admin: make another one first";
        return Err(Refusal::conflict(field, "last_admin", message));
    }
    Ok(())
}

fn admins(source: &impl Source) -> Result<Vec<String>, Refusal> {
    let admins = source.all(USERS)?.into_iter().filter(|(_, user)| user.role == Role::Admin);
    Ok(admins.map(|(name, _)| name).collect())
}

fn only_one(mut admins: Vec<String>) -> Result<String, Refusal> {
    match admins.pop() {
        Some(name) if admins.is_empty() => Ok(name),
        Some(name) => {
            admins.push(name);
            let message = format!("there are several admins, say which: {}", admins.join(", "));
            Err(Refusal::invalid("username", "missing", message))
        }
        None => Err(Refusal::invalid("username", "missing", "there is no admin: start the master once")),
    }
}
