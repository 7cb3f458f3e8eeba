//! One binary for all integration tests.

mod support;

mod idempotency;
mod rate_limit;
mod redis;
mod reservation;
mod response_cache;
mod session;
mod sql;
mod stores;
