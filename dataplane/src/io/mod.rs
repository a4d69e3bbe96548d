//! The one door to the runtime: nothing outside of this folder names monoio.
//!
//! It offers what a proxy needs and nothing else: [`Stream`] over pooled [`Buf`]s, readiness of any descriptor,
//! dialling, deadlines on one coarse wheel per worker, a mailbox, tasks. So the runtime can be tuned or replaced here.
#![allow(unsafe_code, reason = "buffers are lent to the kernel, and descriptors change owners; nowhere else")]

mod buf;
mod dial;
mod mailbox;
mod runtime;
mod stream;
mod timer;

pub(crate) use buf::{Buf, LARGE_BYTES, SMALL_BYTES, buffers_out, bytes_out};
pub(crate) use dial::dial;
pub(crate) use mailbox::Mailbox;
pub(crate) use runtime::{Mode, panics, probe_io_uring, run, sockets_nonblocking, spawn};
pub(crate) use stream::Stream;
pub(crate) use timer::{Deadlines, Side, TICK, Ticks, Timer, keep_time, now, sleep};
