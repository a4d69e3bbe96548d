//! What `millrace-bench` is made of, as a library, so that the tests of other crates can start the
//! mock origin in their own process. It is not part of the data plane and shares no code with it:
//! a mistake in the proxy's framing must not be mirrored by the origin that is there to find it.
//!
//! Without the feature `measure` there are only the servers, [`origin`] and [`echo`].

#[cfg(feature = "measure")]
pub mod compare;
#[cfg(feature = "measure")]
pub mod contest;
#[cfg(feature = "measure")]
mod dial;
pub mod echo;
#[cfg(feature = "measure")]
pub mod floor;
#[cfg(feature = "measure")]
mod histogram;
#[cfg(feature = "measure")]
pub mod host;
#[cfg(feature = "measure")]
pub mod idle;
#[cfg(feature = "measure")]
pub mod load;
#[cfg(feature = "measure")]
mod memory;
pub mod origin;
#[cfg(feature = "measure")]
mod output;
mod pattern;
#[cfg(feature = "measure")]
pub mod record;
#[cfg(feature = "measure")]
pub mod report;
#[cfg(feature = "measure")]
mod sched;
