//! The rate_limit layer.

mod ask;
mod config;
mod decide;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod headers;
mod layer;
mod limiter;
mod meters;
mod partition;
mod policy;
mod quota;
mod rejection;
mod service;
mod status;
pub mod store;

pub use config::{NameError, Policy};
pub use future::ResponseFuture;
pub use layer::RateLimitLayer;
pub use limiter::{
    Attempt, Decision, Denial, Grant, RateLimitError, RateLimitErrorKind, RateLimiter, Status,
};
pub use partition::{Partition, PartitionKey};
pub use quota::{Algorithm, Quota, QuotaError};
pub use rejection::{RateLimitCause, RateLimitRejection};
pub use service::RateLimit;
pub use status::{PolicyStatus, RateLimitStatus};
pub use store::RateLimitStore;
