//! One-time values in this process: each method is a closure under the lock of the key's shard.

use bytes::Bytes;

use super::super::policy;
use super::{Expect, Keep, Kept, OnceKey, OnceStore, PutOutcome, SaveOutcome};
use crate::backend::memory::{Entry, MemoryStore, Slot};
use crate::core::ttl::Ttl;
use crate::core::{StoreFuture, Timestamp};
use crate::data::Names;

/// Never evicted: a token that vanished, or came back, would be a lie.
impl Entry for Kept {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.value.len()
    }
}

fn update<R>(
    store: &MemoryStore,
    key: &OnceKey,
    change: impl FnOnce(&mut Slot<'_, Kept>, u64) -> R,
) -> R {
    let entry = store.hash(|hasher| {
        hasher.part(key.name.as_bytes());
        hasher.part(key.key.as_str().as_bytes());
    });
    let now_ms = store.now_micros() / 1_000;
    store
        .table::<Kept>()
        .update_one(entry, now_ms * 1_000, |slot| change(slot, now_ms))
}

impl OnceStore for MemoryStore {
    fn put(&self, key: &OnceKey, value: Bytes, ttl: Ttl) -> StoreFuture<PutOutcome> {
        StoreFuture::ready(update(self, key, |slot, now_ms| {
            if slot.get().is_some() {
                return Ok(PutOutcome::Exists);
            }
            let now = Timestamp::from_millis(now_ms);
            let expires_at = now + ttl.as_duration();
            let kept = Kept {
                value,
                version: 1,
                created_at: now,
                updated_at: now,
                expires_at,
            };
            slot.set(kept, expires_at.as_micros())?;
            Ok(PutOutcome::Stored)
        }))
    }

    fn take(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        StoreFuture::ok(update(self, key, |slot, _| slot.remove()))
    }

    fn peek(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        StoreFuture::ok(update(self, key, |slot, _| slot.get().cloned()))
    }

    fn save(
        &self,
        key: &OnceKey,
        value: Bytes,
        expect: Expect,
        keep: Keep,
    ) -> StoreFuture<SaveOutcome> {
        StoreFuture::ready(update(self, key, |slot, now_ms| {
            let now = Timestamp::from_millis(now_ms);
            let (version, created_at) = slot
                .get()
                .map_or((0, now), |kept| (kept.version, kept.created_at));
            if !policy::is_expected(expect, version) {
                return Ok(SaveOutcome::Conflict { version });
            }
            let end = policy::end(keep, created_at.as_millis(), now_ms);
            let kept = Kept {
                value,
                version: version + 1,
                created_at,
                updated_at: now,
                expires_at: Timestamp::from_millis(end),
            };
            slot.set(kept, end.saturating_mul(1_000))?;
            Ok(SaveOutcome::Saved {
                version: version + 1,
            })
        }))
    }

    fn remove(&self, key: &OnceKey) -> StoreFuture<bool> {
        StoreFuture::ok(update(self, key, |slot, _| slot.remove().is_some()))
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.part::<Names>().contradicts(name, what)
    }
}
