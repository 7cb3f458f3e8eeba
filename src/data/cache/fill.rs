//! How values that were loaded or put reach the store and the local level.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use super::cached::{CacheOutcome, Cached};
use super::codec;
use super::group::AT_ONCE;
use super::handle::State;
use super::loaded::Loaded;
use super::local::Known;
use super::policy::{self, Ages};
use super::read::Start;
use super::share::Share;
use super::store::{Fill, Item, LeaseToken, Right, Written};
use super::target::{CacheKey, Target};
use crate::core::StoreError;
use crate::core::size::MIB;
use crate::core::telemetry::{count, gauge};
use crate::core::ttl::{Lifetime, Ttl};
use crate::data::{DataError, DataErrorKind, once_more};

/// The largest value, encoded; a larger one is returned, not stored.
pub(super) const LARGEST: usize = MIB;
const MOST_TAGS: usize = 16;

/// What a loader gave for a key.
pub(super) struct Landed<V> {
    pub(super) key: CacheKey,
    pub(super) loaded: Option<Loaded<V>>,
    pub(super) start: Start<V>,
    /// The key whose lease it was loaded under, where that is another.
    pub(super) lease_of: Option<CacheKey>,
}

/// What is to be kept in this process once the store has said whether it may be.
struct Draft<V> {
    key: CacheKey,
    known: Known<V>,
    names: Vec<String>,
    weight: usize,
    noted: u64,
    bypassed: bool,
    is_wanted: bool,
    replaces: bool,
    /// Whether the item stores something, where there is one.
    stores: Option<bool>,
}

impl<V> State<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Fills what was loaded, if nothing of it was invalidated since its lease was given; answers in order.
    pub(super) async fn settle(
        &self,
        landed: SmallVec<[Landed<V>; 1]>,
    ) -> SmallVec<[Option<Cached<V>>; 1]> {
        let mut drafts: SmallVec<[Draft<V>; 1]> = SmallVec::with_capacity(landed.len());
        let mut items = Vec::with_capacity(landed.len());
        for one in landed {
            self.failed.lock().remove(&one.key.key);
            let (draft, item) = self.draft(one);
            drafts.push(draft);
            items.extend(item);
        }
        let mut written: SmallVec<[_; 1]> = SmallVec::with_capacity(items.len());
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(AT_ONCE));
            let part = std::mem::replace(&mut items, rest);
            let size = part.len();
            match self.write(part).await {
                Ok(answers) => written.extend(answers.into_iter().map(Some)),
                Err(_) => written.extend(std::iter::repeat_n(None, size)),
            }
        }
        // What was there before is no longer true, also where nothing takes its place.
        let outdated = drafts
            .iter()
            .filter(|draft| draft.replaces && !draft.stores.unwrap_or(draft.is_wanted));
        let outdated: Vec<Target> = outdated
            .map(|draft| Target::key(draft.key.clone()))
            .collect();
        if !outdated.is_empty() {
            self.group.shared.invalidate(outdated).await;
        }
        let mut written = written.into_iter();
        let answers = drafts.into_iter().map(|draft| {
            let written = draft.stores.and_then(|_| written.next());
            self.keep(draft, written)
        });
        answers.collect()
    }

    /// `written` is `None` where nothing was sent, `Some(None)` where the store could not tell.
    fn keep(&self, draft: Draft<V>, written: Option<Option<Written>>) -> Option<Cached<V>> {
        let Draft {
            key, known, names, ..
        } = draft;
        let is_kept = match (draft.stores, written.flatten()) {
            (Some(true), Some(Written::Stored)) => true,
            (Some(true), Some(Written::Refused)) => {
                self.meter.refused.fetch_add(1, Ordering::Relaxed);
                count!("keep_cache_fills_refused_total", 1, "cache" => self.label.clone());
                false
            }
            (Some(true), None) => {
                let target = [Target::key(key.clone())];
                // Kept back first: who looks whether anything is, and then what was hit, must find the one or the other.
                self.group.shared.keep_back(target.clone());
                self.group.shared.hit(&target);
                false
            }
            // Without the store it is believed here for as long as a local copy.
            (None, _) => draft.bypassed && draft.is_wanted,
            (Some(false), _) => false,
        };
        if is_kept && let Some(local) = &self.local {
            local.keep(&key, known.clone(), (draft.noted, &names), draft.weight);
            for alias in known.aliases.iter().flat_map(|aliases| aliases.iter()) {
                local.point(alias, &key.key);
            }
            let (entries, bytes) = local.size();
            gauge!("keep_cache_local_entries", entries as f64, "cache" => self.label.clone());
            gauge!("keep_cache_local_bytes", bytes as f64, "cache" => self.label.clone());
        }
        let outcome = if draft.bypassed {
            CacheOutcome::Bypassed
        } else {
            CacheOutcome::Loaded
        };
        self.cached(known, outcome)
    }

    fn draft(&self, landed: Landed<V>) -> (Draft<V>, Option<Item>) {
        let Landed {
            key,
            loaded,
            start,
            lease_of,
        } = landed;
        let is_wanted = match &loaded {
            Some(loaded) => loaded.is_stored,
            None => self.missing_life().is_some(),
        };
        let ages = self.ages_of(loaded.as_ref());
        let fill = start.token.map(|token| {
            let right = Right::Lease(token);
            let fill = match &loaded {
                Some(loaded) if is_wanted => self.fill(loaded, ages, right).ok().flatten(),
                None if is_wanted => self.fill_absent(ages, right),
                _ => None,
            };
            fill.unwrap_or_else(|| give_back(token))
        });
        let names = loaded.as_ref().map(names_of).unwrap_or_default();
        let draft = Draft {
            key: key.clone(),
            weight: fill.as_ref().map_or(256, |fill| fill.payload.len()),
            names,
            known: self.fresh_known(loaded, ages),
            noted: start.noted,
            bypassed: start.bypassed,
            replaces: start.replaces,
            is_wanted,
            stores: fill.as_ref().map(|fill| fill.life > 0),
        };
        let item = fill.map(|fill| Item {
            key,
            fill,
            lease_of,
        });
        (draft, item)
    }

    /// Writes values that are known to be true.
    pub(super) async fn put(&self, puts: Vec<(CacheKey, Loaded<V>)>) -> Result<(), DataError> {
        let shared = &self.group.shared;
        let (mut items, mut failed) = (Vec::with_capacity(puts.len()), Ok(()));
        let target = |item: &Item| Target::key(item.key.clone());
        for (key, loaded) in puts {
            let ages = self.ages_of(Some(&loaded));
            let error = match self.fill(&loaded, ages, Right::Always) {
                Ok(Some(fill)) => {
                    items.push(Item::new(key, fill));
                    continue;
                }
                Ok(None) => DataError::of(DataErrorKind::TooLarge { limit: LARGEST }),
                Err(error) => error,
            };
            // What was there before is no longer true.
            let target = [Target::key(key)];
            shared.hit(&target);
            shared.keep_back(target.clone());
            shared.hit(&target);
            failed = Err(error);
        }
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(AT_ONCE));
            let part = std::mem::replace(&mut items, rest);
            let targets: Vec<Target> = part.iter().map(target).collect();
            shared.hit(&targets);
            if let Err(error) = self.write(part).await {
                shared.keep_back(targets.iter().cloned());
                failed = Err(error.into());
            }
            shared.hit(&targets);
        }
        failed
    }

    /// Writes up to 512 items.
    pub(super) async fn write(&self, items: Vec<Item>) -> Result<Vec<Written>, StoreError> {
        let shared = &self.group.shared;
        let is_harmless = items
            .iter()
            .all(|item| matches!(item.fill.right, Right::Lease(_)));
        let group = shared.name.shared();
        let write = || shared.store.write(&group, items.clone(), &shared.sender);
        if is_harmless {
            // A repeat finds its lease gone and is refused.
            once_more(write).await
        } else {
            write().await
        }
    }

    /// Ends a lease under which nothing will be filled: those who wait for it need not.
    pub(super) async fn give_back(&self, key: &CacheKey, token: Option<LeaseToken>) {
        self.give_back_all(std::slice::from_ref(key), token).await;
    }

    /// Ends leases of one owner, up to 512 in one step.
    pub(super) async fn give_back_all(&self, leases: &[CacheKey], token: Option<LeaseToken>) {
        let Some(token) = token else { return };
        let item = |lease: &CacheKey| Item::new(lease.clone(), give_back(token));
        for part in leases.chunks(AT_ONCE) {
            // Else they end by themselves.
            let _ = self.write(part.iter().map(item).collect()).await;
        }
    }

    fn missing_life(&self) -> Option<Ttl> {
        let ttl = self.config.life.ttl();
        let missing = Ttl::try_from(self.config.missing_for.min(ttl.as_duration()));
        missing.ok()
    }

    /// Draws the ages of one record: here and in the store it is the same one.
    pub(super) fn ages_of(&self, loaded: Option<&Loaded<V>>) -> Ages {
        match (loaded, self.missing_life()) {
            (None, Some(missing)) => policy::ages(Lifetime::new(missing).jitter(0), None, 0),
            (loaded, _) => {
                let random = self.group.shared.any();
                let own = loaded.and_then(|loaded| loaded.ttl);
                policy::ages(self.config.life, own, random)
            }
        }
    }

    fn fresh_known(&self, loaded: Option<Loaded<V>>, ages: Ages) -> Known<V> {
        let now = self.clock.now_micros();
        let aliases = loaded.as_ref().map(|loaded| &loaded.aliases[..]);
        Known {
            aliases: aliases.filter(|all| !all.is_empty()).map(Arc::from),
            value: loaded.map(|loaded| Share::new(loaded.value)),
            stored: now,
            stored_ms: now / 1_000,
            refresh: now + ages.refresh * 1_000,
            fresh: now + ages.fresh * 1_000,
            gone: now + ages.life * 1_000,
        }
    }

    fn fill_absent(&self, ages: Ages, right: Right) -> Option<Fill> {
        let payload = codec::encode::<V>(None, self.config.shape).ok()??;
        Some(fill_of(payload, (Vec::new(), Vec::new()), ages, right))
    }

    /// Encodes a value; `None` for one that is too large.
    pub(super) fn fill(
        &self,
        loaded: &Loaded<V>,
        ages: Ages,
        right: Right,
    ) -> Result<Option<Fill>, DataError> {
        let payload = codec::encode(Some(&loaded.value), self.config.shape)
            .map_err(|error| DataError::with_source(DataErrorKind::Unencodable, error))?;
        let names = (tags_of(loaded), loaded.aliases.clone());
        Ok(payload.map(|payload| fill_of(payload, names, ages, right)))
    }
}

fn fill_of(
    payload: Vec<u8>,
    (tags, aliases): (Vec<String>, Vec<String>),
    ages: Ages,
    right: Right,
) -> Fill {
    Fill {
        // Without the room that was kept for growing.
        payload: payload.into_boxed_slice().into(),
        tags,
        aliases,
        refresh: ages.refresh,
        fresh: ages.fresh,
        life: ages.life,
        right,
    }
}

/// Ends a lease and stores nothing.
fn give_back(token: LeaseToken) -> Fill {
    Fill {
        payload: Bytes::new(),
        tags: Vec::new(),
        aliases: Vec::new(),
        refresh: 0,
        fresh: 0,
        life: 0,
        right: Right::Lease(token),
    }
}

fn tags_of<V>(loaded: &Loaded<V>) -> Vec<String> {
    let tags = loaded.tags.iter().take(MOST_TAGS);
    tags.map(|tag| Target::tag(tag.clone()).member()).collect()
}

/// Tags and aliases, as a record lists them.
fn names_of<V>(loaded: &Loaded<V>) -> Vec<String> {
    let mut names = tags_of(loaded);
    names.extend(loaded.aliases.iter().cloned());
    names
}
