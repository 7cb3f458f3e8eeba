//! What the table keeps of a key, and how readily it may go.

use super::super::super::policy::State;
use super::super::Scope;
use crate::backend::memory::Entry as TableEntry;

/// What the table keeps: a state, or the block of a key (its end is the entry's expiry).
pub(super) enum Kept {
    /// The scope is needed to say how readily the entry may be evicted; a shared pointer keeps the row small.
    State {
        state: State,
        scope: Scope,
    },
    Block,
}

impl TableEntry for Kept {
    fn weight(&self) -> usize {
        let heap = match self {
            Self::State {
                state: State::Log(log),
                ..
            } => log.heap_bytes(),
            Self::State {
                state: State::Buckets(buckets),
                ..
            } => size_of_val(&**buckets),
            _ => 0,
        };
        size_of::<Self>() + heap
    }

    /// The least used share goes first; never a key that refuses one unit.
    fn eviction_rank(&self, now: u64) -> Option<u64> {
        let Self::State { state, scope } = self else {
            return None;
        };
        if scope.is_pinned() {
            return None;
        }
        let quota = scope.quota();
        let capacity = u64::from(quota.capacity());
        let used = u64::from(state.usage(quota, now, quota.capacity()).used);
        let free = capacity.checked_sub(used).filter(|free| *free > 0)?;
        Some((free << 32) / capacity)
    }
}
