//! The data plane: thread-per-core forwarding of HTTP over io_uring, and the control thread beside it.
//!
//! A connection's life is the order of the modules: accepted by `listener`, spoken by `protocol`, decided by
//! `dataplane-core` (route, balance), carried by `upstream` (pool), all over `io`. A module may use only what stands
//! to its right: main → server → control → worker → listener → protocol → upstream → relay → metrics → io → sys.

pub mod control;
mod io;
mod listener;
mod metrics;
mod protocol;
mod relay;
pub mod server;
#[cfg(test)]
mod simulation;
mod sys;
mod upstream;
mod worker;
