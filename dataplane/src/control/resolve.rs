//! Names of endpoints to addresses: looked up off the workers, looked up again every `dns_refresh`, and the last good
//! answer kept when a look-up fails. A name that has had no answer yet leaves its endpoint without an address, and nothing
//! else: everything around it is served. It follows no TTL (the system's resolver does not tell it), and does not connect.
//!
//! ```text
//! new ── answer ──▶ resolved ◀── answer ── stale: a look-up failed, the last good answer stays
//!  │                    └────── failure ─────▶┘
//!  └── failure, or no answer in time ──▶ unresolved: tried again, soon at first ── answer ──▶ resolved
//! ```

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dataplane_core::endpoint::{EndpointAddress, EndpointHealth, EndpointId, ResolvedEndpoint};
use proto::config::{Address, Cluster, Config};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

/// How long a config waits for the names that it brings: a resolver that is well answers within milliseconds, and the
/// control thread does nothing else meanwhile.
const FIRST_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Silence for so long is told as a failure. Resolvers themselves give up after 5 to 10 seconds.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// When a name without an address is looked up again, the first time. Each further wait is twice as long, up to
/// `dns_refresh`: after a reboot the network comes within seconds, a retired name never.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Answers that may wait for the control loop.
const ANSWERS_MAX: usize = 64;
/// Look-ups at once. Each has a thread, which the system's resolver may keep far longer than anybody waits for it: many, so that
/// names which hang leave places for those that do not, and half of what the runtime has for such work.
const LOOKUPS_MAX: usize = 256;

static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_MAX);

/// A DNS name and the port that goes with it.
pub(crate) type Host = (String, u16);

/// What came of one look-up.
pub(crate) type Answered = (Host, io::Result<Vec<SocketAddr>>);

/// Every name of the live config with its last good answer.
#[derive(Debug)]
pub(crate) struct Resolver {
    names: HashMap<Host, Name>,
    /// Look-ups that failed.
    failures: u64,
    /// Lent to look-ups.
    answer_to: mpsc::Sender<Answered>,
    answers: mpsc::Receiver<Answered>,
}

#[derive(Debug)]
struct Name {
    /// The last good answer, sorted, so that an answer in another order is the same answer. Empty: there was none yet.
    addresses: Vec<SocketAddr>,
    /// What the last look-up failed with.
    failure: Option<Failure>,
    /// When the look-up that is under way began: there is never more than one, since each takes a thread.
    asked: Option<Instant>,
    /// The clusters that have it, for the log.
    clusters: String,
    /// Zero as long as no config that has it was applied.
    refresh: Duration,
    due: Instant,
    /// The wait after the next failure, while there is no address.
    retry: Duration,
}

/// A name that cannot be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the resolver says.
    pub(crate) error: String,
    /// When it said so first.
    pub(crate) since: SystemTime,
}

/// An endpoint that the config has by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedEndpoint {
    /// The cluster's name.
    pub(crate) cluster: String,
    /// As configured.
    pub(crate) endpoint: String,
    /// As configured.
    pub(crate) weight: u32,
    /// Why it has no address; none: it has.
    pub(crate) unresolved: Option<Failure>,
}

/// Looks up one name: sorted, each address once. It takes as long as the system's resolver does, and as it takes until
/// one of those that hang makes place.
async fn look_up(host: &Host) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = ask_system(host.clone()).await?;
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
    }
    Ok(addresses)
}

async fn ask_system(host: Host) -> io::Result<Vec<SocketAddr>> {
    // One that waits here is silent, and told of like any that the resolver does not answer.
    let place = LOOKUPS.acquire().await.map_err(io::Error::other)?;
    let asking = tokio::task::spawn_blocking(move || {
        // Held until the thread is free again, whether or not anybody still waits.
        let _place = place;
        (host.0.as_str(), host.1).to_socket_addrs().map(Iterator::collect)
    });
    asking.await.map_err(io::Error::other)?
}

impl Resolver {
    /// With the last good answers of the process that this one takes over from.
    pub(crate) fn new(known: Vec<(Host, Vec<SocketAddr>)>) -> Self {
        let (answer_to, answers) = mpsc::channel(ANSWERS_MAX);
        let names = known.into_iter().map(|(host, addresses)| (host, Name::new(addresses))).collect();
        Resolver { names, failures: 0, answer_to, answers }
    }

    /// The last good answers.
    pub(crate) fn known(&self) -> Vec<(Host, Vec<SocketAddr>)> {
        let names = self.names.iter().filter(|(_, name)| !name.addresses.is_empty());
        names.map(|(host, name)| (host.clone(), name.addresses.clone())).collect()
    }

    /// How many look-ups have failed.
    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// Looks up the names of `config` that are new, all at once, and waits a moment for the answers. One that comes later
    /// comes by [`Resolver::next_answer`].
    pub(crate) async fn learn(&mut self, config: &Config) {
        let deadline = Instant::now() + FIRST_ANSWERS_WITHIN;
        let (first, mut firsts) = mpsc::unbounded_channel();
        let mut waited_for = 0;
        for (host, _) in hosts(config) {
            let name = self.names.entry(host.clone()).or_insert_with(|| Name::new(Vec::new()));
            if name.refresh.is_zero() && name.asked.is_none() {
                name.asked = Some(Instant::now());
                waited_for += 1;
                ask(host, Some(first.clone()), self.answer_to.clone());
            }
        }
        drop(first);
        while waited_for > 0 {
            let Ok(Some((host, answer))) = timeout_at(deadline, firsts.recv()).await else { break };
            self.handle_answer(&host, answer);
            waited_for -= 1;
        }
        // From here on answers take the other way; those that have come this one are taken.
        firsts.close();
        while let Ok((host, answer)) = firsts.try_recv() {
            self.handle_answer(&host, answer);
        }
        for (host, name) in self.names.iter_mut().filter(|(_, name)| name.refresh.is_zero()) {
            name.fail_if_silent_for(host, Duration::ZERO);
        }
    }

    /// `config` is live: its names are refreshed as it says, other names are forgotten.
    pub(crate) fn follow(&mut self, config: &Config) {
        let mut wanted: HashMap<Host, Vec<&Cluster>> = HashMap::new();
        for (host, cluster) in hosts(config) {
            wanted.entry(host).or_default().push(cluster);
        }
        self.names.retain(|host, _| wanted.contains_key(host));
        for (host, name) in &mut self.names {
            let clusters = wanted.remove(host).unwrap_or_default();
            let refresh = clusters.iter().map(|cluster| cluster.dns_refresh).min().unwrap_or_default();
            let clusters: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
            name.clusters = clusters.join(", ");
            if refresh != name.refresh {
                name.refresh = refresh;
                name.due = Instant::now() + name.wait();
            }
        }
    }

    /// Begins to look up the names that are due.
    pub(crate) fn look_up_due(&mut self) {
        for host in self.take_due() {
            ask(host, None, self.answer_to.clone());
        }
    }

    /// Names to look up again now; each is due again a refresh later, whatever comes of it.
    fn take_due(&mut self) -> Vec<Host> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (host, name) in self.names.iter_mut().filter(|(_, name)| !name.refresh.is_zero()) {
            name.fail_if_silent_for(host, SILENT_FOR);
            if name.asked.is_none() && name.due <= now {
                name.asked = Some(now);
                name.due = now + name.refresh;
                due.push(host.clone());
            }
        }
        due
    }

    /// Waits for the next look-up to end.
    pub(crate) async fn next_answer(&mut self) -> Answered {
        match self.answers.recv().await {
            Some(answered) => answered,
            // It never is: this value has a sender itself.
            None => std::future::pending().await,
        }
    }

    /// What came of a look-up; true when addresses that are served are others than before.
    pub(crate) fn handle_answer(&mut self, host: &Host, answer: io::Result<Vec<SocketAddr>>) -> bool {
        let Some(name) = self.names.get_mut(host) else { return false };
        name.asked = None;
        match answer {
            Ok(addresses) => name.handle_addresses(host, addresses) && !name.refresh.is_zero(),
            Err(error) => {
                self.failures += 1;
                name.fail(host, error.to_string());
                false
            }
        }
    }

    /// The endpoints that `config` has by name.
    pub(crate) fn named_endpoints(&self, config: &Config) -> Vec<NamedEndpoint> {
        let of_cluster = |cluster: &Cluster| {
            let named = cluster.endpoints.iter().filter_map(|endpoint| {
                let name = self.names.get(&host_of(&endpoint.address)?)?;
                Some(NamedEndpoint {
                    cluster: cluster.name.clone(),
                    endpoint: endpoint.address.to_string(),
                    weight: endpoint.weight,
                    unresolved: name.failure.clone().filter(|_| name.addresses.is_empty()),
                })
            });
            named.collect::<Vec<_>>()
        };
        config.clusters.iter().flat_map(of_cluster).collect()
    }

    /// The endpoints of each cluster of `config`, in its order; health flags that are in `known` are used again.
    pub(crate) fn endpoints(
        &self,
        config: &Config,
        known: &HashMap<EndpointId, Arc<EndpointHealth>>,
    ) -> Vec<Vec<ResolvedEndpoint>> {
        config.clusters.iter().map(|cluster| self.endpoints_of(cluster, known)).collect()
    }

    fn endpoints_of(
        &self,
        cluster: &Cluster,
        known: &HashMap<EndpointId, Arc<EndpointHealth>>,
    ) -> Vec<ResolvedEndpoint> {
        let resolved = |endpoint: &proto::config::Endpoint, address: EndpointAddress| {
            let id = EndpointId::of(&cluster.name, &address);
            ResolvedEndpoint {
                id,
                address,
                name: endpoint.address.to_string(),
                weight: endpoint.weight,
                health: known.get(&id).cloned().unwrap_or_default(),
            }
        };
        let addresses = |endpoint| self.addresses_of(endpoint);
        cluster
            .endpoints
            .iter()
            .flat_map(|endpoint| {
                addresses(&endpoint.address).into_iter().map(move |address| resolved(endpoint, address))
            })
            .collect()
    }

    fn addresses_of(&self, address: &Address) -> Vec<EndpointAddress> {
        match address {
            Address::Ip(address) => vec![EndpointAddress::Ip(*address)],
            Address::Unix(path) => vec![EndpointAddress::Unix(path.clone())],
            Address::Name { host, port } => {
                let name = self.names.get(&(host.clone(), *port));
                let addresses = name.map(|name| name.addresses.as_slice()).unwrap_or_default();
                addresses.iter().copied().map(EndpointAddress::Ip).collect()
            }
        }
    }
}

/// Looks up a name beside everything else. The answer goes to `first` as long as somebody waits there, else to `then`.
fn ask(host: Host, first: Option<mpsc::UnboundedSender<Answered>>, then: mpsc::Sender<Answered>) {
    tokio::spawn(async move {
        let answer = look_up(&host).await;
        let unsent = match first {
            Some(first) => first.send((host, answer)).err().map(|unsent| unsent.0),
            None => Some((host, answer)),
        };
        if let Some(answered) = unsent {
            // Fails only when the control loop has ended.
            let _ = then.send(answered).await;
        }
    });
}

impl Name {
    fn new(addresses: Vec<SocketAddr>) -> Self {
        Name {
            addresses,
            failure: None,
            asked: None,
            clusters: String::new(),
            refresh: Duration::ZERO,
            due: Instant::now(),
            retry: RETRY_AFTER,
        }
    }

    /// True when they are others than before.
    fn handle_addresses(&mut self, host: &Host, addresses: Vec<SocketAddr>) -> bool {
        let (failure, clusters) = (self.failure.take(), &self.clusters);
        self.retry = RETRY_AFTER;
        if addresses == self.addresses {
            if failure.is_some() {
                info!(name = host.0, clusters, "the name can be looked up again, its addresses are the same");
            }
            return false;
        }
        let before = std::mem::replace(&mut self.addresses, addresses);
        let addresses = &self.addresses;
        if !before.is_empty() {
            info!(name = host.0, clusters, ?addresses, ?before, "the addresses of a name changed");
        } else if failure.is_some() {
            info!(name = host.0, clusters, ?addresses, "the name is there now: its endpoint is served");
        }
        true
    }

    /// Notes a failure; only the first in a row is told loudly. A name without an address is told of by the config that
    /// brings it, which knows what that means.
    fn fail(&mut self, host: &Host, error: String) {
        let is_resolved = !self.addresses.is_empty();
        let is_first = self.failure.is_none();
        let (clusters, addresses) = (&self.clusters, &self.addresses);
        if is_resolved && is_first {
            warn!(name = host.0, clusters, error, ?addresses, "a look-up failed, the last good answer stays");
        } else {
            debug!(name = host.0, clusters, error, "a look-up failed");
        }
        let since = self.failure.take().map_or_else(SystemTime::now, |failure| failure.since);
        self.failure = Some(Failure { error, since });
        if !is_resolved && !self.refresh.is_zero() {
            self.due = Instant::now() + self.wait();
            self.retry = self.retry.saturating_mul(2);
        }
    }

    fn fail_if_silent_for(&mut self, host: &Host, silence: Duration) {
        let is_silent = self.asked.is_some_and(|asked| asked.elapsed() >= silence);
        if is_silent && self.failure.is_none() {
            self.fail(host, "the resolver has not answered yet".to_owned());
        }
    }

    /// Until the next look-up.
    fn wait(&self) -> Duration {
        if self.addresses.is_empty() { self.retry.min(self.refresh) } else { self.refresh }
    }
}

fn host_of(address: &Address) -> Option<Host> {
    match address {
        Address::Name { host, port } => Some((host.clone(), *port)),
        Address::Ip(_) | Address::Unix(_) => None,
    }
}

/// Each name with each cluster that has it.
fn hosts(config: &Config) -> impl Iterator<Item = (Host, &Cluster)> {
    config.clusters.iter().flat_map(|cluster| {
        let hosts = cluster.endpoints.iter().filter_map(|endpoint| host_of(&endpoint.address));
        hosts.map(move |host| (host, cluster))
    })
}

#[cfg(test)]
mod tests;
