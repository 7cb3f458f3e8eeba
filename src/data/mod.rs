//! Data services on the stores of the layers: typed handles, no tower in them.
//!
//! - [`cache`]: values read through a loader, invalidated by key, tag and prefix.
//! - [`counter`]: counts that expire, and series of hours and days.
//! - [`lock`]: mutual exclusion over processes, with fencing and a signal of loss.
//! - [`once`]: values that are used once, and progress saved by version.
//! - [`queue`]: jobs that are delivered at least once.
//! - [`topic`]: a feed of events that says when something is missing.

mod again;
mod bell;
pub mod cache;
pub mod counter;
mod error;
pub mod lock;
pub mod once;
pub mod queue;
mod record;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql_step;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod ticker;
pub mod topic;

pub(crate) use again::once_more;
pub use error::{DataError, DataErrorKind};
