//! Signals, by what the operator wants with them.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// SIGHUP: read the config file again, and open the access log's file again.
    Reload,
    /// SIGTERM: take no new connections, let exchanges finish, end. SIGINT: end now.
    End(Ending),
    /// SIGUSR2: let a new process take over.
    Upgrade,
}

/// How the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// When its exchanges have ended.
    Drained,
    /// At once.
    Now,
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

    /// What `work` comes to, unless a signal ends the process first: then `work` is dropped. Other signals wait for
    /// [`Signals::next`].
    pub(crate) async fn or_end<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Ending> {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Err(Ending::Now),
            _ = self.terminate.recv() => Err(Ending::Drained),
            output = work => Ok(output),
        }
    }

    /// The next one. Cancelling the wait loses none.
    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Wish::End(Ending::Now),
            _ = self.terminate.recv() => Wish::End(Ending::Drained),
            _ = self.user2.recv() => Wish::Upgrade,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Number, getpid, kill_process};

    use super::*;

    /// One test for all of it: signals are the whole process's.
    #[tokio::test]
    async fn a_signal_that_ends_the_process_ends_what_is_waited_for_and_others_wait() {
        let mut signals = Signals::listen().unwrap();
        assert_eq!(signals.or_end(async { 7 }).await, Ok(7));
        kill_process(getpid(), Number::HUP).unwrap();
        let hangs = std::future::pending::<()>;
        for (number, ending) in [(Number::TERM, Ending::Drained), (Number::INT, Ending::Now)] {
            kill_process(getpid(), number).unwrap();
            assert_eq!(signals.or_end(hangs()).await, Err(ending));
        }
        assert_eq!(signals.next().await, Wish::Reload);
    }
}
