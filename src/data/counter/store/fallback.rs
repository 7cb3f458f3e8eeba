//! The pair asks its primary only: a second count would be a made-up value.

use std::fmt;
use std::sync::Arc;

use super::{Bucket, Change, Count, CounterStore, Observation, Point};
use crate::backend::fallback::Fallback;
use crate::core::{Key, StoreFuture, Timestamp};

impl<P, S> CounterStore for Fallback<P, S>
where
    P: CounterStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    fn incr(
        &self,
        name: &Arc<str>,
        changes: Vec<Change>,
        batch: Option<Key>,
    ) -> StoreFuture<Vec<Count>> {
        self.primary().incr(name, changes, batch)
    }

    fn observe(
        &self,
        name: &Arc<str>,
        observation: Observation,
        buckets: Vec<Bucket>,
    ) -> StoreFuture<()> {
        self.primary().observe(name, observation, buckets)
    }

    fn values(&self, name: &Arc<str>, keys: Vec<Key>) -> StoreFuture<Vec<Count>> {
        self.primary().values(name, keys)
    }

    fn range(
        &self,
        name: &Arc<str>,
        key: Key,
        bucket: Bucket,
        span: (Timestamp, Timestamp),
    ) -> StoreFuture<Vec<Point>> {
        self.primary().range(name, key, bucket, span)
    }

    fn reset(&self, name: &Arc<str>, key: Key) -> StoreFuture<()> {
        self.primary().reset(name, key)
    }
}
