//! A new binary takes over under load, and a drain ends one: no connection is refused, no stream is cut. What an upgrade
//! is, one step at a time, is told in `upgrade`.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::path::Path;

use rustix::process::Signal;
use story::config::Config;
use story::load::{Load, Mix};
use story::wire::{End, Wire};
use story::{DRIVERS, Proxy, origin};

const UPGRADES: usize = 4;

/// Whether a process that is no child of this one is still at work.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    // The state stands behind the name, which ends with the last parenthesis.
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

#[test]
fn upgrades_in_a_row_under_load_lose_nothing() {
    for driver in DRIVERS {
        let origin = origin();
        let mut proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let addr = proxy.addr();
        let mix = Mix { streams: 100, events: 60, events_per_second: 10, keep_alive: 4, fresh: 4 };
        let load = Load::start(addr, mix);
        let mut pids = vec![proxy.pid()];
        for _ in 0..UPGRADES {
            let asked = load.requests();
            proxy.signal(Signal::USR2);
            proxy.await_successor();
            pids.push(proxy.pid());
            assert_eq!(proxy.addr(), addr, "the address moved");
            proxy.eventually("traffic goes on", |_| load.requests() > asked + 50);
        }
        assert_eq!(load.streams_ended(), 0, "the upgrades took longer than the streams");
        let report = load.finish();
        println!(
            "{driver}, {UPGRADES} upgrades: {} streams, {} events, {} requests, {} connections",
            report.streams_whole, report.events, report.requests, report.reconnects
        );
        assert!(report.losses.is_empty(), "{driver}: {:#?}", report.losses);
        assert_eq!((report.streams_whole, report.events), (100, 6000), "{driver}");
        assert!(proxy.wait().success(), "{driver}: the first process\n{}", proxy.output());
        for pid in &pids[..UPGRADES] {
            proxy.eventually("the old processes end", |_| !is_alive(*pid));
        }
        assert_eq!(proxy.connect().get("/").response().0.status(), 200);
        proxy.assert_sound();
    }
}

#[test]
fn a_drain_lets_streams_finish_and_says_close_to_the_others() {
    for driver in DRIVERS {
        let origin = origin();
        let mut proxy = Proxy::start(&Config::to(origin.addr()).driver(driver));
        let addr = proxy.addr();
        let mut streams: Vec<Wire> = (0..20).map(|_| proxy.connect()).collect();
        for stream in &mut streams {
            stream.get("/sse?tokens=40&tokens_per_second=20");
            stream.head();
        }
        let mut kept = proxy.connect();
        assert_eq!(kept.get("/").response().0.status(), 200);
        proxy.signal(Signal::TERM);
        proxy.eventually("it drains", |proxy| proxy.status()["draining"] == true);
        proxy.eventually("nobody listens", |_| Wire::try_connect(addr).is_err());
        // A connection that was kept is served once more, and told that this was all.
        let (head, _) = kept.get("/").response();
        assert_eq!(head.status(), 200, "{driver}");
        assert_eq!(
            head.field("Connection").map(str::to_ascii_lowercase).as_deref(),
            Some("close"),
            "{driver}"
        );
        assert_eq!(kept.end().1, End::Fin);
        for stream in &mut streams {
            let (body, _) = stream.try_chunked().unwrap();
            assert_eq!(String::from_utf8(body).unwrap().matches("data: ").count(), 40, "{driver}");
        }
        drop(streams);
        assert_eq!(proxy.wait().code(), Some(0), "{driver}");
    }
}

#[test]
fn a_drain_ends_with_its_deadline_and_streams_do_not_look_whole() {
    for driver in DRIVERS {
        let origin = origin();
        let config = Config::to(origin.addr()).driver(driver).limits("drain_timeout = \"500ms\"");
        let mut proxy = Proxy::start(&config);
        let mut stream = proxy.connect();
        stream.get("/sse?stall_at=3&tokens_per_second=0");
        let head = stream.head();
        proxy.signal(Signal::TERM);
        assert!(stream.try_body(&head).is_err(), "{driver}: the stream looks whole");
        assert_eq!(proxy.wait().code(), Some(0), "{driver}");
    }
}
