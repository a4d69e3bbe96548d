//! Active health checks: one task for each endpoint that is watched, once per process.
//!
//! When to probe and what the answers mean is `dataplane_core::health`'s; here a probe is run, and what the machine
//! concludes is stored where all workers see it.

use std::collections::HashMap;
use std::io;

use dataplane_core::endpoint::{EndpointAddress, EndpointId, ResolvedEndpoint};
use dataplane_core::health::{HealthMachine, ProbeStep, Transition};
use dataplane_core::snapshot::Snapshot;
use proto::config::{Health, HealthKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::sys::socket::is_out_of_files;

/// The longest status line that is read; what comes after it is of no interest.
const STATUS_LINE_BYTES_MAX: usize = 1024;

/// All endpoints that are probed.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    watched: HashMap<EndpointId, watch::Sender<Target>>,
}

/// An endpoint and how it is probed.
#[derive(Clone, Debug)]
struct Target {
    cluster: String,
    endpoint: ResolvedEndpoint,
    health: Health,
}

impl Prober {
    /// Probes what `snapshot` says from now on. What is known of an endpoint that stays is kept; one that is no longer
    /// watched counts as healthy.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.watched);
        for cluster in &snapshot.clusters {
            for endpoint in cluster.resolved() {
                let Some(health) = &cluster.config.health else {
                    endpoint.health.set_healthy(true);
                    continue;
                };
                let target = Target {
                    cluster: cluster.config.name.clone(),
                    endpoint: endpoint.clone(),
                    health: health.clone(),
                };
                let task = match before.remove(&endpoint.id) {
                    Some(task) => {
                        task.send_if_modified(|current| change(current, target));
                        task
                    }
                    None => start(target),
                };
                self.watched.insert(endpoint.id, task);
            }
        }
        // What is left in `before` is dropped here, which ends its tasks.
    }
}

fn start(target: Target) -> watch::Sender<Target> {
    let (sender, targets) = watch::channel(target);
    tokio::spawn(watch_over(targets));
    sender
}

fn change(current: &mut Target, target: Target) -> bool {
    let is_same = current.health == target.health && current.endpoint.is_same(&target.endpoint);
    *current = target;
    !is_same
}

/// Probes one endpoint until its sender is dropped.
async fn watch_over(mut targets: watch::Receiver<Target>) {
    let origin = Instant::now();
    let mut target = targets.borrow_and_update().clone();
    let mut machine = HealthMachine::new(&target.health, target.endpoint.id.0, origin.elapsed());
    loop {
        match machine.poll_next(origin.elapsed()) {
            ProbeStep::Start => tokio::select! {
                is_good = is_good(&target) => {
                    if let Some(transition) = machine.handle_probe(is_good) {
                        tell(&target, transition);
                    }
                }
                // A target that changed meanwhile is looked at after the probe, which has a deadline.
                () = closed(targets.clone()) => return,
            },
            ProbeStep::WaitUntil(due) => tokio::select! {
                () = tokio::time::sleep_until(origin + due) => {}
                changed = targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    target = targets.borrow_and_update().clone();
                    target.endpoint.health.set_healthy(machine.is_healthy());
                    machine.reconfigure(&target.health, origin.elapsed());
                }
            },
            // A probe is waited for where it is started, so none is ever under way here.
            ProbeStep::Probing => return,
        }
    }
}

/// Waits until the sender is gone.
async fn closed(mut targets: watch::Receiver<Target>) {
    while targets.changed().await.is_ok() {}
}

fn tell(target: &Target, transition: Transition) {
    let (cluster, name) = (&target.cluster, &target.endpoint.name);
    let address = &target.endpoint.address;
    match transition {
        Transition::BecameHealthy => {
            info!(cluster, endpoint = name, %address, "the endpoint is healthy again")
        }
        Transition::BecameUnhealthy => warn!(cluster, endpoint = name, %address, "the endpoint is unhealthy"),
    }
    target.endpoint.health.set_healthy(transition == Transition::BecameHealthy);
}

async fn is_good(target: &Target) -> bool {
    let result = match tokio::time::timeout(target.health.timeout, probe(target)).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    if let Err(error) = &result {
        debug!(cluster = target.cluster, endpoint = target.endpoint.name, %error, "a health probe failed");
    }
    match result {
        Ok(()) => true,
        // Nobody was asked: what is known of the endpoint stays as it is.
        Err(error) if is_out_of_files(&error) => target.endpoint.health.is_healthy(),
        Err(_) => false,
    }
}

async fn probe(target: &Target) -> io::Result<()> {
    match &target.endpoint.address {
        EndpointAddress::Ip(address) => speak(TcpStream::connect(address).await?, target).await,
        EndpointAddress::Unix(path) => speak(UnixStream::connect(path).await?, target).await,
    }
}

/// What the probe does on an established connection.
async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, target: &Target) -> io::Result<()> {
    match &target.health.kind {
        HealthKind::Tcp => Ok(()),
        HealthKind::Http { path, expected_status, host } => {
            let host = host.as_deref().unwrap_or(&target.endpoint.name);
            let status = request(stream, path, host).await?;
            if status == *expected_status {
                return Ok(());
            }
            Err(io::Error::other(format!("the status was {status}, not {expected_status}")))
        }
    }
}

/// Sends `GET path` and reads the status of the answer.
async fn request(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str, host: &str) -> io::Result<u16> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: millrace-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    let mut limited = stream.take(STATUS_LINE_BYTES_MAX as u64);
    while !head.contains(&b'\n') {
        if limited.read_buf(&mut head).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no status line came"));
        }
    }
    status_of(&head).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP/1"))
}

/// `HTTP/1.1 200 OK` (RFC 9112, section 4): three digits after the version and one space.
fn status_of(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, after) = rest.split_at_checked(3)?;
    let is_whole =
        matches!(after.first(), Some(b' ' | b'\r' | b'\n')) && digits.iter().all(u8::is_ascii_digit);
    is_whole.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::config::Config;
    use tokio::net::TcpListener;

    use super::*;
    use crate::control::resolve::Resolver;

    fn snapshot(port: u16, health: &str) -> Snapshot {
        let text = format!(
            "[[listeners]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\n[[routes]]\nname = \"r\"\ncluster = \"c\"\n\
             [[clusters]]\nname = \"c\"\nendpoints = [{{ address = \"127.0.0.1:{port}\" }}]\n{health}\n"
        );
        let config = Config::parse(&text, &|_| None, "node").unwrap();
        let resolved = Resolver::new(Vec::new()).endpoints(&config, &Default::default());
        Snapshot::build(Arc::new(config), 1, resolved, None, 1)
    }

    fn is_healthy(snapshot: &Snapshot) -> bool {
        snapshot.clusters[0].endpoints[0].resolved.health.is_healthy()
    }

    /// Answers each request with the next status, the last one for ever.
    async fn origin(statuses: &'static [u16]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for place in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /health HTTP/1.1\r\nHost: "));
                let status = statuses[place.min(statuses.len() - 1)];
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    async fn until(condition: impl Fn() -> bool) {
        let check = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), check).await.expect("it never came to be");
    }

    const HTTP: &str = "health = { kind = \"http\", path = \"/health\", interval = \"100ms\", timeout = \"100ms\", \
                        healthy_after = 2, unhealthy_after = 2 }";

    #[tokio::test]
    async fn an_endpoint_with_another_status_goes_down_and_comes_back() {
        let port = origin(&[200, 503, 503, 503, 200]).await;
        let snapshot = snapshot(port, HTTP);
        let mut prober = Prober::default();
        prober.follow(&snapshot);
        until(|| !is_healthy(&snapshot)).await;
        until(|| is_healthy(&snapshot)).await;
    }

    #[tokio::test]
    async fn an_endpoint_that_refuses_goes_down() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let snapshot = snapshot(
            port,
            "health = { kind = \"tcp\", interval = \"100ms\", timeout = \"100ms\", unhealthy_after = 1 }",
        );
        let mut prober = Prober::default();
        prober.follow(&snapshot);
        until(|| !is_healthy(&snapshot)).await;
    }

    #[tokio::test]
    async fn an_endpoint_that_is_watched_no_more_counts_as_healthy() {
        let watched = snapshot(1, HTTP);
        let mut prober = Prober::default();
        prober.follow(&watched);
        let unwatched = snapshot(1, "");
        unwatched.clusters[0].endpoints[0].resolved.health.set_healthy(false);
        prober.follow(&unwatched);
        assert!(is_healthy(&unwatched));
        assert!(prober.watched.is_empty());
    }

    #[test]
    fn status_lines_are_read_strictly() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 503\r\n"), Some(503));
        for bad in [
            &b"HTTP/1.1 2000 OK\r\n"[..],
            b"HTTP/2 200\r\n",
            b"HTTP/1.1 20\n",
            b"SSH-2.0\n",
            b"HTTP/1.1 +20 \n",
        ] {
            assert_eq!(status_of(bad), None);
        }
    }
}
