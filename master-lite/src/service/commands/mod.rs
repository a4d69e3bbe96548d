//! Commands.
mod output;
mod task;
