//! Data services on the stores of the layers: typed handles, no tower in them.
//!
//! - [`cache`]: values read through a loader, invalidated by key, tag and prefix.
//! - [`counter`]: counts that expire, and series of hours and days.
//! - [`health`]: one report of all parts, asked now.
//! - [`lock`]: mutual exclusion over processes, with fencing and a signal of loss.
//! - [`once`]: values that are used once, and progress saved by version.
//! - [`queue`]: jobs that are delivered at least once.
//! - [`topic`]: a feed of events that says when something is missing.
//!
//! [`coming_from`] answers what other code did, call by call.

mod again;
mod bell;
pub mod cache;
mod check;
pub mod coming_from;
pub mod counter;
mod error;
pub mod health;
#[cfg(feature = "redis")]
mod link;
pub mod lock;
mod names;
pub mod once;
pub mod queue;
mod record;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql_step;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod ticker;
pub mod topic;

pub(crate) use again::once_more;
pub use check::{Check, Vitals};
pub use error::{DataError, DataErrorKind};
#[cfg(feature = "redis")]
pub(crate) use link::subscribe_and_stay;
pub use names::Names;
pub(crate) use names::tell_contradiction;
