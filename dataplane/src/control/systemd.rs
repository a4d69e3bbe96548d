//! What systemd is told: ready, reloading, stopping, who the main process is, and that every worker turns.
//! Without systemd (no `NOTIFY_SOCKET`) nothing is said.

use std::sync::Arc;
use std::time::Duration;

use dataplane_core::stats::WorkerStats;
use sd_notify::NotifyState;
use tracing::warn;

/// The node serves. The process names itself the main one, since after an upgrade it is not the one systemd started.
pub(crate) fn ready() {
    tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
}

/// A reload began; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The process is on its way out.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells systemd that the process lives, for as long as every worker turns: a worker that hangs gets the process
/// restarted, which is what `WatchdogSec` is for. Never returns; where no watchdog runs it does nothing.
pub(crate) async fn feed_watchdog(workers: Vec<Arc<WorkerStats>>) {
    let Some(deadline) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut beat = Heartbeat::new(workers);
    // Twice a deadline, as sd_watchdog_enabled(3) advises; workers tick far more often than that.
    let mut interval = tokio::time::interval((deadline / 2).max(Duration::from_millis(1)));
    loop {
        interval.tick().await;
        match beat.stuck() {
            None => tell(&[NotifyState::Watchdog]),
            Some(worker) => warn!(worker, "the worker does not turn: the watchdog is not fed"),
        }
    }
}

/// Sees whether every worker has turned since the last look.
#[derive(Debug)]
struct Heartbeat {
    workers: Vec<Arc<WorkerStats>>,
    /// The ticks at the last look; none before the first.
    seen: Option<Vec<u64>>,
}

impl Heartbeat {
    fn new(workers: Vec<Arc<WorkerStats>>) -> Self {
        Heartbeat { workers, seen: None }
    }

    /// The first worker whose tick is the one of the last look.
    fn stuck(&mut self) -> Option<usize> {
        let ticks: Vec<u64> = self.workers.iter().map(|worker| worker.heartbeat_tick.value()).collect();
        let seen = self.seen.replace(ticks.clone())?;
        ticks.iter().zip(&seen).position(|(now, before)| now == before)
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_turn_is_found() {
        let workers: Vec<Arc<WorkerStats>> = (0..2).map(|_| Arc::default()).collect();
        let mut beat = Heartbeat::new(workers.clone());
        assert_eq!(beat.stuck(), None);
        workers[0].heartbeat_tick.set(7);
        assert_eq!(beat.stuck(), Some(1));
        workers[0].heartbeat_tick.set(8);
        workers[1].heartbeat_tick.set(1);
        assert_eq!(beat.stuck(), None);
    }
}
