//! Reservations.
mod event;
mod hold;
mod policy;
mod rejection;
mod slot;
pub mod store;
