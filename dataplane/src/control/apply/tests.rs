//! Configs applied to real workers, with real sockets on ports that the kernel chooses.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use dataplane_core::snapshot::plan::BindAt;
use proto::config::{Bind, SocketOptions};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::*;
use crate::control::node::Unready;
use crate::control::node::tests::TestNode;
use crate::control::refusal::Cause;
use crate::sys::socket;

/// A config of one listener, with `bind` and `more` as its keys, in front of one origin.
fn text(bind: &str, more: &str, origin: SocketAddr) -> String {
    format!(
        "[[listeners]]\nname = \"http\"\nbind = \"{bind}\"\n{more}\n[[routes]]\nname = \"all\"\ncluster = \"web\"\n\
         [[clusters]]\nname = \"web\"\nendpoints = [{{ address = \"{origin}\" }}]\n"
    )
}

/// Answers every connection's first request with 200 and its own name.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\norigin";
                let _ = stream.write_all(answer).await;
            });
        }
    });
    address
}

/// The whole answer to a request on a new connection.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.expect("nobody answers").unwrap();
    answer
}

/// What is waited for comes within this, or the test fails.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

async fn assert_serves(address: SocketAddr) {
    let answer = ask(TcpStream::connect(address).await.unwrap()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\norigin"), "{answer}");
}

/// Where the listener with this name is bound.
fn address(node: &Node, listener: &str) -> SocketAddr {
    let applied = node.applied().unwrap();
    let bound = applied.bound.iter().find(|bound| bound.listener == listener).unwrap();
    match bound.actual {
        Bind::Tcp(address) => address,
        Bind::Unix(_) => panic!("{listener} is no TCP listener"),
    }
}

/// How many of so many connections the node lets in.
fn connections_admitted(node: &Node, tries: usize) -> usize {
    let admitted = (0..tries).filter(|_| node.admission.try_connection(|| 0)).count();
    (0..admitted).for_each(|_| node.admission.release_connection());
    admitted
}

/// Warnings beside the one that this host's limit of open files may be worth.
fn others(outcome: &Outcome) -> Vec<String> {
    let is_of_files = |warning: &&String| warning.contains("open files");
    outcome.warnings.iter().filter(|warning| !is_of_files(warning)).cloned().collect()
}

fn applier(node: &TestNode) -> Applier {
    Applier::new(Arc::clone(node), Vec::new())
}

#[tokio::test]
async fn serves_by_what_was_applied() {
    let node = TestNode::start(2);
    let mut applier = applier(&node);
    let outcome = applier.apply(&text("127.0.0.1:0", "", origin().await)).await.unwrap();
    assert_eq!((outcome.generation, others(&outcome)), (1, Vec::new()));
    for _ in 0..8 {
        assert_serves(address(&node, "http")).await;
    }
    assert_eq!(node.unready(), None);
}

/// What a worker is made to panic by is a config that was built for fewer workers: it finds nothing of its own there.
#[tokio::test]
async fn a_worker_that_panics_gets_its_sockets_again_and_cuts_nobody() {
    let [node, smaller] = [2, 1].map(TestNode::start);
    let [mut applier, mut other] = [&node, &smaller].map(applier);
    let origin = echo().await;
    let config = text("127.0.0.1:0", "", origin);
    applier.apply(&config).await.unwrap();
    other.apply(&config).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n";
    let mut begun = Vec::new();
    for _ in 0..16 {
        let mut client = TcpStream::connect(address(&node, "http")).await.unwrap();
        client.write_all(&[&head[..], b"abc"].concat()).await.unwrap();
        begun.push(client);
    }
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(address(&node, "http")).await.unwrap());
    }
    eventually(|| node.streams() == 16 && node.connections() == 32).await;
    let on_second = node.worker_stats[1].requests_in_flight.value();
    let silent_on_first = node.worker_stats[0].connections.value() - (16 - on_second);
    assert!(on_second > 0 && silent_on_first < 16, "the kernel gave all of them to one worker");

    node.workers.post(1, Order::Apply(Arc::clone(&smaller.applied().unwrap().live)));
    eventually(|| node.workers.restarts() == [0, 1] && node.workers.are_running()).await;
    assert_eq!(node.unready(), Some(Unready::WorkerDown), "it turns again, but has nothing to serve");
    assert_eq!(node.streams(), 16, "what it had begun goes on");
    applier.equip(1);
    eventually(|| node.unready().is_none()).await;

    let mut ended = 0;
    for mut client in begun {
        client.write_all(b"def").await.unwrap();
        let mut answer = [0; 4096];
        let count = tokio::time::timeout(PATIENCE, client.read(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("abcdef"), "{answer}");
        ended += u64::from(answer.contains("Connection: close"));
    }
    assert_eq!(ended, on_second, "its connections end with what they had begun, the others stay");
    for client in &mut silent[..8] {
        client.write_all(&[&head[..], b"abcdef"].concat()).await.unwrap();
        let mut status = [0; 12];
        tokio::time::timeout(PATIENCE, client.read_exact(&mut status)).await.unwrap().unwrap();
        assert_eq!(&status, b"HTTP/1.1 200", "a client that was silent is still served");
    }
    // Nobody is left waiting at a socket that no one accepts on.
    for _ in 0..40 {
        let mut client = TcpStream::connect(address(&node, "http")).await.unwrap();
        client.write_all(&[&head[..], b"abcdef"].concat()).await.unwrap();
        let read = tokio::time::timeout(PATIENCE, client.read(&mut [0; 4096])).await;
        assert!(read.expect("nobody answers").unwrap() > 0);
    }
    eventually(|| node.connections() == silent_on_first && node.worker_stats[1].connections.value() == 0)
        .await;
    drop(silent);
}

/// Answers each request with its body of six bytes.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.windows(10).any(|end| end.starts_with(b"\r\n\r\n")) {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let body = &request[request.len() - 6..];
                let answer =
                    [&b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n"[..], body];
                let _ = stream.write_all(&answer.concat()).await;
            });
        }
    });
    address
}

async fn eventually(done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "it does not come about");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_refused_config_changes_nothing() {
    let node = TestNode::start(1);
    let mut applier = applier(&node);
    let origin = origin().await;
    let before = text("127.0.0.1:0", "", origin);
    applier.apply(&before).await.unwrap();
    let served = node.applied().unwrap();

    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.sock");
    let log = dir.path().join("access.log");
    let binds = format!("bind = [\"unix:{}\", \"{}\"]", path.display(), taken.local_addr().unwrap());
    let refused = before.replace("bind = \"127.0.0.1:0\"", &binds)
        + &format!("[log]\naccess = \"{}\"\n[limits]\nconnections = 7\n", log.display());
    let refusal = applier.apply(&refused).await.unwrap_err();

    assert_eq!(refusal.cause(), Cause::Address);
    assert!(refusal.summary().contains("in use"), "{}", refusal.summary());
    assert!(!path.exists(), "the socket that could be bound is gone again");
    assert!(Arc::ptr_eq(&served, &node.applied().unwrap()));
    assert!(connections_admitted(&node, 8) == 8, "the limits are the old ones");
    assert_serves(address(&node, "http")).await;
}

#[tokio::test]
async fn keeps_pool_when_cluster_is_unchanged() {
    let node = TestNode::start(1);
    let mut applier = applier(&node);
    let origin = origin().await;
    let first = text("127.0.0.1:0", "", origin);
    applier.apply(&first).await.unwrap();
    let before = node.applied().unwrap();
    let outcome = applier.apply(&(first + "[limits]\nconnections = 7\n")).await.unwrap();
    let after = node.applied().unwrap();
    assert_eq!(outcome.generation, 2);
    let (before, after) = (&before.live.shelves, &after.live.shelves);
    assert_eq!(before.len(), 1);
    assert!(before.iter().all(|(id, shelves)| after.get(id).is_some_and(|kept| Arc::ptr_eq(kept, shelves))));
    assert_eq!(connections_admitted(&node, 8), 7);
}

#[tokio::test]
async fn other_socket_options_are_set_on_the_sockets_that_listen() {
    let node = TestNode::start(2);
    let mut applier = applier(&node);
    let origin = origin().await;
    applier.apply(&text("127.0.0.1:0", "", origin)).await.unwrap();
    let address = address(&node, "http");
    let sockets: Vec<RawFd> = applier.sockets()[0].fds.iter().map(AsRawFd::as_raw_fd).collect();
    applier.apply(&text("127.0.0.1:0", "socket = { notsent_lowat = \"64KiB\" }", origin)).await.unwrap();
    let [open] = applier.sockets() else { panic!("one address, not {:?}", applier.sockets()) };
    assert_eq!(open.fds.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(), sockets);
    assert_eq!(notsent_lowat(open), [65536, 65536]);
    for _ in 0..8 {
        assert_serves(address).await;
    }
}

#[tokio::test]
async fn a_buffer_size_is_given_back_by_opening_anew_on_the_same_port() {
    let node = TestNode::start(2);
    let mut applier = applier(&node);
    let origin = origin().await;
    applier.apply(&text("127.0.0.1:0", "socket = { send_buffer = \"64KiB\" }", origin)).await.unwrap();
    let (before, set) = (address(&node, "http"), send_buffer(&applier.sockets()[0]));
    applier.apply(&text("127.0.0.1:0", "", origin)).await.unwrap();
    assert_eq!(address(&node, "http"), before);
    assert_ne!(send_buffer(&applier.sockets()[0]), set);
    serves_in_the_end(before).await;
}

fn notsent_lowat(open: &Open) -> Vec<u32> {
    open.fds.iter().map(|fd| SockRef::from(fd).tcp_notsent_lowat().unwrap()).collect()
}

fn send_buffer(open: &Open) -> usize {
    SockRef::from(&open.fds[0]).send_buffer_size().unwrap()
}

/// Asks until it is served: a connection that the old sockets had taken meanwhile may still be lost with them.
async fn serves_in_the_end(address: SocketAddr) {
    let served = async {
        loop {
            let Ok(mut stream) = TcpStream::connect(address).await else { continue };
            let mut answer = String::new();
            let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            if asked.is_ok() && stream.read_to_string(&mut answer).await.is_ok() && answer.ends_with("origin")
            {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, served).await.expect("it does not serve");
}

#[tokio::test]
async fn a_renamed_listener_keeps_its_socket() {
    let node = TestNode::start(2);
    let mut applier = applier(&node);
    let (dir, origin) = (tempfile::tempdir().unwrap(), origin().await);
    let path = dir.path().join("http.sock");
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let before = text(&format!("unix:{}", path.display()), "", origin);
    applier.apply(&before).await.unwrap();
    let bound = inode(&path);
    applier.apply(&before.replace("\"http\"", "\"renamed\"")).await.unwrap();
    assert_eq!(inode(&path), bound);
    // A connection that was taken under the old name finds no route.
    let renamed =
        async { while !ask(UnixStream::connect(&path).await.unwrap()).await.starts_with("HTTP/1.1 200 ") {} };
    tokio::time::timeout(PATIENCE, renamed).await.expect("the new name is not served");
}

#[tokio::test]
async fn a_removed_listener_takes_no_connections_and_leaves_no_file() {
    let node = TestNode::start(1);
    let mut applier = applier(&node);
    let (dir, origin) = (tempfile::tempdir().unwrap(), origin().await);
    let path = dir.path().join("http.sock");
    applier.apply(&text(&format!("unix:{}", path.display()), "", origin)).await.unwrap();
    assert!(path.exists());
    applier.apply(&text("127.0.0.1:0", "", origin)).await.unwrap();
    assert!(!path.exists());
    assert_serves(address(&node, "http")).await;
}

#[tokio::test]
async fn sections_that_need_a_start_are_named_until_it_comes() {
    let node = TestNode::start(1);
    let mut applier = applier(&node);
    let first = text("127.0.0.1:0", "", origin().await);
    applier.apply(&first).await.unwrap();
    let other = first.clone() + "[runtime]\nworkers = 3\n";
    for _ in 0..2 {
        let warnings = others(&applier.apply(&other).await.unwrap());
        assert_eq!(warnings, ["[runtime] takes effect at the next start or upgrade"]);
    }
    assert!(others(&applier.apply(&first).await.unwrap()).is_empty());
}

#[tokio::test]
async fn a_congestion_control_that_the_kernel_lacks_is_a_warning() {
    let node = TestNode::start(1);
    let mut applier = applier(&node);
    let config = text("127.0.0.1:0", "socket = { congestion = \"nosuch\" }", origin().await);
    let warnings = others(&applier.apply(&config).await.unwrap());
    assert!(warnings.len() == 1 && warnings[0].contains("nosuch"), "{warnings:?}");
    assert_serves(address(&node, "http")).await;
}

/// What a process with so many workers leaves of a listener.
fn left_by(sockets: usize, options: &SocketOptions) -> (SocketAddr, Inherited) {
    let first = socket::listen_tcp("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let address = socket::local_address(&first).unwrap().unwrap();
    let more = (1..sockets).map(|_| socket::listen_tcp(address, options).unwrap());
    let fds: Vec<OwnedFd> = std::iter::once(first).chain(more).collect();
    let at = BindAt { listener: "http".to_owned(), bind: Bind::Tcp(address) };
    let SocketOptions { send_buffer, receive_buffer, .. } = *options;
    (address, Inherited { at, send_buffer, receive_buffer, fds, file: None })
}

#[tokio::test]
async fn sockets_of_more_workers_than_there_are_now_are_all_served() {
    let node = TestNode::start(2);
    let (address, left) = left_by(5, &SocketOptions::listener());
    let mut applier = Applier::new(Arc::clone(&node), vec![left]);
    applier.apply(&text(&address.to_string(), "", origin().await)).await.unwrap();
    assert_eq!(applier.sockets()[0].fds.len(), 5);
    // The kernel spreads connections over the sockets: 40 miss one of five with a chance of 1 in 7,500.
    for _ in 0..40 {
        assert_serves(address).await;
    }
}

#[tokio::test]
async fn fewer_inherited_sockets_than_workers_are_made_up_for() {
    let node = TestNode::start(3);
    let (address, left) = left_by(1, &SocketOptions::listener());
    let mut applier = Applier::new(Arc::clone(&node), vec![left]);
    applier.apply(&text(&address.to_string(), "", origin().await)).await.unwrap();
    assert_eq!(applier.sockets()[0].fds.len(), 3);
    for _ in 0..12 {
        assert_serves(address).await;
    }
}

#[tokio::test]
async fn inherited_sockets_get_the_options_of_this_config() {
    let node = TestNode::start(1);
    let (address, left) = left_by(1, &SocketOptions::listener());
    let mut applier = Applier::new(Arc::clone(&node), vec![left]);
    let config = text(&address.to_string(), "socket = { notsent_lowat = \"64KiB\" }", origin().await);
    applier.apply(&config).await.unwrap();
    let [open] = applier.sockets() else { panic!("one address, not {:?}", applier.sockets()) };
    assert!(open.is_inherited);
    assert_eq!(notsent_lowat(open), [65536]);
    assert_serves(address).await;
}

#[tokio::test]
async fn inherited_sockets_with_a_buffer_size_that_is_given_back_are_opened_anew() {
    let node = TestNode::start(1);
    let other = SocketOptions { send_buffer: Some(65536), ..SocketOptions::listener() };
    let (address, left) = left_by(2, &other);
    let mut applier = Applier::new(Arc::clone(&node), vec![left]);
    applier.apply(&text(&address.to_string(), "", origin().await)).await.unwrap();
    let [open] = applier.sockets() else { panic!("one address, not {:?}", applier.sockets()) };
    assert!(!open.is_inherited && open.fds.len() == 1);
    assert_serves(address).await;
}

#[tokio::test]
async fn an_address_that_another_process_would_share_is_refused() {
    let node = TestNode::start(1);
    // Bound with SO_REUSEPORT, as another data plane of the same user would have it.
    let (address, _other) = left_by(1, &SocketOptions::listener());
    let refusal = applier(&node).apply(&text(&address.to_string(), "", origin().await)).await.unwrap_err();
    assert!(refusal.summary().contains("in use"), "{}", refusal.summary());
}

#[tokio::test]
async fn other_addresses_behind_a_name_are_served_as_the_same_generation() {
    let node = TestNode::start(1);
    let mut applier = applier(&node);
    let origin = origin().await;
    let config = text("127.0.0.1:0", "", origin)
        .replace(&format!("\"{origin}\""), &format!("\"localhost:{}\"", origin.port()));
    applier.apply(&config).await.unwrap();
    let host = ("localhost".to_owned(), origin.port());
    let other: SocketAddr = "127.0.0.9:9".parse().unwrap();
    applier.handle_answer(&host, Ok(vec![origin, other]));
    let live = Arc::clone(&node.applied().unwrap().live);
    assert_eq!((live.snapshot.generation, live.snapshot.clusters[0].endpoints.len()), (1, 2));
    assert_eq!(node.generations().len(), 1);
    assert_serves(address(&node, "http")).await;
}

#[tokio::test]
async fn an_access_log_is_written_once_it_is_on() {
    let node = TestNode::start(1);
    let mut applier = applier(&node);
    let (dir, origin) = (tempfile::tempdir().unwrap(), origin().await);
    let path = dir.path().join("access.log");
    let config = text("127.0.0.1:0", "", origin) + &format!("[log]\naccess = \"{}\"\n", path.display());
    applier.apply(&config).await.unwrap();
    assert_serves(address(&node, "http")).await;
    let written = async {
        while std::fs::read_to_string(&path).unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("nothing was written");
    let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(
        (&line["route"], &line["status"], &line["end"]),
        (&"all".into(), &200.into(), &"complete".into())
    );
}
