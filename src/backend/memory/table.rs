//! A sharded table: a closure runs on one or several entries under their shard locks.

use std::fmt;
use std::sync::atomic::{AtomicIsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::hash::EntryKey;
use super::part::{Part, PartSetup};
use super::shard::{Delta, Entry, Full, Shard};

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
        let answer = change(&mut slot);
        slot.slots.settle();
        answer
    }

    /// Runs `read` on the value of `key` under its shard lock, without the means to change it: the shortest way.
    pub fn read_one<R>(&self, key: EntryKey, now: u64, read: impl FnOnce(Option<&V>) -> R) -> R {
        let shard = self.shards[self.shard_of(key)].0.lock();
        let found = shard.find(key).filter(|at| shard.is_live(*at, now));
        read(found.map(|at| shard.value(at)))
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
        let answer = change(&mut slots, now);
        slots.settle();
        answer
    }

    /// Takes the locks of all shards that hold `keys`, in order, and says which key lies under which.
    fn lock(&self, keys: &[EntryKey]) -> (Locks<'_, V>, SmallVec<[Place; 4]>) {
        let (mut locks, mut places) = (Locks::new(), SmallVec::new());
        if let [key] = keys {
            let shard = self.shard_of(*key);
            locks.push((shard, self.shards[shard].0.lock()));
            places.push(Place::new(0));
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
            places.push(Place::new(lock.unwrap_or(0)));
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
}

impl<V> fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("entries", &self.entries)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Several entries under lock, by their index in the call's keys. An expired entry is as good as none.
pub struct Slots<'a, V: Entry> {
    table: &'a Table<V>,
    keys: &'a [EntryKey],
    now: u64,
    locks: Locks<'a, V>,
    places: SmallVec<[Place; 4]>,
    /// Room that was taken and is not accounted for as used yet: given back at the end, when it is.
    taken: Delta,
}

/// Shards under lock, by their numbers.
type Locks<'a, V> = SmallVec<[(usize, MutexGuard<'a, Shard<V>>); 4]>;

#[derive(Clone, Copy)]
struct Place {
    lock: usize,
    /// The value was lent out for change: weigh it anew at the end.
    touched: bool,
}

impl Place {
    const fn new(lock: usize) -> Self {
        Self {
            lock,
            touched: false,
        }
    }
}

impl<V: Entry> Slots<'_, V> {
    /// Returns the number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Says whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the value at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&V> {
        let at = self.live(index)?;
        Some(self.shard(index).value(at))
    }

    /// Returns the value at `index` to be changed in place. (Before it grows, [`Slots::reserve`] makes room.)
    #[must_use]
    pub fn get_mut(&mut self, index: usize) -> Option<&mut V> {
        let at = self.live(index)?;
        self.places[index].touched = true;
        Some(self.shard_mut(index).value_mut(at))
    }

    /// Returns when the entry at `index` expires, in UTC microseconds.
    #[must_use]
    pub fn expires_at(&self, index: usize) -> Option<u64> {
        let at = self.live(index)?;
        Some(self.shard(index).expires_at(at))
    }

    /// Changes when the entry at `index` expires; without an entry nothing happens.
    pub fn set_expiry(&mut self, index: usize, expires_at: u64) {
        if let Some(at) = self.live(index) {
            self.shard_mut(index).set_expiry(at, expires_at);
        }
    }

    /// Writes the entry at `index`.
    ///
    /// # Errors
    /// [`Full`]: nothing was changed.
    pub fn set(&mut self, index: usize, value: V, expires_at: u64) -> Result<(), Full> {
        self.make_room(index, &value)?;
        self.write(index, value, expires_at);
        Ok(())
    }

    /// Writes the entry at `index` also where there is no room: for entries whose number is bounded by something else.
    pub fn set_beyond_bounds(&mut self, index: usize, value: V, expires_at: u64) {
        // Whatever room there is to be made is made.
        let _ = self.make_room(index, &value);
        self.write(index, value, expires_at);
    }

    fn write(&mut self, index: usize, value: V, expires_at: u64) {
        let (key, now, keep) = (self.keys[index], self.now, self.keys);
        let shard = self.shard_mut(index);
        let delta = match shard.find(key) {
            Some(at) => shard.replace(at, value, expires_at),
            None => shard.insert(key, value, expires_at, now, keep),
        };
        self.table.account(delta);
        self.settle();
    }

    /// Removes the entry at `index`.
    pub fn remove(&mut self, index: usize) -> Option<V> {
        let (key, now) = (self.keys[index], self.now);
        let shard = self.shard_mut(index);
        let at = shard.find(key)?;
        let live = shard.is_live(at, now);
        let (value, delta) = shard.remove(at);
        self.table.account(delta);
        live.then_some(value)
    }

    /// Makes room for the entry at `index` to grow in place by `bytes`.
    ///
    /// # Errors
    /// [`Full`]: nothing was changed.
    pub fn reserve(&mut self, index: usize, bytes: usize) -> Result<(), Full> {
        let bytes = isize::try_from(bytes).map_err(|_| Full)?;
        if bytes > self.table.max_bytes {
            return Err(Full);
        }
        // What has grown in this step so far counts, too.
        self.settle();
        let most_barren = self
            .get(index)
            .map_or(OTHER_SHARDS, |value| self.patience(value));
        self.free(index, (0, bytes), most_barren)
    }

    /// How many shards are asked in vain: what may be evicted itself makes room for any other, so that only a table
    /// of nothing else refuses it.
    fn patience(&self, value: &V) -> usize {
        match value.eviction_rank(self.now) {
            Some(_) => 2 * self.table.shards.len(),
            None => OTHER_SHARDS,
        }
    }

    /// Makes room for `value`.
    fn make_room(&mut self, index: usize, value: &V) -> Result<(), Full> {
        let shard = self.shard(index);
        let whole = (value.weight() + Shard::<V>::overhead()) as isize;
        if whole > self.table.max_bytes {
            return Err(Full);
        }
        let (entries, bytes) = match shard.find(self.keys[index]) {
            Some(at) => (
                0,
                value.weight() as isize - shard.value(at).weight() as isize,
            ),
            None => (1, whole),
        };
        let most_barren = self.patience(value);
        self.free(index, (entries, bytes), most_barren)
    }

    /// Frees what is missing: in the entry's own shard, then in others that are ours or free at this moment.
    fn free(
        &mut self,
        index: usize,
        (entries, bytes): (isize, isize),
        most_barren: usize,
    ) -> Result<(), Full> {
        let own = self.places[index].lock;
        let (table, mut other, mut barren) = (self.table, self.locks[own].0, 0);
        let room = Delta { entries, bytes };
        if entries <= 0 && bytes <= 0 {
            return Ok(());
        }
        while !table.try_take(room) {
            let mut freed = self.locks[own].1.make_room(self.now, self.keys);
            if freed.entries == 0 {
                other = (other + 1) & (table.shards.len() - 1);
                barren += 1;
                let ours = self.locks.iter_mut().find(|(shard, _)| *shard == other);
                if let Some((_, shard)) = ours {
                    freed = shard.make_room(self.now, self.keys);
                } else if let Some(mut shard) = table.shards[other].0.try_lock() {
                    // One that somebody else holds is skipped: waiting here could deadlock.
                    freed = shard.make_room(self.now, self.keys);
                }
            }
            table.account(freed);
            if freed.entries != 0 {
                barren = 0;
            } else if barren > most_barren {
                return Err(Full);
            }
        }
        self.taken += room;
        Ok(())
    }

    fn give_back(&mut self) {
        self.table.account(-std::mem::take(&mut self.taken));
    }

    fn live(&self, index: usize) -> Option<usize> {
        let shard = self.shard(index);
        shard
            .find(self.keys[index])
            .filter(|at| shard.is_live(*at, self.now))
    }

    fn shard(&self, index: usize) -> &Shard<V> {
        &self.locks[self.places[index].lock].1
    }

    fn shard_mut(&mut self, index: usize) -> &mut Shard<V> {
        &mut self.locks[self.places[index].lock].1
    }

    fn settle(&mut self) {
        for index in 0..self.places.len() {
            if self.places[index].touched {
                let key = self.keys[index];
                let shard = self.shard_mut(index);
                if let Some(at) = shard.find(key) {
                    let delta = shard.weigh(at);
                    self.table.account(delta);
                }
            }
        }
        self.give_back();
    }
}

/// One entry under lock. An expired entry is as good as none.
pub struct Slot<'a, V: Entry> {
    slots: Slots<'a, V>,
}

impl<V: Entry> Slot<'_, V> {
    /// Returns the value.
    #[must_use]
    pub fn get(&self) -> Option<&V> {
        self.slots.get(0)
    }

    /// Returns the value to be changed in place. (Before it grows, [`Slot::reserve`] makes room.)
    #[must_use]
    pub fn get_mut(&mut self) -> Option<&mut V> {
        self.slots.get_mut(0)
    }

    /// Makes room for the entry to grow in place by `bytes`.
    ///
    /// # Errors
    /// [`Full`]: nothing was changed.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), Full> {
        self.slots.reserve(0, bytes)
    }

    /// Returns when the entry expires, in UTC microseconds.
    #[must_use]
    pub fn expires_at(&self) -> Option<u64> {
        self.slots.expires_at(0)
    }

    /// Changes when the entry expires; without an entry nothing happens.
    pub fn set_expiry(&mut self, expires_at: u64) {
        self.slots.set_expiry(0, expires_at);
    }

    /// Writes the entry.
    ///
    /// # Errors
    /// [`Full`]: nothing was changed.
    pub fn set(&mut self, value: V, expires_at: u64) -> Result<(), Full> {
        self.slots.set(0, value, expires_at)
    }

    /// Removes the entry.
    pub fn remove(&mut self) -> Option<V> {
        self.slots.remove(0)
    }
}

#[cfg(test)]
mod tests;
