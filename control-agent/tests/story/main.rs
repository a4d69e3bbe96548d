//! The agent between a real data plane and a real gRPC server: enrolment, configs that are served or refused, commands,
//! and everything that may be killed or cut on the way. At last between several edges and the real master.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod command_line;
mod configs;
mod credentials;
mod edge;
mod faults;
mod fleet;
mod fleet_master;
mod master;
mod session;
