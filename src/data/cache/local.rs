//! Values of this process: decoded, shared, bounded, and believed only while nothing of them was hit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::cached::{CacheOutcome, Cached};
use super::sight::{IsOld, Sight};
use super::target::CacheKey;
use crate::backend::memory::{Entry, EntryKey, MemoryStore};
use crate::core::size::MIB;
use crate::core::ttl::SECOND;
use crate::core::{Clock, Key, Timestamp};

/// Bounds of the local level; [`Local::off`] has none.
///
/// ```
/// use tower_keep::data::cache::Local;
/// use tower_keep::{MIB, SECOND};
///
/// const SMALL: Local = Local::entries(1_000).bytes(4 * MIB);
/// # let _ = SMALL.ttl(5 * SECOND);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Local {
    pub(super) entries: usize,
    pub(super) bytes: usize,
    pub(super) ttl: Duration,
}

impl Local {
    /// Keeps up to this many values (10,000), 64 MiB of them, encoded, each for 30 s.
    pub const fn entries(entries: usize) -> Self {
        Self {
            entries,
            bytes: 64 * MIB,
            ttl: Duration::from_secs(30),
        }
    }

    /// Keeps nothing in this process: every read asks the store.
    pub const fn off() -> Self {
        Self::entries(0)
    }

    /// Bounds the bytes.
    pub const fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Sets how long a value is believed here without asking the store.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::entries(10_000).ttl(30 * SECOND)
    }
}

/// A value as the process knows it; times by the local clock, in UTC microseconds.
pub(super) struct Known<V> {
    pub(super) value: Option<Arc<V>>,
    pub(super) stored: u64,
    pub(super) stored_ms: u64,
    pub(super) refresh: u64,
    pub(super) fresh: u64,
    /// Until when it may answer at all.
    pub(super) gone: u64,
    /// What else it is found under.
    pub(super) aliases: Option<Arc<[String]>>,
}

impl<V> Known<V> {
    /// What a read that it answers counts as, where a value counts as `hit`.
    pub(super) fn counts_as(&self, hit: &'static str) -> &'static str {
        if self.value.is_some() { hit } else { "absent" }
    }

    /// The value as it is seen at `now`.
    pub(super) fn seen(&self, value: Arc<V>, outcome: CacheOutcome, now: u64) -> Cached<V> {
        Cached {
            value,
            stored_at: Timestamp::from_millis(self.stored_ms),
            age: Duration::from_micros(now.saturating_sub(self.stored)),
            expires_in: Duration::from_micros(self.fresh.saturating_sub(now)),
            outcome,
        }
    }

    pub(super) fn is_called(&self, alias: &str) -> bool {
        let aliases = self.aliases.as_deref().unwrap_or_default();
        aliases.iter().any(|own| own == alias)
    }
}

impl<V> Clone for Known<V> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            aliases: self.aliases.clone(),
            ..*self
        }
    }
}

/// Microseconds for which a copy counts as just used: threads that read one key do not write it for each other.
const USED_EVERY: u64 = 1_000;

struct Copy<V> {
    known: Known<V>,
    /// The number of the process's sight before the value was fetched.
    noted: AtomicU64,
    key: CacheKey,
    tags: Box<[String]>,
    weight: usize,
    used: AtomicU64,
}

impl<V> Copy<V> {
    fn all_names(&self, is_old: IsOld<'_>) -> bool {
        self.key.all_names(is_old) && self.tags.iter().all(|tag| is_old(tag))
    }
}

impl<V: Send + Sync + 'static> Entry for Copy<V> {
    fn weight(&self) -> usize {
        let tags: usize = self.tags.iter().map(|name| name.len() + 24).sum();
        size_of::<Self>() + self.weight + self.key.key.as_str().len() + tags
    }

    fn eviction_rank(&self, now: u64) -> Option<u64> {
        Some(now.saturating_sub(self.used.load(Ordering::Relaxed)))
    }
}

struct Pointer(Key);

impl Entry for Pointer {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.0.as_str().len()
    }

    fn eviction_rank(&self, _: u64) -> Option<u64> {
        Some(0)
    }
}

#[derive(Clone)]
pub(super) struct LocalLevel {
    store: MemoryStore,
    ttl: u64,
}

impl LocalLevel {
    pub(super) fn new(bounds: Local, clock: Arc<dyn Clock>) -> Self {
        let store = MemoryStore::builder()
            .max_entries(bounds.entries)
            .max_bytes(bounds.bytes)
            .clock(clock)
            .build();
        Self {
            store,
            ttl: u64::try_from(bounds.ttl.as_micros()).unwrap_or(u64::MAX / 2),
        }
    }

    /// Finds where a key's text leads to: the bytes alone decide, so none has to be made for a look.
    pub(super) fn entry(&self, key: &[u8]) -> EntryKey {
        self.store.hash(|hasher| hasher.part(key))
    }

    /// Reads what is believed, and takes of it what is asked for.
    pub(super) fn read<V: Send + Sync + 'static, R>(
        &self,
        entry: EntryKey,
        now: u64,
        sight: &Sight,
        take: impl FnOnce(&Known<V>) -> R,
    ) -> Option<R> {
        let table = self.store.table::<Copy<V>>();
        table.read_one(entry, now, |copy| {
            let copy = copy?;
            let (noted, seen) = (copy.noted.load(Ordering::Acquire), sight.now());
            if !sight.is_good(noted, |is_old| copy.all_names(is_old)) {
                return None;
            }
            if noted < seen {
                // Good until then: the names need not be looked at again before the next hit.
                copy.noted.fetch_max(seen, Ordering::AcqRel);
            }
            if now.saturating_sub(copy.used.load(Ordering::Relaxed)) >= USED_EVERY {
                copy.used.store(now, Ordering::Relaxed);
            }
            Some(take(&copy.known))
        })
    }

    /// Keeps what was read after `noted` was.
    pub(super) fn keep<V: Send + Sync + 'static>(
        &self,
        key: &CacheKey,
        known: Known<V>,
        (noted, tags): (u64, &[String]),
        weight: usize,
    ) {
        let now = self.store.now_micros();
        let end = known.fresh.min(now.saturating_add(self.ttl));
        let copy = Copy {
            known,
            noted: AtomicU64::new(noted),
            key: key.clone(),
            tags: tags.into(),
            weight,
            used: AtomicU64::new(now),
        };
        let table = self.store.table::<Copy<V>>();
        // One that finds no room is fetched again.
        let entry = self.entry(key.key.as_str().as_bytes());
        let _ = table.update_one(entry, now, |slot| slot.set(copy, end));
    }

    /// Returns the key that an alias stood for lately; it counts only if the record of that key says so, too.
    pub(super) fn pointer(&self, alias: &str, now: u64) -> Option<Key> {
        let table = self.store.table::<Pointer>();
        let entry = self.store.hash(|hasher| hasher.part(alias.as_bytes()));
        table.read_one(entry, now, |found| found.map(|found| found.0.clone()))
    }

    pub(super) fn point(&self, alias: &str, key: &Key) {
        let now = self.store.now_micros();
        let entry = self.store.hash(|hasher| hasher.part(alias.as_bytes()));
        let (pointer, end) = (Pointer(key.clone()), now.saturating_add(self.ttl));
        let table = self.store.table::<Pointer>();
        let _ = table.update_one(entry, now, |slot| slot.set(pointer, end));
    }

    pub(super) fn size<V: Send + Sync + 'static>(&self) -> (usize, usize) {
        let table = self.store.table::<Copy<V>>();
        (table.entries(), table.bytes())
    }
}
