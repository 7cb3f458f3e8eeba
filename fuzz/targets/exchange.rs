//! Requests and answers as text, through a cache: Cache-Control, dates, Age, Vary, Range, targeted fields, conditions.
#![no_main]

#[path = "../exchange.rs"]
// Each target uses its part of it.
#[allow(dead_code)]
mod exchange;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exchange::run(data));
