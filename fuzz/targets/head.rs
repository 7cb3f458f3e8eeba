//! Heads of stored responses as a shared store may return them.
#![no_main]

#[path = "../exchange.rs"]
// Each target uses its part of it.
#[allow(dead_code)]
mod exchange;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exchange::decode(data));
