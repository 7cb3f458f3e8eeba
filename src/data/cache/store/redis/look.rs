//! A read that wants no lease, by plain commands: the script is asked where they cannot tell.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::{own_key, parse, stamps_of};
use crate::backend::redis::{Look, RedisStore, Reply};
use crate::core::StoreError;
use crate::data::cache::store::{CacheKey, Fetched, Leased, Record};

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
    key: &CacheKey,
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
    let absent = Fetched {
        record: None,
        leased: Leased::No,
        now,
    };
    let mut next = || answers.next().unwrap_or(Reply::Nil);
    let (Ok(raw), Ok(scores)) = (next().opt_bytes(), next().array()) else {
        return Ok(None);
    };
    let Some((stamp, record)) = raw.as_ref().and_then(stamped) else {
        return Ok(Some(absent));
    };
    if record.tags.iter().any(|tag| tag.starts_with('t')) {
        Tagged::of(store).remember(group);
        return Ok(None);
    }
    let is_good = now < record.expires && is_good(stamp, scores);
    Ok(Some(Fetched {
        record: is_good.then_some(record),
        ..absent
    }))
}

fn stamped(raw: &Bytes) -> Option<(f64, Record)> {
    let end = raw.iter().position(|byte| *byte == b' ')?;
    let stamp = std::str::from_utf8(&raw[..end]).ok()?.parse().ok()?;
    Some((stamp, parse(raw)?))
}

/// As in `fetch.lua`: without the group's own stamp all are lost, and one as late as the record's overtakes it.
fn is_good(stamp: f64, scores: Vec<Reply>) -> bool {
    let score = |reply: Reply| {
        let text = reply.opt_bytes().ok().flatten()?;
        std::str::from_utf8(&text).ok()?.parse::<f64>().ok()
    };
    let mut scores = scores.into_iter().map(score);
    let Some(Some(own)) = scores.next() else {
        return false;
    };
    own < stamp && scores.flatten().all(|score| score < stamp)
}
