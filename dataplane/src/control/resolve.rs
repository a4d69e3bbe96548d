//! Names of endpoints to addresses: looked up off the workers, looked up again every `dns_refresh`, and the last good
//! answer kept when a look-up fails. It follows no TTL (the system's resolver does not tell it), and does not connect.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use dataplane_core::endpoint::{EndpointAddress, EndpointHealth, EndpointId, ResolvedEndpoint};
use proto::config::{Address, Cluster, Config};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

/// A look-up that takes longer has failed. Resolvers themselves give up after 5 to 10 seconds.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Look-ups at once. Each has a thread, which the system's resolver may keep far longer than anybody waits for it.
const LOOKUPS_MAX: usize = 32;

static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_MAX);

/// A DNS name and the port that goes with it.
pub(crate) type Host = (String, u16);

/// Every name of the live config with its last good answer.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    answers: HashMap<Host, Answer>,
}

#[derive(Debug)]
struct Answer {
    /// Sorted, so that an answer in another order is the same answer.
    addresses: Vec<SocketAddr>,
    /// Zero as long as no config that names it was applied.
    refresh: Duration,
    due: Instant,
}

/// A name for which there is no answer, old or new.
#[derive(Debug)]
pub(crate) struct Unresolved {
    /// The name.
    pub(crate) host: Host,
    /// What the resolver said.
    pub(crate) error: io::Error,
}

/// Looks up one name: sorted, each address once.
///
/// # Errors
/// What the system's resolver says, a timeout, or an answer without addresses.
pub(crate) async fn look_up(host: &Host) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = tokio::time::timeout(LOOKUP_TIMEOUT, ask_system(host.clone())).await??;
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
    }
    Ok(addresses)
}

async fn ask_system(host: Host) -> io::Result<Vec<SocketAddr>> {
    let place = LOOKUPS.acquire().await.map_err(io::Error::other)?;
    let asking = tokio::task::spawn_blocking(move || {
        // Held until the thread is free again, whether or not anybody still waits.
        let _place = place;
        (host.0.as_str(), host.1).to_socket_addrs().map(Iterator::collect)
    });
    asking.await.map_err(io::Error::other)?
}

impl Resolver {
    /// Looks up the names of `config` that have no answer yet, all at once.
    pub(crate) async fn learn(&mut self, config: &Config) -> Result<(), Unresolved> {
        let is_known = |host: &Host| self.answers.get(host).is_some_and(|answer| !answer.refresh.is_zero());
        let unknown: HashSet<Host> =
            hosts(config).map(|(host, _)| host).filter(|host| !is_known(host)).collect();
        let mut lookups = tokio::task::JoinSet::new();
        for host in unknown {
            lookups.spawn(async move {
                let answer = look_up(&host).await;
                (host, answer)
            });
        }
        let mut learnt = Vec::new();
        while let Some(lookup) = lookups.join_next().await {
            let (host, answer) = lookup
                .map_err(|error| Unresolved { host: (String::new(), 0), error: io::Error::other(error) })?;
            let addresses = answer.map_err(|error| Unresolved { host: host.clone(), error })?;
            learnt.push((host, addresses));
        }
        let now = Instant::now();
        for (host, addresses) in learnt {
            self.answers.insert(host, Answer { addresses, refresh: Duration::ZERO, due: now });
        }
        Ok(())
    }

    /// `config` is live: its names are refreshed as it says, other names are forgotten.
    pub(crate) fn follow(&mut self, config: &Config) {
        let mut wanted: HashMap<Host, Duration> = HashMap::new();
        for (host, refresh) in hosts(config) {
            let shortest = wanted.entry(host).or_insert(refresh);
            *shortest = refresh.min(*shortest);
        }
        self.answers.retain(|host, _| wanted.contains_key(host));
        let now = Instant::now();
        for (host, answer) in &mut self.answers {
            let refresh = wanted.get(host).copied().unwrap_or(LOOKUP_TIMEOUT);
            if refresh != answer.refresh {
                answer.refresh = refresh;
                answer.due = now + refresh;
            }
        }
    }

    /// Names to look up again now; each is due again a refresh later, whatever comes of it.
    pub(crate) fn take_due(&mut self) -> Vec<Host> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (host, answer) in &mut self.answers {
            if !answer.refresh.is_zero() && answer.due <= now {
                answer.due = now + answer.refresh;
                due.push(host.clone());
            }
        }
        due
    }

    /// What came of a look-up; true when the addresses are others than before.
    pub(crate) fn handle_answer(&mut self, host: &Host, answer: io::Result<Vec<SocketAddr>>) -> bool {
        let Some(known) = self.answers.get_mut(host) else { return false };
        match answer {
            Ok(addresses) if addresses == known.addresses => false,
            Ok(addresses) => {
                info!(name = host.0, ?addresses, before = ?known.addresses, "the addresses of a name changed");
                known.addresses = addresses;
                true
            }
            Err(error) => {
                warn!(name = host.0, %error, addresses = ?known.addresses, "a look-up failed, the last good answer stays");
                false
            }
        }
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
                let answer = self.answers.get(&(host.clone(), *port));
                let addresses = answer.map(|answer| answer.addresses.as_slice()).unwrap_or_default();
                addresses.iter().copied().map(EndpointAddress::Ip).collect()
            }
        }
    }
}

fn hosts(config: &Config) -> impl Iterator<Item = (Host, Duration)> {
    config.clusters.iter().flat_map(|cluster| {
        cluster.endpoints.iter().filter_map(|endpoint| match &endpoint.address {
            Address::Name { host, port } => Some(((host.clone(), *port), cluster.dns_refresh)),
            Address::Ip(_) | Address::Unix(_) => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str) -> Config {
        let text = format!(
            "[[listeners]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\n[[routes]]\nname = \"r\"\ncluster = \"c\"\n\
             [[clusters]]\nname = \"c\"\ndns_refresh = \"2s\"\nendpoints = [{{ address = \"{endpoint}\" }}]\n"
        );
        Config::parse(&text, &|_| None, "node").unwrap()
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    async fn resolver_of(config: &Config) -> Resolver {
        let mut resolver = Resolver::default();
        resolver.learn(config).await.unwrap();
        resolver.follow(config);
        resolver
    }

    fn addresses(resolver: &Resolver, config: &Config) -> Vec<String> {
        let endpoints = resolver.endpoints(config, &HashMap::new());
        endpoints[0].iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[tokio::test]
    async fn each_address_of_a_name_is_an_endpoint_under_the_configured_name() {
        let config = config("localhost:8000");
        let mut resolver = resolver_of(&config).await;
        let host = ("localhost".to_owned(), 8000);
        let answer = vec![address("10.0.0.1:8000"), address("10.0.0.2:8000")];
        assert!(resolver.handle_answer(&host, Ok(answer)));
        assert_eq!(addresses(&resolver, &config), ["10.0.0.1:8000", "10.0.0.2:8000"]);
        let endpoints = resolver.endpoints(&config, &HashMap::new());
        assert!(endpoints[0].iter().all(|endpoint| endpoint.name == "localhost:8000"));
    }

    #[tokio::test]
    async fn a_failed_look_up_keeps_the_last_good_answer() {
        let config = config("localhost:8000");
        let mut resolver = resolver_of(&config).await;
        let before = addresses(&resolver, &config);
        assert!(!before.is_empty());
        let failure = io::Error::other("no server");
        assert!(!resolver.handle_answer(&("localhost".to_owned(), 8000), Err(failure)));
        assert_eq!(addresses(&resolver, &config), before);
    }

    #[tokio::test]
    async fn a_name_without_an_answer_is_named() {
        let config = config("no-such-name.invalid:1");
        let refused = Resolver::default().learn(&config).await.unwrap_err();
        assert_eq!(refused.host, ("no-such-name.invalid".to_owned(), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_that_hang_are_so_many_at_most_and_others_fail_in_time() {
        let hanging = LOOKUPS.acquire_many(LOOKUPS_MAX as u32).await.unwrap();
        let host = ("127.0.0.1".to_owned(), 8000);
        assert_eq!(look_up(&host).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(hanging);
        assert_eq!(look_up(&host).await.unwrap(), [address("127.0.0.1:8000")]);
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_due_a_refresh_apart() {
        let config = config("localhost:8000");
        let mut resolver = Resolver::default();
        let known = Answer {
            addresses: vec![address("10.0.0.1:8000")],
            refresh: Duration::ZERO,
            due: Instant::now(),
        };
        resolver.answers.insert(("localhost".to_owned(), 8000), known);
        resolver.follow(&config);
        assert!(resolver.take_due().is_empty());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(resolver.take_due().len(), 1);
        assert!(resolver.take_due().is_empty());
    }

    #[tokio::test]
    async fn health_flags_are_used_again() {
        let config = config("127.0.0.1:8000");
        let resolver = Resolver::default();
        let first = resolver.endpoints(&config, &HashMap::new());
        let flag = Arc::clone(&first[0][0].health);
        let second = resolver.endpoints(&config, &HashMap::from([(first[0][0].id, Arc::clone(&flag))]));
        assert!(Arc::ptr_eq(&second[0][0].health, &flag));
    }
}
