//! What Millrace's programs agree on: the config model and, with the feature `grpc`, what agents and masters say to each
//! other. Nothing here opens a file or a socket.

#[cfg(feature = "grpc")]
pub mod codec;
pub mod config;
pub mod fleet;
#[cfg(feature = "grpc")]
pub mod v1;
