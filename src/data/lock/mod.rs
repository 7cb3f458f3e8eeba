//! Mutual exclusion by key, over all processes on one store: a lease with an owner, a fence and a signal of its loss.
//!
//! ```
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::data::lock::{Lock, LockError};
//! use tower_keep::{MINUTE, SECOND};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let payments = Lock::new(MemoryStore::new(), "payment").lease(MINUTE);
//! let guard = payments.try_acquire("appointment-7").await?;
//! assert!(matches!(payments.try_acquire("appointment-7").await, Err(LockError::Busy { .. })));
//! // The resource remembers the highest fence it has seen, and refuses a lower one.
//! let _fence = guard.fence();
//! guard.release().await?;
//!
//! let paid = payments.run("appointment-7", 5 * SECOND, |_fence| async { "paid" }).await?;
//! assert_eq!(paid, "paid");
//! # Ok(()) }
//! ```
//!
//! # What holds
//! - At most one unexpired holder per key and store. Only the owner, 128 random bits per guard, extends or releases.
//! - The fence rises strictly with each holder of a key, over expiry, restart and eviction.
//! - A lock is renewed at a third of its lease, for as long as [`Lock::hold_at_most`] says. The holder's own deadline lies
//!   before the store's end of the lease: then at the latest [`LockGuard::lost`] resolves and [`LockGuard::is_held`] is
//!   false, whether or not the store can be reached.
//! - A store that is away is [`LockError::Unavailable`], never a local lock instead.
//!
//! # What it does not do
//! No lock with a lease stops a holder that is paused for longer than the lease, between its last look at
//! [`LockGuard::is_held`] and its write: the resource must compare fences (`UPDATE … SET fence = $1 WHERE fence < $1`).
//! Where the clock stands still while the machine sleeps, so does the holder's deadline. It is not reentrant, and between
//! processes not fair. A Redis failover may forget the last writes: a lock given twice is told by its fence.

mod error;
mod guard;
mod handle;
mod lane;
mod policy;
pub mod store;

pub use error::{LockError, LockErrorKind};
pub use guard::{LockGuard, ReleaseOutcome};
pub use handle::Lock;
pub use store::{Fence, LockState, LockStore};
