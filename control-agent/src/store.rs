//! What the agent keeps on disk: the last good config, the one before, the one that is being applied, and the node
//! credential. Whatever happens while something is written, what is read later is whole or is known to be not.
//!
//! ```text
//! STATE_DIR/credential            0600; what sessions are opened with
//! STATE_DIR/credential.new        until the master has enrolled it
//! STATE_DIR/credential.next       to take its place, until the master has taken it
//! STATE_DIR/credential.previous   the one before, which a master knows that was restored from a backup
//! STATE_DIR/config/current.toml     the last config that was verified to serve
//! STATE_DIR/config/previous.toml    the one before
//! STATE_DIR/config/candidate.toml   the one that is being applied
//! ```
//! A config stands in an envelope of two comment lines, so that the data plane could be started with the file as it is:
//! the first has the SHA-256 of everything behind it, the second the revision and the version.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proto::config::TEXT_BYTES_MAX;
use proto::fleet::{ConfigDigest, NodeCredential, NodeId, SECRET_BYTES};

use crate::state::Published;

/// What an envelope begins with; the number is its format's.
const MAGIC: &str = "# millrace-config 1 ";
/// The longest envelope: the longest config, and two lines.
const ENVELOPE_BYTES_MAX: u64 = TEXT_BYTES_MAX as u64 + 4096;

/// The folder of one agent.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What was found when the agent began.
#[derive(Debug, Default)]
pub struct Found {
    /// The last config that was verified, or the one before where that is corrupt.
    pub applied: Option<Published>,
    /// What was being applied.
    pub candidate: Option<Published>,
    /// What an operator should know.
    pub problems: Vec<String>,
}

impl Store {
    /// Opens the folder; it is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join("config"))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Reads what there is. A file that is corrupt is told of, and never used.
    pub fn load(&self) -> Found {
        let mut found = Found::default();
        for (name, otherwise) in
            [("current", "the one before is used"), ("previous", "there is no config to begin with")]
        {
            match self.read(name) {
                Ok(Some(config)) => {
                    found.applied = Some(config);
                    break;
                }
                Ok(None) => {}
                Err(error) => {
                    let path = self.path(name);
                    found.problems.push(format!("{}: {error}; {otherwise}", path.display()));
                }
            }
        }
        // A candidate that is corrupt was being written: it is nothing that anybody waits for.
        found.candidate = self.read("candidate").ok().flatten();
        found
    }

    /// Keeps a config beside the last good one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save_candidate(&self, config: &Published) -> io::Result<()> {
        self.write("candidate", config)
    }

    /// The candidate is the last good config from now on, and the last good one is the one before.
    ///
    /// # Errors
    /// It cannot be written; the last good config is still there.
    pub fn promote(&self, config: &Published) -> io::Result<()> {
        if self.read("candidate").ok().flatten().as_ref() != Some(config) {
            self.write("candidate", config)?;
        }
        // A corrupt one must not take the place of a whole one.
        if let Ok(Some(_)) = self.read("current") {
            let linked = self.path("previous").with_extension("linked");
            remove_if_there(&linked)?;
            // A link and not a rename: at every moment there is a current one.
            fs::hard_link(self.path("current"), &linked)?;
            fs::rename(&linked, self.path("previous"))?;
        }
        fs::rename(self.path("candidate"), self.path("current"))?;
        sync_dir(&self.dir.join("config"))
    }

    /// What was kept beside the last good config is not wanted.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn drop_candidate(&self) -> io::Result<()> {
        remove_if_there(&self.path("candidate"))
    }

    /// The node's credential, and whether the master has enrolled it. One is made where there is none, or where it is
    /// another node's.
    ///
    /// # Errors
    /// It cannot be read or written, or there is no randomness.
    pub fn credential(&self, node: &NodeId) -> io::Result<(NodeCredential, bool)> {
        if let Some(credential) = self.credential_of("credential", node)? {
            return Ok((credential, true));
        }
        Ok((self.enrolling_credential(node)?, false))
    }

    /// What the node enrols with: a new credential, and the same one until the master has enrolled it.
    ///
    /// # Errors
    /// It cannot be read or written, or there is no randomness.
    pub fn enrolling_credential(&self, node: &NodeId) -> io::Result<NodeCredential> {
        match self.credential_of("credential.new", node)? {
            Some(credential) => Ok(credential),
            None => self.make_credential("credential.new", node),
        }
    }

    /// What the node was to enrol with is not taken: another one is made for the next try.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn drop_enrolling_credential(&self) -> io::Result<()> {
        remove_if_there(&self.dir.join("credential.new"))
    }

    /// The credential before this one, if there was one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn previous_credential(&self, node: &NodeId) -> io::Result<Option<NodeCredential>> {
        self.credential_of("credential.previous", node)
    }

    /// The master has enrolled the credential: nothing of an earlier life is kept.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_credential(&self, credential: &NodeCredential) -> io::Result<()> {
        write_whole(&self.dir.join("credential"), credential.reveal().as_bytes())?;
        ["credential.new", "credential.next", "credential.previous"]
            .iter()
            .try_for_each(|name| remove_if_there(&self.dir.join(name)))
    }

    /// Makes a credential to take the place of the one that is used: another one each time, for what lay on the disk may
    /// have been copied.
    ///
    /// # Errors
    /// It cannot be written, or there is no randomness.
    pub fn next_credential(&self, node: &NodeId) -> io::Result<NodeCredential> {
        self.make_credential("credential.next", node)
    }

    /// The credential that was made last takes the place of the one that is used.
    ///
    /// # Errors
    /// It cannot be written, or there is none: the one that is used stays.
    pub fn keep_next_credential(&self) -> io::Result<()> {
        let [used, next, previous] =
            ["credential", "credential.next", "credential.previous"].map(|name| self.dir.join(name));
        let linked = self.dir.join("credential.linked");
        remove_if_there(&linked)?;
        // A link and not a rename: at every moment there is a credential.
        fs::hard_link(&used, &linked)?;
        fs::rename(&linked, previous)?;
        fs::rename(next, used)?;
        sync_dir(&self.dir)
    }

    fn make_credential(&self, name: &str, node: &NodeId) -> io::Result<NodeCredential> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        let credential = NodeCredential::new(node.clone(), secret);
        write_whole(&self.dir.join(name), credential.reveal().as_bytes())?;
        Ok(credential)
    }

    fn credential_of(&self, name: &str, node: &NodeId) -> io::Result<Option<NodeCredential>> {
        Ok(self.read_credential(name)?.filter(|credential| credential.node() == node))
    }

    /// A file that is no credential counts as none: it is written anew, and the master is asked again.
    fn read_credential(&self, name: &str) -> io::Result<Option<NodeCredential>> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => {
                // Somebody may have copied it.
                fs::set_permissions(&path, Permissions::from_mode(0o600))?;
                Ok(text.trim_end().parse().ok())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join("config").join(name).with_extension("toml")
    }

    fn write(&self, name: &str, config: &Published) -> io::Result<()> {
        write_whole(&self.path(name), seal(config).as_bytes())
    }

    /// None: there is no such file.
    fn read(&self, name: &str) -> io::Result<Option<Published>> {
        let file = match File::open(self.path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(ENVELOPE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        unseal(&bytes).map(Some).ok_or_else(|| io::Error::other("the file is corrupt"))
    }
}

/// The config in its envelope.
fn seal(config: &Published) -> String {
    let name = serde_json::Value::from(config.version());
    let body = format!("# revision {} version {name}\n{}", config.revision(), config.text());
    format!("{MAGIC}{}\n{body}", ConfigDigest::of(body.as_bytes()))
}

/// What `seal` has sealed; none: it is not that, to the last bit.
fn unseal(bytes: &[u8]) -> Option<Published> {
    let (digest, body) = std::str::from_utf8(bytes).ok()?.strip_prefix(MAGIC)?.split_once('\n')?;
    // As text: another spelling of the same digest was not written by `seal`.
    if ConfigDigest::of(body.as_bytes()).to_string() != digest {
        return None;
    }
    let (name, text) = body.strip_prefix("# revision ")?.split_once('\n')?;
    let (revision, version) = name.split_once(" version ")?;
    let version: String = serde_json::from_str(version).ok()?;
    Some(Published::new(revision.parse().ok()?, &version, text))
}

/// The file has these bytes or what it had before, whatever happens, and from the return on it keeps them.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    // With its mode from the first moment on, and not into a file that somebody else may have opened.
    remove_if_there(&unfinished)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        (dir, store)
    }

    fn config(revision: u64) -> Published {
        Published::new(revision, "v\"1\nß", &format!("# {revision}\n[node]\nid = \"ß\"\n"))
    }

    fn publish(store: &Store, revision: u64) -> Published {
        let config = config(revision);
        store.save_candidate(&config).unwrap();
        store.promote(&config).unwrap();
        config
    }

    #[test]
    fn keeps_the_last_good_config_and_the_one_before() {
        let (_dir, store) = store();
        assert!(store.load().applied.is_none());
        publish(&store, 1);
        let two = publish(&store, 2);
        store.save_candidate(&config(3)).unwrap();
        let found = store.load();
        assert_eq!((found.applied, found.candidate), (Some(two), Some(config(3))));
        assert!(found.problems.is_empty());
        assert_eq!(store.read("previous").unwrap(), Some(config(1)));
        store.drop_candidate().unwrap();
        assert_eq!(store.load().candidate, None);
        store.drop_candidate().unwrap();
    }

    #[test]
    fn a_file_that_is_corrupt_at_any_offset_falls_back_to_the_one_before() {
        let (_dir, store) = store();
        publish(&store, 1);
        publish(&store, 2);
        let path = store.path("current");
        let whole = fs::read(&path).unwrap();
        for offset in 0..whole.len() {
            for damage in [1, 0x20, 0x80] {
                let mut corrupt = whole.clone();
                corrupt[offset] ^= damage;
                assert_falls_back(&store, &path, &corrupt);
            }
            assert_falls_back(&store, &path, &whole[..offset]);
        }
        let longer = [&whole[..], b"\n"].concat();
        assert_falls_back(&store, &path, &longer);
    }

    #[track_caller]
    fn assert_falls_back(store: &Store, path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        let found = store.load();
        assert_eq!(found.applied, Some(config(1)));
        assert!(found.problems[0].contains("current.toml: the file is corrupt"), "{:?}", found.problems);
    }

    #[test]
    fn a_corrupt_config_never_takes_the_place_of_a_whole_one() {
        let (_dir, store) = store();
        publish(&store, 1);
        publish(&store, 2);
        fs::write(store.path("current"), "rubbish").unwrap();
        publish(&store, 3);
        assert_eq!(store.load().applied, Some(config(3)));
        assert_eq!(store.read("previous").unwrap(), Some(config(1)));
    }

    #[test]
    fn both_corrupt_is_told_and_nothing_is_used() {
        let (_dir, store) = store();
        publish(&store, 1);
        publish(&store, 2);
        fs::write(store.path("current"), "").unwrap();
        fs::write(store.path("previous"), "").unwrap();
        let found = store.load();
        assert_eq!((found.applied, found.problems.len()), (None, 2));
    }

    #[test]
    fn a_write_that_was_cut_off_changes_nothing() {
        let (_dir, store) = store();
        let one = publish(&store, 1);
        fs::write(store.path("candidate").with_extension("unfinished"), "half").unwrap();
        assert_eq!(store.load().applied, Some(one));
        publish(&store, 2);
    }

    #[test]
    fn the_credential_is_its_owners_alone_and_survives() {
        let (_dir, store) = store();
        let node: NodeId = "n-1".parse().unwrap();
        let (made, is_enrolled) = store.credential(&node).unwrap();
        assert!(!is_enrolled);
        assert_eq!(store.credential(&node).unwrap(), (made.clone(), false));
        store.keep_credential(&made).unwrap();
        assert_eq!(store.credential(&node).unwrap(), (made.clone(), true));
        let path = store.dir.join("credential");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        // Another node's credential is not used, and neither is a broken one.
        let (other, is_enrolled) = store.credential(&"n-2".parse().unwrap()).unwrap();
        assert!(!is_enrolled && other.node().as_str() == "n-2");
        fs::write(&path, "rubbish").unwrap();
        assert!(!store.credential(&node).unwrap().1);
    }

    #[test]
    fn a_credential_takes_the_place_of_another_and_is_never_missing() {
        let (_dir, store) = store();
        let node: NodeId = "n-1".parse().unwrap();
        let (first, _) = store.credential(&node).unwrap();
        store.keep_credential(&first).unwrap();
        let given_up = store.next_credential(&node).unwrap();
        let second = store.next_credential(&node).unwrap();
        assert!(given_up != second && second != first);
        assert_eq!(store.credential(&node).unwrap(), (first.clone(), true), "it is not taken yet");
        store.keep_next_credential().unwrap();
        assert_eq!(store.credential(&node).unwrap(), (second.clone(), true));
        assert_eq!(store.previous_credential(&node).unwrap(), Some(first));
        // There is none to be kept: the one that is used stays.
        assert!(store.keep_next_credential().is_err());
        assert_eq!(store.credential(&node).unwrap(), (second.clone(), true));

        // A master that does not know it any more is shown another, the same until it is enrolled.
        let again = store.enrolling_credential(&node).unwrap();
        assert!(again != second && store.enrolling_credential(&node).unwrap() == again);
        assert_eq!(store.credential(&node).unwrap(), (second, true));
        store.drop_enrolling_credential().unwrap();
        let again = store.enrolling_credential(&node).unwrap();
        store.next_credential(&node).unwrap();
        store.keep_credential(&again).unwrap();
        assert_eq!(store.credential(&node).unwrap(), (again.clone(), true));
        assert_eq!(store.previous_credential(&node).unwrap(), None);
        assert!(store.keep_next_credential().is_err(), "what was made before it enrolled is gone");
        assert_ne!(store.enrolling_credential(&node).unwrap(), again);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "\\PC{0,100}") {
            let _ = unseal(&bytes);
            let _ = unseal(format!("{MAGIC}{text}").as_bytes());
        }

        #[test]
        fn an_envelope_gives_back_what_was_put_in(revision: u64, version: String, text: String) {
            let config = Published::new(revision, &version, &text);
            prop_assert_eq!(unseal(seal(&config).as_bytes()), Some(config));
        }
    }
}
