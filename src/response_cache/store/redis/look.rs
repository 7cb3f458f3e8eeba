//! A look-up by plain commands, where this process has lately seen or stored something fresh: the script is asked where
//! it has not, and where they find anything else.

use std::sync::Arc;
use std::vec;

use tokio::time::Instant;

use crate::backend::redis::{Likely, RedisStore, Reply};
use crate::core::{StoreError, StoreFuture, base64url, monotonic};
use crate::response_cache::entry::{Entry, EntryId, Head};
use crate::response_cache::stamps::Stamp;
use crate::response_cache::store::{EntryKey, Found, FoundEntry, Hash128, Lookup, Stored, Want};

use super::{LOOKUP_SHARE, keys, question, stamps_keys, stored};

/// What this process last saw, of each key that it asked for.
#[derive(Debug, Default)]
pub(super) struct Fresh(Likely);

impl Fresh {
    fn of(store: &RedisStore) -> Arc<Self> {
        store.beside(Self::default)
    }

    fn note(&self, key: EntryKey, due: u64, begun: Stamp) {
        self.0.note(hash(key), due, begun.0);
    }

    /// Says whether a look probably suffices: nothing is to be leased, and there is something that may be used.
    fn suffices(&self, store: &RedisStore, lookup: &Lookup) -> bool {
        !matches!(lookup.want, Want::Lease(_))
            && self.0.has(store, hash(lookup.key), lookup.not_before.0)
    }
}

fn hash(key: EntryKey) -> u64 {
    let half = |bytes: [u8; 16]| u128::from_le_bytes(bytes) as u64;
    half(key.primary.0) ^ half(key.selector.0).rotate_left(32)
}

/// Notes what a write that was done has brought.
pub(super) fn noting(
    store: &RedisStore,
    key: EntryKey,
    head: &Head,
) -> impl FnOnce(Reply) -> Result<Stored, StoreError> + Send + use<> {
    let (fresh, due, begun) = (Fresh::of(store), head.due_at(), head.begun());
    move |reply| {
        let stored = stored(reply)?;
        if stored == Stored::Yes {
            fresh.note(key, due, begun);
        }
        Ok(stored)
    }
}

/// Forgets what was noted of a key whose entry is no more.
pub(super) fn forget(store: &RedisStore, key: EntryKey) {
    Fresh::of(store).0.forget(hash(key));
}

/// Looks where something fresh is likely, and asks the script where that is not found.
pub(super) fn look_or_ask(store: &RedisStore, lookup: Lookup) -> StoreFuture<Found> {
    let fresh = Fresh::of(store);
    let [primary, entry] = keys(store, lookup.key);
    let [stamps, head] = stamps_keys(store);
    let keys = [primary, entry, stamps, head];
    if !fresh.suffices(store, &lookup) {
        return ask(store, &fresh, &keys, &lookup, None);
    }
    let store = store.clone();
    StoreFuture::boxed(async move {
        let began = monotonic();
        if let Some(found) = look(&store, &keys, &lookup).await? {
            fresh.0.follow(&store, found.now);
            return Ok(found);
        }
        fresh.0.forget(hash(lookup.key));
        ask(&store, &fresh, &keys, &lookup, Some(began)).await
    })
}

/// Asks the script, and notes what it found.
fn ask(
    store: &RedisStore,
    fresh: &Arc<Fresh>,
    keys: &[String],
    lookup: &Lookup,
    began: Option<Instant>,
) -> StoreFuture<Found> {
    let (fresh, own, key) = (Arc::clone(fresh), store.clone(), lookup.key);
    question(store, keys, lookup, began).map(move |asked| {
        fresh.0.follow(&own, asked.found.now);
        if !matches!(asked.found.entry, FoundEntry::None) {
            fresh.note(key, asked.due, asked.begun);
        }
        asked.found
    })
}

/// Looks for the entry: `None` unless it is there, fresh and to be believed.
///
/// Each command is a step of its own, but together they tell what the script would have found at one instant. A variant's
/// field and its entry are written together, and the field goes when the entry can no longer be found under these names;
/// so an entry that is read after its field was the one of these names in between. The entry of answers that do not vary
/// goes itself when a name is learned, and is asked for without its field. The stamps, which only grow, are read
/// after both: an invalidation that was told before is seen, as is one that comes meanwhile. Their head is as good as the
/// set while both are there. The time is read first, and by it nothing is due or over. No replica is believed (GETEX).
async fn look(
    store: &RedisStore,
    [primary, entry, stamps, head]: &[String; 4],
    lookup: &Lookup,
) -> Result<Option<Found>, StoreError> {
    let asked = store
        .look("response_cache.look", primary)
        .timeout(store.timeout() / LOOKUP_SHARE);
    let asked = if varies(lookup) {
        let variant = format!("v:{}", base64url(&lookup.key.selector.0));
        asked.command(["HGET", primary, &variant])
    } else {
        asked
    };
    let asked = match lookup.have {
        None => asked.command(["HMGET", entry, "head", "body"]),
        Some(_) => asked.command(["HMGET", entry, "id", "begun", "due", "expires"]),
    };
    let asked = asked.command(["ZCARD", stamps]).command(["GETEX", head]);
    match asked.ask().await {
        Ok(Some((now, answers))) => Ok(found(now, answers, lookup)),
        Err(error) if error.is_unknown() => Err(error),
        // A server that takes no writes now refuses GETEX; the script reads on.
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Says whether it asks for one of several variants.
fn varies(lookup: &Lookup) -> bool {
    !lookup.names.is_empty() || lookup.key.selector != Hash128::default()
}

/// Decides as `lookup.lua` does; `None` where that has to.
fn found(now: u64, mut answers: vec::IntoIter<Reply>, lookup: &Lookup) -> Option<Found> {
    if varies(lookup) {
        answers.next()?.bytes().ok()?;
    }
    let mut parts = answers.next()?.array().ok()?.into_iter();
    let are_there = answers.next()?.int().ok()? > 0;
    let (highest, floor) = head_of(&answers.next()?.bytes().ok()?).filter(|_| are_there)?;
    let (entry, begun, due, expires) = match lookup.have {
        None => {
            let (head, body) = (parts.next()?.bytes().ok()?, parts.next()?.bytes().ok()?);
            let head = Head::decode(&head).filter(|head| head.names == lookup.names)?;
            let times = (head.begun(), head.due_at(), head.expires_at());
            let entry = FoundEntry::Entry(Arc::new(Entry::new(head, body)));
            (entry, times.0, times.1, times.2)
        }
        Some(have) => {
            let mut next = || parts.next().and_then(u64_of);
            if EntryId(next()?) != have {
                return None;
            }
            (FoundEntry::Same, Stamp(next()?), next()?, next()?)
        }
    };
    let may_be_used = expires > now && begun >= floor.max(lookup.not_before);
    let is_due = now >= due && lookup.want != Want::Entry;
    (may_be_used && !is_due).then(|| Found {
        now,
        highest,
        floor,
        names: lookup.names.clone(),
        entry,
        lease: None,
        mark: None,
    })
}

/// Reads the head of the stamps: the highest, and the floor.
fn head_of(text: &[u8]) -> Option<(Stamp, Stamp)> {
    let (highest, floor) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Some((Stamp(highest.parse().ok()?), Stamp(floor.parse().ok()?)))
}

/// A number of up to 64 bits: a version's name needs all of them.
fn u64_of(reply: Reply) -> Option<u64> {
    std::str::from_utf8(&reply.bytes().ok()?).ok()?.parse().ok()
}
