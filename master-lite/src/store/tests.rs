//! What the store promises, on a real file.

mod trouble;

use redb::Database;

use super::*;

const THINGS: Records<String, u32> = Records::new("things");

fn open(dir: &Path) -> Result<Store, StoreError> {
    Store::open(dir, &[THINGS.name()])
}

fn entry(action: &str) -> AuditRecord {
    AuditRecord {
        at_ms: 1,
        actor: "ada".to_owned(),
        actor_kind: "user".to_owned(),
        address: None,
        action: action.to_owned(),
        target: "thing".to_owned(),
        outcome: "done".to_owned(),
        detail: String::new(),
        request_id: "r".to_owned(),
    }
}

fn set(store: &Store, key: &str, value: u32) {
    store
        .change::<_, StoreError>(|writer| {
            writer.put(THINGS, &key.to_owned(), &value)?;
            Ok(((), entry("set")))
        })
        .unwrap();
}

fn audited(store: &Store) -> Vec<(u64, AuditRecord)> {
    store.read().unwrap().all(AUDIT).unwrap()
}

#[test]
fn a_change_and_its_audit_entry_come_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    set(&store, "a", 1);
    assert_eq!(store.read().unwrap().find(THINGS, &"a".to_owned()).unwrap(), Some(1));
    assert_eq!(audited(&store).len(), 1);
}

#[test]
fn a_refused_change_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    set(&store, "a", 1);
    let refused = store.change::<(), StoreError>(|writer| {
        writer.put(THINGS, &"a".to_owned(), &2)?;
        Err(StoreError::Foreign("no".to_owned()))
    });
    assert!(refused.is_err());
    assert_eq!(store.read().unwrap().find(THINGS, &"a".to_owned()).unwrap(), Some(1));
    assert_eq!(audited(&store).len(), 1);
}

#[test]
fn a_backup_holds_what_was_there_and_restores_it() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let backup = other.path().join("backup.redb");
    let store = open(dir.path()).unwrap();
    set(&store, "a", 1);
    store.back_up(&backup).unwrap();
    set(&store, "a", 2);
    assert!(restore(&backup, dir.path()).is_err(), "a running master's store was replaced");
    drop(store);
    let kept = restore(&backup, dir.path()).unwrap();
    assert!(kept.is_some_and(|path| path.is_file()));
    let store = open(dir.path()).unwrap();
    assert_eq!(store.read().unwrap().find(THINGS, &"a".to_owned()).unwrap(), Some(1));
}

#[test]
fn what_is_no_backup_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let file = dir.path().join("not-a-backup");
    fs::write(&file, "hello").unwrap();
    assert!(restore(&file, dir.path()).is_err());
    let foreign = dir.path().join("foreign.redb");
    drop(Database::create(&foreign).unwrap());
    assert!(restore(&foreign, dir.path()).is_err());
    assert!(open(dir.path()).is_ok());
}

#[test]
fn the_audit_log_keeps_its_newest_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    store.audit_entries_max = 3;
    for value in 0..5 {
        set(&store, "a", value);
    }
    let numbers: Vec<u64> = audited(&store).into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, [3, 4, 5]);
}

#[test]
fn a_table_is_read_in_both_directions_from_a_key_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for key in ["a", "b", "c"] {
        set(&store, key, 0);
    }
    let keys = |order, from: &str| {
        let mut keys = Vec::new();
        let from = std::ops::Bound::Excluded(from.to_owned());
        let reader = store.read().unwrap();
        reader
            .visit(THINGS, from, order, |key, _| {
                keys.push(key);
                true
            })
            .unwrap();
        keys
    };
    assert_eq!(keys(Order::Ascending, "a"), ["b", "c"]);
    assert_eq!(keys(Order::Descending, "c"), ["b", "a"]);
}
