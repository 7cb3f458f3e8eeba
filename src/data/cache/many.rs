//! Batches: many keys in one call of the store, those that are missing in one call of the loader.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::{SmallVec, smallvec};
use tokio::sync::Notify;

use super::cached::{CacheOutcome, Cached};
use super::error::LoadError;
use super::fill::Landed;
use super::flight::{Entered, Flight, FlightKey, Landing, Told, Want, names_of_load, tell};
use super::group::AT_ONCE;
use super::handle::{Cache, State};
use super::loaded::Loaded;
use super::read::{Start, WAIT_FOR_OTHERS};
use super::store::{Ask, Fetched, LeaseToken, LeaseWish, Leased, Lookup};
use super::target::CacheKey;
use crate::core::ttl::SECOND;
use crate::core::{IntoKey, StoreError};
use crate::data::DataError;

/// A key that this call loads.
struct Lead<V> {
    key: CacheKey,
    told: Told<V>,
    landing: Landing<V>,
}

/// What this process has.
type Found<'k, V> = HashMap<&'k CacheKey, Option<Cached<V>>>;
/// Loads that are waited for, and whether others lead them.
type Waits<'k, V> = HashMap<&'k CacheKey, (Arc<Flight<V>>, bool)>;
/// What is to be loaded, what others load, and what is there and cannot be read.
type Looked<V> = (Vec<(Lead<V>, Start<V>)>, Vec<Lead<V>>, Vec<Lead<V>>);
type Loads<V> = HashMap<CacheKey, Loaded<V>>;
type LoadedMany<V> = Result<Loads<V>, Arc<dyn Error + Send + Sync>>;
type LoadMany<V> =
    Box<dyn FnOnce(Vec<CacheKey>) -> Pin<Box<dyn Future<Output = LoadedMany<V>> + Send>> + Send>;

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
        let own: Vec<CacheKey> = keys.iter().map(|key| self.key_of(key)).collect();
        self.state.get_many(&own).await
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
        let own: Vec<CacheKey> = keys.iter().map(|key| self.key_of(key)).collect();
        let by_key = own.iter().cloned().zip(keys.iter().cloned()).collect();
        let loader = self.loader_of_many(by_key, loader);
        self.state.get_many_or_load(&own, loader).await
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
    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Cached<V>>>, DataError> {
        self.begin().await;
        let mut found: HashMap<&CacheKey, Option<Cached<V>>> = HashMap::new();
        for key in keys {
            if let Some(known) = self.known_here(key) {
                self.meter.read(known.counts_as("local"));
                found.insert(key, self.cached(known, CacheOutcome::LocalHit));
            }
        }
        let mut rest: Vec<&CacheKey> = keys.iter().filter(|key| !found.contains_key(key)).collect();
        let mut seen = HashSet::new();
        rest.retain(|key| seen.insert(*key));
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
                    part.iter().for_each(|_| self.meter.read("bypass"));
                    for (key, known) in kept.ok_or(error)? {
                        found.insert(key, self.cached(known, CacheOutcome::Bypassed));
                    }
                    continue;
                }
            };
            for (key, fetched) in part.iter().copied().zip(fetched) {
                let now = self.clock.now_micros();
                let known = self.take(key, fetched, noted);
                let known = known.filter(|known| known.fresh > now);
                let result = known
                    .as_ref()
                    .map_or("miss", |known| known.counts_as("shared"));
                self.meter.read(result);
                let cached = known.and_then(|known| self.cached(known, CacheOutcome::SharedHit));
                found.insert(key, cached);
            }
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
    ) -> Result<Vec<Option<Cached<V>>>, LoadError> {
        self.begin().await;
        let (mut found, mut seen) = (Found::new(), HashSet::new());
        let wanted = keys.iter().filter(|key| seen.insert(*key));
        let wanted: Vec<_> = wanted
            .filter(|key| self.is_wanted(key, &mut found))
            .collect();
        let (waits, leads) = self.enter_all(&wanted, &mut found);
        if !leads.is_empty() {
            let state = Arc::clone(self);
            tokio::spawn(async move { state.fly_many(leads, loader).await });
        }
        let now = self.clock.now_micros();
        for (key, (flight, joined)) in waits {
            found.insert(key, flight.wait(joined, now).await?);
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
        self.meter.read(known.counts_as("local"));
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

    async fn fly_many(self: &Arc<Self>, leads: Vec<Lead<V>>, loader: LoadMany<V>) {
        let missing = match self.lease_many(leads).await {
            missing if missing.is_empty() => return,
            missing => missing,
        };
        let keys: Vec<CacheKey> = missing.iter().map(|(lead, _)| lead.key.clone()).collect();
        let mut loads = match self.load_many(keys, loader, &missing).await {
            Ok(loads) => loads,
            Err(error) => {
                self.fail_many(&missing).await;
                for (lead, start) in missing {
                    if let Some(stale) = &start.stale {
                        self.tell_stale_once(&lead.told, stale);
                    }
                    lead.landing.land();
                    tell(&lead.told, Err(error.clone()));
                }
                return;
            }
        };
        let (mut leads, mut landed) = (Vec::new(), SmallVec::new());
        for (lead, start) in missing {
            landed.push(Landed {
                loaded: loads.remove(&lead.key),
                key: lead.key.clone(),
                start,
                lease_of: None,
            });
            leads.push(lead);
        }
        let answers = self.settle(landed).await;
        for (lead, answer) in leads.into_iter().zip(answers) {
            lead.landing.land();
            tell(&lead.told, Ok(answer));
        }
    }

    /// Remembers that loads have failed, and gives their leases back.
    async fn fail_many(&self, missing: &[(Lead<V>, Start<V>)]) {
        let (mut leases, mut token) = (Vec::new(), None);
        for (lead, start) in missing {
            self.note_failure(&lead.key);
            if start.token.is_some() {
                token = start.token;
                leases.push(lead.key.clone());
            }
        }
        self.give_back_all(&leases, token).await;
    }

    /// Asks the store for all; answers what it has, and returns what is to be loaded.
    async fn lease_many(&self, leads: Vec<Lead<V>>) -> Vec<(Lead<V>, Start<V>)> {
        let token = self.group.shared.draw();
        let (mut missing, busy) = self.lease_round(leads, token, false).await;
        if busy.is_empty() {
            return missing;
        }
        if missing.is_empty() {
            // Others load everything: one wait for all of it, then what is left is taken over. They are listened to before
            // the store is asked once more, so that no fill is missed.
            let waiters = |busy: &[Lead<V>]| -> Vec<Arc<Notify>> {
                let shared = &self.group.shared;
                let waiters = busy.iter().map(|lead| shared.waiter(lead.key.member()));
                waiters.collect()
            };
            let _listening = waiters(&busy);
            let (given, busy) = self.lease_round(busy, token, false).await;
            missing.extend(given);
            if missing.is_empty() && !busy.is_empty() {
                let waiters = waiters(&busy);
                let all = async {
                    for waiter in &waiters {
                        waiter.notified().await;
                    }
                };
                let _ = tokio::time::timeout(WAIT_FOR_OTHERS, all).await;
                let (given, none) = self.lease_round(busy, token, true).await;
                missing.extend(given);
                missing.extend(self.without_lease(none));
            } else {
                missing.extend(self.without_lease(busy));
            }
        } else {
            // Two batches that waited for each other would both wait in vain.
            missing.extend(self.without_lease(busy));
        }
        missing
    }

    fn without_lease(&self, leads: Vec<Lead<V>>) -> Vec<(Lead<V>, Start<V>)> {
        let noted = self.group.shared.sight.now();
        let start = || Start {
            stale: None,
            token: None,
            replaces: false,
            bypassed: false,
            noted,
        };
        leads.into_iter().map(|lead| (lead, start())).collect()
    }

    /// Asks the store; gives those that are to be loaded, and those that others load.
    async fn lease_round(
        &self,
        leads: Vec<Lead<V>>,
        token: LeaseToken,
        take_over: bool,
    ) -> (Vec<(Lead<V>, Start<V>)>, Vec<Lead<V>>) {
        let wish = |force| LeaseWish {
            token,
            lasts: self.config.hard + SECOND,
            take_over,
            force,
        };
        let (mut missing, mut busy, unread) = self.look_round(leads, wish(false)).await;
        if !unread.is_empty() {
            let (given, others, none) = self.look_round(unread, wish(true)).await;
            missing.extend(given);
            busy.extend(others.into_iter().chain(none));
        }
        (missing, busy)
    }

    /// One look at the store; the last are those whose records cannot be read here.
    async fn look_round(&self, leads: Vec<Lead<V>>, wish: LeaseWish) -> Looked<V> {
        let token = wish.token;
        let lookup = |lead: &Lead<V>| Lookup {
            key: lead.key.clone(),
            ask: Ask::Lease(wish),
        };
        let (mut missing, mut busy, mut paused) = (Vec::new(), Vec::new(), Vec::new());
        let mut unread = Vec::new();
        let asked = self.fetch_many(leads.iter().map(lookup).collect()).await;
        let (fetched, noted) = match asked {
            Ok(asked) => asked,
            Err(error) => {
                let alone = |lead: Lead<V>| {
                    let start = self.bypass(&lead.key, Want::Either, &lead.told, &error)?;
                    Some((lead, start))
                };
                let missing = leads.into_iter().filter_map(alone).collect();
                return (missing, busy, unread);
            }
        };
        for (lead, fetched) in leads.into_iter().zip(fetched) {
            let (leased, now) = (fetched.leased, self.clock.now_micros());
            let known = self.take(&lead.key, fetched, noted);
            let token = (leased == Leased::Given).then_some(token);
            let is_fresh = known.as_ref().is_some_and(|known| known.fresh > now);
            if let Some(known) = known.as_ref().filter(|_| is_fresh) {
                self.meter.read(known.counts_as("shared"));
                self.tell_fresh(&lead.told, known.clone(), token.is_some());
            }
            match (known, token) {
                (Some(known), None) if is_fresh => drop(known),
                (Some(stale), None) => self.tell_stale_once(&lead.told, &stale),
                (Some(stale), Some(_)) if !is_fresh && !self.may_load(&lead.key, now) => {
                    self.tell_stale_once(&lead.told, &stale);
                    paused.push(lead);
                }
                (None, None) if leased == Leased::No => unread.push(lead),
                (None, None) => busy.push(lead),
                (stale, token) => {
                    if stale.is_none() {
                        self.meter.read("miss");
                    }
                    let start = Start {
                        replaces: stale.is_some(),
                        stale,
                        token,
                        bypassed: false,
                        noted,
                    };
                    missing.push((lead, start));
                }
            }
        }
        // Given back before they land.
        let leases: Vec<CacheKey> = paused.iter().map(|lead| lead.key.clone()).collect();
        self.give_back_all(&leases, Some(token)).await;
        (missing, busy, unread)
    }

    /// Runs the loader once; stale values answer when it outlasts the soft timeout.
    async fn load_many(
        &self,
        keys: Vec<CacheKey>,
        loader: LoadMany<V>,
        missing: &[(Lead<V>, Start<V>)],
    ) -> Result<Loads<V>, LoadError> {
        let has_stale = missing.iter().any(|(_, start)| start.stale.is_some());
        let soft = has_stale.then_some(self.config.soft);
        let serve_stale = || {
            for (lead, start) in missing {
                if let Some(stale) = &start.stale {
                    self.tell_stale_once(&lead.told, stale);
                }
            }
        };
        self.run(None, loader(keys), soft, serve_stale).await
    }
}
