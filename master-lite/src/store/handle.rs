//! The open database, and what becomes of it when the disk below it fails.
//!
//! The database refuses everything after one failed read or write until it is closed and opened again. That is done here,
//! so that a disk that was full once needs no restart of the master:
//!
//! ```text
//!              an I/O error                 the file opens again
//!   Sound -----------------------> Closed ------------------------> Unwritable
//!     ^                              ^                                 |   |
//!     |                              +------- an I/O error ------------+   |
//!     +-------- there is room, and an empty change reaches the disk -------+
//! ```
//!
//! While it is unwritable everything is read, and what is only observed is kept in memory; changes are refused, since
//! they promise to be on the disk. What was observed and not flushed when the error came is lost, as in a crash.

use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{BackendError, Builder, Database, Durability, StorageBackend};

use super::{CACHE_BYTES, StoreError};

/// Gives the bytes of the store, each time that it is opened.
pub(super) type Opener = Box<dyn Fn() -> Result<Box<dyn StorageBackend>, StoreError> + Send + Sync>;

/// How the store is, for `/health`, metrics and alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreHealth {
    /// Why changes are refused; none while all is well.
    pub(crate) trouble: Option<String>,
    /// How often the database had to be closed because of an error, since the start.
    pub(crate) failures: u64,
}

/// The database while it is there.
pub(super) struct Handle {
    opener: Opener,
    state: RwLock<State>,
    /// The newest error of the disk that nobody has looked at yet.
    error: Arc<Mutex<Option<String>>>,
    failures: AtomicU64,
}

enum State {
    Sound(Arc<Database>),
    Unwritable(Arc<Database>, String),
    Closed(String),
}

impl Handle {
    /// Opens the database for the first time.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn open(opener: Opener) -> Result<Self, StoreError> {
        let error = Arc::default();
        let database = open_once(&opener, &error)?;
        Ok(Self { opener, state: RwLock::new(State::Sound(database)), error, failures: AtomicU64::new(0) })
    }

    /// The database, to read from it or to observe.
    ///
    /// # Errors
    /// It is closed.
    pub(super) fn database(&self) -> Result<Arc<Database>, StoreError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Sound(database) | State::Unwritable(database, _) => Ok(Arc::clone(database)),
            State::Closed(why) => Err(StoreError::Failing(why.clone())),
        }
    }

    /// The database, to change it durably.
    ///
    /// # Errors
    /// The disk takes nothing at present.
    pub(super) fn durable(&self) -> Result<Arc<Database>, StoreError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Sound(database) => Ok(Arc::clone(database)),
            State::Unwritable(_, why) | State::Closed(why) => Err(StoreError::Failing(why.clone())),
        }
    }

    /// How it is.
    pub(super) fn health(&self) -> StoreHealth {
        StoreHealth { trouble: self.trouble(), failures: self.failures.load(Ordering::Relaxed) }
    }

    /// Opens the database anew if an error of the disk has made it useless.
    pub(super) fn mend(&self) {
        let Some(why) = self.error.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Sound(database) | State::Unwritable(database, _) = &*state {
            // Some writes may fail, such as those that only make room in the cache.
            if database.begin_write().is_ok() {
                return;
            }
            self.failures.fetch_add(1, Ordering::Relaxed);
            tracing::error!(why, "the store's disk failed: changes are refused until it takes them again");
        }
        // Closes the file, unless another thread still works with it: then the next try opens it.
        *state = State::Closed(why);
        self.reopen(&mut state);
    }

    /// Tries to leave a failure behind: opens what is closed, and takes changes again where `has_room` agrees and an
    /// empty one reaches the disk.
    ///
    /// # Errors
    /// The disk still fails.
    pub(super) fn recover(&self, has_room: impl FnOnce() -> io::Result<()>) -> Result<(), StoreError> {
        self.mend();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        self.reopen(&mut state);
        let (database, why) = match &*state {
            State::Sound(_) => return Ok(()),
            State::Unwritable(database, why) => (Arc::clone(database), why.clone()),
            State::Closed(why) => return Err(StoreError::Failing(why.clone())),
        };
        has_room().map_err(|_| StoreError::Failing(why))?;
        let committed = commit_nothing(&database);
        if committed.is_ok() {
            *state = State::Sound(database);
            tracing::info!("the store takes changes again");
        }
        committed
    }

    fn reopen(&self, state: &mut State) {
        let State::Closed(why) = state else { return };
        match open_once(&self.opener, &self.error) {
            Ok(database) => *state = State::Unwritable(database, why.clone()),
            Err(error) => tracing::error!(%error, "the store cannot be opened again yet"),
        }
    }

    fn trouble(&self) -> Option<String> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Sound(_) => None,
            State::Unwritable(_, why) | State::Closed(why) => Some(why.clone()),
        }
    }
}

fn commit_nothing(database: &Database) -> Result<(), StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    Ok(transaction.commit()?)
}

fn open_once(opener: &Opener, error: &Arc<Mutex<Option<String>>>) -> Result<Arc<Database>, StoreError> {
    let watched = Watched { backend: opener()?, error: Arc::clone(error) };
    Ok(Arc::new(Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(watched)?))
}

/// A backend that remembers its newest error: the database tells of it once, to whoever asked at that moment.
struct Watched {
    backend: Box<dyn StorageBackend>,
    error: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.backend.fmt(formatter)
    }
}

impl Watched {
    fn watch<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        })
    }
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.watch(self.backend.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.watch(self.backend.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.watch(self.backend.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.watch(self.backend.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.watch(self.backend.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
