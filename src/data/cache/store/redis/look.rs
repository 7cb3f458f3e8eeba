//! A read by plain commands: the script is asked where they cannot tell, and where a lease is wanted and this process has
//! not lately seen or stored something fresh.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::RwLock;

use super::{own_key, parse, stamps_of};
use crate::backend::redis::{Likely, Look, RedisStore, Reply};
use crate::core::StoreError;
use crate::data::cache::store::{
    Ask, CacheKey, Fetched, Item, Leased, Lookup, Record, Target, Written,
};

/// The groups whose records have tags: which stamps they need is known only when they have been read.
#[derive(Debug, Default)]
pub(super) struct Tagged(RwLock<HashSet<Arc<str>>>);

impl Tagged {
    pub(super) fn of(store: &RedisStore) -> Arc<Self> {
        store.beside(Self::default)
    }

    pub(super) fn has(&self, group: &str) -> bool {
        self.0.read().contains(group)
    }

    fn remember(&self, group: &Arc<str>) {
        self.0.write().insert(Arc::clone(group));
    }
}

/// What this process last saw or stored, of each key that has no tags.
#[derive(Debug, Default)]
struct Fresh {
    likely: Likely,
    hasher: RandomState,
}

impl Fresh {
    fn of(store: &RedisStore) -> Arc<Self> {
        store.beside(Self::default)
    }

    fn hash(&self, group: &str, key: &CacheKey) -> u64 {
        self.hasher.hash_one((group, key))
    }
}

/// Says whether a look may do: nothing is to be leased, as far as this process knows.
pub(super) fn may_do(store: &RedisStore, group: &str, lookup: &Lookup) -> bool {
    let may_be_fresh = || {
        let fresh = Fresh::of(store);
        fresh.likely.has(store, fresh.hash(group, &lookup.key), 0)
    };
    let suffices = match lookup.ask {
        Ask::Read => true,
        Ask::Lease(wish) => !wish.force && may_be_fresh(),
    };
    suffices && !Tagged::of(store).has(group)
}

/// Forgets what an invalidation may hit. Records with tags are not noted.
pub(super) fn forget(store: &RedisStore, group: &str, targets: &[Target]) {
    let fresh = Fresh::of(store);
    for target in targets {
        match target.as_key() {
            Some(key) => fresh.likely.forget(fresh.hash(group, key)),
            None if target.member().starts_with('t') => {}
            None => fresh.likely.clear(),
        }
    }
}

/// Notes what a call tells of a group's records.
pub(super) struct Notes {
    store: RedisStore,
    group: Arc<str>,
    fresh: Arc<Fresh>,
    /// The hash of each key that is written, and for how many milliseconds it will be fresh; 0 is not to be noted.
    promised: Vec<(u64, u64)>,
}

impl Notes {
    pub(super) fn of(store: &RedisStore, group: &Arc<str>) -> Self {
        Self {
            store: store.clone(),
            group: Arc::clone(group),
            fresh: Fresh::of(store),
            promised: Vec::new(),
        }
    }

    /// Notes what was found.
    pub(super) fn saw(&self, key: &CacheKey, fetched: &Fetched) {
        self.fresh.likely.follow(&self.store, fetched.now * 1_000);
        let untagged = fetched.record.as_ref().filter(|record| !record.has_tags());
        if let Some(record) = untagged {
            let hash = self.fresh.hash(&self.group, key);
            let until = record.refresh.min(record.expires).saturating_mul(1_000);
            self.fresh.likely.note(hash, until, 0);
        }
    }

    /// Remembers what is about to be written.
    pub(super) fn promise(&mut self, item: &Item) {
        let fill = &item.fill;
        let lasts = match fill.tags.is_empty() {
            true => fill.refresh.min(fill.life),
            false => 0,
        };
        let hash = self.fresh.hash(&self.group, &item.key);
        self.promised.push((hash, lasts));
    }

    /// Notes what was written.
    pub(super) fn keep(&self, written: &[Written]) {
        let now = self.fresh.likely.now(&self.store);
        let stored = |written: &Written| *written == Written::Stored;
        let pairs = self.promised.iter().zip(written);
        for ((hash, lasts), _) in pairs.filter(|(_, written)| stored(written)) {
            let until = now.saturating_add(lasts.saturating_mul(1_000));
            self.fresh.likely.note(*hash, until, 0);
        }
    }
}

/// Looks for the record of a key. `None` where the script has to be asked.
///
/// The record is read first and the stamps, which only grow, after it: one that the later stamps do not overtake was good
/// when it was read, and one that they do was gone when they were. No replica is believed (GETEX).
///
/// # Errors
/// The server cannot be reached.
pub(super) async fn look(
    store: &RedisStore,
    group: &Arc<str>,
    Lookup { key, ask }: &Lookup,
) -> Result<Option<Fetched>, StoreError> {
    let record = own_key(store, group, key, "record");
    let stamps = stamps_of(store, group);
    let asked: Look = store
        .look("cache.look", &record)
        .command(["GETEX", &record]);
    let prefixes = key.prefixes();
    let names = ["ZMSCORE", &stamps, ""].into_iter();
    let asked = asked.command(names.chain(prefixes.iter().map(String::as_str)));
    let (now, mut answers) = match asked.ask().await {
        Ok(Some(seen)) => seen,
        Err(error) if error.is_unknown() => return Err(error),
        // A server that takes no writes now refuses GETEX; the script reads on.
        Ok(None) | Err(_) => return Ok(None),
    };
    let now = now / 1_000;
    let mut next = || answers.next().unwrap_or(Reply::Nil);
    let (Ok(raw), Ok(scores)) = (next().opt_bytes(), next().array()) else {
        return Ok(None);
    };
    let stamped = raw.as_ref().and_then(parse);
    if stamped
        .as_ref()
        .is_some_and(|(_, record)| record.has_tags())
    {
        Tagged::of(store).remember(group);
        return Ok(None);
    }
    let is_good = |(stamp, record): &(u64, Record)| now < record.expires && is_good(*stamp, scores);
    let record = stamped.filter(is_good).map(|(_, record)| record);
    let is_due = record.as_ref().is_none_or(|record| now >= record.refresh);
    if is_due && *ask != Ask::Read {
        let fresh = Fresh::of(store);
        fresh.likely.forget(fresh.hash(group, key));
        return Ok(None);
    }
    Ok(Some(Fetched {
        record,
        leased: Leased::No,
        now,
    }))
}

impl Record {
    fn has_tags(&self) -> bool {
        self.tags.iter().any(|tag| tag.starts_with('t'))
    }
}

/// As in `fetch.lua`: without the group's own stamp all are lost, and one as late as the record's overtakes it. So does
/// one that cannot be read.
fn is_good(stamp: u64, scores: Vec<Reply>) -> bool {
    let is_earlier = |score: &Reply| match score.clone().int() {
        Ok(score) => u64::try_from(score).is_ok_and(|score| score < stamp),
        Err(_) => *score == Reply::Nil,
    };
    scores.first().is_some_and(|own| *own != Reply::Nil) && scores.iter().all(is_earlier)
}
