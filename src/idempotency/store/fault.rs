//! Records behind a line that can be cut by order, for tests of an outage.

use std::time::Duration;

use super::{
    Answer, Begin, Claim, Cursor, Fence, Health, IdempotencyStore, LeaseEnd, Nonce, Owned, Purged,
    Record, RecordId, Resolution, Resolved, ScopeTag,
};
use crate::backend::fault::FaultStore;
use crate::core::StoreFuture;

impl<S: IdempotencyStore> IdempotencyStore for FaultStore<S> {
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin> {
        self.call(|| self.inner().begin(key, claim))
    }

    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned> {
        self.call(|| self.inner().renew(key, nonce, lease, end))
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        self.call(|| self.inner().complete(key, nonce, answer, ttl))
    }

    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned> {
        self.call(|| self.inner().release(key, nonce))
    }

    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>> {
        self.call(|| self.inner().peek(key))
    }

    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved> {
        self.call(|| self.inner().resolve(key, fence, to))
    }

    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged> {
        self.call(|| self.inner().purge(scope, page))
    }

    fn health(&self) -> StoreFuture<Health> {
        self.call(|| self.inner().health())
    }
}
