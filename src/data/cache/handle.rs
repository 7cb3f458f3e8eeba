//! The service: reads through, writes through, forgets.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::cached::Cached;
use super::codec::Shape;
use super::error::LoadError;
use super::flight::{Answer, Flights, Loader, Want};
use super::group::{CacheGroup, InvalidateOutcome};
use super::loaded::Loaded;
use super::local::{Local, LocalLevel};
use super::stats::{CacheStats, Meter};
use super::store::{Ask, CacheStore, Lookup};
use super::target::{CacheKey, Tag, Target};
use crate::backend::health::Probed;
use crate::core::telemetry::Once;
use crate::core::ttl::{LONGEST, Lifetime, SECOND};
use crate::core::{Clock, IntoKey, Key, Segments, ServiceName, StoreFuture, base64url};
use crate::data::{Check, DataError, Vitals, tell_contradiction};

type TagsOf<K, V> = Arc<dyn Fn(&K, &V) -> Vec<Tag> + Send + Sync>;
type AliasOf<V> = Arc<dyn Fn(&V) -> Option<Key> + Send + Sync>;
type Sanitize<V> = Arc<dyn Fn(&mut V) + Send + Sync>;

/// Values by key, read through a loader: in this process, then in the store, then loaded once for all.
#[must_use]
pub struct Cache<K, V> {
    aliases: Vec<Alias<V>>,
    tag_with: Option<TagsOf<K, V>>,
    pub(super) state: Arc<State<V>>,
    key: PhantomData<fn(K)>,
}

/// A secondary key.
struct Alias<V> {
    name: ServiceName,
    of: AliasOf<V>,
}

impl<V> Clone for Alias<V> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            of: Arc::clone(&self.of),
        }
    }
}

/// All of a cache but its key's type.
pub(super) struct State<V> {
    pub(super) group: CacheGroup,
    pub(super) entity: Arc<str>,
    pub(super) label: String,
    pub(super) config: Config<V>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) local: Option<LocalLevel<V>>,
    pub(super) flights: Mutex<Flights<V>>,
    /// Until when, in UTC microseconds, a stale value answers without a load: its loader has failed.
    pub(super) failed: Mutex<HashMap<Key, u64>>,
    pub(super) meter: Meter,
    /// The handle is told what this cache keeps at its first use: then it is set up.
    named: Once,
}

pub(super) struct Config<V> {
    pub(super) life: Lifetime,
    pub(super) missing_for: Duration,
    pub(super) soft: Duration,
    pub(super) hard: Duration,
    pub(super) bounds: Local,
    pub(super) sanitize: Option<Sanitize<V>>,
    pub(super) shape: Shape,
}

impl<V> Clone for Config<V> {
    fn clone(&self) -> Self {
        Self {
            sanitize: self.sanitize.clone(),
            ..*self
        }
    }
}

impl<K, V> Cache<K, V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Makes a cache in a group of its own.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn new(store: impl CacheStore, name: &str, life: impl Into<Lifetime>) -> Self {
        CacheGroup::new(store, name).cache(name, life)
    }

    pub(super) fn of(group: CacheGroup, entity: ServiceName, life: Lifetime) -> Self {
        let config = Config {
            life,
            missing_for: 30 * SECOND,
            soft: SECOND / 2,
            hard: 10 * SECOND,
            bounds: Local::default(),
            sanitize: None,
            shape: Shape::default(),
        };
        Self {
            aliases: Vec::new(),
            tag_with: None,
            state: Arc::new(State::new(group, entity.shared(), config)),
            key: PhantomData,
        }
    }

    /// A setter starts with an empty local level: set up first, clone later.
    fn with(self, change: impl FnOnce(&mut Config<V>)) -> Self {
        let mut config = self.state.config.clone();
        change(&mut config);
        let state = State::new(self.state.group.clone(), self.state.entity.clone(), config);
        Self {
            state: Arc::new(state),
            ..self
        }
    }

    /// Remembers for this long that there is no value (30 s), never longer than the ttl; zero is not at all.
    pub fn missing_for(self, time: Duration) -> Self {
        self.with(|config| config.missing_for = time)
    }

    /// Waits this long for a loader while a stale value is at hand (500 ms), and this long at all (10 s). A loader that holds
    /// its thread is ended by neither: what blocks belongs into `spawn_blocking`.
    pub fn load_timeout(self, soft: Duration, hard: Duration) -> Self {
        let hard = hard.min(LONGEST);
        self.with(|config| (config.soft, config.hard) = (soft.min(hard), hard))
    }

    /// Bounds what is kept in this process.
    pub fn local(self, bounds: Local) -> Self {
        self.with(|config| config.bounds = bounds)
    }

    /// Runs on every value that comes in, before it is returned, kept or encoded: no copy has what this removes.
    pub fn sanitize(self, sanitize: impl Fn(&mut V) + Send + Sync + 'static) -> Self {
        self.with(|config| config.sanitize = Some(Arc::new(sanitize)))
    }

    /// Tags every value; at most 16 tags count.
    pub fn tag_with<I>(mut self, tags: impl Fn(&K, &V) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item = Tag>,
    {
        self.tag_with = Some(Arc::new(move |key, value| {
            tags(key, value).into_iter().collect()
        }));
        self
    }

    /// Numbers the shape of the values (0): a record of another number is a miss.
    pub fn schema(self, number: u32) -> Self {
        self.with(|config| config.shape.schema = number)
    }

    /// Compresses values of more than this many bytes of JSON (never). Every reader needs the feature, too: without it
    /// such a record is a miss.
    #[cfg(feature = "lz4")]
    pub fn compress_over(self, bytes: usize) -> Self {
        self.with(|config| config.shape.compress_over = Some(bytes))
    }

    /// Makes values known under a secondary key, too, taken from the value itself: see [`Cache::get_by`].
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`, or there are four already.
    #[track_caller]
    pub fn alias<A: IntoKey>(
        mut self,
        name: &str,
        of: impl Fn(&V) -> Option<A> + Send + Sync + 'static,
    ) -> Self {
        assert!(self.aliases.len() < 4, "a cache has at most four aliases");
        self.aliases.push(Alias {
            name: ServiceName::new(name),
            of: Arc::new(move |value| of(value).map(IntoKey::into_key)),
        });
        self
    }

    /// Returns what was counted.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let local = self.state.local.as_ref();
        let size = local.map_or((0, 0), LocalLevel::size);
        self.state.meter.stats(size)
    }
}

impl<K, V> Cache<K, V>
where
    K: IntoKey + Hash + Eq + Clone + Send + Sync + 'static,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Returns the value, loading it if need be: once for all who ask at the same time. A remembered absence is loaded.
    ///
    /// The load runs in a task of its own: dropping the future does not stop it, nor the fill.
    ///
    /// # Errors
    /// The loader failed, hung or panicked, and no stale value was at hand. The store's faults are none.
    pub async fn get_or_load<F, Fut, L, E>(
        &self,
        key: &K,
        loader: F,
    ) -> Result<Cached<V>, LoadError>
    where
        F: FnOnce(K) -> Fut + Send + 'static,
        Fut: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let loader = || self.loader(key.clone(), loader, |loaded: L| Some(loaded.into()));
        let asked = Segments::of(key);
        match self.state.read_or_load(asked, Want::Value, loader).await? {
            Some(cached) => Ok(cached),
            // A loader of values never says that there is none.
            None => Err(LoadError::Panicked),
        }
    }

    /// Like [`Cache::get_or_load`], for a loader that may find nothing; that is remembered too.
    ///
    /// # Errors
    /// See [`Cache::get_or_load`].
    pub async fn find_or_load<F, Fut, L, E>(&self, key: &K, loader: F) -> Answer<V>
    where
        F: FnOnce(K) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<L>, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let loader = || {
            self.loader(key.clone(), loader, |found: Option<L>| {
                found.map(Into::into)
            })
        };
        let asked = Segments::of(key);
        self.state.read_or_load(asked, Want::Either, loader).await
    }

    /// Loads past the cache and replaces what it has.
    ///
    /// # Errors
    /// See [`Cache::get_or_load`].
    pub async fn refresh<F, Fut, L, E>(&self, key: &K, loader: F) -> Result<Cached<V>, LoadError>
    where
        F: FnOnce(K) -> Fut + Send + 'static,
        Fut: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let loader = || self.loader(key.clone(), loader, |loaded: L| Some(loaded.into()));
        let asked = Segments::of(key);
        let refreshed = self
            .state
            .read_or_load(asked, Want::Refresh, loader)
            .await?;
        refreshed.ok_or(LoadError::Panicked)
    }

    /// Returns the value if it is cached; never loads.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn get(&self, key: &K) -> Result<Option<Cached<V>>, DataError> {
        self.state.get(Segments::of(key)).await
    }

    /// Says whether a value is cached.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn contains(&self, key: &K) -> Result<bool, DataError> {
        Ok(self.get(key).await?.is_some())
    }

    /// Writes a value that the caller knows to be true. Loads that run are overtaken. Runs on if the future is dropped.
    ///
    /// # Errors
    /// The store could not take it: the key is invalidated as soon as it can be.
    pub async fn put(&self, key: &K, value: V) -> Result<(), DataError> {
        self.put_many([(key.clone(), value)]).await
    }

    /// Writes values like [`Cache::put`], up to 512 in one step; of two with one key the later.
    ///
    /// # Errors
    /// Some could not be taken: their keys are invalidated as soon as they can be.
    pub async fn put_many(&self, pairs: impl IntoIterator<Item = (K, V)>) -> Result<(), DataError> {
        let mut puts: HashMap<CacheKey, Loaded<V>> = HashMap::new();
        for (key, value) in pairs {
            let mut loaded = Loaded::new(value);
            self.prepare(&key, &mut loaded);
            puts.insert(self.key_of(&key), loaded);
        }
        let (state, puts) = (Arc::clone(&self.state), puts.into_iter().collect());
        let task = tokio::spawn(async move { state.put(puts).await });
        task.await.unwrap_or_else(|error| {
            Err(DataError::with_source(
                crate::data::DataErrorKind::Failed,
                error,
            ))
        })
    }

    /// Forgets a key; see [`CacheGroup::invalidate`].
    pub async fn remove(&self, key: &K) -> InvalidateOutcome {
        self.state.group.invalidate([self.target(key)]).await
    }

    /// Names a key of this cache for [`CacheGroup::invalidate`].
    #[must_use]
    pub fn target(&self, key: &K) -> Target {
        Target::key(self.key_of(key))
    }

    /// Names a key of this cache.
    #[must_use]
    pub fn cache_key(&self, key: &K) -> CacheKey {
        self.key_of(key)
    }

    /// Returns the group: what is invalidated together.
    pub fn group(&self) -> &CacheGroup {
        &self.state.group
    }

    pub(super) fn key_of(&self, key: &K) -> CacheKey {
        CacheKey {
            entity: Arc::clone(&self.state.entity),
            key: key.to_key(),
        }
    }

    /// Returns what a secondary key is called in records.
    pub(super) fn alias_of(&self, name: &str, key: &Key) -> String {
        let mut hash = Sha256::new();
        let entity = &*self.state.entity;
        for part in ["tower-keep alias", entity, name, key.as_str()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        format!("a{entity}:{name}:{}", base64url(&hash.finalize()))
    }

    /// Does to a value that comes in what the cache was set up to do.
    pub(super) fn prepare(&self, key: &K, loaded: &mut Loaded<V>) {
        if let Some(sanitize) = &self.state.config.sanitize {
            sanitize(&mut loaded.value);
        }
        if let Some(tag_with) = &self.tag_with {
            loaded.tags.extend(tag_with(key, &loaded.value));
        }
        let own = self.aliases.iter().filter_map(|alias| {
            let key = (alias.of)(&loaded.value)?;
            Some(self.alias_of(alias.name.as_str(), &key))
        });
        loaded.aliases = own.collect();
    }

    /// Boxes a loader with what is done to each value that comes in.
    fn loader<F, Fut, T, E>(
        &self,
        key: K,
        loader: F,
        take: impl FnOnce(T) -> Option<Loaded<V>> + Send + 'static,
    ) -> Loader<V>
    where
        F: FnOnce(K) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let cache = self.clone();
        Box::pin(async move {
            let found = loader(key.clone()).await;
            let found = found.map_err(|error| Arc::from(error.into()))?;
            let mut loaded = take(found);
            if let Some(loaded) = &mut loaded {
                cache.prepare(&key, loaded);
            }
            Ok(loaded)
        })
    }
}

impl<V: Send + Sync + 'static> State<V> {
    /// To be called before each use: listens, and says so if another kind of value is kept under this name.
    pub(super) async fn begin(&self) {
        if self.named.first() {
            let Config { life, shape, .. } = &self.config;
            let what = format!(
                "{} {life:?} schema {}",
                std::any::type_name::<V>(),
                shape.schema
            );
            let shared = &self.group.shared;
            if shared.store.contradicts(&self.label, &what) {
                tell_contradiction("cache", &self.label);
            }
        }
        self.group.shared.listen().await;
    }

    fn new(group: CacheGroup, entity: Arc<str>, config: Config<V>) -> Self {
        let clock = group.shared.store.clock();
        let label = format!("{}.{entity}", group.name());
        let has_local = config.bounds.entries > 0 && !config.bounds.ttl.is_zero();
        let local = has_local.then(|| LocalLevel::new(config.bounds, Arc::clone(&clock)));
        Self {
            meter: Meter::new(&label),
            label,
            group,
            entity,
            config,
            clock,
            local,
            flights: Mutex::default(),
            failed: Mutex::default(),
            named: Once::new(),
        }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Check for Cache<K, V> {
    fn check(&self) -> StoreFuture<Probed> {
        let (shared, entity) = (&self.state.group.shared, &self.state.entity);
        let key = CacheKey {
            entity: Arc::clone(entity),
            key: Key::of(["~health"]),
        };
        let group = shared.name.shared();
        let asked = shared.store.fetch(
            &group,
            vec![Lookup {
                key,
                ask: Ask::Read,
            }],
        );
        asked.then(|answer| answer.map(|_| Probed::default()))
    }

    fn vitals(&self) -> Vitals {
        let (hits, reads) = self.state.meter.hits_and_reads();
        Vitals {
            hits,
            reads,
            ..Vitals::default()
        }
    }
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self {
            aliases: self.aliases.clone(),
            tag_with: self.tag_with.clone(),
            state: Arc::clone(&self.state),
            key: PhantomData,
        }
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.state.label)
            .field("life", &self.state.config.life)
            .finish_non_exhaustive()
    }
}
