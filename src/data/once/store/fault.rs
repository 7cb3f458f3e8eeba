//! One-time values behind a line that can be cut by order, for tests of an outage.

use bytes::Bytes;

use super::{Expect, Keep, Kept, OnceKey, OnceStore, PutOutcome, SaveOutcome, Ttl};
use crate::backend::fault::FaultStore;
use crate::core::StoreFuture;

impl<S: OnceStore> OnceStore for FaultStore<S> {
    fn put(&self, key: &OnceKey, value: Bytes, ttl: Ttl) -> StoreFuture<PutOutcome> {
        self.call(|| self.inner().put(key, value, ttl))
    }

    fn take(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        self.call(|| self.inner().take(key))
    }

    fn peek(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        self.call(|| self.inner().peek(key))
    }

    fn save(
        &self,
        key: &OnceKey,
        value: Bytes,
        expect: Expect,
        keep: Keep,
    ) -> StoreFuture<SaveOutcome> {
        self.call(|| self.inner().save(key, value, expect, keep))
    }

    fn remove(&self, key: &OnceKey) -> StoreFuture<bool> {
        self.call(|| self.inner().remove(key))
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.inner().contradicts(name, what)
    }
}
