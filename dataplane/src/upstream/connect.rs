//! Dialling an endpoint within its deadline.

use std::io;

use dataplane_core::error::FaultKind;
use proto::config::SocketOptions;

use super::Endpoint;
use crate::io::{Deadlines, Side, Stream, Ticks, Timer, dial};
use crate::sys::socket::is_out_of_files;

/// Why there is no connection.
pub(crate) struct ConnectFailure {
    pub(crate) kind: FaultKind,
    pub(crate) error: io::Error,
}

/// A new connection to `endpoint`, or what kept it from coming about within `timeout`. Its descriptor is below `ceiling`.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    options: &SocketOptions,
    deadlines: &Deadlines,
    timeout: Ticks,
    ceiling: u32,
) -> Result<Stream, ConnectFailure> {
    endpoint.stats.connects.increment();
    let started = |fd| deadlines.arm(Side::Upstream, Timer::Connect, fd, timeout);
    let result = dial(&endpoint.address, options, ceiling, started).await;
    deadlines.disarm(Side::Upstream);
    // The deadline's shutdown makes the socket writable like a connect does: the deadline has the last word.
    if deadlines.fired() == Some(Timer::Connect) {
        endpoint.stats.connect_failures.increment();
        return Err(ConnectFailure {
            kind: FaultKind::ConnectTimeout,
            error: io::ErrorKind::TimedOut.into(),
        });
    }
    result.map_err(|error| {
        if is_out_of_files(&error) {
            // Nobody was dialled: the endpoint has nothing to do with it.
            return ConnectFailure { kind: FaultKind::OutOfFiles, error };
        }
        endpoint.stats.connect_failures.increment();
        let refused = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        let kind = if refused { FaultKind::ConnectRefused } else { FaultKind::ConnectFailed };
        ConnectFailure { kind, error }
    })
}
