//! A table that is read far more often than written: its readers write nothing that other threads read.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicIsize, Ordering};

use crossbeam_utils::sync::{ShardedLock, ShardedLockWriteGuard};

use super::hash::EntryKey;
use super::shard::{Delta, Entry, Shard};

const MOST_SHARDS: usize = 64;
const ENTRIES_PER_SHARD: usize = 1_024;

/// Entries that may all be evicted: what is written finds room. Each shard's lock is one per thread to its readers, so that
/// they meet nowhere; a writer takes all of them.
pub(crate) struct Shelf<V> {
    shards: Box<[ShardedLock<Shard<V>>]>,
    max_entries: isize,
    max_bytes: isize,
    entries: AtomicIsize,
    bytes: AtomicIsize,
}

impl<V: Entry> Shelf<V> {
    pub(crate) fn bounded(max_entries: usize, max_bytes: usize) -> Self {
        let shards = (max_entries / ENTRIES_PER_SHARD)
            .clamp(1, MOST_SHARDS)
            .next_power_of_two();
        Self {
            shards: (0..shards)
                .map(|_| ShardedLock::new(Shard::new()))
                .collect(),
            max_entries: isize::try_from(max_entries).unwrap_or(isize::MAX),
            max_bytes: isize::try_from(max_bytes).unwrap_or(isize::MAX),
            entries: AtomicIsize::new(0),
            bytes: AtomicIsize::new(0),
        }
    }

    /// Returns the number of entries, expired ones that nobody met yet included.
    pub(crate) fn entries(&self) -> usize {
        usize::try_from(self.entries.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Returns the bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        usize::try_from(self.bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Runs `read` on the value of `key`, beside other readers: it must not ask this shelf for anything.
    pub(crate) fn read<R>(&self, key: EntryKey, now: u64, read: impl FnOnce(Option<&V>) -> R) -> R {
        let shard = self.shards[self.shard_of(key)].read();
        // Poisoned by a value that panicked when it was dropped: the shard had let go of it.
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        let found = shard.find(key).filter(|at| shard.is_live(*at, now));
        read(found.map(|at| shard.value(at)))
    }

    /// Writes the entry of `key`. What is larger than all the room leaves nothing there.
    pub(crate) fn set(&self, key: EntryKey, value: V, expires_at: u64, now: u64) {
        let own = self.shard_of(key);
        let mut shard = self.shards[own]
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let whole = value.weight() + Shard::<V>::overhead();
        let room = match shard.find(key) {
            Some(at) => Delta {
                entries: 0,
                bytes: (value.weight() as isize - shard.value(at).weight() as isize).max(0),
            },
            None => Delta {
                entries: 1,
                bytes: whole as isize,
            },
        };
        if whole as isize > self.max_bytes || !self.take(&mut shard, own, room, key, now) {
            if let Some(at) = shard.find(key) {
                let (_, delta) = shard.remove(at);
                self.account(delta);
            }
            return;
        }
        // Found again: rows moved where one was dropped.
        let mut delta = match shard.find(key) {
            Some(at) => shard.replace(at, value, expires_at),
            None => shard.insert(key, value, expires_at, now, &[key]),
        };
        delta += -room;
        self.account(delta);
    }

    /// Takes room, dropping what has expired or was not used for long: in this shard, then in those that are free at this moment.
    fn take(
        &self,
        shard: &mut ShardedLockWriteGuard<'_, Shard<V>>,
        own: usize,
        room: Delta,
        key: EntryKey,
        now: u64,
    ) -> bool {
        let (mut at, mut barren) = (own, 0);
        while !self.try_take(room) {
            let mut freed = shard.make_room(now, &[key]);
            if freed.entries == 0 {
                barren += 1;
                at = (at + 1) & (self.shards.len() - 1);
                // One that somebody else holds is skipped: waiting here could deadlock.
                if at != own
                    && let Ok(mut other) = self.shards[at].try_write()
                {
                    freed = other.make_room(now, &[]);
                }
            }
            self.account(freed);
            if freed.entries != 0 {
                barren = 0;
            } else if barren > 2 * self.shards.len() {
                return false;
            }
        }
        true
    }

    fn shard_of(&self, key: EntryKey) -> usize {
        key.shard as usize & (self.shards.len() - 1)
    }

    fn account(&self, delta: Delta) {
        self.entries.fetch_add(delta.entries, Ordering::Relaxed);
        self.bytes.fetch_add(delta.bytes, Ordering::Relaxed);
    }

    /// Of two that ask for the last room, one gets it.
    fn try_take(&self, room: Delta) -> bool {
        let entries = self.entries.fetch_add(room.entries, Ordering::Relaxed) + room.entries;
        let bytes = self.bytes.fetch_add(room.bytes, Ordering::Relaxed) + room.bytes;
        let taken = entries <= self.max_entries && bytes <= self.max_bytes;
        if !taken {
            self.account(-room);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStore;
    use super::*;

    struct Word(usize);

    impl Entry for Word {
        fn weight(&self) -> usize {
            self.0
        }

        fn eviction_rank(&self, _: u64) -> Option<u64> {
            Some(0)
        }
    }

    fn key(number: u64) -> EntryKey {
        MemoryStore::new().hash(|hasher| hasher.num(number))
    }

    fn sizes(shelf: &Shelf<Word>) -> (usize, usize) {
        (shelf.entries(), shelf.bytes())
    }

    fn held(shelf: &Shelf<Word>, key: EntryKey, now: u64) -> Option<usize> {
        shelf.read(key, now, |word| word.map(|word| word.0))
    }

    #[test]
    fn an_entry_is_there_until_its_end() {
        let (shelf, key) = (Shelf::bounded(10, 1_000_000), key(1));
        shelf.set(key, Word(8), 100, 0);
        assert_eq!(held(&shelf, key, 99), Some(8));
        assert_eq!(held(&shelf, key, 100), None);
        shelf.set(key, Word(9), 200, 100);
        assert_eq!(held(&shelf, key, 100), Some(9));
        assert_eq!(shelf.entries(), 1);
    }

    #[test]
    fn what_is_larger_than_the_room_leaves_nothing_of_the_old_either() {
        let (shelf, key) = (Shelf::bounded(10, 1_000), key(1));
        shelf.set(key, Word(8), 100, 0);
        shelf.set(key, Word(1_000), 100, 0);
        assert_eq!(held(&shelf, key, 0), None);
        assert_eq!(sizes(&shelf), (0, 0));
    }

    #[test]
    fn many_threads_write_and_never_go_over_the_bounds() {
        let (shelf, keys) = (Shelf::bounded(5_000, 400_000), MemoryStore::new());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (shelf, keys) = (&shelf, &keys);
                scope.spawn(move || {
                    for number in 0..10_000 {
                        let key = keys.hash(|hasher| hasher.num(number % 3_000 + thread));
                        shelf.set(key, Word(number as usize % 100), u64::MAX, number);
                        let (entries, bytes) = sizes(shelf);
                        // What another has asked for and not got yet is counted for a moment.
                        assert!(entries <= 5_004, "{entries}");
                        assert!(bytes <= 400_000 + 4 * 200, "{bytes}");
                    }
                });
            }
        });
        let (entries, bytes) = sizes(&shelf);
        assert!(entries <= 5_000 && bytes <= 400_000);
        let counted: usize = shelf
            .shards
            .iter()
            .map(|shard| shard.read().unwrap().len())
            .sum();
        assert_eq!(counted, entries);
        assert!(entries > 1_000, "{entries}");
    }
}
