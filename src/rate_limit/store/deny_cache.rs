//! What this process knows to be refused: keys that the server called full or blocked. A flood of them costs no command.
//!
//! Nothing here is ever believed beyond what the server said: a key is full until the moment at which the server
//! said that more remains, unless somebody frees it early, and whoever does so publishes it in the same step.
//! While nobody listens nothing is kept; whatever is kept ends after five seconds, for the case that a notice is lost.

mod known;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::runtime::Handle;

use known::{Full, Known, Until, What, Wish};

use super::{Bucket, Charge, Mode, Outcome, PolicyState, Source, Verdict};
use crate::backend::memory::{EntryKey, MemoryStore};
use crate::backend::redis::RedisStore;
use crate::core::{Notice, Raised, Subscription};

const MOST_KEYS: usize = 65_536;
/// What is kept is asked again after this: a notice may be lost, and the server may lose its data.
const LONGEST: u64 = 5_000_000;
/// Keys share the counts of their notices, 16 KiB of them: a notice about one key in 4,096 others keeps a reply that it crosses
/// from being kept, too, which costs one question more.
const COUNTS: usize = 4_096;

/// The keys that are known to be refused, one list per handle.
pub(super) struct DenyCache {
    /// Bounded and seeded like any table; its clock is the one that was passed, else one that never goes back.
    keys: MemoryStore,
    /// Odd while notices arrive. What was kept under another number is not believed.
    epoch: AtomicU64,
    /// Count notices, so that a reply which crossed one is not kept. A flood of notices takes no room and forgets none.
    notices: Box<[AtomicU32]>,
    /// The latest reading of a clock that was passed, and so may be set back.
    latest: Option<AtomicU64>,
    joined: Arc<AtomicBool>,
    subscription: Mutex<Option<Subscription>>,
}

/// Names a bucket in a notice.
pub(super) type Payload = SmallVec<[u8; 64]>;

/// A question on its way to the server: what its reply may be kept as.
pub(super) struct Asked {
    cache: Arc<DenyCache>,
    epoch: u64,
    sent: u64,
    keys: SmallVec<[AskedKey; 2]>,
}

struct AskedKey {
    state: AskedRow,
    block: AskedRow,
    wish: Wish,
    mode: Mode,
}

/// A row, and how many notices about it and its likes had been heard when it was asked for.
#[derive(Clone, Copy)]
struct AskedRow {
    row: EntryKey,
    notices: u32,
}

impl DenyCache {
    /// Returns the list that all clones of the handle share.
    pub(super) fn of(store: &RedisStore) -> Arc<Self> {
        store.beside(|| {
            let builder = MemoryStore::builder().max_entries(MOST_KEYS);
            match store.clock() {
                Some(clock) => Self::new(builder.clock(clock).build(), true),
                None => Self::new(builder.build(), false),
            }
        })
    }

    fn new(keys: MemoryStore, may_go_back: bool) -> Self {
        Self {
            latest: may_go_back.then(AtomicU64::default),
            keys,
            epoch: AtomicU64::new(0),
            notices: (0..COUNTS).map(|_| AtomicU32::new(0)).collect(),
            joined: Arc::default(),
            subscription: Mutex::new(None),
        }
    }

    /// Names the channel on which keys are told that were freed early.
    pub(super) fn channel(store: &RedisStore) -> String {
        store.channel("rl").plain("freed").finish()
    }

    /// Says what is published where `bucket` is freed early.
    pub(super) fn payload(bucket: &Bucket<'_>) -> Payload {
        let (state, block) = bucket.scope.ids();
        let mut payload = SmallVec::new();
        payload.extend_from_slice(&state.to_be_bytes());
        payload.extend_from_slice(&block.to_be_bytes());
        bucket.key.write_bytes(&mut payload);
        payload
    }

    /// Begins to listen, once; without a runtime the next call tries again.
    pub(super) fn listen(self: &Arc<Self>, store: &RedisStore) {
        if self.joined.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let Some(joined) = Raised::raise(&self.joined) else {
            return;
        };
        let cache = Arc::downgrade(self);
        let callback = Arc::new(move |notice| {
            if let Some(cache) = Weak::upgrade(&cache) {
                cache.hear(notice);
            }
        });
        let subscribing = store.subscribe(&Self::channel(store), callback);
        let cache = Arc::downgrade(self);
        runtime.spawn(async move {
            let subscription = subscribing.await.ok();
            if let Some(cache) = cache.upgrade() {
                *cache.subscription.lock() = subscription;
            }
            joined.stay();
        });
    }

    fn hear(&self, notice: Notice) {
        // Calls for one channel follow each other, so that nobody else moves the epoch.
        match notice {
            Notice::Payload(payload) => self.freed(&payload),
            Notice::Lost => self.epoch.store(self.epoch() / 2 * 2 + 2, Ordering::SeqCst),
            Notice::Restored => self.believe_nothing(),
        }
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Reads the clock. Where it was set back nothing from before is believed, also when that time comes again.
    pub(super) fn now(&self) -> u64 {
        let now = self.keys.now_micros();
        if let Some(latest) = &self.latest
            && latest.swap(now, Ordering::SeqCst) > now
        {
            let epoch = self.epoch();
            let next = epoch + 2;
            // Whoever changed it meanwhile did the same.
            let _ = self
                .epoch
                .compare_exchange(epoch, next, Ordering::SeqCst, Ordering::SeqCst);
        }
        now
    }

    fn believe_nothing(&self) {
        self.epoch.store(self.epoch() / 2 * 2 + 3, Ordering::SeqCst);
    }

    /// Forgets a key, and whatever is on its way about it.
    pub(super) fn freed(&self, payload: &[u8]) {
        let Some(((state, block), key)) = ids_of(payload) else {
            // Not ours to read, perhaps of a later version: then any key may be meant.
            self.believe_nothing();
            return;
        };
        let now = self.keys.now_micros();
        for id in [state, block] {
            let row = self.row(id, key);
            // Counted first: a reply that is kept beside this was kept before, and goes, or sees the count.
            self.notices_of(row).fetch_add(1, Ordering::SeqCst);
            let table = self.keys.table::<Known>();
            table.update_one(row, now, |slot| drop(slot.remove()));
        }
    }

    fn notices_of(&self, row: EntryKey) -> &AtomicU32 {
        &self.notices[row.spread(COUNTS as u64) as usize]
    }

    fn row(&self, id: u64, key: &[u8]) -> EntryKey {
        self.keys.hash(|hasher| {
            hasher.num(id);
            hasher.part(key);
        })
    }

    fn rows(&self, bucket: &Bucket<'_>) -> (EntryKey, EntryKey) {
        let mut key: SmallVec<[u8; 40]> = SmallVec::new();
        bucket.key.write_bytes(&mut key);
        let (state, block) = bucket.scope.ids();
        (self.row(state, &key), self.row(block, &key))
    }

    /// Refuses without asking the server, if any enforced policy is known to refuse.
    pub(super) fn refuse(&self, charges: &[Charge<'_>]) -> Option<Verdict> {
        if self.keys.table::<Known>().entries() == 0 {
            return None;
        }
        let now = self.now();
        let epoch = self.epoch();
        if epoch.is_multiple_of(2) {
            return None;
        }
        let (mut states, mut refused, mut server) = (SmallVec::new(), false, now);
        for charge in charges {
            let known = match charge.mode {
                Mode::Enforced => self.known(charge, epoch, now),
                Mode::Shadow => None,
            };
            states.push(match known {
                Some((state, ahead)) => {
                    (refused, server) = (true, now.saturating_add_signed(ahead));
                    state
                }
                None => PolicyState::decided(Outcome::NotAsked, charge.limit, 0),
            });
        }
        refused.then_some(Verdict {
            admitted: false,
            states,
            now: server,
            source: Source::DenyCache,
        })
    }

    fn known(&self, charge: &Charge<'_>, epoch: u64, now: u64) -> Option<(PolicyState, i64)> {
        let (state, block) = self.rows(&charge.bucket);
        let full = self.look(state, epoch, now, |what| match what {
            What::Full(full) => Some((full.used, full.until, full.wait(Wish::of(charge))?)),
            _ => None,
        });
        let blocked = self.look(block, epoch, now, |what| match what {
            What::Blocked(until) => Some(*until),
            _ => None,
        });
        let left = |until: Until| until.at.saturating_sub(now);
        let (outcome, wait) = match (blocked, full) {
            (Some(block), Some((.., wait))) => (Outcome::Blocked, left(block).max(left(wait))),
            (Some(block), None) => (Outcome::Blocked, left(block)),
            (None, Some((.., wait))) => (Outcome::Denied, left(wait)),
            (None, None) => return None,
        };
        let mut decided = PolicyState::decided(outcome, charge.limit, wait);
        if let Some((used, until, _)) = full {
            decided.measured(used, left(until));
        }
        let ahead = blocked.or(full.map(|(_, until, _)| until))?.ahead;
        Some((decided, ahead))
    }

    fn look<T>(
        &self,
        row: EntryKey,
        epoch: u64,
        now: u64,
        read: impl FnOnce(&What) -> Option<T>,
    ) -> Option<T> {
        self.keys.table::<Known>().update_one(row, now, |slot| {
            let known = slot.get().filter(|known| known.is_believed(epoch, now))?;
            read(&known.what)
        })
    }

    /// Notes what is asked, so that the reply can be kept; `None` while nobody listens.
    pub(super) fn asked(self: &Arc<Self>, charges: &[Charge<'_>]) -> Option<Asked> {
        let sent = self.now();
        let epoch = self.epoch();
        if epoch.is_multiple_of(2) {
            return None;
        }
        let keys = charges.iter().map(|charge| {
            let (state, block) = self.rows(&charge.bucket);
            let asked = |row| AskedRow {
                row,
                notices: self.notices_of(row).load(Ordering::SeqCst),
            };
            AskedKey {
                state: asked(state),
                block: asked(block),
                wish: Wish::of(charge),
                mode: charge.mode,
            }
        });
        Some(Asked {
            epoch,
            sent,
            keys: keys.collect(),
            cache: Arc::clone(self),
        })
    }
}

impl Asked {
    /// Keeps what a reply says of full and blocked keys; `blocks` are the microseconds that blocks have left.
    pub(super) fn answered(&self, verdict: &Verdict, blocks: &[Option<u64>]) {
        let now = self.cache.keys.now_micros();
        let ahead = verdict.now.cast_signed().wrapping_sub(now.cast_signed());
        let until = |left: u64| Until {
            at: now.saturating_add(left),
            ahead,
        };
        for ((key, state), block) in self.keys.iter().zip(&verdict.states).zip(blocks) {
            if key.mode == Mode::Shadow {
                continue;
            }
            if let Some(left) = *block {
                self.keep(key.block, What::Blocked(until(left)), left, now);
            }
            let left = state.more_in_micros();
            if state.remaining > 0 || left == 0 {
                continue;
            }
            let mut waits = SmallVec::new();
            if state.outcome == Outcome::Denied {
                waits.push((key.wish, until(state.retry_in_micros())));
            }
            let full = Full {
                limit: key.wish.limit,
                used: state.used,
                until: until(left),
                waits,
            };
            self.keep(key.state, What::Full(full), left, now);
        }
    }

    fn keep(&self, asked: AskedRow, what: What, left: u64, now: u64) {
        // Counted from the sending: the server's moment lies behind it, so this never lasts too long.
        let until = self.sent.saturating_add(left.min(LONGEST));
        if until <= now {
            return;
        }
        let (table, notices) = (
            self.cache.keys.table::<Known>(),
            self.cache.notices_of(asked.row),
        );
        table.update_one(asked.row, now, |slot| {
            if notices.load(Ordering::SeqCst) != asked.notices {
                return;
            }
            let mut known = Known {
                what,
                epoch: self.epoch,
                since: self.sent,
                until,
            };
            if let Some(before) = slot
                .get()
                .filter(|known| known.is_believed(self.epoch, now))
            {
                known = known.after(before);
            }
            let expires_at = known.until;
            // Where there is no room the server is asked again.
            let _ = slot.set(known, expires_at);
        });
    }
}

/// Reads what [`DenyCache::payload`] wrote.
fn ids_of(payload: &[u8]) -> Option<((u64, u64), &[u8])> {
    let (state, rest) = payload.split_first_chunk::<8>()?;
    let (block, key) = rest.split_first_chunk::<8>()?;
    Some((
        (u64::from_be_bytes(*state), u64::from_be_bytes(*block)),
        key,
    ))
}

impl fmt::Debug for DenyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DenyCache")
            .field("epoch", &self.epoch())
            .field("keys", &self.keys.table::<Known>().entries())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
