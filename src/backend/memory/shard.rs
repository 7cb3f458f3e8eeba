//! One shard of a table: dense rows, an index into them, and a hand that finds what has expired.

use std::fmt;
use std::mem::size_of;

use hashbrown::HashTable;

use super::hash::EntryKey;
use super::rows::Rows;
use crate::core::{StoreError, StoreErrorKind};

/// A value that a table keeps.
pub trait Entry: Send + 'static {
    /// Returns the bytes that this value accounts for, inline and on the heap.
    fn weight(&self) -> usize;

    /// Says how readily this entry may be evicted for room, higher first; `None` is never. `now` in UTC microseconds.
    fn eviction_rank(&self, now: u64) -> Option<u64> {
        let _ = now;
        None
    }
}

/// There is no room, and nothing that may be evicted. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the table is full and nothing in it may be evicted")
    }
}

impl std::error::Error for Full {}

impl From<Full> for StoreError {
    fn from(full: Full) -> Self {
        Self::with_source(StoreErrorKind::Full, full)
    }
}

pub(super) struct Shard<V> {
    index: HashTable<u32>,
    rows: Rows<Row<V>>,
    hand: usize,
    /// Rows that inserts still have to look at.
    unlooked: usize,
    evicted: u64,
}

struct Row<V> {
    key: EntryKey,
    expires_at: u64,
    weight: u32,
    value: V,
}

/// What a change did to the table's totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) entries: isize,
    pub(super) bytes: isize,
}

impl std::ops::AddAssign for Delta {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
    }
}

impl std::ops::Neg for Delta {
    type Output = Self;

    fn neg(self) -> Self {
        Self {
            entries: -self.entries,
            bytes: -self.bytes,
        }
    }
}

/// Rows that an insert looks at for expired ones; two per insert outrun any growth.
const LOOK_PER_INSERT: usize = 2;
/// In a large shard several inserts' rows are looked at together, where they lie beside each other: one by one each
/// look would wait for memory.
const LOOK_TOGETHER: usize = 16;
/// Rows of a shard that the processor's caches hold anyway.
const SMALL: usize = 64;
/// Rows looked at for expired ones when room is needed.
const LOOK_FOR_ROOM: usize = 64;
/// Rows compared when one has to be evicted.
const SAMPLES: usize = 8;

impl<V: Entry> Shard<V> {
    pub(super) const fn new() -> Self {
        Self {
            index: HashTable::new(),
            rows: Rows::new(),
            hand: 0,
            unlooked: 0,
            evicted: 0,
        }
    }

    /// The bytes one row costs beside what its value says: the row's own fields and the index.
    pub(super) const fn overhead() -> usize {
        size_of::<Row<V>>() - size_of::<V>() + 8
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn find(&self, key: EntryKey) -> Option<usize> {
        self.index
            .find(key.row, |at| self.rows[*at as usize].key == key)
            .map(|at| *at as usize)
    }

    pub(super) fn is_live(&self, at: usize, now: u64) -> bool {
        self.rows[at].expires_at > now
    }

    pub(super) fn value(&self, at: usize) -> &V {
        &self.rows[at].value
    }

    pub(super) fn value_mut(&mut self, at: usize) -> &mut V {
        &mut self.rows[at].value
    }

    pub(super) fn expires_at(&self, at: usize) -> u64 {
        self.rows[at].expires_at
    }

    /// The value and its expiry, both to be changed in place.
    pub(super) fn row_mut(&mut self, at: usize) -> (&mut V, &mut u64) {
        let row = &mut self.rows[at];
        (&mut row.value, &mut row.expires_at)
    }

    pub(super) fn set_expiry(&mut self, at: usize, expires_at: u64) {
        self.rows[at].expires_at = expires_at;
    }

    pub(super) fn replace(&mut self, at: usize, value: V, expires_at: u64) -> Delta {
        let row = &mut self.rows[at];
        (row.value, row.expires_at) = (value, expires_at);
        self.weigh(at)
    }

    /// Weighs a row anew after its value was changed in place.
    pub(super) fn weigh(&mut self, at: usize) -> Delta {
        let row = &mut self.rows[at];
        let before = row.weight;
        row.weight = weigh(&row.value);
        Delta {
            entries: 0,
            bytes: row.weight as isize - before as isize,
        }
    }

    /// Appends a row whose key is not there, and drops a few expired ones on the way.
    pub(super) fn insert(
        &mut self,
        key: EntryKey,
        value: V,
        expires_at: u64,
        now: u64,
        keep: &[EntryKey],
    ) -> Delta {
        self.unlooked += LOOK_PER_INSERT;
        let mut delta = if self.rows.len() < SMALL || self.unlooked >= LOOK_TOGETHER {
            let look = std::mem::take(&mut self.unlooked);
            self.drop_expired(look, now, keep)
        } else {
            Delta::default()
        };
        let (at, weight) = (self.rows.len(), weigh(&value));
        self.rows.push(Row {
            key,
            expires_at,
            weight,
            value,
        });
        let rows = &self.rows;
        self.index
            .insert_unique(key.row, at as u32, |at| rows[*at as usize].key.row);
        delta += Delta {
            entries: 1,
            bytes: (weight as usize + Self::overhead()) as isize,
        };
        delta
    }

    pub(super) fn remove(&mut self, at: usize) -> (V, Delta) {
        let last = self.rows.len() - 1;
        let key = self.rows[at].key;
        if let Ok(entry) = self.index.find_entry(key.row, |slot| *slot as usize == at) {
            entry.remove();
        }
        let row = self.rows.swap_remove(at);
        if at != last
            && let Some(slot) = self
                .index
                .find_mut(self.rows[at].key.row, |slot| *slot as usize == last)
        {
            *slot = at as u32;
        }
        self.give_back();
        (
            row.value,
            Delta {
                entries: -1,
                bytes: -((row.weight as usize + Self::overhead()) as isize),
            },
        )
    }

    /// Removes what `is_gone` says; returns how much of it was live.
    pub(super) fn remove_where(
        &mut self,
        now: u64,
        mut is_gone: impl FnMut(&V) -> bool,
    ) -> (u64, Delta) {
        let (mut live, mut delta) = (0, Delta::default());
        // Downwards: the row that moves into a gap was looked at already.
        for at in (0..self.rows.len()).rev() {
            if is_gone(&self.rows[at].value) {
                live += u64::from(self.is_live(at, now));
                delta += self.remove(at).1;
            }
        }
        (live, delta)
    }

    /// Makes room by what has expired, else by evicting the readiest of a sample.
    pub(super) fn make_room(&mut self, now: u64, keep: &[EntryKey]) -> Delta {
        let mut delta = self.drop_expired(LOOK_FOR_ROOM, now, keep);
        if delta.entries == 0
            && let Some(at) = self.readiest(now, keep)
        {
            delta += self.remove(at).1;
            self.evicted += 1;
        }
        delta
    }

    /// Returns how many live rows were dropped for room so far.
    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Says whether rows like the first may be evicted: then a full table still has room for others.
    pub(super) fn is_evictable(&self, now: u64) -> bool {
        let first = self.rows.first();
        first.is_some_and(|row| row.value.eviction_rank(now).is_some())
    }

    pub(super) fn drop_expired(&mut self, mut look: usize, now: u64, keep: &[EntryKey]) -> Delta {
        let mut delta = Delta::default();
        while look > 0 && !self.rows.is_empty() {
            look -= 1;
            // Downwards: the row that moves into a gap comes from the end, where the hand has been. Upwards it
            // would be a new one, mostly, and every second look be lost on it.
            if self.hand == 0 || self.hand > self.rows.len() {
                self.hand = self.rows.len();
            }
            self.hand -= 1;
            if !self.is_live(self.hand, now) && !keep.contains(&self.rows[self.hand].key) {
                delta += self.remove(self.hand).1;
            }
        }
        delta
    }

    fn readiest(&mut self, now: u64, keep: &[EntryKey]) -> Option<usize> {
        let (rows, start) = (&self.rows, self.hand);
        self.hand = self.hand.wrapping_add(SAMPLES);
        (0..SAMPLES.min(rows.len()))
            .map(|step| start.wrapping_add(step) % rows.len())
            .filter(|at| !keep.contains(&rows[*at].key))
            .filter_map(|at| Some((rows[at].value.eviction_rank(now)?, at)))
            .max()
            .map(|(_, at)| at)
    }

    fn give_back(&mut self) {
        let (len, capacity) = (self.rows.len(), self.index.capacity());
        if capacity > 64 && len < capacity / 4 {
            let rows = &self.rows;
            self.index
                .shrink_to(capacity / 2, |at| rows[*at as usize].key.row);
        }
    }
}

fn weigh<V: Entry>(value: &V) -> u32 {
    u32::try_from(value.weight()).unwrap_or(u32::MAX)
}
