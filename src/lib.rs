//! tower-keep: layers that keep server state.

pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod core;
pub mod idempotency;
pub mod problem_codes;
pub mod rate_limit;
pub mod reservation;
pub mod response_cache;
pub mod session;
pub mod store;

pub use core::ttl::{DAY, HOUR, MILLIS, MINUTE, SECOND};
