//! Claims about reloads: what did not change is kept, counters go on, and the plan names what did.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dataplane_core::balance::Tried;
use dataplane_core::endpoint::ClusterState;
use dataplane_core::route::RequestView;
use dataplane_core::snapshot::plan::{BindAt, Changes, ListenerChanges, Section};
use dataplane_core::snapshot::{
    EndpointAddress, EndpointHealth, EndpointId, Plan, ResolvedEndpoint, Snapshot, diff,
};
use proto::config::{
    AccessLog, Address, Admin, Bind, Cluster, ClusterProtocol, Config, Driver, Endpoint, HalfClose,
    HeaderRules, HostHeader, Limits, Listener, ListenerProtocol, Log, LogLevel, Node, PathMatch, Policy,
    Pool, Retries, Role, Route, Runtime, SocketAccess, SocketOptions, Timeouts,
};

const WORKERS: usize = 2;

#[test]
fn keeps_everything_when_nothing_has_changed() {
    let old = first(config());
    let new = next(&old, config());
    assert_eq!((old.generation, new.generation), (1, 2));
    assert!(same(&old.listeners, &new.listeners) && same(&old.routes, &new.routes));
    assert!(same(&old.clusters, &new.clusters) && same(&old.workers, &new.workers));
    assert!(diff(Some(&old.config), &new.config).is_empty());
}

#[test]
fn keeps_clusters_and_other_routes_when_a_route_has_changed() {
    let old = first(config());
    let mut changed = config();
    changed.routes[0].timeouts.idle = Duration::from_secs(77);
    let new = next(&old, changed);
    assert!(same(&old.clusters, &new.clusters) && same(&old.listeners, &new.listeners));
    assert!(!Arc::ptr_eq(&old.routes[0], &new.routes[0]) && Arc::ptr_eq(&old.routes[1], &new.routes[1]));
    assert!(same(&old.routes[0].stats, &new.routes[0].stats), "it goes on counting");

    let plan = diff(Some(&old.config), &new.config);
    assert_eq!(plan.clusters, kept(&["llm", "web"]));
    assert_eq!(plan.routes, Changes { changed: names(&["chat"]), ..kept(&["site"]) });
    assert!(plan.listeners.opened.is_empty() && plan.listeners.closed.is_empty() && !plan.is_empty());
}

#[test]
fn keeps_other_clusters_and_known_endpoints_when_a_cluster_has_changed() {
    let old = first(config());
    let mut changed = config();
    changed.clusters[0].endpoints[1] = endpoint("127.0.0.1:8009");
    let new = next(&old, changed);
    assert!(!Arc::ptr_eq(&old.clusters[0], &new.clusters[0]));
    assert!(Arc::ptr_eq(&old.clusters[1], &new.clusters[1]));
    let (before, after) = (&old.clusters[0].endpoints, &new.clusters[0].endpoints);
    assert!(same(&before[0].stats, &after[0].stats), "the endpoint that stays goes on counting");
    assert!(!Arc::ptr_eq(&before[1].stats[0], &after[1].stats[0]), "the new one begins");
    assert!(Arc::ptr_eq(&before[0].resolved.health, &after[0].resolved.health));
    assert_eq!(
        diff(Some(&old.config), &new.config).clusters,
        Changes { changed: names(&["llm"]), ..kept(&["web"]) }
    );
}

#[test]
fn keeps_counters_apart_by_worker_and_going_over_every_reload() {
    let mut snapshot = first(config());
    for turn in 1..=5_u32 {
        snapshot.routes[0].stats[1].retries.increment();
        snapshot.clusters[0].endpoints[0].stats[1].connects.increment();
        snapshot.listeners[0].stats[1].accepted.increment();
        snapshot.workers[1].loop_turns.increment();
        let mut changed = config();
        changed.routes[0].retries.attempts = turn;
        changed.clusters[0].pool.idle_per_endpoint = turn;
        changed.listeners[0].socket.backlog = turn;
        snapshot = next(&snapshot, changed);
        assert_eq!(snapshot.routes[0].stats[1].retries.value(), u64::from(turn));
        assert_eq!(snapshot.clusters[0].endpoints[0].stats[1].connects.value(), u64::from(turn));
        assert_eq!(snapshot.listeners[0].stats[1].accepted.value(), u64::from(turn));
        assert_eq!(snapshot.workers[1].loop_turns.value(), u64::from(turn));
        assert_eq!(snapshot.routes[0].stats[0].retries.value(), 0, "the other worker counted nothing");
    }
}

#[test]
fn adds_workers_without_losing_the_counts_of_those_there_are() {
    let old = first(config());
    old.routes[0].stats[0].retries.add(3);
    let resolved = resolve(&config(), &old.health());
    let new = Snapshot::build(Arc::new(config()), 2, resolved, Some(&old), 4);
    assert_eq!(
        (new.workers.len(), new.routes[0].stats.len(), new.clusters[0].endpoints[0].stats.len()),
        (4, 4, 4)
    );
    assert_eq!(new.routes[0].stats[0].retries.value(), 3);
}

#[test]
fn follows_a_route_to_a_cluster_that_has_moved_in_the_file() {
    let old = first(config());
    let mut changed = config();
    changed.clusters.reverse();
    let new = next(&old, changed);
    assert_eq!((old.routes[0].cluster, new.routes[0].cluster), (0, 1));
    assert_eq!(new.clusters[new.routes[0].cluster].config.name, "llm");
    assert!(Arc::ptr_eq(&old.clusters[0], &new.clusters[1]), "the cluster itself is the same");
    assert!(diff(Some(&old.config), &new.config).is_empty(), "and so is its meaning");
}

#[test]
fn replaces_a_cluster_whose_names_resolve_elsewhere_and_keeps_the_rest() {
    let old = first(config());
    let mut resolved = resolve(&config(), &old.health());
    resolved[0].remove(0);
    let new = Snapshot::build(Arc::new(config()), 2, resolved, Some(&old), WORKERS);
    assert!(
        !Arc::ptr_eq(&old.clusters[0], &new.clusters[0]) && Arc::ptr_eq(&old.clusters[1], &new.clusters[1])
    );
    assert_eq!(new.clusters[0].endpoints.len(), 1);
    assert!(same(&old.clusters[0].endpoints[1].stats, &new.clusters[0].endpoints[0].stats));
}

#[test]
fn takes_an_address_once_however_often_it_is_resolved() {
    let mut resolved = resolve(&config(), &HashMap::new());
    let again = resolved[0][0].clone();
    resolved[0].push(again);
    let snapshot = Snapshot::build(Arc::new(config()), 1, resolved, None, WORKERS);
    assert_eq!(snapshot.clusters[0].endpoints.len(), 2);
}

#[test]
fn routes_requests_by_listener_index() {
    let snapshot = first(config());
    let lookup = |listener: &str, path: &str| {
        let view = RequestView { host: b"x", path: path.as_bytes(), method: "GET", header: &|_| None };
        let route = snapshot.route(snapshot.listener(listener)?, &view)?;
        Some(snapshot.routes[route].config.name.as_str())
    };
    assert_eq!(lookup("http", "/v1/chat"), Some("chat"));
    assert_eq!(lookup("http", "/"), Some("site"));
    assert_eq!(lookup("none", "/"), None);
}

#[test]
fn builds_a_new_table_when_listeners_have_moved() {
    let mut two = config();
    two.listeners.insert(0, listener("inner", &["127.0.0.1:7000"]));
    let old = first(config());
    let new = next(&old, two);
    let view = RequestView { host: b"x", path: b"/", method: "GET", header: &|_| None };
    assert_eq!((old.route(0, &view), new.route(0, &view), new.route(1, &view)), (Some(1), None, Some(1)));
}

#[test]
fn plans_everything_as_new_at_the_start() {
    let plan = diff(None, &config());
    assert_eq!(plan.routes.added, names(&["chat", "site"]));
    assert_eq!(plan.clusters.added, names(&["llm", "web"]));
    assert_eq!(plan.listeners.opened, [at("http", "127.0.0.1:8080"), at("http", "[::1]:8080")]);
    assert_eq!(plan.sections, []);
}

#[test]
fn plans_sockets_by_address() {
    let old = config();
    let mut new = config();
    new.listeners = vec![
        // Renamed: the socket stays. One address is gone, and another is new.
        listener("web", &["127.0.0.1:8080", "127.0.0.1:8081"]),
    ];
    let plan = diff(Some(&old), &new);
    assert_eq!(
        plan.listeners,
        ListenerChanges {
            kept: vec![],
            changed: vec![at("web", "127.0.0.1:8080")],
            opened: vec![at("web", "127.0.0.1:8081")],
            closed: vec![at("http", "[::1]:8080")],
        }
    );
}

#[test]
fn plans_no_change_for_a_socket_whose_listener_gets_another_address() {
    let mut new = config();
    new.listeners[0].binds.push(Bind::Unix("/run/http.sock".into()));
    let plan = diff(Some(&config()), &new);
    assert_eq!(plan.listeners.kept, [at("http", "127.0.0.1:8080"), at("http", "[::1]:8080")]);
    assert_eq!(plan.listeners.opened.len(), 1);
}

#[test]
fn tells_listeners_on_any_free_port_apart() {
    let with = |listeners| Config { listeners, ..config() };
    let both = with(vec![listener("a", &["127.0.0.1:0"]), listener("b", &["127.0.0.1:0"])]);
    let plan = diff(Some(&both), &with(vec![listener("b", &["127.0.0.1:0"])]));
    assert_eq!(plan.listeners.kept, [at("b", "127.0.0.1:0")]);
    assert_eq!(plan.listeners.closed, [at("a", "127.0.0.1:0")]);
}

#[test]
fn plans_removals_reorderings_and_sections() {
    let mut new = config();
    new.routes.swap(0, 1);
    new.clusters.push(cluster("extra", &["127.0.0.1:1"]));
    new.limits.connections = 5;
    new.log.level = LogLevel::Debug;
    let plan = diff(Some(&config()), &new);
    assert!(plan.are_routes_reordered && plan.routes.is_empty() && !plan.is_empty());
    assert_eq!(plan.sections, [Section::Log, Section::Limits]);
    assert_eq!(plan.clusters, Changes { added: names(&["extra"]), ..kept(&["llm", "web"]) });

    let back = diff(Some(&new), &config());
    assert_eq!(back.clusters.removed, names(&["extra"]));

    let mut fewer = config();
    fewer.routes.remove(0);
    let plan = diff(Some(&config()), &fewer);
    assert_eq!(plan.routes, Changes { removed: names(&["chat"]), ..kept(&["site"]) });
    assert!(!plan.are_routes_reordered, "what is left stands as it stood");
    assert_eq!(Plan::default().is_empty(), diff(Some(&fewer), &fewer).is_empty());
}

#[test]
fn a_worker_keeps_its_loads_when_endpoints_change() {
    let old = first(config());
    let mut state = ClusterState::new(Policy::LeastInFlight, 0, old.clusters[0].resolved());
    // What an exchange holds on to while the config changes.
    let held = Rc::clone(state.endpoint(1).unwrap().load());
    held.begin();
    assert_eq!(state.pick(&Tried::NONE), Some(0));

    // The busy endpoint is now the first, and a new one stands beside it.
    let mut changed = config();
    changed.clusters[0].endpoints = vec![endpoint("127.0.0.1:8002"), endpoint("127.0.0.1:8003")];
    let new = next(&old, changed);
    state.update(Policy::LeastInFlight, new.clusters[0].resolved());
    assert_eq!(state.endpoint(0).unwrap().load().in_flight(), 1);
    assert_eq!(state.pick(&Tried::NONE), Some(1), "the one in flight still counts");
    held.end();
    assert_eq!(state.endpoint(0).unwrap().load().in_flight(), 0, "and its end is heard of");
}

#[test]
fn a_worker_sends_nothing_to_an_endpoint_that_the_prober_found_down() {
    let snapshot = first(config());
    for policy in Policy::ALL {
        let mut state = ClusterState::new(policy, 0, snapshot.clusters[0].resolved());
        let health = &snapshot.clusters[0].endpoints[0].resolved.health;
        health.set_healthy(false);
        assert!((0..10).all(|_| state.pick(&Tried::NONE) == Some(1)), "{policy:?}");
        health.set_healthy(true);
        assert!((0..10).any(|_| state.pick(&Tried::NONE) == Some(0)), "{policy:?}");
    }
}

#[test]
fn a_worker_changes_to_another_policy_with_its_loads() {
    let snapshot = first(config());
    let mut state = ClusterState::new(Policy::RoundRobin, 0, snapshot.clusters[0].resolved());
    state.endpoint(0).unwrap().load().begin();
    assert_eq!(state.pick(&Tried::NONE), Some(0), "round robin does not look at loads");
    state.update(Policy::LeastInFlight, snapshot.clusters[0].resolved());
    assert_eq!(state.pick(&Tried::NONE), Some(1));
}

#[test]
fn an_endpoint_is_named_by_cluster_and_address() {
    let ip = |text: &str| EndpointAddress::Ip(text.parse().unwrap());
    let unix = EndpointAddress::Unix("/run/llm.sock".into());
    let ids = [
        EndpointId::of("llm", &ip("127.0.0.1:8000")),
        EndpointId::of("llm", &ip("127.0.0.1:8001")),
        EndpointId::of("llm", &ip("[::1]:8000")),
        EndpointId::of("llm2", &ip("127.0.0.1:8000")),
        EndpointId::of("llm", &unix),
    ];
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
    assert_eq!(ids[0], EndpointId::of("llm", &ip("127.0.0.1:8000")));
}

fn first(config: Config) -> Snapshot {
    let resolved = resolve(&config, &HashMap::new());
    Snapshot::build(Arc::new(config), 1, resolved, None, WORKERS)
}

fn next(old: &Snapshot, config: Config) -> Snapshot {
    let resolved = resolve(&config, &old.health());
    Snapshot::build(Arc::new(config), old.generation + 1, resolved, Some(old), WORKERS)
}

/// What the driver's resolver does, for addresses that need none.
fn resolve(config: &Config, health: &HashMap<EndpointId, Arc<EndpointHealth>>) -> Vec<Vec<ResolvedEndpoint>> {
    let of_cluster = |cluster: &Cluster| {
        let resolved = cluster.endpoints.iter().map(|endpoint| {
            let Address::Ip(address) = &endpoint.address else { panic!("only addresses here") };
            let address_text = address.to_string();
            let address = EndpointAddress::Ip(*address);
            let id = EndpointId::of(&cluster.name, &address);
            let health = health.get(&id).cloned().unwrap_or_default();
            ResolvedEndpoint { id, address, name: address_text, weight: endpoint.weight, health }
        });
        resolved.collect()
    };
    config.clusters.iter().map(of_cluster).collect()
}

fn same<T>(old: &[Arc<T>], new: &[Arc<T>]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(old, new)| Arc::ptr_eq(old, new))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn kept(kept: &[&str]) -> Changes {
    Changes { kept: names(kept), ..Changes::default() }
}

fn at(listener: &str, bind: &str) -> BindAt {
    BindAt { listener: listener.into(), bind: Bind::Tcp(bind.parse().expect("an address")) }
}

fn config() -> Config {
    let second = Duration::from_secs(1);
    Config {
        node: Node { id: "n".into(), role: Role::Edge, region: String::new() },
        runtime: Runtime { workers: WORKERS, driver: Driver::Auto },
        admin: Admin { listen: None, socket: None, access: SocketAccess::admin() },
        log: Log { level: LogLevel::Info, access: AccessLog::Off },
        limits: Limits {
            connections: 10,
            requests: None,
            worker_memory_bytes: 1,
            request_head_bytes: 1,
            request_header_fields: 1,
            request_head_timeout: second,
            request_body_timeout: second,
            keep_alive_timeout: second,
            send_timeout: second,
            drain_timeout: second,
        },
        listeners: vec![listener("http", &["127.0.0.1:8080", "[::1]:8080"])],
        routes: vec![route("chat", "/v1/", "llm"), route("site", "/", "web")],
        clusters: vec![
            cluster("llm", &["127.0.0.1:8001", "127.0.0.1:8002"]),
            cluster("web", &["127.0.0.1:9000"]),
        ],
    }
}

fn listener(name: &str, binds: &[&str]) -> Listener {
    let bind = |text: &&str| Bind::Tcp(text.parse().expect("an address"));
    let binds = binds.iter().map(bind).collect();
    Listener {
        name: name.into(),
        binds,
        protocol: ListenerProtocol::Http,
        half_close: HalfClose::Auto,
        socket: socket(),
    }
}

fn route(name: &str, prefix: &str, cluster: &str) -> Route {
    let second = Duration::from_secs(1);
    Route {
        name: name.into(),
        listeners: vec!["http".into()],
        hosts: vec![],
        path: PathMatch::Prefix(prefix.into()),
        methods: vec![],
        match_headers: vec![],
        cluster: cluster.into(),
        timeouts: Timeouts { connect: second, first_byte: second, idle: second, total: None },
        retries: Retries { attempts: 9, body_bytes_max: 0, unsafe_methods: false },
        headers: HeaderRules::default(),
        request_body_max: None,
    }
}

fn cluster(name: &str, endpoints: &[&str]) -> Cluster {
    Cluster {
        name: name.into(),
        policy: Policy::LeastInFlight,
        protocol: ClusterProtocol::Http1,
        endpoints: endpoints.iter().map(|address| endpoint(address)).collect(),
        health: None,
        pool: Pool { idle_per_endpoint: 9, idle_timeout: Duration::from_secs(9) },
        socket: socket(),
        host_header: HostHeader::Keep,
        dns_refresh: Duration::from_secs(30),
    }
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint { address: Address::Ip(address.parse().expect("an address")), weight: 1 }
}

fn socket() -> SocketOptions {
    SocketOptions {
        congestion: None,
        nodelay: true,
        notsent_lowat: None,
        keepalive: None,
        send_buffer: None,
        receive_buffer: None,
        fastopen: 0,
        defer_accept: None,
        backlog: 128,
        shared: false,
        freebind: false,
        access: SocketAccess::listener(),
    }
}
