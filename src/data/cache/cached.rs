//! A value from a cache, and what is known of it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::share::Share;
use crate::core::Timestamp;

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheOutcome {
    /// From this process.
    LocalHit,
    /// From the store.
    SharedHit,
    /// Past its ttl: the loader failed, is slow, or runs elsewhere.
    Stale,
    /// From the loader.
    Loaded,
    /// From a loader that was running already.
    Joined,
    /// The store could not be asked.
    Bypassed,
}

/// A value and its age.
pub struct Cached<V> {
    pub(super) value: Share<V>,
    pub(super) stored_at: Timestamp,
    pub(super) age: Duration,
    pub(super) expires_in: Duration,
    pub(super) outcome: CacheOutcome,
}

impl<V> Cached<V> {
    /// Returns the value, shared.
    #[must_use]
    pub fn into_shared(self) -> Arc<V> {
        self.value.into_shared()
    }

    /// Returns when the value was stored, by the store's clock.
    #[must_use]
    pub const fn stored_at(&self) -> Timestamp {
        self.stored_at
    }

    /// Returns how old it was when it was read; never negative.
    #[must_use]
    pub const fn age(&self) -> Duration {
        self.age
    }

    /// Returns how long it was still fresh when it was read; zero for a stale one.
    #[must_use]
    pub const fn expires_in(&self) -> Duration {
        self.expires_in
    }

    /// Returns where it came from.
    #[must_use]
    pub const fn outcome(&self) -> CacheOutcome {
        self.outcome
    }
}

impl<V> Clone for Cached<V> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            ..*self
        }
    }
}

impl<V> Deref for Cached<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V> fmt::Debug for Cached<V> {
    /// The value is left out: it may be personal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached")
            .field("outcome", &self.outcome)
            .field("age", &self.age)
            .finish_non_exhaustive()
    }
}
