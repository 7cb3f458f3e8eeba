//! The pair asks its primary only: a lock inside one process is none for the others.

use std::fmt;
use std::time::Duration;

use super::{Acquired, Asking, LockKey, LockState, LockStore, Owned, Owner};
use crate::backend::fallback::Fallback;
use crate::core::{NoticeCallback, StoreFuture, Subscription};

impl<P, S> LockStore for Fallback<P, S>
where
    P: LockStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    fn acquire(
        &self,
        key: &LockKey,
        owner: Owner,
        lease: Duration,
        asking: Asking,
    ) -> StoreFuture<Acquired> {
        self.primary().acquire(key, owner, lease, asking)
    }

    fn extend(&self, key: &LockKey, owner: Owner, lease: Duration) -> StoreFuture<Owned> {
        self.primary().extend(key, owner, lease)
    }

    fn release(&self, key: &LockKey, owner: Owner) -> StoreFuture<Owned> {
        self.primary().release(key, owner)
    }

    fn inspect(&self, key: &LockKey) -> StoreFuture<Option<LockState>> {
        self.primary().inspect(key)
    }

    fn subscribe(&self, key: &LockKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        self.primary().subscribe(key, callback)
    }
}
