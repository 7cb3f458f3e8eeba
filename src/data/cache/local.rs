//! Values of this process: decoded, shared, bounded, and believed only while nothing of them was hit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::cached::{CacheOutcome, Cached};
use super::share::Share;
use super::sight::{IsOld, Sight};
use super::stats::Served;
use super::target::CacheKey;
use crate::backend::memory::{Entry, EntryKey, MemoryStore, Shelf};
use crate::core::size::MIB;
use crate::core::ttl::SECOND;
use crate::core::{Clock, Key, STRIPES, Timestamp, own_stripe};

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
    pub(super) value: Option<Share<V>>,
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
    pub(super) fn counts_as(&self, hit: Served) -> Served {
        match self.value {
            Some(_) => hit,
            None => Served::Absent,
        }
    }

    /// The value as it is seen at `now`.
    pub(super) fn seen(&self, value: Share<V>, outcome: CacheOutcome, now: u64) -> Cached<V> {
        Cached {
            value,
            stored_at: Timestamp::from_millis(self.stored_ms),
            age: Duration::from_micros(now.saturating_sub(self.stored)),
            expires_in: Duration::from_micros(self.fresh.saturating_sub(now)),
            outcome,
        }
    }

    /// The same with another share of the value.
    pub(super) fn shared_as(&self, value: Option<Share<V>>) -> Self {
        Self {
            value,
            aliases: self.aliases.clone(),
            ..*self
        }
    }

    pub(super) fn is_called(&self, alias: &str) -> bool {
        let aliases = self.aliases.as_deref().unwrap_or_default();
        aliases.iter().any(|own| own == alias)
    }
}

impl<V> Clone for Known<V> {
    fn clone(&self) -> Self {
        self.shared_as(self.value.clone())
    }
}

/// Microseconds for which a copy counts as just used: threads that read one key do not write it for each other.
const USED_EVERY: u64 = 100_000;

struct Copy<V> {
    known: Known<V>,
    /// Whose share the value's is.
    home: usize,
    /// Those of others, each made when first asked for.
    others: OnceLock<Box<[OnceLock<Share<V>>; STRIPES]>>,
    /// The number of the process's sight before the value was fetched.
    noted: AtomicU64,
    key: CacheKey,
    tags: Box<[String]>,
    weight: usize,
    used: AtomicU64,
}

impl<V> Copy<V> {
    /// This thread's share of the value.
    fn share(&self) -> Option<Share<V>> {
        let (value, own) = (self.known.value.as_ref()?, own_stripe());
        if own == self.home {
            return Some(value.clone());
        }
        let others = self.others.get_or_init(Box::default);
        Some(others[own].get_or_init(|| value.another()).clone())
    }

    fn all_names(&self, is_old: IsOld<'_>) -> bool {
        self.key.all_names(is_old) && self.tags.iter().all(|tag| is_old(tag))
    }
}

impl<V: Send + Sync + 'static> Entry for Copy<V> {
    fn weight(&self) -> usize {
        let tags: usize = self.tags.iter().map(|name| name.len() + 24).sum();
        // Also those shares that nobody has asked for yet.
        let shares = STRIPES * (Share::<V>::WEIGHT + size_of::<OnceLock<Share<V>>>());
        size_of::<Self>() + shares + self.weight + self.key.key.as_str().len() + tags
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

pub(super) struct LocalLevel<V> {
    copies: Shelf<Copy<V>>,
    /// Where aliases lead.
    store: MemoryStore,
    ttl: u64,
}

impl<V: Send + Sync + 'static> LocalLevel<V> {
    pub(super) fn new(bounds: Local, clock: Arc<dyn Clock>) -> Self {
        let store = MemoryStore::builder()
            .max_entries(bounds.entries)
            .max_bytes(bounds.bytes)
            .clock(clock)
            .build();
        Self {
            copies: Shelf::bounded(bounds.entries, bounds.bytes),
            store,
            ttl: u64::try_from(bounds.ttl.as_micros()).unwrap_or(u64::MAX / 2),
        }
    }

    /// Finds where a key's text leads to: the bytes alone decide, so none has to be made for a look.
    pub(super) fn entry(&self, key: &[u8]) -> EntryKey {
        self.store.hash(|hasher| hasher.part(key))
    }

    /// Reads what is believed, and takes of it and of this thread's share of its value what is asked for.
    pub(super) fn read<R>(
        &self,
        entry: EntryKey,
        now: u64,
        sight: &Sight,
        take: impl FnOnce(&Known<V>, Option<Share<V>>) -> R,
    ) -> Option<R> {
        self.copies.read(entry, now, |copy| {
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
            Some(take(&copy.known, copy.share()))
        })
    }

    /// Keeps what was read after `noted` was.
    pub(super) fn keep(
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
            home: own_stripe(),
            others: OnceLock::new(),
            noted: AtomicU64::new(noted),
            key: key.clone(),
            tags: tags.into(),
            weight,
            used: AtomicU64::new(now),
        };
        let entry = self.entry(key.key.as_str().as_bytes());
        self.copies.set(entry, copy, end, now);
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

    pub(super) fn size(&self) -> (usize, usize) {
        (self.copies.entries(), self.copies.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::SystemClock;

    #[test]
    fn threads_of_different_places_count_on_different_shares_of_one_value() {
        let level = LocalLevel::new(Local::default(), Arc::new(SystemClock));
        let key = CacheKey {
            entity: Arc::from("row"),
            key: Key::of(["1"]),
        };
        let known = Known {
            value: Some(Share::new(7)),
            stored: 0,
            stored_ms: 0,
            refresh: u64::MAX,
            fresh: u64::MAX,
            gone: u64::MAX,
            aliases: None,
        };
        level.keep(&key, known, (0, &[]), 1);
        let read = || {
            let entry = level.entry(key.key.as_str().as_bytes());
            let share = level.read(entry, 1, &Sight::default(), |_, share| share);
            (own_stripe(), share.flatten().unwrap())
        };
        let shares: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2 * STRIPES).map(|_| scope.spawn(read)).collect();
            let joined = threads.into_iter().map(|thread| thread.join().unwrap());
            joined.chain([read(), read()]).collect()
        });
        let value = shares[0].1.clone().into_shared();
        for (place, share) in &shares {
            assert!(Arc::ptr_eq(&share.clone().into_shared(), &value));
            for (other, others) in &shares {
                assert_eq!(place == other, share.is_counted_with(others));
            }
        }
    }
}
