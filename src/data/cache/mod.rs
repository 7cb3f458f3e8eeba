//! Values that are read through a loader: kept in this process and in the store, loaded once, invalidated by key, tag and
//! prefix.
//!
//! ```
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::data::cache::{Cache, CacheGroup, CacheOutcome, Tag, Target};
//! use tower_keep::ttl;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let db = CacheGroup::new(MemoryStore::new(), "db");
//! let users: Cache<String, String> = db.cache("user", ttl::USER).tag_with(|id, _| [Tag::new("user", id)]);
//! let load = |id: String| async move { Ok::<_, std::io::Error>(format!("the user {id}")) };
//!
//! let id = "u1".to_owned();
//! assert_eq!(*users.get_or_load(&id, load).await?, "the user u1");
//! assert_eq!(users.get_or_load(&id, load).await?.outcome(), CacheOutcome::LocalHit);
//!
//! // One call drops what has the tag, in all caches of the group.
//! db.invalidate([Target::tag(Tag::new("user", &id))]).await;
//! assert!(users.get(&id).await?.is_none());
//! # Ok(()) }
//! ```
//!
//! A value may have secondary keys, taken from itself: they lead to the value, not to a key to be looked up again.
//!
//! ```
//! # use tower_keep::backend::memory::MemoryStore;
//! # use tower_keep::data::cache::Cache;
//! # use tower_keep::{core::{Email, IntoKey}, ttl};
//! # #[derive(Clone, serde::Serialize, serde::Deserialize)]
//! # struct Customer { id: String, email: String }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let customers: Cache<String, Customer> = Cache::new(MemoryStore::new(), "customer", ttl::CUSTOMER)
//!     .alias("email", |customer: &Customer| Some(Email(customer.email.clone())));
//! let create = || async { Ok::<_, std::io::Error>(("c1".to_owned(), Customer { id: "c1".to_owned(), email: "Ann@x.test".to_owned() })) };
//! let customer = customers.get_or_load_by([("email", Email("ann@x.test").into_key())], create).await?;
//! assert_eq!(customer.id, "c1");
//! assert!(customers.get_by("email", Email(" ANN@x.test")).await?.is_some());
//! # Ok(()) }
//! ```
//!
//! # What holds
//! - One load per key and process, which runs on when its callers leave; one per key over all processes, by a lease in the
//!   store that whoever has waited a second takes over, whether its loader died or is slow: a load of more than a second runs
//!   in each process that asks. This saves work, it is no lock: whoever creates something at a provider passes it a stable key.
//! - A fill that an invalidation overtook is refused, whichever reaches the store first: an old value never returns. Loads
//!   that ran when something of theirs was invalidated answer those who asked before, and nobody later.
//! - Errors are never stored. A stale value stands in for a loader that fails or is slow, where the lifetime allows it.
//! - The store's faults never fail a read that brings a loader; one without is an error where not every key has a copy here.
//!   What the store could not be told is queued, and told before the next shared read; what it refuses is told again each
//!   second, and what that would hit is no hit here.
//! - Local copies are believed while notices arrive, and for 10 s after their link was silently cut, never longer than
//!   [`Local::ttl`]; while the store cannot be asked they answer for that long, whatever others invalidated meanwhile. Invalidate after the commit of what changed: before it, a fill may keep the old row.
//!
//! # What it does not do
//! Sliding expiry, conditional loads. Records of one group lie on one node of a cluster: a batch is one step.

mod by;
mod cached;
mod codec;
mod error;
mod fill;
mod flight;
mod group;
mod handle;
mod leads;
mod loaded;
mod loading;
mod local;
mod many;
mod policy;
mod read;
mod share;
mod sight;
mod stats;
pub mod store;
mod target;
mod warm;

pub use cached::{CacheOutcome, Cached};
pub use error::LoadError;
pub use group::{CacheGroup, InvalidateOutcome};
pub use handle::Cache;
pub use loaded::Loaded;
pub use local::Local;
pub use stats::CacheStats;
pub use store::CacheStore;
pub use target::{CacheKey, Tag, Target};
pub use warm::{Verified, WarmReport};
