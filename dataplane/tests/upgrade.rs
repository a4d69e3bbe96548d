//! A binary upgrade: a new process takes over under load, no connection is refused, no stream is cut, and what the old
//! process had goes to the new one; one that fails changes nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod story;

use std::path::Path;

use rustix::process::Signal;
use story::config::Config;
use story::load::{Load, Mix};
use story::wire::Wire;
use story::{DRIVERS, Proxy, origin};

/// Whether a process that is no child of this one is still at work.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    // The state stands behind the name, which ends with the last parenthesis.
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

#[test]
fn upgrades_in_a_row_under_load_lose_nothing() {
    upgrade_during(Mix { streams: 100, events: 60, events_per_second: 10, keep_alive: 4, fresh: 4 }, 4);
}

#[test]
#[ignore = "takes minutes; `cargo test -p dataplane --test upgrade -- --ignored --nocapture` shows the promised figures"]
fn twenty_upgrades_under_load_lose_nothing() {
    upgrade_during(Mix { streams: 500, events: 120, events_per_second: 2, keep_alive: 50, fresh: 10 }, 20);
}

/// Upgrades so many times in a row while such a load goes on, and holds that nobody notices.
fn upgrade_during(mix: Mix, upgrades: usize) {
    for driver in DRIVERS {
        let origin = origin();
        let mut proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let addr = proxy.addr();
        let load = Load::start(addr, mix);
        let mut pids = vec![proxy.pid()];
        for _ in 0..upgrades {
            let asked = load.requests();
            proxy.signal(Signal::USR2);
            proxy.await_successor();
            pids.push(proxy.pid());
            assert_eq!(proxy.addr(), addr, "the port that the kernel chose is still the same");
            proxy.eventually("traffic goes on", |_| load.requests() > asked + 50);
        }
        assert_eq!(load.streams_ended(), 0, "the upgrades took longer than the streams");
        let report = load.finish();
        println!(
            "{driver}, {upgrades} upgrades: {} streams, {} events, {} requests, {} connections",
            report.streams_whole, report.events, report.requests, report.reconnects
        );
        assert!(report.losses.is_empty(), "{driver}: {:#?}", report.losses);
        assert_eq!(
            (report.streams_whole, report.events),
            (mix.streams as u64, mix.streams as u64 * mix.events),
            "{driver}"
        );
        assert!(proxy.wait().success(), "{driver}: the first process\n{}", proxy.output());
        for pid in &pids[..upgrades] {
            proxy.eventually("the old processes end", |_| !is_alive(*pid));
        }
        assert_eq!(Wire::connect(addr).get("/").response().0.status(), 200);
        proxy.assert_sound();
    }
}

#[test]
fn a_new_process_that_fails_leaves_the_old_one_serving() {
    let origin = origin();
    let proxy = Proxy::before(&origin);
    proxy.write_config(&Config::to(origin.addr()).route("nonsense = 1"));
    proxy.signal(Signal::USR2);
    proxy.eventually("the failure is told of", |proxy| proxy.output().contains("the upgrade failed"));
    assert_eq!(proxy.connect().get("/").response().0.status(), 200);
    assert_eq!(proxy.status()["pid"], proxy.pid());
}

#[test]
fn a_config_that_came_over_the_api_goes_from_process_to_process() {
    let (file, api) = (origin(), origin());
    let mut proxy = Proxy::before(&file);
    let config = Config::to(api.addr());
    assert_eq!(proxy.put_config(&config).0, 200);
    // Twice: the process that was left the config has to leave it to the next one.
    for _ in 0..2 {
        proxy.signal(Signal::USR2);
        proxy.await_successor();
        assert_eq!(proxy.text("/config"), config.render(proxy.dir()));
    }
    assert_eq!(proxy.connect().get("/").response().0.status(), 200);
    assert_eq!((file.stats().requests.total, api.stats().requests.total), (0, 1));
}

#[test]
fn another_number_of_workers_takes_all_sockets_over() {
    let origin = origin();
    for (before, after) in [(4, 1), (1, 3)] {
        let workers = |count| Config::to(origin.addr()).workers(count);
        let mut proxy = Proxy::start(&workers(before));
        let addr = proxy.addr();
        proxy.write_config(&workers(after));
        proxy.signal(Signal::USR2);
        proxy.await_successor();
        assert_eq!(proxy.status()["workers"], after);
        assert!(proxy.wait().success(), "{}", proxy.output());
        // The kernel spreads them over all sockets: one that nobody took over would keep some of them waiting.
        for _ in 0..30 {
            assert_eq!(Wire::connect(addr).get("/").response().0.status(), 200);
        }
    }
}
