//! The embedded store: one file, typed tables, one transaction for each change together with its audit entry. It knows
//! records and nothing of what they are for; rules stand in `service`.
//!
//! A change is on the disk when [`Store::change`] returns. What agents will say again anyway goes through
//! [`Store::observe`], which waits for no disk: it becomes durable with the next change or the next [`Store::flush`].

mod audit;
mod copy;
mod error;
mod records;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Database, Durability, ReadableDatabase};

pub(crate) use audit::{AUDIT, AUDIT_ENTRIES_MAX, AuditRecord};
pub(crate) use copy::restore;
pub(crate) use error::StoreError;
pub(crate) use records::{Order, Reader, Records, Source, Writer};

use records::RawTable;

/// What the store says of itself.
const META: Records<String, u64> = Records::new("meta");

/// The key in [`META`] of the layout's number.
const FORMAT_KEY: &str = "format";

/// The layout that this program reads and writes. A record that gains a field with a default is no new layout.
const FORMAT: u64 = 1;

/// The database's own cache. Its default of 1 GiB is no size for a small master; hot records fit many times.
const CACHE_BYTES: usize = 16 << 20;

/// The file in the data folder.
pub(crate) const FILE_NAME: &str = "store.redb";

/// The open store; clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
    path: PathBuf,
    audit_entries_max: u64,
    /// Whether something was observed that is not on the disk yet.
    is_behind: Arc<AtomicBool>,
}

impl Store {
    /// Opens the store in a data folder, or makes it there, with these tables beside its own: all exist from the first
    /// start on, so that reading an empty one is no special case. The file is locked until the last clone is dropped.
    ///
    /// # Errors
    /// The file cannot be opened, another process has it open, or it is of another layout.
    pub(crate) fn open(dir: &Path, tables: &[&str]) -> Result<Self, StoreError> {
        let path = dir.join(FILE_NAME);
        Self::over(Database::builder().set_cache_size(CACHE_BYTES).create(&path)?, path, tables)
    }

    /// Opens the store in something that is no file.
    ///
    /// # Errors
    /// As [`Store::open`].
    #[cfg(test)]
    pub(crate) fn open_in(backend: impl redb::StorageBackend, tables: &[&str]) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        Self::over(database, PathBuf::new(), tables)
    }

    fn over(database: Database, path: PathBuf, tables: &[&str]) -> Result<Self, StoreError> {
        let database = Arc::new(database);
        let (audit_entries_max, is_behind) = (AUDIT_ENTRIES_MAX, Arc::default());
        let store = Self { database, path, audit_entries_max, is_behind };
        store.prepare(tables)?;
        Ok(store)
    }

    /// A look at the store as it is now; changes that come later are not seen by it.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub(crate) fn read(&self) -> Result<Reader, StoreError> {
        Ok(Reader { transaction: self.database.begin_read()? })
    }

    /// Makes a change: what `write` has put is on the disk, with the audit entry that it gives, when this returns. An
    /// error of `write` changes nothing.
    ///
    /// # Errors
    /// What `write` says, or the store fails.
    pub(crate) fn change<T, E: From<StoreError>>(
        &self,
        write: impl FnOnce(&Writer) -> Result<(T, AuditRecord), E>,
    ) -> Result<T, E> {
        self.write(Durability::Immediate, |writer| {
            let (value, entry) = write(writer)?;
            audit::append(writer, &entry, self.audit_entries_max)?;
            Ok(value)
        })
    }

    /// Notes something that is no change by anybody, such as what a node reports of itself. A crash may lose it.
    ///
    /// # Errors
    /// What `write` says, or the store fails.
    pub(crate) fn observe<T, E: From<StoreError>>(
        &self,
        write: impl FnOnce(&Writer) -> Result<T, E>,
    ) -> Result<T, E> {
        let observed = self.write(Durability::None, write)?;
        self.is_behind.store(true, Ordering::Release);
        Ok(observed)
    }

    /// Notes in the audit log that somebody was refused. A crash may lose it, so that refusals cost no disk.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub(crate) fn note(&self, entry: &AuditRecord) -> Result<(), StoreError> {
        self.observe(|writer| audit::append(writer, entry, self.audit_entries_max))
    }

    /// Whether the store can be read.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn look(&self) -> Result<(), StoreError> {
        self.read()?.find(META, &FORMAT_KEY.to_owned()).map(drop)
    }

    /// Brings to the disk what was only observed; a store that is at rest is left alone.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        if !self.is_behind.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.write(Durability::Immediate, |_| Ok(()))
    }

    fn write<T, E: From<StoreError>>(
        &self,
        durability: Durability,
        write: impl FnOnce(&Writer) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut transaction = self.database.begin_write().map_err(StoreError::from)?;
        transaction.set_durability(durability).map_err(StoreError::from)?;
        let writer = Writer { transaction };
        // Dropped without a commit, a transaction leaves nothing behind.
        let value = write(&writer)?;
        writer.transaction.commit().map_err(StoreError::from)?;
        Ok(value)
    }

    /// Makes the tables that are missing, and looks whether the file is one of ours.
    fn prepare(&self, tables: &[&str]) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |writer| {
            for name in [META.name(), AUDIT.name()].iter().chain(tables) {
                writer.transaction.open_table(RawTable::new(name))?;
            }
            match writer.find(META, &FORMAT_KEY.to_owned())? {
                Some(FORMAT) => Ok(()),
                Some(format) => Err(StoreError::Foreign(format!(
                    "the store has layout {format}, this program reads {FORMAT}: use the program that wrote it"
                ))),
                None => writer.put(META, &FORMAT_KEY.to_owned(), &FORMAT),
            }
        })
    }
}

#[cfg(test)]
mod tests;
