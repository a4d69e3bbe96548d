//! `millrace-bench compare` from its command line on: who is measured, who is missing, wrong or dead, and what the
//! report says of them. No figure is asserted, only that there is one and of whom.

#![cfg(feature = "measure")]
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bench::contest::{Contestant, Fault};
use bench::floor::Kind;
use bench::report::{Figure, Report, Row, Table, Verdict};

/// A program that takes the arguments of our data plane and behaves as the script says; `$listen` is the address of
/// its configuration, `$origin` that of the origin behind it.
fn stand_in(dir: &Path, name: &str, script: &str) -> PathBuf {
    let path = dir.join(name);
    let bench = env!("CARGO_BIN_EXE_millrace-bench");
    let text = format!(
        "#!/bin/bash\nif [ \"$1\" = --version ]; then echo {name} 0.0.1; exit; fi\n\
         listen=$(sed -n 's/^bind = \"\\(.*\\)\"$/\\1/p' \"$3\")\n\
         origin=$(sed -n 's/.*address = \"\\([^\"]*\\)\".*/\\1/p' \"$3\")\n\
         bench='{bench}'\n{script}\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn compare(out: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millrace-bench"))
        .arg("compare")
        .args(["--duration", "200ms", "--out"])
        .arg(out)
        .args(arguments)
        .output()
        .unwrap()
}

/// A comparison that ends well, with what it wrote.
fn compared(arguments: &[&str]) -> (Report, String) {
    let out = tempfile::tempdir().unwrap();
    let output = compare(out.path(), arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = fs::read_to_string(out.path().join("report.json")).unwrap();
    let markdown = fs::read_to_string(out.path().join("report.md")).unwrap();
    (serde_json::from_str(&text).unwrap(), markdown)
}

fn table(row: &Row, figure: Figure) -> &Table {
    row.tables.iter().find(|table| table.figure == figure).unwrap()
}

fn samples(row: &Row, contestant: Contestant) -> &[f64] {
    &row.main_table().unwrap().entries.iter().find(|entry| entry.contestant == contestant).unwrap().samples
}

/// One that relays everything as it should.
const HONEST: &str = "exec \"$bench\" floor --listen \"$listen\" --to \"$origin\" --kind epoll";

/// One that is honest until more connections have come than the first question takes. It waits without children, which
/// would be gone when their CPU time is to be read.
const DIES_UNDER_LOAD: &str = "\"$bench\" floor --listen \"$listen\" --to \"$origin\" --kind epoll &
mkfifo \"$3.fifo\"; exec 9<>\"$3.fifo\"
files=()
while ((${#files[@]} < 20)); do read -rt 0.01 -u 9; files=(/proc/$!/fd/*); done
kill $!
exit 4";

#[test]
fn every_row_is_measured_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let ours = stand_in(dir.path(), "honest", HONEST);
    let program = format!("millrace={}", ours.display());
    let smoke = |rows: &str, contestants: &str| {
        let rest = ["--rounds", "1", "--program", &program];
        compared(&[&["--rows", rows, "--contestants", contestants], &rest[..]].concat())
    };
    let everybody = [Contestant::Millrace, Contestant::Relay(Kind::Ring)];
    let (report, markdown) =
        smoke("get-64,post-4k,latency-30,sse-1k,body-64k,churn,overload", "millrace,ring");
    assert_eq!(report.rows.len(), 7);
    report.rows.iter().for_each(|row| assert_measured(row, &everybody));
    // The ring's buffers are fewer than so many slow readers would take, and it has no connections to keep.
    let (alone, _) = smoke("idle-8k,slow-readers", "millrace");
    alone.rows.iter().for_each(|row| assert_measured(row, &everybody[..1]));
    let costs = table(&report.rows[0], Figure::CpuPerRequestUs);
    assert!(costs.entries.iter().all(|entry| entry.samples[0] > 0.5), "{costs:?}");
    assert_eq!(costs.verdict, Some(Verdict::NoRival));
    assert!(markdown.contains("too few"), "{markdown}");
}

#[test]
fn tools_that_people_know_make_the_load_of_a_row() {
    for tool in ["wrk", "hey"] {
        if Command::new(tool).arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "CI is set, and there is no {tool}");
            println!("skipped: there is no {tool}");
            continue;
        }
        let rest = ["--rounds", "1", "--contestants", "ring,epoll", "--tool", tool];
        let (report, markdown) = compared(&[&["--rows", "get-64"], &rest[..]].concat());
        let everybody = [Contestant::Relay(Kind::Ring), Contestant::Relay(Kind::Epoll)];
        assert_measured(&report.rows[0], &everybody);
        let answered = table(&report.rows[0], Figure::RequestsPerS);
        assert!(answered.entries.iter().all(|entry| entry.samples[0] > 100.0), "{answered:?}");
        assert!(markdown.contains(tool), "the report does not say what made the load: {markdown}");
    }
}

/// On a machine that is busy the generator may not keep up, which is a fault that has a name; nothing else may be.
fn assert_measured(row: &Row, contestants: &[Contestant]) {
    for failure in &row.failures {
        assert!(matches!(failure.fault, Fault::Saturated(_)), "{}: {failure:?}", row.name);
    }
    for contestant in contestants {
        let has_failed = row.failures.iter().any(|failure| failure.contestant == *contestant);
        assert!(has_failed || samples(row, *contestant).len() == 1, "{}: {contestant}", row.name);
    }
}

#[test]
fn who_is_missing_wrong_or_dead_is_named_and_wins_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (name, script, is_expected) in [
        (
            "wrong-from-the-start",
            "exec \"$bench\" origin --listen \"$listen\" --knob status=500",
            is_wrong as fn(&Fault) -> bool,
        ),
        ("dead-from-the-start", "echo out of luck >&2; exit 3", is_dead),
        ("dead-in-the-middle", DIES_UNDER_LOAD, is_dead),
        // Its bytes are right when it is first asked for them; the greeting of the row is another.
        ("wrong-in-the-middle", "exec \"$bench\" origin --listen \"$listen\" --knob cut_at=4000", is_wrong),
    ] {
        let ours = stand_in(dir.path(), name, script);
        let program = format!("millrace={}", ours.display());
        let arguments =
            ["--rows", "body-64k", "--rounds", "2", "--contestants", "millrace,ring", "--program", &program];
        let (report, markdown) = compared(&arguments);
        let row = &report.rows[0];
        assert_eq!(row.failures.len(), 1, "{name}: {markdown}");
        assert!(is_expected(&row.failures[0].fault), "{name}: {:?}", row.failures[0]);
        assert_eq!(row.main_table().unwrap().verdict, Some(Verdict::Failed), "{name}: {markdown}");
        assert!(markdown.contains("| millrace (does not count) |"), "{name}: {markdown}");
    }
}

fn is_wrong(fault: &Fault) -> bool {
    matches!(fault, Fault::Wrong(_))
}

fn is_dead(fault: &Fault) -> bool {
    matches!(fault, Fault::Died(_))
}

#[test]
fn a_rival_that_is_missing_is_named() {
    let (report, markdown) = compared(&[
        "--rows",
        "get-64",
        "--rounds",
        "1",
        "--contestants",
        "ring,haproxy",
        "--program",
        "haproxy=/nonexistent/haproxy",
    ]);
    assert!(matches!(report.rows[0].failures[0].fault, Fault::Missing(_)), "{markdown}");
    assert!(report.entrants.iter().any(|entrant| entrant.program.is_none()), "{markdown}");
    assert!(markdown.contains("haproxy: not installed: /nonexistent/haproxy"), "{markdown}");
}

#[test]
fn what_cannot_be_compared_is_refused_at_once() {
    let out = tempfile::tempdir().unwrap();
    for (arguments, part) in [
        (&["--rows", "7"][..], "there is no row \"7\""),
        (&["--contestants", "apache"], "there is no contestant \"apache\""),
        (&["--proxy-cpu", "999"], "may not use CPU 999"),
        (&["--duration", "1ms"], "at least 100ms"),
        (&["--program", "nginx"], "write NAME=PATH"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_millrace-bench"))
            .args(["compare", "--out"])
            .arg(out.path().join("none"))
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    assert!(!out.path().join("none").exists());
}
