//! Counters behind a line that can be cut by order, for tests of an outage.

use std::sync::Arc;

use super::{Bucket, Change, Count, CounterStore, Observation, Point};
use crate::backend::fault::FaultStore;
use crate::core::{Key, StoreFuture, Timestamp};

impl<S: CounterStore> CounterStore for FaultStore<S> {
    fn incr(
        &self,
        name: &Arc<str>,
        changes: Vec<Change>,
        batch: Option<Key>,
    ) -> StoreFuture<Vec<Count>> {
        self.call(|| self.inner().incr(name, changes, batch))
    }

    fn observe(
        &self,
        name: &Arc<str>,
        observation: Observation,
        buckets: Vec<Bucket>,
    ) -> StoreFuture<()> {
        self.call(|| self.inner().observe(name, observation, buckets))
    }

    fn values(&self, name: &Arc<str>, keys: Vec<Key>) -> StoreFuture<Vec<Count>> {
        self.call(|| self.inner().values(name, keys))
    }

    fn range(
        &self,
        name: &Arc<str>,
        key: Key,
        bucket: Bucket,
        span: (Timestamp, Timestamp),
    ) -> StoreFuture<Vec<Point>> {
        self.call(|| self.inner().range(name, key, bucket, span))
    }

    fn reset(&self, name: &Arc<str>, key: Key) -> StoreFuture<()> {
        self.call(|| self.inner().reset(name, key))
    }
}
