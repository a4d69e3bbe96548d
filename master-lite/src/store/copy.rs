//! Copies of the whole store: a backup of a running one, and putting a copy back in its place.
//!
//! A backup is a store file of its own, made from one read transaction, so that it is consistent however many changes
//! come meanwhile. Keys that stand in files beside the store are not in it: they are made anew.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableHandle};

use super::records::RawTable;
use super::{FILE_NAME, FORMAT, FORMAT_KEY, META, Source, Store, StoreError};
use crate::files;
use crate::store::Reader;

impl Store {
    /// Writes a copy of everything as it is now to a file that must not be there yet; mode 0600. Changes go on meanwhile.
    ///
    /// # Errors
    /// The file is there, or cannot be written, or the store fails.
    pub(crate) fn back_up(&self, to: &Path) -> Result<(), StoreError> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(files::OWNER_ONLY)
            .open(to)
            .map_err(|error| file_error("create", to, error))?;
        let copied = self.copy_into(file);
        if copied.is_err() {
            // Half a copy is worse than none.
            let _ = fs::remove_file(to);
        }
        copied
    }

    fn copy_into(&self, file: fs::File) -> Result<(), StoreError> {
        let from = self.handle.database()?.begin_read()?;
        let copy = Database::builder().create_file(file)?;
        let to = copy.begin_write()?;
        for handle in from.list_tables()? {
            let definition = RawTable::new(handle.name());
            let mut target = to.open_table(definition)?;
            for entry in from.open_table(definition)?.iter()? {
                let (key, value) = entry?;
                target.insert(key.value(), value.value())?;
            }
        }
        to.commit()?;
        Ok(())
    }

    /// Where the store's file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Puts a backup in the place of the store of a master that does not run; the store that was there is kept beside it,
/// and its path is given.
///
/// # Errors
/// The backup is none, a master runs on the folder, or a file cannot be written. The store is unchanged then.
pub(crate) fn restore(backup: &Path, dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let target = dir.join(FILE_NAME);
    // Held to the end: a master that is started meanwhile finds the file locked. A store that is damaged is no reason to
    // refuse; that is what backups are for.
    let is_there = target.symlink_metadata().is_ok();
    let _current = match is_there.then(|| Database::open(&target)) {
        Some(Err(DatabaseError::DatabaseAlreadyOpen)) => return Err(StoreError::InUse),
        opened => opened,
    };
    let staged = stage(backup, dir)?;
    let replaced = check(&staged).and_then(|()| replace(&target, &staged, is_there, dir));
    if replaced.is_err() {
        let _ = fs::remove_file(&staged);
    }
    replaced
}

/// A copy of the backup beside the store.
fn stage(backup: &Path, dir: &Path) -> Result<PathBuf, StoreError> {
    let failed = |error| file_error("copy", backup, error);
    let mut from = fs::File::open(backup).map_err(failed)?;
    let (mut to, staged) = files::make_fresh(&dir.join("restore.redb")).map_err(failed)?;
    match io::copy(&mut from, &mut to) {
        Ok(_) => Ok(staged),
        Err(error) => {
            let _ = fs::remove_file(&staged);
            Err(failed(error))
        }
    }
}

/// Gives the old file a second name first: at no moment is there no store.
fn replace(target: &Path, staged: &Path, is_there: bool, dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let wanted = dir.join("store.before-restore.redb");
    let kept = is_there.then(|| files::keep_aside(target, &wanted)).transpose();
    let kept = kept.map_err(|error| file_error("keep", &wanted, error))?;
    fs::rename(staged, target).map_err(|error| file_error("replace", target, error))?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| file_error("sync", dir, error))?;
    Ok(kept)
}

/// Whether the file is a whole store of this layout; it is on the disk afterwards.
fn check(path: &Path) -> Result<(), StoreError> {
    let mut database = Database::open(path)?;
    if !database.check_integrity()? {
        return Err(StoreError::Foreign(format!("{} is damaged", path.display())));
    }
    let reader = Reader { transaction: database.begin_read()? };
    let not_ours = || StoreError::Foreign(format!("{} is no backup of a master's store", path.display()));
    let has_meta = reader.transaction.list_tables()?.any(|table| table.name() == META.name());
    if !has_meta || reader.find(META, &FORMAT_KEY.to_owned())? != Some(FORMAT) {
        return Err(not_ours());
    }
    drop(reader);
    drop(database);
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| file_error("sync", path, error))
}

fn file_error(verb: &str, path: &Path, error: io::Error) -> StoreError {
    StoreError::File { what: format!("cannot {verb} {}", path.display()), error }
}
