//! The pair asks its primary only: a claim inside one process is none for the others.

use std::fmt;
use std::time::Duration;

use super::{Begin, Claim, Cursor, Health, IdempotencyStore, Owned, Purged, Resolution, Resolved};
use crate::backend::fallback::Fallback;
use crate::core::StoreFuture;
use crate::idempotency::policy::LeaseEnd;
use crate::idempotency::record::{Answer, Fence, Nonce, Record, RecordId, ScopeTag};

impl<P, S> IdempotencyStore for Fallback<P, S>
where
    P: IdempotencyStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin> {
        self.primary().begin(key, claim)
    }

    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned> {
        self.primary().renew(key, nonce, lease, end)
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        self.primary().complete(key, nonce, answer, ttl)
    }

    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned> {
        self.primary().release(key, nonce)
    }

    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>> {
        self.primary().peek(key)
    }

    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved> {
        self.primary().resolve(key, fence, to)
    }

    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged> {
        self.primary().purge(scope, page)
    }

    fn health(&self) -> StoreFuture<Health> {
        self.primary().health()
    }
}
