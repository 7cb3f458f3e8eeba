//! Tower layers for axum and hyper services that keep server state: rate limits, idempotency keys, sessions, cached
//! responses, and a reservation guard around a database transaction.
//!
//! - [`rate_limit`], [`idempotency`], [`session`], [`response_cache`], [`reservation`]: the layers, a page each.
//! - [`store`]: one URL for all stores; [`backend`]: the engines themselves.
//! - [`core`]: the words that all parts share; [`problem_codes`]: every refusal and what it asks of the client.
//!
//! Order, outermost first: rate limit (client) → session → response cache *or* idempotency → rate limit (user) →
//! reservation → handler. Stack the layers of one route with `tower::ServiceBuilder`: each call of
//! `Router::layer` costs a box of its own.

pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod core;
pub mod data;
pub mod idempotency;
pub mod problem_codes;
pub mod rate_limit;
pub mod reservation;
pub mod response_cache;
pub mod session;
pub mod store;

pub use core::size::{KIB, MIB};
pub use core::ttl::{self, DAY, HOUR, MILLIS, MINUTE, SECOND};

/// The README's example, kept true by the compiler.
#[cfg(all(doctest, feature = "axum", feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
