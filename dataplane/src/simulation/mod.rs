//! The whole worker on a simulated kernel: the code that serves, from the listener to the pools, with clients, origins
//! and an operator around it, all on one thread and by one seed. For tests only.
//!
//! Every exchange has a number, and bytes that follow from it; clients and origins check each byte that they get. A run
//! fails when a byte is another's, lost or doubled, when an answer or a request is cut and looks whole, when an origin
//! sees a request again without permission, when nothing moves any more, and when buffers or connections are left at the
//! end. It tries neither TLS nor several workers, and no sockets but Unix ones.
//!
//! `MILLRACE_SEED=n cargo test -p dataplane --lib simulation` replays a seed, `MILLRACE_SEEDS=n` runs the first n.

mod client;
mod exchange;
mod origin;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dataplane_core::limit::Admission;
use dataplane_core::snapshot::{EndpointAddress, EndpointId, ResolvedEndpoint, Snapshot};
use dataplane_core::stats::{Gauge, WorkerStats};
use proto::config::{Bind, Config, SocketOptions};

use crate::io::simulated::{Actor, Random, each_seed, fault, simulate, trace};
use crate::io::{Mailbox, buffers_out, task_panics_here};
use crate::protocol::Live;
use crate::sys::{simulated as time, unix};
use crate::upstream::Shelves;
use crate::worker::{LoneWorker, Order};
use client::Client;
use exchange::{Exchange, SharedWorld, World};
use origin::Origin;

/// What the suite runs.
const SEEDS: u64 = 100;
/// A worker that drains has nothing left within this time once its clients are gone: the longest deadline, and more.
const DRAINED_WITHIN: Duration = Duration::from_secs(120);
/// A few buffers.
const LITTLE_MEMORY_BYTES: u64 = 64 * 1024;
/// Connections that may wait to be accepted: more than there are clients.
const BACKLOG: i32 = 64;
/// Origins of a run.
const ORIGINS: usize = 2;

#[test]
fn every_exchange_gets_its_own_bytes_whatever_happens_around_it() {
    each_seed(SEEDS, |seed| _ = run(seed));
}

#[test]
fn a_seed_replays_its_run() {
    each_seed(3, |seed| {
        let again = std::thread::spawn(move || run(seed)).join().expect("the run fails");
        assert_eq!(run(seed), again);
    });
}

/// One run; what has happened in it, as a number.
fn run(seed: u64) -> u64 {
    let mut random = Random::new(!seed);
    let folder = tempfile::tempdir().expect("a folder");
    let mut count = 0;
    let scripts: Vec<VecDeque<u64>> = (0..random.within(1..=6))
        .map(|_| {
            let first = count;
            count += random.within(1..=6) as u64;
            (first..count).collect()
        })
        .collect();
    let world = Rc::new(World {
        exchanges: (0..count).map(|number| Exchange::new(number, &mut random)).collect(),
        closes_idle: random.percent(30),
        is_short_of_memory: random.percent(20),
        is_draining: Cell::new(false),
        clients: Cell::new(scripts.len()),
        at_origins: RefCell::new(vec![0; ORIGINS]),
    });
    let stats = Arc::<WorkerStats>::default();
    let mut config = config(folder.path(), &mut random);
    if world.is_short_of_memory {
        config.limits.worker_memory_bytes = LITTLE_MEMORY_BYTES;
    }
    let admission = Arc::new(Admission::new(&config.limits));
    let worker = LoneWorker::new(Arc::clone(&stats), admission).expect("a worker");
    let mut operator = Operator {
        world: Rc::clone(&world),
        folder: folder.path().to_owned(),
        mailbox: worker.mailbox(),
        stats,
        live: None,
        reloads_per_mille: random.of([0, 2, 10]),
        drains_per_mille: random.of([0, 0, 1]),
        alone_since: None,
        has_stopped: false,
    };
    let proxy = folder.path().join("http");
    let access = SocketOptions::listener().access;
    let (listening, _) = unix::listen(&proxy, &access, BACKLOG).expect("a listening socket");
    let bind = Bind::Unix(proxy.clone());
    operator.apply(config);
    operator.mailbox.post(Order::Listen { listener: "http".to_owned(), bind, socket: listening });
    let mut actors: Vec<Box<dyn Actor>> = vec![Box::new(operator)];
    for number in 0..ORIGINS {
        let listener = UnixListener::bind(folder.path().join(format!("origin-{number}"))).expect("an origin");
        listener.set_nonblocking(true).expect("a socket that does not wait");
        let world = Rc::clone(&world);
        actors.push(Box::new(Origin { world, number, listener, connections: Vec::new() }));
    }
    for ahead in scripts {
        actors.push(Box::new(Client {
            world: Rc::clone(&world),
            proxy: proxy.clone(),
            ahead,
            reads: random.of([20, 50, 90]),
            pipelines: random.of([0, 0, 2]),
            connection: None,
            tries: 0,
            pauses_until: Duration::ZERO,
        }));
    }
    let panics = simulate(seed, actors, worker.serve());
    assert_eq!(panics, 0, "the worker panicked");
    for exchange in &world.exchanges {
        let is_told = exchange.is_over.get() || exchange.is_excused() || world.is_draining.get();
        assert!(is_told, "nothing became of {exchange:#?}");
    }
    trace()
}

/// A config with one listener and some of the origins.
fn config(folder: &Path, random: &mut Random) -> Config {
    let folder = folder.display();
    let endpoints: Vec<String> = (0..random.within(1..=ORIGINS))
        .map(|number| format!("{{ address = \"unix:{folder}/origin-{number}\" }}"))
        .collect();
    let text = format!(
        "[limits]\nrequest_head_timeout = \"60s\"\nrequest_body_timeout = \"60s\"\nkeep_alive_timeout = \"20s\"\n\
         send_timeout = \"60s\"\n\
         [[listeners]]\nname = \"http\"\nbind = \"unix:{folder}/http\"\n\
         [[routes]]\nname = \"all\"\ncluster = \"origins\"\n\
         timeouts = {{ connect = \"5s\", first_byte = \"{}s\", idle = \"{}s\" }}\n\
         [[clusters]]\nname = \"origins\"\nendpoints = [{}]\n",
        random.of([20, 40]),
        random.of([20, 40]),
        endpoints.join(", ")
    );
    Config::parse_with_process_env(&text, "simulated").unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// What the control thread does: it applies configs, drains, and ends the worker when there is nothing left to do.
struct Operator {
    world: SharedWorld,
    folder: PathBuf,
    mailbox: Arc<Mailbox<Order>>,
    stats: Arc<WorkerStats>,
    live: Option<Arc<Live>>,
    reloads_per_mille: usize,
    drains_per_mille: usize,
    /// When it drained with all clients gone.
    alone_since: Option<Duration>,
    has_stopped: bool,
}

impl Operator {
    fn apply(&mut self, config: Config) {
        let before = self.live.as_ref().map(|live| live.snapshot.as_ref());
        let known = before.map(Snapshot::health).unwrap_or_default();
        let cluster = &config.clusters[0];
        let endpoints = cluster.endpoints.iter().map(|endpoint| {
            let name = endpoint.address.to_string();
            let path = name.strip_prefix("unix:").expect("all origins are on Unix sockets");
            let address = EndpointAddress::Unix(path.into());
            let id = EndpointId::of(&cluster.name, &address);
            let health = known.get(&id).cloned().unwrap_or_default();
            ResolvedEndpoint { id, address, name, weight: 1, health }
        });
        let endpoints = vec![endpoints.collect()];
        let generation = before.map_or(1, |before| before.generation + 1);
        let snapshot = Arc::new(Snapshot::build(Arc::new(config), generation, endpoints, before, 1));
        let kept = |id| self.live.as_ref().and_then(|live| live.shelves.get(&id)).cloned();
        let ids = snapshot.clusters[0].resolved().map(|endpoint| endpoint.id);
        let shelves: HashMap<EndpointId, Arc<Shelves>> =
            ids.map(|id| (id, kept(id).unwrap_or_else(|| Arc::new(Shelves::new(1))))).collect();
        let exchanges = Box::new([Gauge::default()]);
        let live = Arc::new(Live { snapshot, shelves, access: None, exchanges });
        self.live = Some(Arc::clone(&live));
        self.mailbox.post(Order::Apply(live));
    }

    fn drain(&mut self) {
        self.world.is_draining.set(true);
        self.mailbox.post(Order::Drain);
    }

    /// Ends the worker once it has nothing left, which it has to within a time.
    fn end_when_empty(&mut self, since: Duration) -> bool {
        let left = [
            ("connections", self.stats.connections.value()),
            ("requests", self.stats.requests_in_flight.value()),
            ("buffers", buffers_out() as u64),
        ];
        if left.iter().all(|(_, count)| *count == 0) {
            self.has_stopped = true;
            self.mailbox.post(Order::Stop);
            return true;
        }
        if time::now().unwrap_or_default() > since + DRAINED_WITHIN {
            fault(format!("with all clients gone there are {left:?} left"));
        }
        false
    }
}

impl Actor for Operator {
    fn state(&self) -> String {
        format!("operator, draining: {}, clients: {}", self.world.is_draining.get(), self.world.clients.get())
    }

    fn step(&mut self, random: &mut Random) -> bool {
        if task_panics_here() > 0 {
            fault("a task panicked".to_owned());
        }
        if self.has_stopped {
            return false;
        }
        let are_clients_gone = self.world.clients.get() == 0;
        if self.world.is_draining.get() {
            let now = time::now().unwrap_or_default();
            return are_clients_gone && {
                let since = *self.alone_since.get_or_insert(now);
                self.end_when_empty(since)
            };
        }
        if are_clients_gone || random.below(1000) < self.drains_per_mille {
            self.drain();
            return true;
        }
        if random.below(1000) < 3 {
            time::run_out_of_descriptors(random.within(1..=2));
        }
        let reloads = random.below(1000) < self.reloads_per_mille;
        if reloads {
            let mut config = config(&self.folder, random);
            if let Some(live) = &self.live {
                config.limits = live.snapshot.config.limits.clone();
            }
            self.apply(config);
        }
        reloads
    }
}
