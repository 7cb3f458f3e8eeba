//! A sharded table: a closure runs on one or several entries under their shard locks.

mod slots;

use std::fmt;
use std::sync::atomic::{AtomicIsize, Ordering};

use parking_lot::Mutex;
use slots::{Locks, Place};
pub use slots::{Slot, Slots};
use smallvec::SmallVec;

use super::hash::EntryKey;
use super::part::{Part, PartSetup};
use super::shard::{Delta, Entry, Shard};
use super::size::Size;

const MOST_SHARDS: usize = 64;
const ENTRIES_PER_SHARD: usize = 1_024;
/// Shards asked for room beside our own; they are tried, never waited for.
const OTHER_SHARDS: usize = 8;

/// Entries of one kind. `update` is the memory twin of a Lua script: one step, all or nothing, never across an await.
pub struct Table<V> {
    shards: Box<[Padded<V>]>,
    max_entries: isize,
    max_bytes: isize,
    entries: AtomicIsize,
    bytes: AtomicIsize,
}

/// A shard on cache lines of its own.
#[repr(align(128))]
struct Padded<V>(Mutex<Shard<V>>);

/// A row that is there, live or not, under lock.
#[derive(Debug)]
pub struct Present<'a, V> {
    /// The value; of an expired row, what it was.
    pub value: &'a mut V,
    /// When it expires, in UTC microseconds: an expired row that is given a later end counts again.
    pub expires_at: &'a mut u64,
    /// Whether it has not expired.
    pub is_live: bool,
}

impl<V: Entry> Table<V> {
    /// Makes an empty table with bounds of its own.
    #[must_use]
    pub fn bounded(max_entries: usize, max_bytes: usize) -> Self {
        let shards = (max_entries / ENTRIES_PER_SHARD)
            .clamp(1, MOST_SHARDS)
            .next_power_of_two();
        Self {
            shards: (0..shards)
                .map(|_| Padded(Mutex::new(Shard::new())))
                .collect(),
            max_entries: isize::try_from(max_entries).unwrap_or(isize::MAX),
            max_bytes: isize::try_from(max_bytes).unwrap_or(isize::MAX),
            entries: AtomicIsize::new(0),
            bytes: AtomicIsize::new(0),
        }
    }

    /// Returns the number of entries, expired ones that nobody met yet included.
    #[must_use]
    pub fn entries(&self) -> usize {
        usize::try_from(self.entries.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Returns the bytes in use, keys and rows included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        usize::try_from(self.bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Runs `change` on the entry of `key`, alone in its shard.
    pub fn update_one<R>(
        &self,
        key: EntryKey,
        now: u64,
        change: impl FnOnce(&mut Slot<'_, V>) -> R,
    ) -> R {
        let keys = std::slice::from_ref(&key);
        let (locks, places) = self.lock(keys);
        let mut slot = Slot {
            slots: Slots {
                table: self,
                keys,
                now,
                locks,
                places,
                taken: Delta::default(),
            },
        };
        change(&mut slot)
    }

    /// Runs `read` on the value of `key` under its shard lock, without the means to change it: the shortest way.
    pub fn read_one<R>(&self, key: EntryKey, now: u64, read: impl FnOnce(Option<&V>) -> R) -> R {
        let shard = self.shards[self.shard_of(key)].0.lock();
        let found = shard.find(key).filter(|at| shard.is_live(*at, now));
        read(found.map(|at| shard.value(at)))
    }

    /// Writes a value where there is no row, if there is room for it: the shortest way to write. `written` runs under the
    /// shard lock.
    ///
    /// # Errors
    /// The value, where there is a row, live or not, or where room had to be made: then nothing was changed.
    pub fn set_absent(
        &self,
        key: EntryKey,
        now: u64,
        (value, expires_at): (V, u64),
        written: impl FnOnce(),
    ) -> Result<(), V> {
        let room = Delta {
            entries: 1,
            bytes: (value.weight() + Shard::<V>::overhead()) as isize,
        };
        let mut shard = self.shards[self.shard_of(key)].0.lock();
        if shard.find(key).is_some() || !self.try_take(room) {
            return Err(value);
        }
        let mut delta = shard.insert(key, value, expires_at, now, &[]);
        delta += -room;
        self.account(delta);
        written();
        Ok(())
    }

    /// Runs `change` on the row of `key` under the shard lock, if there is one: the shortest way to change what is there.
    /// Like [`Table::update_timed`] it reads `clock` under the lock. (What has to grow needs room: that is
    /// [`Slots::reserve`]'s to make.)
    pub fn change_one<R>(
        &self,
        key: EntryKey,
        clock: impl FnOnce() -> u64,
        change: impl FnOnce(Present<'_, V>, u64) -> R,
    ) -> Option<R> {
        let mut shard = self.shards[self.shard_of(key)].0.lock();
        let at = shard.find(key)?;
        let now = clock();
        let is_live = shard.is_live(at, now);
        let (value, expires_at) = shard.row_mut(at);
        let present = Present {
            value,
            expires_at,
            is_live,
        };
        let answer = change(present, now);
        let delta = shard.weigh(at);
        self.account(delta);
        Some(answer)
    }

    /// Runs `change` on the entries of `keys`, under the locks of all their shards, taken in order.
    ///
    /// A key may stand there twice; both indexes then mean the same entry.
    pub fn update<R>(
        &self,
        keys: &[EntryKey],
        now: u64,
        change: impl FnOnce(&mut Slots<'_, V>) -> R,
    ) -> R {
        self.update_timed(keys, || now, |slots, _| change(slots))
    }

    /// Like [`Table::update`], but reads `clock` under the locks and tells `change` what it read: of two
    /// calls that meet at an entry, the later one never sees the earlier time.
    pub fn update_timed<R>(
        &self,
        keys: &[EntryKey],
        clock: impl FnOnce() -> u64,
        change: impl FnOnce(&mut Slots<'_, V>, u64) -> R,
    ) -> R {
        let (locks, places) = self.lock(keys);
        let now = clock();
        let mut slots = Slots {
            table: self,
            keys,
            now,
            locks,
            places,
            taken: Delta::default(),
        };
        change(&mut slots, now)
    }

    /// Takes the locks of all shards that hold `keys`, in order, and says which key lies under which.
    #[inline]
    fn lock(&self, keys: &[EntryKey]) -> (Locks<'_, V>, SmallVec<[Place; 4]>) {
        let (mut locks, mut places) = (Locks::new(), SmallVec::new());
        if let [key] = keys {
            let shard = self.shard_of(*key);
            locks.push((shard, self.shards[shard].0.lock()));
            places.push(Place::new(0, locks[0].1.find(*key)));
            return (locks, places);
        }
        let mut wanted: SmallVec<[usize; 4]> = keys.iter().map(|key| self.shard_of(*key)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        for shard in wanted {
            locks.push((shard, self.shards[shard].0.lock()));
        }
        for key in keys {
            let shard = self.shard_of(*key);
            let lock = locks.iter().position(|(locked, _)| *locked == shard);
            let lock = lock.unwrap_or(0);
            places.push(Place::new(lock, locks[lock].1.find(*key)));
        }
        (locks, places)
    }

    /// Drops up to `most` expired entries; for callers that have a quiet moment. Returns how many.
    pub fn drop_expired(&self, most: usize, now: u64) -> usize {
        let mut dropped = 0;
        for shard in &self.shards {
            if dropped >= most {
                break;
            }
            let delta = shard.0.lock().drop_expired(most - dropped, now, &[]);
            dropped += delta.entries.unsigned_abs();
            self.account(delta);
        }
        dropped
    }

    /// Returns the number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Removes what `is_gone` says from one shard, under its lock; returns how much of it was live. `None` where there
    /// is no such shard. For operators: it looks at every row.
    pub fn remove_where(
        &self,
        shard: usize,
        now: u64,
        is_gone: impl FnMut(&V) -> bool,
    ) -> Option<u64> {
        let shard = self.shards.get(shard)?;
        let (live, delta) = shard.0.lock().remove_where(now, is_gone);
        self.account(delta);
        Some(live)
    }

    fn shard_of(&self, key: EntryKey) -> usize {
        key.shard as usize & (self.shards.len() - 1)
    }

    fn account(&self, delta: Delta) {
        if delta.entries != 0 {
            self.entries.fetch_add(delta.entries, Ordering::Relaxed);
        }
        if delta.bytes != 0 {
            self.bytes.fetch_add(delta.bytes, Ordering::Relaxed);
        }
    }

    /// Takes room for what is about to be written, if it is there: of two that ask for the last of it, one gets it.
    fn try_take(&self, room: Delta) -> bool {
        let entries = self.entries.fetch_add(room.entries, Ordering::Relaxed);
        let bytes = self.bytes.fetch_add(room.bytes, Ordering::Relaxed);
        let taken =
            entries + room.entries <= self.max_entries && bytes + room.bytes <= self.max_bytes;
        if !taken {
            self.account(-room);
        }
        taken
    }
}

impl<V: Entry> Part for Table<V> {
    fn build(setup: &PartSetup) -> Self {
        Self::bounded(setup.max_entries, setup.max_bytes)
    }

    fn size(&self, now: u64) -> Size {
        let share = |used: usize, most: isize| used as f64 / most.max(1) as f64;
        let entries = share(self.entries(), self.max_entries);
        let fullness = entries.max(share(self.bytes(), self.max_bytes));
        let (mut evicted, mut is_evictable) = (0, false);
        for shard in &self.shards {
            let shard = shard.0.lock();
            evicted += shard.evicted();
            is_evictable |= shard.is_evictable(now);
        }
        Size {
            entries: self.entries() as u64,
            bytes: self.bytes() as u64,
            evicted,
            fullest: if is_evictable { 0.0 } else { fullness },
        }
    }
}

impl<V> fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("entries", &self.entries)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
