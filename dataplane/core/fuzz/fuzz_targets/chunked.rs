//! Any bytes as a chunked body. The invariants are in `dataplane_core::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dataplane_core::fuzz::chunked(data));
