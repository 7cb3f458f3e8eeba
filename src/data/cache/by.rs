//! Values by their secondary keys: an alias leads to the key, and counts only while the record of that key lists it.

use std::collections::HashSet;
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
use super::flight::{Entered, Flight, FlightKey, Landing, Loader, Told, Want, tell};
use super::group::{ANY_KEY, ANY_PREFIX, ANY_TAG};
use super::handle::{Cache, State};
use super::loaded::Loaded;
use super::local::Known;
use super::read::{Start, WAIT_FOR_OTHERS};
use super::sight::IsOld;
use super::stats::Served;
use super::store::{Ask, Fetched, LeaseToken, LeaseWish, Leased, Lookup};
use super::target::CacheKey;
use crate::core::ttl::SECOND;
use crate::core::{IntoKey, Key, StoreError};
use crate::data::DataError;

/// Where the loader of a value by alias says what key it has.
type Said = Arc<Mutex<Option<CacheKey>>>;

/// What an alias leads to.
struct Found<V> {
    key: CacheKey,
    known: Known<V>,
    outcome: CacheOutcome,
}

impl<V> Found<V> {
    const fn counts_as(&self) -> Served {
        match self.outcome {
            CacheOutcome::LocalHit => Served::Local,
            CacheOutcome::Bypassed => Served::Bypass,
            _ => Served::Shared,
        }
    }
}

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
        match self.state.find_by(&alias).await {
            Ok(Some(found)) => {
                self.state.meter.read(found.counts_as());
                Ok(self.state.cached(found.known, found.outcome))
            }
            Ok(None) => {
                self.state.meter.read(Served::Miss);
                Ok(None)
            }
            Err(error) => {
                self.state.meter.read(Served::Bypass);
                let found = self.state.kept_as(&alias).ok_or(error)?;
                Ok(self.state.cached(found.known, found.outcome))
            }
        }
    }

    /// Returns the value that one of the secondary keys leads to, tried in order, else loads it: once for all who ask
    /// with any of them at the same time. The loader says which key the value has. A value that is due for a refresh is
    /// answered at once, and loaded anew behind it.
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
        let mut aliases: Vec<String> = by.map(|(name, key)| self.alias_of(name, &key)).collect();
        let mut seen = HashSet::new();
        aliases.retain(|alias| seen.insert(alias.clone()));
        if aliases.is_empty() {
            let why: Box<dyn Error + Send + Sync> = "a secondary key is needed".into();
            return Err(LoadError::Failed(Arc::from(why)));
        }
        self.state.begin().await;
        let said: Said = Arc::default();
        let loader = || self.loader_by(loader, Arc::clone(&said));
        for alias in &aliases {
            match self.state.find_by(alias).await {
                Ok(Some(found)) => {
                    self.state.meter.read(found.counts_as());
                    if self.state.is_due(&found.key, &found.known) {
                        let refreshes = Some(found.key.clone());
                        drop(self.state.flight_by(aliases, loader, &said, refreshes));
                    }
                    let cached = self.state.cached(found.known, found.outcome);
                    return cached.ok_or(LoadError::Panicked);
                }
                Ok(None) => {}
                // The flight finds out for itself.
                Err(_) => break,
            }
        }
        let (flight, joined) = self.state.flight_by(aliases, loader, &said, None);
        let (found, served) = flight.wait(joined, self.state.clock.now_micros()).await;
        self.state.meter.read(served);
        found?.ok_or(LoadError::Panicked)
    }

    fn loader_by<F, Fut, L, E>(&self, loader: F, said: Said) -> Loader<V>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(K, L), E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let cache = self.clone();
        Box::pin(async move {
            let found = loader().await;
            let (key, loaded) = found.map_err(|error| Arc::from(error.into()))?;
            let mut loaded: Loaded<V> = loaded.into();
            cache.prepare(&key, &mut loaded);
            *said.lock() = Some(cache.key_of(&key));
            Ok(Some(loaded))
        })
    }
}

impl<V> State<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Looks where an alias leads: here, else by two calls of the store.
    async fn find_by(&self, alias: &str) -> Result<Option<Found<V>>, StoreError> {
        let now = self.clock.now_micros();
        let here = self.local.as_ref();
        if let Some(key) = here.and_then(|local| local.pointer(alias, now))
            && let Some(found) = self.find_as(alias, key).await?
        {
            return Ok(Some(found));
        }
        let shared = &self.group.shared;
        // What stands is looked at where the record is read.
        let _ = shared.catch_up().await?;
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

    /// Where an alias leads in this process, while the store is away.
    fn kept_as(&self, alias: &str) -> Option<Found<V>> {
        let key = self
            .local
            .as_ref()?
            .pointer(alias, self.clock.now_micros())?;
        let entity = Arc::clone(&self.entity);
        let key = CacheKey { entity, key };
        let known = self.kept(&key).filter(|known| known.is_called(alias))?;
        Some(Found {
            key,
            known,
            outcome: CacheOutcome::Bypassed,
        })
    }

    /// Reads a key, and says whether its fresh record is called so.
    async fn find_as(&self, alias: &str, key: Key) -> Result<Option<Found<V>>, StoreError> {
        let key = CacheKey {
            entity: Arc::clone(&self.entity),
            key,
        };
        let found = |known: Known<V>, outcome| {
            let is_called = known.is_called(alias);
            is_called.then(|| Found {
                key: key.clone(),
                known,
                outcome,
            })
        };
        if let Some(known) = self.known_here(&key) {
            return Ok(found(known, CacheOutcome::LocalHit));
        }
        let (fetched, noted) = self.fetch(&key, Ask::Read).await?;
        let known = self.take(&key, fetched, noted);
        let now = self.clock.now_micros();
        let known = known.filter(|known| known.fresh > now);
        Ok(known.and_then(|known| found(known, CacheOutcome::SharedHit)))
    }

    /// `refreshes` is the key whose value is at hand already.
    fn flight_by(
        self: &Arc<Self>,
        aliases: Vec<String>,
        loader: impl FnOnce() -> Loader<V>,
        said: &Said,
        refreshes: Option<CacheKey>,
    ) -> (Arc<Flight<V>>, bool) {
        let at = |alias: &String| FlightKey {
            key: pseudo(alias),
            want: Want::Value,
        };
        let ats = aliases.iter().map(at).collect();
        // Whose key is not known yet is left alone by every key.
        let names = |is_old: IsOld<'_>| [ANY_TAG, ANY_KEY, ANY_PREFIX].into_iter().all(is_old);
        match self.enter(ats, names) {
            Entered::Joined(flight) => (flight, true),
            Entered::Led(told, landing) => {
                let (state, loader, said) = (Arc::clone(self), loader(), Arc::clone(said));
                let flight = Arc::clone(&landing.own);
                let by = By {
                    leases: aliases.iter().map(|alias| state.lease_key(alias)).collect(),
                    aliases,
                    refreshes,
                };
                tokio::spawn(async move { state.fly_by(by, loader, &said, &told, &landing).await });
                (flight, false)
            }
        }
    }

    async fn fly_by(
        self: &Arc<Self>,
        by: By,
        loader: Loader<V>,
        said: &Said,
        told: &Told<V>,
        landing: &Landing<V>,
    ) {
        let Some((first, others)) = by.leases.split_first() else {
            return;
        };
        let Some(start) = self.lease_by(&by, told).await else {
            return;
        };
        let (token, served) = (start.token, start.served);
        let answer = match self.load(first, loader, told, &start, Want::Value).await {
            Ok(loaded) => {
                let key = said.lock().take();
                let landed = key.map(|key| Landed {
                    key,
                    loaded,
                    start,
                    lease_of: Some(first.clone()),
                });
                let settled = self.settle(landed.into_iter().collect()).await;
                self.give_back_all(others, token).await;
                Ok(settled.into_iter().next().flatten())
            }
            Err(error) => {
                if let Some(key) = &by.refreshes {
                    self.note_failure(key);
                }
                self.give_back_all(&by.leases, token).await;
                Err(error)
            }
        };
        landing.land();
        tell(told, (answer, served));
    }

    /// Takes a lease on every alias, or waits for whoever has one; `None` where that was the answer.
    async fn lease_by(&self, by: &By, told: &Told<V>) -> Option<Start<V>> {
        let token = self.group.shared.draw();
        let start = |token: Option<LeaseToken>, noted, served| Start {
            stale: None,
            replaces: by.refreshes.is_some(),
            bypassed: token.is_none(),
            token,
            noted,
            served,
        };
        let tell = |found: Found<V>| {
            let served = found.counts_as();
            let answer = Ok(self.cached(found.known, found.outcome));
            tell(told, (answer, served));
        };
        let mut take_over = false;
        for _ in 0..3 {
            let waiters = by.leases.iter();
            let waiters: Vec<_> = waiters
                .map(|lease| self.group.shared.waiter(lease.member()))
                .collect();
            let ask = Ask::Lease(LeaseWish {
                token,
                lasts: self.config.hard + SECOND,
                take_over,
                force: true,
            });
            let lookup = |key: &CacheKey| Lookup {
                key: key.clone(),
                ask,
            };
            let lookups = by.leases.iter().map(lookup).collect();
            let Ok((fetched, noted)) = self.fetch_many(lookups).await else {
                if let Some(found) = by.aliases.iter().find_map(|alias| self.kept_as(alias)) {
                    tell(found);
                    return None;
                }
                let noted = self.group.shared.sight.now();
                return Some(start(None, noted, Served::Bypass));
            };
            let is_given = |fetched: &Fetched| fetched.leased == Leased::Given;
            let Some(busy) = fetched.iter().position(|fetched| !is_given(fetched)) else {
                return Some(start(Some(token), noted, Served::Miss));
            };
            // All or none: two who each had one and waited for the other's would both wait in vain.
            let given = by.leases.iter().zip(&fetched);
            let given = given.filter(|(_, fetched)| is_given(fetched));
            let given: Vec<_> = given.map(|(lease, _)| lease.clone()).collect();
            self.give_back_all(&given, Some(token)).await;
            let rung = tokio::time::timeout(WAIT_FOR_OTHERS, waiters[busy].notified()).await;
            take_over = rung.is_err();
            for alias in &by.aliases {
                if let Ok(Some(found)) = self.find_by(alias).await {
                    tell(found);
                    return None;
                }
            }
        }
        let noted = self.group.shared.sight.now();
        Some(start(None, noted, Served::Miss))
    }

    /// The lease on an alias lies on a key that never has a record.
    fn lease_key(&self, alias: &str) -> CacheKey {
        CacheKey {
            entity: Arc::clone(&self.entity),
            key: pseudo(alias),
        }
    }
}

/// A load whose key is not known yet.
struct By {
    aliases: Vec<String>,
    /// What each alias is leased by.
    leases: Vec<CacheKey>,
    /// The key of a value that is at hand, where it is loaded anew behind a reader.
    refreshes: Option<CacheKey>,
}

/// What loads by an alias are known by until their key is; no application's key begins like this.
fn pseudo(alias: &str) -> Key {
    Key::from_escaped(format!("~by:{alias}"))
}
