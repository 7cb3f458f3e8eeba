//! The pair asks its primary only: a second store would accept a token twice, and revive what was removed.

use std::fmt;

use bytes::Bytes;

use super::{Expect, Keep, Kept, OnceKey, OnceStore, PutOutcome, SaveOutcome};
use crate::backend::fallback::Fallback;
use crate::core::StoreFuture;
use crate::core::ttl::Ttl;

impl<P, S> OnceStore for Fallback<P, S>
where
    P: OnceStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    fn put(&self, key: &OnceKey, value: Bytes, ttl: Ttl) -> StoreFuture<PutOutcome> {
        self.primary().put(key, value, ttl)
    }

    fn take(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        self.primary().take(key)
    }

    fn peek(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        self.primary().peek(key)
    }

    fn save(
        &self,
        key: &OnceKey,
        value: Bytes,
        expect: Expect,
        keep: Keep,
    ) -> StoreFuture<SaveOutcome> {
        self.primary().save(key, value, expect, keep)
    }

    fn remove(&self, key: &OnceKey) -> StoreFuture<bool> {
        self.primary().remove(key)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.primary().contradicts(name, what)
    }
}
