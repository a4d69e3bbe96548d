//! Every decision of the data plane, and nothing else: it cannot open a socket, read a clock, spawn a task or use
//! `unsafe`. Time is an argument. Drivers in the `dataplane` crate read and write, and ask here what to do.
#![forbid(unsafe_code)]

pub mod balance;
pub mod endpoint;
pub mod error;
pub mod expect;
pub mod files;
#[doc(hidden)]
pub mod fuzz;
pub mod h1;
pub mod half_close;
pub mod health;
pub mod limit;
pub mod request;
pub mod retry;
pub mod room;
pub mod route;
pub mod snapshot;
pub mod stats;
pub mod timer;
