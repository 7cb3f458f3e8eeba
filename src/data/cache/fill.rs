//! How a value that was loaded or put reaches the store and the local level.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cached::CacheOutcome;
use super::codec;
use super::flight::Answer;
use super::handle::State;
use super::loaded::Loaded;
use super::local::Known;
use super::policy;
use super::read::Start;
use super::store::{Fill, Right, Written};
use super::target::{CacheKey, Target};
use crate::core::StoreError;
use crate::core::telemetry::count;
use crate::core::ttl::{Lifetime, Ttl};
use crate::data::{DataError, DataErrorKind, once_more};

/// The largest value, encoded; a larger one is returned, not stored.
pub(super) const LARGEST: usize = 1_024 * 1_024;
const MOST_TAGS: usize = 16;

impl<V> State<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Fills what was loaded, if nothing of it was invalidated since the lease was given.
    pub(super) async fn settle(
        &self,
        key: &CacheKey,
        loaded: Option<Loaded<V>>,
        start: &Start<V>,
    ) -> Answer<V> {
        self.failed.lock().remove(&key.key);
        let right = start.token.map(Right::Lease);
        let is_wanted = match &loaded {
            Some(loaded) => loaded.is_stored,
            None => self.missing_life().is_some(),
        };
        let fill = match (right, &loaded) {
            (Some(right), Some(loaded)) if is_wanted => self.fill(loaded, right).ok().flatten(),
            (Some(right), None) if is_wanted => self.fill_absent(right),
            _ => None,
        };
        let ages = self.ages_of(loaded.as_ref());
        let tags = fill.as_ref().map_or_else(
            || loaded.as_ref().map(tags_of).unwrap_or_default(),
            |fill| fill.tags.clone(),
        );
        let weight = fill.as_ref().map_or(256, |fill| fill.payload.len());
        let known = self.fresh_known(loaded, ages);
        let is_kept = match fill {
            Some(fill) => match self.write(key, fill).await {
                Ok(Written::Stored) => true,
                Ok(Written::Refused) => {
                    self.meter.refused.fetch_add(1, Ordering::Relaxed);
                    count!("keep_cache_fills_refused_total", 1, "cache" => self.label.clone());
                    false
                }
                Err(_) => {
                    self.group.shared.keep_back([Target::key(key.clone())]);
                    false
                }
            },
            // Without the store it is believed here for as long as a local copy.
            None => start.bypassed && is_wanted,
        };
        if is_kept && let Some(local) = &self.local {
            local.keep(key, known.clone(), (start.noted, &tags), weight);
        }
        let outcome = if start.bypassed {
            CacheOutcome::Bypassed
        } else {
            CacheOutcome::Loaded
        };
        Ok(self.cached(known, outcome))
    }

    pub(super) async fn write(&self, key: &CacheKey, fill: Fill) -> Result<Written, StoreError> {
        let shared = &self.group.shared;
        let write = || {
            shared
                .store
                .write(&shared.name.shared(), key, fill.clone(), &shared.sender)
        };
        match fill.right {
            // A repeat finds its lease gone and is refused: harmless.
            Right::Lease(_) => once_more(write).await,
            Right::Always => write().await,
        }
    }

    fn missing_life(&self) -> Option<Ttl> {
        let ttl = self.config.life.ttl();
        let missing = Ttl::try_from(self.config.missing_for.min(ttl.as_duration()));
        missing.ok()
    }

    fn ages_of(&self, loaded: Option<&Loaded<V>>) -> policy::Ages {
        match (loaded, self.missing_life()) {
            (None, Some(missing)) => policy::ages(Lifetime::new(missing).jitter(0), None, 0),
            (loaded, _) => {
                let random = getrandom::u64().unwrap_or_default();
                let own = loaded.and_then(|loaded| loaded.ttl);
                policy::ages(self.config.life, own, random)
            }
        }
    }

    fn fresh_known(&self, loaded: Option<Loaded<V>>, ages: policy::Ages) -> Known<V> {
        let now = self.clock.now_micros();
        Known {
            value: loaded.map(|loaded| Arc::new(loaded.value)),
            stored: now,
            stored_ms: now / 1_000,
            refresh: now + ages.refresh * 1_000,
            fresh: now + ages.fresh * 1_000,
        }
    }

    fn fill_absent(&self, right: Right) -> Option<Fill> {
        let payload = codec::encode::<V>(None, self.config.schema).ok()?;
        let ages = self.ages_of(None);
        Some(fill_of(payload, Vec::new(), ages, right))
    }

    /// Encodes a value; `None` for one that is too large.
    pub(super) fn fill(&self, loaded: &Loaded<V>, right: Right) -> Result<Option<Fill>, DataError> {
        let payload = codec::encode(Some(&loaded.value), self.config.schema)
            .map_err(|error| DataError::with_source(DataErrorKind::Unencodable, error))?;
        if payload.len() > LARGEST {
            return Ok(None);
        }
        let ages = self.ages_of(Some(loaded));
        Ok(Some(fill_of(payload, tags_of(loaded), ages, right)))
    }
}

fn fill_of(payload: Vec<u8>, tags: Vec<String>, ages: policy::Ages, right: Right) -> Fill {
    Fill {
        payload: payload.into(),
        tags,
        refresh: ages.refresh,
        fresh: ages.fresh,
        life: ages.life,
        right,
    }
}

fn tags_of<V>(loaded: &Loaded<V>) -> Vec<String> {
    let tags = loaded.tags.iter().take(MOST_TAGS);
    tags.map(|tag| Target::tag(tag.clone()).member()).collect()
}
