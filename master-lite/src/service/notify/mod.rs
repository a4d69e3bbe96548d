//! Notify.
mod address;
mod queue;
mod sign;
