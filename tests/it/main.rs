//! One binary for all integration tests.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub
)]

mod support;

mod clinic;
mod cluster;
mod companions;
mod data;
mod gateway;
mod hyper;
mod idempotency;
mod lock;
mod notices;
mod protocols;
mod queue;
mod rate_limit;
mod redis;
mod redis_rights;
mod redis_sets;
mod redis_tls;
mod reservation;
mod response_cache;
mod session;
mod sql;
mod stack;
mod stores;
mod topic;
