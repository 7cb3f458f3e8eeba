//! Locks in this process: each method is a closure under the lock of the key's shard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{Acquired, Asking, Fence, LockKey, LockState, LockStore, Owned, Owner};
use crate::backend::memory::{Entry, MemoryStore, Part, PartSetup, Slot};
use crate::core::{Clock, NoticeCallback, StoreFuture, Subscription, SystemClock};

/// A held lock. It is never evicted: that would be a second holder.
struct Held {
    owner: Owner,
    fence: Fence,
    waited: bool,
}

impl Entry for Held {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
}

/// The last fence of the store: it rises over all holders of all keys, so that no key need be remembered for it.
struct LastFence(AtomicU64);

impl Part for LastFence {
    fn build(_: &PartSetup) -> Self {
        Self(AtomicU64::new(0))
    }
}

impl LastFence {
    /// The engine's own time, also where a clock was passed: that one may be set back.
    fn next(&self) -> Fence {
        let engine = SystemClock.now_micros();
        let next = |last: u64| engine.max(last.saturating_add(1));
        let update = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(next(last))
            });
        Fence(next(update.unwrap_or_else(|last| last)))
    }
}

fn update<R>(
    store: &MemoryStore,
    key: &LockKey,
    change: impl FnOnce(&mut Slot<'_, Held>, u64) -> R,
) -> R {
    let entry = store.hash(|hasher| {
        hasher.part(key.name.as_bytes());
        hasher.part(key.key.as_str().as_bytes());
    });
    let now = now_millis(store) * 1_000;
    store
        .table::<Held>()
        .update_one(entry, now, |slot| change(slot, now))
}

/// Whole milliseconds, as on every engine.
fn now_millis(store: &MemoryStore) -> u64 {
    store.now_micros() / 1_000
}

fn left(slot: &Slot<'_, Held>, now: u64) -> Duration {
    Duration::from_micros(slot.expires_at().unwrap_or(now).saturating_sub(now))
}

fn end(now: u64, lease: Duration) -> u64 {
    now.saturating_add(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX / 2_000) * 1_000)
}

fn channel(key: &LockKey) -> String {
    format!("lock:{}:{}", key.name, key.key.as_str())
}

impl LockStore for MemoryStore {
    fn acquire(
        &self,
        key: &LockKey,
        owner: Owner,
        lease: Duration,
        asking: Asking,
    ) -> StoreFuture<Acquired> {
        StoreFuture::ready(update(self, key, |slot, now| {
            let rest = left(slot, now);
            let fence = match slot.get_mut() {
                Some(held) if held.owner != owner => {
                    held.waited |= asking == Asking::Waiting;
                    return Ok(Acquired::Busy { left: rest });
                }
                Some(held) => held.fence,
                None => self.part::<LastFence>().next(),
            };
            let held = Held {
                owner,
                fence,
                waited: slot.get().is_some_and(|held| held.waited),
            };
            slot.set(held, end(now, lease))?;
            Ok(Acquired::Granted(fence))
        }))
    }

    fn extend(&self, key: &LockKey, owner: Owner, lease: Duration) -> StoreFuture<Owned> {
        StoreFuture::ok(update(self, key, |slot, now| match slot.get() {
            Some(held) if held.owner == owner => {
                slot.set_expiry(end(now, lease));
                Owned::Yes
            }
            _ => Owned::Lost,
        }))
    }

    fn release(&self, key: &LockKey, owner: Owner) -> StoreFuture<Owned> {
        let (owned, waited) = update(self, key, |slot, _| match slot.get() {
            Some(held) if held.owner == owner => {
                let waited = held.waited;
                slot.remove();
                (Owned::Yes, waited)
            }
            _ => (Owned::Lost, false),
        });
        if waited {
            self.publish(&channel(key), &Bytes::new());
        }
        StoreFuture::ok(owned)
    }

    fn inspect(&self, key: &LockKey) -> StoreFuture<Option<LockState>> {
        StoreFuture::ok(update(self, key, |slot, now| {
            slot.get().map(|held| LockState {
                fence: held.fence,
                left: left(slot, now),
            })
        }))
    }

    fn subscribe(&self, key: &LockKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        Self::subscribe(self, &channel(key), callback)
    }
}
