//! State inside this process: a sharded table of expiring entries per kind of value.
//!
//! Nothing here runs in the background: what has expired is as good as gone at once, and is dropped a
//! little at a time by whoever inserts. Each table is bounded by entries and bytes on its own, so that
//! a flood of one kind (response bodies) never costs another kind (sessions) its room.
//!
//! ```
//! use tower_keep::backend::memory::{Entry, MemoryStore};
//!
//! struct Visits(u32);
//! impl Entry for Visits {
//!     fn weight(&self) -> usize {
//!         std::mem::size_of::<Self>()
//!     }
//! }
//!
//! let store = MemoryStore::new();
//! let key = store.hash(|hasher| hasher.part(b"visitor-1"));
//! let now = store.now_micros();
//! let seen = store.table::<Visits>().update_one(key, now, |slot| {
//!     let seen = slot.get().map_or(0, |visits| visits.0) + 1;
//!     slot.set(Visits(seen), now + 60_000_000).map(|()| seen)
//! });
//! assert_eq!(seen, Ok(1));
//! ```

mod hash;
mod notices;
mod part;
mod rows;
mod shard;
mod shelf;
mod size;
mod store;
mod table;

pub use hash::{EntryKey, KeyHasher};
pub use part::{Part, PartSetup};
pub use shard::{Entry, Full};
pub(crate) use shelf::Shelf;
pub use size::Size;
pub use store::{MemoryStore, MemoryStoreBuilder};
pub use table::{Present, Slot, Slots, Table};
