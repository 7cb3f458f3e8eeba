//! What a health service asks: a sign of life, and what was counted.

use std::error::Error;
#[cfg(feature = "redis")]
use std::fmt;
use std::future::Future;
use std::sync::Arc;

#[cfg(feature = "redis")]
use crate::backend::fallback::Fallback;
use crate::backend::health::{Probed, StoreHealth, StoreMode};
use crate::backend::memory::MemoryStore;
#[cfg(feature = "redis")]
use crate::backend::redis::RedisStore;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::backend::sql::SqlStore;
use crate::core::{Latency, StoreError, StoreErrorKind, StoreFuture};

/// Something whose health is asked for: stores, caches, queues, and closures that give a future of a `Result`.
pub trait Check: Send + Sync + 'static {
    /// Asks for a sign of life. Dropped after 500 ms.
    ///
    /// # Errors
    /// It is down. The error's text is shown to nobody.
    fn check(&self) -> StoreFuture<Probed>;

    /// Returns what was counted so far; asks nobody.
    fn vitals(&self) -> Vitals {
        Vitals::default()
    }
}

/// Counts since the beginning, and what is so now. Two readings tell of the time between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    /// Reads of a cache.
    pub reads: u64,
    /// Reads of it that were hits.
    pub hits: u64,
    /// Calls of a store, sent or not.
    pub calls: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Calls that were not sent since the breaker was open.
    pub fallbacks: u64,
    /// How long calls took.
    pub latency: Latency,
    /// Where state is kept, for a store.
    pub mode: Option<StoreMode>,
    /// Whether the breaker is open.
    pub breaker_open: bool,
}

fn of_store(store: &(impl StoreHealth + ?Sized)) -> Vitals {
    let stats = store.stats();
    Vitals {
        calls: stats.latency.calls() + stats.fallbacks,
        errors: stats.errors,
        fallbacks: stats.fallbacks,
        latency: stats.latency,
        mode: Some(stats.mode),
        breaker_open: stats.breaker_open,
        ..Vitals::default()
    }
}

macro_rules! stores {
    ($($(#[$feature:meta])* [$($generic:tt)*] $store:ty),*) => {$(
        $(#[$feature])*
        impl<$($generic)*> Check for $store {
            fn check(&self) -> StoreFuture<Probed> {
                StoreHealth::probe(self)
            }

            fn vitals(&self) -> Vitals {
                of_store(self)
            }
        }
    )*};
}

stores!(
    [] MemoryStore,
    #[cfg(feature = "redis")]
    [] RedisStore,
    #[cfg(feature = "redis")]
    [S: fmt::Debug + Send + Sync + 'static] Fallback<RedisStore, S>,
    [T: StoreHealth + ?Sized] Arc<T>
);

#[cfg(any(feature = "sqlite", feature = "postgres"))]
impl Check for SqlStore {
    fn check(&self) -> StoreFuture<Probed> {
        let db = self.clone();
        StoreFuture::boxed(async move { db.ping().await.map(|()| Probed::default()) })
    }
}

impl<F, Fut, T, E> Check for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn check(&self) -> StoreFuture<Probed> {
        let asked = self();
        StoreFuture::boxed(async move {
            let answer = asked.await.map(|_| Probed::default());
            answer.map_err(|error| StoreError::with_source(StoreErrorKind::Failed, error))
        })
    }
}
