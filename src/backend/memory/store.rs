//! The handle: a clock, a seed, bounds, and the tables.

use std::fmt;
use std::sync::Arc;

use super::hash::{EntryKey, KeyHasher};
use super::part::{Part, PartSetup, Parts};
use super::shard::Entry;
use super::size::Size;
use super::table::Table;
use crate::core::{Clock, SystemClock};

/// Keeps state inside this process. Clones share it; it is gone with the last of them.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Arc<dyn Clock>,
    seed: (u64, u64),
    setup: PartSetup,
    parts: Parts,
}

impl MemoryStore {
    /// Makes an empty store with the default bounds: 1,000,000 entries and 256 MiB of each kind.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Starts a store with other bounds or another clock.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder {
            clock: Arc::new(SystemClock),
            setup: PartSetup {
                max_entries: 1_000_000,
                max_bytes: 256 * 1_024 * 1_024,
            },
        }
    }

    /// Reads the store's clock: microseconds since the Unix epoch.
    #[must_use]
    pub fn now_micros(&self) -> u64 {
        self.inner.clock.now_micros()
    }

    /// Returns the store's clock.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.inner.clock)
    }

    /// Makes the key of an entry from its parts.
    pub fn hash(&self, parts: impl FnOnce(&mut KeyHasher)) -> EntryKey {
        let mut hasher = KeyHasher::new(self.inner.seed);
        parts(&mut hasher);
        hasher.finish()
    }

    /// Returns the table of values of type `V`.
    #[must_use]
    pub fn table<V: Entry>(&self) -> &Table<V> {
        self.part()
    }

    /// Returns what all tables hold.
    #[must_use]
    pub fn size(&self) -> Size {
        self.inner.parts.size(self.now_micros())
    }

    /// Returns the one `P` of this store, built at first use.
    #[must_use]
    pub fn part<P: Part>(&self) -> &P {
        self.inner.parts.get(&self.inner.setup)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("setup", &self.inner.setup)
            .finish_non_exhaustive()
    }
}

/// Sets bounds and clock of a [`MemoryStore`].
#[derive(Clone, Debug)]
#[must_use]
pub struct MemoryStoreBuilder {
    clock: Arc<dyn Clock>,
    setup: PartSetup,
}

impl MemoryStoreBuilder {
    /// Uses `clock` for every expiry, window and age; without it the [`SystemClock`].
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Bounds the entries of each table (1,000,000), at least 1.
    pub fn max_entries(mut self, entries: usize) -> Self {
        self.setup.max_entries = entries.max(1);
        self
    }

    /// Bounds the bytes of each table (256 MiB).
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.setup.max_bytes = bytes;
        self
    }

    /// Makes the store.
    #[must_use]
    pub fn build(self) -> MemoryStore {
        let inner = Inner {
            clock: self.clock,
            seed: random_seed(),
            setup: self.setup,
            parts: Parts::default(),
        };
        MemoryStore {
            inner: Arc::new(inner),
        }
    }
}

fn random_seed() -> (u64, u64) {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // The standard library seeds these from the system's random source, and cannot fail.
    let draw = || RandomState::new().build_hasher().finish();
    (
        getrandom::u64().unwrap_or_else(|_| draw()),
        getrandom::u64().unwrap_or_else(|_| draw()),
    )
}
