//! An endpoint given by name: its addresses change while the program runs, nobody knows it, or the resolver is in trouble.
//! The program has a hosts file of its own, in a mount namespace: that is what the system's resolver reads first; and, where
//! a story wants it, a name server of its own. Needs root; without it, these stories are skipped with a word, unless `CI` is
//! set.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use bench::origin::{Address, Origin, OriginOptions};
use rustix::process::Signal;
use serde_json::Value;
use story::config::Config;
use story::wire::Wire;
use story::{DRIVERS, Proxy};

const NAME: &str = "origin.story.test";

/// Runs the rest of its arguments with the first as `/etc/hosts`.
const WITH_HOSTS: &str = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";

/// As [`WITH_HOSTS`], with `RESOLV_CONF` as `/etc/resolv.conf`.
const WITH_RESOLVER: &str =
    "mount --bind \"$0\" /etc/hosts && mount --bind \"$RESOLV_CONF\" /etc/resolv.conf && exec \"$@\"";

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

    /// As `command`, with a name server of this test.
    fn command_with(&self, server: &NameServer, program: &Path) -> Command {
        let resolv = self.path.with_file_name("resolv.conf");
        // One try that takes longer than any test has patience for.
        std::fs::write(&resolv, format!("nameserver {}\noptions timeout:30 attempts:1\n", server.0)).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", WITH_RESOLVER]).arg(&self.path).arg(program);
        command.env("RESOLV_CONF", resolv);
        command
    }

    /// From now on the name has these addresses. The file stays the same one, since it is mounted.
    fn say(&self, addresses: &[Ipv4Addr]) {
        let lines: Vec<String> = addresses.iter().map(|address| format!("{address} {NAME}\n")).collect();
        std::fs::write(&self.path, format!("127.0.0.1 localhost\n{}", lines.concat())).unwrap();
    }
}

/// A name server on an address of this host's own network that nobody else uses: its port cannot be chosen
/// (resolv.conf(5)).
struct NameServer(Ipv4Addr);

#[derive(Clone, Copy, Debug)]
enum Answers {
    /// "I cannot tell", to every question.
    ServFail,
    /// None.
    Nothing,
}

impl NameServer {
    fn start(answers: Answers) -> Self {
        let free = (1..=254).find_map(|last| {
            let address = Ipv4Addr::new(127, 53, 53, last);
            UdpSocket::bind((address, 53)).ok().map(|socket| (address, socket))
        });
        let (address, socket) = free.expect("an address whose port 53 is free");
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                let message = &mut question[..length];
                if matches!(answers, Answers::ServFail) && length > 3 {
                    // QR, and RCODE 2 (RFC 1035, section 4.1.1).
                    message[2] |= 0x80;
                    message[3] = message[3] & 0xf0 | 2;
                    let _ = socket.send_to(message, from);
                }
            }
        });
        Self(address)
    }
}

/// A config whose route `/bytes/` leads to the name, and everything else to `origin`.
fn with_partner(origin: &Origin, port: u16, driver: &str) -> Config {
    Config::to(origin.addr()).driver(driver).more(&format!(
        "[[routes]]\nname = \"partner\"\npath = \"/bytes/\"\ncluster = \"partner\"\n\
         [[clusters]]\nname = \"partner\"\ndns_refresh = \"1s\"\nendpoints = [{{ address = \"{NAME}:{port}\" }}]"
    ))
}

fn status_of(proxy: &Proxy, path: &str) -> u16 {
    proxy.connect().get(path).response().0.status()
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

#[test]
fn a_name_that_nobody_knows_keeps_nothing_else_from_being_served() {
    let Some(hosts) = Hosts::new() else { return };
    for driver in DRIVERS {
        let ([origin, _partner], [_, address], port) = origins();
        hosts.say(&[]);
        let config = with_partner(&origin, port, driver);
        let mut proxy = Proxy::start_as(&config, |program| hosts.command(program));
        assert_eq!((status_of(&proxy, "/"), status_of(&proxy, "/bytes/1KiB")), (200, 503), "{driver}");
        let endpoint = format!("{NAME}:{port}");
        let told = format!("the cluster \"partner\" has no address for {endpoint}: ");
        assert_eq!(proxy.output().matches(&told).count(), 1, "{}", proxy.output());
        let shown = proxy.status()["clusters"][1]["endpoints"][0].clone();
        assert_eq!((&shown["name"], &shown["address"]), (&endpoint.clone().into(), &Value::Null), "{shown}");
        assert_eq!(shown["healthy"], false);
        assert!(!shown["unresolved"]["error"].as_str().unwrap().is_empty(), "{shown}");
        assert!(shown["unresolved"]["since"].as_str().unwrap().ends_with('Z'), "{shown}");
        let labels = format!("endpoint=\"{endpoint}\"");
        assert_eq!(proxy.metric("millrace_endpoint_resolved", &[&labels]), 0);
        assert!(
            proxy.text("/metrics").contains(&format!("{{cluster=\"partner\",{labels},address=\"\"}} 0\n"))
        );
        assert_eq!(proxy.metric("millrace_cluster_no_endpoint_total", &["cluster=\"partner\""]), 1);
        proxy.eventually("it is asked for again", |proxy| {
            proxy.metric("millrace_name_failures_total", &[]) >= 2
        });

        // A reload is no reason to refuse it either, neither for that cluster nor for another one.
        let warnings = |config: &Config| {
            let (status, answer) = proxy.put_config(config);
            assert_eq!(status, 200, "{answer}");
            answer["warnings"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|text| text.as_str().unwrap().contains("no address"))
                .count()
        };
        assert_eq!(warnings(&config), 1);
        let other = config.clone().more(
            "[[routes]]\nname = \"other\"\npath = \"/other/\"\ncluster = \"other\"\n\
             [[clusters]]\nname = \"other\"\nendpoints = [{ address = \"other.story.test:1\" }]",
        );
        assert_eq!(warnings(&other), 2);
        assert_eq!((status_of(&proxy, "/"), status_of(&proxy, "/other/")), (200, 503), "{driver}");
        // A cluster that has changed: the same name with another port is looked up by itself.
        let changed = with_partner(&origin, port - 1, driver);
        assert_eq!((warnings(&changed), warnings(&config)), (1, 1));

        hosts.say(&[address]);
        proxy.eventually("the name is there", |proxy| status_of(proxy, "/bytes/1KiB") == 200);
        let is_there =
            |line: &str| line.contains("the name is there now") && line.contains("clusters=\"partner\"");
        assert_eq!(proxy.output().lines().filter(|line| is_there(line)).count(), 1, "{}", proxy.output());
        assert_eq!(proxy.metric("millrace_endpoint_resolved", &[&labels]), 1);
        let shown = proxy.status()["clusters"][1]["endpoints"][0].clone();
        assert!(shown["unresolved"].is_null() && shown["address"] == format!("{address}:{port}"), "{shown}");

        // The process that takes over asks anew, and goes on with what this one knew.
        hosts.say(&[]);
        proxy.write_config(&config);
        proxy.signal(Signal::USR2);
        proxy.await_successor();
        assert_eq!((status_of(&proxy, "/"), status_of(&proxy, "/bytes/1KiB")), (200, 200), "{driver}");
        proxy.assert_sound();
    }
}

#[test]
fn a_resolver_in_trouble_keeps_nobody_waiting() {
    let Some(hosts) = Hosts::new() else { return };
    hosts.say(&[]);
    for answers in [Answers::ServFail, Answers::Nothing] {
        let ([origin, _partner], [_, address], port) = origins();
        let server = NameServer::start(answers);
        let config = with_partner(&origin, port, DRIVERS[0]);
        let proxy = Proxy::start_as(&config, |program| hosts.command_with(&server, program));
        assert_eq!((status_of(&proxy, "/"), status_of(&proxy, "/bytes/1KiB")), (200, 503), "{answers:?}");
        assert_eq!(proxy.put_config(&config.clone().limits("connections = 7")).0, 200, "{answers:?}");
        let error = proxy.status()["clusters"][1]["endpoints"][0]["unresolved"]["error"].to_string();
        match answers {
            Answers::Nothing => assert!(error.contains("has not answered yet"), "{error}"),
            Answers::ServFail => {
                hosts.say(&[address]);
                proxy.eventually("the name is there", |proxy| status_of(proxy, "/bytes/1KiB") == 200);
                hosts.say(&[]);
            }
        }
        assert!(proxy.stop().success(), "a look-up that is under way keeps the process from ending");
    }
}
