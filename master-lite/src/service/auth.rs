//! Who somebody is: logging in with a password, and reading the credentials that requests carry.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::call::{Actor, Call, Role};
use super::name::NAME_BYTES_MAX;
use super::password::{self, PASSWORD_BYTES_MAX};
use super::refusal::{Kind, Refusal};
use super::throttle::Throttle;
use super::token::Tokens;
use super::users::{USERS, UserRecord};
use crate::store::{Source, Store};

/// Failed logins of one name from one address before it has to wait.
pub(crate) const FAILURES_PER_NAME: u32 = 5;
/// Failed logins from one address with whatever names: an office behind one address may have several bad mornings.
pub(crate) const FAILURES_PER_ADDRESS: u32 = 50;
/// Failed logins of one name from anywhere: slows a guess from many addresses down to some thousands a day.
pub(crate) const FAILURES_PER_NAME_ANYWHERE: u32 = 100;
/// How long they are counted.
pub(crate) const FAILURES_WINDOW_MS: u64 = 5 * 60 * 1000;

/// Logging in.
pub(crate) struct Auth {
    store: Store,
    tokens: Tokens,
    failures: Mutex<Failures>,
}

/// Failed logins, counted in three ways.
struct Failures {
    by_both: Throttle<(String, Option<IpAddr>)>,
    by_name: Throttle<String>,
    by_address: Throttle<Option<IpAddr>>,
}

/// A login that went well.
#[derive(Debug)]
pub(crate) struct Login {
    /// To be sent with each request.
    pub(crate) token: String,
    /// Whose.
    pub(crate) username: String,
    /// What they may do.
    pub(crate) role: Role,
    /// Until when, in milliseconds since 1970.
    pub(crate) expires_at_ms: u64,
}

/// Who a credential is of, and what it lets them do.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Who.
    pub(crate) actor: Actor,
    /// At most this.
    pub(crate) role: Role,
}

impl Auth {
    /// Over a store, with the master's own tokens.
    pub(crate) fn new(store: Store, tokens: Tokens) -> Self {
        let failures = Failures {
            by_both: Throttle::new(FAILURES_PER_NAME, FAILURES_WINDOW_MS),
            by_name: Throttle::new(FAILURES_PER_NAME_ANYWHERE, FAILURES_WINDOW_MS),
            by_address: Throttle::new(FAILURES_PER_ADDRESS, FAILURES_WINDOW_MS),
        };
        Self { store, tokens, failures: Mutex::new(failures) }
    }

    /// Logs a user in.
    ///
    /// # Errors
    /// The name and the password do not belong together (which of them is wrong is not said), or there were too many
    /// failures.
    pub(crate) fn log_in(&self, call: &Call, name: &str, password: &str) -> Result<Login, Refusal> {
        if name.len() > NAME_BYTES_MAX || password.len() > PASSWORD_BYTES_MAX {
            return Err(wrong());
        }
        let key = (name.to_owned(), call.address);
        // Counted before it is known: attempts that come at once are not all let through.
        self.failures().admit(&key, call.at_ms)?;
        let user = self.store.read()?.find(USERS, &key.0)?;
        let hash = user.as_ref().map(|user| user.password_hash.as_str());
        let is_right = password::is_password_of(password, hash);
        let user = user.filter(|_| is_right).ok_or_else(wrong)?;
        self.failures().pardon(&key);
        self.issue(call, name, &user)
    }

    /// Another token for somebody who has one.
    ///
    /// # Errors
    /// The caller is no user.
    pub(crate) fn refresh(&self, call: &Call) -> Result<Login, Refusal> {
        let Actor::User(name) = &call.actor else {
            let message = "only users have login tokens; an API key is used as it is";
            return Err(Refusal::of(Kind::Forbidden, "authorization", "no_user", message));
        };
        let user = self.store.read()?.find(USERS, name)?.ok_or_else(unknown)?;
        self.issue(call, name, &user)
    }

    /// Whose login token this is.
    ///
    /// # Errors
    /// It is none, or no longer good.
    pub(crate) fn identify(&self, token: &str, at_ms: u64) -> Result<Identity, Refusal> {
        let claims = self.tokens.read(token, at_ms).ok_or_else(unknown)?;
        let user = self.store.read()?.find(USERS, &claims.sub)?;
        let user = user.filter(|user| user.epoch == claims.epoch).ok_or_else(unknown)?;
        Ok(Identity { actor: Actor::User(claims.sub), role: user.role })
    }

    fn issue(&self, call: &Call, name: &str, user: &UserRecord) -> Result<Login, Refusal> {
        let (token, claims) = self.tokens.issue(name, user.epoch, call.at_ms)?;
        let expires_at_ms = claims.exp * 1000;
        Ok(Login { token, username: name.to_owned(), role: user.role, expires_at_ms })
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failures {
    /// Counts an attempt as failed, unless there were too many.
    fn admit(&mut self, key: &(String, Option<IpAddr>), now_ms: u64) -> Result<(), Refusal> {
        let each = [
            self.by_both.check(key, now_ms),
            self.by_name.check(&key.0, now_ms),
            self.by_address.check(&key.1, now_ms),
        ];
        let Some(wait_ms) = each.into_iter().filter_map(Result::err).max() else {
            self.by_both.count(key, now_ms);
            self.by_name.count(&key.0, now_ms);
            self.by_address.count(&key.1, now_ms);
            return Ok(());
        };
        let kind = Kind::TooMany { retry_after_s: wait_ms.div_ceil(1000) };
        Err(Refusal::of(kind, "username", "too_many_failures", "too many failed logins: wait and try again"))
    }

    /// The attempt that was admitted last went well.
    fn pardon(&mut self, key: &(String, Option<IpAddr>)) {
        self.by_both.forget(key);
        self.by_name.take_back(&key.0);
        self.by_address.take_back(&key.1);
    }
}

fn wrong() -> Refusal {
    Refusal::of(Kind::Unauthenticated, "password", "wrong_login", "the username or the password is wrong")
}

/// A credential that is not, or no longer, known.
pub(super) fn unknown() -> Refusal {
    let message = "the credential is unknown, expired or revoked";
    Refusal::of(Kind::Unauthenticated, "authorization", "bad_credential", message)
}
