//! Protocol drivers: bytes of a connection to exchanges, and their answers back.
//!
//! `exchange` holds what all of them share; a driver is a folder or a file that knows one protocol's bytes.

mod access;
mod context;
mod exchange;
mod h1;
mod ident;
mod watch;

pub(crate) use context::{Context, Ingress, Live};
pub(crate) use h1::{Connection, serve};
