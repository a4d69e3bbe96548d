//! Signals, by what the operator wants with them.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// SIGHUP: read the config file again, and open the access log's file again.
    Reload,
    /// SIGTERM: take no new connections, let exchanges finish, end.
    DrainAndStop,
    /// SIGINT: end now.
    Stop,
    /// SIGUSR2: let a new process take over.
    Upgrade,
}

/// The signals that this process listens to.
#[derive(Debug)]
pub(crate) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    user2: Signal,
}

impl Signals {
    /// Begins to listen; from here on none of them ends the process by itself.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one. Cancelling the wait loses none.
    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.terminate.recv() => Wish::DrainAndStop,
            _ = self.user2.recv() => Wish::Upgrade,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}
