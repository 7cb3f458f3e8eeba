//! Response cache: answers with stored responses wherever RFC 9111 allows a shared cache to.
//!
//! Response headers decide; a route may add a policy for a handler that says nothing. Any number of
//! requests for one missing answer make one inner call, across tasks and machines. Invalidation by tag,
//! prefix, URL or principal is one constant-time step, and is obeyed by every process within a second.
//!
//! ```
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_keep::MINUTE;
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::response_cache::{ResponseCacheLayer, Target};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! static RUNS: AtomicU32 = AtomicU32::new(0);
//! let cache = ResponseCacheLayer::new(MemoryStore::new());
//! let experts = cache.clone().ttl(10 * MINUTE).tag("experts");
//! let app = Router::new().route(
//!     "/experts",
//!     get(|| async { format!("run {}", RUNS.fetch_add(1, Ordering::SeqCst)) }).layer(experts),
//! );
//!
//! let ask = || app.clone().oneshot(Request::get("/experts").body(Body::empty()).unwrap());
//! let (first, second) = (ask().await.unwrap(), ask().await.unwrap());
//! let status = |response: &axum::response::Response| response.headers()["cache-status"].to_str().unwrap().to_owned();
//! assert!(status(&first).starts_with("tower-keep;fwd=uri-miss;stored;ttl="));
//! assert!(status(&second).starts_with("tower-keep;hit;ttl="));
//! cache.handle().invalidate([Target::tag("experts")]).await;
//! ask().await.unwrap();
//! assert_eq!(RUNS.load(Ordering::SeqCst), 2);
//! # }
//! ```
//!
//! # Safe by default
//!
//! Nothing personal reaches anybody else unless a route asks for it: answers to requests with
//! `Authorization`, answers with `Set-Cookie`, answers whose handler touched the session, and `private`
//! ones are not stored for others. Cookies that a handler reads by itself are the handler's to declare:
//! `Vary: Cookie`, `Cache-Control: private`, or a [`private`](ResponseCacheLayer::private) route.
//! What is not part of the key (ignored query parameters) does not reach the handler, except by
//! axum's `OriginalUri`. The page [`safe_caching`] has it all.
//!
//! # Conformance
//!
//! `tests/it/gateway` drives the cache over real HTTP through `examples/gateway`, with default settings:
//!
//! | specification | rules under test |
//! |---|---|
//! | RFC 9111 §1.2.2, §4.2, §5.1, §5.3 | lifetimes, Age, Expires in all forms of RFC 9110 §5.6.7, heuristics, overflow |
//! | RFC 9111 §5.2 | each directive of requests and responses, and how odd spellings are read |
//! | RFC 9111 §3, §3.5, §7.3 | statuses, Authorization, Set-Cookie |
//! | RFC 9111 §4.1 | Vary: absent, several, `*`, values that differ in form only, the language that is liked best |
//! | RFC 9111 §4.3, §3.2; RFC 9110 §13, §14 | conditions both ways, what a 304 updates, one byte range, If-Range |
//! | RFC 9111 §4.4; RFC 9110 §9.3.2, §9.3.3 | invalidation by unsafe methods, HEAD, answers to POST kept for GET |
//! | RFC 5861 | stale while revalidated, stale in place of errors, and what forbids it |
//! | RFC 9211, 9213, 9875 | Cache-Status, CDN-Cache-Control, groups |
//!
//! The public suite of tests for HTTP caches (`http-cache-tests`, release 0.4.5) before the gateway with default settings: 79
//! of its 86 optimal and 141 of its 157 required tests pass. Of the 16 others 13 ask for what later revisions of the suite took
//! back (9 on `Age` values, 4 on errors after which nothing may stand in) and two for what a 304 does to ETag and
//! Set-Cookie, which those only observe; by the later wording 150 of 151 and 86 of 93 pass, with the targeted fields
//! that it adds: one required and one optimal test want Set-Cookie replayed (`--score` passes both), five optimal ones
//! stored parts, one a 304 to a date before the answer's own. Interim responses, four tests more, are not handed on.
//!
//! Known departures: answers with Set-Cookie are not shared unless said to be public, and demands of
//! requests for a fresh answer are not obeyed, until
//! [`replay_set_cookie`](ResponseCacheLayer::replay_set_cookie) and
//! [`allow_reload`](ResponseCacheLayer::allow_reload) say otherwise; parts are not stored; an answer to POST is
//! not kept for GET if it varies, nor where the URL's answers to GET do; a 304 with neither ETag nor Last-Modified
//! confirms a stored answer that has them; a 304 changes the parameters of the stored media type, not the type.
//!
//! # What it does not do
//!
//! It stores no parts of answers and combines none, answers one byte range at a time, forwards no
//! interim responses, and compresses nothing. It keeps no file on disk.
//!
//! # What it tells of itself
//!
//! With the feature `metrics`, all under `keep_response_cache_`; no label comes from a request:
//!
//! | name | labels, and what it was called elsewhere |
//! |---|---|
//! | `requests_total` | `name`, `outcome`, `level` (`local` or `shared`); `cache_hits` |
//! | `fetches_total` | `kind` (`miss`, `validate`, `refresh`), `result` (`ok`, `error`, `panic`) |
//! | `fetch_seconds` | `kind`; `cache_response_time` |
//! | `refusals_total`, `invalidations_total` | `reason`; `kind` |
//! | `store_seconds`, `store_errors_total` | `method`, of shared stores; `cache_errors`, `cache_error_rate` |
//! | `takeovers_total`, `alone_total`, `joined_total`, `superseded_total`, `undecodable_total` | |
//! | `evictions_total`, and gauges `flights`, `waiters`, `local_bytes`, `local_entries`, `queued_invalidations`, `stamp_lag_seconds`, `suspended` | `name`; shown with each look at a shared store's stamps, and by `stats` |
//!
//! `stats().recent_hit_rate()` is `cache_hit_rate`, of the last thousand considered requests: above 0.9 is the aim, and an
//! own check of `data::health` tells below 0.8. With the feature `tracing` each considered request is a span
//! `response_cache` with 8 digits of a hash of its key, and its outcome.
//!
//! # What waits for what
//!
//! Of many requests for one missing answer the first goes inwards. As soon as it has a head that may be
//! stored, all others read its body along, each at its own pace; a `HEAD`, a condition or a byte range waits
//! for the whole body. An answer that may not be stored releases everybody at its head. Once a body turns out
//! longer than [`max_body`](ResponseCacheLayer::max_body), nobody joins any more, the first one's reading
//! sets the pace, unless it takes half a minute for as much while others wait, and whoever falls more than `max_body`
//! behind is cut off with an error.
//!
//! # Beside other layers
//!
//! A layer that compresses belongs inside: what it makes is then stored per `Accept-Encoding`, with an `ETag` of its own. Outside
//! it would send other bytes under the `ETag` that this layer gave. A layer outside that wraps the bodies of requests
//! (a timeout, a decompression) may hide that there is none: such requests are passed, `fwd=bypass;detail=body`.

mod age;
mod answer;
mod ask;
mod body;
mod cache;
mod collect;
mod config;
mod consider;
mod counters;
mod date;
mod directives;
mod draft;
mod entry;
mod exchange;
mod explain;
mod extract;
mod feed;
mod fetch;
mod fields;
mod flight;
mod freshness;
mod future;
mod handle;
mod headed;
mod hit;
mod invalidate;
mod keep;
mod key;
mod layer;
mod look;
mod meters;
mod miss;
mod policy;
mod posted;
mod range;
mod ready;
mod record;
mod refresh;
mod rejection;
mod revalidate;
mod run;
pub mod safe_caching;
mod seen;
mod sent;
mod service;
mod stamps;
mod status;
pub mod store;
mod target;
mod targeted;
mod vary;
mod waits;
mod warm;

#[cfg(feature = "conformance")]
pub(crate) use entry::{freshened, sample};

pub use body::{BoxError, ResponseBody};
pub use config::CachePolicy;
pub use entry::{Entry, EntryId, Head};
pub use explain::Explanation;
pub use future::ResponseFuture;
pub use handle::{InvalidateOutcome, ResponseCacheHandle, ResponseCacheStats};
pub use key::{KeyRules, TRACKING};
pub use layer::ResponseCacheLayer;
pub use rejection::ResponseCacheRejection;
pub use service::ResponseCache;
pub use stamps::{Change, ChangeKind, Changes, Stamp};
pub use store::ResponseStore;
pub use target::Target;
pub use vary::Names;
pub use warm::WarmReport;
