//! Values by their secondary keys: an alias leads to the key, and counts only while the record of that key lists it.

use std::error::Error;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cached::{CacheOutcome, Cached};
use super::error::LoadError;
use super::fill::Landed;
use super::flight::{Entered, FlightKey, Landing, Loader, Told, Want, tell};
use super::group::{ANY_KEY, ANY_PREFIX, ANY_TAG};
use super::handle::{Cache, State};
use super::loaded::Loaded;
use super::local::Known;
use super::read::{Start, WAIT_FOR_OTHERS, draw};
use super::store::{Ask, LeaseToken, LeaseWish, Leased};
use super::target::CacheKey;
use crate::core::ttl::SECOND;
use crate::core::{IntoKey, Key, StoreError};
use crate::data::DataError;

/// Where the loader of a value by alias says what key it has.
type Said = Arc<Mutex<Option<CacheKey>>>;

impl<K, V> Cache<K, V>
where
    K: IntoKey + Hash + Eq + Clone + Send + Sync + 'static,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Returns the cached value whose secondary key `name` is `key`; never loads. What a value was called before it was
    /// last written finds nothing.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn get_by(
        &self,
        name: &str,
        key: impl IntoKey,
    ) -> Result<Option<Cached<V>>, DataError> {
        let alias = self.alias_of(name, &key.into_key());
        self.state.begin().await;
        let label = &self.state.label;
        match self.state.find_by(&alias).await {
            Ok(Some((known, outcome))) => {
                let result = match outcome {
                    CacheOutcome::LocalHit => "local",
                    _ => "shared",
                };
                self.state.meter.read(label, result);
                Ok(self.state.cached(known, outcome))
            }
            Ok(None) => {
                self.state.meter.read(label, "miss");
                Ok(None)
            }
            Err(error) => {
                self.state.meter.read(label, "bypass");
                Err(error.into())
            }
        }
    }

    /// Returns the value that one of the secondary keys leads to, tried in order, else loads it: once for all who ask
    /// with any of them at the same time. The loader says which key the value has.
    ///
    /// The load is refused by the store, and returned all the same, if any key of the group was invalidated or put
    /// meanwhile: which one it would be was not known.
    ///
    /// # Errors
    /// See [`Cache::get_or_load`]; `Failed` also without any secondary key.
    pub async fn get_or_load_by<'a, F, Fut, L, E>(
        &self,
        by: impl IntoIterator<Item = (&'a str, Key)>,
        loader: F,
    ) -> Result<Cached<V>, LoadError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(K, L), E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let by = by.into_iter();
        let aliases: Vec<String> = by.map(|(name, key)| self.alias_of(name, &key)).collect();
        if aliases.is_empty() {
            let why: Box<dyn Error + Send + Sync> = "a secondary key is needed".into();
            return Err(LoadError::Failed(Arc::from(why)));
        }
        self.state.begin().await;
        for alias in &aliases {
            match self.state.find_by(alias).await {
                Ok(Some((known, outcome))) => {
                    let result = match outcome {
                        CacheOutcome::LocalHit => "local",
                        _ => "shared",
                    };
                    self.state.meter.read(&self.state.label, result);
                    let cached = self.state.cached(known, outcome);
                    return cached.ok_or(LoadError::Panicked);
                }
                Ok(None) => {}
                // The flight finds out for itself.
                Err(_) => break,
            }
        }
        let said: Said = Arc::default();
        let loader = || self.loader_by(loader, Arc::clone(&said));
        let found = self.state.flight_by(aliases, loader, &said).await?;
        found.ok_or(LoadError::Panicked)
    }

    fn loader_by<F, Fut, L, E>(&self, loader: F, said: Said) -> Loader<V>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(K, L), E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let cache = self.clone();
        Box::new(move || {
            Box::pin(async move {
                let found = loader().await;
                let (key, loaded) = found.map_err(|error| Arc::from(error.into()))?;
                let mut loaded: Loaded<V> = loaded.into();
                cache.prepare(&key, &mut loaded);
                *said.lock() = Some(cache.key_of(&key));
                Ok(Some(loaded))
            })
        })
    }
}

impl<V> State<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Looks where an alias leads: here, else by two calls of the store.
    async fn find_by(&self, alias: &str) -> Result<Option<(Known<V>, CacheOutcome)>, StoreError> {
        let now = self.clock.now_micros();
        let here = self.local.as_ref();
        if let Some(key) = here.and_then(|local| local.pointer(alias, now))
            && let Some(found) = self.find_as(alias, key).await?
        {
            return Ok(Some(found));
        }
        let shared = &self.group.shared;
        shared.catch_up().await?;
        let group = shared.name.shared();
        let resolved = shared.store.resolve(&group, vec![alias.to_owned()]);
        let Some(key) = resolved.await?.pop().flatten() else {
            return Ok(None);
        };
        let found = self.find_as(alias, key.clone()).await?;
        if let Some(local) = here.filter(|_| found.is_some()) {
            local.point(alias, &key);
        }
        Ok(found)
    }

    /// Reads a key, and says whether its fresh record is called so.
    async fn find_as(
        &self,
        alias: &str,
        key: Key,
    ) -> Result<Option<(Known<V>, CacheOutcome)>, StoreError> {
        let key = CacheKey {
            entity: Arc::clone(&self.entity),
            key,
        };
        if let Some(known) = self.known_here(&key) {
            return Ok(known
                .is_called(alias)
                .then_some((known, CacheOutcome::LocalHit)));
        }
        let (fetched, noted) = self.fetch(&key, Ask::Read).await?;
        let known = self.take(&key, fetched, noted);
        let now = self.clock.now_micros();
        let known = known.filter(|known| known.fresh > now && known.is_called(alias));
        Ok(known.map(|known| (known, CacheOutcome::SharedHit)))
    }

    async fn flight_by(
        self: &Arc<Self>,
        aliases: Vec<String>,
        loader: impl FnOnce() -> Loader<V>,
        said: &Said,
    ) -> super::flight::Answer<V> {
        let at = |alias: &String| FlightKey {
            key: pseudo(alias),
            want: Want::Value,
        };
        let ats = aliases.iter().map(at).collect();
        // Whose key is not known yet is left alone by every key.
        let names = [ANY_TAG, ANY_KEY, ANY_PREFIX].map(str::to_owned);
        let (flight, joined) = match self.enter(ats, &names) {
            Entered::Joined(flight) => (flight, true),
            Entered::Led(told, landing) => {
                let (state, loader, said) = (Arc::clone(self), loader(), Arc::clone(said));
                let flight = Arc::clone(&landing.own);
                let task =
                    async move { state.fly_by(aliases, loader, &said, &told, &landing).await };
                tokio::spawn(task);
                (flight, false)
            }
        };
        flight.wait(joined, self.clock.now_micros()).await
    }

    async fn fly_by(
        self: &Arc<Self>,
        aliases: Vec<String>,
        loader: Loader<V>,
        said: &Said,
        told: &Told<V>,
        landing: &Landing<V>,
    ) {
        let Some(first) = aliases.first() else {
            return;
        };
        let lease_key = CacheKey {
            entity: Arc::clone(&self.entity),
            key: pseudo(first),
        };
        let Some(start) = self.lease_by(&aliases, &lease_key, told).await else {
            return;
        };
        let token = start.token;
        let answer = match self
            .load(&lease_key, loader, told, &start, Want::Value)
            .await
        {
            Ok(loaded) => {
                let key = said.lock().take();
                let landed = key.map(|key| Landed {
                    key,
                    loaded,
                    start,
                    lease_of: Some(lease_key),
                });
                Ok(self
                    .settle(landed.into_iter().collect())
                    .await
                    .pop()
                    .flatten())
            }
            Err(error) => {
                self.give_back(&lease_key, token).await;
                Err(error)
            }
        };
        landing.land();
        tell(told, answer);
    }

    /// Takes a lease on the first alias, or waits for whoever has it; `None` where that was the answer.
    async fn lease_by(
        &self,
        aliases: &[String],
        lease_key: &CacheKey,
        told: &Told<V>,
    ) -> Option<Start<V>> {
        let token = draw();
        let start = |token: Option<LeaseToken>, noted| Start {
            stale: None,
            bypassed: token.is_none(),
            token,
            noted,
        };
        let mut take_over = false;
        for _ in 0..3 {
            let waiter = self.group.shared.waiter(&lease_key.member());
            let ask = Ask::Lease(LeaseWish {
                token,
                lasts: self.config.hard + SECOND,
                take_over,
                force: true,
            });
            let Ok((fetched, noted)) = self.fetch(lease_key, ask).await else {
                self.meter.read(&self.label, "bypass");
                return Some(start(None, self.group.shared.sight.now()));
            };
            if fetched.leased == Leased::Given {
                self.meter.read(&self.label, "miss");
                return Some(start(Some(token), noted));
            }
            let rung = tokio::time::timeout(WAIT_FOR_OTHERS, waiter.notified()).await;
            take_over = rung.is_err();
            for alias in aliases {
                if let Ok(Some((known, outcome))) = self.find_by(alias).await {
                    self.meter.read(&self.label, "shared");
                    tell(told, Ok(self.cached(known, outcome)));
                    return None;
                }
            }
        }
        self.meter.read(&self.label, "miss");
        Some(start(None, self.group.shared.sight.now()))
    }
}

/// What loads by an alias are known by until their key is; no application's key begins like this.
fn pseudo(alias: &str) -> Key {
    Key::from_escaped(format!("~by:{alias}"))
}
