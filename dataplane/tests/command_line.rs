//! The command line's contract: exit codes, and messages that say where and what.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::TcpListener;
use std::process::{Command, Output};

use common::{PROGRAM, forward_to};

fn run(arguments: &[&str], config: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.toml");
    std::fs::write(&path, config).unwrap();
    let path = path.to_str().unwrap();
    let arguments = arguments.iter().map(|argument| if *argument == "CONFIG" { path } else { argument });
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn good() -> String {
    forward_to("127.0.0.1:1".parse().unwrap())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_good_config_is_good() {
    let output = run(&["check", "-c", "CONFIG"], &good());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("edge.toml: good\n"));
    let output = run(&["check", "--quiet", "-c", "CONFIG"], &good());
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
}

#[test]
fn a_wrong_config_exits_with_2_and_its_place() {
    let wrong = good().replace("name = \"all\"", "nme = \"all\"");
    for command in ["check", "run"] {
        let output = run(&[command, "-c", "CONFIG"], &wrong);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("edge.toml:5:1: "), "{}", stderr(&output));
    }
}

#[test]
fn unusable_arguments_exit_with_2() {
    for arguments in [&["check"][..], &["nonsense"], &["run", "-c", "/no/such/file.toml"], &[]] {
        assert_eq!(run(arguments, "").status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn an_address_that_is_taken_exits_with_2_and_leaves_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = good().replace("127.0.0.1:0", &address);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let admin = format!("admin = {{ listen = \"off\", socket = \"{}\" }}\n", socket.display());
    let output = run(&["run", "-c", "CONFIG"], &(admin + &config));
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("edge.toml:4:8: ") && message.contains("in use"), "{message}");
    assert!(!socket.exists(), "the admin socket is gone with the process");
}

#[test]
fn the_schema_is_json() {
    let output = run(&["schema"], "");
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(schema["properties"]["listeners"].is_object());
}

#[test]
fn the_version_is_told() {
    let output = run(&["--version"], "");
    assert_eq!(output.status.code(), Some(0));
    let expected = format!("millrace-dataplane {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}
