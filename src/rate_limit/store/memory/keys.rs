//! Which entries a call needs: states, blocks while there are any, and what is shared where there is no room.

use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use super::super::{Bucket, Charge};
use super::kept::Kept;
use crate::backend::memory::{EntryKey, MemoryStore, Part, PartSetup, Slots};

/// The keys of one policy that find no room share this many entries.
const OVERFLOW_ENTRIES: u64 = 256;

/// The latest end of any block: while it lies in the past, no block is looked up.
pub(super) struct Blocks {
    pub(super) until: AtomicU64,
}

impl Blocks {
    pub(super) fn are_live(store: &MemoryStore) -> bool {
        let until = store.part::<Self>().until.load(Ordering::SeqCst);
        until != 0 && until > store.now_micros()
    }
}

impl Part for Blocks {
    fn build(_: &PartSetup) -> Self {
        Self {
            until: AtomicU64::new(0),
        }
    }
}

/// The states of all charges, behind them their blocks while any block is live, and behind them the entries that
/// they share with others where there is no room for their own.
pub(super) struct Keys {
    pub(super) all: SmallVec<[EntryKey; 4]>,
    states: usize,
    blocks: bool,
    overflow: bool,
}

impl Keys {
    pub(super) fn of(store: &MemoryStore, charges: &[Charge<'_>]) -> Self {
        let mut all = SmallVec::new();
        for charge in charges {
            all.push(state_key(store, &charge.bucket));
        }
        let blocks = Blocks::are_live(store);
        if blocks {
            all.extend(
                charges
                    .iter()
                    .map(|charge| block_key(store, &charge.bucket)),
            );
        }
        Self {
            all,
            states: charges.len(),
            blocks,
            overflow: false,
        }
    }

    pub(super) fn with_overflow(mut self, store: &MemoryStore, charges: &[Charge<'_>]) -> Self {
        let shared = charges
            .iter()
            .map(|charge| overflow_key(store, &charge.bucket));
        self.all.extend(shared);
        self.overflow = true;
        self
    }

    /// Where the state of a charge is counted: in its own entry if there is one, or may be one.
    pub(super) fn place(&self, slots: &Slots<'_, Kept>, index: usize) -> usize {
        if self.overflow && slots.get(index).is_none() {
            self.all.len() - self.states + index
        } else {
            index
        }
    }

    pub(super) fn blocked_until(&self, slots: &Slots<'_, Kept>, index: usize) -> Option<u64> {
        self.blocks
            .then(|| slots.expires_at(self.states + index))
            .flatten()
    }
}

pub(super) fn state_key(store: &MemoryStore, bucket: &Bucket<'_>) -> EntryKey {
    store.hash(|hasher| {
        hasher.num(bucket.scope.ids().0);
        bucket.key.feed(hasher);
    })
}

/// The neighbours of an address share an entry, everything else is spread by a hash.
fn overflow_key(store: &MemoryStore, bucket: &Bucket<'_>) -> EntryKey {
    let shared = store.hash(|hasher| bucket.key.neighbourhood().feed(hasher));
    store.hash(|hasher| {
        hasher.num(bucket.scope.ids().0);
        hasher.part(b"overflow");
        hasher.num(shared.spread(OVERFLOW_ENTRIES));
    })
}

pub(super) fn block_key(store: &MemoryStore, bucket: &Bucket<'_>) -> EntryKey {
    store.hash(|hasher| {
        hasher.num(bucket.scope.ids().1);
        bucket.key.feed(hasher);
    })
}
