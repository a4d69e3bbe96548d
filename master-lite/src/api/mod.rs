//! How the master is asked: REST for people and their programs, gRPC for agents. Both parse, call a service and render;
//! neither has rules of its own, and neither touches the store.

pub(crate) mod grpc;
pub(crate) mod rest;
