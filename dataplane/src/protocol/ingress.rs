//! What one listener is to a worker: its counters, the config it is served by, and which of its clients are silent.
//!
//! It accepts nothing itself, and outlives its listener as long as connections that came through it do.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use dataplane_core::stats::ListenerStats;
use slab::Slab;

use super::context::View;
use crate::sys::socket;

/// How long a client has to be silent before a connection that is to end is ended without a word: longer than a round
/// trip to anywhere, since a client that has just been answered may be sending its next request. 1 s in ticks.
const SILENT_TICKS: u64 = 100;
/// Silent connections of one listener that are ended in one tick: their clients all come back somewhere at once, and the
/// streams of this worker have to go on meanwhile. 20,000 a second.
const ENDED_PER_TICK: usize = 200;
/// A tick that never comes: the client is not waited for.
const NEVER: u64 = u64::MAX;

/// What one listener is to a worker. It outlives snapshots: connections accepted on it stay.
pub(crate) struct Ingress {
    name: String,
    /// Its place in the snapshot that it is served by.
    index: Cell<usize>,
    /// Once a reload has removed the listener: when, and the last view that had it.
    retired: RefCell<Option<(u64, Rc<View>)>>,
    stats: Arc<ListenerStats>,
    clients: RefCell<Clients>,
}

/// A connection's place among those of its listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(u32);

impl Ingress {
    /// The listener `name`, at `index` of the current snapshot.
    pub(super) fn new(name: &str, index: usize, stats: Arc<ListenerStats>) -> Self {
        Self {
            name: name.to_owned(),
            index: Cell::new(index),
            retired: RefCell::default(),
            stats,
            clients: RefCell::default(),
        }
    }

    /// The listener's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its index in the route table of the snapshot that it is served by.
    pub(crate) fn index(&self) -> usize {
        self.index.get()
    }

    /// Its counters on this worker.
    pub(crate) fn stats(&self) -> &ListenerStats {
        &self.stats
    }

    /// Another snapshot has it too, there.
    pub(super) fn follow(&self, index: usize) {
        self.index.set(index);
    }

    /// No later snapshot than that of `last` has it.
    pub(super) fn retire(&self, now: u64, last: Rc<View>) {
        self.retired.replace(Some((now, last)));
    }

    /// The view that its connections are still served by, although the listener is gone; none while it is there.
    pub(super) fn last_view(&self) -> Option<Rc<View>> {
        self.retired.borrow().as_ref().map(|(_, last)| Rc::clone(last))
    }

    /// Whether the listener is gone, so that its connections are to end as well.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.borrow().is_some()
    }

    /// Whether it was removed so long ago that no worker still hands one of its connections over.
    pub(super) fn is_forgotten(&self, now: u64) -> bool {
        self.retired.borrow().as_ref().is_some_and(|(since, _)| now >= since + SILENT_TICKS)
    }

    /// A connection begins; nothing is expected of its client yet.
    pub(super) fn enter(&self, socket: RawFd) -> Place {
        Place(self.clients.borrow_mut().0.insert(Client { socket, silent_since: NEVER }) as u32)
    }

    /// From now on the client's next request is waited for.
    pub(super) fn wait(&self, Place(place): Place, now: u64) {
        self.clients.borrow_mut().set(place, now);
    }

    /// The client has made its next move. False: the wait for it was ended, so that whatever it has said was its last.
    pub(super) fn heard(&self, Place(place): Place) -> bool {
        self.clients.borrow_mut().set(place, NEVER) != NEVER
    }

    /// The connection is over.
    pub(super) fn leave(&self, Place(place): Place) {
        self.clients.borrow_mut().0.try_remove(place as usize);
    }

    /// Ends connections whose clients have been silent for a while, and not all at once.
    ///
    /// Only their receiving side is shut: the wait that is under way then ends with what the client has sent up to that
    /// moment, and is answered, or with nothing, and the connection is closed. A request that is sent later than that
    /// crosses our FIN, as with every keep-alive timeout; its client knows from the missing answer that it may repeat
    /// it (RFC 9112, section 9.3.1).
    pub(super) fn end_silent(&self, now: u64) {
        self.clients.borrow_mut().take_silent(now, socket::shutdown_read_raw);
    }
}

/// The sockets of all connections of one listener, and since when each client has been silent.
#[derive(Debug, Default)]
struct Clients(Slab<Client>);

#[derive(Debug)]
struct Client {
    socket: RawFd,
    silent_since: u64,
}

impl Clients {
    /// Returns what was set before.
    fn set(&mut self, place: u32, silent_since: u64) -> u64 {
        let client = self.0.get_mut(place as usize);
        client.map_or(NEVER, |client| std::mem::replace(&mut client.silent_since, silent_since))
    }

    /// Hands to `end` the sockets of clients that have been silent for long enough, each once.
    fn take_silent(&mut self, now: u64, mut end: impl FnMut(RawFd)) {
        let Some(until) = now.checked_sub(SILENT_TICKS) else { return };
        let silent = self.0.iter_mut().filter(|(_, client)| client.silent_since <= until);
        for (_, client) in silent.take(ENDED_PER_TICK) {
            client.silent_since = NEVER;
            end(client.socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(clients: &mut Clients, now: u64) -> Vec<RawFd> {
        let mut taken = Vec::new();
        clients.take_silent(now, |socket| taken.push(socket));
        taken
    }

    #[test]
    fn takes_only_clients_that_were_silent_long_enough_and_each_once() {
        let mut clients = Clients::default();
        for (socket, silent_since) in [(7, 0), (8, 1), (9, NEVER)] {
            clients.0.insert(Client { socket, silent_since });
        }
        assert!(taken(&mut clients, SILENT_TICKS - 1).is_empty());
        assert_eq!(taken(&mut clients, SILENT_TICKS), [7]);
        assert_eq!(taken(&mut clients, SILENT_TICKS + 1), [8]);
        assert!(taken(&mut clients, 10 * SILENT_TICKS).is_empty());
    }

    #[test]
    fn takes_no_more_at_once_than_the_worker_can_end_beside_its_streams() {
        let mut clients = Clients::default();
        for socket in 0..ENDED_PER_TICK as RawFd + 1 {
            clients.0.insert(Client { socket, silent_since: 0 });
        }
        assert_eq!(taken(&mut clients, SILENT_TICKS).len(), ENDED_PER_TICK);
        assert_eq!(taken(&mut clients, SILENT_TICKS + 1).len(), 1);
    }
}
