//! What a handle says of its engine, asked at each operation, never remembered from the start.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "redis")]
use super::fallback::Fallback;
use super::memory::MemoryStore;
use crate::core::StoreFuture;

/// Where state is being kept at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreMode {
    /// Inside this process, by choice.
    Memory,
    /// On a Redis server.
    Redis,
    /// The Redis server cannot be reached: what may be decided locally is, the rest is refused.
    Fallback,
}

impl fmt::Display for StoreMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Fallback => "fallback",
        })
    }
}

/// Tells how a store is.
pub trait StoreHealth: fmt::Debug + Send + Sync + 'static {
    /// Returns where state is being kept at this moment.
    fn mode(&self) -> StoreMode;

    /// Asks the engine for a sign of life; behind an open breaker this may be the probe that closes it.
    ///
    /// # Errors
    /// The engine cannot be reached.
    fn ping(&self) -> StoreFuture<()>;
}

impl<T: StoreHealth + ?Sized> StoreHealth for Arc<T> {
    fn mode(&self) -> StoreMode {
        (**self).mode()
    }

    fn ping(&self) -> StoreFuture<()> {
        (**self).ping()
    }
}

impl StoreHealth for MemoryStore {
    fn mode(&self) -> StoreMode {
        StoreMode::Memory
    }

    fn ping(&self) -> StoreFuture<()> {
        StoreFuture::ok(())
    }
}

#[cfg(feature = "redis")]
impl StoreHealth for super::redis::RedisStore {
    fn mode(&self) -> StoreMode {
        StoreMode::Redis
    }

    fn ping(&self) -> StoreFuture<()> {
        Self::ping(self)
    }
}

#[cfg(feature = "redis")]
impl<S: fmt::Debug + Send + Sync + 'static> StoreHealth for Fallback<super::redis::RedisStore, S> {
    fn mode(&self) -> StoreMode {
        if self.primary().is_open_circuit() {
            StoreMode::Fallback
        } else {
            StoreMode::Redis
        }
    }

    fn ping(&self) -> StoreFuture<()> {
        StoreHealth::ping(self.primary())
    }
}
