//! Test suites that any store can be held against.

pub mod idempotency;
pub mod rate_limit;
pub mod reservation;
pub mod response_cache;
pub mod session;
