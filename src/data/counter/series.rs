//! Series: counts by minute, hour and day.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::store::{Bucket, CounterStore, Observation, Point};
use crate::core::{IntoKey, Key, ServiceName, Timestamp};
use crate::data::DataError;

/// Counts by bucket of UTC: what happened in which minute, hour or day.
#[derive(Clone)]
#[must_use]
pub struct Series {
    store: Arc<dyn CounterStore>,
    counter: ServiceName,
    name: ServiceName,
    buckets: Arc<[Bucket]>,
}

impl Series {
    #[track_caller]
    pub(super) fn new(
        store: Arc<dyn CounterStore>,
        counter: ServiceName,
        name: ServiceName,
        buckets: Vec<Bucket>,
    ) -> Self {
        let twice = |(at, bucket): (usize, &Bucket)| {
            let same = |other: &Bucket| other.granularity() == bucket.granularity();
            buckets[..at].iter().any(same)
        };
        assert!(
            !buckets.iter().enumerate().any(twice),
            "a series has each width of bucket once"
        );
        Self {
            store,
            counter,
            name,
            buckets: buckets.into(),
        }
    }

    /// Counts `n` events of `key` now, in all buckets in one step.
    ///
    /// # Errors
    /// `Full`: nothing was counted. After `Unavailable` and `TimedOut` it may have been, and is not tried again.
    pub async fn incr(&self, key: impl IntoKey, n: i64) -> Result<(), DataError> {
        self.send(key.into_key(), n, None).await
    }

    /// Counts one measurement of `key` now: count, sum and max of all buckets in one step.
    ///
    /// # Errors
    /// See [`Series::incr`].
    pub async fn observe(&self, key: impl IntoKey, value: i64) -> Result<(), DataError> {
        self.send(key.into_key(), 1, Some(value)).await
    }

    /// Reads the buckets that `span` touches, oldest first, empty ones as zero; at most the last 1,000.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn range(
        &self,
        key: impl IntoKey,
        bucket: Bucket,
        span: Range<Timestamp>,
    ) -> Result<Vec<Point>, DataError> {
        // How many are kept is said by the series, whatever the caller's constant says.
        let same = |own: &&Bucket| own.granularity() == bucket.granularity();
        let bucket = self.buckets.iter().find(same).copied().unwrap_or(bucket);
        let (key, name) = (self.key(key.into_key()), self.counter.shared());
        let span = (span.start, span.end);
        Ok(self.store.range(&name, key, bucket, span).await?)
    }

    async fn send(&self, key: Key, count: i64, value: Option<i64>) -> Result<(), DataError> {
        let observation = Observation {
            key: self.key(key),
            count,
            value,
        };
        let name = self.counter.shared();
        let sent = self
            .store
            .observe(&name, observation, self.buckets.to_vec());
        Ok(sent.await?)
    }

    fn key(&self, key: Key) -> Key {
        Key::from_escaped(format!("{}:{}", self.name, key.as_str()))
    }
}

impl fmt::Debug for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Series")
            .field("name", &self.name)
            .field("buckets", &self.buckets)
            .finish_non_exhaustive()
    }
}
