//! What Millrace's programs agree on: today the config model; the gRPC and REST types stand beside it later.

pub mod config;
