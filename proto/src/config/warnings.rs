//! What is allowed but probably not meant. None of it keeps a config from being applied.

use super::{Address, Cluster, Config, Policy, Route};

/// Where TLS is usually spoken: HTTPS (RFC 9110, section 4.2.2), and its customary second port.
const TLS_PORTS: [u16; 2] = [443, 8443];

/// One sentence for each.
pub(super) fn of(config: &Config) -> Vec<String> {
    let admin = open_admin(config).into_iter().chain(open_admin_socket(config));
    let unserved =
        config.listeners.iter().filter_map(|listener| unserved_listener(&listener.name, &config.routes));
    let weights = config.clusters.iter().filter_map(ignored_weights);
    let deadlines = config.routes.iter().filter_map(short_total);
    let tls_ports = config.clusters.iter().filter_map(clear_text_at_tls_port);
    admin.chain(unserved).chain(weights).chain(tls_ports).chain(deadlines).collect()
}

fn open_admin(config: &Config) -> Option<String> {
    let listen = config.admin.listen.filter(|address| !address.ip().is_loopback())?;
    Some(format!("admin.listen {listen} can be reached from other hosts, and the admin API has no login"))
}

/// To connect to a Unix socket one needs the right to write (unix(7)).
fn open_admin_socket(config: &Config) -> Option<String> {
    let path = config.admin.socket.as_ref().filter(|_| config.admin.access.mode & 0o002 != 0)?;
    Some(format!(
        "admin.socket {} has mode {:04o}: everybody on this host may connect, and the admin API has no login",
        path.display(),
        config.admin.access.mode
    ))
}

fn unserved_listener(name: &str, routes: &[Route]) -> Option<String> {
    let is_served = routes.iter().any(|route| route.listeners.iter().any(|listener| listener == name));
    (!is_served)
        .then(|| format!("no route serves the listener \"{name}\": it answers every request with 404"))
}

fn ignored_weights(cluster: &Cluster) -> Option<String> {
    let first = cluster.endpoints.first()?.weight;
    let differ = cluster.endpoints.iter().any(|endpoint| endpoint.weight != first);
    (differ && cluster.policy == Policy::RoundRobin).then(|| {
        format!(
            "the cluster \"{}\" has weights, which round_robin does not use; weighted_round_robin does",
            cluster.name
        )
    })
}

/// API keys would go over the wire for everyone to read.
fn clear_text_at_tls_port(cluster: &Cluster) -> Option<String> {
    let at_tls_port = |address: &&Address| match address {
        Address::Ip(address) => TLS_PORTS.contains(&address.port()),
        Address::Name { port, .. } => TLS_PORTS.contains(port),
        Address::Unix(_) => false,
    };
    let address = cluster.endpoints.iter().map(|endpoint| &endpoint.address).find(at_tls_port)?;
    Some(format!(
        "the cluster \"{}\": this proxy speaks clear text to {address}, a port of TLS, which is not there yet",
        cluster.name
    ))
}

fn short_total(route: &Route) -> Option<String> {
    let total = route.timeouts.total.filter(|total| *total < route.timeouts.first_byte)?;
    Some(format!(
        "the route \"{}\" ends every exchange after {} ms, before its first_byte timeout can",
        route.name,
        total.as_millis()
    ))
}
