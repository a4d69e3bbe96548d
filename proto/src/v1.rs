//! The messages and the service of `v1/agent.proto`, as generated; what they mean and how they may change is written
//! there. Not checked types: what comes from a peer is looked at with [`crate::fleet`] first.
#![allow(
    clippy::allow_attributes_without_reason,
    clippy::wildcard_enum_match_arm,
    unused_qualifications,
    unreachable_pub,
    missing_docs,
    reason = "generated code is not written for these lints; its documentation is that of the .proto file"
)]

tonic::include_proto!("millrace.agent.v1");
