//! The embedded store: one file, typed tables, one transaction for each change together with its audit entry. It knows
//! records and nothing of what they are for; rules stand in `service`.
//!
//! A change is on the disk when [`Store::change`] returns. What agents will say again anyway goes through
//! [`Store::observe`], which waits for no disk: it becomes durable with the next change or the next [`Store::flush`].

mod audit;
mod copy;
mod error;
mod handle;
mod records;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{Durability, ReadableDatabase, TableHandle as _};
use rustix::fs::OFlags;
use rustix::io::Errno;

pub(crate) use audit::{AUDIT, AUDIT_ENTRIES_MAX, AuditRecord};
pub(crate) use copy::restore;
pub(crate) use error::StoreError;
pub(crate) use handle::StoreHealth;
pub(crate) use records::{Order, Reader, Records, Source, Writer};

use handle::{Handle, Opener};
use records::RawTable;

use crate::files;

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

/// Bytes that have to fit on the disk before a store that has failed takes changes again: more than most changes need.
const ROOM_BYTES: usize = 256 << 10;

/// The open store; clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    handle: Arc<Handle>,
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
        let file = path.clone();
        let opener = move || -> Result<Box<dyn redb::StorageBackend>, StoreError> {
            Ok(Box::new(FileBackend::new(open_file(&file)?)?))
        };
        let shown = path.display().to_string();
        Self::over(Box::new(opener), path, tables).map_err(|error| {
            let StoreError::Database(error) = error else { return error };
            StoreError::Foreign(format!(
                "{shown} is no whole store: {error}; nothing was changed: put a backup in its place \
                 (millrace-master restore FILE), which keeps this file beside it"
            ))
        })
    }

    /// Opens the store in something that is no file, and that is the same bytes in every clone.
    ///
    /// # Errors
    /// As [`Store::open`].
    #[cfg(test)]
    pub(crate) fn open_in(
        backend: impl redb::StorageBackend + Clone,
        tables: &[&str],
    ) -> Result<Self, StoreError> {
        Self::over(Box::new(move || Ok(Box::new(backend.clone()))), PathBuf::new(), tables)
    }

    fn over(opener: Opener, path: PathBuf, tables: &[&str]) -> Result<Self, StoreError> {
        let handle = Arc::new(Handle::open(opener)?);
        let (audit_entries_max, is_behind) = (AUDIT_ENTRIES_MAX, Arc::default());
        let store = Self { handle, path, audit_entries_max, is_behind };
        store.prepare(tables)?;
        Ok(store)
    }

    /// A look at the store as it is now; changes that come later are not seen by it.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub(crate) fn read(&self) -> Result<Reader, StoreError> {
        Ok(Reader { transaction: self.handle.database()?.begin_read()? })
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

    /// Whether the store can be read, and takes changes.
    ///
    /// # Errors
    /// It cannot, or does not.
    pub(crate) fn look(&self) -> Result<(), StoreError> {
        self.handle.durable()?;
        self.read()?.find(META, &FORMAT_KEY.to_owned()).map(drop)
    }

    /// How the store is.
    pub(crate) fn health(&self) -> StoreHealth {
        self.handle.health()
    }

    /// Brings to the disk what was only observed; a store that is at rest is left alone. A store that has failed is tried
    /// again: this is to be called every now and then.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.handle.recover(|| self.try_room())?;
        if !self.is_behind.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.write(Durability::Immediate, |_| Ok(()))
    }

    /// Whether some bytes fit beside the store. Asking the store itself would make it fail once more.
    fn try_room(&self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        let (mut file, path) = files::make_fresh(&self.path.with_file_name("room.probe"))?;
        let written = file.write_all(&vec![0; ROOM_BYTES]).and_then(|()| file.sync_all());
        written.and(fs::remove_file(path))
    }

    fn write<T, E: From<StoreError>>(
        &self,
        durability: Durability,
        write: impl FnOnce(&Writer) -> Result<T, E>,
    ) -> Result<T, E> {
        let written = self.try_write(durability, write);
        if written.is_err() {
            self.handle.mend();
        }
        written
    }

    fn try_write<T, E: From<StoreError>>(
        &self,
        durability: Durability,
        write: impl FnOnce(&Writer) -> Result<T, E>,
    ) -> Result<T, E> {
        let is_durable = matches!(durability, Durability::Immediate);
        let database = if is_durable { self.handle.durable()? } else { self.handle.database()? };
        let mut transaction = database.begin_write().map_err(StoreError::from)?;
        transaction.set_durability(durability).map_err(StoreError::from)?;
        let writer = Writer { transaction };
        // Dropped without a commit, a transaction leaves nothing behind.
        let value = write(&writer)?;
        writer.transaction.commit().map_err(StoreError::from)?;
        Ok(value)
    }

    /// Makes the tables that are missing, and looks whether the file is one of ours. A store that has all of them is only
    /// read: it opens on a full disk, too.
    fn prepare(&self, tables: &[&str]) -> Result<(), StoreError> {
        let own = [META.name(), AUDIT.name()];
        let wanted = || own.iter().chain(tables);
        let reader = self.read()?;
        let there: Vec<String> =
            reader.transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
        if there.iter().any(|name| name == META.name()) {
            match reader.find(META, &FORMAT_KEY.to_owned())? {
                Some(FORMAT) | None => {}
                Some(format) => return Err(foreign_layout(format)),
            }
        } else if !there.is_empty() {
            return Err(StoreError::Foreign(format!("{} is no store of a master", self.path.display())));
        }
        if wanted().all(|name| there.iter().any(|one| one == name)) {
            return Ok(());
        }
        self.write(Durability::Immediate, |writer| {
            for name in wanted() {
                writer.transaction.open_table(RawTable::new(name))?;
            }
            writer.put(META, &FORMAT_KEY.to_owned(), &FORMAT)
        })
    }
}

/// Whether a data folder has a store; an empty file is none.
pub(crate) fn is_in(dir: &Path) -> bool {
    fs::symlink_metadata(dir.join(FILE_NAME)).is_ok_and(|file| !file.is_file() || file.len() > 0)
}

/// The store's file, made if it is not there. Never through a symbolic link: a restore would replace the link.
fn open_file(path: &Path) -> Result<fs::File, StoreError> {
    let failed = |error: io::Error| {
        let shown = path.display();
        let what = match Errno::from_io_error(&error) {
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
                format!(
                    "cannot write to {shown}, which is to be this user's own on a disk that can be written"
                )
            }
            Some(Errno::LOOP) => {
                format!("{shown} is a symbolic link: put the file itself there, or link the folder")
            }
            _ => format!("cannot open {shown}"),
        };
        StoreError::File { what, error }
    };
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(files::OWNER_ONLY);
    let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o777 != files::OWNER_ONLY {
        file.set_permissions(fs::Permissions::from_mode(files::OWNER_ONLY)).map_err(failed)?;
    }
    Ok(file)
}

fn foreign_layout(format: u64) -> StoreError {
    StoreError::Foreign(format!(
        "the store has layout {format}, this program reads {FORMAT}: use the program that wrote it"
    ))
}

#[cfg(test)]
mod tests;
