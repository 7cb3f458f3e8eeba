//! Reservations: slots of time that exactly one gets, held in the request's own database transaction.
//!
//! [`ReservationLayer`] gives a handler one lazily opened transaction, the [`ReservationGuard`]. Slots
//! are held in it, the handler's own SQL runs in it, and the layer commits when the answer is a success,
//! *before the client sees it*, and rolls back otherwise. A lost race is a 409 at once, never a failed
//! insert. A hold goes held → processing → confirmed, or ends released, expired, cancelled or in a late
//! conflict.
//!
//! ```
//! # #[cfg(all(feature = "axum", feature = "sqlite"))]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use axum::{Json, Router, routing::post};
//! use tower::ServiceExt;
//! use tower_keep::backend::sql::{SqlStore, Sqlite};
//! use tower_keep::core::Timestamp;
//! use tower_keep::reservation::{Hold, ReservationGuard, ReservationLayer, ReservationRejection, Slot};
//! use tower_keep::{HOUR, MINUTE};
//!
//! async fn book(mut guard: ReservationGuard<Sqlite>) -> Result<Json<Hold>, ReservationRejection> {
//!     let start: Timestamp = "2130-01-02T10:00:00Z".parse().unwrap();
//!     let hour = Slot::new("expert-1", start..start + HOUR).buffer(0 * MINUTE, 15 * MINUTE);
//!     let hold = guard.hold(hour, "guest-7").await?;             // a lost race is a 409
//!     sqlx::query("insert into visits values ('guest-7')")
//!         .execute(&mut *guard.transaction().await?)
//!         .await?;                                                // in the same transaction
//!     Ok(Json(hold))                                              // commits, then answers
//! }
//!
//! let db = SqlStore::connect("sqlite::memory:").await?;
//! sqlx::query("create table visits (guest text)").execute(db.pool::<Sqlite>().unwrap()).await?;
//! let bookings = ReservationLayer::new(db).hold_for(10 * MINUTE);
//! let app = Router::new().route("/book", post(book)).layer(bookings);
//!
//! let wish = || http::Request::post("/book").body(axum::body::Body::empty()).unwrap();
//! assert_eq!(app.clone().oneshot(wish()).await?.status(), 200);
//! # Ok(()) }
//! # #[cfg(not(all(feature = "axum", feature = "sqlite")))] fn main() {}
//! ```
//!
//! # Stores
//! [`SqlStore`](crate::backend::sql::SqlStore) on Postgres (an exclusion constraint decides) and SQLite
//! (the write lock does, a trigger watches other writers), and
//! [`MemoryStore`](crate::backend::memory::MemoryStore) (locks per lane). There is none on Redis: it
//! cannot commit with the handler's SQL.
//!
//! # Time
//! Expiry needs no worker to be correct: at exactly its end a hold blocks nothing and reads expired. A
//! [`Sweeper`] only notices it, delivers what was recorded, and removes what is long closed. A payment
//! that comes too late is honoured if the slots are still free, and otherwise a
//! [`Settled::LateConflict`]: an `Ok` value, because an error would roll its compensation back. The states, the
//! calls and what happens to money that comes too late are on the page [`holds_and_payments`].
//!
//! # Cancellation
//! A request that is dropped rolls back in a task; a commit that has begun goes on. What was committed
//! by [`ReservationGuard::commit`] and is still held is released, unless another request has met or changed it since.
//!
//! # What it does not do
//! It offers no schedule (say by [`offered`](ReservationLayer::offered) what there is), charges nobody,
//! and trusts whoever says who the holder is: take it from a [`Principal`](crate::core::Principal) or a
//! signed id, never from a body. It never answers 429, and falls back to no other store. Buffers of
//! neighbours add up. `std::mem::forget` on a savepoint of sqlx cannot be seen.

mod availability;
mod config;
mod event;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod guard;
mod hold;
pub mod holds_and_payments;
mod layer;
mod operation;
mod policy;
mod rejection;
mod request;
mod reservations;
mod route;
mod service;
mod slot;
pub mod store;
mod sweeper;

pub use availability::Availability;
pub use event::{EventId, EventKind, EventSet, ReservationEvent};
#[cfg(feature = "axum")]
pub use extract::{Commit, Rollback};
pub use future::ResponseFuture;
pub use guard::{AnyEngine, GuardEngine, GuardSource, ReservationGuard};
pub use hold::{
    Claimant, Hold, HoldId, HoldOutcome, HoldRef, HoldState, HoldToken, Payment, Settled, TokenHash,
};
pub use layer::ReservationLayer;
pub use operation::{Confirming, Holding, Processing};
pub use rejection::{Conflict, ReservationError, ReservationRejection};
pub use reservations::{Reservations, Retryable, Run, Swept};
pub use service::Reservation;
pub use slot::{Slot, SlotError, Slots, Units};
pub use store::{Busy, BusyState, LateConfirm, ReservationStore};
pub use sweeper::{DeliveryError, Sweeper};
