//! Locks on Redis: a text under one key, one script per method.

use std::time::Duration;

use super::{Acquired, Asking, FENCE_KEPT, Fence, LockKey, LockState, LockStore, Owned, Owner};
use crate::backend::redis::{RedisStore, Reply, Script};
use crate::core::{
    KeyBuilder, NoticeCallback, StoreError, StoreErrorKind, StoreFuture, Subscription,
};
use crate::data::subscribe_and_stay;

static ACQUIRE: Script = Script::named("lock.acquire", include_str!("acquire.lua"));
static EXTEND: Script = Script::named("lock.extend", include_str!("extend.lua"));
static RELEASE: Script = Script::named("lock.release", include_str!("release.lua"));
static INSPECT: Script = Script::named("lock.inspect", include_str!("inspect.lua"));

impl LockStore for RedisStore {
    fn acquire(
        &self,
        key: &LockKey,
        owner: Owner,
        lease: Duration,
        asking: Asking,
    ) -> StoreFuture<Acquired> {
        self.script(&ACQUIRE, &[key_of(self, key)])
            .arg(owner.0)
            .num(millis(lease))
            .num(millis(lease.saturating_add(FENCE_KEPT)))
            .num(u8::from(asking == Asking::Waiting))
            .run(|reply| match reply {
                Reply::Array(mut left) => {
                    let left = left.pop().ok_or_else(unexpected)?;
                    Ok(Acquired::Busy {
                        left: Duration::from_millis(number(left.int()?)?),
                    })
                }
                fence => {
                    let bytes = fence.bytes()?;
                    let bytes = bytes.as_ref().try_into().map_err(|_| unexpected())?;
                    Ok(Acquired::Granted(Fence(u64::from_be_bytes(bytes))))
                }
            })
    }

    fn extend(&self, key: &LockKey, owner: Owner, lease: Duration) -> StoreFuture<Owned> {
        self.script(&EXTEND, &[key_of(self, key)])
            .arg(owner.0)
            .num(millis(lease))
            .num(millis(lease.saturating_add(FENCE_KEPT)))
            .run(owned)
    }

    fn release(&self, key: &LockKey, owner: Owner) -> StoreFuture<Owned> {
        self.script(&RELEASE, &[key_of(self, key)])
            .arg(owner.0)
            .num(millis(FENCE_KEPT))
            .arg(channel_of(self, key))
            .run(owned)
    }

    fn inspect(&self, key: &LockKey) -> StoreFuture<Option<LockState>> {
        self.script(&INSPECT, &[key_of(self, key)])
            .run(|reply| match reply {
                Reply::Nil => Ok(None),
                found => {
                    let (fence, left) = pair(found)?;
                    Ok(Some(LockState {
                        fence: Fence(fence),
                        left: Duration::from_millis(left),
                    }))
                }
            })
    }

    fn subscribe(&self, key: &LockKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        subscribe_and_stay(self, "lock", &channel_of(self, key), callback)
    }
}

fn key_of(store: &RedisStore, key: &LockKey) -> String {
    placed(store.key("lock"), key)
}

fn channel_of(store: &RedisStore, key: &LockKey) -> String {
    placed(store.channel("lock"), key)
}

/// Name and key are the hash tag: locks spread over a cluster.
fn placed(start: KeyBuilder, key: &LockKey) -> String {
    start.tag_of(&key.name, &key.key).finish()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}

fn pair(reply: Reply) -> Result<(u64, u64), StoreError> {
    let mut numbers = reply.array()?.into_iter().map(Reply::int);
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(second)) => Ok((number(first?)?, number(second?)?)),
        _ => Err(unexpected()),
    }
}

fn number(of: i64) -> Result<u64, StoreError> {
    u64::try_from(of).map_err(|_| unexpected())
}

fn owned(reply: Reply) -> Result<Owned, StoreError> {
    match reply.int()? {
        1 => Ok(Owned::Yes),
        0 => Ok(Owned::Lost),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> StoreError {
    let why = "a script answered in an unknown form";
    StoreError::with_source(StoreErrorKind::Failed, why)
}
