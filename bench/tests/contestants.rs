//! Contestants as they are run: the programs that are installed like their configurations, and each passes right bytes
//! on. What they cost is not asked here. A contestant that is not installed is said to be skipped, and where CI is set
//! none may be.

#![cfg(feature = "measure")]
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::Path;

use bench::contest::{Contestant, Fault, Program, Role, Running, Seat, free_address};
use bench::origin::{Origin, OriginOptions};

/// Where the programs of this workspace are.
fn built(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_BIN_EXE_millrace-bench")).with_file_name(name)
}

/// The installed contestants with their programs. Ours is there only if it has been built; it stands for an earlier build of
/// itself, too.
fn installed() -> Vec<(Contestant, Program)> {
    let given = |contestant: Contestant| match contestant.role() {
        Role::Ours => Some(built("millrace-dataplane")).filter(|path| path.exists()),
        Role::Rival if contestant == Contestant::MillraceBefore => {
            Some(built("millrace-dataplane")).filter(|path| path.exists())
        }
        Role::Relay | Role::Floor if contestant != Contestant::NginxStream => Some(built("millrace-bench")),
        Role::Rival | Role::Relay | Role::Floor => None,
    };
    let found = Contestant::ALL.into_iter().filter_map(|contestant| {
        match contestant.find(given(contestant).as_deref()) {
            Ok(program) => Some((contestant, program)),
            Err(Fault::Missing(why)) => {
                assert!(std::env::var_os("CI").is_none(), "CI is set, and {contestant} is missing: {why}");
                println!("skipped: {contestant}: {why}");
                None
            }
            Err(other) => panic!("{contestant}: {other}"),
        }
    });
    found.collect()
}

#[test]
fn programs_like_their_configurations() {
    let mut checked = 0;
    for (contestant, program) in installed() {
        let dir = tempfile::tempdir().unwrap();
        let [listen, origin] = [free_address().unwrap(), free_address().unwrap()];
        let seat = Seat { listen, origin, dir: dir.path().to_owned() };
        contestant.configure(&seat, &program).unwrap();
        let Some(mut check) = contestant.check_command(&seat, &program) else { continue };
        let output = check.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{contestant}: {said}");
        assert!(!said.to_lowercase().contains("warn"), "{contestant}: {said}");
        checked += 1;
    }
    println!("{checked} configurations checked");
}

#[test]
fn every_installed_contestant_answers_as_the_origin_does() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    let installed = installed();
    assert!(installed.len() >= 5, "the relays at least are always there");
    for (contestant, program) in installed {
        let before = origin.stats().requests.total;
        let running = Running::start(contestant, &program, origin.addr(), 0)
            .unwrap_or_else(|fault| panic!("{contestant} {fault}"));
        assert!(origin.stats().requests.total > before, "{contestant}: the origin was not asked");
        let dir = running.seat.dir.clone();
        let pids = running.process.pids();
        drop(running);
        assert!(!dir.exists(), "{contestant}: its folder is left");
        for pid in pids {
            assert!(!is_alive(pid), "{contestant}: process {pid} is left");
        }
    }
}

/// Zombies are not alive: whoever inherited them has not looked yet.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}
