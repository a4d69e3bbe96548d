//! The sessions of agents that are open now, and what each has said last. In memory: after a restart the agents come
//! back and say it again.
//!
//! Nothing here waits. What is wanted of a node is a slot that is overwritten (a config) or a short queue (commands);
//! an agent that reads slowly fills its own queue and is told to go, and nobody else notices.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use proto::fleet::limits;
use proto::v1::{DataplaneInfo, GoodbyeReason, HostMetrics, MasterMessage, agent_message};
use tokio::sync::{mpsc, watch};

use super::offer::Offer;

/// Messages that may wait for one agent: the commands that it runs at once, and as many cancels, twice over.
pub(crate) const QUEUE_MAX: usize = 4 * limits::COMMANDS_RUNNING_MAX;

/// The open sessions.
pub(crate) struct Sessions {
    heartbeat: Duration,
    opened: AtomicU64,
    inner: Mutex<HashMap<String, Entry>>,
    listeners: RwLock<Vec<Arc<dyn Listener>>>,
}

/// Whoever wants to know what agents say: metrics, commands, alerts.
pub(crate) trait Listener: Send + Sync {
    /// A node's session has begun; `instance_id` tells one start of its agent from another, `command_ids` are the
    /// commands that it still has to answer.
    fn handle_connected(&self, node: &str, instance_id: &[u8], command_ids: &[String], at_ms: u64);
    /// A node has said something. Called on the session's own task: what takes long belongs elsewhere.
    fn handle_message(&self, node: &str, message: &agent_message::Kind, at_ms: u64);
    /// A node's session has ended.
    fn handle_disconnected(&self, node: &str, at_ms: u64);
}

/// What is known of a node since the master was started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    /// Whether there is a session.
    pub(crate) is_connected: bool,
    /// Whether the agent said goodbye.
    pub(crate) has_left: bool,
    /// When the session began, in milliseconds since 1970.
    pub(crate) connected_at_ms: u64,
    /// When the agent was heard of last.
    pub(crate) heard_at_ms: u64,
    /// From where it came.
    pub(crate) address: Option<IpAddr>,
    /// What an operator should know.
    pub(crate) problems: Vec<String>,
    /// The host at the last heartbeat.
    pub(crate) host: Option<HostMetrics>,
    /// The data plane at the last heartbeat.
    pub(crate) dataplane: Option<DataplaneInfo>,
    /// Round trip of a heartbeat, as the agent measures it; 0 before the first.
    pub(crate) round_trip_us: u64,
}

struct Entry {
    live: Live,
    handle: Option<Handle>,
}

/// The registry's end of a session.
struct Handle {
    /// Tells this session from others of the same node.
    number: u64,
    wanted: watch::Sender<Option<Arc<Offer>>>,
    queue: mpsc::Sender<MasterMessage>,
    end: watch::Sender<Option<GoodbyeReason>>,
}

/// The session's own end.
pub(crate) struct Ticket {
    number: u64,
    /// The config that the node should have.
    pub(crate) wanted: watch::Receiver<Option<Arc<Offer>>>,
    /// Commands for it.
    pub(crate) queue: mpsc::Receiver<MasterMessage>,
    /// Why the session is to end, once it is.
    pub(crate) end: watch::Receiver<Option<GoodbyeReason>>,
}

/// Why a message cannot be sent to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// It has no session.
    Offline,
    /// Too much waits for it already.
    Busy,
}

impl Sessions {
    /// Where agents report so often.
    pub(crate) fn new(heartbeat: Duration) -> Self {
        Self { heartbeat, opened: AtomicU64::new(0), inner: Mutex::default(), listeners: RwLock::default() }
    }

    /// How often agents report.
    pub(crate) fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// Lets somebody hear what agents say from now on.
    pub(crate) fn listen(&self, listener: Arc<dyn Listener>) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Opens a session; an older one of the same node ends.
    pub(crate) fn open(&self, node: &str, address: Option<IpAddr>, at_ms: u64) -> Ticket {
        let (wanted, wanted_seen) = watch::channel(None);
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let (end, ended) = watch::channel(None);
        let mut inner = self.inner();
        let entry = inner.entry(node.to_owned()).or_insert_with(Entry::new);
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let older = entry.handle.replace(Handle { number, wanted, queue, end });
        if let Some(older) = older {
            let _ = older.end.send(Some(GoodbyeReason::Replaced));
        }
        let Live { connected_at_ms, heard_at_ms, .. } = &mut entry.live;
        (*connected_at_ms, *heard_at_ms) = (at_ms, at_ms);
        entry.live.is_connected = true;
        entry.live.has_left = false;
        entry.live.address = address;
        Ticket { number, wanted: wanted_seen, queue: queued, end: ended }
    }

    /// Ends a session; whether it was the node's newest, so that the node has none now.
    pub(crate) fn close(&self, node: &str, ticket: &Ticket, has_left: bool) -> bool {
        let mut inner = self.inner();
        let Some(entry) = inner.get_mut(node) else { return true };
        if entry.handle.as_ref().is_some_and(|handle| handle.number != ticket.number) {
            return false;
        }
        entry.handle = None;
        entry.live.is_connected = false;
        entry.live.has_left = has_left;
        true
    }

    /// Forgets a node, and ends its session.
    pub(super) fn remove(&self, node: &str) {
        let removed = self.inner().remove(node);
        if let Some(handle) = removed.and_then(|entry| entry.handle) {
            let _ = handle.end.send(Some(GoodbyeReason::Removed));
        }
    }

    /// Ends all sessions.
    pub(crate) fn end_all(&self) {
        for entry in self.inner().values() {
            if let Some(handle) = &entry.handle {
                let _ = handle.end.send(Some(GoodbyeReason::Stopping));
            }
        }
    }

    /// What is known of a node.
    pub(crate) fn live(&self, node: &str) -> Option<Live> {
        self.inner().get(node).map(|entry| entry.live.clone())
    }

    /// The nodes that have a session.
    pub(crate) fn connected(&self) -> Vec<String> {
        let inner = self.inner();
        inner.iter().filter(|(_, entry)| entry.handle.is_some()).map(|(node, _)| node.clone()).collect()
    }

    /// Notes that a node was heard of, and what it said of itself.
    pub(crate) fn hear(&self, node: &str, said: &agent_message::Kind, at_ms: u64) {
        if let Some(entry) = self.inner().get_mut(node) {
            entry.live.heard_at_ms = at_ms;
            entry.live.note(said);
        }
    }

    /// Sets the config that a node should have now that it is another than any before: one that is older, too.
    pub(super) fn want_instead(&self, node: &str, offer: &Arc<Offer>) {
        let inner = self.inner();
        if let Some(handle) = inner.get(node).and_then(|entry| entry.handle.as_ref()) {
            handle.wanted.send_replace(Some(Arc::clone(offer)));
        }
    }

    /// Sets the config that a node should have, unless a newer one is set already.
    pub(super) fn want(&self, node: &str, offer: &Arc<Offer>) {
        let inner = self.inner();
        let Some(handle) = inner.get(node).and_then(|entry| entry.handle.as_ref()) else { return };
        handle.wanted.send_if_modified(|wanted| {
            let is_newer = wanted.as_ref().is_none_or(|other| other.revision < offer.revision);
            if is_newer {
                *wanted = Some(Arc::clone(offer));
            }
            is_newer
        });
    }

    /// Queues a message for a node.
    ///
    /// # Errors
    /// It has no session, or reads so slowly that its queue is full; then its session ends, too.
    pub(crate) fn send(&self, node: &str, message: MasterMessage) -> Result<(), Unreachable> {
        let inner = self.inner();
        let handle = inner.get(node).and_then(|entry| entry.handle.as_ref()).ok_or(Unreachable::Offline)?;
        match handle.queue.try_send(message) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Unreachable::Offline),
            Err(mpsc::error::TrySendError::Full(_)) => {
                let _ = handle.end.send(Some(GoodbyeReason::TooSlow));
                Err(Unreachable::Busy)
            }
        }
    }

    /// Tells every listener.
    pub(crate) fn tell(&self, tell: impl Fn(&dyn Listener)) {
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone();
        listeners.iter().for_each(|listener| tell(listener.as_ref()));
    }

    fn inner(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Keeps what an agent says of itself.
    fn note(&mut self, said: &agent_message::Kind) {
        match said {
            agent_message::Kind::Register(register) => self.dataplane.clone_from(&register.dataplane),
            agent_message::Kind::Heartbeat(heartbeat) => {
                let problems = heartbeat.problems.iter().take(limits::PROBLEMS_MAX);
                let clipped = |problem| limits::clipped(problem, limits::MESSAGE_TEXT_BYTES_MAX).to_owned();
                self.problems = problems.map(|problem: &String| clipped(problem)).collect();
                self.host.clone_from(&heartbeat.host);
                self.dataplane.clone_from(&heartbeat.dataplane);
                self.round_trip_us = heartbeat.round_trip_us;
            }
            agent_message::Kind::Metrics(_)
            | agent_message::Kind::MetricsPiece(_)
            | agent_message::Kind::ConfigAck(_)
            | agent_message::Kind::ConfigNack(_)
            | agent_message::Kind::ConfigDeferred(_)
            | agent_message::Kind::CredentialChange(_)
            | agent_message::Kind::CommandOutput(_)
            | agent_message::Kind::CommandResult(_)
            | agent_message::Kind::Leaving(_) => {}
        }
    }
}

impl Entry {
    fn new() -> Self {
        Self { live: Live::default(), handle: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(Duration::from_secs(10))
    }

    #[test]
    fn a_newer_session_ends_the_older_one_and_survives_its_end() {
        let sessions = sessions();
        let older = sessions.open("a", None, 1);
        let newer = sessions.open("a", None, 2);
        assert_eq!(*older.end.borrow(), Some(GoodbyeReason::Replaced));
        assert!(!sessions.close("a", &older, false));
        assert!(sessions.live("a").unwrap().is_connected);
        assert!(sessions.close("a", &newer, true));
        let live = sessions.live("a").unwrap();
        assert!(!live.is_connected && live.has_left);
    }

    #[test]
    fn a_slow_agents_queue_has_an_end() {
        let sessions = sessions();
        assert_eq!(sessions.send("a", MasterMessage::default()), Err(Unreachable::Offline));
        let ticket = sessions.open("a", None, 1);
        for _ in 0..QUEUE_MAX {
            assert_eq!(sessions.send("a", MasterMessage::default()), Ok(()));
        }
        assert_eq!(sessions.send("a", MasterMessage::default()), Err(Unreachable::Busy));
        assert_eq!(*ticket.end.borrow(), Some(GoodbyeReason::TooSlow));
    }

    #[test]
    fn an_older_config_does_not_replace_a_newer_one() {
        let sessions = sessions();
        let ticket = sessions.open("a", None, 1);
        let wanted = || ticket.wanted.borrow().as_ref().map(|offer| offer.revision);
        sessions.want("a", &Arc::new(Offer::sample(2)));
        sessions.want("a", &Arc::new(Offer::sample(1)));
        assert_eq!(wanted(), Some(2));
        sessions.want("a", &Arc::new(Offer::sample(3)));
        assert_eq!(wanted(), Some(3));
    }
}
