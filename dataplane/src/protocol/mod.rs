//! Protocol drivers: bytes of a connection to exchanges, and their answers back.
//!
//! `exchange` holds what all of them share; a driver is a folder or a file that knows one protocol's bytes.

mod access;
mod context;
mod exchange;
mod h1;
mod ident;
mod ingress;
mod peer;
mod warm;

pub(crate) use context::{Context, Live, Room};
pub(crate) use h1::{Connection, IDLE_CONNECTION_BYTES, serve, turn_away};
pub(crate) use ingress::Ingress;
