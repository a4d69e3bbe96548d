//! What Millrace's programs agree on: the config model and, with the feature `grpc`, what agents and masters say to each
//! other. Nothing here opens a file or a socket.

pub mod config;
pub mod fleet;
#[cfg(feature = "grpc")]
pub mod v1;
