//! Who somebody is: logging in with a password and out again, and reading the tokens that requests carry.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::call::{Actor, Call, Role};
use super::logins::{LoginToken, Standing};
use super::name::NAME_BYTES_MAX;
use super::password::{self, PASSWORD_BYTES_MAX};
use super::refusal::{Kind, Refusal};
use super::secret;
use super::throttle::Throttle;
use super::token::{self, Claims, Tokens};
use super::users::{USERS, UserRecord};
use crate::store::{Source, Store, Writer};

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
    /// The login that a user's token is of.
    pub(crate) login: Option<LoginToken>,
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
        let known = self.check_password(call, name, password)?;
        let id = secret::new_id();
        let user = self.store.observe(|writer| {
            let user: Option<UserRecord> = writer.find(USERS, &name.to_owned())?;
            // It may have been changed meanwhile.
            let is_same = |user: &UserRecord| user.password_hash == known.password_hash;
            let mut user = user.filter(is_same).ok_or_else(wrong)?;
            user.logins.begin(&id, call.at_ms, token::expires_at_ms(call.at_ms));
            writer.put(USERS, &name.to_owned(), &user)?;
            Ok::<_, Refusal>(user)
        })?;
        // A login outlives a crash, although it is no change that the audit log tells of.
        self.store.flush()?;
        self.issue(call, name, user.role, &LoginToken { login: id, generation: 0 })
    }

    /// Another token for somebody who has one, which ends with it.
    ///
    /// # Errors
    /// The caller is no user, or the token was exchanged already.
    pub(crate) fn refresh(&self, call: &Call) -> Result<Login, Refusal> {
        let (name, token) = person(call)?;
        let renewed = self.store.observe(|writer| {
            let mut user: UserRecord = writer.find(USERS, &name.to_owned())?.ok_or_else(unknown)?;
            let renewed = user.logins.renew(token, token::expires_at_ms(call.at_ms));
            writer.put(USERS, &name.to_owned(), &user)?;
            Ok::<_, Refusal>(renewed.map(|renewed| (user.role, renewed)))
        })?;
        self.store.flush()?;
        match renewed {
            Some((role, renewed)) => self.issue(call, name, role, &renewed),
            // Two at once with one token.
            None => Err(self.end_family(call, name, token)),
        }
    }

    /// Ends the caller's login.
    ///
    /// # Errors
    /// The caller is no user.
    pub(crate) fn log_out(&self, call: &Call) -> Result<(), Refusal> {
        let (name, token) = person(call)?;
        self.store.change(|writer| {
            end_login(writer, name, &token.login)?;
            Ok(((), call.done("auth.logout", name, "")))
        })
    }

    /// Changes the caller's own password; all their other logins end.
    ///
    /// # Errors
    /// The caller is no user, the old password is wrong, there were too many failures, or the new one is against the
    /// rules.
    pub(crate) fn change_password(&self, call: &Call, old: &str, new: &str) -> Result<(), Refusal> {
        let (name, token) = person(call)?;
        password::check("new_password", new)?;
        // Counted as a login is: with a stolen token nobody guesses without end.
        self.check_password(call, name, old).map_err(|refusal| {
            if refusal.kind != Kind::Unauthenticated {
                return refusal;
            }
            let message = "the old password is wrong";
            Refusal::of(Kind::Forbidden, "old_password", "wrong_password", message)
        })?;
        let hash = password::hash(new)?;
        self.store.change(|writer| {
            let mut user: UserRecord = writer.find(USERS, &name.to_owned())?.ok_or_else(unknown)?;
            user.password_hash = hash;
            user.changed_at_ms = call.at_ms;
            user.logins.end_others(Some(&token.login));
            writer.put(USERS, &name.to_owned(), &user)?;
            Ok(((), call.done("users.change_password", name, "their own; their other logins have ended")))
        })
    }

    /// Whose login token this is. One that was exchanged for a newer one has been copied, and ends its login: whoever
    /// has the newer one may be the thief.
    ///
    /// # Errors
    /// It is none, or no longer good.
    pub(crate) fn identify(&self, call: &Call, token: &str) -> Result<Identity, Refusal> {
        let claims = self.tokens.read(token, call.at_ms).ok_or_else(unknown)?;
        let Claims { sub, login, generation, .. } = claims;
        let (user, token) = (self.store.read()?.find(USERS, &sub)?, LoginToken { login, generation });
        let user: UserRecord = user.ok_or_else(unknown)?;
        match user.logins.standing(&token) {
            Standing::Good => Ok(Identity { actor: Actor::User(sub), role: user.role, login: Some(token) }),
            Standing::UsedUp => Err(self.end_family(call, &sub, &token)),
            Standing::Ended => Err(unknown()),
        }
    }

    /// Ends a login of which there is a copy, and notes it; gives what the caller is told.
    fn end_family(&self, call: &Call, name: &str, token: &LoginToken) -> Refusal {
        let why = "a token that was exchanged for a newer one is used again: its login has ended";
        tracing::warn!(user = name, address = ?call.address, why);
        let by = Call { actor: Actor::User(name.to_owned()), ..call.clone() };
        let ended = self.store.change(|writer| {
            end_login(writer, name, &token.login)?;
            Ok::<_, Refusal>(((), by.refused("auth.reuse", name, why)))
        });
        ended.err().unwrap_or_else(unknown)
    }

    /// Holds a password against its user's, and counts what fails; gives the user.
    fn check_password(&self, call: &Call, name: &str, password: &str) -> Result<UserRecord, Refusal> {
        if name.len() > NAME_BYTES_MAX || password.len() > PASSWORD_BYTES_MAX {
            return Err(wrong());
        }
        let key = (name.to_owned(), call.address);
        // Counted before it is known: attempts that come at once are not all let through.
        self.failures().admit(&key, call.at_ms)?;
        let user: Option<UserRecord> = self.store.read()?.find(USERS, &key.0)?;
        let hash = user.as_ref().map(|user| user.password_hash.as_str());
        let is_right = password::is_password_of(password, hash);
        let user = user.filter(|_| is_right).ok_or_else(wrong)?;
        self.failures().pardon(&key);
        Ok(user)
    }

    fn issue(&self, call: &Call, name: &str, role: Role, token: &LoginToken) -> Result<Login, Refusal> {
        let (token, claims) = self.tokens.issue(name, &token.login, token.generation, call.at_ms)?;
        Ok(Login { token, username: name.to_owned(), role, expires_at_ms: claims.exp * 1000 })
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

/// Who a call is of, and with which token of which login.
fn person(call: &Call) -> Result<(&str, &LoginToken), Refusal> {
    match (&call.actor, &call.login) {
        (Actor::User(name), Some(token)) => Ok((name, token)),
        _ => {
            let message = "only users have logins and passwords; an API key is used as it is";
            Err(Refusal::of(Kind::Forbidden, "authorization", "no_user", message))
        }
    }
}

fn end_login(writer: &Writer, name: &str, login: &str) -> Result<(), Refusal> {
    if let Some(mut user) = writer.find::<_, UserRecord>(USERS, &name.to_owned())? {
        user.logins.end(login);
        writer.put(USERS, &name.to_owned(), &user)?;
    }
    Ok(())
}

fn wrong() -> Refusal {
    Refusal::of(Kind::Unauthenticated, "password", "wrong_login", "the username or the password is wrong")
}

/// A credential that is not, or no longer, known.
pub(super) fn unknown() -> Refusal {
    let message = "the credential is unknown, expired or revoked";
    Refusal::of(Kind::Unauthenticated, "authorization", "bad_credential", message)
}
