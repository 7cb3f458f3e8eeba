//! How a read goes: local copy, one flight per key, the store, the loader, the fill.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::smallvec;

use super::cached::{CacheOutcome, Cached};
use super::codec;
use super::fill::Landed;
use super::flight::{
    Answer, Entered, Flight, FlightKey, Landing, Loader, Told, Want, names_of_load, tell,
    tell_early,
};
use super::group::CaughtUp;
use super::handle::State;
use super::local::Known;
use super::share::Share;
use super::stats::Served;
use super::store::{Ask, Fetched, LeaseToken, LeaseWish, Leased, Lookup, Record};
use super::target::CacheKey;
use crate::core::telemetry::count;
use crate::core::ttl::SECOND;
use crate::core::{Segments, StoreError, StoreErrorKind};
use crate::data::DataError;

/// How long one waits for another process that loads; then it takes over.
pub(super) const WAIT_FOR_OTHERS: Duration = SECOND;
const MOST_FAILED: usize = 10_000;

/// What the store gave before a load.
pub(super) struct Start<V> {
    pub(super) stale: Option<Known<V>>,
    pub(super) token: Option<LeaseToken>,
    /// There is a record: what is loaded replaces it, stored or not.
    pub(super) replaces: bool,
    pub(super) bypassed: bool,
    pub(super) noted: u64,
    /// What the reads count as that wait for what is loaded.
    pub(super) served: Served,
}

impl<V> State<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    pub(super) async fn read_or_load(
        self: &Arc<Self>,
        asked: Segments,
        want: Want,
        loader: impl FnOnce() -> Loader<V>,
    ) -> Answer<V> {
        // What is at hand was asked for before: whoever gets it has begun.
        if want != Want::Refresh
            && let Some((hit, is_due)) = self.hit(&asked, want)
        {
            if is_due {
                let key = self.own(&asked);
                if self.may_load(&key, self.clock.now_micros()) {
                    let _behind = self.flight(key, Want::Either, loader);
                }
            }
            return Ok(hit);
        }
        self.begin().await;
        let (flight, joined) = self.flight(self.own(&asked), want, loader);
        let (answer, served) = flight.wait(joined, self.clock.now_micros()).await;
        // Who refreshes has not read.
        if want != Want::Refresh {
            self.meter.read(served);
        }
        answer
    }

    pub(super) async fn get(&self, asked: Segments) -> Result<Option<Cached<V>>, DataError> {
        if let Some((hit, _)) = self.hit(&asked, Want::Either) {
            return Ok(hit);
        }
        self.begin().await;
        let key = self.own(&asked);
        let (fetched, noted) = match self.fetch(&key, Ask::Read).await {
            Ok(fetched) => fetched,
            Err(error) => {
                self.meter.read(Served::Bypass);
                let known = self.kept(&key).ok_or(error)?;
                return Ok(self.cached(known, CacheOutcome::Bypassed));
            }
        };
        let known = self.take(&key, fetched, noted);
        let known = known.filter(|known| known.fresh > self.clock.now_micros());
        let found = known.as_ref();
        let served = found.map_or(Served::Miss, |known| known.counts_as(Served::Shared));
        self.meter.read(served);
        Ok(known.and_then(|known| self.cached(known, CacheOutcome::SharedHit)))
    }

    fn flight(
        self: &Arc<Self>,
        key: CacheKey,
        want: Want,
        loader: impl FnOnce() -> Loader<V>,
    ) -> (Arc<Flight<V>>, bool) {
        let at = FlightKey {
            key: key.key.clone(),
            want,
        };
        let (told, landing) = match self.enter(smallvec![at], names_of_load(&key)) {
            Entered::Joined(flight) => return (flight, true),
            Entered::Led(told, landing) => (told, landing),
        };
        let (state, loader) = (Arc::clone(self), loader());
        let flight = Arc::clone(&landing.own);
        tokio::spawn(async move { state.fly(&key, want, loader, &told, &landing).await });
        (flight, false)
    }

    async fn fly(
        self: &Arc<Self>,
        key: &CacheKey,
        want: Want,
        loader: Loader<V>,
        told: &Told<V>,
        landing: &Landing<V>,
    ) {
        let start = match self.before_load(key, want, told).await {
            Some(start) => start,
            None => return,
        };
        let now = self.clock.now_micros();
        if let Some(stale) = &start.stale
            && want != Want::Refresh
            && !self.may_load(key, now)
        {
            self.tell_stale_once(told, stale);
            self.give_back(key, start.token).await;
            return;
        }
        let loaded = self.load(key, loader, told, &start, want).await;
        let served = start.served;
        let answer = match loaded {
            Ok(loaded) => {
                let landed = Landed {
                    key: key.clone(),
                    loaded,
                    start,
                    lease_of: None,
                };
                Ok(self.settle(smallvec![landed]).await.pop().flatten())
            }
            Err(error) => {
                self.note_failure(key);
                self.give_back(key, start.token).await;
                if let Some(stale) = start.stale.as_ref().filter(|_| want != Want::Refresh) {
                    self.tell_stale_once(told, stale);
                }
                Err(error)
            }
        };
        // First out of the list, then the answer: whoever asks after it starts anew.
        landing.land();
        tell(told, (answer, served));
    }

    /// Asks the store; `None` where that was the answer, and nothing is to be loaded.
    async fn before_load(&self, key: &CacheKey, want: Want, told: &Told<V>) -> Option<Start<V>> {
        let token = self.group.shared.draw();
        let wish = |take_over, force| {
            Ask::Lease(LeaseWish {
                token,
                lasts: self.config.hard + SECOND,
                take_over,
                force,
            })
        };
        let mut ask = wish(false, want == Want::Refresh);
        for attempt in 0..4 {
            // Before each look, since a bell is rung once: so no fill after it goes unheard.
            let waiter = self.group.shared.waiter(key.member());
            let (fetched, noted) = match self.fetch(key, ask).await {
                Ok(fetched) => fetched,
                Err(error) => return self.bypass(key, want, told, &error),
            };
            let leased = fetched.leased;
            let now = self.clock.now_micros();
            let known = self.take(key, fetched, noted);
            let replaces = known.is_some();
            let fits = |known: &Known<V>| known.value.is_some() || want == Want::Either;
            let known = known.filter(fits);
            let start = |stale, token| Start {
                stale,
                token,
                replaces,
                bypassed: false,
                noted,
                served: Served::Miss,
            };
            match (known, leased) {
                (Some(known), leased) if known.fresh > now && want != Want::Refresh => {
                    let is_due = leased == Leased::Given;
                    let kept = is_due.then(|| known.clone());
                    self.tell_fresh(told, known, is_due);
                    return kept.map(|known| start(Some(known), Some(token)));
                }
                (known, Leased::Given) => return Some(start(known, Some(token))),
                (Some(stale), Leased::Busy) if want != Want::Refresh => {
                    self.tell_stale_once(told, &stale);
                    return None;
                }
                (_, Leased::Busy) if attempt < 2 => {
                    let told = tokio::time::timeout(WAIT_FOR_OTHERS, waiter.notified()).await;
                    // Filled or given up; or taken over from a loader that died.
                    ask = wish(told.is_err(), want == Want::Refresh);
                }
                // A remembered absence where a value is wanted, or a record that cannot be read here.
                (_, Leased::No) => ask = wish(false, true),
                // Others that never end.
                (_, Leased::Busy) => ask = wish(true, true),
            }
        }
        Some(Start {
            stale: None,
            token: None,
            replaces: false,
            bypassed: true,
            noted: self.group.shared.sight.now(),
            served: Served::Miss,
        })
    }

    /// The store is away: what is here and still believed, else the loader.
    pub(super) fn bypass(
        &self,
        key: &CacheKey,
        want: Want,
        told: &Told<V>,
        error: &StoreError,
    ) -> Option<Start<V>> {
        let _ = error;
        let shared = &self.group.shared;
        let noted = shared.sight.now();
        let known = self.kept(key);
        let fits = |known: &Known<V>| known.value.is_some() || want == Want::Either;
        if let Some(known) = known.filter(fits)
            && want != Want::Refresh
        {
            let answer = Ok(self.cached(known, CacheOutcome::Bypassed));
            tell(told, (answer, Served::Bypass));
            return None;
        }
        Some(Start {
            stale: None,
            token: None,
            replaces: false,
            bypassed: true,
            noted,
            served: Served::Bypass,
        })
    }

    pub(super) async fn fetch(
        &self,
        key: &CacheKey,
        ask: Ask,
    ) -> Result<(Fetched, u64), StoreError> {
        let shared = &self.group.shared;
        let caught_up = shared.catch_up().await?;
        let noted = shared.sight.now();
        let lookup = Lookup {
            key: key.clone(),
            ask,
        };
        let fetched = shared.store.fetch(&shared.name.shared(), vec![lookup]);
        let fetched = fetched.await?.pop();
        let mut fetched = fetched.ok_or_else(|| StoreError::new(StoreErrorKind::Failed))?;
        self.sift(caught_up, key, &mut fetched, noted);
        Ok((fetched, noted))
    }

    /// Takes away a record that the store would not have if it had taken every invalidation.
    pub(super) fn sift(
        &self,
        caught_up: CaughtUp,
        key: &CacheKey,
        fetched: &mut Fetched,
        noted: u64,
    ) {
        if caught_up == CaughtUp::Refused
            && let Some(record) = &fetched.record
            && !self.group.shared.is_good(key, &record.tags, noted)
        {
            fetched.record = None;
        }
    }

    /// Decodes what was fetched, and keeps it here while it is fresh.
    pub(super) fn take(&self, key: &CacheKey, fetched: Fetched, noted: u64) -> Option<Known<V>> {
        let (record, now_ms) = (fetched.record?, fetched.now);
        let Some(value) = codec::decode::<V>(&record.payload, self.config.shape.schema) else {
            self.meter.undecodable.fetch_add(1, Ordering::Relaxed);
            count!("keep_cache_undecodable_total", 1, "cache" => self.label.clone());
            return None;
        };
        let known = self.translate(&record, now_ms, value);
        if let Some(local) = &self.local
            && known.fresh > self.clock.now_micros()
        {
            let weight = record.payload.len();
            local.keep(key, known.clone(), (noted, &record.tags), weight);
        }
        Some(known)
    }

    /// Moves the store's times onto the local clock.
    fn translate(&self, record: &Record, now_ms: u64, value: Option<V>) -> Known<V> {
        let here = self.clock.now_micros();
        let local = |at: u64| {
            let ahead = at.saturating_sub(now_ms).saturating_mul(1_000);
            let behind = now_ms.saturating_sub(at).saturating_mul(1_000);
            here.saturating_add(ahead).saturating_sub(behind)
        };
        let is_alias = |name: &&String| name.starts_with('a');
        let aliases: Vec<String> = record.tags.iter().filter(is_alias).cloned().collect();
        Known {
            value: value.map(Share::new),
            stored: local(record.stored),
            stored_ms: record.stored,
            refresh: local(record.refresh),
            fresh: local(record.fresh),
            gone: local(record.expires),
            aliases: (!aliases.is_empty()).then(|| Arc::from(aliases)),
        }
    }

    pub(super) fn known_here(&self, key: &CacheKey) -> Option<Known<V>> {
        self.kept(key).filter(|_| self.group.shared.is_live())
    }

    /// What is kept here, whether notices arrive or not.
    pub(super) fn kept(&self, key: &CacheKey) -> Option<Known<V>> {
        let (local, now) = (self.local.as_ref()?, self.clock.now_micros());
        let entry = local.entry(key.key.as_str().as_bytes());
        local.read(entry, now, &self.group.shared.sight, Known::shared_as)
    }

    /// Answers from this process, if it can, and says whether a refresh is due. Nothing is made for it: the key's bytes
    /// are looked for, the value is shared, the clock is read once.
    fn hit(&self, asked: &Segments, want: Want) -> Option<(Option<Cached<V>>, bool)> {
        let shared = &self.group.shared;
        let local = self.local.as_ref().filter(|_| shared.is_live())?;
        let (entry, now) = (local.entry(asked.as_bytes()), self.clock.now_micros());
        let hit = |known: &Known<V>, value: Option<Share<V>>| {
            let fits = value.is_some() || want == Want::Either;
            let is_due = now >= known.refresh && known.refresh < known.fresh;
            fits.then(|| {
                let cached = value.map(|value| known.seen(value, CacheOutcome::LocalHit, now));
                (cached, is_due)
            })
        };
        let hit = local.read(entry, now, &shared.sight, hit)??;
        self.meter.hit_here(hit.0.is_some());
        Some(hit)
    }

    fn own(&self, asked: &Segments) -> CacheKey {
        CacheKey {
            entity: Arc::clone(&self.entity),
            key: asked.to_key(),
        }
    }

    pub(super) fn cached(&self, known: Known<V>, outcome: CacheOutcome) -> Option<Cached<V>> {
        let value = known.value.clone()?;
        Some(known.seen(value, outcome, self.clock.now_micros()))
    }

    pub(super) fn tell_stale_once(&self, told: &Told<V>, stale: &Known<V>) {
        if told.borrow().is_silent() {
            let answer = Ok(self.cached(stale.clone(), CacheOutcome::Stale));
            tell_early(told, (answer, stale.counts_as(Served::Stale)), stale.gone);
        }
    }

    /// Tells a fresh value; where it is due for a refresh, that goes on behind it.
    pub(super) fn tell_fresh(&self, told: &Told<V>, known: Known<V>, is_due: bool) {
        let (until, served) = (known.fresh, known.counts_as(Served::Shared));
        let word = (Ok(self.cached(known, CacheOutcome::SharedHit)), served);
        if is_due {
            tell_early(told, word, until);
        } else {
            tell(told, word);
        }
    }

    /// Says whether a value that is at hand is to be loaded anew behind its reader.
    pub(super) fn is_due(&self, key: &CacheKey, known: &Known<V>) -> bool {
        let now = self.clock.now_micros();
        now >= known.refresh && known.refresh < known.fresh && self.may_load(key, now)
    }

    /// Says whether no load of `key` has failed lately.
    pub(super) fn may_load(&self, key: &CacheKey, now: u64) -> bool {
        let failed = self.failed.lock();
        failed.get(&key.key).is_none_or(|until| now >= *until)
    }

    pub(super) fn note_failure(&self, key: &CacheKey) {
        let pause = self.config.life.ttl().as_millis().min(30_000) * 1_000;
        let mut failed = self.failed.lock();
        if failed.len() >= MOST_FAILED {
            failed.clear();
        }
        let until = self.clock.now_micros().saturating_add(pause);
        failed.insert(key.key.clone(), until);
    }
}
