//! The command line's contract: exit codes, and messages that say where and what.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::path::Path;

use story::config::Config;
use story::hole::Refusing;
use story::{Ended, Proxy, run_to_end};

fn good() -> Config {
    Config::to("127.0.0.1:1".parse().unwrap())
}

/// Runs a subcommand with this config, whose file is `edge.toml` in `dir`.
fn run(subcommand: &str, config: &Config, dir: &Path) -> Ended {
    let path = dir.join("edge.toml");
    std::fs::write(&path, config.render(dir)).unwrap();
    run_to_end(&[subcommand, "-c", path.to_str().unwrap()])
}

/// The line and the column that a message about `edge.toml` begins with, if it does.
fn place(message: &str) -> Option<(usize, usize)> {
    let (_, place) = message.split_once("edge.toml:")?;
    let (line, rest) = place.split_once(':')?;
    let (column, _) = rest.split_once(':')?;
    Some((line.parse().ok()?, column.parse().ok()?))
}

/// Where `part` begins in a config's text: its line and its column.
fn place_of(part: &str, config: &Config, dir: &Path) -> Option<(usize, usize)> {
    let text = config.render(dir);
    let before = &text[..text.find(part)?];
    Some((before.matches('\n').count() + 1, before.len() - before.rfind('\n').map_or(0, |end| end + 1) + 1))
}

#[test]
fn a_good_config_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run("check", &good(), dir.path());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.ends_with("edge.toml: good\n"), "{}", ended.stdout);
    let path = dir.path().join("edge.toml");
    let ended = run_to_end(&["check", "--quiet", "-c", path.to_str().unwrap()]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
}

#[test]
fn wrong_configs_exit_with_2_and_say_where() {
    let dir = tempfile::tempdir().unwrap();
    let good = good();
    // What is wrong, a word that the message must have, and where it must point to if that is one place of the text.
    let cases = [
        (good.clone().limits("conections = 5"), "connections", Some("conections")),
        (good.clone().route("nme = \"all\""), "name", Some("nme")),
        (good.clone().route("timeouts = { idle = \"soon\" }"), "soon", Some("\"soon\"")),
        (Config { endpoints: vec![], ..good.clone() }, "endpoint", None),
        (
            good.clone().more("[[clusters]]\nname = \"origin\"\nendpoints = [{ address = \"127.0.0.1:1\" }]"),
            "origin",
            None,
        ),
        (good.clone().more("[[routes]]\nname = \"x\"\ncluster = \"orgin\""), "origin", Some("\"orgin\"")),
        (
            good.clone().more("[[listeners]]\nname = \"x\"\nbind = \"127.0.0.1:99999\""),
            "99999",
            Some("\"127.0.0.1:99999\""),
        ),
        (good.clone().more("this is no TOML"), "", None),
        (
            good.route("headers = { request = { set = { X-A = \"${MILLRACE_NOT_SET}\" } } }"),
            "MILLRACE_NOT_SET",
            Some("${MILLRACE_NOT_SET}"),
        ),
    ];
    for (config, hint, wrong) in cases {
        for subcommand in ["run", "check"] {
            let ended = run(subcommand, &config, dir.path());
            assert_eq!(ended.code, Some(2), "{subcommand}: {}", ended.stderr);
            let place = place(&ended.stderr);
            assert!(place.is_some(), "no file:line:column for {hint}:\n{}", ended.stderr);
            if let Some(wrong) = wrong {
                assert_eq!(place, place_of(wrong, &config, dir.path()), "{}", ended.stderr);
            }
            assert!(ended.stderr.contains(hint), "no word of {hint}:\n{}", ended.stderr);
        }
    }
}

#[test]
fn the_file_is_named_with_or_without_the_option() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.toml");
    let path = path.to_str().unwrap();
    std::fs::write(path, good().render(dir.path())).unwrap();
    for arguments in [&["check", path][..], &["check", "-c", path], &["check", "--config", path, "-q"]] {
        let ended = run_to_end(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
    }
    std::fs::write(path, "nonsense").unwrap();
    for arguments in [&["check", path][..], &["run", path]] {
        let ended = run_to_end(arguments);
        assert_eq!((ended.code, place(&ended.stderr)), (Some(2), Some((1, 9))), "{}", ended.stderr);
    }
    let both = run_to_end(&["check", path, "-c", path]);
    assert!(both.code == Some(2) && both.stderr.contains("cannot be used with"), "{}", both.stderr);
}

#[test]
fn another_encoding_is_named_with_the_command_that_converts_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.toml");
    let text = format!("# \u{fc}ber alles\n{}", good().render(dir.path()));
    let utf16 = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let latin1 = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    let cases: [(Vec<u8>, (usize, usize), &str); 2] =
        [(utf16, (1, 1), "iconv -f UTF-16 -t UTF-8"), (latin1, (1, 3), "iconv -f ISO-8859-1 -t UTF-8")];
    for (bytes, at, command) in cases {
        std::fs::write(&path, bytes).unwrap();
        for subcommand in ["check", "run"] {
            let ended = run_to_end(&[subcommand, "-c", path.to_str().unwrap()]);
            assert_eq!((ended.code, place(&ended.stderr)), (Some(2), Some(at)), "{}", ended.stderr);
            assert!(ended.stderr.contains(command), "{}", ended.stderr);
        }
    }
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    let ended = run_to_end(&["check", "-c", path.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn clear_text_at_a_port_of_tls_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run("check", &Config::to("127.0.0.1:443".parse().unwrap()), dir.path());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("warning: ") && ended.stdout.contains("clear text to 127.0.0.1:443"),
        "{}",
        ended.stdout
    );
}

#[test]
fn unusable_arguments_exit_with_2() {
    for arguments in [&["check"][..], &["nonsense"], &["run", "-c", "/no/such/file.toml"], &["run"], &[]] {
        assert_eq!(run_to_end(arguments).code, Some(2), "{arguments:?}");
    }
    let missing = run_to_end(&["run", "-c", "/no/such/file.toml"]).stderr;
    assert!(missing.contains("/no/such/file.toml"), "{missing}");
}

/// An address of a network for examples (RFC 5737): no host has it.
const NOT_HERE: &str = "203.0.113.9";

#[test]
fn what_may_pass_exits_with_1_so_that_the_service_is_tried_again() {
    let taken = Refusing::new().listen();
    let taken = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("not-mounted");
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let bound = |address: &str| Config { bind: vec![address.to_owned()], ..good() };
    let logged = |path: &Path| Config { log: format!("access = \"{}\"\n", path.display()), ..good() };
    let elsewhere = format!("unix:{}", folder.join("http.sock").display());
    // The value at fault, and a word of the help.
    let cases = [
        (bound(&taken), taken.clone(), "ss -ltnp"),
        (bound(&format!("{NOT_HERE}:8080")), format!("{NOT_HERE}:8080"), "freebind"),
        (bound(&elsewhere), elsewhere.clone(), "mkdir -p"),
        (logged(&folder.join("access.log")), folder.join("access.log").display().to_string(), "stdout"),
        (logged(&fifo), fifo.display().to_string(), "stdout"),
        (logged(dir.path()), dir.path().display().to_string(), "stdout"),
    ];
    for (config, value, help) in cases {
        let ended = run("run", &config, dir.path());
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert_eq!(
            place(&ended.stderr),
            place_of(&format!("\"{value}\""), &config, dir.path()),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains(help), "{}", ended.stderr);
        // Nothing was there before, and the config is good.
        assert!(
            !ended.stderr.contains("nothing has changed") && !ended.stderr.contains("refused"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_check_tells_what_stands_in_the_way_of_a_good_config() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("not-mounted");
    let bind = vec![format!("unix:{}", folder.join("http.sock").display())];
    let log = format!("access = \"{}\"\n", folder.join("access.log").display());
    let ended = run("check", &Config { bind, log, ..good() }, dir.path());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout.matches("warning: ").count(), 2, "{}", ended.stdout);
    for part in
        ["http.sock: No such file", "mkdir -p", "access.log cannot be opened: its folder is not there"]
    {
        assert!(ended.stdout.contains(part), "no word of {part} in {}", ended.stdout);
    }
}

#[test]
fn an_access_log_in_the_config_itself_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let linked = dir.path().join("linked.log");
    std::os::unix::fs::symlink(dir.path().join("edge.toml"), &linked).unwrap();
    for path in [dir.path().join("edge.toml"), linked] {
        let config = Config { log: format!("access = \"{}\"\n", path.display()), ..good() };
        for subcommand in ["run", "check"] {
            let ended = run(subcommand, &config, dir.path());
            assert_eq!(ended.code, Some(2), "{subcommand}: {}", ended.stderr);
            assert!(ended.stderr.contains("is the file of this config"), "{}", ended.stderr);
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("edge.toml")).unwrap(), config.render(dir.path()));
    }
}

#[test]
fn an_address_that_is_not_here_yet_is_bound_where_the_config_says_so() {
    let origin = story::origin();
    // The network of RFC 3849, for the other family.
    let bind = ["127.0.0.1:0".to_owned(), format!("{NOT_HERE}:0"), "[2001:db8::9]:0".to_owned()].to_vec();
    let config = Config { bind, ..Config::to(origin.addr()) };
    let proxy = Proxy::start(&config.listener("socket = { freebind = true }"));
    let addresses = proxy.status()["listeners"][0]["addresses"].to_string();
    assert!(addresses.contains(NOT_HERE) && addresses.contains("[2001:db8::9]"), "{addresses}");
    assert_eq!(proxy.connect().get("/").response().0.status(), 200);
}

#[test]
fn an_address_that_is_taken_exits_with_1_and_leaves_nothing() {
    let taken = Refusing::new().listen();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let free = dir.path().join("free.sock");
    let bind = vec![format!("unix:{}", free.display()), address.clone()];
    let config = Config { bind, ..good() };
    let ended = run("run", &config, dir.path());
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(
        place(&ended.stderr),
        place_of(&format!("\"{address}\""), &config, dir.path()),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains(&address) && ended.stderr.contains("in use"), "{}", ended.stderr);
    assert!(!free.exists(), "the socket of the other address is gone with the process");
    assert!(!dir.path().join("admin.sock").exists(), "the admin socket is gone with the process");
}

#[test]
fn an_address_that_is_said_to_be_shared_is_served_by_several_processes() {
    let origin = story::origin();
    let shared = Config::to(origin.addr()).listener("socket = { shared = true }");
    let first = Proxy::start(&shared);
    let address = first.addr().to_string();
    let second = Proxy::start(&Config { bind: vec![address], ..shared });
    assert_eq!(first.addr(), second.addr());
    let served = |proxy: &Proxy| proxy.metric("millrace_requests_total", &["status_class=\"2xx\""]);
    // The kernel tells by the client's port who gets a connection: half of 64, give or take.
    for _ in 0..64 {
        let mut client = first.connect();
        assert_eq!(client.get("/").response().0.status(), 200);
    }
    first.eventually("each has served its share", |first| {
        let shares = [served(first), served(&second)];
        shares.iter().sum::<u64>() == 64 && shares.iter().all(|share| *share > 0)
    });
}

#[test]
fn the_schema_is_json() {
    let ended = run_to_end(&["schema"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(schema["properties"]["listeners"].is_object());
}

#[test]
fn the_version_is_told() {
    let ended = run_to_end(&["--version"]);
    let expected = format!("millrace-dataplane {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((ended.code, ended.stdout), (Some(0), expected));
}
