//! What systemd is told: ready, reloading, stopping, who the main process is, and that every worker turns.
//! Without systemd (no `NOTIFY_SOCKET`) nothing is said. A systemd that does not read is not waited for forever.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dataplane_core::stats::WorkerStats;
use sd_notify::NotifyState;
use tokio::net::UnixDatagram;
use tracing::warn;

/// What names systemd's socket (sd_notify(3)).
const SOCKET: &str = "NOTIFY_SOCKET";
/// How long systemd may take to have room for a message: it reads them within milliseconds.
const TELL_WITHIN: Duration = Duration::from_secs(1);

/// The node serves. The process names itself the main one, since after an upgrade it is not the one systemd started.
pub(crate) async fn ready() {
    tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]).await;
}

/// A reload began; [`ready`] ends it.
pub(crate) async fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]).await,
        Err(_) => tell(&[NotifyState::Reloading]).await,
    }
}

/// The process is on its way out.
pub(crate) async fn stopping() {
    tell(&[NotifyState::Stopping]).await;
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
            None => tell(&[NotifyState::Watchdog]).await,
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

async fn tell(state: &[NotifyState<'_>]) {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let message: String = state.iter().map(|one| format!("{one}\n")).collect();
    if let Err(error) = send(socket.as_ref(), message.as_bytes()).await {
        warn!(%error, "systemd cannot be told");
    }
}

async fn send(path: &Path, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    tokio::time::timeout(TELL_WITHIN, socket.send(message)).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_does_not_read_is_waited_for_until_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let mut told = 0;
        let full = loop {
            match send(&path, b"READY=1\n").await {
                Ok(()) => told += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        let mut message = [0; 64];
        for _ in 0..told {
            assert_eq!(systemd.recv(&mut message).unwrap(), 8);
        }
        send(&path, b"STOPPING=1\n").await.unwrap();
        assert_eq!(systemd.recv(&mut message).unwrap(), 11);
    }

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
