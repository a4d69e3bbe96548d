//! What systemd is told of the agent itself: ready, reloading, stopping, and that its loop turns. Without systemd (no
//! `NOTIFY_SOCKET`) nothing is said.

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::warn;

/// The agent does its work; it need not have found a master.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The config is being read again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "the clock cannot be read"),
    }
}

/// The process is on its way out.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Feeds the watchdog, as part of the loop that it watches.
#[derive(Debug)]
pub struct Watchdog(Option<Interval>);

impl Watchdog {
    /// Twice a deadline, as sd_watchdog_enabled(3) advises; never where no watchdog runs.
    pub fn start() -> Self {
        let interval = sd_notify::watchdog_enabled().map(|deadline| {
            let mut interval = tokio::time::interval(deadline / 2);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Self(interval)
    }

    /// Feeds it when the next time has come.
    pub async fn tick(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
            None => std::future::pending().await,
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd cannot be told");
    }
}
