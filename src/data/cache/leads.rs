//! What a batch loads itself: leases on all its keys, then one call of the loader.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::error::LoadError;
use super::fill::Landed;
use super::flight::{Landing, Loading, Told, Want, tell};
use super::handle::State;
use super::loaded::Loaded;
use super::read::{Start, WAIT_FOR_OTHERS};
use super::stats::Served;
use super::store::{Ask, LeaseToken, LeaseWish, Leased, Lookup};
use super::target::CacheKey;
use crate::core::ttl::SECOND;

/// A key that this call loads.
pub(super) struct Lead<V> {
    pub(super) key: CacheKey,
    pub(super) told: Told<V>,
    pub(super) landing: Landing<V>,
}

/// What is to be loaded, what others load, and what is there and cannot be read.
type Looked<V> = (Vec<(Lead<V>, Start<V>)>, Vec<Lead<V>>, Vec<Lead<V>>);
type Loads<V> = HashMap<CacheKey, Loaded<V>>;
pub(super) type LoadMany<V> = Box<dyn FnOnce(Vec<CacheKey>) -> Loading<Loads<V>> + Send>;

impl<V> State<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    pub(super) async fn fly_many(self: &Arc<Self>, leads: Vec<Lead<V>>, loader: LoadMany<V>) {
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
                    tell(&lead.told, (Err(error.clone()), start.served));
                }
                return;
            }
        };
        let (mut leads, mut landed) = (Vec::new(), SmallVec::new());
        for (lead, start) in missing {
            leads.push((lead.told, lead.landing, start.served));
            landed.push(Landed {
                loaded: loads.remove(&lead.key),
                key: lead.key,
                start,
                lease_of: None,
            });
        }
        let answers = self.settle(landed).await;
        for ((told, landing, served), answer) in leads.into_iter().zip(answers) {
            landing.land();
            tell(&told, (Ok(answer), served));
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
            served: Served::Miss,
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
                    let start = Start {
                        replaces: stale.is_some(),
                        stale,
                        token,
                        bypassed: false,
                        noted,
                        served: Served::Miss,
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
