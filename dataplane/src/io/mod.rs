//! The one door to the kernel's sockets: nothing outside of this folder knows whether a ring or epoll moves the bytes.
//!
//! It offers what a proxy needs and nothing else: [`Stream`] over pooled [`Buf`]s, readiness of any descriptor,
//! dialling, leases of idle connections, deadlines on one coarse wheel per worker, a mailbox, tasks.
//!
//! A runtime of our own, and a small one: one thread, one kind of task, one ring that is set up for this purpose. Against
//! monoio on the same ring set-up it saves the armed-again receive of each request, the look at a pooled connection, and
//! counted references on every operation (`bench/README.md` has the figures).
#![allow(unsafe_code, reason = "buffers are lent to the kernel, and descriptors change owners; nowhere else")]

mod buf;
mod clock;
mod dial;
mod driver;
mod epoll;
mod home;
mod mailbox;
mod ring;
mod runtime;
mod stream;
mod table;
mod task;
mod timer;
mod waker;

pub(crate) use buf::{
    Buf, HEAD_BYTES_MAX, HEAD_SIZE, LARGE_SIZE, buffers_out, bytes_out, bytes_peak, is_short, set_bytes_most,
};
pub(crate) use clock::{TICK, keep_time, now};
pub(crate) use dial::dial;
pub(crate) use driver::{Input, Received, Told, inbox_bytes_most, reserve_bytes_most};
pub(crate) use home::Lease;
pub(crate) use mailbox::Mailbox;
pub(crate) use ring::probe as probe_io_uring;
pub(crate) use runtime::{Mode, run, take_turns};
pub(crate) use stream::Stream;
pub(crate) use table::{PAGE, Table};
pub(crate) use task::{lost_wakes, panics, spawn};
pub(crate) use timer::{Deadlines, Side, Ticks, Timer, sleep};

#[cfg(test)]
pub(crate) use {
    ring::FOLDED_BYTES, ring::simulated, task::TASK_BYTES, task::panics_here as task_panics_here,
};

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::turn;
