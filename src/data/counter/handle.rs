//! The service of counters.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::buffer::Buffer;
use super::series::Series;
use super::store::{Bucket, Change, Count, CounterStore};
use crate::core::telemetry::count;
use crate::core::ttl::{SECOND, Ttl};
use crate::core::{IntoKey, Key, NotAServiceName, Segments, ServiceName, base64url};
use crate::data::{DataError, once_more};

/// The most changes of one step.
pub(super) const AT_ONCE: usize = 512;

/// Counters that expire. Clones share the buffer of [`Counter::add`].
#[derive(Clone)]
#[must_use]
pub struct Counter {
    store: Arc<dyn CounterStore>,
    name: ServiceName,
    buffer: Arc<Buffer>,
}

/// One change of one counter, for [`Counter::apply`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Increment(Change);

impl Increment {
    /// Adds `by` to `key`, which lives for `ttl` from its first increment on.
    pub fn new(key: impl IntoKey, by: i64, ttl: Ttl) -> Self {
        Self(Change {
            key: key.into_key(),
            by,
            ttl,
            sliding: false,
            within: i64::MIN..=i64::MAX,
            event: None,
        })
    }

    /// Changes nothing where the result would lie outside.
    pub const fn within(mut self, bounds: RangeInclusive<i64>) -> Self {
        self.0.within = bounds;
        self
    }

    /// Changes nothing if this event was counted on this key within 24 h.
    pub fn once(mut self, event: impl AsRef<str>) -> Self {
        let mut hash = Sha256::new();
        for part in ["tower-keep event", self.0.key.as_str(), event.as_ref()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        self.0.event = Some(Key::of([base64url(&hash.finalize())]));
        self
    }

    /// Lets the ttl start anew.
    pub const fn sliding(mut self) -> Self {
        self.0.sliding = true;
        self
    }
}

impl Counter {
    /// Makes the counters of `name`.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn new(store: impl CounterStore, name: &str) -> Self {
        Self::of(Arc::new(store), ServiceName::new(name))
    }

    /// Like [`Counter::new`], for a name that is known only at run time.
    ///
    /// # Errors
    /// The name is not 1 to 64 of `a-z 0-9 . _ -`.
    pub fn try_new(store: impl CounterStore, name: &str) -> Result<Self, NotAServiceName> {
        Ok(Self::of(Arc::new(store), ServiceName::try_new(name)?))
    }

    fn of(store: Arc<dyn CounterStore>, name: ServiceName) -> Self {
        let buffer = Arc::new(Buffer::new(Arc::clone(&store), name.shared(), SECOND));
        Self {
            store,
            name,
            buffer,
        }
    }

    /// Sets how long [`Counter::add`] may keep back (1 s).
    pub fn flush_every(self, every: Duration) -> Self {
        let (store, every) = (Arc::clone(&self.store), every.max(Duration::from_millis(1)));
        let buffer = Arc::new(Buffer::new(store, self.name.shared(), every));
        Self { buffer, ..self }
    }

    /// Makes series of buckets, `a` to `z` apart from the counters themselves.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`, or two buckets have the same width.
    #[track_caller]
    pub fn series(&self, name: &str, buckets: impl IntoIterator<Item = Bucket>) -> Series {
        Series::new(
            Arc::clone(&self.store),
            self.name.clone(),
            ServiceName::new(name),
            buckets.into_iter().collect(),
        )
    }

    /// Adds `by` to `key`, which lives for `ttl` from its first increment on.
    ///
    /// # Errors
    /// `Full`: nothing was added. After `Unavailable` and `TimedOut` it may have been, and is not tried again.
    pub async fn incr(&self, key: impl IntoKey, by: i64, ttl: Ttl) -> Result<Count, DataError> {
        let counts = self.apply([Increment::new(key, by, ttl)]).await?;
        Ok(counts.first().copied().unwrap_or(Count {
            value: 0,
            expires_in: Duration::ZERO,
            applied: false,
        }))
    }

    /// Makes changes in order, up to 512 in one atomic step; more are split. Dropping the future leaves each part made or not.
    ///
    /// # Errors
    /// As [`Counter::incr`]. Where all changes have events, a lost reply is repeated: they count once.
    pub async fn apply(
        &self,
        increments: impl IntoIterator<Item = Increment>,
    ) -> Result<Vec<Count>, DataError> {
        let changes: Vec<Change> = increments.into_iter().map(|one| one.0).collect();
        let (name, mut counts) = (self.name.shared(), Vec::with_capacity(changes.len()));
        for part in changes.chunks(AT_ONCE) {
            let call = || self.store.incr(&name, part.to_vec(), None);
            let made = if part.iter().all(|change| change.event.is_some()) {
                once_more(call).await?
            } else {
                call().await?
            };
            counts.extend(made);
        }
        count!("keep_counter_ops_total", changes.len() as u64, "counter" => self.name.as_str().to_owned());
        Ok(counts)
    }

    /// Adds without waiting: buffered in this process and flushed every second. A crash loses at most that interval, or
    /// what an outage kept back.
    ///
    /// # Errors
    /// `Full`: 10,000 keys wait already.
    pub fn add(&self, key: impl IntoKey, by: i64, ttl: Ttl) -> Result<(), DataError> {
        self.buffer.add(&Segments::of(&key), by, ttl)
    }

    /// Sends what [`Counter::add`] buffered; for shutdown.
    ///
    /// # Errors
    /// The store cannot take it now: it is kept, and sent later under the same id, so that it counts once.
    pub async fn flush(&self) -> Result<(), DataError> {
        Ok(self.buffer.flush().await?)
    }

    /// Reads a counter; absent and expired ones are 0.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn value(&self, key: impl IntoKey) -> Result<i64, DataError> {
        let counts = self.values([key]).await?;
        Ok(counts.first().copied().unwrap_or(0))
    }

    /// Reads counters in the order of `keys`.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn values<K: IntoKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<i64>, DataError> {
        let keys: Vec<Key> = keys.into_iter().map(IntoKey::into_key).collect();
        let (name, mut values) = (self.name.shared(), Vec::with_capacity(keys.len()));
        for part in keys.chunks(AT_ONCE) {
            let counts = self.store.values(&name, part.to_vec()).await?;
            values.extend(counts.iter().map(|count| count.value));
        }
        Ok(values)
    }

    /// Forgets a counter.
    ///
    /// # Errors
    /// The store cannot do it.
    pub async fn reset(&self, key: impl IntoKey) -> Result<(), DataError> {
        Ok(self
            .store
            .reset(&self.name.shared(), key.into_key())
            .await?)
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
