//! The budget of open files: how many client connections fit into the limit of the process, and what is kept for others.
//!
//! ```text
//! number of a file:  0 ............................... ceiling ............ limit
//!                    process | clients | origins       | admin API, probes
//! ```
//! Whatever a node does costs a descriptor: a client, the origin that serves it, a request to the admin API, the log that
//! is opened again. Clients come by themselves and in any number, so they get no more than leaves the rest room. A new
//! file always gets the lowest free number (open(2)), so a worker knows by the number alone when it would take from the
//! control thread: it uses none from [`Files::ceiling`] on.
//!
//! Nothing is counted here: what clients have in use is [`super::limit`]'s, the kernel knows the rest.

use proto::config::{Bind, Config};

/// Files of the process itself beside workers and listening sockets: standard streams, the control thread's event queue
/// and signals, the admin sockets (each twice), the access log with the file it is changed for, systemd's socket. 16 are
/// open in a process that serves; the rest is for what a parent process left open.
const PROCESS_FILES: u64 = 24;
/// Files of one worker: its ring or event queue, its timer, and the events by which others wake it. 5, and one to spare.
const WORKER_FILES: u64 = 6;
/// A listening socket is held by the control thread and by the worker that accepts on it.
const HOLDERS_OF_A_SOCKET: u64 = 2;
/// For the control thread while workers use all they may: requests to the admin API (a scraper, an agent, an operator
/// with a few shells), names that are looked up, a log that is opened again, the pipes of an upgrade.
const CONTROL_FILES: u64 = 32;
/// Of a very low limit the control thread gets no more than this part, or there would be nothing to control.
const CONTROL_ONE_IN: u64 = 8;
/// Of what is left for traffic this part is no client's: a node with all its clients there, silent but for one in seven,
/// reaches its origins without ending one of them. Where more are busy, silent clients make room for the origins of the
/// others.
const ORIGINS_ONE_IN: u64 = 8;
/// Of a low limit origins get at least so many, as long as clients get as many.
const ORIGINS_MIN: u64 = 8;
/// Of a limit that the process alone could use up traffic still gets so many, or a quarter of it: a client needs a second file,
/// for its origin, and what the process is said to hold is more than it does.
const TRAFFIC_MIN: u64 = 4;
const TRAFFIC_MIN_ONE_IN: u64 = 4;
/// More files than any kernel allows (`fs.nr_open` is an int): stands for "unlimited".
const FILES_MOST: u64 = i32::MAX as u64;

/// What a node holds open whatever its traffic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Worker threads.
    pub workers: u64,
    /// Addresses that are listened on; each has a socket for every worker.
    pub addresses: u64,
    /// Endpoints that are probed: their probes may all be under way at once.
    pub probes: u64,
}

impl Standing {
    /// Of a node with this config, run by so many workers.
    pub fn of(config: &Config, workers: usize) -> Self {
        let binds = config.listeners.iter().map(|listener| listener.binds.as_slice());
        let probed = config.clusters.iter().filter(|cluster| cluster.health.is_some());
        Standing {
            workers: workers as u64,
            addresses: binds.map(<[Bind]>::len).sum::<usize>() as u64,
            probes: probed.map(|cluster| cluster.endpoints.len()).sum::<usize>() as u64,
        }
    }

    /// Files of the process.
    fn process(&self) -> u64 {
        PROCESS_FILES + self.workers * (WORKER_FILES + self.addresses * HOLDERS_OF_A_SOCKET)
    }

    /// Files of the control thread's work.
    fn control(&self) -> u64 {
        CONTROL_FILES + self.probes
    }
}

/// How the files that a process may open are divided: the four parts are the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    /// The most that may be open.
    pub limit: u64,
    /// What the process holds whatever its traffic is.
    pub process: u64,
    /// Kept for the control thread.
    pub control: u64,
    /// Kept for connections to origins.
    pub origins: u64,
    /// Client connections: `limits.connections`, or as many as there is room for. At least one.
    pub connections: u32,
}

impl Files {
    /// Divides `limit` for a node that is to serve `wanted` clients.
    pub fn fit(limit: u64, standing: &Standing, wanted: u32) -> Self {
        let limit = limit.min(FILES_MOST);
        let control = standing.control().min(limit / CONTROL_ONE_IN);
        let least = TRAFFIC_MIN.min(limit / TRAFFIC_MIN_ONE_IN);
        let process = standing.process().min(limit - control - least);
        let traffic = limit - process - control;
        let kept = (traffic / ORIGINS_ONE_IN).max(ORIGINS_MIN.min(traffic / 2));
        let connections = u32::try_from(traffic - kept).unwrap_or(u32::MAX).clamp(1, wanted.max(1));
        Files { limit, process, control, origins: traffic.saturating_sub(connections.into()), connections }
    }

    /// The lowest limit that has room for `wanted` clients.
    pub fn needed(standing: &Standing, wanted: u32) -> u64 {
        let wanted = u64::from(wanted.max(1));
        let least = wanted + standing.process() + ORIGINS_MIN.min(wanted);
        // All shares grow with the limit, so the search for it needs only a few steps.
        let fits = |limit: u64| u64::from(Files::fit(limit, standing, u32::MAX).connections) >= wanted;
        let (mut below, mut enough) = (0, 2 * least + 2 * standing.control());
        while !fits(enough) {
            (below, enough) = (enough, 2 * enough);
        }
        while enough - below > 1 {
            let middle = below + (enough - below) / 2;
            if fits(middle) {
                enough = middle;
            } else {
                below = middle;
            }
        }
        enough
    }

    /// The first number of a file that no worker uses.
    pub fn ceiling(&self) -> u32 {
        u32::try_from(self.limit - self.control).unwrap_or(u32::MAX)
    }

    /// What clients and origins may have together.
    pub fn traffic(&self) -> u32 {
        u32::try_from(u64::from(self.connections) + self.origins).unwrap_or(u32::MAX)
    }

    /// Without any limit.
    pub fn unlimited(wanted: u32) -> Self {
        Self::fit(u64::MAX, &Standing { workers: 1, addresses: 1, probes: 0 }, wanted)
    }
}

impl std::fmt::Display for Files {
    /// The sum.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Files { limit, process, control, origins, connections } = self;
        write!(
            f,
            "{limit} = {connections} clients + {origins} for origins + {control} for the admin API and probes + \
             {process} of the process"
        )
    }
}
