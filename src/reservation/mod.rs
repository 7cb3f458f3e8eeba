//! Reservations.
mod availability;
mod config;
mod event;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod guard;
mod hold;
mod layer;
mod operation;
mod policy;
mod rejection;
mod request;
mod reservations;
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
pub use reservations::{Reservations, Retryable, Run};
pub use service::Reservation;
pub use slot::{Slot, SlotError, Slots, Units};
pub use store::{Busy, BusyState, LateConfirm, ReservationStore};
pub use sweeper::{DeliveryError, Sweeper};
