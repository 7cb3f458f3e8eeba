//! Locks behind a line that can be cut by order, for tests of an outage.

use std::time::Duration;

use super::{Acquired, Asking, LockKey, LockState, LockStore, Owned, Owner};
use crate::backend::fault::FaultStore;
use crate::core::{NoticeCallback, StoreFuture, Subscription};

impl<S: LockStore> LockStore for FaultStore<S> {
    fn acquire(
        &self,
        key: &LockKey,
        owner: Owner,
        lease: Duration,
        asking: Asking,
    ) -> StoreFuture<Acquired> {
        self.call(|| self.inner().acquire(key, owner, lease, asking))
    }

    fn extend(&self, key: &LockKey, owner: Owner, lease: Duration) -> StoreFuture<Owned> {
        self.call(|| self.inner().extend(key, owner, lease))
    }

    fn release(&self, key: &LockKey, owner: Owner) -> StoreFuture<Owned> {
        self.call(|| self.inner().release(key, owner))
    }

    fn inspect(&self, key: &LockKey) -> StoreFuture<Option<LockState>> {
        self.call(|| self.inner().inspect(key))
    }

    fn subscribe(&self, key: &LockKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        self.call(|| self.inner().subscribe(key, callback))
    }
}
