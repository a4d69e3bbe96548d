//! The program itself: its command line, its files, its end, its copies, and TLS.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use story::agent::{Agent, Answer, runtime};
use story::{Master, eventually, program};

/// Runs the program to its end: exit code and what it wrote.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = program(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_bad_config_is_told_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.toml");
    std::fs::write(&path, "[rest]\nlisten = \"nowhere\"\n").unwrap();
    let (code, said) = run(&["check", "-c", path.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("master.toml:2:10: "), "{said}");
    assert_eq!(run(&["check", "-c", "/nowhere/master.toml"]).0, Some(2));
    assert_eq!(run(&["check"]).0, Some(0));
    let (code, said) = run(&["check", path.to_str().unwrap()]);
    assert!(code == Some(2) && said.contains("master.toml:2:10: "), "{said}");
    assert_eq!(run(&["check", "a.toml", "-c", "a.toml"]).0, Some(2));
    std::fs::write(&path, "[rest]\n".encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>()).unwrap();
    let (code, said) = run(&["check", path.to_str().unwrap()]);
    assert!(
        code == Some(2) && said.contains("master.toml:1:1: ") && said.contains("iconv -f UTF-16BE "),
        "{said}"
    );
    assert_eq!(run(&["dance"]).0, Some(2));
}

#[test]
fn its_files_are_its_users_alone() {
    let master = Master::start();
    assert_eq!(mode(&master.data_dir()), 0o700);
    assert_eq!(mode(&master.data_dir().join("jwt.key")), 0o600);
    let data = master.data_dir();
    let (code, said) = run(&["run", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(code, Some(1), "two masters over one folder: {said}");
}

#[test]
fn it_ends_when_it_is_told_and_says_goodbye() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut master = Master::start();
        let runtime = runtime();
        let agent = Agent::new(&runtime, "a");
        agent.enrol(master.grpc(), &master.join_token(1)).unwrap();
        let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
        assert!(master.stop(signal).success(), "{}", master.output());
        let goodbye = |told: &proto::v1::master_message::Kind| {
            matches!(told, proto::v1::master_message::Kind::Goodbye(_))
        };
        eventually("the agent hears goodbye", || session.told().iter().any(goodbye).then_some(()));
    }
}

#[test]
fn systemd_hears_that_it_is_ready_turns_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (config, data, socket) =
        (dir.path().join("master.toml"), dir.path().join("data"), dir.path().join("notify"));
    let listen = "listen = \"127.0.0.1:0\"\n";
    std::fs::write(&config, format!("[rest]\n{listen}[grpc]\n{listen}")).unwrap();
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(story::PATIENCE)).unwrap();
    let arguments = ["run", "-c", config.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let mut command = program(&arguments);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "2000000").env_remove("WATCHDOG_PID");
    let mut master = command.spawn().unwrap();
    let hears = |state: &str| {
        let mut told = [0; 256];
        while let Ok(length) = systemd.recv(&mut told) {
            if told[..length].trim_ascii() == state.as_bytes() {
                return true;
            }
        }
        false
    };
    let turns = hears("READY=1") && hears("WATCHDOG=1") && hears("WATCHDOG=1");
    rustix::process::kill_process(Pid::from_child(&master), Signal::TERM).unwrap();
    let ends = hears("STOPPING=1");
    assert!(master.wait().unwrap().success());
    assert!(turns && ends, "turns: {turns}, ends: {ends}");
}

#[test]
fn a_copy_of_a_running_master_is_whole_and_can_be_put_back() {
    let mut master = Master::start();
    let admin = master.admin();
    let body = json!({ "username": "ada", "role": "viewer", "password": "correct horse battery" });
    assert_eq!(admin.post("/api/v1/users", &body).status, 201);
    let copy = admin.get("/api/v1/backup");
    assert_eq!(copy.header("content-type"), Some("application/octet-stream"));
    let (online, offline) = (master.dir().join("online.redb"), master.dir().join("offline.redb"));
    std::fs::write(&online, &copy.bytes).unwrap();
    assert_eq!(admin.delete("/api/v1/users/ada").status, 200);
    assert_eq!(admin.get("/api/v1/audit?action=backup").json["meta"]["total"], 1);
    let left = std::fs::read_dir(master.data_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(
        left.into_iter().all(|name| !name.to_string_lossy().starts_with("backup")),
        "a copy was left behind"
    );
    let data = master.data_dir();
    let data = data.to_str().unwrap();
    let (code, said) = run(&["backup", offline.to_str().unwrap(), "--data-dir", data]);
    assert!(code == Some(1) && said.contains("/api/v1/backup"), "{said}");
    assert_eq!(run(&["restore", online.to_str().unwrap(), "--data-dir", data]).0, Some(1));
    assert!(master.stop(Signal::TERM).success());
    assert_eq!(run(&["backup", offline.to_str().unwrap(), "--data-dir", data]).0, Some(0));
    assert_eq!(mode(&offline), 0o600);
    assert_eq!(
        run(&["backup", offline.to_str().unwrap(), "--data-dir", data]).0,
        Some(1),
        "a file was overwritten"
    );
    assert_eq!(run(&["backup", "/tmp/x", "--data-dir", "/nowhere"]).0, Some(2));
    let (code, said) = run(&["restore", online.to_str().unwrap(), "--data-dir", data]);
    assert!(code == Some(0) && said.contains("before-restore"), "{said}");
    master.start_again();
    assert_eq!(master.log_in("ada", "correct horse battery").get("/api/v1/nodes").status, 200);
    assert!(master.stop(Signal::TERM).success());
    assert_eq!(run(&["restore", offline.to_str().unwrap(), "--data-dir", data]).0, Some(0));
    assert_eq!(run(&["restore", "/etc/hostname", "--data-dir", data]).0, Some(1));
    master.start_again();
    let login = json!({ "username": "ada", "password": "correct horse battery" });
    assert_eq!(master.anonymous().post("/api/v1/auth/login", &login).status, 401);
}

#[test]
fn who_has_lost_the_only_admins_password_gets_a_new_one_on_the_host() {
    let mut master = Master::start();
    let data = master.data_dir();
    let data = data.to_str().unwrap();
    let reset = |user: &[&str]| run(&[&["reset-password", "--data-dir", data], user].concat());
    let logged_in = master.admin();
    let (code, said) = reset(&[]);
    assert!(code == Some(1) && said.contains("a master runs on this data folder: stop it first"), "{said}");
    master.user("ada", "viewer");
    assert!(master.stop(Signal::TERM).success());

    assert_eq!(run(&["reset-password", "--data-dir", "/nowhere"]).0, Some(2));
    let (code, said) = reset(&["bob"]);
    assert!(code == Some(1) && said.contains("there is no user `bob`"), "{said}");
    assert_eq!(reset(&["../x"]).0, Some(1));
    let (code, said) = reset(&[]);
    assert_eq!(code, Some(0), "{said}");
    let password = said.strip_prefix("The password of `admin` is now ").unwrap().split(' ').next().unwrap();
    assert_eq!(reset(&["ada"]).0, Some(0), "somebody who is no admin can be helped, too");

    master.start_again();
    let old = json!({ "username": "admin", "password": master.password() });
    assert_eq!(master.anonymous().post("/api/v1/auth/login", &old).status, 401);
    assert_eq!(logged_in.at(master.rest()).get("/api/v1/users").status, 401, "old logins are still good");
    let admin = master.log_in("admin", password);
    let noted = admin.get("/api/v1/audit?action=users.reset_password");
    let of_admin = &noted.data()[1];
    assert_eq!(
        (&of_admin["target"], &of_admin["actor_kind"], &of_admin["outcome"]),
        (&json!("admin"), &json!("host"), &json!("done")),
    );
    assert!(!noted.json.to_string().contains(password), "the password is in the audit log");

    let second = json!({ "username": "eve", "role": "admin", "password": "correct horse battery" });
    assert_eq!(admin.post("/api/v1/users", &second).status, 201);
    assert!(master.stop(Signal::TERM).success());
    let (code, said) = reset(&[]);
    assert!(code == Some(1) && said.contains("say which: admin, eve"), "{said}");
}

#[test]
fn a_client_that_says_nothing_gives_its_place_up() {
    let master = Master::start_with("[limits]\nconnections = 1\n");
    let mut idle = TcpStream::connect(master.rest()).unwrap();
    // The only place is taken: this waits until the idle one has had its time.
    assert_eq!(master.anonymous().get("/health").status, 200);
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest);
}

#[test]
fn rest_and_agents_are_served_over_tls_where_it_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = format!("{{ cert = {cert:?}, key = {key:?} }}");
    let master = Master::start_listening(&format!("tls = {tls}"), &format!("tls = {tls}"));
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    for addr in [master.rest(), master.grpc()] {
        let mut config = config.clone();
        let is_rest = addr == master.rest();
        config.alpn_protocols = vec![if is_rest { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
        let tcp = TcpStream::connect(addr).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let connection = ClientConnection::new(Arc::new(config), name.clone()).unwrap();
        let mut stream = StreamOwned::new(connection, tcp);
        if is_rest {
            stream
                .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        } else {
            // The client's preface and empty settings (RFC 9113, section 3.4); the server's settings come back.
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
            let mut frame = [0; 9];
            stream.read_exact(&mut frame).unwrap();
            assert_eq!(frame[3], 4, "no SETTINGS frame: {frame:?}");
        }
    }
    let plain = TcpStream::connect(master.rest()).unwrap();
    (&plain).write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = (&plain).read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "it answers without TLS, too");
}

/// Largest file that a process may write from now on; none: any.
fn limit_files(master: &Master, bytes: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(master.pid()).unwrap());
    let now = prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    assert_eq!(now.maximum, None, "this test is for a host that lets its files grow");
}

#[test]
fn a_disk_that_takes_nothing_for_a_while_needs_no_restart() {
    let master = Master::start();
    let (admin, anyone) = (master.admin(), master.anonymous());
    let make = || admin.post("/api/v1/join-tokens", &json!({ "description": "x" })).status;
    assert_eq!(make(), 201);
    limit_files(&master, Some(64 << 10));
    eventually("a change fails", || (make() == 503).then_some(()));
    let health = anyone.get("/health");
    assert_eq!(health.status, 503, "{}", health.json);
    assert!(health.json["message"].as_str().unwrap().contains("File too large"), "{}", health.json);
    limit_files(&master, None);
    eventually("the store is opened again", || (anyone.get("/health").status == 200).then_some(()));
    assert_eq!(make(), 201);
    let tokens = admin.get("/api/v1/join-tokens");
    assert!(tokens.json["meta"]["total"].as_u64().unwrap() >= 2, "{}", tokens.json);
    let metrics = String::from_utf8(admin.get("/metrics").bytes).unwrap();
    assert!(metrics.contains("\nmillrace_master_store_failing 0\n"), "{metrics}");
    assert!(!metrics.contains("\nmillrace_master_store_failures_total 0\n"), "{metrics}");
}

#[test]
fn a_store_that_is_gone_or_empty_beside_its_keys_is_no_first_start() {
    let mut master = Master::start();
    let (data, backup) = (master.data_dir(), master.dir().join("backup.redb"));
    let (store, folder) = (data.join("store.redb"), data.to_str().unwrap());
    assert!(master.stop(Signal::TERM).success());
    assert_eq!(run(&["backup", backup.to_str().unwrap(), "--data-dir", folder]).0, Some(0));
    // An address that no host has (RFC 5737): a master that takes the folder all the same ends there.
    let nowhere = master.dir().join("nowhere.toml");
    std::fs::write(&nowhere, "[rest]\nlisten = \"192.0.2.1:1\"\n").unwrap();
    let begin_anew = || run(&["run", "--begin-anew", "-c", nowhere.to_str().unwrap(), "--data-dir", folder]);
    let (code, said) = begin_anew();
    assert!(code == Some(2) && said.contains("has a store"), "{said}");
    for is_empty in [false, true] {
        std::fs::remove_file(&store).unwrap();
        if is_empty {
            std::fs::write(&store, "").unwrap();
        }
        let (code, said) = run(&["run", "-c", nowhere.to_str().unwrap(), "--data-dir", folder]);
        assert!(code == Some(2) && said.contains("jwt.key"), "empty: {is_empty}: {said}");
        assert!(said.contains("restore FILE") && said.contains("--begin-anew"), "{said}");
        assert_eq!(store.exists(), is_empty, "a store was made all the same");
        assert_eq!(run(&["restore", backup.to_str().unwrap(), "--data-dir", folder]).0, Some(0));
    }
    master.start_again();
    master.admin();
    assert!(master.stop(Signal::TERM).success());
    std::fs::remove_file(&store).unwrap();
    let (code, said) = begin_anew();
    assert!(code == Some(1) && said.contains("First start"), "{said}");
}
