//! Words and small tools that all parts share; does no I/O.

mod after_work;
mod body;
mod breaker;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod carried;
mod client_ip;
mod clock;
mod digits;
mod email;
#[cfg(feature = "axum")]
mod extract;
pub mod fields;
mod interned;
mod into_key;
mod key;
mod latency;
mod notice;
mod outcome;
mod owned;
mod principal;
pub mod problem;
mod raised;
mod service;
mod service_name;
pub mod size;
mod store_error;
mod store_failure;
mod store_future;
mod stripes;
pub(crate) mod telemetry;
mod transaction;
pub mod ttl;

pub use after_work::AfterWork;
pub(crate) use after_work::{End, run_all};
pub use body::Body;
pub(crate) use body::{FRAMES_AT_ONCE, Followed, owned_size};
pub(crate) use breaker::FAILURES_TO_OPEN;
pub use breaker::{Admission, Breaker};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) use carried::Carried;
pub use client_ip::{ClientIp, ClientIpLayer, ClientIpService, PeerAddr, TrustedProxies};
pub(crate) use clock::monotonic;
pub use clock::{Clock, ManualClock, NotATimestamp, SystemClock, Timestamp};
pub(crate) use digits::{Digits, number_field};
pub use email::Email;
#[cfg(feature = "axum")]
pub(crate) use extract::original_uri;
pub(crate) use interned::interned_field;
pub use into_key::{IntoKey, Key, KeySegments, Segments};
pub use key::{KeyBuilder, LONGEST_SEGMENT, base64url, digest22};
pub use latency::Latency;
pub use notice::{Notice, NoticeCallback, Subscription};
pub use outcome::{IdempotencyOutcome, ResponseCacheOutcome};
pub use owned::{NotTheOwner, Owned};
pub use principal::{
    AskVisitor, CacheOutside, Personal, Principal, PrincipalRejection, Visitor, principal_of,
};
pub use problem::Problem;
pub(crate) use raised::Raised;
#[cfg(not(feature = "axum"))]
pub(crate) use service::original_uri;
pub use service::take_ready;
pub(crate) use service::{Inner, emptied};
pub use service_name::{NotAServiceName, ServiceName};
pub use store_error::{StoreError, StoreErrorKind};
pub use store_failure::StoreFailure;
pub use store_future::StoreFuture;
pub(crate) use stripes::{STRIPES, Stripes, own_stripe};
pub use transaction::{Ending, RollbackCause, Vote};
