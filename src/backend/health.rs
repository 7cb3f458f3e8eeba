//! What a handle says of its engine, asked at each operation, never remembered from the start.

use std::fmt;
use std::sync::Arc;

use super::fallback::Fallback;
use super::memory::{Entry, MemoryStore};
use crate::core::{Latency, StoreErrorKind, StoreFuture};

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

/// What a handle has done since it was made, counted where it was done, and how its engine is now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoreStats {
    /// The engine's name.
    pub engine: &'static str,
    /// Where state is being kept at this moment.
    pub mode: StoreMode,
    /// Whether the last call that was sent was answered, and calls are sent.
    pub reachable: bool,
    /// Why the last call failed; `None` if it did not.
    pub last_error: Option<StoreErrorKind>,
    /// Commands sent; 0 for an engine inside this process.
    pub commands: u64,
    /// Calls that failed, timeouts included.
    pub errors: u64,
    /// Calls that were not answered in time.
    pub timeouts: u64,
    /// Calls that were not sent while the breaker was open: decided locally, or refused.
    pub fallbacks: u64,
    /// Whether calls are being refused because the server did not answer.
    pub breaker_open: bool,
    /// Entries in tables of this process.
    pub entries: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Entries that were dropped for room.
    pub evicted: Option<u64>,
    /// How long the calls took that were sent.
    pub latency: Latency,
}

/// What a probe has found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Probed {
    /// How much of the engine's memory is in use, 0 to 1; `None` where there is no bound, or it may not be asked.
    pub memory: Option<f64>,
    /// Whether the engine may evict what must not vanish: locks, tokens, jobs.
    pub may_evict: bool,
}

/// Tells how a store is.
pub trait StoreHealth: fmt::Debug + Send + Sync + 'static {
    /// Returns where state is being kept at this moment.
    fn mode(&self) -> StoreMode;

    /// Returns whether calls are being refused because the engine did not answer.
    fn is_refusing(&self) -> bool {
        self.stats().breaker_open
    }

    /// Asks the engine for a sign of life; behind an open breaker this may be the probe that closes it.
    ///
    /// # Errors
    /// The engine cannot be reached.
    fn ping(&self) -> StoreFuture<()>;

    /// Writes, reads and removes a value that would end after 10 s.
    ///
    /// # Errors
    /// The engine cannot be reached, or takes no writes.
    fn probe(&self) -> StoreFuture<Probed>;

    /// Returns what was counted so far; asks nobody.
    fn stats(&self) -> StoreStats;
}

impl<T: StoreHealth + ?Sized> StoreHealth for Arc<T> {
    fn mode(&self) -> StoreMode {
        (**self).mode()
    }

    fn is_refusing(&self) -> bool {
        (**self).is_refusing()
    }

    fn ping(&self) -> StoreFuture<()> {
        (**self).ping()
    }

    fn probe(&self) -> StoreFuture<Probed> {
        (**self).probe()
    }

    fn stats(&self) -> StoreStats {
        (**self).stats()
    }
}

/// A value that a probe writes.
struct Probe;

impl Entry for Probe {
    fn weight(&self) -> usize {
        0
    }
}

impl StoreHealth for MemoryStore {
    fn mode(&self) -> StoreMode {
        StoreMode::Memory
    }

    fn ping(&self) -> StoreFuture<()> {
        StoreFuture::ok(())
    }

    fn probe(&self) -> StoreFuture<Probed> {
        let entry = self.hash(|hasher| hasher.part(b"probe"));
        let now = self.now_micros();
        let done = self.table::<Probe>().update_one(entry, now, |slot| {
            let end = now.saturating_add(10_000_000);
            slot.set(Probe, end).map(|()| slot.remove().is_some())
        });
        StoreFuture::ready(done.map_err(Into::into).map(|_: bool| Probed {
            memory: Some(self.size().fullest),
            may_evict: false,
        }))
    }

    fn stats(&self) -> StoreStats {
        let size = self.size();
        StoreStats {
            engine: "memory",
            mode: StoreMode::Memory,
            reachable: true,
            last_error: None,
            commands: 0,
            errors: 0,
            timeouts: 0,
            fallbacks: 0,
            breaker_open: false,
            entries: Some(size.entries),
            bytes: Some(size.bytes),
            evicted: Some(size.evicted),
            latency: Latency::default(),
        }
    }
}

#[cfg(feature = "redis")]
impl StoreHealth for super::redis::RedisStore {
    fn mode(&self) -> StoreMode {
        StoreMode::Redis
    }

    fn is_refusing(&self) -> bool {
        self.is_away()
    }

    fn ping(&self) -> StoreFuture<()> {
        Self::ping(self)
    }

    fn probe(&self) -> StoreFuture<Probed> {
        Self::probe(self)
    }

    fn stats(&self) -> StoreStats {
        Self::stats(self)
    }
}

impl<P: StoreHealth, S: fmt::Debug + Send + Sync + 'static> StoreHealth for Fallback<P, S> {
    fn mode(&self) -> StoreMode {
        if self.primary().is_refusing() {
            StoreMode::Fallback
        } else {
            self.primary().mode()
        }
    }

    fn ping(&self) -> StoreFuture<()> {
        StoreHealth::ping(self.primary())
    }

    fn probe(&self) -> StoreFuture<Probed> {
        StoreHealth::probe(self.primary())
    }

    /// The primary's, with the entries of the one that stands in.
    fn stats(&self) -> StoreStats {
        let stand_in: &dyn std::any::Any = self.secondary();
        let size = stand_in.downcast_ref().map(MemoryStore::size);
        StoreStats {
            mode: self.mode(),
            entries: size.map(|size| size.entries),
            bytes: size.map(|size| size.bytes),
            evicted: size.map(|size| size.evicted),
            ..self.primary().stats()
        }
    }
}
