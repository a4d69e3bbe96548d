//! Unix sockets and what stands at their paths: a file that is no socket is never touched, only the own socket is removed,
//! and its permissions are those of the config, whatever the umask.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use story::config::Config;
use story::wire::Wire;
use story::{Ended, Proxy, origin, run_to_end};

/// In front of nobody, on a Unix socket and a TCP port.
fn on_unix() -> Config {
    let bind = vec!["unix:{dir}/http.sock".to_owned(), "127.0.0.1:0".to_owned()];
    Config { bind, ..Config::to("127.0.0.1:1".parse().unwrap()) }
}

/// Runs a subcommand with this config, whose folder is `dir`.
fn run(subcommand: &str, config: &Config, dir: &Path) -> Ended {
    let path = dir.join("edge.toml");
    std::fs::write(&path, config.render(dir)).unwrap();
    run_to_end(&[subcommand, "-c", path.to_str().unwrap()])
}

/// Permissions and owners of a file.
fn rights(path: &Path) -> (u32, u32, u32) {
    let file = std::fs::metadata(path).unwrap();
    (file.mode() & 0o7777, file.uid(), file.gid())
}

fn mode(path: &Path) -> u32 {
    rights(path).0
}

/// Which file it is, and what is in it.
fn identity(path: &Path) -> (u64, Vec<u8>) {
    let content = if path.is_file() { std::fs::read(path).unwrap() } else { Vec::new() };
    (path.symlink_metadata().unwrap().ino(), content)
}

/// Puts something at a path.
type Make = fn(&Path);

/// What may stand where a socket is to be, and how it is called.
const OTHER_FILES: [(&str, Make); 5] = [
    ("an ordinary file", |path| std::fs::write(path, "precious").unwrap()),
    ("a folder", |path| std::fs::create_dir(path).unwrap()),
    ("a FIFO", |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success())),
    ("a symbolic link", |path| {
        let notes = path.with_extension("notes");
        std::fs::write(&notes, "precious").unwrap();
        symlink(notes, path).unwrap();
    }),
    ("a symbolic link", |path| symlink(path.with_extension("nowhere"), path).unwrap()),
];

#[test]
fn what_is_no_socket_is_left_as_it_is_and_check_tells() {
    for (what, make) in OTHER_FILES {
        for socket in ["http.sock", "admin.sock"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(socket);
            make(&path);
            let before = identity(&path);
            let checked = run("check", &on_unix(), dir.path());
            assert_eq!(checked.code, Some(0), "{}", checked.stderr);
            assert!(
                checked.stdout.contains(&format!("{}: {what} stands there", path.display())),
                "{}",
                checked.stdout
            );
            let ended = run("run", &on_unix(), dir.path());
            assert_eq!(ended.code, Some(1), "{what}: {}", ended.stderr);
            assert!(ended.stderr.contains(&format!("{what} stands there")), "{}", ended.stderr);
            assert!(
                ended.stderr.contains("move it away") && ended.stderr.contains(socket),
                "{}",
                ended.stderr
            );
            assert_eq!(identity(&path), before, "{what}");
            let others = ["http.sock", "admin.sock"].map(|name| dir.path().join(name));
            assert!(
                others.iter().all(|other| *other == path || !other.exists()),
                "what was bound is gone again"
            );
        }
    }
}

#[test]
fn a_reload_leaves_files_alone_and_says_that_the_text_is_good() {
    let origin = origin();
    let base = Config::to(origin.addr());
    let proxy = Proxy::start(&base);
    let path = proxy.dir().join("http.sock");
    std::fs::write(&path, "precious").unwrap();
    let before = identity(&path);
    let wanted = Config { bind: on_unix().bind, ..base };
    let (status, answer) = proxy.put_config(&wanted);
    assert_eq!(
        (status, &answer["code"], &answer["retry"]),
        (422, &"address_unavailable".into(), &true.into())
    );
    assert!(
        answer["errors"][0]["message"].as_str().unwrap().contains("an ordinary file stands there"),
        "{answer}"
    );
    assert_eq!(identity(&path), before);
    assert_eq!(
        (proxy.status()["generation"].as_u64(), proxy.connect().get("/").response().0.status()),
        (Some(1), 200)
    );
    std::fs::remove_file(&path).unwrap();
    assert_eq!(proxy.put_config(&wanted).0, 200, "the same text, later");
}

#[test]
fn a_stale_socket_is_replaced_and_one_that_another_process_has_is_not() {
    let origin = origin();
    let config = Config { bind: vec!["unix:{dir}/http.sock".to_owned()], ..Config::to(origin.addr()) };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let held = UnixListener::bind(&path).unwrap();
    let before = identity(&path);
    let ended = run("run", &config, dir.path());
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("in use") && ended.stderr.contains("ss -lxp"), "{}", ended.stderr);
    assert_eq!(identity(&path), before);
    drop(held);
    let bind = vec![format!("unix:{}", path.display())];
    let proxy = Proxy::start(&Config { bind, ..config });
    assert_eq!(Wire::try_connect_unix(&path).unwrap().get("/").response().0.status(), 200);
    assert!(proxy.stop().success());
    assert!(!path.exists());
}

#[test]
fn at_the_stop_a_file_that_is_not_ours_stays() {
    let mut proxy = Proxy::start(&on_unix());
    let paths = ["http.sock", "admin.sock"].map(|name| proxy.dir().join(name));
    for path in &paths {
        std::fs::rename(path, path.with_extension("moved")).unwrap();
        std::fs::write(path, "precious").unwrap();
    }
    let before = paths.each_ref().map(|path| identity(path));
    proxy.signal(Signal::INT);
    assert!(proxy.wait().success());
    assert_eq!(paths.each_ref().map(|path| identity(path)), before);
}

#[test]
fn permissions_are_those_of_the_config_whatever_the_umask() {
    for umask in ["077", "000"] {
        let command = |program: &Path| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("umask {umask} && exec \"$0\" \"$@\"")]).arg(program);
            command
        };
        let proxy = Proxy::start_as(&on_unix(), command);
        let [http, admin] = ["http.sock", "admin.sock"].map(|name| proxy.dir().join(name));
        assert_eq!((mode(&http), mode(&admin)), (0o666, 0o600));
        // A reload changes them, and the socket stays.
        let before = identity(&http);
        // Few enough clients for any limit of open files.
        let other = on_unix()
            .listener("socket = { mode = \"0660\" }")
            .admin("socket_mode = \"0640\"")
            .limits("connections = 100");
        let (status, answer) = proxy.put_config(&other);
        assert_eq!((status, &answer["warnings"]), (200, &serde_json::json!([])), "{answer}");
        assert_eq!((mode(&http), mode(&admin)), (0o660, 0o640));
        assert_eq!(identity(&http), before);
        assert_eq!(proxy.put_config(&on_unix()).0, 200);
        assert_eq!((mode(&http), mode(&admin)), (0o666, 0o600));
    }
}

#[test]
fn owner_and_group_are_given_by_name_or_number() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "files cannot be given away, and CI is set");
        println!("skipped: only root may give files away");
        return;
    }
    let given = on_unix()
        .listener("socket = { mode = \"0660\", owner = \"1234\", group = \"daemon\" }")
        .admin("socket_mode = \"0660\"\nsocket_group = \"1235\"");
    let proxy = Proxy::start(&given);
    let [http, admin] = ["http.sock", "admin.sock"].map(|name| proxy.dir().join(name));
    let (_, owner, daemon) = rights(&http);
    assert_eq!((owner, rights(&admin)), (1234, (0o660, 0, 1235)));
    assert_ne!(daemon, 0);
    assert_eq!(proxy.put_config(&on_unix()).0, 200);
    assert_eq!((rights(&http), rights(&admin)), ((0o666, 0, 0), (0o600, 0, 0)));
}

#[test]
fn a_user_that_is_not_there_is_told_and_nothing_is_bound() {
    let unknown = [
        on_unix().listener("socket = { owner = \"no-such-user\" }"),
        on_unix().admin("socket_owner = \"no-such-user\""),
    ];
    let proxy = Proxy::start(&on_unix());
    let http = proxy.dir().join("http.sock");
    for config in unknown {
        let dir = tempfile::tempdir().unwrap();
        let told = "this host has no user \"no-such-user\"";
        let checked = run("check", &config, dir.path());
        assert_eq!(checked.code, Some(0));
        assert!(
            checked.stdout.contains(told) && checked.stdout.contains("getent passwd"),
            "{}",
            checked.stdout
        );
        let ended = run("run", &config, dir.path());
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains(told) && ended.stderr.contains("getent passwd"), "{}", ended.stderr);
        assert!(!dir.path().join("http.sock").exists() && !dir.path().join("admin.sock").exists());
        let (status, answer) = proxy.put_config(&config);
        assert_eq!((status, &answer["retry"]), (422, &true.into()), "{answer}");
        assert_eq!(mode(&http), 0o666, "nothing has changed");
    }
}

/// The program as a user who may give nothing away.
#[test]
fn a_socket_that_may_not_be_given_away_is_told() {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.toml");
    std::fs::write(&path, on_unix().listener("socket = { owner = \"0\" }").render(dir.path())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-dataplane"));
    command.args(["run", "-c"]).arg(&path);
    if rustix::process::geteuid().is_root() {
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    let ended = match command.output() {
        Ok(ended) => ended,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "another user cannot start the program: {error}");
            println!("skipped: another user cannot start the program: {error}");
            return;
        }
    };
    let told = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("may not give the socket to the user 0") && told.contains("CAP_CHOWN"), "{told}");
    assert!(!dir.path().join("http.sock").exists() && !dir.path().join("admin.sock").exists());
}

#[test]
fn an_upgrade_keeps_the_sockets_gives_them_new_permissions_and_removes_them_in_the_end() {
    let origin = origin();
    let config = Config { bind: on_unix().bind, ..Config::to(origin.addr()) };
    let mut proxy = Proxy::start(&config);
    let paths = ["http.sock", "admin.sock"].map(|name| proxy.dir().join(name));
    let before = paths.each_ref().map(|path| identity(path));
    proxy.write_config(
        &config.clone().listener("socket = { mode = \"0600\" }").admin("socket_mode = \"0660\""),
    );
    proxy.signal(Signal::USR2);
    proxy.await_successor();
    assert!(proxy.wait().success(), "{}", proxy.output());
    assert_eq!(paths.each_ref().map(|path| identity(path)), before);
    assert!(paths.iter().all(|path| path.metadata().unwrap().file_type().is_socket()));
    assert_eq!(paths.each_ref().map(|path| mode(path)), [0o600, 0o660]);
    assert_eq!(Wire::try_connect_unix(&paths[0]).unwrap().get("/").response().0.status(), 200);
    proxy.signal(Signal::TERM);
    let deadline = std::time::Instant::now() + story::PATIENCE;
    while paths.iter().any(|path| path.exists()) {
        assert!(std::time::Instant::now() < deadline, "the sockets' files are left behind");
        std::thread::yield_now();
    }
}
