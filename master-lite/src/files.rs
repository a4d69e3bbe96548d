//! Files that are this program's alone: made with mode 0600 under a name that nothing had, so that nothing is written over
//! or through a symbolic link.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Names that are tried: `a.redb`, `a.1.redb` and so on. So many are there only if nobody ever looks into the folder.
const NAMES_MAX: u32 = 10_000;

/// The mode of such a file.
pub(crate) const OWNER_ONLY: u32 = 0o600;

/// Makes a file that was not there yet, for reading and writing.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn make_fresh(wanted: &Path) -> io::Result<(File, PathBuf)> {
    let options =
        |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).mode(OWNER_ONLY).open(path);
    under_a_free_name(wanted, options)
}

/// Gives a file a second name that was not there yet.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn keep_aside(file: &Path, wanted: &Path) -> io::Result<PathBuf> {
    let ((), kept) = under_a_free_name(wanted, |name| fs::hard_link(file, name))?;
    fs::set_permissions(&kept, fs::Permissions::from_mode(OWNER_ONLY))?;
    Ok(kept)
}

fn under_a_free_name<T>(wanted: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    let mut name = wanted.to_path_buf();
    for number in 1..=NAMES_MAX {
        match make(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => name = numbered(wanted, number),
            made => return Ok((made?, name)),
        }
    }
    Err(io::Error::other(format!("{NAMES_MAX} files are kept beside {}: remove some", wanted.display())))
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_extension(format!("{number}.{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_neither_written_over_nor_through() {
        let dir = tempfile::tempdir().unwrap();
        let (wanted, elsewhere) = (dir.path().join("a.redb"), dir.path().join("elsewhere"));
        fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &wanted).unwrap();
        let (_, first) = make_fresh(&wanted).unwrap();
        let second = keep_aside(&elsewhere, &wanted).unwrap();
        assert_eq!([first.as_path(), &second], [dir.path().join("a.1.redb"), dir.path().join("a.2.redb")]);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
        for path in [first, second] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, OWNER_ONLY, "{path:?}");
        }
    }

    #[test]
    fn a_folder_full_of_kept_files_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let taken = |_: &Path| Err::<(), _>(io::Error::from(io::ErrorKind::AlreadyExists));
        let error = under_a_free_name(&dir.path().join("a.redb"), taken).unwrap_err();
        assert!(error.to_string().contains("remove some"), "{error}");
    }
}
