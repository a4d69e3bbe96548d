//! What the admin API and the metrics read of the node: shared between the control loop, which writes, and the requests
//! that are being answered, all on the control thread. No worker touches it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dataplane_core::files::Files;
use dataplane_core::limit::Admission;
use dataplane_core::stats::WorkerStats;
use proto::config::Bind;

use super::log::LogSwitch;
use super::resolve::NamedEndpoint;
use super::source::{Source, Sourced};
use crate::io::Mode;
use crate::metrics::access::AccessLog;
use crate::metrics::process::Process;
use crate::metrics::{self, Name, NodeFigures, Scrape};
use crate::protocol::Live;
use crate::worker::Workers;

/// The node as it is seen from outside.
#[derive(Debug)]
pub(crate) struct Node {
    /// The worker threads.
    pub(crate) workers: Workers,
    /// What each of them counts.
    pub(crate) worker_stats: Vec<Arc<WorkerStats>>,
    /// The limits that they share.
    pub(crate) admission: Arc<Admission>,
    /// How they talk to the kernel.
    pub(crate) mode: Mode,
    /// The process's log.
    pub(crate) log: LogSwitch,
    served: Mutex<Served>,
    draining: AtomicBool,
    applies: AtomicU64,
    refusals: AtomicU64,
    name_failures: AtomicU64,
}

/// What is served now, and what was and is not yet through.
#[derive(Debug, Default)]
struct Served {
    current: Option<Arc<Applied>>,
    /// Where its config came from.
    source: Option<Sourced>,
    /// By age; those that are freed are dropped when another one is added.
    earlier: Vec<Weak<Live>>,
    /// Queues of access logs there have been, for the count of what they dropped.
    access_logs: Vec<Arc<AccessLog>>,
    /// What is known of the names in the served config.
    names: Vec<NamedEndpoint>,
}

/// A config that is served, with what became of it.
#[derive(Debug)]
pub(crate) struct Applied {
    /// What the workers have.
    pub(crate) live: Arc<Live>,
    /// The text it was read from.
    pub(crate) text: Arc<str>,
    /// The listening sockets.
    pub(crate) bound: Vec<Bound>,
    /// How the open files are divided.
    pub(crate) files: Files,
}

/// A listening socket as it is.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    /// The listener's name.
    pub(crate) listener: String,
    /// The address as bound: with the port that the kernel chose where 0 was asked for.
    pub(crate) actual: Bind,
}

/// How many exchanges a generation still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Generation {
    /// The generation.
    pub(crate) generation: u64,
    /// Its exchanges in flight.
    pub(crate) streams: u64,
}

/// Why the node is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unready {
    /// No config was applied yet.
    Starting,
    /// It takes no new connections.
    Draining,
    /// A worker does not run.
    WorkerDown,
}

impl Unready {
    /// A sentence for `/readyz`.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Unready::Starting => "no config is applied yet",
            Unready::Draining => "the node is draining",
            Unready::WorkerDown => "a worker is down",
        }
    }
}

impl Node {
    /// A node whose workers have no config yet.
    pub(crate) fn new(
        workers: Workers,
        worker_stats: Vec<Arc<WorkerStats>>,
        admission: Arc<Admission>,
        mode: Mode,
        log: LogSwitch,
    ) -> Self {
        Node {
            workers,
            worker_stats,
            admission,
            mode,
            log,
            served: Mutex::default(),
            draining: AtomicBool::new(false),
            applies: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            name_failures: AtomicU64::new(0),
        }
    }

    /// What is served; none before the first config.
    pub(crate) fn applied(&self) -> Option<Arc<Applied>> {
        self.served().current.clone()
    }

    /// From now on `applied` is served.
    pub(crate) fn serve(&self, applied: Applied) {
        let mut served = self.served();
        if let Some(queue) = &applied.live.access
            && !served.access_logs.iter().any(|known| Arc::ptr_eq(known, queue))
        {
            served.access_logs.push(Arc::clone(queue));
        }
        let before = served.current.replace(Arc::new(applied));
        served.earlier.extend(before.map(|before| Arc::downgrade(&before.live)));
        served.earlier.retain(|live| live.strong_count() > 0);
    }

    /// Where the config that is served came from; none before the first.
    pub(crate) fn source(&self) -> Option<Sourced> {
        self.served().source.clone()
    }

    /// The config that is served came from `source`, just now; returns what was so before.
    pub(crate) fn set_source(&self, source: Source) -> Option<Sourced> {
        self.served().source.replace(Sourced::now(source))
    }

    /// Counts a config that was applied.
    pub(crate) fn count_apply(&self) {
        self.applies.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a config that was refused.
    pub(crate) fn count_refusal(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on this is known of the names in the served config, and so many look-ups have failed.
    pub(crate) fn set_names(&self, names: Vec<NamedEndpoint>, failures: u64) {
        self.name_failures.store(failures, Ordering::Relaxed);
        self.served().names = names;
    }

    /// What is known of the names in the served config.
    pub(crate) fn names(&self) -> Vec<NamedEndpoint> {
        self.served().names.clone()
    }

    /// The node takes no new connections from now on.
    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The node takes connections again.
    pub(crate) fn end_drain(&self) {
        self.draining.store(false, Ordering::Relaxed);
    }

    /// Whether it takes no new connections.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Why traffic should not be sent here; none: it should.
    pub(crate) fn unready(&self) -> Option<Unready> {
        if self.served().current.is_none() {
            return Some(Unready::Starting);
        }
        if self.is_draining() {
            return Some(Unready::Draining);
        }
        (!self.workers.are_serving()).then_some(Unready::WorkerDown)
    }

    /// Exchanges by generation: those that still have some, and the one that is served. By age.
    pub(crate) fn generations(&self) -> Vec<Generation> {
        let served = self.served();
        let current = served.current.as_ref().map(|applied| Arc::clone(&applied.live));
        let lives: Vec<Arc<Live>> = served.earlier.iter().filter_map(Weak::upgrade).chain(current).collect();
        let mut generations: Vec<Generation> = Vec::new();
        for live in lives {
            let generation = live.snapshot.generation;
            let streams = live.exchanges.iter().map(|exchanges| exchanges.value()).sum();
            // Several where the addresses behind a name have changed.
            match generations.last_mut().filter(|last| last.generation == generation) {
                Some(last) => last.streams += streams,
                None => generations.push(Generation { generation, streams }),
            }
        }
        let newest = generations.last().map(|last| last.generation);
        generations.retain(|one| one.streams > 0 || Some(one.generation) == newest);
        generations
    }

    /// Exchanges in flight on all workers.
    pub(crate) fn streams(&self) -> u64 {
        self.worker_stats.iter().map(|worker| worker.requests_in_flight.value()).sum()
    }

    /// Open client connections.
    pub(crate) fn connections(&self) -> u64 {
        self.worker_stats.iter().map(|worker| worker.connections.value()).sum()
    }

    /// The text of `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        let applied = self.applied();
        let snapshot = applied.as_ref().map(|applied| applied.live.snapshot.as_ref());
        let node = self.figures(snapshot.map_or(0, |snapshot| snapshot.generation));
        let names = self.names();
        let names: Vec<Name<'_>> = names
            .iter()
            .map(|named| Name {
                cluster: &named.cluster,
                endpoint: &named.endpoint,
                is_resolved: named.unresolved.is_none(),
            })
            .collect();
        let process = Process::now();
        metrics::render(&Scrape { snapshot, workers: &self.worker_stats, names: &names, node, process })
    }

    fn figures(&self, generation: u64) -> NodeFigures {
        let log_dropped = self.log.lines().dropped();
        let access_dropped = self.served().access_logs.iter().map(|log| log.dropped()).sum();
        NodeFigures {
            generation,
            generations_live: self.generations().len() as u64,
            connections_max: self.admission.connections_max().into(),
            applies: self.applies.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
            ready: self.unready().is_none(),
            draining: self.is_draining(),
            worker_restarts: self.workers.restarts().iter().sum(),
            worker_panics: crate::io::panics(),
            worker_lost_wakes: crate::io::lost_wakes(),
            access_dropped,
            log_dropped,
            name_failures: self.name_failures.load(Ordering::Relaxed),
        }
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ops::Deref;

    use proto::config::{Limits, LogLevel};

    use super::super::log;
    use super::*;
    use crate::worker::{Order, WorkerOptions};

    /// A node with real workers, which end with it.
    pub(crate) struct TestNode(Arc<Node>);

    impl TestNode {
        /// With so many workers, on epoll: it runs everywhere.
        pub(crate) fn start(count: usize) -> Self {
            let stats: Vec<Arc<WorkerStats>> = (0..count).map(|_| Arc::default()).collect();
            let admission = Arc::new(Admission::new(&Limits::default()));
            let mode = Mode::Epoll;
            let options =
                WorkerOptions { count, mode, stats: stats.clone(), admission: Arc::clone(&admission) };
            let workers = Workers::start(&options).unwrap();
            while !workers.are_running() {
                std::thread::yield_now();
            }
            TestNode(Arc::new(Node::new(workers, stats, admission, mode, log::unheard(LogLevel::Info))))
        }
    }

    impl Deref for TestNode {
        type Target = Arc<Node>;

        fn deref(&self) -> &Arc<Node> {
            &self.0
        }
    }

    impl Drop for TestNode {
        fn drop(&mut self) {
            self.0.workers.post_all(|| Order::Stop);
        }
    }

    #[test]
    fn a_node_without_a_config_is_not_ready() {
        let node = TestNode::start(1);
        assert_eq!(node.unready(), Some(Unready::Starting));
        assert!(node.generations().is_empty());
        assert!(node.metrics().contains("millrace_ready 0\n"));
    }
}
