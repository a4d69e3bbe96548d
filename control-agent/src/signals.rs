//! Signals, by what the operator wants with them.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// SIGHUP: read the config file again.
    Reload,
    /// SIGTERM or SIGINT: say goodbye and end. The data plane goes on.
    Stop,
}

/// The signals that this process listens to.
#[derive(Debug)]
pub struct Signals([(Signal, Wish); 3]);

impl Signals {
    /// Begins to listen; from here on none of them ends the process by itself.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let on = |kind, wish| signal(kind).map(|signal| (signal, wish));
        Ok(Self([
            on(SignalKind::terminate(), Wish::Stop)?,
            on(SignalKind::interrupt(), Wish::Stop)?,
            on(SignalKind::hangup(), Wish::Reload)?,
        ]))
    }

    /// The next one. Cancelling the wait loses none.
    pub async fn next(&mut self) -> Wish {
        let [terminate, interrupt, hangup] = &mut self.0;
        let (_, wish) = tokio::select! {
            biased;
            _ = terminate.0.recv() => terminate,
            _ = interrupt.0.recv() => interrupt,
            _ = hangup.0.recv() => hangup,
        };
        *wish
    }
}
