//! The fleet's master: nodes, configs in versions, users and their rights, over REST for operators and gRPC for agents.
//!
//! `api` (parse, call, render) → `service` (rules) → `store` (records): each knows only the next. It is not in any
//! request's path: edges serve on from their last config when it is gone.

mod api;
mod certificate;
pub mod config;
mod files;
mod keys;
pub mod server;
mod service;
#[cfg(test)]
mod simulation;
mod store;
mod tls;
