//! What one listener is to a worker: its counters, the config it is served by, and since when its clients are silent.
//!
//! It accepts nothing itself, and outlives its listener as long as connections that came through it do.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use dataplane_core::room::{IDLE_AFTER_TICKS, Rank};
use dataplane_core::stats::ListenerStats;

use super::context::View;
use crate::io::{PAGE, Table, Ticks};
use crate::sys::socket;

/// Silent connections of one listener that are ended in one tick: their clients may all come back somewhere at once, and
/// the streams of this worker have to go on meanwhile. 20,000 a second.
const ENDED_PER_TICK: usize = 200;

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

/// What a connection takes among those of its listener.
#[cfg(test)]
pub(super) const CLIENT_BYTES: usize = Table::<Client>::ENTRY_BYTES;

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
        self.retired.borrow().as_ref().is_some_and(|(since, _)| now >= since + IDLE_AFTER_TICKS)
    }

    /// A connection begins: its client's first request is waited for.
    pub(super) fn enter(&self, socket: RawFd, now: u64) -> Place {
        Place(self.clients.borrow_mut().enter(socket, now))
    }

    /// From now on the client's next request is waited for.
    pub(super) fn wait(&self, Place(place): Place, now: u64) {
        self.clients.borrow_mut().wait(place, now);
    }

    /// The client has made its next move. False: the wait for it was ended, so that whatever it has said was its last.
    pub(super) fn heard(&self, Place(place): Place) -> bool {
        self.clients.borrow_mut().heard(place)
    }

    /// The connection is over.
    pub(super) fn leave(&self, Place(place): Place) {
        self.clients.borrow_mut().table.remove(place);
    }

    /// Ends connections whose clients have been silent for `keep_alive`, or where all are to end, for a moment; and not
    /// all at once. Called each tick.
    ///
    /// Only their receiving side is shut: the wait that is under way then ends with what the client has sent up to that
    /// moment, and is answered, or with nothing, and the connection is closed. A request that is sent later than that
    /// crosses our FIN, as with every keep-alive timeout; its client knows from the missing answer that it may repeat
    /// it (RFC 9112, section 9.3.1).
    pub(super) fn end_silent(&self, now: u64, keep_alive: Ticks, is_ending: bool) {
        let most = if is_ending { IDLE_AFTER_TICKS } else { u64::MAX };
        let silence = keep_alive.count().min(most);
        self.clients.borrow_mut().take_silent(now, silence, socket::shutdown_read_raw);
    }

    /// Offers each silent client whose connection may end for others.
    pub(super) fn offer_silent(&self, now: u64, offer: impl FnMut(Rank, Place)) {
        self.clients.borrow().offer_silent(now, offer);
    }

    /// Ends a silent client's connection for others, as [`Ingress::end_silent`] does.
    pub(super) fn displace(&self, Place(place): Place) {
        if let Some(socket) = self.clients.borrow_mut().end(place) {
            self.stats.displaced.increment();
            socket::shutdown_read_raw(socket);
        }
    }
}

/// The sockets of all connections of one listener, and since when each client has been silent.
///
/// In place of a deadline for each, every page of the table knows a tick before which none of its clients fell silent: a
/// page is looked through only when one of them may have been silent for long enough.
#[derive(Debug)]
struct Clients {
    table: Table<Client>,
    /// By page; none where nobody is waited for.
    silent: Vec<Option<u64>>,
}

#[derive(Debug)]
struct Client {
    socket: RawFd,
    silent_since: Since,
}

/// The lower 31 bits of a tick, good for 248 days; or that the client is not waited for, or that the wait was ended. And in the
/// highest bit whether the client has asked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Since(u32);

impl Since {
    const HAS_ASKED: u32 = 1 << 31;
    const TICK: u32 = Self::HAS_ASKED - 1;
    /// Not waited for.
    const NEVER: u32 = Self::TICK;
    /// The wait was ended from our side.
    const ENDED: u32 = Self::TICK - 1;
    /// Of a client that has just come.
    const ARRIVED: Self = Self(Self::NEVER);
    /// Of a client that has asked, and waits for the answer.
    const ASKED: Self = Self(Self::HAS_ASKED | Self::NEVER);

    /// Silent from now on; what was ended stays so.
    fn tick(self, now: u64) -> Self {
        if self.is_ended() {
            return self;
        }
        Self((self.0 & Self::HAS_ASKED) | (now as u32 & Self::TICK).min(Self::ENDED - 1))
    }

    fn ended(self) -> Self {
        Self((self.0 & Self::HAS_ASKED) | Self::ENDED)
    }

    fn is_ended(self) -> bool {
        self.0 & Self::TICK == Self::ENDED
    }

    fn is_waited_for(self) -> bool {
        self.0 & Self::TICK < Self::ENDED
    }

    fn has_asked(self) -> bool {
        self.0 & Self::HAS_ASKED != 0
    }

    /// Ticks from then to now.
    fn silence(self, now: u64) -> Option<u64> {
        self.is_waited_for().then(|| u64::from((now as u32).wrapping_sub(self.0) & Self::TICK))
    }
}

impl Default for Clients {
    fn default() -> Self {
        Self { table: Table::new(), silent: Vec::new() }
    }
}

impl Clients {
    fn enter(&mut self, socket: RawFd, now: u64) -> u32 {
        let place = self.table.insert(Client { socket, silent_since: Since::ARRIVED });
        self.wait(place, now);
        place
    }

    fn wait(&mut self, place: u32, now: u64) {
        let Some(client) = self.table.get_mut(place) else { return };
        client.silent_since = client.silent_since.tick(now);
        let page = place as usize / PAGE;
        if self.silent.len() <= page {
            self.silent.resize(page + 1, None);
        }
        self.silent[page].get_or_insert(now);
    }

    /// False if the wait was ended meanwhile.
    fn heard(&mut self, place: u32) -> bool {
        let client = self.table.get_mut(place);
        client.is_some_and(|client| std::mem::replace(&mut client.silent_since, Since::ASKED).is_waited_for())
    }

    /// Ends the wait for a client; its socket, if it was waited for.
    fn end(&mut self, place: u32) -> Option<RawFd> {
        let client = self.table.get_mut(place).filter(|client| client.silent_since.is_waited_for())?;
        client.silent_since = client.silent_since.ended();
        Some(client.socket)
    }

    fn offer_silent(&self, now: u64, mut offer: impl FnMut(Rank, Place)) {
        let pages = self.silent.iter().enumerate().filter(|(_, silent)| silent.is_some());
        for place in pages.flat_map(|(page, _)| (page * PAGE) as u32..((page + 1) * PAGE) as u32) {
            let Some(client) = self.table.get(place) else { continue };
            if let Some(silence) = client.silent_since.silence(now)
                && let Some(rank) = Rank::of(silence, client.silent_since.has_asked())
            {
                offer(rank, Place(place));
            }
        }
    }

    /// Hands to `end` the sockets of clients that have been silent for so many ticks, each once.
    fn take_silent(&mut self, now: u64, silence: u64, mut end: impl FnMut(RawFd)) {
        let mut left = ENDED_PER_TICK;
        for (page, silent) in self.silent.iter_mut().enumerate() {
            if silent.is_none_or(|first| now < first.saturating_add(silence)) {
                continue;
            }
            let mut longest = None;
            for client in self.table.page_mut(page) {
                let Some(silent_for) = client.silent_since.silence(now) else { continue };
                if silent_for < silence {
                    longest = longest.max(Some(silent_for));
                } else if left > 0 {
                    left -= 1;
                    client.silent_since = client.silent_since.ended();
                    end(client.socket);
                } else {
                    // The page is looked at again in the next tick.
                    return;
                }
            }
            *silent = longest.map(|longest| now - longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that fell silent at these ticks, at sockets from 0 up.
    fn silent_since(ticks: impl IntoIterator<Item = u64>) -> Clients {
        let mut clients = Clients::default();
        for (socket, tick) in (0..).zip(ticks) {
            clients.enter(socket, tick);
        }
        clients
    }

    fn taken(clients: &mut Clients, now: u64, silence: u64) -> Vec<RawFd> {
        let mut taken = Vec::new();
        clients.take_silent(now, silence, |socket| taken.push(socket));
        taken
    }

    #[test]
    fn takes_only_clients_that_were_silent_long_enough_and_each_once() {
        let mut clients = silent_since([5, 6, 7]);
        assert!(clients.heard(2), "its wait was not ended");
        assert!(taken(&mut clients, 104, 100).is_empty());
        assert_eq!(taken(&mut clients, 105, 100), [0]);
        assert!(!clients.heard(0), "its wait was ended");
        assert_eq!(taken(&mut clients, 106, 100), [1]);
        assert!(taken(&mut clients, 1000, 100).is_empty());
        clients.wait(2, 1000);
        assert_eq!(taken(&mut clients, 1100, 100), [2]);
    }

    #[test]
    fn a_client_that_has_spoken_is_given_its_whole_time_again() {
        let mut clients = silent_since([0, 0]);
        for now in 1..50 {
            clients.heard(1);
            clients.wait(1, now);
            assert!(taken(&mut clients, now, 50).is_empty());
        }
        assert_eq!(taken(&mut clients, 50, 50), [0]);
        assert!(taken(&mut clients, 98, 50).is_empty());
        assert_eq!(taken(&mut clients, 99, 50), [1]);
    }

    #[test]
    fn every_page_keeps_its_own_time() {
        let count = 2 * PAGE as RawFd + 1;
        let mut clients = Clients::default();
        for (socket, now) in (0..count + 10).zip(0..) {
            if socket < count {
                clients.enter(socket, now);
            }
            let expected: Vec<RawFd> = if socket >= 10 { vec![socket - 10] } else { Vec::new() };
            assert_eq!(taken(&mut clients, now, 10), expected);
        }
        assert!(clients.silent.iter().all(Option::is_none), "nobody is left to be looked for");
    }

    #[test]
    fn takes_no_more_at_once_than_the_worker_can_end_beside_its_streams() {
        let mut clients = silent_since(vec![0; ENDED_PER_TICK + 1]);
        assert_eq!(taken(&mut clients, 10, 10).len(), ENDED_PER_TICK);
        assert_eq!(taken(&mut clients, 11, 10).len(), 1);
    }

    #[test]
    fn time_goes_on_when_the_lower_half_of_it_begins_anew() {
        let half = u64::from(Since::TICK);
        let ends = [half, u64::from(u32::MAX)];
        for start in ends.into_iter().flat_map(|end| [end - 2, end - 1, end, end + 1]) {
            let mut clients = silent_since([start]);
            assert!(taken(&mut clients, start + 8, 10).is_empty());
            assert_eq!(taken(&mut clients, start + 11, 10), [0]);
        }
    }
    /// Places of clients that may end for others, with their ranks.
    fn offered(clients: &Clients, now: u64) -> Vec<(Rank, u32)> {
        let mut offered = Vec::new();
        clients.offer_silent(now, |rank, Place(place)| offered.push((rank, place)));
        offered
    }

    #[test]
    fn only_clients_that_are_waited_for_are_offered_and_those_that_have_asked_are_known() {
        let mut clients = silent_since([0, 0, 0]);
        assert!(clients.heard(1) && clients.heard(2));
        clients.wait(1, 20);
        let expected = [(Rank::Mute(150), 0), (Rank::Served(130), 1)];
        assert_eq!(offered(&clients, 150), expected);
        // The next request of the same client changes nothing about that.
        assert!(clients.heard(1));
        clients.wait(1, 30);
        assert_eq!(offered(&clients, 150)[1], (Rank::Served(120), 1));
        assert_eq!(offered(&clients, 99), [(Rank::Arriving(99), 0)], "the other one was just served");
    }

    #[test]
    fn a_wait_that_was_ended_for_others_is_ended_once_and_known_as_the_last() {
        let mut clients = silent_since([0, 0]);
        assert_eq!(clients.end(1), Some(1));
        assert_eq!(clients.end(1), None);
        assert_eq!(offered(&clients, 500), [(Rank::Mute(500), 0)]);
        // Its task may not even have begun to wait.
        clients.wait(1, 501);
        assert_eq!(offered(&clients, 600).len(), 1);
        assert!(!clients.heard(1), "what it says now was its last");
        assert!(clients.heard(0));
        assert_eq!(clients.end(0), None, "it is being served");
    }
    #[test]
    fn what_a_client_has_sent_before_it_is_displaced_is_read_and_answered() {
        use std::io::{Read, Write};
        use std::os::fd::AsRawFd;
        use std::os::unix::net::UnixStream;
        let ingress = Ingress::new("http", 0, Arc::default());
        let (mut ours, mut client) = UnixStream::pair().unwrap();
        let place = ingress.enter(ours.as_raw_fd(), 0);
        client.write_all(b"request").unwrap();
        ingress.displace(place);
        let mut read = Vec::new();
        ours.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"request");
        ours.write_all(b"answer").unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        ingress.displace(place);
        assert_eq!(ingress.stats().displaced.value(), 1, "it goes once");
    }
}
