//! What can go wrong in the store. Never a user's mistake: those are found before anything is written.

/// The store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another process has the file open, which is a master that runs.
    #[error("a master runs on this data folder: stop it first")]
    InUse,
    /// The disk below the database, at present: it is tried again.
    #[error("the store's disk fails: {0}")]
    Failing(String),
    /// The database.
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
    /// There is no store where there was one.
    #[error(
        "{dir} has no store, or an empty one, but {evidence} of a master that ran before: put a backup in its place \
         (millrace-master restore FILE --data-dir {dir}), or begin anew without what it held (millrace-master run \
         --begin-anew once)"
    )]
    Missing {
        /// The data folder.
        dir: String,
        /// A file that was left.
        evidence: String,
    },
    /// The file is no store of this program, or one that it is too old for.
    #[error("{0}")]
    Foreign(String),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        let error = error.into();
        // The other kinds of errors are many, and all of them are the database's own.
        if let redb::Error::DatabaseAlreadyOpen = error {
            return Self::InUse;
        }
        if let redb::Error::Io(error) = &error
            && !is_about_the_bytes(error)
        {
            return Self::Failing(error.to_string());
        }
        if let redb::Error::PreviousIo | redb::Error::DatabaseClosed = error {
            return Self::Failing("an earlier read or write failed".to_owned());
        }
        Self::Database(Box::new(error))
    }
}

/// Whether the disk works, but what it holds is no whole database.
fn is_about_the_bytes(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData)
}
