//! What can go wrong in the store. Never a user's mistake: those are found before anything is written.

/// The store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another process has the file open, which is a master that runs.
    #[error("a master runs on this data folder: stop it first")]
    InUse,
    /// The database, or the disk below it.
    #[error("the store failed: {0}")]
    Database(Box<redb::Error>),
    /// Bytes that are no record of their table, so that the file was written by another version or is damaged.
    #[error("a record of the table {table} cannot be read: {error}")]
    Record {
        /// Whose record.
        table: &'static str,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// A file beside the database.
    #[error("{what}: {error}")]
    File {
        /// What was being done, with the path.
        what: String,
        /// What the kernel says.
        error: std::io::Error,
    },
    /// The file is no store of this program, or one that it is too old for.
    #[error("{0}")]
    Foreign(String),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        let error = error.into();
        if matches!(error, redb::Error::DatabaseAlreadyOpen) {
            return Self::InUse;
        }
        Self::Database(Box::new(error))
    }
}
