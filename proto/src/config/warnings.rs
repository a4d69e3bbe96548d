//! What is allowed but probably not meant. None of it keeps a config from being applied.

use super::{Cluster, Config, Policy, Route};

/// One sentence for each.
pub(super) fn of(config: &Config) -> Vec<String> {
    let admin = open_admin(config);
    let unserved =
        config.listeners.iter().filter_map(|listener| unserved_listener(&listener.name, &config.routes));
    let weights = config.clusters.iter().filter_map(ignored_weights);
    let deadlines = config.routes.iter().filter_map(short_total);
    admin.into_iter().chain(unserved).chain(weights).chain(deadlines).collect()
}

fn open_admin(config: &Config) -> Option<String> {
    let listen = config.admin.listen.filter(|address| !address.ip().is_loopback())?;
    Some(format!("admin.listen {listen} can be reached from other hosts, and the admin API has no login"))
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

fn short_total(route: &Route) -> Option<String> {
    let total = route.timeouts.total.filter(|total| *total < route.timeouts.first_byte)?;
    Some(format!(
        "the route \"{}\" ends every exchange after {} ms, before its first_byte timeout can",
        route.name,
        total.as_millis()
    ))
}
