//! Where counts live: one atomic step per method.

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod memory;
#[cfg(feature = "redis")]
mod redis;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

pub use super::bucket::{Bucket, Granularity, Point};
use crate::core::ttl::Ttl;
use crate::core::{Key, StoreFuture, Timestamp};

/// One change of one counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The counter.
    pub key: Key,
    /// Added to it.
    pub by: i64,
    /// From its first increment on, or from each.
    pub ttl: Ttl,
    /// The ttl starts anew with each change that is applied.
    pub sliding: bool,
    /// Where a result may lie.
    pub within: RangeInclusive<i64>,
    /// The digest of an event that counts once within 24 h.
    pub event: Option<Key>,
}

/// A counter after a change, or as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its value; absent and expired counters are 0.
    pub value: i64,
    /// How long it lives, zero where there is none.
    pub expires_in: Duration,
    /// Whether the change was made: not outside its bounds, not twice for one event.
    pub applied: bool,
}

/// What is added to every bucket that a moment falls into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The series.
    pub key: Key,
    /// How many.
    pub count: i64,
    /// A measured value: added to the sum, and the max if it is the largest.
    pub value: Option<i64>,
}

/// How long the digest of an event is remembered.
pub const EVENT_KEPT: Ttl = Ttl::days(1);

/// Keeps counters that expire and series of buckets.
///
/// # Behaviour
/// - Every method is one atomic step. No counter lives without an expiry; at exactly its expiry it is 0.
/// - A change that overflows or leaves its bounds changes nothing. Sums of series stop at the ends of `i64`.
/// - Buckets are of UTC by the store's clock, read inside the step. Nothing is evicted; a store without room refuses.
pub trait CounterStore: fmt::Debug + Send + Sync + 'static {
    /// Makes up to 512 changes in order; of a whole call with `batch` that was seen within 24 h, none.
    ///
    /// # Errors
    /// `Full`: nothing was changed. `Unavailable`, `TimedOut`: unknown; with `batch` a repeat is harmless.
    fn incr(
        &self,
        name: &Arc<str>,
        changes: Vec<Change>,
        batch: Option<Key>,
    ) -> StoreFuture<Vec<Count>>;

    /// Adds observations to the buckets of `now`.
    ///
    /// # Errors
    /// `Full`: nothing was changed. `Unavailable`, `TimedOut`: unknown.
    fn observe(
        &self,
        name: &Arc<str>,
        observation: Observation,
        buckets: Vec<Bucket>,
    ) -> StoreFuture<()>;

    /// Reads up to 512 counters.
    ///
    /// # Errors
    /// As the engine has them.
    fn values(&self, name: &Arc<str>, keys: Vec<Key>) -> StoreFuture<Vec<Count>>;

    /// Reads the buckets that `from..to` touches, at most 1,000, those that are empty or gone as zero.
    ///
    /// # Errors
    /// As the engine has them.
    fn range(
        &self,
        name: &Arc<str>,
        key: Key,
        bucket: Bucket,
        span: (Timestamp, Timestamp),
    ) -> StoreFuture<Vec<Point>>;

    /// Forgets a counter.
    ///
    /// # Errors
    /// As the engine has them; a repeat is harmless.
    fn reset(&self, name: &Arc<str>, key: Key) -> StoreFuture<()>;
}

impl<T: CounterStore + ?Sized> CounterStore for Arc<T> {
    fn incr(
        &self,
        name: &Arc<str>,
        changes: Vec<Change>,
        batch: Option<Key>,
    ) -> StoreFuture<Vec<Count>> {
        (**self).incr(name, changes, batch)
    }

    fn observe(
        &self,
        name: &Arc<str>,
        observation: Observation,
        buckets: Vec<Bucket>,
    ) -> StoreFuture<()> {
        (**self).observe(name, observation, buckets)
    }

    fn values(&self, name: &Arc<str>, keys: Vec<Key>) -> StoreFuture<Vec<Count>> {
        (**self).values(name, keys)
    }

    fn range(
        &self,
        name: &Arc<str>,
        key: Key,
        bucket: Bucket,
        span: (Timestamp, Timestamp),
    ) -> StoreFuture<Vec<Point>> {
        (**self).range(name, key, bucket, span)
    }

    fn reset(&self, name: &Arc<str>, key: Key) -> StoreFuture<()> {
        (**self).reset(name, key)
    }
}
