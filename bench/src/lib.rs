//! What `millrace-bench` is made of, as a library, so that the tests of other crates can start the
//! mock origin in their own process. It is not part of the data plane and shares no code with it:
//! a mistake in the proxy's framing must not be mirrored by the origin that is there to find it.

pub mod compare;
pub mod contest;
mod dial;
pub mod echo;
pub mod floor;
mod histogram;
pub mod host;
pub mod idle;
pub mod load;
mod memory;
pub mod origin;
mod output;
mod pattern;
pub mod record;
pub mod report;
mod sched;
