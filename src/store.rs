//! One URL for all stores: an application chooses its engine at run time.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_keep::store::OpenError> {
//! use tower_keep::rate_limit::{Partition, Quota, RateLimitLayer};
//!
//! let store = tower_keep::store::open("memory:").await?;
//! let limits = RateLimitLayer::new(store).limit(Quota::per_minute(120), Partition::client_ip());
//! # let _ = limits;
//! # Ok(())
//! # }
//! ```

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(any(feature = "redis", feature = "conformance"))]
use crate::backend::fallback::Fallback;
#[cfg(feature = "conformance")]
use crate::backend::fault::FaultStore;
use crate::backend::health::StoreHealth;
use crate::backend::memory::MemoryStore;
#[cfg(feature = "redis-tls")]
use crate::backend::redis::Trust;
use crate::core::Clock;
use crate::data::cache::CacheStore;
use crate::data::counter::CounterStore;
use crate::data::lock::LockStore;
use crate::data::once::OnceStore;
use crate::data::queue::QueueStore;
use crate::data::topic::TopicStore;
use crate::idempotency::IdempotencyStore;
use crate::rate_limit::RateLimitStore;
use crate::response_cache::ResponseStore;
use crate::session::SessionStore;

/// Everything that the layers keep outside SQL, behind one handle.
///
/// Implemented for every type that has all the traits; you never implement it by hand.
pub trait Store:
    RateLimitStore
    + IdempotencyStore
    + SessionStore
    + ResponseStore
    + CacheStore
    + CounterStore
    + LockStore
    + OnceStore
    + QueueStore
    + TopicStore
    + StoreHealth
{
}

impl<T> Store for T where
    T: RateLimitStore
        + IdempotencyStore
        + SessionStore
        + ResponseStore
        + CacheStore
        + CounterStore
        + LockStore
        + OnceStore
        + QueueStore
        + TopicStore
        + StoreHealth
        + ?Sized
{
}

/// Opens the store that `url` names.
///
/// - `memory:` (or `memory`): state inside this process.
/// - `redis://…`, `redis+unix:///path`, `redis+sentinel://…`, `redis+cluster://…` (feature `redis`, see
///   [`RedisStore::builder`](crate::backend::redis::RedisStore::builder)): a Redis server, with a memory store behind it for what may be
///   decided locally. Opens also while the server is away, and joins it when it is there.
/// - `rediss://…`, `rediss+sentinel://…`, `rediss+cluster://…` (feature `redis-tls`): the same, all by
///   TLS. Trusted are the platform's roots, or those that `SSL_CERT_FILE` names, or what
///   `StoreBuilder::root_certificates` was given.
///
/// A database is no such store, for it cannot keep all: what it can keep (idempotency keys, sessions, holds, locks, queues,
/// one-time values) is kept by a [`SqlStore`](crate::backend::sql::SqlStore) that is given to the layer or service itself.
///
/// # Errors
/// The URL cannot be understood, or names an engine whose feature is off.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    builder(url).open().await
}

/// Starts a store with a clock of its own.
pub fn builder(url: &str) -> StoreBuilder {
    StoreBuilder {
        url: url.to_owned(),
        clock: None,
        #[cfg(feature = "redis")]
        timeout: None,
        #[cfg(feature = "redis-tls")]
        trust: Trust::default(),
        #[cfg(feature = "conformance")]
        faults: None,
    }
}

/// What is kept locally in an outage is bounded more tightly: it is a stand-in.
#[cfg(any(feature = "redis", feature = "conformance"))]
const STAND_IN: Option<usize> = Some(100_000);

/// Opens a store by its URL.
#[derive(Clone)]
#[must_use]
pub struct StoreBuilder {
    url: String,
    clock: Option<Arc<dyn Clock>>,
    #[cfg(feature = "redis")]
    timeout: Option<Duration>,
    #[cfg(feature = "redis-tls")]
    trust: Trust,
    #[cfg(feature = "conformance")]
    faults: Option<crate::backend::fault::Faults>,
}

impl StoreBuilder {
    /// Uses `clock` for every expiry, window and age, on every engine; without it the engine's own.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Waits no longer than `longest` for an answer of Redis (500 ms), connecting included; memory lets nobody wait.
    pub fn timeout(self, longest: Duration) -> Self {
        #[cfg(feature = "redis")]
        return Self {
            timeout: Some(longest),
            ..self
        };
        #[cfg(not(feature = "redis"))]
        {
            let _ = longest;
            self
        }
    }

    /// Trusts the Redis servers that show a certificate by one of these roots (PEM), and no others. Memory has no use for
    /// them; with the URL of a Redis in the clear [`open`](Self::open) fails.
    #[cfg(feature = "redis-tls")]
    pub fn root_certificates(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.trust.root_certificates(pem.as_ref());
        self
    }

    /// Shows this certificate to Redis servers that ask for one: its chain and its private key, both PEM. See
    /// [`RedisStoreBuilder::client_certificate`](crate::backend::redis::RedisStoreBuilder::client_certificate).
    #[cfg(feature = "redis-tls")]
    pub fn client_certificate(
        mut self,
        chain_pem: impl AsRef<[u8]>,
        key_pem: impl AsRef<[u8]>,
    ) -> Self {
        self.trust
            .client_certificate(chain_pem.as_ref(), key_pem.as_ref());
        self
    }

    /// Puts a line before the store that fails by order, and behind it what stands in during an outage: for tests of
    /// the application, on every engine.
    #[cfg(feature = "conformance")]
    pub fn faults(mut self, faults: &crate::backend::fault::Faults) -> Self {
        self.faults = Some(faults.clone());
        self
    }

    /// Opens the store.
    ///
    /// # Errors
    /// See [`open`].
    pub async fn open(self) -> Result<Arc<dyn Store>, OpenError> {
        match self.url.split(':').next().unwrap_or_default() {
            "memory" => {
                let store = self.memory(None);
                #[cfg(feature = "conformance")]
                if let Some(faults) = &self.faults {
                    let line = FaultStore::new(store, faults);
                    return Ok(Arc::new(Fallback::new(line, self.memory(STAND_IN))));
                }
                Ok(Arc::new(store))
            }
            #[cfg(feature = "redis")]
            "redis" | "redis+unix" | "unix" | "redis+sentinel" | "redis+cluster" => {
                self.open_redis().await
            }
            #[cfg(feature = "redis-tls")]
            "rediss" | "rediss+sentinel" | "rediss+cluster" => self.open_redis().await,
            _ => Err(OpenError::unknown(&self.url)),
        }
    }

    fn memory(&self, max_entries: Option<usize>) -> MemoryStore {
        let mut builder = MemoryStore::builder();
        if let Some(clock) = &self.clock {
            builder = builder.clock(Arc::clone(clock));
        }
        if let Some(entries) = max_entries {
            builder = builder.max_entries(entries);
        }
        builder.build()
    }

    #[cfg(feature = "redis")]
    async fn open_redis(self) -> Result<Arc<dyn Store>, OpenError> {
        use crate::backend::redis::RedisStore;

        let mut builder = RedisStore::builder(&self.url);
        if let Some(clock) = &self.clock {
            builder = builder.clock(Arc::clone(clock));
        }
        if let Some(longest) = self.timeout {
            builder = builder.timeout(longest);
        }
        #[cfg(feature = "redis-tls")]
        let builder = builder.trust(self.trust.clone());
        let primary = builder.open().await.map_err(OpenError::refused)?;
        #[cfg(feature = "conformance")]
        if let Some(faults) = &self.faults {
            let line = FaultStore::new(primary, faults);
            return Ok(Arc::new(Fallback::new(line, self.memory(STAND_IN))));
        }
        Ok(Arc::new(Fallback::new(primary, self.memory(STAND_IN))))
    }
}

impl fmt::Debug for StoreBuilder {
    /// The address is left out: it may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreBuilder")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

/// A store URL that cannot be opened.
#[derive(Debug)]
pub struct OpenError {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl OpenError {
    fn unknown(url: &str) -> Self {
        // What is no scheme may be anything, also a secret that was put in the wrong place.
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        let of_scheme = match url.split_once(':') {
            Some((scheme, _)) if scheme.bytes().all(is_scheme) => {
                format!(" for the scheme {scheme:?}")
            }
            _ => " for a URL without a scheme".to_owned(),
        };
        let scheme = url.split(':').next().unwrap_or_default();
        let hint = if ["sqlite", "postgres", "postgresql"].contains(&scheme) {
            "; a database is opened by SqlStore::connect, and given to each layer and service that can use it"
        } else {
            ""
        };
        let what = format!(
            "no store{of_scheme}: use memory: or, with the feature redis, redis://host:port/db, or, \
             with the feature redis-tls, rediss://host:port/db{hint}"
        );
        Self { what, source: None }
    }

    #[cfg(feature = "redis")]
    fn refused(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            what: "the store URL cannot be used".to_owned(),
            source: Some(source.into()),
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn neither_a_builder_nor_an_error_shows_the_url_which_may_carry_a_password() {
        let url = "redis://user:hunter2@localhost:6379/0";
        assert!(!format!("{:?}", builder(url)).contains("hunter2"));
        // No scheme at all: what stands there may be anything.
        let error = open("postgres://u:hunter2@h/d").await.unwrap_err();
        let told = error.to_string();
        assert!(told.contains("SqlStore::connect"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
        for url in ["hunter2", "hunter2@localhost:6379", "mysql://u:hunter2@h/"] {
            let error = open(url).await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
