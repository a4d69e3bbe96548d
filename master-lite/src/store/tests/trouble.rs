//! Disks that fail at each moment of a write, and files that are no good store.

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicI64;

use super::*;

/// A file whose writes, and what belongs to them, succeed so many times more, and then fail until there is room again.
#[derive(Clone, Debug)]
struct FailingDisk {
    file: Arc<fs::File>,
    left: Arc<AtomicI64>,
    /// Whether one failure is all there is.
    fails_once: Arc<AtomicBool>,
}

impl FailingDisk {
    fn new() -> Self {
        Self {
            file: Arc::new(tempfile::tempfile().unwrap()),
            left: Arc::new(AtomicI64::new(i64::MAX)),
            fails_once: Arc::default(),
        }
    }

    fn fail_after(&self, writes: i64) {
        self.left.store(writes, Ordering::SeqCst);
    }

    fn try_one(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        if self.fails_once.load(Ordering::SeqCst) {
            self.fail_after(i64::MAX);
        }
        Err(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()))
    }
}

impl redb::StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.try_one()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.try_one()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.try_one()?;
        self.file.write_all_at(data, offset)
    }
}

fn try_set(store: &Store, key: &str, value: u32) -> Result<(), StoreError> {
    store.change(|writer| {
        writer.put(THINGS, &key.to_owned(), &value)?;
        Ok(((), entry("set")))
    })
}

fn value(store: &Store, key: &str) -> Option<u32> {
    store.read().unwrap().find(THINGS, &key.to_owned()).unwrap()
}

#[test]
fn a_disk_that_fails_at_any_moment_of_a_change_loses_nothing_and_is_used_again() {
    let mut moments = 0;
    for writes in 0.. {
        let disk = FailingDisk::new();
        let store = Store::open_in(disk.clone(), &[THINGS.name()]).unwrap();
        try_set(&store, "before", 1).unwrap();
        disk.fail_after(writes);
        let changed = try_set(&store, "during", 2);
        if changed.is_ok() && disk.left.load(Ordering::SeqCst) >= 0 {
            break;
        }
        moments += 1;
        // A change that has succeeded although the disk failed behind it is on the disk all the same.
        if let Err(error) = &changed {
            assert!(matches!(error, StoreError::Failing(_)), "moment {writes}: {error}");
        }
        if changed.is_err() {
            // The disk is still full: the master says so, and does not hurt itself by trying.
            assert!(matches!(store.look(), Err(StoreError::Failing(_))), "moment {writes}");
            assert!(try_set(&store, "refused", 3).is_err(), "moment {writes}");
            assert!(store.flush().is_err(), "moment {writes}");
            assert!(store.health().trouble.is_some_and(|why| why.contains("No space left")));
        }
        disk.fail_after(i64::MAX);
        store.flush().unwrap();
        store.look().unwrap();
        assert_eq!(value(&store, "before"), Some(1), "moment {writes}");
        assert_eq!(value(&store, "refused"), None, "moment {writes}");
        try_set(&store, "after", 4).unwrap();
        // As a new process finds it.
        drop(store);
        let store = Store::open_in(disk, &[THINGS.name()]).unwrap();
        assert_eq!((value(&store, "before"), value(&store, "after")), (Some(1), Some(4)), "moment {writes}");
        if changed.is_ok() {
            assert_eq!(value(&store, "during"), Some(2), "moment {writes}");
        }
    }
    assert!(moments >= 3, "a change writes, writes its header and syncs: only {moments} moments were met");
}

#[test]
fn while_changes_are_refused_everything_is_read_and_observed() {
    let disk = FailingDisk::new();
    let store = Store::open_in(disk.clone(), &[THINGS.name()]).unwrap();
    try_set(&store, "a", 1).unwrap();
    disk.fails_once.store(true, Ordering::SeqCst);
    disk.fail_after(0);
    assert!(try_set(&store, "a", 2).is_err());
    assert!(
        matches!(try_set(&store, "a", 2), Err(StoreError::Failing(_))),
        "the disk was not tried out first"
    );
    assert_eq!(value(&store, "a"), Some(1));
    store.observe::<_, StoreError>(|writer| writer.put(THINGS, &"seen".to_owned(), &3)).unwrap();
    assert_eq!(value(&store, "seen"), Some(3));
    store.flush().unwrap();
    assert_eq!(store.health(), StoreHealth { trouble: None, failures: 1 });
    drop(store);
    let store = Store::open_in(disk, &[THINGS.name()]).unwrap();
    assert_eq!(
        value(&store, "seen"),
        Some(3),
        "what was observed meanwhile is on the disk once there is room"
    );
}

#[test]
fn a_file_that_is_no_whole_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    drop(open(dir.path()).unwrap());
    let whole = fs::read(&path).unwrap();
    for length in [3, 100, 5_000, whole.len() / 2] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = open(dir.path()).err().unwrap();
        assert!(
            matches!(&error, StoreError::Foreign(said) if said.contains("no whole store")),
            "cut at {length}: {error}"
        );
        assert!(fs::read(&path).unwrap() == whole[..length], "the file was changed, cut at {length}");
    }
}

#[test]
fn a_store_of_a_newer_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.observe::<_, StoreError>(|writer| writer.put(META, &FORMAT_KEY.to_owned(), &(FORMAT + 1))).unwrap();
    store.flush().unwrap();
    drop(store);
    let error = open(dir.path()).err().unwrap();
    assert!(error.to_string().contains("use the program that wrote it"), "{error}");
}

#[test]
fn the_file_is_its_users_alone_and_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    drop(open(dir.path()).unwrap());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(dir.path()).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, files::OWNER_ONLY);
    let elsewhere = dir.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[test]
fn every_restore_keeps_the_store_that_was_there_a_damaged_one_too() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup.redb");
    let store = open(dir.path()).unwrap();
    set(&store, "a", 1);
    store.back_up(&backup).unwrap();
    set(&store, "a", 2);
    drop(store);
    let first = restore(&backup, dir.path()).unwrap().unwrap();
    fs::write(dir.path().join(FILE_NAME), "damaged").unwrap();
    let second = restore(&backup, dir.path()).unwrap().unwrap();
    assert_ne!(first, second);
    assert_eq!(fs::read_to_string(&second).unwrap(), "damaged");
    for kept in [&first, &second] {
        assert_eq!(fs::metadata(kept).unwrap().permissions().mode() & 0o777, files::OWNER_ONLY);
    }
    fs::rename(first, dir.path().join(FILE_NAME)).unwrap();
    assert_eq!(value(&open(dir.path()).unwrap(), "a"), Some(2), "the store of before the restore is lost");
}
