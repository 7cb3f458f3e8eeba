//! One run per key: the first request reaches the handler, every repetition gets its answer.
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::post};
//! use tower::ServiceExt;
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::idempotency::{IdempotencyLayer, Scope};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global()).require_key();
//! let app = Router::new().route("/pay", post(|| async { "paid" })).layer(once);
//!
//! let pay = || Request::post("/pay").header("idempotency-key", "k1").body(Body::empty()).unwrap();
//! let first = app.clone().oneshot(pay()).await.unwrap();
//! let again = app.oneshot(pay()).await.unwrap();
//! assert!(!first.headers().contains_key("idempotency-replayed"));
//! assert_eq!(again.headers()["idempotency-replayed"], "true");
//! # }
//! ```
//!
//! The claim lives in the store under a lease that its owner renews. What a crash between the effect and
//! the answer means is chosen per route by [`LeaseEnd`]. A client cannot cut a run: the answer is stored
//! before its first byte leaves, and a run whose client went away goes on in a task of its own (which does
//! not have the request's task-locals).
//!
//! Where axum's `nest` has cut a prefix off, the whole path counts, too: one key at two mounts of a router, or at two
//! values of a parameter in the prefix, is another request (422). Behind another router that cuts prefixes each mount
//! needs a [`namespace`](IdempotencyLayer::namespace) of its own.
//!
//! A timeout belongs outside of this layer: there it cuts the client, and the run goes on. Inside it cuts the handler,
//! and its key is free as after any error. A twin that [waits](Twins::Attach) keeps no place of a limit of concurrent
//! calls inside; a [`transactional`](IdempotencyLayer::transactional) one does.
//!
//! [`IdempotencyLayer::transactional`] is for effects in the same SQL database: the claim, what the handler
//! writes and the answer commit together, or none of them does. It stands outside the reservation layer.
//!
//! Each fault, what the client sees and what a retry then gets is on the page [`what_can_go_wrong`].
//!
//! # What it does not do
//! - Leased, it does not make a handler's effect and its answer one transaction: a process that is killed
//!   between the two leaves an effect without an answer.
//! - Transactional, it does not undo what the handler did outside the database.
//! - It does not authenticate: the scope must come from a layer outside that does, and whoever lost their
//!   rights still gets the answers of before, until an operator [removes](Admin::purge) them.
//! - It keeps no response extensions, no cookies and no fields that belong to one exchange.
//! - It does not rescue a finished record that the store itself lost (a Redis failover): such a key may run again.

mod admin;
mod answer;
mod backlog;
mod claim;
mod config;
mod content;
mod derive;
mod digest;
mod extract;
mod fingerprint;
mod future;
mod gather;
mod id;
mod intake;
mod json;
mod key;
mod layer;
mod lease;
mod mac;
mod multipart;
mod nonce;
mod packed;
mod patience;
mod policy;
mod record;
mod rejection;
mod run;
mod run_state;
mod running;
mod scope;
mod seats;
mod service;
mod settling;
mod span;
mod store;
mod tee;
mod together;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod transactional;
mod unguarded;
pub mod what_can_go_wrong;

pub use admin::{Admin, RecordInfo, RecordState, ResolveError};
pub use config::Preset;
pub use derive::DerivedKey;
#[cfg(feature = "axum")]
pub use extract::NoIdempotentRun;
pub use fingerprint::FingerprintRule;
pub use future::ResponseFuture;
pub use key::{ClientKey, KeyFormat};
pub use layer::{Drained, IdempotencyLayer};
pub use policy::{Directive, LeaseEnd, Methods, StatusPolicy, Twins};
pub use record::{
    Answer, AnswerContent, Content, Fence, Fingerprint, HEAD_BYTES, Head, Nonce, NotARecordId,
    Record, RecordId, ScopeTag, State, StoredAnswer, Tombstone, TombstoneReason, UNKNOWN_KEPT,
};
pub use rejection::{IdempotencyRejection, RejectionCause};
pub use run_state::IdempotentRun;
pub use scope::{Scope, ScopeId};
pub use service::Idempotency;
pub use store::{
    Begin, Claim, Cursor, Health, IdempotencyStore, Owned, Purged, Resolution, Resolved,
};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use transactional::Transactional;
