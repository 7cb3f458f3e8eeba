//! Rows of variants in a bounded table: how the memory store keeps responses, and every process its copies.

use std::cell::Cell;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::backend::memory::{self, MemoryStore};
use crate::response_cache::entry::Entry;
use crate::response_cache::stamps::is_superseded;
use crate::response_cache::vary::Names;

use super::{Hash128, MOST_VARIANTS};

/// What each entry costs beside its own bytes.
pub(super) const OVERHEAD: usize = 256;
/// How long a row outlives what it keeps, in microseconds.
pub(super) const LINGER: u64 = 60_000_000;
/// What a level without copies may remember, in bytes.
const NAMES_AND_MARKS: usize = 8 * 1_024 * 1_024;
/// Hits beyond this make nothing dearer to evict.
const MOST_HITS: u32 = 255;

type Marks = SmallVec<[(Hash128, u64); 1]>;

/// All that is kept for one key.
#[derive(Default)]
pub(super) struct Row {
    pub(super) names: Names,
    /// Until when its variants are known as uncacheable; hardly any are.
    marks: Option<Box<Marks>>,
    pub(super) variants: SmallVec<[(Hash128, Arc<Entry>); 1]>,
    used: Cell<u64>,
    hits: Cell<u32>,
}

impl Row {
    /// A row of one variant, just used.
    pub(super) fn of(selector: Hash128, entry: Arc<Entry>, now: u64) -> Self {
        let mut variants = SmallVec::new();
        let names = entry.head().names.clone();
        variants.push((selector, entry));
        Self {
            names,
            marks: None,
            variants,
            used: Cell::new(now),
            hits: Cell::new(1),
        }
    }

    pub(super) fn variant(&self, selector: Hash128) -> Option<&Arc<Entry>> {
        self.variants
            .iter()
            .find(|(own, _)| *own == selector)
            .map(|(_, entry)| entry)
    }

    /// Until when a variant is known as uncacheable; 0 if it is not.
    pub(super) fn marked_until(&self, selector: Hash128) -> u64 {
        let mark = self.marks().iter().find(|(own, _)| *own == selector);
        mark.map_or(0, |(_, until)| *until)
    }

    /// Notes a variant as uncacheable; what is stored of it is gone.
    pub(super) fn mark(&mut self, selector: Hash128, until: u64) {
        self.variants.retain(|(own, _)| *own != selector);
        let marks = self.marks.get_or_insert_default();
        marks.retain(|(own, _)| *own != selector);
        if marks.len() == MOST_VARIANTS {
            let first = marks.iter().enumerate();
            if let Some((at, _)) = first.min_by_key(|(_, (_, until))| *until) {
                marks.remove(at);
            }
        }
        marks.push((selector, until));
    }

    pub(super) fn unmark(&mut self, selector: Hash128) {
        if let Some(marks) = &mut self.marks {
            marks.retain(|(own, _)| *own != selector);
        }
    }

    fn marks(&self) -> &[(Hash128, u64)] {
        self.marks.as_deref().map_or(&[], |marks| marks)
    }

    /// Notes a use, for eviction.
    pub(super) fn touch(&self, now: u64) {
        self.used.set(now);
        self.hits.set((self.hits.get() + 1).min(MOST_HITS));
    }

    /// Puts a variant in place; entries under fewer names can never be found again and go.
    pub(super) fn put(&mut self, selector: Hash128, entry: Arc<Entry>) {
        self.names = entry.head().names.clone();
        let names = &self.names;
        self.variants
            .retain(|(own, other)| *own != selector && other.head().names == *names);
        if self.variants.len() == MOST_VARIANTS {
            let oldest = self
                .variants
                .iter()
                .enumerate()
                .min_by_key(|(_, (_, entry))| entry.head().at);
            if let Some((at, _)) = oldest {
                self.variants.remove(at);
            }
        }
        self.variants.push((selector, entry));
    }

    /// Takes over other names; what is there can never be found under them.
    fn learn(&mut self, names: &Names) {
        if self.names != *names {
            self.variants.clear();
            self.names = names.clone();
        }
    }

    /// When nothing in it is of use any more.
    pub(super) fn expires_at(&self) -> u64 {
        let entries = self
            .variants
            .iter()
            .map(|(_, entry)| entry.head().expires_at);
        let marks = self.marks().iter().map(|(_, until)| *until);
        let last = entries.chain(marks).max();
        last.unwrap_or(0).saturating_add(LINGER)
    }
}

impl memory::Entry for Row {
    fn weight(&self) -> usize {
        let variants = self
            .variants
            .iter()
            .map(|(_, entry)| entry.weight() + OVERHEAD);
        let boxed = self.marks.as_ref().map_or(0, |_| size_of::<Marks>());
        let marks = size_of_val(self.marks()) + boxed;
        size_of::<Self>() + self.names.as_text().len() + marks + variants.sum::<usize>()
    }

    /// The longer unused and the seldomer hit, the readier.
    fn eviction_rank(&self, now: u64) -> Option<u64> {
        Some(now.saturating_sub(self.used.get()) / u64::from(self.hits.get() + 1))
    }
}

/// Copies of shared entries in this process, decoded, with their bodies as they are sent.
pub(in crate::response_cache) struct Local {
    rows: MemoryStore,
}

/// What the local level knows of a key.
#[derive(Default)]
pub(in crate::response_cache) struct LocalFound {
    pub(in crate::response_cache) mark_until: u64,
    pub(in crate::response_cache) entry: Option<Arc<Entry>>,
}

impl Local {
    /// Makes an empty level of at most `bytes`; with 0 it remembers names and marks only.
    pub(in crate::response_cache) fn new(bytes: usize) -> Self {
        let bytes = if bytes == 0 { NAMES_AND_MARKS } else { bytes };
        let rows = MemoryStore::builder()
            .max_bytes(bytes)
            .max_entries((bytes / 512).max(65_536))
            .build();
        Self { rows }
    }

    fn with<R>(
        &self,
        key: Hash128,
        now: u64,
        change: impl FnOnce(&mut memory::Slot<'_, Row>) -> R,
    ) -> R {
        let key = memory::EntryKey::from_hash(key.0);
        self.rows.table::<Row>().update_one(key, now, change)
    }

    /// Finds what is known of `key`; `select` makes the selector from the names that count.
    pub(in crate::response_cache) fn find(
        &self,
        key: Hash128,
        now: u64,
        select: impl FnOnce(&Names) -> Hash128,
    ) -> LocalFound {
        let rows = self.rows.table::<Row>();
        rows.read_one(memory::EntryKey::from_hash(key.0), now, |row| {
            let Some(row) = row else {
                return LocalFound::default();
            };
            row.touch(now);
            let selector = if row.names.is_empty() {
                Hash128::default()
            } else {
                select(&row.names)
            };
            LocalFound {
                mark_until: row.marked_until(selector),
                entry: row.variant(selector).cloned(),
            }
        })
    }

    /// Remembers an entry.
    pub(in crate::response_cache) fn put(
        &self,
        key: Hash128,
        selector: Hash128,
        entry: Arc<Entry>,
        now: u64,
    ) {
        self.change(key, now, |row| {
            row.unmark(selector);
            let there = row.variant(selector);
            if there.is_some_and(|there| is_superseded(there.head(), entry.head().at, now)) {
                return;
            }
            let known = row.names.union(&entry.head().names);
            if known != entry.head().names {
                // As in a store: under fewer names than are known it would stand in for all variants.
                return row.learn(&known);
            }
            row.put(selector, entry);
        });
    }

    /// Forgets a copy that its store did not take.
    pub(in crate::response_cache) fn drop_copy(
        &self,
        key: Hash128,
        selector: Hash128,
        entry: &Arc<Entry>,
        now: u64,
    ) {
        self.change(key, now, |row| {
            row.variants
                .retain(|(own, copy)| *own != selector || !Arc::ptr_eq(copy, entry));
        });
    }

    /// Remembers the names that select variants of `key`.
    pub(in crate::response_cache) fn learn(&self, key: Hash128, names: &Names, now: u64) {
        self.change(key, now, |row| {
            row.learn(names);
        });
    }

    /// Remembers until when a variant of `key` is uncacheable, by the real clock; its entry is gone.
    pub(in crate::response_cache) fn mark(
        &self,
        key: Hash128,
        selector: Hash128,
        until: u64,
        now: u64,
    ) {
        self.change(key, now, |row| row.mark(selector, until));
    }

    fn change(&self, key: Hash128, now: u64, change: impl FnOnce(&mut Row)) {
        self.with(key, now, |slot| {
            let mut row = slot.remove().unwrap_or_default();
            row.touch(now);
            change(&mut row);
            let until = row.expires_at().max(now.saturating_add(2 * LINGER));
            // What does not fit is not remembered.
            let _ = slot.set(row, until);
        });
    }

    pub(in crate::response_cache) fn entries(&self) -> usize {
        self.rows.table::<Row>().entries()
    }

    /// How many rows were dropped for room so far.
    #[cfg(feature = "metrics")]
    pub(in crate::response_cache) fn evicted(&self) -> u64 {
        self.rows.size().evicted
    }

    pub(in crate::response_cache) fn bytes(&self) -> usize {
        self.rows.table::<Row>().bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;

    use super::*;
    use crate::response_cache::entry::Head;

    const BOUND: usize = 8 * 1_024 * 1_024;

    /// As many operations as usual, unless `KEEP_CACHE_OPERATIONS` says how many.
    fn operations() -> u64 {
        let said = std::env::var("KEEP_CACHE_OPERATIONS").ok();
        said.and_then(|said| said.parse().ok()).unwrap_or(60_000)
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, most: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % most
        }

        /// Low numbers are the likeliest.
        fn key(&mut self) -> Hash128 {
            let most = 1 << (1 + self.below(14));
            let number = u128::from(self.below(most) + 1);
            Hash128((number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).to_le_bytes())
        }
    }

    #[test]
    fn the_bound_holds_for_a_million_operations_on_keys_that_are_used_again() {
        let (local, mut random) = (Local::new(BOUND), Random(7));
        let names = Names::from_text("accept");
        let (mut last, mut found, mut most) = (HashMap::new(), 0, 0);
        for now in 1..=operations() {
            let (key, at) = (random.key(), now * 1_000);
            let selector = Hash128([random.below(3) as u8; 16]);
            match random.below(10) {
                0..5 => {
                    let longest = 1 << (4 + random.below(14));
                    let body = random.below(longest) as usize;
                    let varies = selector != Hash128::default();
                    let head = Head {
                        at,
                        expires_at: at + 60_000_000,
                        names: if varies {
                            names.clone()
                        } else {
                            Names::default()
                        },
                        ..Head::default()
                    };
                    let entry = Arc::new(Entry::new(head, Bytes::from(vec![0; body])));
                    last.insert((key, selector), entry.weight());
                    local.put(key, selector, entry, at);
                }
                5 => local.mark(key, selector, at + 1_000_000, at),
                6 => local.learn(key, &names, at),
                _ => {
                    let there = local.find(key, at, |_| selector).entry;
                    found += usize::from(there.is_some());
                }
            }
            most = most.max(local.bytes());
            assert!(
                local.bytes() <= BOUND + BOUND / 100,
                "{} after {now}",
                local.bytes()
            );
        }
        // What is still found weighs no more than is accounted for.
        let now = operations() * 1_000;
        let live = last.iter().filter_map(|((key, selector), _)| {
            let found = local.find(*key, now, |names| match names.is_empty() {
                true => Hash128::default(),
                false => *selector,
            });
            let entry = found.entry?;
            (entry.head().names.is_empty() == (*selector == Hash128::default())).then_some(entry)
        });
        let weight: usize = live.map(|entry| entry.weight() + OVERHEAD).sum();
        assert!(weight <= local.bytes(), "{weight} of {}", local.bytes());
        assert!(
            most > BOUND * 9 / 10 && found > 1_000,
            "it is full, and used: {most}, {found}"
        );
    }
}
