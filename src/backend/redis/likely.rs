//! What a process last saw of keys: a small table that says where a look will probably find something fresh.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::store::RedisStore;
use crate::core::{Clock, SystemClock};

/// Each takes 16 bytes: 128 KiB in all.
const SLOTS: usize = 8_192;
const SLOT_BITS: u32 = SLOTS.trailing_zeros();
/// The rest of a word names the key; as many bits of milliseconds reach beyond the year 2100.
const TIME_BITS: u32 = 42;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// Foretells what a look finds. A wrong word costs one command in vain, never a wrong answer: whoever looks judges what
/// is there.
///
/// A key may lie in either of two slots, so that hardly any two that are much asked for drive each other out. Nothing is
/// locked: two that write the same slot at once may leave a word that is of neither.
pub(crate) struct Likely {
    slots: Box<[Slot]>,
    /// The server's time less this machine's, in microseconds, as it was last told.
    offset: AtomicI64,
}

#[derive(Default)]
struct Slot {
    /// Some bits of the key's hash over the milliseconds until which it is fresh; 0 is nobody.
    word: AtomicU64,
    stamp: AtomicU64,
}

impl Default for Likely {
    fn default() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            offset: AtomicI64::new(0),
        }
    }
}

impl Likely {
    /// Notes that what a key has is fresh until `until` microseconds, and of which stamp it is.
    pub(crate) fn note(&self, hash: u64, until: u64, stamp: u64) {
        let [one, other] = self.slots(hash);
        // Of two that are others', the one that will be over first goes.
        let is_own = |slot: &Slot| slot.word.load(Ordering::Relaxed) & !TIME == tag(hash);
        let until_of = |slot: &Slot| slot.word.load(Ordering::Relaxed) & TIME;
        let goes_first = !is_own(one) && (is_own(other) || until_of(other) < until_of(one));
        let slot = if goes_first { other } else { one };
        slot.stamp.store(stamp, Ordering::Relaxed);
        let word = tag(hash) | (until / 1_000).min(TIME);
        slot.word.store(word, Ordering::Release);
    }

    /// Says whether a key probably has something fresh that is not older than `stamp`.
    pub(crate) fn has(&self, store: &RedisStore, hash: u64, stamp: u64) -> bool {
        let own = |slot: &&Slot| slot.word.load(Ordering::Acquire) & !TIME == tag(hash);
        self.slots(hash).into_iter().find(own).is_some_and(|slot| {
            slot.word.load(Ordering::Relaxed) & TIME > self.now(store) / 1_000
                && slot.stamp.load(Ordering::Relaxed) >= stamp
        })
    }

    /// Takes back what was noted of a key.
    pub(crate) fn forget(&self, hash: u64) {
        for slot in self.slots(hash) {
            let word = slot.word.load(Ordering::Relaxed);
            if word & !TIME == tag(hash) {
                // Lost to another's word that comes between: that is the newer one.
                let (done, failed) = (Ordering::Relaxed, Ordering::Relaxed);
                let _ = slot.word.compare_exchange(word, 0, done, failed);
            }
        }
    }

    /// Takes back what was noted of all keys.
    pub(crate) fn clear(&self) {
        for slot in self.slots.iter() {
            slot.word.store(0, Ordering::Relaxed);
        }
    }

    /// Learns what the server's time is, in microseconds.
    pub(crate) fn follow(&self, store: &RedisStore, now: u64) {
        if store.clock().is_none() {
            let own = SystemClock.now_micros().cast_signed();
            let offset = now.cast_signed().wrapping_sub(own);
            self.offset.store(offset, Ordering::Relaxed);
        }
    }

    /// What the server's time probably is, in microseconds.
    pub(crate) fn now(&self, store: &RedisStore) -> u64 {
        store.clock().map_or_else(
            || {
                let offset = self.offset.load(Ordering::Relaxed);
                SystemClock.now_micros().saturating_add_signed(offset)
            },
            |clock: Arc<dyn Clock>| clock.now_micros(),
        )
    }

    fn slots(&self, hash: u64) -> [&Slot; 2] {
        [hash, hash >> SLOT_BITS].map(|bits| &self.slots[bits as usize % SLOTS])
    }
}

/// The bits of a hash that are told beside the time, and not by the slots; never none.
const fn tag(hash: u64) -> u64 {
    ((hash >> (2 * SLOT_BITS)) | 1) << TIME_BITS
}

impl fmt::Debug for Likely {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Likely").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::ManualClock;

    const SECOND: u64 = 1_000_000;

    async fn store(clock: &ManualClock) -> RedisStore {
        let builder = RedisStore::builder("redis://127.0.0.1:1");
        builder.clock(clock.clone()).open().await.unwrap()
    }

    fn clock() -> ManualClock {
        ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap())
    }

    #[tokio::test]
    async fn a_key_is_likely_until_it_is_due_or_outdated_or_taken_back() {
        let clock = clock();
        let (store, likely) = (store(&clock).await, Likely::default());
        let (now, hash) = (clock.now_micros(), 0x1234_5678_9abc_def0);
        assert!(!likely.has(&store, hash, 0));
        likely.note(hash, now + SECOND, 7);
        assert_eq!(
            [7, 8].map(|stamp| likely.has(&store, hash, stamp)),
            [true, false]
        );
        clock.advance(Duration::from_millis(999));
        assert!(likely.has(&store, hash, 7));
        clock.advance(Duration::from_millis(1));
        assert!(!likely.has(&store, hash, 7));
        likely.note(hash, u64::MAX, 7);
        assert!(likely.has(&store, hash, 7));
        likely.forget(hash);
        assert!(!likely.has(&store, hash, 0));
    }

    #[tokio::test]
    async fn keys_of_the_same_slots_are_told_apart_and_the_last_two_stay() {
        let clock = clock();
        let (store, likely) = (store(&clock).await, Likely::default());
        let now = clock.now_micros();
        // The lowest bits of the third part are not told.
        let [one, two, three] =
            [2, 4, 6].map(|part| 5 + (7 << SLOT_BITS) + (part << (2 * SLOT_BITS)));
        let known = || [one, two, three].map(|hash| likely.has(&store, hash, 0));
        likely.note(one, now + 3 * SECOND, 0);
        assert_eq!(known(), [true, false, false]);
        likely.forget(two);
        likely.note(two, now + 2 * SECOND, 0);
        assert_eq!(known(), [true, true, false]);
        // What would be over first makes room; what is noted again takes no second slot.
        likely.note(three, now + SECOND, 0);
        assert_eq!(known(), [true, false, true]);
        likely.note(one, now + 4 * SECOND, 0);
        assert_eq!(known(), [true, false, true]);
        likely.forget(three);
        assert_eq!(known(), [true, false, false]);
        likely.clear();
        assert_eq!(known(), [false; 3]);
    }

    #[tokio::test]
    async fn it_never_takes_more_than_its_room_and_knows_most_of_what_fits() {
        let hash = |key: u64| {
            let mixed = (key ^ (key >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        let clock = clock();
        let (store, likely) = (store(&clock).await, Likely::default());
        let knows = |keys: u64| {
            (0..keys)
                .filter(|key| likely.has(&store, hash(*key), 0))
                .count()
        };
        (0..2_000).for_each(|key| likely.note(hash(key), u64::MAX, 0));
        assert!(knows(2_000) > 1_900, "{}", knows(2_000));
        (0..1_000_000).for_each(|key| likely.note(hash(key), u64::MAX, 0));
        assert_eq!(size_of_val(&*likely.slots), 128 * 1_024);
        // One a slot, and a few whose bits happen to pass for another's.
        assert!(knows(1_000_000) < 2 * SLOTS, "{}", knows(1_000_000));
    }

    #[tokio::test]
    async fn it_goes_by_the_servers_time_once_that_was_told() {
        let store = RedisStore::builder("redis://127.0.0.1:1");
        let (store, likely) = (store.open().await.unwrap(), Likely::default());
        let hour = 3_600 * SECOND;
        let server = SystemClock.now_micros() + hour;
        likely.note(1, server - hour / 2, 0);
        assert!(likely.has(&store, 1, 0));
        likely.follow(&store, server);
        assert!(!likely.has(&store, 1, 0));
    }
}
