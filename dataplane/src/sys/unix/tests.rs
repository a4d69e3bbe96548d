//! What happens to files at the path of a Unix socket: each test has a folder of its own.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use super::*;

const BACKLOG: i32 = 8;

fn open_to_all() -> SocketAccess {
    SocketAccess { mode: 0o666, owner: None, group: None }
}

fn listen_at(path: &Path) -> io::Result<(OwnedFd, FileId)> {
    listen(path, &open_to_all(), BACKLOG)
}

/// A socket's file that its process has left behind.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_stale_socket_is_replaced_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    leave_stale(&path);
    let stale = Pin::at(&path).unwrap().unwrap();
    assert_eq!(look(&path).unwrap(), Standing::Stale);
    let (_socket, file) = listen_at(&path).unwrap();
    assert_ne!(file, stale.id());
    assert!(UnixStream::connect(&path).is_ok());
    assert_eq!(names_in(dir.path()), ["http.sock"]);
    drop(UnixDatagram::bind(dir.path().join("log")).unwrap());
    assert_eq!(look(&dir.path().join("log")).unwrap(), Standing::Stale);
}

#[test]
fn a_socket_that_a_process_has_bound_stays_whether_it_listens_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let _listens = UnixListener::bind(at("listens")).unwrap();
    let bound = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    bound.bind(&SockAddr::unix(at("starts")).unwrap()).unwrap();
    let _datagrams = UnixDatagram::bind(at("datagrams")).unwrap();
    let full = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    full.bind(&SockAddr::unix(at("full")).unwrap()).unwrap();
    full.listen(0).unwrap();
    let _waits = UnixStream::connect(at("full")).unwrap();
    for name in ["listens", "starts", "datagrams", "full"] {
        let before = FileId::at(&at(name));
        assert_eq!(look(&at(name)).unwrap(), Standing::Held, "{name}");
        assert_eq!(listen_at(&at(name)).unwrap_err().kind(), io::ErrorKind::AddrInUse, "{name}");
        assert_eq!(FileId::at(&at(name)), before, "{name}");
    }
}

/// As after a crash of a process that had given its socket to another user, or taken its own right to connect.
#[test]
fn a_socket_that_this_user_may_not_connect_to_is_told_from_a_stale_one() {
    let dir = tempfile::tempdir().unwrap();
    let name = |what: &str| dir.path().join(format!("{what}-{}", std::process::id()));
    let (stale, live) = (name("stale"), name("live"));
    leave_stale(&stale);
    let _listens = UnixListener::bind(&live).unwrap();
    let set_mode =
        |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set_mode(dir.path(), 0o755);
    [&stale, &live].into_iter().for_each(|path| set_mode(path, 0o444));
    let looked = std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            // Of this thread alone: root may connect to everything.
            rustix::thread::set_thread_uid(Uid::from_raw(65534)).unwrap();
        }
        assert_eq!(UnixStream::connect(&live).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        [stale, live].map(|path| look(&path).unwrap())
    });
    assert_eq!(looked.join().unwrap(), [Standing::Stale, Standing::Held]);
}

#[test]
fn what_is_no_socket_stays_as_it_is_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("notes"), "precious").unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    rustix::fs::mkfifoat(CWD, at("fifo"), Mode::from_raw_mode(0o600)).unwrap();
    leave_stale(&at("stale"));
    symlink(at("notes"), at("to_a_file")).unwrap();
    symlink(at("nowhere"), at("to_nothing")).unwrap();
    symlink(at("stale"), at("to_a_socket")).unwrap();
    symlink("/dev/null", at("to_a_device")).unwrap();
    for (name, what) in [
        ("notes", "an ordinary file"),
        ("folder", "a folder"),
        ("fifo", "a FIFO"),
        ("to_a_file", "a symbolic link"),
        ("to_nothing", "a symbolic link"),
        ("to_a_socket", "a symbolic link"),
        ("to_a_device", "a symbolic link"),
    ] {
        let before = FileId::at(&at(name)).unwrap();
        let error = listen_at(&at(name)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{name}");
        assert!(error.to_string().starts_with(what), "{name}: {error}");
        assert_eq!(FileId::at(&at(name)), Some(before), "{name}");
    }
    assert_eq!(std::fs::read_to_string(at("notes")).unwrap(), "precious");
    assert!(FileId::at(&at("stale")).is_some() && FileId::at(&at("nowhere")).is_none());
    assert_eq!(look(Path::new("/dev/null")).unwrap(), Standing::Other("a device"));
}

#[test]
fn of_two_processes_that_replace_a_stale_socket_the_slower_one_leaves_the_other_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    leave_stale(&path);
    let looked_at = Pin::at(&path).unwrap().unwrap();
    assert_eq!(looked_at.standing(&path), Standing::Stale);
    let (_socket, file) = listen_at(&path).unwrap();
    let error = remove_stale(&path, &looked_at).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(FileId::at(&path), Some(file));
    assert!(UnixStream::connect(&path).is_ok());
    assert_eq!(names_in(dir.path()), ["http.sock"]);
}

#[test]
fn only_the_file_of_the_own_socket_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let (_first, first_file) = listen_at(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (_second, second_file) = listen_at(&path).unwrap();
    remove(&path, first_file);
    assert_eq!(FileId::at(&path), Some(second_file));
    std::fs::rename(&path, dir.path().join("moved")).unwrap();
    std::fs::write(&path, "precious").unwrap();
    remove(&path, second_file);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::rename(dir.path().join("moved"), &path).unwrap();
    remove(&path, second_file);
    assert!(!path.exists());
}

#[test]
fn the_mode_is_the_one_that_is_given_and_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    let (_socket, file) = listen_at(&path).unwrap();
    assert_eq!(mode(), 0o666);
    for other in [0o600, 0o770, 0o000, 0o666] {
        set_access(&path, file, &SocketAccess { mode: other, ..open_to_all() }).unwrap();
        assert_eq!(mode(), other);
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(set_access(&path, file, &open_to_all()).is_err());
    assert_eq!(mode(), 0o640, "a file that is not ours keeps its rights");
}

/// Only root may give files away; the groups of a user who is not are not known here.
#[test]
fn owner_and_group_are_given_and_taken_back() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "these files cannot be given away, and CI is set");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let rights = || {
        let file = std::fs::metadata(&path).unwrap();
        (file.uid(), file.gid(), file.mode() & 0o777)
    };
    let given = |owner: Option<u32>, group: Option<Account>, mode| SocketAccess {
        mode,
        owner: owner.map(Account::Id),
        group,
    };
    let daemon = accounts::group_id("daemon").unwrap().unwrap();
    let by_name = || Some(Account::Name("daemon".to_owned()));
    let (_socket, file) = listen(&path, &given(Some(1234), by_name(), 0o660), BACKLOG).unwrap();
    assert_eq!(rights(), (1234, daemon, 0o660));
    set_access(&path, file, &given(Some(1235), Some(Account::Id(77)), 0o606)).unwrap();
    assert_eq!(rights(), (1235, 77, 0o606));
    set_access(&path, file, &given(None, None, 0o600)).unwrap();
    assert_eq!(rights(), (0, rustix::process::getegid().as_raw(), 0o600));
}

#[test]
fn a_user_that_the_host_does_not_have_is_named_before_anything_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let unknown = || Some(Account::Name("no-such-account".to_owned()));
    for (access, kind) in [
        (SocketAccess { owner: unknown(), ..open_to_all() }, "user"),
        (SocketAccess { group: unknown(), ..open_to_all() }, "group"),
    ] {
        let told = format!("this host has no {kind} \"no-such-account\"");
        assert_eq!(listen(&path, &access, BACKLOG).unwrap_err().to_string(), told);
        assert_eq!(try_access(&access).unwrap_err().to_string(), told);
        assert_eq!(find_owners(&access).unwrap_err().to_string(), told);
        assert!(!path.exists());
    }
}
