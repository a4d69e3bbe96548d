//! The logins of one user: a family of tokens each, of which the newest alone is good.
//!
//! ```text
//!   log in ──▶ token 0 ──refresh──▶ token 1 ──refresh──▶ token 2 …      each ends the one before
//!                 └── used again: somebody has a copy. The family ends, whoever has the newest ──▶ log in anew
//! ```
//! They are part of the user's record, so that they end with the user. Pure: tokens are signed in `token`, and who may
//! log in is decided in `auth`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Logins of one user at once: the open ones of a person's programs, or a day of a script that logs in every quarter of an
/// hour. One more ends the oldest.
pub(crate) const LOGINS_MAX: usize = 100;

/// One login, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Login {
    /// Which token of the family is the newest, counted from 0.
    pub(crate) generation: u64,
    /// When it began, in milliseconds since 1970.
    pub(crate) began_at_ms: u64,
    /// When the newest token ends, likewise.
    pub(crate) expires_at_ms: u64,
}

/// The logins of a user, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Logins(BTreeMap<String, Login>);

/// Which token a caller has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoginToken {
    /// Of which login.
    pub(crate) login: String,
    /// Which of the family, counted from 0.
    pub(crate) generation: u64,
}

/// What a token is, of those that this master has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The newest of its login.
    Good,
    /// One that was exchanged for a newer one: there are two who use the login.
    UsedUp,
    /// Its login has ended.
    Ended,
}

impl Logins {
    /// Begins a login whose first token is good until then. What has ended by itself is forgotten.
    pub(crate) fn begin(&mut self, id: &str, at_ms: u64, expires_at_ms: u64) {
        self.0.retain(|_, login| at_ms < login.expires_at_ms);
        while self.0.len() >= LOGINS_MAX {
            let oldest = self.0.iter().min_by_key(|(_, login)| login.began_at_ms).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            self.0.remove(&oldest);
        }
        self.0.insert(id.to_owned(), Login { generation: 0, began_at_ms: at_ms, expires_at_ms });
    }

    /// What this token is.
    pub(crate) fn standing(&self, token: &LoginToken) -> Standing {
        match self.0.get(&token.login) {
            Some(login) if token.generation == login.generation => Standing::Good,
            // A newer one than the newest is of a future that a crash has undone.
            Some(login) if token.generation < login.generation => Standing::UsedUp,
            Some(_) | None => Standing::Ended,
        }
    }

    /// Exchanges a login's newest token for the next. None: it is not the newest.
    pub(crate) fn renew(&mut self, token: &LoginToken, expires_at_ms: u64) -> Option<LoginToken> {
        let login = self.0.get_mut(&token.login)?;
        if login.generation != token.generation {
            return None;
        }
        login.generation += 1;
        login.expires_at_ms = expires_at_ms;
        Some(LoginToken { login: token.login.clone(), generation: login.generation })
    }

    /// Ends a login; whether it was open.
    pub(crate) fn end(&mut self, id: &str) -> bool {
        self.0.remove(id).is_some()
    }

    /// Ends all logins but this one.
    pub(crate) fn end_others(&mut self, id: Option<&str>) {
        self.0.retain(|other, _| Some(other.as_str()) == id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(login: &str, generation: u64) -> LoginToken {
        LoginToken { login: login.to_owned(), generation }
    }

    #[test]
    fn the_newest_token_alone_is_good() {
        let mut logins = Logins::default();
        logins.begin("a", 0, 100);
        let [first, second, third] = [0, 1, 2].map(|generation| token("a", generation));
        assert_eq!(logins.standing(&first), Standing::Good);
        assert_eq!(logins.renew(&first, 200), Some(second.clone()));
        assert_eq!(logins.renew(&first, 200), None, "of two at once, one is late");
        assert_eq!((logins.standing(&first), logins.standing(&second)), (Standing::UsedUp, Standing::Good));
        assert_eq!(logins.standing(&third), Standing::Ended);
        assert!(logins.end("a") && !logins.end("a"));
        assert_eq!((logins.standing(&second), logins.renew(&second, 300)), (Standing::Ended, None));
    }

    #[test]
    fn one_login_too_many_ends_the_oldest() {
        let mut logins = Logins::default();
        for number in 0..=LOGINS_MAX as u64 {
            logins.begin(&format!("{number}"), number, 1_000);
        }
        assert_eq!(logins.0.len(), LOGINS_MAX);
        let standing = |login| logins.standing(&token(login, 0));
        assert_eq!((standing("0"), standing("1")), (Standing::Ended, Standing::Good));
    }

    #[test]
    fn what_has_ended_by_itself_takes_no_place() {
        let mut logins = Logins::default();
        logins.begin("a", 0, 10);
        logins.begin("b", 10, 20);
        assert_eq!(logins.0.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn all_but_one_end_at_once() {
        let mut logins = Logins::default();
        ["a", "b", "c"].iter().for_each(|id| logins.begin(id, 0, 10));
        logins.end_others(Some("b"));
        assert_eq!(logins.0.keys().collect::<Vec<_>>(), ["b"]);
        logins.end_others(None);
        assert_eq!(logins, Logins::default());
    }
}
