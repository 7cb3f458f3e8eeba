//! One or several entries of a table under lock: what a step does to them.

use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::super::hash::EntryKey;
use super::super::shard::{Delta, Entry, Full, Shard};
use super::{OTHER_SHARDS, Table};

/// Several entries under lock, by their index in the call's keys. An expired entry is as good as none.
pub struct Slots<'a, V: Entry> {
    pub(super) table: &'a Table<V>,
    pub(super) keys: &'a [EntryKey],
    pub(super) now: u64,
    pub(super) locks: Locks<'a, V>,
    pub(super) places: SmallVec<[Place; 4]>,
    /// Room that was taken and is not accounted for as used yet: given back at the end, when it is.
    pub(super) taken: Delta,
}

/// Shards under lock, by their numbers.
pub(super) type Locks<'a, V> = SmallVec<[(usize, MutexGuard<'a, Shard<V>>); 4]>;

#[derive(Clone, Copy)]
pub(super) struct Place {
    lock: usize,
    /// The row of the key, live or not; found anew whenever rows may have moved.
    at: Option<usize>,
    /// The value was lent out for change: weigh it anew at the end.
    touched: bool,
}

impl Place {
    pub(super) const fn new(lock: usize, at: Option<usize>) -> Self {
        Self {
            lock,
            at,
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

    /// Returns a value that has expired and was not dropped yet: written anew in place it needs no room, and counts once
    /// it was [revived](Slots::revive).
    #[must_use]
    pub fn expired_mut(&mut self, index: usize) -> Option<&mut V> {
        if self.live(index).is_some() {
            return None;
        }
        let at = self.places[index].at?;
        self.places[index].touched = true;
        Some(self.shard_mut(index).value_mut(at))
    }

    /// Says when the value expires that was written in place of an expired one.
    pub fn revive(&mut self, index: usize, expires_at: u64) {
        if let Some(at) = self.places[index].at {
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
        let at = self.places[index].at;
        let shard = self.shard_mut(index);
        let delta = match at {
            Some(at) => shard.replace(at, value, expires_at),
            None => {
                let delta = shard.insert(key, value, expires_at, now, keep);
                self.locate();
                delta
            }
        };
        self.table.account(delta);
        self.settle();
    }

    /// Removes the entry at `index`.
    pub fn remove(&mut self, index: usize) -> Option<V> {
        let (at, now) = (self.places[index].at?, self.now);
        let shard = self.shard_mut(index);
        let live = shard.is_live(at, now);
        let (value, delta) = shard.remove(at);
        self.table.account(delta);
        self.locate();
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
        let (entries, bytes) = match self.places[index].at {
            Some(at) => (
                0,
                value.weight() as isize - shard.value(at).weight() as isize,
            ),
            None => (1, whole),
        };
        let most_barren = self.patience(value);
        self.free(index, (entries, bytes), most_barren)
    }

    /// Takes the room that is needed, and frees what is missing of it.
    fn free(
        &mut self,
        index: usize,
        (entries, bytes): (isize, isize),
        most_barren: usize,
    ) -> Result<(), Full> {
        let room = Delta { entries, bytes };
        if entries <= 0 && bytes <= 0 {
            return Ok(());
        }
        if !self.table.try_take(room) {
            let freed = self.free_until_taken(index, room, most_barren);
            self.locate();
            freed?;
        }
        self.taken += room;
        Ok(())
    }

    /// Frees rows in the entry's own shard, then in others that are ours or free at this moment.
    fn free_until_taken(
        &mut self,
        index: usize,
        room: Delta,
        most_barren: usize,
    ) -> Result<(), Full> {
        let own = self.places[index].lock;
        let (table, mut other, mut barren) = (self.table, self.locks[own].0, 0);
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
        Ok(())
    }

    /// Finds all rows again.
    fn locate(&mut self) {
        for (key, place) in self.keys.iter().zip(&mut self.places) {
            place.at = self.locks[place.lock].1.find(*key);
        }
    }

    fn live(&self, index: usize) -> Option<usize> {
        let at = self.places[index].at?;
        self.shard(index).is_live(at, self.now).then_some(at)
    }

    fn shard(&self, index: usize) -> &Shard<V> {
        &self.locks[self.places[index].lock].1
    }

    fn shard_mut(&mut self, index: usize) -> &mut Shard<V> {
        &mut self.locks[self.places[index].lock].1
    }

    fn settle(&mut self) {
        for index in 0..self.places.len() {
            let place = self.places[index];
            if let (true, Some(at)) = (place.touched, place.at) {
                let delta = self.shard_mut(index).weigh(at);
                self.table.account(delta);
            }
        }
        if self.taken != Delta::default() {
            self.table.account(-std::mem::take(&mut self.taken));
        }
    }
}

/// At the end of a step, also of one that panics: whoever caught the panic goes on with a table whose account is right.
impl<V: Entry> Drop for Slots<'_, V> {
    fn drop(&mut self) {
        self.settle();
    }
}

/// One entry under lock. An expired entry is as good as none.
pub struct Slot<'a, V: Entry> {
    pub(super) slots: Slots<'a, V>,
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
