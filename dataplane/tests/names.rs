//! An endpoint given by name whose addresses change while the program runs. The program has a hosts file of its own, in a
//! mount namespace: that is what the system's resolver reads first. Needs root; without it, these stories are skipped with
//! a word, unless `CI` is set.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use bench::origin::{Address, Origin, OriginOptions};
use serde_json::Value;
use story::config::Config;
use story::wire::Wire;
use story::{DRIVERS, Proxy};

const NAME: &str = "origin.story.test";

/// Runs the rest of its arguments with the first as `/etc/hosts`.
const WITH_HOSTS: &str = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";

/// The hosts file of one proxy.
struct Hosts {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Hosts {
    /// None, with a word, where this user may not give a process another hosts file.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let hosts = Self { path: dir.path().join("hosts"), _dir: dir };
        hosts.say(&[]);
        let tried = hosts.command(Path::new("true")).output().unwrap();
        if !tried.status.success() {
            let why = String::from_utf8_lossy(&tried.stderr).into_owned();
            assert!(std::env::var_os("CI").is_none(), "no hosts file of its own, and CI is set: {why}");
            println!("skipped: a process cannot be given a hosts file of its own: {why}");
            return None;
        }
        Some(hosts)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", WITH_HOSTS]).arg(&self.path).arg(program);
        command
    }

    /// From now on the name has these addresses. The file stays the same one, since it is mounted.
    fn say(&self, addresses: &[Ipv4Addr]) {
        let lines: Vec<String> = addresses.iter().map(|address| format!("{address} {NAME}\n")).collect();
        std::fs::write(&self.path, format!("127.0.0.1 localhost\n{}", lines.concat())).unwrap();
    }
}

/// Two origins on the same port of different addresses of this host.
fn origins() -> ([Origin; 2], [Ipv4Addr; 2], u16) {
    let addresses = [2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last));
    let start = |address, port| {
        let listen = vec![Address::Tcp(SocketAddr::from((address, port)))];
        Origin::start(OriginOptions { listen, ..OriginOptions::default() })
    };
    for _ in 0..20 {
        let first = start(addresses[0], 0).unwrap();
        let port = first.addr().port();
        // Somebody else may have it there.
        if let Ok(second) = start(addresses[1], port) {
            return ([first, second], addresses, port);
        }
    }
    panic!("no port is free on both addresses");
}

/// The addresses that the only cluster has now.
fn resolved(proxy: &Proxy) -> Vec<String> {
    let status = proxy.status();
    let endpoints = status["clusters"][0]["endpoints"].as_array().unwrap();
    let address = |endpoint: &Value| endpoint["address"].as_str().unwrap().to_owned();
    endpoints.iter().map(address).collect()
}

#[test]
fn old_streams_end_where_they_are_and_new_requests_go_to_the_new_address() {
    let Some(hosts) = Hosts::new() else { return };
    for driver in DRIVERS {
        let ([first, second], [before, after], port) = origins();
        let at = |address: Ipv4Addr| format!("{address}:{port}");
        hosts.say(&[before]);
        let config = Config { endpoints: vec![format!("{NAME}:{port}")], ..Config::default() };
        let config = config.driver(driver).cluster("dns_refresh = \"1s\"");
        let proxy = Proxy::start_as(&config, |program| hosts.command(program));
        assert_eq!(resolved(&proxy), [at(before)]);
        // Its answer goes on for as long as the client wants.
        let mut stream = proxy.connect();
        stream.send("POST /echo?raw HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
        assert_eq!(stream.head().status(), 200);
        let mut kept = proxy.connect();
        assert_eq!(kept.get("/").response().0.status(), 200);
        assert_eq!(first.stats().connections.open, 2);

        hosts.say(&[after]);
        proxy.eventually("the new address is known", |proxy| resolved(proxy) == [at(after)]);
        for client in [&mut kept, &mut proxy.connect(), &mut Wire::connect(proxy.addr())] {
            assert_eq!(client.get("/").response().0.status(), 200);
        }
        assert_eq!((first.stats().requests.total, second.stats().requests.total), (2, 3), "{driver}");
        proxy.eventually("only the stream keeps the old address", |_| first.stats().connections.open == 1);
        stream.send("5\r\nended\r\n0\r\n\r\n");
        assert_eq!(stream.try_chunked().unwrap().0, b"begunended", "{driver}");
        assert_eq!(first.stats().aborts.total, 0, "{driver}");
        proxy.eventually("nothing keeps the old address", |_| first.stats().connections.open == 0);
        assert_eq!(proxy.status()["generation"], 1, "nobody has changed the config");

        // The name is not known any more: the last good answer stays.
        hosts.say(&[]);
        proxy.eventually("the failure is told of", |proxy| proxy.output().contains("a look-up failed"));
        assert_eq!(resolved(&proxy), [at(after)]);
        assert_eq!(proxy.connect().get("/").response().0.status(), 200, "{driver}");

        hosts.say(&[after, before]);
        proxy.eventually("both are known", |proxy| resolved(proxy) == [at(before), at(after)]);
        proxy.assert_sound();
    }
}
