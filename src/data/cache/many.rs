//! Batches: many keys in one call of the store, those that are missing in one call of the loader.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::smallvec;

use super::cached::{CacheOutcome, Cached};
use super::error::LoadError;
use super::flight::{Entered, Flight, FlightKey, Want, names_of_load};
use super::group::AT_ONCE;
use super::handle::{Cache, State};
use super::leads::{Lead, LoadMany};
use super::loaded::Loaded;
use super::stats::{Reads, Served};
use super::store::{Ask, Fetched, Lookup};
use super::target::CacheKey;
use crate::core::{IntoKey, StoreError};
use crate::data::DataError;

/// What this process has.
type Found<'k, V> = HashMap<&'k CacheKey, Option<Cached<V>>>;
/// Loads that are waited for, and whether others lead them.
type Waits<'k, V> = HashMap<&'k CacheKey, (Arc<Flight<V>>, bool)>;

impl<K, V> Cache<K, V>
where
    K: IntoKey + Hash + Eq + Clone + Send + Sync + 'static,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Returns the cached values in the order of `keys`; never loads. Up to 512 that are not here are one command.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn get_many(&self, keys: &[K]) -> Result<Vec<Option<Cached<V>>>, DataError> {
        let mut reads = Reads::default();
        let known = self.find_many(keys, &mut reads).await;
        self.state.meter.reads(&reads);
        known
    }

    /// Says beside what it has what a read of it would count as.
    pub(super) async fn find_many(
        &self,
        keys: &[K],
        reads: &mut Reads,
    ) -> Result<Vec<Option<Cached<V>>>, DataError> {
        let own: Vec<CacheKey> = keys.iter().map(|key| self.key_of(key)).collect();
        self.state.get_many(&own, reads).await
    }

    /// Returns the values in the order of `keys`, loading those that are missing by one call for exactly the keys that
    /// nobody in this process loads already. What the loader does not return is remembered as absent.
    ///
    /// Where another process loads all that is missing, it is waited for as with one key; where it loads a part, that
    /// part is loaded here, too, and not stored. A value that is due for a refresh is answered at once, and loaded with
    /// the rest.
    ///
    /// # Errors
    /// The load failed for a key, and no stale value was at hand.
    pub async fn get_many_or_load<F, Fut, L, E>(
        &self,
        keys: &[K],
        loader: F,
    ) -> Result<Vec<Option<Cached<V>>>, LoadError>
    where
        F: FnOnce(Vec<K>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Vec<(K, L)>, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut reads = Reads::default();
        let found = self.find_many_or_load(keys, loader, &mut reads).await;
        self.state.meter.reads(&reads);
        found
    }

    /// Says beside what it gives what a read of it would count as.
    pub(super) async fn find_many_or_load<F, Fut, L, E>(
        &self,
        keys: &[K],
        loader: F,
        reads: &mut Reads,
    ) -> Result<Vec<Option<Cached<V>>>, LoadError>
    where
        F: FnOnce(Vec<K>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Vec<(K, L)>, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let own: Vec<CacheKey> = keys.iter().map(|key| self.key_of(key)).collect();
        let by_key = own.iter().cloned().zip(keys.iter().cloned()).collect();
        let loader = self.loader_of_many(by_key, loader);
        self.state.get_many_or_load(&own, loader, reads).await
    }

    fn loader_of_many<F, Fut, L, E>(&self, by_key: HashMap<CacheKey, K>, loader: F) -> LoadMany<V>
    where
        F: FnOnce(Vec<K>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Vec<(K, L)>, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let cache = self.clone();
        Box::new(move |wanted| {
            Box::pin(async move {
                let keys = wanted.iter().filter_map(|key| by_key.get(key).cloned());
                let found = loader(keys.collect()).await;
                let found = found.map_err(|error| Arc::from(error.into()))?;
                let prepared = found.into_iter().map(|(key, loaded)| {
                    let mut loaded = loaded.into();
                    cache.prepare(&key, &mut loaded);
                    (cache.key_of(&key), loaded)
                });
                Ok(prepared.collect())
            })
        })
    }
}

impl<V> State<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    async fn get_many(
        &self,
        keys: &[CacheKey],
        reads: &mut Reads,
    ) -> Result<Vec<Option<Cached<V>>>, DataError> {
        self.begin().await;
        let (mut found, mut seen) = (Found::new(), HashSet::new());
        let mut rest: Vec<&CacheKey> = keys.iter().filter(|key| seen.insert(*key)).collect();
        rest.retain(|key| {
            let Some(known) = self.known_here(key) else {
                return true;
            };
            reads.add(known.counts_as(Served::Local));
            found.insert(*key, self.cached(known, CacheOutcome::LocalHit));
            false
        });
        let mut left = rest.len();
        for part in rest.chunks(AT_ONCE) {
            let lookups = part.iter().map(|key| Lookup {
                key: (*key).clone(),
                ask: Ask::Read,
            });
            let (fetched, noted) = match self.fetch_many(lookups.collect()).await {
                Ok(fetched) => fetched,
                Err(error) => {
                    let kept = part.iter().map(|key| Some((*key, self.kept(key)?)));
                    let kept: Option<Vec<_>> = kept.collect();
                    let Some(kept) = kept else {
                        // Nor will those after it be asked for.
                        reads.add_many(Served::Bypass, left);
                        return Err(error.into());
                    };
                    reads.add_many(Served::Bypass, part.len());
                    left -= part.len();
                    for (key, known) in kept {
                        found.insert(key, self.cached(known, CacheOutcome::Bypassed));
                    }
                    continue;
                }
            };
            for (key, fetched) in part.iter().copied().zip(fetched) {
                let now = self.clock.now_micros();
                let known = self.take(key, fetched, noted);
                let known = known.filter(|known| known.fresh > now);
                let seen = known.as_ref();
                reads.add(seen.map_or(Served::Miss, |known| known.counts_as(Served::Shared)));
                let cached = known.and_then(|known| self.cached(known, CacheOutcome::SharedHit));
                found.insert(key, cached);
            }
            left -= part.len();
        }
        Ok(keys
            .iter()
            .map(|key| found.get(key).cloned().flatten())
            .collect())
    }

    /// Asks in parts of 512.
    pub(super) async fn fetch_many(
        &self,
        lookups: Vec<Lookup>,
    ) -> Result<(Vec<Fetched>, u64), StoreError> {
        let shared = &self.group.shared;
        let caught_up = shared.catch_up().await?;
        let (noted, group) = (shared.sight.now(), shared.name.shared());
        let mut fetched = Vec::with_capacity(lookups.len());
        for part in lookups.chunks(AT_ONCE) {
            fetched.extend(shared.store.fetch(&group, part.to_vec()).await?);
        }
        for (lookup, fetched) in lookups.iter().zip(&mut fetched) {
            self.sift(caught_up, &lookup.key, fetched, noted);
        }
        Ok((fetched, noted))
    }

    async fn get_many_or_load(
        self: &Arc<Self>,
        keys: &[CacheKey],
        loader: LoadMany<V>,
        reads: &mut Reads,
    ) -> Result<Vec<Option<Cached<V>>>, LoadError> {
        self.begin().await;
        let (mut found, mut seen) = (Found::new(), HashSet::new());
        let wanted = keys.iter().filter(|key| seen.insert(*key));
        let wanted: Vec<_> = wanted
            .filter(|key| self.is_wanted(key, &mut found))
            .collect();
        let (waits, leads) = self.enter_all(&wanted, &mut found);
        for here in found.values() {
            reads.add(here.as_ref().map_or(Served::Absent, |_| Served::Local));
        }
        if !leads.is_empty() {
            let state = Arc::clone(self);
            tokio::spawn(async move { state.fly_many(leads, loader).await });
        }
        let now = self.clock.now_micros();
        let mut left = waits.len();
        for (key, (flight, joined)) in waits {
            let (answer, served) = flight.wait(joined, now).await;
            left -= 1;
            reads.add(served);
            if answer.is_err() {
                // Those after it are not waited for: they found nothing either.
                reads.add_many(served, left);
            }
            found.insert(key, answer?);
        }
        Ok(keys
            .iter()
            .map(|key| found.get(key).cloned().flatten())
            .collect())
    }

    /// Looks for a key in this process; says whether it is to be loaded: it is not there, or due.
    fn is_wanted<'k>(&self, key: &'k CacheKey, found: &mut Found<'k, V>) -> bool {
        let Some(known) = self.known_here(key) else {
            return true;
        };
        let is_due = self.is_due(key, &known);
        found.insert(key, self.cached(known, CacheOutcome::LocalHit));
        is_due
    }

    /// Joins the loads that run, and leads all others.
    fn enter_all<'k>(
        self: &Arc<Self>,
        wanted: &[&'k CacheKey],
        found: &mut Found<'k, V>,
    ) -> (Waits<'k, V>, Vec<Lead<V>>) {
        let (mut waits, mut leads) = (Waits::new(), Vec::new());
        if wanted.is_empty() {
            return (waits, leads);
        }
        // Of two batches of the same keys one leads all, and the other joins: a part for each would be two calls of the
        // loader, and other processes would find a part of it free.
        let mut flights = self.flights.lock();
        for key in wanted.iter().copied() {
            // Whoever has loaded it since it was looked for may have left the list already.
            if !found.contains_key(key) && !self.is_wanted(key, found) {
                continue;
            }
            let is_here = found.contains_key(key);
            let at = FlightKey {
                key: key.key.clone(),
                want: Want::Either,
            };
            match self.enter_among(&mut flights, smallvec![at], names_of_load(key)) {
                // Behind its reader it runs already.
                Entered::Joined(_) if is_here => {}
                Entered::Joined(flight) => drop(waits.insert(key, (flight, true))),
                Entered::Led(told, landing) => {
                    if !is_here {
                        waits.insert(key, (Arc::clone(&landing.own), false));
                    }
                    let key = key.clone();
                    leads.push(Lead { key, told, landing });
                }
            }
        }
        (waits, leads)
    }
}
