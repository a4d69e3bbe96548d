//! The data folder and the secrets in it that are files: mode 0700 and 0600, made where they are missing.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::files;

/// Bytes of a key: as many as its hash gives.
pub(crate) const KEY_BYTES: usize = 32;

/// Makes the folder, for this user alone.
///
/// # Errors
/// It cannot be made.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The key in this file of the folder; made at the first start. A file that others may read is refused: it is no secret.
///
/// # Errors
/// The file cannot be read or written, or is no key.
pub(crate) fn load_or_make(dir: &Path, name: &str) -> io::Result<[u8; KEY_BYTES]> {
    let path = dir.join(name);
    match fs::File::open(&path) {
        Ok(file) => read(file, &path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(dir, &path),
        Err(error) => Err(error),
    }
}

fn read(mut file: fs::File, path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let shown = path.display();
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{shown} can be read by others: chmod 600 it, or remove it")));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    bytes.try_into().map_err(|_| io::Error::other(format!("{shown} is no key: remove it, and log in again")))
}

/// Through a temporary name, so that a crash leaves no half key.
fn make(dir: &Path, path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let key = random::<KEY_BYTES>();
    let (mut file, staged) = files::make_fresh(&path.with_extension("new"))?;
    // A second name, not a new one: a key that another process has made meanwhile stays.
    let made =
        file.write_all(&key).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&staged, path));
    fs::remove_file(&staged)?;
    made?;
    fs::File::open(dir)?.sync_all()?;
    Ok(key)
}

/// Bytes that nobody can guess.
///
/// # Panics
/// Where the kernel has no randomness, in which case nothing here would be safe.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_make(dir.path(), "a.key").unwrap();
        assert_eq!(load_or_make(dir.path(), "a.key").unwrap(), first);
        let path = dir.path().join("a.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load_or_make(dir.path(), "a.key").is_err());
    }
}
