//! The rules: what may be done, by whom and when. Services know records and each other, and nothing of HTTP or gRPC.
//!
//! All of them are plain functions that may wait for the disk: callers on an async runtime run them where blocking is
//! allowed. Time and the caller come as a [`Call`]. To add one: a file here with its record's table (listed in
//! [`TABLES`]), a field of [`Services`], and a resource in `api/rest`.

pub(crate) mod alerts;
pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod call;
pub(crate) mod commands;
pub(crate) mod metrics;
pub(crate) mod name;
pub(crate) mod notify;
pub(crate) mod page;
mod password;
pub(crate) mod refusal;
mod secret;
mod throttle;
pub(crate) mod token;
pub(crate) mod users;

use std::fs::File;
use std::path::Path;

use crate::config::Config;
use crate::keys;
use crate::store::{Store, StoreError};

use audit::Audit;
use auth::Auth;
use call::Call;
use refusal::Refusal;
use token::Tokens;
use users::{USERS, Users};

/// Everything the master can do.
pub(crate) struct Services {
    /// Who changed what.
    pub(crate) audit: Audit,
    /// Who somebody is.
    pub(crate) auth: Auth,
    /// People.
    pub(crate) users: Users,
    store: Store,
}

/// What was made at the first start.
pub(crate) struct FirstStart {
    /// Of the user `admin`.
    pub(crate) password: String,
}

/// Every service's tables.
const TABLES: &[&str] = &[USERS.name()];

/// The file of the key that signs login tokens.
const TOKEN_KEY_FILE: &str = "jwt.key";

impl Services {
    /// The services over a data folder's store.
    ///
    /// # Errors
    /// The folder, the store or a key cannot be used.
    pub(crate) fn open(config: &Config) -> Result<Self, StoreError> {
        let dir = config.data_dir.as_path();
        let failed =
            |what: &str, error| StoreError::File { what: format!("{what} {}", dir.display()), error };
        keys::make_dir(dir).map_err(|error| failed("cannot make the data folder", error))?;
        let key = keys::load_or_make(dir, TOKEN_KEY_FILE);
        let tokens = Tokens::new(&key.map_err(|error| failed("no key in the data folder", error))?);
        let store = Store::open(dir, TABLES)?;
        Ok(Self {
            audit: Audit::new(store.clone()),
            auth: Auth::new(store.clone(), tokens),
            users: Users::new(store.clone(), config.limits.users),
            store,
        })
    }

    /// Makes the user `admin` where there is no user at all. `tell` is given the password before the user is stored: a
    /// crash between the two leaves a password without a user, which the next start mends, and not the other way round.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn prepare(&self, at_ms: u64, tell: impl FnOnce(&FirstStart)) -> Result<(), Refusal> {
        self.users
            .make_first(&Call::system(at_ms), |password| tell(&FirstStart { password: password.to_owned() }))
    }

    /// Writes a copy of the store as it is now.
    ///
    /// # Errors
    /// The file is there already or cannot be written.
    pub(crate) fn back_up(&self, to: &Path) -> Result<(), StoreError> {
        self.store.back_up(to)
    }

    /// A copy of the store as it is now, in a file without a name. Noted in the audit log, since it holds everything.
    ///
    /// # Errors
    /// The disk is full, or the store fails.
    pub(crate) fn copy(&self, call: &Call) -> Result<File, Refusal> {
        let path = self.store.path().with_file_name(format!("backup-{}.redb", secret::new_id()));
        self.store.change::<_, Refusal>(|_| Ok(((), call.done("backup.read", "store", ""))))?;
        self.store.back_up(&path)?;
        let copy = File::open(&path);
        let removed = std::fs::remove_file(&path);
        removed.and(copy).map_err(|error| Refusal::internal(&error))
    }

    /// Whether the store answers.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn look(&self) -> Result<(), Refusal> {
        Ok(self.store.look()?)
    }

    /// Brings to the disk what agents have reported.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.store.flush()
    }
}
