//! Any bytes as what an origin sends; the first byte says what was asked. The invariants are in `dataplane_core::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dataplane_core::fuzz::head_response(data));
