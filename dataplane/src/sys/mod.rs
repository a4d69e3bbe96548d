//! System calls that the runtime does not offer, each behind a safe function. Not a place for decisions.
//!
//! With `io/`, this is the only folder where `unsafe` may stand.
#![allow(unsafe_code, reason = "the system calls below have no safe wrapper in the libraries that we use")]

mod accounts;
pub(crate) mod cpu;
pub(crate) mod event;
pub(crate) mod files;
pub(crate) mod inherit;
pub(crate) mod memory;
#[cfg(test)]
pub(crate) mod simulated;
pub(crate) mod socket;
pub(crate) mod unix;
