//! Rate limits: any number of policies decided and charged in one atomic step, by an algorithm that never
//! admits more than the limit in any trailing window.
//!
//! ```
//! use tower::{Layer, Service, ServiceExt};
//! use tower_keep::MINUTE;
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::core::{PeerAddr, Principal};
//! use tower_keep::rate_limit::{Partition, Policy, Quota, RateLimitLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let payments = RateLimitLayer::new(MemoryStore::new())
//!     .group("payments")
//!     .policy(Policy::new("user", Quota::new(5, 15 * MINUTE), Partition::principal()))
//!     .policy(Policy::new("ip", Quota::new(20, 15 * MINUTE), Partition::client_ip()))
//!     .limit(Quota::per_minute(1_000), Partition::global());
//!
//! let pay = tower::service_fn(async |_: http::Request<()>| Ok::<_, &str>(http::Response::new("paid")));
//! let mut service = payments.layer(pay);
//! for turn in 1..=6 {
//!     let mut request = http::Request::new(());
//!     request.extensions_mut().insert(PeerAddr("192.0.2.1:4000".parse().unwrap()));
//!     request.extensions_mut().insert(Principal::new("u1"));
//!     let response = service.ready().await.unwrap().call(request).await.unwrap();
//!     assert_eq!(response.status().as_u16(), if turn <= 5 { 200 } else { 429 });
//! }
//! # }
//! ```
//!
//! # What is decided, and by what
//!
//! A [`Policy`] is a name, a [`Quota`] and a [`Partition`]: how much, and for whom apart. A request that any
//! policy refuses is charged to none, and the refusal names all that it violated. Every answer after a
//! decision says what is left (`RateLimit-Policy` and `RateLimit`, draft-ietf-httpapi-ratelimit-headers-10);
//! a refusal is a 429 whose `Retry-After` suffices unless somebody else comes in between.
//!
//! Policies of one *group* share their state among all layers and processes that declare them alike. On a
//! Redis Cluster a group whose policies all partition by the same thing spreads over the shards by its keys;
//! a group that mixes partitions (user and address and global) lies on one shard. `Debug` of the layer says
//! which (`tag`). A [`RateLimiter`] whose policies share one partition takes one key for an attempt
//! ([`RateLimitErrorKind::KeysDiffer`]).
//!
//! # Tiers, costs, refunds, trials
//!
//! ```
//! # use http::StatusCode;
//! # use tower_keep::backend::memory::MemoryStore;
//! # use tower_keep::rate_limit::{Partition, Policy, Quota, RateLimitLayer};
//! let tier = Policy::new("tier", Quota::per_hour(10_000), Partition::api_key("x-api-key"))
//!     .limit_by(|parts| parts.headers.contains_key("x-trial").then_some(100))
//!     .cost(|parts| if parts.uri.path().starts_with("/export") { 25 } else { 1 })
//!     .refund_when(|response| response.status == StatusCode::NOT_MODIFIED);
//! // Counts what it would refuse, and refuses nobody, whatever happens to the store.
//! let tried = Policy::new("tried", Quota::per_minute(60), Partition::client_ip()).shadow();
//! let layer = RateLimitLayer::new(MemoryStore::new()).policy(tier).policy(tried);
//! ```
//!
//! # Without a request
//!
//! [`RateLimiter`] is the same as a handle: for failed logins, for jobs, for an operator who blocks a client.
//!
//! ```
//! # use tower_keep::backend::memory::MemoryStore;
//! # use tower_keep::rate_limit::{Attempt, Decision, Partition, Policy, Quota, RateLimiter};
//! # use tower_keep::MINUTE;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let logins = RateLimiter::new(MemoryStore::new())
//!     .policy(Policy::new("failed", Quota::new(3, 15 * MINUTE), Partition::client_ip()));
//! let address: std::net::IpAddr = "192.0.2.1".parse()?;
//! match logins.check_and_record(Attempt::new().on("failed", address)).await? {
//!     Decision::Allowed(grant) => drop(logins.refund(grant).await?), // or drop it: the charge stands
//!     Decision::Denied(denial) => return Err(denial.rejection().clone().into()),
//! }
//! logins.block("failed", address, 10 * MINUTE).await?;
//! assert!(logins.peek("failed", address).await?.blocked);
//! logins.reset("failed", address).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Floods
//!
//! On Redis a key that the server called full or blocked is refused by this process for up to five seconds without
//! asking again: a flood of refused requests costs next to no command. Nobody is refused who need not be (but see
//! [`Policy::limit_by`]): whoever frees
//! such a key early (`reset`, a refund) says so in the same step, every process listens, and one that cannot hear asks
//! the server. For more than four different costs of one key the wait that is told may be too short.
//!
//! In memory the table is bounded. For a new key the least used one goes, never one that refuses, is blocked or is shared
//! by all. Where nothing may go the newcomers share 256 entries per policy with the clients of their neighbourhood (/24,
//! /48), under the same quota; the metric `keep_rate_limit_overflow_total` says so, and what is counted there is not
//! refunded.
//!
//! # What is measured
//!
//! Counters `keep_rate_limit_…_total`: `decisions` and `near` by policy, `requests` by outcome, `deny_cache_hits`,
//! `refunds`, `unkeyed`, `overflow`, `undecodable`. The histogram `keep_rate_limit_store_seconds` by `op`, and the gauge
//! `keep_rate_limit_source`: 0 the store decides, 1 this process, 2 nobody (open), 3 nobody (closed). Calls that leave the
//! process are spans (`rate_limit_store`, level debug).
//!
//! # Whose address
//!
//! The address of a client is that of its connection: serve an axum router by
//! `into_make_service_with_connect_info::<SocketAddr>()`, put a [`PeerAddr`](crate::core::PeerAddr) into the extensions of
//! each request elsewhere. Where neither is there, a policy that needs it does not apply (under `Closed`: 503), which is
//! logged once as an error and counted (`keep_rate_limit_unkeyed_total`).
//!
//! # Where it stands
//!
//! Limits by address and global ones outermost, limits by user inside the session layer. CORS goes outside,
//! so that a 429 carries its fields; preflights are exempt anyway. Two layers that hold the very same policy
//! charge a request once.
//!
//! # While the store is away
//!
//! [`StoreFailure::Local`](crate::core::StoreFailure) (unless set) decides inside the process with a share of
//! each limit, `Open` lets pass, `Closed` refuses with 503. A store that does not answer is not asked for
//! every request: its breaker opens. A charge is never sent twice.
//!
//! # What it does not do
//!
//! - It does not tell clients apart that share an address, nor stop one that has many.
//! - It believes no forwarding header unless [`RateLimitLayer::trusted_proxies`] says so.
//! - It does not queue, slow down or limit concurrent requests.
//! - A dropped request and an inner error keep their charge: aborting is no way to free attempts.
//! - Counts in memory are gone with the process; on Redis under an `allkeys-*` eviction policy a key may be
//!   forgotten early: use `noeviction` or `volatile-ttl`.
//! - Where a Redis replica takes over, what it never saw is admitted once more, and no more than that. If its clock is
//!   behind, a full key stays full for a window at most (a block for as long as the clock is behind); if it is ahead,
//!   up to one limit is free early.
//! - An exact log that would have to grow where there is no room for it cannot answer: the failure mode decides.

mod ask;
mod attempt;
mod config;
mod decide;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod head;
mod headers;
mod layer;
mod limiter;
mod meters;
mod name;
mod partition;
mod policy;
mod quota;
mod refuse;
mod rejection;
mod repeated;
mod rule;
mod service;
mod status;
pub mod store;

pub use attempt::{Attempt, Decision, Denial, Grant, RateLimitError, RateLimitErrorKind, Status};
pub use config::Policy;
pub use future::ResponseFuture;
pub use layer::RateLimitLayer;
pub use limiter::RateLimiter;
pub use name::NameError;
pub use partition::{Partition, PartitionKey};
pub use quota::{Algorithm, Quota, QuotaError};
pub use rejection::{RateLimitCause, RateLimitRejection};
pub use service::RateLimit;
pub use status::{PolicyStatus, RateLimitStatus};
pub use store::RateLimitStore;
